// What an answer's `alignment` tells of how it came about: sentences, charts, and whatever else it holds, as it is.
// A view goes by what a report looks like, not by its strategy's name, so that a new strategy is shown too.

import { bars, formatFigure, histogram, lines, showTable } from "./charts.js";
import { h } from "./dom.js";

/** Lowest KL of a level, in nats; below the first is level 0. */
const LEVELS = [0.02, 0.1, 0.5, 1];
const MAX_SHOWN = 20;

const round = (x) => (typeof x === "number" ? Number((x * 100).toPrecision(3)) : x);
const percent = (x) => `${formatFigure(round(x))} %`;
const times = (n, one, many) => `${formatFigure(n)} ${n === 1 ? one : many}`;
const isPlainObject = (x) => typeof x === "object" && x !== null && !Array.isArray(x);
const isFlat = (x) => isPlainObject(x) && Object.values(x).every((v) => typeof v !== "object" || v === null);
const quantiles = (what) => (v) => (v === null
  ? `There is no ${what}: nothing was accepted.`
  : `The ${what}, in tokens: mean ${formatFigure(v.mean)}, ${formatFigure(v.p10)} or fewer in a tenth, ` +
    `${formatFigure(v.p50)} in the middle, ${formatFigure(v.p90)} or fewer in nine tenths.`);
const factor = (nats) => (nats > 20 ? "far" : `${formatFigure(Math.exp(Math.max(0, nats)))} times`);

/** What each figure of a report means, in a sentence. @type {Record<string, (value: any) => string>} */
const SENTENCES = {
  value: (v) => (v === null
    ? "No reward scored this answer."
    : `The answer's reward is ${formatFigure(v)}, in the reward's own unit: more is better.`),
  kl_exact: (v) => `Along this answer the model was moved by ${formatFigure(v)} nats from the frozen one ` +
    "(KL, exact): 0 would be no change at all.",
  kl_estimate: (v) => `The search moved its answers about ${formatFigure(v)} nats from what is drawn without it ` +
    `(KL, an estimate): they became about ${factor(v)} as likely.`,
  kl_bound: (v) => `The search moved its answers by at most ${formatFigure(v)} nats from what is drawn without it ` +
    `(a bound of the KL): on average they became at most ${factor(v)} as likely.`,
  unfinished: (v) => (v === 0
    ? "Every candidate came to its end by itself."
    : `${times(v, "candidate", "candidates")} did not come to an end: cut at max_tokens, or by a budget or deadline.`),
  degraded: (v) => (v ? OUTCOMES.degraded : "No reward failed."),
  candidate: (v) => `The answer is candidate ${v}, counted from 0.`,
  alone: (v) => (v ? "It was drawn by itself, and not together with others." : "It was drawn together with others."),
  acceptance_rate: (v) => `${percent(v)} of the proposals were accepted.`,
  effective_sample_size: (v) => `What was drawn is worth ${formatFigure(v)} independent draws (effective sample size).`,
  expected_utility: (v) => `Its mean likeness to the candidates is ${formatFigure(v)}: 1 is the same, 0 nothing alike.`,
  proposals: (v) => `${times(v, "proposal was", "proposals were")} looked at.`,
  extracted: (v) => (v === 0
    ? "No candidate holds an answer to count, so there was no vote."
    : `${times(v, "candidate holds", "candidates hold")} an answer that counts.`),
  answer: (v) => `The answer that won is “${v}”.`,
  share: (v) => `${percent(v)} of the candidates with an answer give it.`,
  votes: (v) => `It has ${times(v, "vote", "votes")}.`,
  blocks: (v) => `It was drawn in ${times(v, "block", "blocks")}, one after the other.`,
  rounds: (v) => `Beginnings were compared ${times(v, "time", "times")}.`,
  resampled: (v) => (v === 0
    ? "No particle was dropped for a better one."
    : `${times(v, "time", "times")} the worse beginnings were dropped for copies of better ones.`),
  distinct: (v) => `${times(v, "answer is", "answers are")} different among the particles.`,
  log_normaliser: (v) => `The log of the mean of exp(reward / beta) is about ${formatFigure(v)}.`,
  chains: (v) => `${times(v, "chain", "chains")} ran side by side.`,
  steps: (v) => `They took ${times(v, "step", "steps")} in all.`,
  accepted_length: quantiles("length of the accepted answers"),
  length: quantiles("length of the answers visited"),
  r_hat: sayRHat,
  preference_prompt: (v) => `The model was instructed: “${v}”`,
  degrees_from_target: (v) => `It was drawn ${formatFigure(v)} degrees from the direction that you asked for.`,
  log_weight: (v) => (v === null
    ? "There is no importance weight: tokens were drawn otherwise than at temperature 1."
    : `The answer's log importance weight is ${formatFigure(v)}: the sum of log Z over its tokens.`),
};

/** The entries whose key passes. @param {any} fields @param {(key: string) => boolean} test */
function pick(fields, test) {
  return Object.fromEntries(Object.entries(fields).filter(([key]) => test(key)));
}

/** @param {number|null} v */
function sayRHat(v) {
  if (v === null) return "R̂ cannot be worked out: the rewards did not vary.";
  const figure = `R̂ = ${formatFigure(v)}`;
  if (v <= 1.01) return `${figure}: the chains agree with each other, and ran long enough (the usual rule is 1.01).`;
  if (v <= 1.1) return `${figure}: the chains nearly agree; more steps would make sure (the usual rule is 1.01).`;
  return `${figure}: the chains do not agree yet; more steps are needed (the usual rule is 1.01).`;
}

const OUTCOMES = {
  budget: "The token budget ran out: this is the best answer until then.",
  deadline: "The deadline passed: this is the best answer until then.",
  degraded: "A reward failed, and the frozen model answered plainly: nothing was aligned.",
};

/**
 * @param {any} alignment a response's `alignment`
 * @param {any} [describe] the body of GET v1/alignment
 * @returns {Node}
 */
export function showHappened(alignment, describe = {}) {
  if (!isPlainObject(alignment)) return h("p", { class: "note" }, "The server says nothing of this answer.");
  const {
    strategy, choices = [], warnings = [], outcome, sampled_tokens: sampled, scored_tokens: scored, ...rest
  } = alignment;
  const settings = ["params", "weights", "auto_weights", "reward", "guides", "streaming"];
  return h(
    "div", { class: "report" },
    sayStrategy(strategy, describe),
    outcome ? h("p", { class: "outcome" }, OUTCOMES[outcome] ?? `It ended by: ${outcome}.`) : null,
    sampled === undefined ? null : h(
      "p", { "data-key": "sampled_tokens" },
      `${times(sampled, "token was", "tokens were")} drawn in all, and ${formatFigure(scored ?? 0)} read for scores.`,
    ),
    warnings.length
      ? h("ul", { class: "warnings", "aria-label": "Warnings" }, warnings.map((text) => h("li", {}, text)))
      : null,
    choices.map((choice) => showChoice(choice, choices.length > 1, alignment)),
    choices.length ? null : h("p", { class: "note" }, "The strategy tells no more of this answer."),
    showRest("Settings that ran", pick(rest, (key) => settings.includes(key))),
    showRest("Other", pick(rest, (key) => !settings.includes(key)), true),
  );
}

/** @param {string} name @param {any} describe */
function sayStrategy(name, describe) {
  const { description, paper } = describe?.strategies?.[name] ?? {};
  return h(
    "p", { class: "strategy" },
    h("strong", {}, name ?? "no strategy"), description ? `: ${description}` : "",
    /^https:\/\/arxiv\.org\//.test(paper ?? "")
      ? [" ", h("a", { href: paper, target: "_blank", rel: "noopener noreferrer" }, "The paper")]
      : null,
  );
}

/** One answer's report. @param {any} choice @param {boolean} several @param {any} alignment */
function showChoice(choice, several, alignment) {
  const { index, trace, candidates, decisions, rewards, transformed, direction, figures, ...rest } = choice;
  const said = Object.keys(SENTENCES).filter((key) => key in rest);
  const others = pick(rest, (key) => !said.includes(key));
  return h(
    "section", { class: "choice", "data-index": index, "aria-label": `Answer ${index}` },
    several ? h("h4", {}, `Answer ${index}`) : null,
    h("ul", { class: "sentences" }, said.map((key) => h("li", { "data-key": key }, say(key, rest[key])))),
    showRewards(rewards, transformed),
    showDirection(direction),
    trace === undefined ? null : showTrace(trace, choice, alignment),
    showDecisions(decisions),
    Array.isArray(candidates) ? showPool(candidates, choice) : null,
    showRest("Figures of this strategy", { ...(isPlainObject(figures) ? figures : { figures }), ...others }, true),
  );
}

/** A figure in words; one of another form than its sentence takes, as it is. @param {string} key @param {any} value */
function say(key, value) {
  const isWords = typeof value === "object" && value !== null && !("mean" in value);
  return isWords ? `${key}: ${JSON.stringify(value)}` : SENTENCES[key](value);
}

const itemsOf = (table) => Object.entries(table).map(([name, value]) => ({ name, value: /** @type {any} */ (value) }));

/** By objective. @param {any} direction */
function showDirection(direction) {
  if (!isPlainObject(direction)) return null;
  return bars(itemsOf(direction), { label: "Direction that it was drawn under", x: "share", low: -1, high: 1 });
}

/** Of one answer: each reward as it was scored, and what a transform made of it. */
function showRewards(rewards, transformed) {
  if (!isPlainObject(rewards) && !isPlainObject(transformed)) return null;
  return h(
    "div", { class: "rewards" },
    isPlainObject(rewards)
      ? bars(itemsOf(rewards), { label: "Rewards as scored", x: "reward, in its own unit" })
      : null,
    isPlainObject(transformed)
      ? bars(itemsOf(transformed), { label: "Rewards as they count", x: "in standard deviations, where standardised" })
      : null,
  );
}

function showTrace(trace, choice, alignment) {
  if (isPlainObject(trace) && Array.isArray(trace.kl_exact)) return showTokens(trace, alignment.guides ?? {});
  const isListOf = (key) => Array.isArray(trace) && trace.length && trace.every((one) => Array.isArray(one?.[key]));
  if (isListOf("reward")) return showChains(trace);
  if (isListOf("probabilities")) {
    return h("div", { class: "decisions" }, h("h5", {}, "Token by token"), fold(trace.map(showDecision), "decisions"));
  }
  return showRest("Trace", { trace }, true);
}

/** The level of a KL, in nats: 0 to 4. @param {number|null} kl */
export function levelOf(kl) {
  return typeof kl === "number" ? LEVELS.filter((least) => kl >= least).length : 0;
}

/** A token as it can be seen: its text, or what stands for it. @param {string|undefined} text @param {number} i */
function visible(text, i, isLast) {
  if (text === undefined) return `#${i + 1}`;
  if (text === "") return isLast ? "■" : "·";
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

/** Guided decoding: every token by its KL. @param {any} trace @param {Record<string, number>} guides */
function showTokens(trace, guides) {
  const { kl_exact: kl, log_z: logZ = [], texts = [], tokens: _ids, ...rest } = trace;
  const weights = Object.entries(guides).map(([name, w]) => `${name} ${formatFigure(w)}`).join(", ");
  const tell = (i) => `Token ${i + 1} of ${kl.length}, “${visible(texts[i], i, i === kl.length - 1)}”: ` +
    `KL ${formatFigure(kl[i])} nats, log Z ${formatFigure(logZ[i])}${weights ? `; weights: ${weights}` : ""}`;
  const hint = "Point at a token, or step through them with the arrow keys.";
  const detail = h("p", { class: "token-detail", "aria-live": "polite" }, hint);
  const show = (i) => detail.replaceChildren(tell(i));
  const buttons = kl.map((v, i) => h(
    "button", {
      type: "button", class: `token kl-${levelOf(v)}`, tabindex: i ? -1 : 0, "data-kl": v, "data-log-z": logZ[i],
      "aria-label": tell(i), onmouseenter: () => show(i), onfocus: () => show(i), onclick: () => show(i),
    },
    visible(texts[i], i, i === kl.length - 1),
  ));
  const legend = [`under ${LEVELS[0]}`, ...LEVELS.map((least, i) => (
    i + 1 < LEVELS.length ? `${least} to ${LEVELS[i + 1]}` : `${least} and more`))];
  const said = Object.keys(rest).filter((key) => key in SENTENCES);
  return h(
    "div", { class: "guided" },
    h("h5", {}, "Each token by how far the guides moved it"),
    h("p", { class: "legend" }, "KL in nats: ", legend.map((t, i) => [h("span", { class: `token kl-${i}` }, t), " "])),
    h(
      "div", {
        class: "tokens", role: "group", "aria-label": "Tokens of the answer",
        onkeydown: (event) => rove(event, buttons),
      },
      buttons.map((button, i) => (texts[i]?.includes("\n") ? [button, h("br")] : button)),
    ),
    detail,
    h("p", {}, `All ${kl.length} together: ${formatFigure(kl.reduce((sum, v) => sum + v, 0))} nats along this answer.`),
    said.map((key) => h("p", { "data-key": key }, SENTENCES[key](rest[key]))),
    lines([{ name: "KL", values: kl }, { name: "log Z", values: logZ }], {
      label: "KL and log Z by token", x: "token, from 0", y: "nats",
    }),
    showRest("Trace", pick(rest, (key) => !said.includes(key)), true),
  );
}

/** Arrow keys step from one button to the next: all of them are one stop of the tab key. */
function rove(event, buttons) {
  const at = buttons.indexOf(event.target);
  const [on, back, end] = [at + 1, at - 1, buttons.length - 1];
  const steps = { ArrowRight: on, ArrowDown: on, ArrowLeft: back, ArrowUp: back, Home: 0, End: end };
  const next = buttons[steps[event.key]];
  if (at < 0 || !next) return;
  event.preventDefault();
  buttons[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** Markov chains: reward by step. @param {any[]} trace */
function showChains(trace) {
  const series = trace.map((chain, c) => ({
    name: `chain ${c + 1}`,
    values: chain.reward,
    filled: Array.isArray(chain.accepted) ? [true, ...chain.accepted] : undefined,
  }));
  const rates = trace.map((chain, c) => ({
    name: `chain ${c + 1}`,
    value: chain.accepted?.length ? chain.accepted.filter(Boolean).length / chain.accepted.length : null,
  }));
  return h(
    "div", { class: "chains" },
    lines(series, {
      label: "Reward by step", x: "step", y: "reward",
      note: "A filled mark is a proposal accepted, a hollow one a step that stayed.",
    }),
    bars(rates, { label: "Share of proposals accepted, by chain", x: "share", high: 1 }),
    h("details", {}, h("summary", {}, "The chains as they are reported"), showValue(trace)),
  );
}

/** Look-ahead: the candidates for one token. @param {any} decision @param {number} i */
function showDecision(decision, i) {
  const { position, tokens = [], texts = [], logprobs = [], values = [], probabilities, chosen, ...rest } = decision;
  const name = (c) => {
    if (texts[c] === undefined) return `token ${tokens[c]}`;
    return texts[c] === "" ? "■ the end" : `“${visible(texts[c], c, false)}”`;
  };
  return h(
    "details", { class: "decision", open: i === 0, "data-position": position },
    h("summary", {}, `${position + 1}. ${name(chosen)}, with ${percent(probabilities[chosen])}`),
    showTable(
      "Candidates for the token", ["which", "next token", "log-probability", "value", "chance"],
      probabilities.map((p, c) => [c === chosen ? "chosen" : "", name(c), logprobs[c], values[c], percent(p)]), chosen,
    ),
    showRest("More", rest, true),
  );
}

/** How many decisions there were, or what was decided at each length. */
function showDecisions(decisions) {
  if (decisions === undefined) return null;
  if (typeof decisions === "number") {
    const said = `${times(decisions, "token was", "tokens were")} chosen by looking at several.`;
    return h("p", { "data-key": "decisions" }, said);
  }
  if (Array.isArray(decisions) && !decisions.length) {
    return h("p", { "data-key": "decisions" }, "No candidate was dropped on the way.");
  }
  return h("div", { "data-key": "decisions" }, h("h5", {}, "Decisions on the way"), showValue(decisions));
}

/** Pools: candidates, best first. @param {any[]} candidates @param {any} choice */
function showPool(candidates, choice) {
  const place = (c) => c.value ?? -Infinity;
  const ranked = [...candidates].sort((a, b) => place(b) - place(a) || a.index - b.index);
  const winner = candidates.find((c) => c.index === choice.candidate);
  const shares = countAnswers(candidates, choice.answer);
  return h(
    "div", { class: "pool" },
    h("h5", {}, `${times(candidates.length, "candidate", "candidates")}, best reward first`),
    candidates.some((c) => typeof c.value === "number")
      ? histogram(candidates.map((c) => c.value), {
        marked: winner?.value ?? choice.value, label: "Rewards of the candidates", x: "reward", y: "candidates",
      })
      : null,
    shares.length ? bars(shares, { label: "Votes by answer", x: "share of the votes", high: 1 }) : null,
    fold(ranked.map((c) => showCandidate(c, c === winner)), "candidates"),
  );
}

/** The answers that were voted on, most votes first, each with its share. */
function countAnswers(candidates, winner) {
  const votes = new Map();
  for (const c of candidates) {
    if (typeof c.answer === "string") votes.set(c.answer, (votes.get(c.answer) ?? 0) + (c.vote ?? 0));
  }
  const all = [...votes.values()].reduce((sum, v) => sum + v, 0);
  const ranked = [...votes].sort((a, b) => b[1] - a[1]);
  return ranked.map(([name, v]) => ({ name, value: all ? v / all : null, marked: name === winner }));
}

function showCandidate(candidate, isWinner) {
  const { index, text = "", value, finish_reason: finish, rewards, transformed, direction, ...rest } = candidate;
  const short = text.length > 70 ? `${text.slice(0, 70)}…` : text || "(empty)";
  return h(
    "details", { class: isWinner ? "candidate winner" : "candidate", "data-index": index, "data-value": value },
    h("summary", {}, isWinner ? h("strong", {}, "★ chosen ") : null, `${formatFigure(value)} · ${short}`),
    h("blockquote", {}, text || "(empty)"),
    showTable("Figures of the candidate", ["figure", "value"], [
      ["candidate", index], ["reward", value], ["ended by", finish],
      ...Object.entries(rest).map(([key, v]) => [key, typeof v === "object" && v !== null ? JSON.stringify(v) : v]),
    ]),
    showRewards(rewards, transformed),
    showDirection(direction),
  );
}

/** The first of many at once, the others when they are asked for. @param {Node[]} nodes @param {string} what */
function fold(nodes, what) {
  const rest = nodes.slice(MAX_SHOWN);
  return [
    nodes.slice(0, MAX_SHOWN),
    rest.length ? h("details", {}, h("summary", {}, `${rest.length} more ${what}`), rest) : null,
  ];
}

/** What has no words of its own, by its key. @param {string} title @param {any} fields @param {boolean} [open] */
function showRest(title, fields, open = false) {
  const entries = Object.entries(fields).filter(([, value]) => value !== undefined);
  if (!entries.length) return null;
  return h(
    "details", { class: "rest", open },
    h("summary", {}, title),
    h("dl", {}, entries.map(([key, value]) => [h("dt", {}, key), h("dd", { "data-key": key }, showValue(value))])),
  );
}

/** Any JSON. @param {any} value */
function showValue(value) {
  if (Array.isArray(value) && value.length && value.every(isFlat)) {
    const head = [...new Set(value.flatMap((row) => Object.keys(row)))];
    return showTable("Table", head, value.map((row) => head.map((key) => (key in row ? row[key] : ""))));
  }
  if (isFlat(value)) return Object.entries(value).map(([key, v]) => `${key}: ${formatFigure(v)}`).join(", ") || "{}";
  if (typeof value === "object" && value !== null) return h("pre", { tabindex: 0 }, JSON.stringify(value, null, 1));
  return formatFigure(value);
}
