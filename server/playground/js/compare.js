// Side by side: two settings answer one question with one seed; words that differ, costs and rewards under each.

import { AnswerView } from "./answer.js";
import { markDifferences } from "./diff.js";
import { formatNumber, h, newId, replace } from "./dom.js";
import { showFailure } from "./notice.js";
import { defaultSettings, resolveStrategy } from "./settings.js";

const SEEDS = 2 ** 31;

/**
 * @param {{api: import("./api.js").Api, describe: any, getSettings: () => any, askKey: () => void,
 *   showInForm: (failure: any) => HTMLElement | null, clearFailures: () => void, say: (words: string) => void}} context
 * @returns {{node: HTMLElement, update: () => void}} `update` shows settings that have changed
 */
export function createCompare(context) {
  const { api, describe, getSettings } = context;
  /** @type {any} */
  let pinned = null;
  /** @type {AnswerView | null} */
  let running = null;
  let stopped = false;
  const id = newId("question");
  const question = h("textarea", { id, rows: 2 });
  question.value = "How do I clean a copper pan?";
  const start = h("button", { class: "primary" }, "Compare");
  const stop = h(
    "button",
    {
      type: "button",
      hidden: true,
      onclick: () => {
        stopped = true;
        running?.stop();
      },
    },
    "Stop",
  );
  const pin = h(
    "button",
    {
      type: "button",
      onclick: () => {
        pinned = pinned ? null : getSettings();
        update();
      },
    },
  );
  const sides = [h("p", { class: "hint" }), h("p", { class: "hint" })];
  const result = h("div", { class: "comparison" });
  const node = h(
    "div",
    { class: "chat" },
    h(
      "form",
      { class: "stack", "aria-label": "Compare", onsubmit: compare },
      h("div", { class: "field" }, h("label", { for: id }, "Question to both sides"), question),
      h(
        "dl",
        { class: "sides" },
        h("dt", null, "Left"),
        h("dd", null, sides[0]),
        h("dt", null, "Right"),
        h("dd", null, sides[1]),
      ),
      h("div", { class: "buttons" }, start, stop, pin),
    ),
    result,
  );

  const leftSettings = () =>
    pinned ?? { ...defaultSettings(describe.model), strategy: "plain", ...pick(getSettings(), ["temperature", "max_tokens", "system"]) };

  function update() {
    replace(sides[0], pinned ? "Pinned settings: " : "The plain model: ", summarise(leftSettings(), describe));
    replace(sides[1], "The settings as they are: ", summarise(getSettings(), describe));
    replace(pin, pinned ? "Put the plain model on the left" : "Pin these settings on the left");
  }

  async function compare(event) {
    event.preventDefault();
    const text = question.value.trim();
    if (!text || running) return;
    const seed = getSettings().seed ?? Math.floor(Math.random() * SEEDS);
    const settings = [leftSettings(), getSettings()].map((side) => ({ ...side, seed }));
    const views = [new AnswerView({ ...context, showInForm: undefined }), new AnswerView(context)];
    const marks = h("p", { class: "hint" });
    const scores = h("div");
    replace(
      result,
      h("p", { class: "hint" }, `Seed ${seed} on both sides, one after the other so that their seconds compare.`),
      h(
        "div",
        { class: "columns" },
        views.map((view, k) =>
          h("section", { "aria-label": k ? "Right" : "Left" }, h("h2", null, k ? "Right" : "Left", " · ", resolveStrategy(settings[k], describe)), view.node),
        ),
      ),
      marks,
      scores,
    );
    context.clearFailures();
    context.say("Both sides are being answered.");
    stopped = false;
    start.disabled = true;
    stop.hidden = false;
    const messages = [{ role: "user", content: text }];
    try {
      for (const [k, view] of views.entries()) {
        if (stopped) break;
        running = view;
        await view.run(settings[k], messages);
      }
    } finally {
      running = null;
      start.disabled = false;
      if (document.activeElement === stop) start.focus();
      stop.hidden = true;
    }
    if (!views.every((view) => view.text || view.answer)) return context.say("There is nothing to compare.");
    context.say("Both sides are answered.");
    showMarks(marks, views);
    await showScores(scores, messages, views);
  }

  function showMarks(place, [left, right]) {
    const counts = markDifferences(left.parts.body, right.parts.body);
    const words = counts?.map((count) => (count === 1 ? "1 word" : `${count} words`));
    replace(
      place,
      !counts
        ? "The answers are too long for their differences to be marked."
        : counts[0] + counts[1] === 0
          ? "The answers are the same."
          : ["Underlined words are not in the other answer: ", `${words[0]} on the left, ${words[1]} on the right.`],
    );
  }

  async function showScores(place, messages, views) {
    if (!Object.values(describe.objectives).some((objective) => objective.reward)) return;
    try {
      const { scores } = await api.score({ messages, responses: views.map((view) => view.text) });
      const [left, right] = scores.map((row) => ({ ...row.rewards, ...row.transformed }));
      replace(place, scoreTable(left, right));
    } catch (failure) {
      if (failure.status === undefined) throw failure;
      replace(place, h("p", { class: "hint" }, "Their rewards are not known."), showFailure(failure, context));
    }
  }

  update();
  return { node, update };
}

/** @param {Record<string, number>} left @param {Record<string, number>} right */
function scoreTable(left, right) {
  const cell = (value, other) => h("td", null, value > other ? h("span", { "aria-hidden": "true" }, "▲ ") : null, formatNumber(value));
  return [
    h("p", { class: "hint" }, "Rewards, in standard deviations of the base's own answers where that was calibrated; ▲ marks the higher."),
    h(
      "table",
      { class: "scores", "aria-label": "Rewards of both" },
      h("thead", null, h("tr", null, ["Objective", "Left", "Right"].map((title) => h("th", { scope: "col" }, title)))),
      h(
        "tbody",
        null,
        Object.keys(left).map((name) =>
          h("tr", null, h("th", { scope: "row" }, name), cell(left[name], right[name]), cell(right[name], left[name])),
        ),
      ),
    ),
  ];
}

/** Settings in a few words. */
function summarise(settings, describe) {
  const weights =
    settings.weights === "auto" ? ["weights by the prompt"] : Object.entries(settings.weights).map(([name, w]) => `${name} ${formatNumber(w)}`);
  const params = Object.entries(settings.params).map(([name, value]) => `${name} ${JSON.stringify(value)}`);
  const model = settings.model in describe.presets ? [settings.model] : [];
  return [...model, resolveStrategy(settings, describe), ...weights, ...params].join(", ");
}

function pick(settings, keys) {
  return Object.fromEntries(keys.map((key) => [key, settings[key]]));
}
