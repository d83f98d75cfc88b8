// The direction pad: the weights of two objectives as one point, moved by pointer or by arrow keys.

import { formatNumber, h, newId, replace, svg } from "./dom.js";

const SIZE = 220;
const MARGIN = 26;
const SPAN = SIZE - 2 * MARGIN;

/**
 * @param {{names: string[], low: number, high: number, getWeight: (name: string) => number,
 *   setWeights: (weights: Record<string, number>) => void}} options
 * @returns {{node: HTMLElement, update: () => void}}
 */
export function createPad({ names, low, high, getWeight, setWeights }) {
  const chosen = pickAxes(names, getWeight);
  const place = (value) => ((Math.min(high, Math.max(low, value)) - low) / (high - low)) * SPAN;
  const position = () => [MARGIN + place(getWeight(chosen[0])), SIZE - MARGIN - place(getWeight(chosen[1]))];

  const move = (x, y) => {
    const clamp = (value) => Math.round(Math.min(high, Math.max(low, value)) * 20) / 20 || 0;
    setWeights({ [chosen[0]]: clamp(x), [chosen[1]]: clamp(y) });
    update();
  };
  const moveTo = (event) => {
    const box = pad.getBoundingClientRect();
    const scale = SIZE / box.width;
    const across = ((event.clientX - box.left) * scale - MARGIN) / SPAN;
    const up = (SIZE - MARGIN - (event.clientY - box.top) * scale) / SPAN;
    move(low + across * (high - low), low + up * (high - low));
  };
  const onKey = (event) => {
    const step = event.shiftKey ? 0.5 : 0.1;
    const steps = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key !== "Home" && !steps[event.key]) return;
    event.preventDefault();
    const [x, y] = steps[event.key] ?? [-getWeight(chosen[0]), -getWeight(chosen[1])];
    move(getWeight(chosen[0]) + x, getWeight(chosen[1]) + y);
  };

  const handle = svg("circle", { r: 8, class: "handle" });
  const ray = svg("line", { class: "ray" });
  const captions = svg("g", { class: "captions" });
  const zero = [MARGIN + place(0), SIZE - MARGIN - place(0)];
  const pad = svg(
    "svg",
    {
      class: "pad",
      viewBox: `0 0 ${SIZE} ${SIZE}`,
      tabindex: "0",
      role: "slider",
      "aria-roledescription": "direction pad",
      "aria-valuemin": low,
      "aria-valuemax": high,
      onkeydown: onKey,
      onpointerdown: (event) => {
        pad.setPointerCapture(event.pointerId);
        pad.focus();
        moveTo(event);
      },
      onpointermove: (event) => pad.hasPointerCapture(event.pointerId) && moveTo(event),
    },
    svg("rect", { x: MARGIN, y: MARGIN, width: SPAN, height: SPAN, class: "field-box" }),
    svg("line", { x1: MARGIN, x2: SIZE - MARGIN, y1: zero[1], y2: zero[1], class: "axis" }),
    svg("line", { x1: zero[0], x2: zero[0], y1: MARGIN, y2: SIZE - MARGIN, class: "axis" }),
    captions,
    ray,
    handle,
  );

  function update() {
    const [x, y] = position();
    handle.setAttribute("cx", x);
    handle.setAttribute("cy", y);
    for (const [name, value] of Object.entries({ x1: zero[0], y1: zero[1], x2: x, y2: y })) ray.setAttribute(name, value);
    const [across, up] = chosen.map((name) => `${name} ${formatNumber(getWeight(name))}`);
    pad.setAttribute("aria-label", `Weights of ${chosen[0]}, left to right, and ${chosen[1]}, down to up`);
    pad.setAttribute("aria-valuenow", getWeight(chosen[0]));
    pad.setAttribute("aria-valuetext", `${across}, ${up}`);
    replace(
      captions,
      svg("text", { x: SIZE - MARGIN, y: SIZE - 8, "text-anchor": "end" }, `${across} →`),
      svg("text", { x: MARGIN, y: 16 }, `↑ ${up}`),
    );
  }

  const choose = (axis, label) => {
    const id = newId("axis");
    const select = h(
      "select",
      {
        id,
        onchange: () => {
          if (chosen[1 - axis] === select.value) {
            chosen.reverse();
            selects.forEach((other, i) => (other.value = chosen[i]));
          } else chosen[axis] = select.value;
          update();
        },
      },
      names.map((name) => h("option", { selected: name === chosen[axis] }, name)),
    );
    selects.push(select);
    return h("span", null, h("label", { for: id }, label), select);
  };
  const selects = [];
  const axes = names.length > 2 ? h("div", { class: "pair" }, choose(0, "Across"), choose(1, "Up")) : null;
  const node = h("div", null, axes, pad, h("p", { class: "hint" }, "Drag, or use the arrow keys; Home sets both to 0."));
  update();
  return { node, update };
}

/** The first two objectives with a weight, and else the first two. */
function pickAxes(names, getWeight) {
  return [...names.filter((name) => getWeight(name)), ...names.filter((name) => !getWeight(name))].slice(0, 2);
}
