// The form of the settings, made from what the server says of itself in GET v1/alignment.

import { h, newId, replace } from "./dom.js";
import { clearError, makeField, numberInput, parameterField, readJson, showError } from "./fields.js";
import { createPad } from "./pad.js";
import { completeSettings, defaultSettings, resolveStrategy } from "./settings.js";

const REACH = 2;
/** How far the sliders go where the server allows more: a weight of 1 is a full pull already. */

/**
 * @param {{describe: any, models: string[], settings: any, onChange: (settings: any) => void}} options
 * @returns {{node: HTMLElement, get: () => any, set: (settings: any) => void,
 *   showFailure: (failure: any) => HTMLElement | null, clearFailures: () => void}}
 *   `showFailure` gives the field that shows the message, if one does
 */
export function createForm({ describe, models, settings: start, onChange }) {
  let settings = completeSettings(start, models[0]);
  const node = h("form", { class: "settings", "aria-label": "Settings", onsubmit: (event) => event.preventDefault() });
  const weights = h("div");
  const parameters = h("fieldset");
  const summary = h("p", { class: "hint" });
  let pad = null;

  const change = (part) => {
    Object.assign(settings, part);
    onChange(structuredClone(settings));
  };
  const changeIn = (key, name, value) => {
    const part = { ...(typeof settings[key] === "object" ? settings[key] : {}) };
    if (value === null || value === undefined || (key === "weights" && value === 0)) delete part[name];
    else part[name] = value;
    change({ [key]: part });
  };

  function render() {
    replace(
      node,
      modelField(),
      strategyField(),
      summary,
      weights,
      parameters,
      samplingFields(),
      moreFields(),
      h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => set(defaultSettings(models[0])) }, "Reset")),
    );
    renderWeights();
    renderParameters();
  }

  function modelField() {
    const label = (id) => (id in describe.presets ? `${id} (preset)` : id);
    const control = h(
      "select",
      {
        onchange: () => {
          change({ model: control.value });
          renderWeights();
          renderParameters();
        },
      },
      models.map((id) => h("option", { value: id, selected: id === settings.model }, label(id))),
    );
    return makeField({ label: "Model or preset", param: "model", control });
  }

  function strategyField() {
    const groups = { "Guides, token by token": [], "Searches, by rewards": [] };
    for (const [name, row] of Object.entries(describe.strategies)) {
      groups[row.takes.includes("reward") ? "Searches, by rewards" : "Guides, token by token"].push(name);
    }
    const option = (name) => h("option", { value: name, selected: name === settings.strategy }, name);
    const control = h(
      "select",
      {
        onchange: () => {
          change({ strategy: control.value, params: {} });
          renderWeights();
          renderParameters();
        },
      },
      h("option", { value: "" }, "automatic"),
      Object.entries(groups).map(([title, names]) => h("optgroup", { label: title }, names.map(option))),
    );
    return makeField({ label: "Strategy", param: "alignment.strategy", control });
  }

  function renderParameters() {
    const name = resolveStrategy(settings, describe);
    const row = describe.strategies[name];
    replace(
      summary,
      settings.strategy ? null : h("strong", null, `${name}: `),
      row?.description,
      row?.paper ? [" ", h("a", { href: row.paper, rel: "noreferrer noopener", target: "_blank" }, "The paper")] : null,
    );
    const fields = Object.entries(row?.params ?? {}).map(([key, schema]) =>
      parameterField(key, schema, {
        value: settings.params[key],
        guides: ["base", ...describe.guides],
        onChange: (value) => changeIn("params", key, value),
      }),
    );
    parameters.hidden = !fields.length;
    replace(parameters, h("legend", null, `Parameters of ${name}`), fields);
  }

  function renderWeights() {
    const names = Object.keys(describe.objectives);
    weights.hidden = !names.length;
    const reach = Math.min(REACH, describe.max_weight);
    const low = readLowest(settings, describe) ?? -reach;
    const weightOf = (name) => (typeof settings.weights[name] === "number" ? settings.weights[name] : 0);
    const rows = names.map((name) => weightRow(name, low, reach));
    pad =
      names.length < 2
        ? null
        : createPad({
            names,
            low,
            high: reach,
            getWeight: weightOf,
            setWeights: (moved) => {
              for (const [name, value] of Object.entries(moved)) changeIn("weights", name, value);
              rows.forEach((row) => row.update());
            },
          });
    const auto = settings.weights === "auto";
    const error = h("p", { class: "error" });
    replace(
      weights,
      h(
        "fieldset",
        { "data-param": "alignment.weights" },
        h("legend", null, "Weights"),
        h("p", { class: "hint" }, `1 is a full pull, ${low < 0 ? "below 0 the opposite, " : ""}0 leaves it out. `, calibration(describe)),
        describe.auto_weights ? autoField(auto) : null,
        error,
        auto ? null : rows.map((row) => row.node),
        auto || !pad ? null : h("details", { open: names.length === 2 }, h("summary", null, "Two at a time"), pad.node),
      ),
    );
  }

  function autoField(auto) {
    const id = newId("auto");
    const control = h("input", {
      type: "checkbox",
      id,
      onchange: () => {
        change({ weights: control.checked ? "auto" : {} });
        renderWeights();
        renderParameters();
      },
    });
    control.checked = auto;
    return h("div", { class: "check" }, control, h("label", { for: id }, "Let the prompt choose them"));
  }

  /** A slider and a number for one objective; `update` shows what the settings hold. */
  function weightRow(name, low, high) {
    const objective = describe.objectives[name];
    const slider = h("input", { type: "range", min: low, max: high, step: 0.05 });
    const exact = numberInput({ value: "", label: `${name}, exactly`, onChange: (value) => put(value, slider) });
    const put = (value, other) => {
      const before = resolveStrategy(settings, describe);
      changeIn("weights", name, value);
      other.value = value ?? 0;
      pad?.update();
      if (resolveStrategy(settings, describe) !== before) renderParameters();
    };
    slider.addEventListener("input", () => put(Number(slider.value), exact));
    const update = () => {
      const value = settings.weights[name] ?? 0;
      slider.value = typeof value === "number" ? value : 0;
      exact.value = value;
    };
    update();
    const only = objective.guide && objective.reward ? "" : objective.guide ? " (guides only)" : " (searches only)";
    const field = makeField({ label: name, param: `alignment.weights.${name}`, control: slider, hint: `${objective.about ?? ""}${only}` });
    field.classList.add("weight");
    slider.after(exact);
    exact.setAttribute("aria-describedby", slider.getAttribute("aria-describedby"));
    return { node: field, update };
  }

  function samplingFields() {
    const field = (key, label, hint, placeholder) =>
      makeField({
        label,
        param: key,
        hint,
        control: numberInput({ value: settings[key], placeholder, onChange: (value) => change({ [key]: value }) }),
      });
    return h(
      "fieldset",
      null,
      h("legend", null, "Sampling"),
      h(
        "div",
        { class: "trio" },
        field("seed", "Seed", null, "random"),
        field("temperature", "Temperature", null, "server's"),
        field("max_tokens", "Max. tokens", null, "no limit"),
      ),
    );
  }

  function moreFields() {
    const limit = (key, label, hint) =>
      makeField({
        label,
        param: `alignment.budget.${key}`,
        hint,
        control: numberInput({ value: settings.budget[key], placeholder: "none", onChange: (value) => changeIn("budget", key, value) }),
      });
    const system = h("textarea", { rows: 2, oninput: () => change({ system: system.value }) });
    system.value = settings.system;
    const reward = h("input", {
      type: "text",
      autocomplete: "off",
      spellcheck: "false",
      placeholder: "none",
      oninput: () => change({ reward: reward.value.trim() ? readJson(reward.value) : undefined }),
    });
    if (settings.reward !== undefined) reward.value = JSON.stringify(settings.reward);
    const names = Object.entries(describe.rewards).flatMap(([name, { labels }]) =>
      labels.length === 1 ? [name] : labels.map((label) => `${name}.${label}`),
    );
    const guide = (name) =>
      makeField({
        label: name,
        param: `alignment.guides.${name}`,
        inline: true,
        control: numberInput({ value: settings.guides?.[name], placeholder: "none", onChange: (value) => setGuide(name, value) }),
      });
    return [
      h(
        "fieldset",
        { "data-param": "alignment.budget" },
        h("legend", null, "Limits"),
        h("p", { class: "hint" }, "When one is reached, the best so far is the answer."),
        h("p", { class: "error" }),
        h("div", { class: "pair" }, limit("max_sampled_tokens", "Tokens drawn"), limit("deadline_ms", "Milliseconds")),
      ),
      h(
        "details",
        null,
        h("summary", null, "Instructions, guides and reward"),
        makeField({ label: "Instructions to the model", param: "system", control: system, hint: "a system message before the conversation" }),
        makeField({
          label: "Reward",
          param: "alignment.reward",
          control: reward,
          hint: ["for searches, in the weights' place: a name or JSON; there are ", names.join(", ") || "none"],
        }),
        h(
          "fieldset",
          { "data-param": "alignment.guides" },
          h("legend", null, "Exponents of guides"),
          h("p", { class: "hint" }, "as they stand, beside the weights; what most strategies need are weights alone"),
          h("p", { class: "error" }),
          ["base", ...describe.guides].map(guide),
        ),
      ),
    ];
  }

  function setGuide(name, value) {
    changeIn("guides", name, value);
    if (!Object.keys(settings.guides).length) delete settings.guides;
    renderParameters();
  }

  function set(changed) {
    settings = completeSettings(changed, models[0]);
    if (!models.includes(settings.model)) settings.model = models[0];
    render();
    onChange(structuredClone(settings));
  }

  const fields = () => [...node.querySelectorAll("[data-param]")];

  function showFailure(failure) {
    const param = failure.param ?? "";
    const within = (field) => param === field.dataset.param || /^[.[]/.test(param.slice(field.dataset.param.length));
    const matches = fields().filter((field) => param.startsWith(field.dataset.param) && within(field));
    const field = matches.sort((a, b) => b.dataset.param.length - a.dataset.param.length)[0] ?? null;
    if (field) showError(field, failure.message);
    return field;
  }

  render();
  return {
    node,
    get: () => structuredClone(settings),
    set,
    showFailure,
    clearFailures: () => fields().forEach(clearError),
  };
}

/** The least weight that the strategy's preference prompt allows, if it allows none below. */
function readLowest(settings, describe) {
  const name = resolveStrategy(settings, describe);
  if (!describe.strategies[name]?.takes.includes("direction")) return null;
  const prompts = describe.preference_prompts;
  const prompt = prompts[settings.params.prompt] ?? Object.values(prompts)[0];
  return prompt?.cone?.nonnegative ? 0 : null;
}

/** What a weight of 1 means here. */
function calibration(describe) {
  const objectives = Object.values(describe.objectives);
  const calibrated = objectives.some((o) => (o.gain ?? 1) !== 1 || (o.spread ?? 1) !== 1 || (o.mean ?? 0) !== 0);
  return calibrated
    ? "This server is calibrated: equal weights pull equally hard, and for a search 1 is one standard deviation of the base's own answers."
    : "This server is not calibrated: equal weights need not pull equally hard.";
}
