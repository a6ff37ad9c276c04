// Lines that workers print, newest below, with a search over those that the page has.

import { $, h, visible } from "./dom.js";
import { timeOfDay } from "./format.js";
import { colourOf, state } from "./state.js";

const SHOWN = 500;
const LENGTH = 2000;
let isFollowing = true;
let last = -1;
let shape = "";

export function makeLogs() {
  $("logs-search").addEventListener("input", drawLogs);
  $("logs-follow").addEventListener("click", () => setFollowing(!isFollowing));
  $("logs").addEventListener("scroll", () => {
    const pane = $("logs");
    const atEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 24;
    if (atEnd !== isFollowing) setFollowing(atEnd);
  });
}

export function setFollowing(wanted) {
  isFollowing = wanted;
  $("logs-follow").setAttribute("aria-pressed", String(wanted));
  drawLogs();
}

export const toggleFollowing = () => setFollowing(!isFollowing);

function fits(line, needle) {
  if (state.chosen && line.endpoint !== state.chosen) return false;
  return !needle || line.text.toLowerCase().includes(needle) || (line.job_id ?? "").includes(needle) || line.worker_id.includes(needle);
}

export function drawLogs() {
  const pane = $("logs");
  const needle = $("logs-search").value.trim().toLowerCase();
  const wanted = `${needle}\n${state.chosen}\n${Object.keys(state.endpoints).length}`;
  const isNew = wanted !== shape || (state.lines.length && state.lines.at(-1).n < last) || !state.lines.length;
  if (isNew) {
    pane.replaceChildren();
    shape = wanted;
    last = -1;
  }
  const fresh = state.lines.filter((line) => line.n > last && fits(line, needle)).slice(-SHOWN);
  if (state.lines.length) last = state.lines.at(-1).n;
  if (fresh.length) pane.append(...fresh.map(lineElement));
  while (pane.childElementCount > SHOWN) pane.firstElementChild.remove();
  pane.dataset.empty = pane.childElementCount ? "" : needle ? "No line fits." : "Nothing was printed yet.";
  if (isFollowing) pane.scrollTop = pane.scrollHeight;
}

/** One line, cut where it is too long to be read. */
export function lineElement(line) {
  const source = h("span", { class: "from", title: visible(line.worker_id) }, visible(line.endpoint));
  source.style.color = `var(${colourOf(line.endpoint)})`;
  const text = line.text.length > LENGTH ? `${line.text.slice(0, LENGTH)}… (${line.text.length - LENGTH} more)` : line.text;
  const level = (line.level ?? "").toLowerCase();
  return h("div", { class: `line ${["error", "warn"].includes(level) ? level : ""}` }, h("time", {}, timeOfDay(line.at)), source, h("span", { class: "text" }, visible(text)));
}
