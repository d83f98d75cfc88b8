// A small, safe Markdown to DOM nodes. What it reads is hostile: it makes only elements of a short list, with no attribute
// but a link's checked address. HTML stays text, images become their text, and nothing is ever loaded.

import { h } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])\s*(?:\1\s*){2,}$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 12;
const SAFE = /^(https?:|mailto:)/i;

/**
 * @param {string} text
 * @returns {DocumentFragment}
 */
export function renderMarkdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...readBlocks(text.split(/\r\n?|\n/), 0));
  return fragment;
}

/** @param {string[]} lines @param {number} depth @returns {Node[]} */
function readBlocks(lines, depth) {
  if (depth > DEEPEST) return [h("p", null, lines.join("\n"))];
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const read = !line.trim()
      ? [null, at + 1]
      : readFence(lines, at) ?? readHeading(line, at) ?? readTable(lines, at) ?? readQuote(lines, at, depth) ??
        readList(lines, at, depth) ?? readParagraph(lines, at);
    if (read[0]) nodes.push(read[0]);
    at = read[1];
  }
  return nodes;
}

/** Each reader of a block: [its node, the line behind it], or null where no such block begins. */
function readFence(lines, at) {
  const [, mark] = FENCE.exec(lines[at]) ?? [];
  if (!mark) return null;
  let end = at + 1;
  while (end < lines.length && !lines[end].trim().startsWith(mark)) end += 1;
  const code = h("pre", { tabindex: "0" }, h("code", null, lines.slice(at + 1, end).join("\n")));
  return [code, end + 1];
}

function readHeading(line, at) {
  if (RULE.test(line)) return [h("hr"), at + 1];
  const [, marks, text] = HEADING.exec(line) ?? [];
  // Two levels down: the page has headings of its own, and they come first.
  return marks ? [h(`h${Math.min(6, marks.length + 2)}`, null, readInline(text)), at + 1] : null;
}

function readQuote(lines, at, depth) {
  let end = at;
  const inner = [];
  while (end < lines.length && QUOTE.test(lines[end])) inner.push(QUOTE.exec(lines[end++])[1]);
  return inner.length ? [h("blockquote", null, readBlocks(inner, depth + 1)), end] : null;
}

function readList(lines, at, depth) {
  const [, indent, bullet] = ITEM.exec(lines[at]) ?? [];
  if (bullet === undefined) return null;
  const ordered = /\d/.test(bullet);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const [, margin, mark, text] = ITEM.exec(lines[end]) ?? [];
    if (mark !== undefined && margin.length <= indent.length + 1) {
      if (/\d/.test(mark) !== ordered) break;
      items.push([text]);
    } else if (/^\s{2,}\S/.test(lines[end])) {
      items.at(-1).push(lines[end].slice(Math.min(indent.length + 2, lines[end].search(/\S/))));
    } else if (lines[end].trim() || !/^\s{2,}\S/.test(lines[end + 1] ?? "") && !ITEM.test(lines[end + 1] ?? "")) {
      break;
    } else {
      items.at(-1).push("");
    }
    end += 1;
  }
  const nodes = items.map((item) => h("li", null, unwrap(readBlocks(item, depth + 1))));
  const start = ordered ? Number.parseInt(bullet, 10) : 1;
  return [h(ordered ? "ol" : "ul", { start: start === 1 ? null : start }, nodes), end];
}

/** A list's item of one paragraph needs none. */
function unwrap(nodes) {
  return nodes[0]?.nodeName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

function readTable(lines, at) {
  if (!lines[at].includes("|") || !DIVIDER.test(lines[at + 1] ?? "") || !lines[at + 1].includes("|")) return null;
  const head = splitRow(lines[at]);
  let end = at + 2;
  const rows = [];
  while (end < lines.length && lines[end].includes("|")) rows.push(splitRow(lines[end++]));
  const row = (cells, tag) => h("tr", null, head.map((_, i) => h(tag, null, readInline(cells[i] ?? ""))));
  const table = h("table", null, h("thead", null, row(head, "th")), h("tbody", null, rows.map((r) => row(r, "td"))));
  return [h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "table" }, table), end];
}

function splitRow(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function readParagraph(lines, at) {
  let end = at + 1;
  const ends = (line) => !line.trim() || [FENCE, HEADING, RULE, QUOTE, ITEM].some((block) => block.test(line));
  while (end < lines.length && !ends(lines[end])) end += 1;
  const parts = lines.slice(at, end).flatMap((line, i) => (i ? [h("br"), readInline(line.trimStart())] : [readInline(line)]));
  return [h("p", null, parts), end];
}

// Each of them takes time in proportion to what it matches: no text makes one of them slow.
const INLINE = new RegExp(
  [
    /\\([!-/:-@[-`{-~])/, // an escaped sign
    /(?<!`)(`+)([^`]+)\2(?!`)/, // code
    /!\[([^\]\n]{0,500})\]\([^()\s]{0,2000}(?:\s[^()]{0,200})?\)/, // an image
    /\[([^\]\n]{1,500})\]\(<?([^()\s<>]{1,2000})>?(?:\s[^()]{0,200})?\)/, // a link
    /\*\*(?=\S)([^*]{1,2000}(?:\*[^*]{1,500}\*[^*]{0,500})?)\*\*/, // strong
    /(?<![\w])__(?=\S)([^_]{1,2000})__(?!\w)/, // strong
    /\*(?=[^\s*])([^*]{1,2000})\*/, // emphasis
    /(?<!\w)_(?=[^\s_])([^_]{1,2000})_(?!\w)/, // emphasis
    /~~(?=\S)([^~]{1,2000})~~/, // struck out
    /<((?:https?|mailto):[^\s<>]{1,2000})>/, // an address
    /(?<![\w/"'=])(https?:\/\/[^\s<>()[\]"'`*]{1,2000}[^\s<>()[\]"'`*.,;:!?])/, // a bare one
  ]
    .map((pattern) => pattern.source)
    .join("|"),
  "g",
);

/** @param {string} text @returns {(Node | string)[]} */
function readInline(text, depth = 0) {
  if (depth > DEEPEST) return [text];
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    const [all, sign, , code, image, label, address, strong, strong2, weak, weak2, struck, angle, bare] = match;
    if (match.index > at) nodes.push(text.slice(at, match.index));
    at = match.index + all.length;
    const inner = (part) => readInline(part, depth + 1);
    if (sign !== undefined) nodes.push(sign);
    else if (code !== undefined) nodes.push(h("code", null, code));
    else if (image !== undefined) nodes.push(`[image: ${image}]`);
    else if (label !== undefined) nodes.push(link(address, inner(label)));
    else if (angle ?? bare) nodes.push(link(angle ?? bare, [angle ?? bare]));
    else if (strong ?? strong2) nodes.push(h("strong", null, inner(strong ?? strong2)));
    else if (weak ?? weak2) nodes.push(h("em", null, inner(weak ?? weak2)));
    else if (struck !== undefined) nodes.push(h("del", null, inner(struck)));
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

/** A link, if its address is of a safe kind; else its text and address as text. */
function link(address, children) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // relative, or none: it would lead to this server
  }
  if (!url || !SAFE.test(url.protocol)) return h("span", null, children, ` (${address})`);
  return h("a", { href: url.href, rel: "noreferrer noopener nofollow", target: "_blank" }, children);
}
