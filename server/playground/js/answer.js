// One answer while it comes and when it is there: its text, its search's progress, what it cost and what happened.

import { formatNumber, h, replace } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { showFailure } from "./notice.js";
import { buildBody, chooseReturns } from "./settings.js";

const STAGES = { draw: "drawing answers", score: "scoring", grow: "growing answers", step: "walking" };

/** What may be shown behind "What happened"; main.js sets it. @type {{show: null | ((alignment: any, describe: any) => Node)}} */
export const happened = { show: null };

/**
 * An answer's place on the page, which runs the request that fills it.
 */
export class AnswerView {
  /**
   * @param {{api: import("./api.js").Api, describe: any, askKey: () => void,
   *   showInForm?: (failure: any) => HTMLElement | null}} context
   */
  constructor(context) {
    this.context = context;
    this.text = "";
    this.thoughts = "";
    this.progress = null;
    /** @type {import("./api.js").ApiFailure | null} */
    this.failure = null;
    /** @type {import("./api.js").ChatAnswer | null} */
    this.answer = null;
    this.abort = new AbortController();
    this.parts = {
      progress: h("div", { class: "progress" }),
      thoughts: h("div"),
      body: h("div", { class: "text" }),
      foot: h("div", { class: "foot" }),
    };
    this.node = h("div", { class: "answer" }, Object.values(this.parts));
  }

  /** Ends the search or the stream; what there is of it stays. */
  stop() {
    this.abort.abort();
  }

  /**
   * @param {import("./settings.js").Settings} settings
   * @param {{role: string, content: string}[]} messages
   * @param {{retry?: () => void}} [options]
   * @returns {Promise<"done" | "stopped" | "failed">}
   */
  async run(settings, messages, { retry } = {}) {
    const { api, describe } = this.context;
    const body = buildBody(settings, messages, { stream: true, include: chooseReturns(settings, describe) });
    this.began = performance.now();
    this.node.setAttribute("aria-busy", "true");
    const clock = setInterval(() => this.#drawProgress(), 500);
    try {
      this.answer = await api.chat(body, {
        signal: this.abort.signal,
        onDelta: (text, kind) => this.#add(text, kind),
        onProgress: (progress) => {
          this.progress = progress;
          this.#drawProgress();
        },
      });
      this.#drawText();
      this.#drawCosts();
      return "done";
    } catch (error) {
      this.#drawText();
      if (this.abort.signal.aborted) {
        this.#drawStopped();
        return "stopped";
      }
      if (error.status === undefined) throw error; // a fault of the page
      this.failure = error;
      const field = this.context.showInForm?.(error) ?? null;
      replace(this.parts.foot, showFailure(error, { retry, askKey: this.context.askKey, field }));
      return "failed";
    } finally {
      clearInterval(clock);
      replace(this.parts.progress);
      this.node.removeAttribute("aria-busy");
    }
  }

  #add(text, kind) {
    if (kind === "reasoning") this.thoughts += text;
    else this.text += text;
    this.frame ??= requestAnimationFrame(() => {
      this.#drawText();
      replace(this.parts.progress);
    });
  }

  #drawText() {
    if (this.frame) cancelAnimationFrame(this.frame);
    this.frame = undefined;
    replace(this.parts.body, renderMarkdown(this.text));
    if (!this.thoughts) return;
    this.shown ??= h("p", { class: "thoughts" });
    if (!this.parts.thoughts.firstChild) {
      replace(this.parts.thoughts, h("details", null, h("summary", null, "Thoughts"), this.shown));
    }
    replace(this.shown, this.thoughts);
  }

  #drawProgress() {
    if (this.text || this.thoughts) return;
    const { stage, done, of, sampled_tokens: drawn, elapsed_ms: elapsed, best } = this.progress ?? {};
    const seconds = Math.max(elapsed ?? 0, performance.now() - this.began) / 1000;
    const words = [
      stage ? (STAGES[stage] ?? stage) : "waiting for the first token",
      of ? `${formatNumber(done)} of ${formatNumber(of)}` : null,
      drawn ? `${formatNumber(drawn)} tokens drawn` : null,
      `${formatNumber(seconds, 1)} s`,
    ];
    replace(
      this.parts.progress,
      h("progress", { "aria-label": "Progress of the search", max: of || null, value: of ? done : null }),
      h("p", null, words.filter(Boolean).join(" · ")),
      best ? this.#drawBest(best) : null,
    );
  }

  #drawBest({ value, text }) {
    return [
      h("p", { class: "hint" }, "Best so far", typeof value === "number" ? `, worth ${formatNumber(value)}` : null),
      text ? h("div", { class: "text best" }, renderMarkdown(text)) : null,
    ];
  }

  #drawStopped() {
    const best = this.progress?.best;
    if (this.text || !best?.text) {
      const words = this.text ? "Stopped: this is as far as it came." : "Stopped before there was anything to show.";
      return replace(this.parts.foot, h("p", { class: "costs" }, words));
    }
    this.text = best.text;
    this.#drawText();
    const { done, of, sampled_tokens: drawn } = this.progress;
    const worth = typeof best.value === "number" ? `, worth ${formatNumber(best.value)}` : "";
    const reached = of ? ` at ${formatNumber(done)} of ${formatNumber(of)}` : "";
    const spent = drawn ? `, ${formatNumber(drawn)} tokens drawn` : "";
    replace(this.parts.foot, h("p", { class: "costs" }, `Stopped${reached}: this is the best so far${worth}${spent}.`));
  }

  #drawCosts() {
    const { alignment, finish } = this.answer;
    const outcomes = {
      budget: "The budget of tokens was spent: this is the best so far.",
      deadline: "The time was over: this is the best so far.",
      degraded: "A reward failed: this is a plain answer.",
    };
    const notes = [
      outcomes[alignment?.outcome],
      finish === "length" ? "It ends where its tokens were used up." : null,
      this.text ? null : "The answer is empty.",
    ];
    const warnings = [...notes, ...(alignment?.warnings ?? [])].filter(Boolean);
    replace(
      this.parts.foot,
      h("p", { class: "costs" }, describeCosts(this.answer).join(" · ")),
      warnings.length ? h("ul", { class: "warnings" }, warnings.map((words) => h("li", null, words))) : null,
      this.#makeHappened(),
    );
  }

  /** Behind a disclosure, and made when that is opened. */
  #makeHappened() {
    const { alignment } = this.answer;
    if (!happened.show || !alignment) return null;
    const place = h("div");
    const fill = () => {
      if (!place.firstChild) place.append(happened.show(alignment, this.context.describe));
    };
    return h("details", { class: "happened", ontoggle: fill }, h("summary", null, "What happened"), place);
  }
}

/** What an answer cost, in words. @param {import("./api.js").ChatAnswer} answer @returns {string[]} */
export function describeCosts({ usage, alignment, milliseconds, firstTokenMs }) {
  const visible = usage?.completion_tokens ?? 0;
  const { strategy, sampled_tokens: drawn, scored_tokens: scored } = alignment ?? {};
  const seconds = milliseconds / 1000;
  return [
    strategy,
    `${formatNumber(visible)} tokens`,
    drawn === undefined ? null : `${formatNumber(drawn)} drawn`,
    scored ? `${formatNumber(scored)} scored` : null,
    `${formatNumber(seconds)} s`,
    seconds > 0 ? `${formatNumber((drawn ?? visible) / seconds, 0)} tokens/s` : null,
    firstTokenMs === null ? null : `first after ${formatNumber(firstTokenMs / 1000)} s`,
  ].filter(Boolean);
}
