// The settings of one side: what they are, and the request that they stand for.
// A value that is no number where one is due is kept as it was typed: the server says what is wrong with it.

/**
 * @typedef {object} Settings
 * @property {string} model a model's or a preset's id
 * @property {string} strategy "" leaves it to the server
 * @property {Record<string, any> | "auto"} weights by objective; those of 0 are left out
 * @property {Record<string, any>} [guides] exponents by member
 * @property {Record<string, any>} params of the strategy, those that are set
 * @property {any} [reward]
 * @property {any} seed null leaves it to the server, as with the next two
 * @property {any} temperature
 * @property {any} max_tokens
 * @property {{max_sampled_tokens?: any, deadline_ms?: any}} budget
 * @property {string} system instructions before the conversation
 */

/** @param {string} model @returns {Settings} */
export function defaultSettings(model) {
  return {
    model,
    strategy: "",
    weights: {},
    params: {},
    seed: null,
    temperature: null,
    max_tokens: null,
    budget: {},
    system: "",
  };
}

/** Settings with every key, whatever a link or another version left out. @returns {Settings} */
export function completeSettings(partial, model) {
  return { ...defaultSettings(model), ...structuredClone(partial ?? {}) };
}

/**
 * A chat request as anyone would send it: nothing is in it that is at its default.
 * @param {Settings} settings
 * @param {{role: string, content: string}[]} messages
 * @param {{stream?: boolean, include?: string[]}} [options] `include`: what of the strategy's report to return
 */
export function buildBody(settings, messages, { stream = false, include = [] } = {}) {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  const body = { model: settings.model, messages: [...system, ...messages] };
  for (const key of ["seed", "temperature", "max_tokens"]) {
    if (settings[key] !== null && settings[key] !== undefined) body[key] = settings[key];
  }
  const alignment = buildAlignment(settings);
  if (include.length) alignment.return = include;
  if (Object.keys(alignment).length) body.alignment = alignment;
  if (stream) Object.assign(body, { stream: true, stream_options: { include_usage: true } });
  return body;
}

/** @param {Settings} settings */
function buildAlignment(settings) {
  const alignment = {};
  if (settings.strategy) alignment.strategy = settings.strategy;
  if (settings.weights === "auto") alignment.weights = "auto";
  for (const key of ["weights", "guides", "params", "budget"]) {
    const value = settings[key];
    if (value && typeof value === "object" && Object.keys(value).length) alignment[key] = { ...value };
  }
  if (settings.reward !== null && settings.reward !== undefined) alignment.reward = settings.reward;
  return alignment;
}

/**
 * The strategy that answers a request of these settings, as the server chooses it.
 * @param {Settings} settings
 * @param {any} describe GET v1/alignment
 * @returns {string}
 */
export function resolveStrategy(settings, describe) {
  const asked = { ...describe.presets[settings.model], ...buildAlignment(settings) };
  const usual = describe.default_strategy;
  if (asked.strategy) return asked.strategy;
  if (!asked.weights && !asked.guides) return usual;
  const names = typeof asked.weights === "object" ? Object.keys(asked.weights) : [];
  const steered = names.every((name) => describe.objectives[name]?.guide);
  return describe.strategies[usual].takes.includes("reward") && !steered ? usual : "guided";
}

/**
 * What the page asks to be returned: all that the strategy shows, and a search's progress.
 * @param {Settings} settings
 * @param {any} describe
 * @returns {string[]}
 */
export function chooseReturns(settings, describe) {
  const strategy = describe.strategies[resolveStrategy(settings, describe)];
  const shows = strategy?.return ?? [];
  const slow = strategy?.streaming === "buffered" ? ["progress", "best"] : [];
  return ["trace", "candidates", "rewards", ...slow].filter((name) => shows.includes(name));
}

/** What a text field holds: null where it is empty, a number where it is one, else the text. @param {string} text */
export function readNumber(text) {
  const trimmed = text.trim();
  if (!trimmed) return null;
  const number = Number(trimmed.replace(",", "."));
  return Number.isFinite(number) ? number : trimmed;
}
