// Elements and text. Whatever comes from a job, a worker or an app is set as text, never as markup.

// Characters that turn the direction of text or cannot be seen, and colours for terminals.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
const TERMINAL = /\u001b\[[0-9;?]*[ -/]*[@-~]/g;

/** Return the text with invisible characters written out, so that it shows what it is. */
export function visible(text) {
  return String(text)
    .replace(TERMINAL, "")
    .replace(/\r\n?/g, "\n")
    .replace(HIDDEN, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** Make an element: properties by name, `on…` for listeners, `data` and `aria` as objects, children as text or nodes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "aria") for (const [key, text] of Object.entries(value)) element.setAttribute(`aria-${key}`, text);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set an element's text when it is another; touching nothing keeps selections and the work of the browser small. */
export function setText(element, text) {
  const shown = visible(text);
  if (element.textContent !== shown) element.textContent = shown;
}

export const $ = (id) => document.getElementById(id);

/** Keep one child for each key, in this order, making and updating as needed. */
export function keyed(parent, items, key, make, update) {
  const old = (parent.keyedChildren ??= new Map());
  const fresh = new Map();
  let previous = null;
  for (const item of items) {
    const name = key(item);
    const node = old.get(name) ?? make(item);
    update(node, item);
    fresh.set(name, node);
    const expected = previous ? previous.nextSibling : parent.firstChild;
    if (node !== expected) parent.insertBefore(node, expected);
    previous = node;
  }
  for (const [name, node] of old) if (!fresh.has(name)) node.remove();
  parent.keyedChildren = fresh;
}

/** Show a short message for a few seconds. */
export function toast(text, kind = "") {
  const element = h("div", { class: `toast ${kind}` }, visible(text));
  $("toasts").append(element);
  setTimeout(() => element.remove(), kind === "bad" ? 9000 : 4000);
}
