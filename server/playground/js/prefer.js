// Which do you prefer? Pairs of answers to a person's own prompt, the most telling one first, become their weights.
// The comparisons stay in the page: the server infers from all of them each time, and stores nothing.

import { bars, formatFigure } from "./charts.js";
import { h } from "./dom.js";

const ANSWERS = 6;

/**
 * @param {object} facts
 * @param {{infer: (body: any) => Promise<any>, chat: (body: any, options: any) => Promise<any>}} facts.api
 * @param {any} facts.describe the body of GET v1/alignment
 * @param {() => any} facts.getSettings `temperature` and `max_tokens` of the answers
 * @param {(weights: Record<string, number>) => void} facts.useWeights
 * @returns {Node}
 */
export function createPreferPanel({ api, describe, getSettings, useWeights }) {
  const objectives = Object.entries(describe.objectives ?? {}).filter(([, o]) => o.reward).map(([name]) => name);
  if (!objectives.length) {
    const why = "This server has no objective with a reward, so it cannot learn what you prefer.";
    return h("p", { class: "prefer note" }, why);
  }
  return new PreferPanel(api, describe, getSettings, useWeights).element;
}

class PreferPanel {
  constructor(api, describe, getSettings, useWeights) {
    Object.assign(this, { api, describe, getSettings, useWeights });
    /** Prompts with their different answers. @type {{messages: any[], answers: string[]}[]} */
    this.conversations = [];
    /** What was chosen: `chosen` and `rejected` are null where neither was preferred. @type {any[]} */
    this.choices = [];
    this.pair = null;
    this.inferred = null;
    this.seed = 1;
    this.controller = null;
    this.prompt = h("textarea", { rows: 2 }, "How do I make friends in a new town?");
    this.draw = h("button", { type: "button", onclick: () => this.ask() }, "Draw answers");
    this.stop = h("button", { type: "button", disabled: true, onclick: () => this.controller?.abort() }, "Stop");
    this.undo = h("button", { type: "button", onclick: () => this.takeBack() }, "Undo");
    this.again = h("button", { type: "button", onclick: () => this.startAgain() }, "Start again");
    this.status = h("p", { role: "status" });
    this.error = h("p", { class: "error", role: "alert" });
    this.question = h("div", { class: "question", tabindex: -1 });
    this.weights = h("div", { class: "weights" });
    this.element = h(
      "div", { class: "prefer", onkeydown: (event) => this.press(event) },
      h("p", {}, "Choose between answers of the plain model: each choice tells the server which weights fit you."),
      h("label", {}, "Prompt ", this.prompt),
      h("div", { class: "buttons" }, this.draw, this.stop, this.undo, this.again),
      this.status, this.error, this.question, this.weights,
    );
    this.render();
  }

  /** Answers to the prompt, of other seeds each time, and the first question. */
  async ask() {
    const content = this.prompt.value.trim();
    if (!content) {
      this.error.textContent = "Write a prompt first.";
      return;
    }
    const messages = [{ role: "user", content }];
    await this.work("Drawing answers …", async (signal) => {
      const { temperature, max_tokens } = this.getSettings?.() ?? {};
      const body = { model: this.describe.model, messages, alignment: { strategy: "plain" } };
      if (typeof temperature === "number" && temperature > 0) body.temperature = temperature;
      if (typeof max_tokens === "number") body.max_tokens = max_tokens;
      const seeds = Array.from({ length: ANSWERS }, () => this.seed++);
      const answers = await Promise.all(seeds.map((seed) => this.api.chat({ ...body, seed }, { signal })));
      const same = this.conversations.find((one) => one.messages[0].content === content);
      const texts = new Set([...(same?.answers ?? []), ...answers.map(({ message }) => message.content ?? "")]);
      const different = [...texts].filter((text) => text.trim());
      if (different.length < 2) throw new Error("The answers are all alike: try another prompt, or longer answers.");
      if (same) same.answers = different;
      else this.conversations.push({ messages, answers: different });
      await this.infer(signal);
    });
  }

  /** Weights from the choices so far, and the next pair. @param {AbortSignal} signal */
  async infer(signal) {
    const open = this.openPairs();
    const comparisons = this.choices.filter(({ chosen }) => chosen !== null);
    const body = await this.api.infer({
      comparisons: comparisons.map(({ messages, chosen, rejected }) => ({ messages, chosen, rejected })),
      candidates: open,
    }, signal);
    this.inferred = body;
    const asked = body.ask ? open[body.ask.candidate] : null;
    this.pair = asked && { messages: asked.messages, texts: body.ask.responses.map((i) => asked.responses[i]) };
  }

  /** Every pair that was not yet asked, as a conversation to choose from: the server takes 256. */
  openPairs() {
    const done = new Set(this.choices.map(({ key }) => key));
    return this.conversations.flatMap(({ messages, answers }) => answers.flatMap((a, i) =>
      answers.slice(i + 1).map((b) => ({ messages, responses: [a, b] }))))
      .filter(({ messages, responses }) => !done.has(keyOf(messages, responses))).slice(-256);
  }

  /** @param {0|1|2} which the first, the second, or neither */
  async choose(which) {
    if (!this.pair || this.controller) return;
    const { messages, texts } = this.pair;
    const [chosen, rejected] = which === 0 ? [null, null] : which === 1 ? texts : [texts[1], texts[0]];
    this.choices.push({ key: keyOf(messages, texts), messages, chosen, rejected });
    if (!(await this.work("Working out your weights …", (signal) => this.infer(signal)))) this.choices.pop();
    this.render();
    this.question.focus();
  }

  async takeBack() {
    const last = this.choices.pop();
    if (!(await this.work("Taking it back …", (signal) => this.infer(signal)))) this.choices.push(last);
    this.render();
    this.question.focus();
  }

  startAgain() {
    Object.assign(this, { conversations: [], choices: [], pair: null, inferred: null });
    this.error.textContent = "";
    this.render();
    this.prompt.focus();
  }

  /** Runs one thing at a time; whether it went well. */
  async work(doing, what) {
    this.controller = new AbortController();
    this.error.textContent = "";
    this.render(doing);
    try {
      await what(this.controller.signal);
      return true;
    } catch (error) {
      this.error.textContent = this.controller.signal.aborted ? "Stopped." : error.message;
      return false;
    } finally {
      this.controller = null;
      this.render();
    }
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const isTyping = event.target instanceof Element && event.target.closest("textarea, input, select");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !["0", "1", "2"].includes(event.key)) return;
    event.preventDefault();
    this.choose(/** @type {0|1|2} */ (Number(event.key)));
  }

  /** @param {string} [doing] what is under way */
  render(doing = "") {
    const count = this.choices.filter(({ chosen }) => chosen !== null).length;
    const isBusy = Boolean(this.controller);
    this.draw.disabled = isBusy;
    this.stop.disabled = !isBusy;
    this.undo.disabled = isBusy || !this.choices.length;
    this.again.disabled = isBusy || !this.conversations.length;
    const done = this.conversations.length && !this.pair ? " Every pair was asked: draw more answers." : "";
    const soFar = `${count} ${count === 1 ? "choice" : "choices"} so far.`;
    this.status.textContent = doing || (this.conversations.length ? soFar + done : "");
    this.question.replaceChildren(...(this.pair ? [this.renderPair(isBusy)] : []));
    this.weights.replaceChildren(...(this.inferred ? [this.renderWeights(count, isBusy)] : []));
  }

  renderPair(isBusy) {
    const button = (which, text) => h(
      "button", { type: "button", disabled: isBusy, onclick: () => this.choose(which) }, `${text} (key ${which})`,
    );
    return h(
      "section", { "aria-label": "Which do you prefer?" },
      h("h3", {}, "Which do you prefer?"),
      h("p", { class: "note" }, `Prompt: ${this.pair.messages[0].content}`),
      h("div", { class: "pair" }, this.pair.texts.map((text, i) => h(
        "article", { "aria-label": `Answer ${i + 1}` }, h("p", {}, text), button(i + 1, "I prefer this"),
      ))),
      button(0, "Neither"),
    );
  }

  renderWeights(count, isBusy) {
    const { weights, interval, expected_cosine: sure, warnings = [] } = this.inferred;
    const items = Object.entries(weights).map(([name, value]) => ({
      name, value: /** @type {number} */ (value), low: interval[name][0], high: interval[name][1],
    }));
    const rounded = Object.fromEntries(items.map(({ name, value }) => [name, Number(value.toFixed(3))]));
    return h(
      "section", { "aria-label": "Your weights" },
      bars(items, {
        label: "Your weights; each lies within its range with a chance of 95 %", x: "weight", low: -1, high: 1,
      }),
      h("p", {}, `How sure that is: ${formatFigure(Math.max(0, sure))} of 1.`),
      warnings.map((text) => h("p", { class: "note" }, text)),
      h(
        "button", { type: "button", disabled: isBusy || !count, onclick: () => this.useWeights(rounded) },
        "Use these weights",
      ),
    );
  }
}

/** @param {any[]} messages @param {string[]} texts */
function keyOf(messages, texts) {
  return JSON.stringify([messages, [...texts].sort()]);
}
