// The conversation: turns that can be edited and sent again, answers that stream and can be stopped.

import { AnswerView } from "./answer.js";
import { h, newId, replace } from "./dom.js";

const EXAMPLES = [
  "How do I clean a copper pan?",
  "My friend moved away and I feel alone. What can I do?",
  "Can I take two painkillers at once?",
];

/**
 * @param {{api: import("./api.js").Api, describe: any, getSettings: () => any, askKey: () => void,
 *   showInForm: (failure: any) => HTMLElement | null, clearFailures: () => void, say: (words: string) => void}} context
 * @returns {{node: HTMLElement, question: () => {role: string, content: string}[]}}
 */
export function createChat(context) {
  /** @type {{text: string, view: AnswerView | null, node: HTMLElement}[]} */
  let turns = [];
  /** @type {AnswerView | null} */
  let running = null;
  const list = h("ol", { class: "turns", "aria-label": "Conversation" });
  const empty = welcome((text) => send(text));
  const id = newId("message");
  const input = h("textarea", { id, rows: 1, placeholder: "Message", onkeydown: onKey, oninput: fit });
  const sendButton = h("button", { class: "primary" }, "Send");
  const stopButton = h("button", { type: "button", hidden: true, onclick: () => running?.stop() }, "Stop");
  const clearButton = h("button", { type: "button", hidden: true, onclick: clear }, "New chat");
  const composer = h(
    "form",
    { class: "composer", "aria-label": "Ask", onsubmit: onSubmit },
    h("label", { for: id, class: "unseen" }, "Message"),
    input,
    h("div", { class: "buttons" }, sendButton, stopButton, clearButton),
  );
  const node = h("div", { class: "chat" }, empty, list, composer);

  function onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    composer.requestSubmit();
  }

  function onSubmit(event) {
    event.preventDefault();
    const text = input.value.trim();
    if (!text || running) return;
    input.value = "";
    fit();
    send(text);
  }

  function fit() {
    input.rows = Math.min(8, Math.max(1, input.value.split("\n").length));
  }

  /** What came before, as far as it was answered: a model's template may refuse two turns of one side in a row. */
  function messages(count = turns.length) {
    return turns
      .slice(0, count)
      .filter((turn) => turn.view?.text)
      .flatMap((turn) => [
        { role: "user", content: turn.text },
        { role: "assistant", content: turn.view.text },
      ]);
  }

  async function send(text) {
    const turn = { text, view: null, node: h("li", { class: "turn" }) };
    turns.push(turn);
    list.append(turn.node);
    await answer(turn);
  }

  /** Ask for the answer of a turn, which is the last. */
  async function answer(turn) {
    const view = new AnswerView(context);
    turn.view = view;
    running = view;
    context.clearFailures();
    draw();
    drawTurn(turn);
    turn.node.scrollIntoView({ block: "nearest" });
    context.say("The answer is being written.");
    const asked = [...messages(turns.indexOf(turn)), { role: "user", content: turn.text }];
    try {
      const outcome = await view.run(context.getSettings(), asked, { retry: () => !running && answer(turn) });
      const words = { done: "The answer is complete.", stopped: "Stopped.", failed: "There is no answer." };
      context.say(words[outcome]);
    } finally {
      running = null;
      draw();
      if (turns.includes(turn)) drawTurn(turn);
    }
  }

  function draw() {
    empty.hidden = turns.length > 0;
    sendButton.disabled = running !== null;
    const hadFocus = document.activeElement === stopButton;
    stopButton.hidden = running === null;
    if (hadFocus && stopButton.hidden) input.focus();
    clearButton.hidden = !turns.length || running !== null;
  }

  function drawTurn(turn) {
    const busy = turn.view === running && running !== null;
    const left = !busy && turn.view && !turn.view.text;
    replace(
      turn.node,
      h(
        "div",
        { class: "question" },
        h("h2", null, "You"),
        h("p", null, turn.text),
        left ? h("p", { class: "hint" }, "Without an answer, so it is left out of what follows.") : null,
        busy ? null : h("div", { class: "tools" }, tool("Edit", () => edit(turn)), copyTool(() => turn.text)),
      ),
      h("h2", null, "Answer"),
      turn.view.node,
      busy
        ? null
        : h(
            "div",
            { class: "tools" },
            turn.view.text ? copyTool(() => turn.view.text) : null,
            turn.view.failure ? null : tool("Ask again", () => resend(turn, turn.text)),
          ),
    );
  }

  function edit(turn) {
    if (running) return;
    const box = h("textarea", { "aria-label": "Your message, to be changed", rows: 3 });
    box.value = turn.text;
    const form = h(
      "form",
      {
        class: "question",
        onsubmit: (event) => {
          event.preventDefault();
          if (box.value.trim() && !running) resend(turn, box.value.trim());
        },
      },
      box,
      h("p", { class: "hint" }, "What comes after it is asked anew."),
      h("div", { class: "buttons" }, h("button", { class: "primary" }, "Send again"), tool("Cancel", () => drawTurn(turn))),
    );
    turn.node.firstChild.replaceWith(form);
    box.focus();
  }

  /** Ask anew from a turn on: later ones go. */
  function resend(turn, text) {
    if (running) return;
    const at = turns.indexOf(turn);
    turns.slice(at + 1).forEach((later) => later.node.remove());
    turns = turns.slice(0, at + 1);
    turn.text = text;
    answer(turn);
    input.focus();
  }

  function clear() {
    turns = [];
    replace(list);
    draw();
    input.focus();
  }

  function copyTool(read) {
    const button = tool("Copy", async () => {
      try {
        await navigator.clipboard.writeText(read());
        context.say("Copied.");
        replace(button, "Copied");
      } catch {
        context.say("The browser does not let this page copy.");
        replace(button, "Not allowed here");
      }
      setTimeout(() => replace(button, "Copy"), 1500);
    });
    return button;
  }

  /** The conversation up to its last question, or an example of one. */
  function question() {
    const last = turns.at(-1);
    return last ? [...messages(turns.length - 1), { role: "user", content: last.text }] : [{ role: "user", content: EXAMPLES[0] }];
  }

  return { node, question };
}

function tool(label, onclick) {
  return h("button", { type: "button", class: "plain", onclick }, label);
}

function welcome(send) {
  return h(
    "div",
    { class: "welcome" },
    h("h2", null, "One frozen model, many ways to answer"),
    h(
      "p",
      null,
      "Nothing is trained here. While the model writes, small guides pull at each token, or a search draws many answers and ",
      "rewards choose among them. Ask something, then move a weight and ask again.",
    ),
    h("div", { class: "buttons" }, EXAMPLES.map((text) => h("button", { type: "button", onclick: () => send(text) }, text))),
  );
}
