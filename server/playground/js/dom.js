// Makes elements. Text goes in as text nodes and nothing else does: no module of the page ever parses HTML,
// so what a model or a server writes can be nothing but text.

/** @typedef {Node | string | number | null | undefined | false | Child[]} Child */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element. Attributes that begin with "on" are listeners; null, false and undefined ones are left out, true
 * ones are empty.
 * @param {string} tag
 * @param {Record<string, any> | null} [attrs]
 * @param {...Child} children null ones are skipped, arrays are flattened
 * @returns {any}
 */
export function h(tag, attrs, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

/**
 * The same in SVG's namespace.
 * @param {string} tag
 * @param {Record<string, any> | null} [attrs]
 * @param {...Child} children
 * @returns {any}
 */
export function svg(tag, attrs, ...children) {
  return fill(document.createElementNS(SVG, tag), attrs, children);
}

function fill(element, attrs, children) {
  for (const [name, value] of Object.entries(attrs ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2).toLowerCase(), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

/** @param {Node} element @param {Child[]} children */
function append(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(element, child);
    else element.appendChild(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/**
 * Put children in the place of all that an element holds.
 * @param {Element} element
 * @param {...Child} children
 */
export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

let last = 0;

/** An id that no other element of the page has. @param {string} [stem] */
export function newId(stem = "id") {
  last += 1;
  return `${stem}-${last}`;
}

/** A number as people read it: at most `digits` behind the point, no exponent. @param {number} value */
export function formatNumber(value, digits = 2) {
  return Number.isFinite(value) ? value.toLocaleString("en", { maximumFractionDigits: digits }) : String(value);
}
