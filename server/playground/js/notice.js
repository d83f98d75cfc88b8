// What went wrong, in plain words, with what can be done about it: a key, a wait, another try.

import { h, replace } from "./dom.js";

/**
 * @param {import("./api.js").ApiFailure} failure
 * @param {{retry?: () => void, askKey?: () => void, field?: HTMLElement | null}} [options] `field`: where the message
 *   stands in the form
 * @returns {HTMLElement}
 */
export function showFailure(failure, { retry, askKey, field } = {}) {
  const words = h("p", { role: "alert" }, explain(failure));
  const buttons = h("div", { class: "buttons" });
  if (failure.status === 401 && askKey) buttons.append(h("button", { type: "button", onclick: askKey }, "Enter the key"));
  if (field) buttons.append(h("button", { type: "button", onclick: () => focusOn(field) }, "Show the field"));
  if (retry) buttons.append(retryButton(retry, failure.retryAfter));
  return h("div", { class: "notice" }, words, buttons.children.length ? buttons : null);
}

/** @param {import("./api.js").ApiFailure} failure */
function explain(failure) {
  const wait = failure.retryAfter ? ` It asks for a wait of ${seconds(failure.retryAfter)}.` : "";
  switch (failure.status) {
    case 0:
      return failure.message;
    case 200:
      return `The answer broke off: ${failure.message}`;
    case 401:
      return "The server asks for an API key, and has got none or a wrong one.";
    case 429:
      return `The server is busy: ${failure.message}.${wait}`.replace("..", ".");
    case 503:
      return `The server takes no requests at the moment: ${failure.message}.${wait}`.replace("..", ".");
    default:
      return failure.status >= 500 ? `The server failed: ${failure.message}` : failure.message;
  }
}

/** It counts down, beside the message and not in it, so that a screen reader does not read every second. */
function retryButton(retry, after) {
  const button = h("button", { type: "button", onclick: retry });
  const until = performance.now() + (after ?? 0) * 1000;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    button.disabled = left > 0;
    replace(button, left > 0 ? `Try again in ${seconds(left)}` : "Try again");
    if (left > 0) setTimeout(tick, 250);
  };
  tick();
  return button;
}

function seconds(count) {
  return count === 1 ? "1 second" : `${count} seconds`;
}

/** @param {HTMLElement} field */
export function focusOn(field) {
  for (let outer = field.closest("details"); outer; outer = outer.parentElement.closest("details")) outer.open = true;
  const control = field.querySelector("[aria-invalid]") ?? field.querySelector("input, select, textarea") ?? field;
  control.scrollIntoView({ block: "center" });
  control.focus();
}
