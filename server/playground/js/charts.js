// Charts as SVG: axes with readable values, a description for screen readers, and the values themselves as a table.
// Series differ by dashes, shapes and a label at the line, so that colour is needed for nothing.

import { h, svg } from "./dom.js";

const WIDTH = 480;
const HEIGHT = 220;
const LEFT = 56;
const RIGHT = 16;
const TOP = 14;
const BOTTOM = 40;
const SIDE = 130;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2"];
const SHAPES = ["M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0", "M-3,-3h6v6h-6z", "M0,-4l4,7h-8z", "M0,-4l4,4l-4,4l-4,-4z"];
const MAX_LINES = 6;
const MAX_POINTS = 400;
const MAX_MARKERS = 60;
const MAX_ROWS = 200;

/** @typedef {{name: string, values: (number|null)[], filled?: boolean[]}} Series One value a step, from step 0. */
/** @typedef {{name: string, value: number|null, low?: number, high?: number, marked?: boolean}} Item */

/** A number as people read it: four digits, and powers of ten only where they are needed. @param {unknown} x */
export function formatFigure(x) {
  if (typeof x !== "number" || !Number.isFinite(x)) return x === null || x === undefined ? "none" : String(x);
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return String(x);
  const size = Math.abs(x);
  return size >= 1e6 || size < 1e-3 ? String(Number(x.toExponential(2))) : String(Number(x.toPrecision(4)));
}

/**
 * Round values at equal steps of 1, 2 or 5 times a power of ten that enclose [low, high].
 * @param {number} low @param {number} high @param {{count?: number, whole?: boolean}} [how] whole: no fractions
 */
export function niceTicks(low, high, { count = 5, whole = false } = {}) {
  const size = Math.max(Math.abs(low), Math.abs(high));
  if (high - low <= size * 1e-9) {
    const room = size * 0.1 || 1;
    [low, high] = [low - room, high + room];
  }
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((s) => s >= rough * 0.999) ?? 10 * power;
  if (whole) step = Math.max(1, Math.round(step));
  const first = Math.floor(low / step + 1e-6);
  const last = Math.ceil(high / step - 1e-6);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** What stands at ticks: all their digits where fewer would make two alike. @param {number[]} ticks */
function labelTicks(ticks) {
  const short = ticks.map(formatFigure);
  return new Set(short).size < ticks.length ? ticks.map(String) : short;
}

/** @param {(number|null|undefined)[]} values @returns {number[]} */
function finite(values) {
  return /** @type {number[]} */ (values.filter((v) => typeof v === "number" && Number.isFinite(v)));
}

/** [least, greatest], of any number of values. @param {number[]} values */
function range(values) {
  return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
}

/** A linear scale. @param {number[]} ticks @param {number} from @param {number} to */
function scale(ticks, from, to) {
  const [low, high] = [ticks[0], ticks[ticks.length - 1]];
  return (/** @type {number} */ v) => Math.round((from + ((v - low) / (high - low)) * (to - from)) * 100) / 100;
}

/**
 * Rows under a head, in a box that scrolls where they are wide or many.
 * @param {string} label @param {string[]} head @param {any[][]} rows @param {number} [marked] the row to stress
 */
export function showTable(label, head, rows, marked = -1) {
  return h(
    "div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label },
    h(
      "table", {},
      h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows.slice(0, MAX_ROWS).map((row, i) => h(
        "tr", { class: i === marked && "marked" }, row.map((cell) => h("td", {}, formatFigure(cell))),
      ))),
    ),
    rows.length > MAX_ROWS && h("p", { class: "note" }, `The first ${MAX_ROWS} of ${rows.length} rows.`),
  );
}

/** A chart with all that belongs to it. @param {string} label @param {Node[]} shapes @param {object} more */
function figure(label, shapes, { summary, head, rows, notes = [], height = HEIGHT }) {
  return h(
    "figure", { class: "chart" },
    h("figcaption", {}, label),
    svg(
      "svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `${label}. ${summary}` },
      svg("desc", {}, summary), shapes,
    ),
    notes.filter(Boolean).map((note) => h("p", { class: "note" }, note)),
    h("details", {}, h("summary", {}, "Values as a table"), showTable(`Values: ${label}`, head, rows)),
  );
}

/** @param {string} label @param {string} why */
function empty(label, why) {
  return h("figure", { class: "chart" }, h("figcaption", {}, label), h("p", { class: "note" }, why));
}

/**
 * Axes with their values and names, and the scales from a value to its place.
 * @param {number[]} xs ticks @param {number[]} ys ticks @param {string} x @param {string} y
 */
function axes(xs, ys, x, y) {
  const [at, up] = [scale(xs, LEFT, WIDTH - RIGHT), scale(ys, HEIGHT - BOTTOM, TOP)];
  const every = Math.ceil(xs.length / 8);
  const base = HEIGHT - BOTTOM;
  const shapes = [
    ys.map((v) => svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: up(v), y2: up(v) })),
    labelTicks(ys).map((text, i) =>
      svg("text", { class: "tick y", x: LEFT - 6, y: up(ys[i]) + 4, "text-anchor": "end" }, text)),
    svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: base, y2: base }),
    xs.map((v) => svg("line", { class: "axis", x1: at(v), x2: at(v), y1: base, y2: base + 4 })),
    labelTicks(xs).map((text, i) => (i % every ? null
      : svg("text", { class: "tick x", x: at(xs[i]), y: base + 16, "text-anchor": "middle" }, text))),
    svg("text", { class: "name", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x),
    svg(
      "text", { class: "name", transform: `translate(12 ${(TOP + base) / 2}) rotate(-90)`, "text-anchor": "middle" }, y,
    ),
  ];
  return { at, up, shapes };
}

/**
 * How often values lie where; `marked` is one of them that a dashed line and a triangle point out.
 * @param {(number|null)[]} values
 * @param {{marked?: number|null, label: string, x?: string, y?: string}} texts
 */
export function histogram(values, { marked = null, label, x = "value", y = "how many" }) {
  const drawn = finite(values);
  const without = values.length - drawn.length;
  const note = without ? `${without} of ${values.length} have no value.` : "";
  if (!drawn.length) return empty(label, note || "There are no values.");
  const [low, high] = range(drawn);
  const edges = niceTicks(low, high, { count: Math.min(12, Math.ceil(Math.sqrt(drawn.length)) + 1) });
  const counts = new Array(edges.length - 1).fill(0);
  const step = edges[1] - edges[0];
  for (const v of drawn) counts[Math.max(0, Math.min(counts.length - 1, Math.floor((v - edges[0]) / step + 1e-9)))]++;
  const ys = niceTicks(0, Math.max(...counts), { count: 4, whole: true });
  const { at, up, shapes } = axes(edges, ys, x, y);
  const columns = counts.map((count, i) =>
    svg("rect", {
      class: "bar", "data-count": count, x: at(edges[i]) + 1, y: up(count),
      width: Math.max(1, at(edges[i + 1]) - at(edges[i]) - 2), height: up(0) - up(count),
    }));
  const [first, last] = [edges[0], edges[edges.length - 1]];
  const isMarked = typeof marked === "number" && marked >= first && marked <= last;
  const chosen = isMarked ? ` The chosen one has ${formatFigure(marked)}.` : "";
  return figure(label, [shapes, columns, isMarked ? pointer(at(/** @type {number} */ (marked)), marked) : null], {
    summary: `${drawn.length} values from ${formatFigure(low)} to ${formatFigure(high)}.${chosen}`,
    head: [x, y],
    rows: counts.map((count, i) => [`${formatFigure(edges[i])} to ${formatFigure(edges[i + 1])}`, count]),
    notes: [note],
  });
}

/** What points out the chosen value. @param {number} place @param {number|null} value */
function pointer(place, value) {
  const isRight = place > WIDTH / 2;
  return svg(
    "g", { class: "mark" },
    svg("line", { x1: place, x2: place, y1: TOP, y2: HEIGHT - BOTTOM, "stroke-dasharray": "4 3" }),
    svg("path", { d: SHAPES[2], transform: `translate(${place} ${HEIGHT - BOTTOM - 5})` }),
    svg(
      "text", { x: place + (isRight ? -5 : 5), y: TOP + 4, "text-anchor": isRight ? "end" : "start" },
      `chosen: ${formatFigure(value)}`,
    ),
  );
}

/** Labels that would lie over each other, moved apart. @param {number[]} places @param {number} gap */
function spread(places, gap) {
  const order = places.map((_, i) => i).sort((a, b) => places[a] - places[b]);
  const moved = [...places];
  order.forEach((i, k) => {
    if (k) moved[i] = Math.max(moved[i], moved[order[k - 1]] + gap);
  });
  const over = Math.max(0, Math.max(...moved) - (HEIGHT - BOTTOM));
  return moved.map((place) => place - over);
}

/** The pieces that gaps leave of a line, as [step, value]; of long ones every so many steps. */
function pieces(values, every) {
  /** @type {[number, number][][]} */
  const found = [[]];
  values.forEach((v, step) => {
    if (finite([v]).length === 0) found.push([]);
    else if (step % every === 0) found[found.length - 1].push([step, v]);
  });
  return found.filter((piece) => piece.length);
}

/**
 * Values by step, a line each; null is a gap. A step that is `filled` has a filled marker, another a hollow one.
 * @param {Series[]} series
 * @param {{x: string, y: string, label: string, note?: string}} texts
 */
export function lines(series, { x, y, label, note = "" }) {
  const values = finite(series.flatMap((one) => one.values));
  if (!values.length) return empty(label, "There are no values.");
  const shown = series.filter((one) => finite(one.values).length).slice(0, MAX_LINES);
  const longest = Math.max(...series.map((one) => one.values.length));
  const every = Math.ceil(longest / MAX_POINTS);
  const [low, high] = range(finite(shown.flatMap((one) => one.values)));
  const { at, up, shapes } = axes(niceTicks(0, Math.max(1, longest - 1), { whole: true }), niceTicks(low, high), x, y);
  const drawn = shown.map((one) => pieces(one.values, every));
  const ends = drawn.map((found) => found[found.length - 1].slice(-1)[0]);
  const places = spread(ends.map(([, v]) => up(v) - 6), 13);
  const paths = shown.map((one, i) => svg(
    "g", { class: `line line-${i}`, "data-name": one.name },
    drawn[i].map((piece) => svg("polyline", {
      points: piece.map(([step, v]) => `${at(step)},${up(v)}`).join(" "), "stroke-dasharray": DASHES[i] || null,
    })),
    drawn[i].filter((piece) => longest <= MAX_MARKERS || piece.length === 1).flat().map(([step, v]) => svg("path", {
      class: one.filled && !one.filled[step] ? "hollow" : "marker",
      d: SHAPES[i % SHAPES.length], transform: `translate(${at(step)} ${up(v)})`,
    })),
    shown.length > 1 ? svg("text", { x: at(ends[i][0]) - 2, y: places[i], "text-anchor": "end" }, one.name) : null,
  ));
  const count = series.length === 1 ? "One line" : `${series.length} lines`;
  return figure(label, [shapes, paths], {
    summary: `${count} of up to ${longest} values, from ${formatFigure(low)} to ${formatFigure(high)}.`,
    head: [x, ...shown.map((one) => one.name)],
    rows: Array.from({ length: longest }, (_, i) => [i, ...shown.map((one) => one.values[i] ?? null)]),
    notes: [
      note,
      shown.length < series.length ? `${shown.length} of ${series.length} lines are drawn.` : "",
      every > 1 ? `One of ${every} steps is drawn.` : "",
    ],
  });
}

/**
 * A row each: a bar from 0, or, where an item has `low` and `high`, a dot with its interval.
 * @param {Item[]} items
 * @param {{label: string, x?: string, low?: number, high?: number}} how `low`, `high`: what the axis has to show
 */
export function bars(items, { label, x = "value", low = 0, high = 0 }) {
  const known = finite(items.flatMap((item) => [item.value, item.low, item.high]));
  if (!known.length) return empty(label, "There are no values.");
  const shown = items.slice(0, 40);
  const height = TOP + BOTTOM + shown.length * 24;
  const [least, most] = range([...known, low, high]);
  const xs = niceTicks(least, most, { count: 4 });
  const at = scale(xs, SIDE, WIDTH - 60);
  const base = height - BOTTOM;
  const rows = shown.map((item, i) => drawRow(item, TOP + i * 24 + 12, at));
  const shapes = [
    xs.map((v) => svg("line", { class: v === 0 ? "axis" : "grid", x1: at(v), x2: at(v), y1: TOP, y2: base })),
    labelTicks(xs).map((text, i) =>
      svg("text", { class: "tick x", x: at(xs[i]), y: base + 16, "text-anchor": "middle" }, text)),
    svg("text", { class: "name", x: (SIDE + WIDTH - 60) / 2, y: height - 6, "text-anchor": "middle" }, x),
    rows,
  ];
  const intervals = items.some((item) => item.low !== undefined);
  return figure(label, shapes.flat(), {
    height,
    summary: items.slice(0, 12).map((item) => `${item.name}: ${formatFigure(item.value)}`).join("; "),
    head: ["name", x, ...(intervals ? ["from", "to"] : [])],
    rows: items.map((item) => [item.name, item.value, ...(intervals ? [item.low, item.high] : [])]),
    notes: [shown.length < items.length ? `${shown.length} of ${items.length} are drawn.` : ""],
  });
}

/** One row of `bars`. @param {Item} item @param {number} y @param {(v: number) => number} at */
function drawRow(item, y, at) {
  const name = item.name.length > 18 ? `${item.name.slice(0, 17)}…` : item.name;
  const value = finite([item.value])[0] ?? null;
  const hasInterval = finite([item.low, item.high]).length === 2;
  const [from, to] = hasInterval ? [at(item.low), at(item.high)] : [at(0), at(value ?? 0)];
  const whiskers = () => [
    svg("path", { class: "whisker", d: `M${from},${y - 5}v10M${from},${y}H${to}M${to},${y - 5}v10` }),
    value === null ? null : svg("circle", { class: "marker", cx: at(value), cy: y, r: 4 }),
  ];
  const bar = () => svg("rect", {
    class: "bar", x: Math.min(from, to), y: y - 7, width: Math.max(1, Math.abs(to - from)), height: 14,
  });
  return svg(
    "g", { class: item.marked ? "row marked" : "row", "data-name": item.name },
    svg("title", {}, item.name),
    svg("text", { x: SIDE - 8, y: y + 4, "text-anchor": "end" }, item.marked ? `▸ ${name}` : name),
    hasInterval ? whiskers() : bar(),
    svg("text", { x: WIDTH - 4, y: y + 4, "text-anchor": "end" }, formatFigure(value)),
  );
}
