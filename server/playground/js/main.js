// The page as a whole: its tabs, its key, its theme, and the settings in the address's fragment.

import { Api } from "./api.js";
import { happened } from "./answer.js";
import { createChat } from "./chat.js";
import { createCompare } from "./compare.js";
import { h, replace } from "./dom.js";
import { createForm } from "./form.js";
import { showHappened } from "./happened.js";
import { showFailure } from "./notice.js";
import { createPreferPanel } from "./prefer.js";
import { buildBody } from "./settings.js";
import { createTakeaway, decodeSettings, encodeSettings } from "./takeaway.js";

const api = new Api();
const find = (id) => document.getElementById(id);

/** Words for screen readers: one short sentence where something has happened. */
function say(words) {
  replace(find("status"), words);
}

async function start() {
  const place = find("start");
  place.hidden = false;
  replace(place, h("p", { class: "hint" }, "Asking the server what it offers …"));
  try {
    const [describe, models] = await Promise.all([api.describe(), api.models()]);
    place.hidden = true;
    build(describe, models);
  } catch (failure) {
    if (failure.status === undefined) throw failure;
    replace(place, showFailure(failure, { retry: start, askKey }));
    if (failure.status === 401) askKey();
  }
}

function build(describe, models) {
  find("model").textContent = describe.model;
  happened.show = showHappened;
  const form = createForm({ describe, models, settings: decodeSettings(location.hash), onChange: showSettings });
  const context = {
    api,
    describe,
    say,
    askKey,
    getSettings: form.get,
    showInForm: form.showFailure,
    clearFailures: form.clearFailures,
  };
  const chat = createChat(context);
  const compare = createCompare(context);
  const takeaway = h("div");
  const showTakeaway = () => {
    if (takeaway.firstChild) return takeaway.firstChild.dispatchEvent(new Event("focusin")); // it writes its code anew then
    const getBody = () => buildBody(form.get(), chat.question());
    const facts = { getBody, getSettings: form.get, url: api.base, model: describe.model, presets: describe.presets };
    replace(takeaway, createTakeaway(facts));
  };
  const useWeights = (weights) => {
    form.set({ ...form.get(), weights });
    say("The weights are in the settings.");
    tabs.select(0);
  };
  const tabs = showTabs([
    { title: "Chat", node: chat.node },
    { title: "Compare", node: compare.node, show: compare.update },
    { title: "Which do you prefer?", node: createPreferPanel({ api, describe, getSettings: form.get, useWeights }) },
    { title: "Take it with you", node: takeaway, show: showTakeaway },
  ]);
  replace(find("settings"), form.node);
  find("side").hidden = false;
  if (matchMedia("(max-width: 60rem)").matches) find("side").open = false;

  /** The settings, in the address and where a tab shows them. Neither the key nor the conversation is among them. */
  function showSettings(settings) {
    history.replaceState(null, "", `#${encodeSettings(settings)}`);
    tabs.refresh();
  }
  addEventListener("hashchange", () => {
    const settings = decodeSettings(location.hash);
    if (settings) form.set(settings);
  });
}

/**
 * @param {{title: string, node: Node, show?: () => void}[]} tabs `show` is called when the tab is opened
 * @returns {{select: (at: number) => void, refresh: () => void}} `refresh` shows the open one anew
 */
function showTabs(tabs) {
  let open = 0;
  const select = (chosen, focus = true) => {
    open = chosen;
    tabs[chosen].show?.();
    for (const [i, button] of buttons.entries()) {
      button.setAttribute("aria-selected", String(i === chosen));
      button.tabIndex = i === chosen ? 0 : -1;
      panels[i].hidden = i !== chosen;
    }
    if (focus) buttons[chosen].focus();
  };
  const move = (event, at) => {
    const count = tabs.length;
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1 + count, Home: 0, End: count - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    select(next % count);
  };
  const buttons = tabs.map(({ title }, i) =>
    h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${i}`,
        "aria-controls": `panel-${i}`,
        onclick: () => select(i),
        onkeydown: (event) => move(event, i),
      },
      title,
    ),
  );
  const panels = tabs.map(({ node }, i) => h("section", { role: "tabpanel", id: `panel-${i}`, "aria-labelledby": `tab-${i}` }, node));
  replace(find("tabs"), buttons);
  replace(find("panels"), panels);
  select(0, false);
  return { select, refresh: () => tabs[open].show?.() };
}

/** Opens the dialog for the key; a saved one starts the page anew. */
function askKey() {
  find("key-input").value = "";
  find("key-state").textContent = api.key ? "A key is set for this tab." : "No key is set.";
  if (!find("key-dialog").open) find("key-dialog").showModal();
}

function setUpKey() {
  find("key-button").addEventListener("click", askKey);
  find("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = find("key-input").value.trim();
    find("key-input").value = "";
    find("key-dialog").close();
    if (!key) return;
    api.key = key;
    if (!find("start").hidden) start();
  });
  find("key-forget").addEventListener("click", () => {
    api.key = "";
    find("key-dialog").close();
  });
  find("key-cancel").addEventListener("click", () => find("key-dialog").close());
}

function setUpTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const current = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const label = () => find("theme-button").setAttribute("aria-label", `Switch to ${current() === "dark" ? "light" : "dark"}`);
  find("theme-button").addEventListener("click", () => {
    const theme = current() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("trimtab.theme", theme);
    } catch {
      // it lasts until the page is closed, then
    }
    label();
  });
  dark.addEventListener("change", label);
  label();
}

setUpTheme();
setUpKey();
start();
