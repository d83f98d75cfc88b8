// Labelled fields that show a hint and, where the server refuses their value, its message.
// Those of a strategy's parameters are made from the JSON schema that the server gives of them.

import { h, newId, replace } from "./dom.js";
import { readNumber } from "./settings.js";

/**
 * A label, a control, a hint and a place for the server's message about `param`.
 * @param {{label: any, param: string, control: any, hint?: any, inline?: boolean}} options
 */
export function makeField({ label, param, control, hint, inline = false }) {
  control.id ||= newId("field");
  const hintId = newId("hint");
  const errorId = newId("error");
  control.setAttribute("aria-describedby", hint ? `${hintId} ${errorId}` : errorId);
  const node = h(
    "div",
    { class: inline ? "field inline" : "field", "data-param": param },
    h("label", { for: control.id }, label),
    control,
    hint ? h("p", { class: "hint", id: hintId }, hint) : null,
    h("p", { class: "error", id: errorId }),
  );
  node.addEventListener("input", () => clearError(node));
  return node;
}

/** @param {Element} field @param {string} message */
export function showError(field, message) {
  for (let outer = field.closest("details"); outer; outer = outer.parentElement.closest("details")) outer.open = true;
  replace(field.querySelector(":scope > .error"), h("span", { "aria-hidden": "true" }, "▲ "), message);
  field.classList.add("refused");
  // Of a slider and its number the latter: it is what can be wrong.
  [...field.querySelectorAll(":scope > input, :scope > select, :scope > textarea")].at(-1)?.setAttribute("aria-invalid", "true");
}

/** @param {Element} field */
export function clearError(field) {
  if (!field.classList.contains("refused")) return;
  replace(field.querySelector(":scope > .error"));
  field.classList.remove("refused");
  field.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
}

/**
 * A text field for a number that may be left empty.
 * @param {{value: any, placeholder?: string, onChange: (value: any) => void, label?: string}} options
 */
export function numberInput({ value, placeholder, onChange, label }) {
  const input = h("input", {
    type: "text",
    inputmode: "decimal",
    autocomplete: "off",
    spellcheck: "false",
    placeholder,
    "aria-label": label,
    oninput: () => onChange(readNumber(input.value)),
  });
  input.value = value ?? "";
  return input;
}

/**
 * The field of one parameter.
 * @param {string} name
 * @param {any} schema
 * @param {{value: any, guides: string[], onChange: (value: any) => void}} options undefined is not set
 */
export function parameterField(name, schema, { value, guides, onChange }) {
  const kind = readKind(schema);
  const usual = "default" in schema ? showDefault(schema.default) : "required";
  const param = `alignment.params.${name}`;
  const hint = [schema.description, describeBounds(kind)].filter(Boolean).join("; ");
  if (kind.enum || kind.type === "boolean") {
    const choices = kind.enum ?? [true, false];
    const control = h(
      "select",
      { onchange: () => onChange(control.value === "" ? undefined : JSON.parse(control.value)) },
      h("option", { value: "" }, "default" in schema ? `${usual} (default)` : "choose one"),
      choices
        .filter((choice) => choice !== schema.default)
        .map((choice) => h("option", { value: JSON.stringify(choice), selected: choice === value }, String(choice))),
    );
    return makeField({ label: name, param, control, hint });
  }
  const read = kind.type === "string" ? (text) => text : kind.number ? readNumber : readJson;
  const names = /\ba guide's name\b/.test(schema.description ?? "") && guides.length ? guides : null;
  const list = names ? h("datalist", { id: newId("list") }, names.map((guide) => h("option", { value: guide }))) : null;
  const control = h("input", {
    type: "text",
    inputmode: kind.number ? "decimal" : null,
    autocomplete: "off",
    spellcheck: "false",
    placeholder: usual,
    list: list?.id,
    oninput: () => onChange(control.value === "" ? undefined : read(control.value)),
  });
  if (value !== undefined) control.value = typeof value === "object" ? JSON.stringify(value) : value;
  const field = makeField({ label: name, param, control, hint: kind.number || kind.type === "string" ? hint : `${hint}; as JSON` });
  if (list) field.append(list);
  return field;
}

/** A schema's type, enum and bounds; one that may also be null is what it is otherwise. */
function readKind(schema) {
  const options = (schema.anyOf ?? [schema]).filter((option) => option.type !== "null");
  const kind = options.length === 1 ? options[0] : {};
  return { ...kind, number: kind.type === "number" || kind.type === "integer" };
}

function describeBounds(kind) {
  if (!kind.number) return "";
  const low = kind.minimum ?? kind.exclusiveMinimum;
  const high = kind.maximum ?? kind.exclusiveMaximum;
  const least = low === undefined ? "" : `${kind.minimum === undefined ? "above" : "from"} ${low}`;
  const most = high === undefined ? "" : `${kind.maximum === undefined ? "below" : "to"} ${high}`;
  return [kind.type === "integer" ? "whole" : "", least, most].filter(Boolean).join(" ");
}

function showDefault(value) {
  if (value === null) return "none";
  return typeof value === "string" ? value || "empty" : JSON.stringify(value);
}

/** JSON, or the text itself where it is none: `"name"` and `name` are the same reward. @param {string} text */
export function readJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
