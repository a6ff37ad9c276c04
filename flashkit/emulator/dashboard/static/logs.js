// Lines that workers print, newest below, with a search over those that the page has.

import { $, h, visible } from "./dom.js";
import { milliseconds, timeOfDay } from "./format.js";
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

// What is no printed line: told by the platform itself, in words.
const WORDS = {
  request: (event) => `${event.method} ${event.path} → ${event.status ?? "hung up"} in ${milliseconds(event.wait_ms + (event.run_ms ?? 0))}${event.problem ? `: ${event.problem}` : ""}`,
  fault: (event) => `fault ${event.kind}: ${event.detail}`,
  reload: (event) => (event.problem ? `not reloaded: ${event.problem.message}` : `reloaded for ${event.files.join(", ")}: restarted ${event.restarted.join(", ") || "nothing"}`),
  clock: (event) => (event.advanced_s ? `clock advanced by ${event.advanced_s} s` : `clock goes ${event.speed} times as fast`),
  capacity: (event) => `${event.throttled} workers wait for machines`,
};

function textOf(line) {
  return line.type === "log" ? line.text : (WORDS[line.type]?.(line) ?? line.type);
}

function fits(line, needle) {
  if (state.chosen && line.endpoint && line.endpoint !== state.chosen) return false;
  return !needle || [textOf(line), line.job_id, line.worker_id, line.request_id].some((text) => (text ?? "").toLowerCase().includes(needle));
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
  const source = h("span", { class: "from", title: visible(line.worker_id ?? "") }, visible(line.endpoint || "platform"));
  source.style.color = line.endpoint ? `var(${colourOf(line.endpoint)})` : "";
  const whole = textOf(line);
  const text = whole.length > LENGTH ? `${whole.slice(0, LENGTH)}… (${whole.length - LENGTH} more)` : whole;
  const level = (line.level ?? "").toLowerCase();
  const kind = line.type === "log" ? level : line.type === "fault" || line.problem ? "warn" : "told";
  return h("div", { class: `line ${["error", "warn", "told"].includes(kind) ? kind : ""}` }, h("time", {}, timeOfDay(line.at)), source, h("span", { class: "text" }, visible(text)));
}
