// Take it with you: the request as code and as a preset, and settings as the text of a link.
// The key is an environment variable everywhere, and never part of what is written here.

import { h } from "./dom.js";

const KEY = "TRIMTAB_API_KEY";

/** Parameters of openai-python's `create`; everything else goes into `extra_body`. */
const OPENAI = new Set(
  ("model messages seed temperature max_tokens max_completion_tokens top_p n stop logprobs top_logprobs " +
    "presence_penalty frequency_penalty logit_bias tools tool_choice response_format user").split(" "),
);

/** What a link holds, of the page's settings. */
const SHARED = (
  "model strategy weights guides params reward seed temperature max_tokens budget system"
).split(" ");

/** Returns that take a stream to come. */
const STREAMED = ["progress", "best"];

/** The request as a single answer: without streaming, and what needs it. @param {any} body */
export function wholeAnswer(body) {
  const { stream: _stream, stream_options: _options, ...rest } = body;
  const asked = rest.alignment?.return;
  if (!Array.isArray(asked)) return rest;
  const { return: _return, ...alignment } = rest.alignment;
  const kept = asked.filter((name) => !STREAMED.includes(name));
  if (kept.length) return { ...rest, alignment: { ...alignment, return: kept } };
  if (Object.keys(alignment).length) return { ...rest, alignment };
  const { alignment: _none, ...plain } = rest;
  return plain;
}

/** The URL of a path of the server's. @param {string} url the server's, with or without /v1 @param {string} path */
function endpoint(url, path) {
  return url.replace(/\/+$/, "").replace(/\/v1$/, "") + path;
}

/** A word of a POSIX shell. @param {string} text */
export function quoteShell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** @param {any} body @param {string} url */
export function writeCurl(body, url) {
  return [
    `curl ${quoteShell(endpoint(url, "/v1/chat/completions"))} \\`,
    "  -H 'Content-Type: application/json' \\",
    `  -H "Authorization: Bearer \${${KEY}:-none}" \\`,
    `  --data-raw ${quoteShell(JSON.stringify(wholeAnswer(body), null, 2))}`,
  ].join("\n");
}

/** JSON as a literal of Python's. @param {any} value @param {string} [indent] @returns {string} */
export function writePythonLiteral(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const items = Array.isArray(value)
    ? value.map((v) => writePythonLiteral(v, inner))
    : Object.entries(value).map(([key, v]) => `${JSON.stringify(key)}: ${writePythonLiteral(v, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = open + items.join(", ") + close;
  return line.length + indent.length < 80 && !line.includes("\n")
    ? line
    : `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${indent}${close}`;
}

/** @param {any} body @param {string} url */
export function writePython(body, url) {
  const entries = Object.entries(wholeAnswer(body));
  const named = entries.filter(([key]) => OPENAI.has(key));
  const extra = entries.filter(([key]) => !OPENAI.has(key));
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(endpoint(url, "/v1"))}, api_key=os.environ.get("${KEY}", "none"))`,
    "answer = client.chat.completions.create(",
    ...named.map(([key, value]) => `    ${key}=${writePythonLiteral(value, "    ")},`),
    ...(extra.length ? [`    extra_body=${writePythonLiteral(Object.fromEntries(extra), "    ")},`] : []),
    ")",
    "print(answer.choices[0].message.content)",
    "",
  ].join("\n");
}

/** JSON as an expression of JavaScript's. @param {any} body @param {string} pad */
function writeJavaScriptLiteral(body, pad) {
  // Written plainly, the key "__proto__" would set the prototype.
  return JSON.stringify(body, null, 2).replace(/^(\s*)"__proto__":/gm, '$1["__proto__"]:').replaceAll("\n", `\n${pad}`);
}

/** @param {any} body @param {string} url */
export function writeOpenAI(body, url) {
  return [
    'import OpenAI from "openai";',
    "",
    "const client = new OpenAI({",
    `  baseURL: ${JSON.stringify(endpoint(url, "/v1"))},`,
    `  apiKey: process.env.${KEY} ?? "none",`,
    "});",
    `const answer = await client.chat.completions.create(${writeJavaScriptLiteral(wholeAnswer(body), "")});`,
    "console.log(answer.choices[0].message.content);",
    "",
  ].join("\n");
}

/** @param {any} body @param {string} url */
export function writeFetch(body, url) {
  return [
    `const response = await fetch(${JSON.stringify(endpoint(url, "/v1/chat/completions"))}, {`,
    '  method: "POST",',
    "  headers: {",
    '    "content-type": "application/json",',
    `    authorization: \`Bearer \${process.env.${KEY} ?? "none"}\`,`,
    "  },",
    `  body: JSON.stringify(${writeJavaScriptLiteral(wholeAnswer(body), "  ")}),`,
    "});",
    "const answer = await response.json();",
    "if (!response.ok) throw new Error(answer.error.message);",
    "console.log(answer.choices[0].message.content);",
    "",
  ].join("\n");
}

/** JSON that YAML 1.1 reads as the same: all that it has no printable place for is escaped. @param {any} value */
function writeYamlFlow(value) {
  return JSON.stringify(value).replace(
    /[\x7f-\x9f\u00ad\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]/g,
    (c) => (/[\ud800-\udfff]/.test(c) ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`),
  );
}

/** @param {string} key */
function writeYamlKey(key) {
  const isPlain = /^[a-z][a-z0-9_.-]*$/i.test(key) && !/^(y|n|yes|no|on|off|true|false|null)$/i.test(key);
  return isPlain ? key : writeYamlFlow(key);
}

/** Settings as a preset of the configuration file: a model id of its own. @param {any} body @param {string} [name] */
export function writePreset(body, name = "my-preset") {
  const { return: _return, ...alignment } = body.alignment ?? {};
  const entries = Object.entries(Object.keys(alignment).length ? alignment : { strategy: "plain" });
  return [
    "# A preset holds the alignment; seed, temperature, max_tokens and instructions stay in the request.",
    "presets:",
    `  ${writeYamlKey(name)}:`,
    ...entries.map(([key, value]) => `    ${writeYamlKey(key)}: ${writeYamlFlow(value)}`),
    "",
  ].join("\n");
}

/** Settings as the text of a link's fragment: URL-safe, and nothing of the conversation. @param {any} settings */
export function encodeSettings(settings) {
  const shared = Object.fromEntries(SHARED.map((key) => [key, settings[key]]));
  const bytes = new TextEncoder().encode(JSON.stringify(shared));
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return `s1.${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

/** The settings that a link's fragment holds, or null where it holds none. @param {string} text */
export function decodeSettings(text) {
  const [, code] = /^#?s1\.([\w-]+)$/.exec(text) ?? [];
  if (!code) return null;
  try {
    const bytes = Uint8Array.from(atob(code.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const settings = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    if (typeof settings !== "object" || settings === null || Array.isArray(settings)) return null;
    return Object.keys(settings).every((key) => SHARED.includes(key)) && hasForms(settings) ? settings : null;
  } catch {
    return null;
  }
}

/** Whether what the page takes for a text is one, and so with tables and numbers. @param {any} settings */
function hasForms(settings) {
  const formOf = (v) => (Array.isArray(v) ? "list" : v === null ? "null" : typeof v);
  const isOf = (keys, forms) => keys.split(" ").every((key) => forms.includes(formOf(settings[key])));
  return isOf("model strategy system", ["undefined", "string"]) &&
    isOf("guides params budget", ["undefined", "object"]) &&
    isOf("seed temperature max_tokens", ["undefined", "null", "number", "string"]) &&
    (settings.weights === "auto" || isOf("weights", ["undefined", "object"]));
}

/**
 * @param {object} facts
 * @param {() => any} facts.getBody the chat request as it stands
 * @param {() => any} facts.getSettings
 * @param {string} facts.url the server's
 * @param {string} facts.model the base's id
 * @param {Record<string, any>} [facts.presets] of GET v1/alignment
 * @returns {Node}
 */
export function createTakeaway({ getBody, getSettings, url, model, presets = {} }) {
  const preset = () => {
    const body = getBody();
    const name = /^[A-Za-z0-9][A-Za-z0-9._:/-]{0,57}$/.test(model) ? `${model}-mine` : undefined;
    return writePreset({ ...body, alignment: { ...presets[body.model], ...body.alignment } }, name);
  };
  const forms = [
    { name: "curl", write: () => writeCurl(getBody(), url) },
    { name: "Python (openai)", write: () => writePython(getBody(), url) },
    { name: "JavaScript (openai)", write: () => writeOpenAI(getBody(), url) },
    { name: "JavaScript (fetch)", write: () => writeFetch(getBody(), url) },
    { name: "Preset (YAML)", write: preset },
    { name: "Link", write: () => `${location.href.split("#")[0]}#${encodeSettings(getSettings())}` },
  ];
  const status = h("p", { class: "note", role: "status" });
  const blocks = forms.map(({ name, write }, i) => {
    const code = h("code", {});
    const refresh = () => { code.textContent = write(); };
    const copy = async () => {
      refresh();
      try {
        await navigator.clipboard.writeText(code.textContent);
        status.textContent = `Copied: ${name}.`;
      } catch {
        getSelection()?.selectAllChildren(code);
        status.textContent = "The browser does not let the page copy. The text is selected: copy it by Ctrl+C.";
      }
    };
    const element = h(
      "details", { open: i === 0, "data-form": name, ontoggle: refresh },
      h("summary", {}, name),
      h("button", { type: "button", "aria-label": `Copy ${name}`, onclick: copy }, "Copy"),
      h("pre", { tabindex: 0, role: "group", "aria-label": name }, code),
    );
    return { element, refresh };
  });
  // Settings change while the panel stands beside them.
  const refreshAll = () => blocks.forEach(({ element, refresh }) => { if (element.open) refresh(); });
  const node = h(
    "div", { class: "takeaway", onpointerenter: refreshAll, onfocusin: refreshAll },
    h("p", { class: "note" }, `The key is read from the environment variable ${KEY}.`),
    status,
    blocks.map(({ element }) => element),
  );
  refreshAll();
  return node;
}
