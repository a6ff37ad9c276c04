// A lane for each worker: what it was doing over the time shown, and what can be done to it now.

import { $, h, keyed, setText, visible } from "./dom.js";
import { milliseconds } from "./format.js";
import { colourOf, endpointNames, now, startOfShown, state } from "./state.js";
import { colour } from "./theme.js";

const SHOWN = 40;
export const STATES = ["initializing", "starting", "idle", "running", "frozen", "draining", "unhealthy"];
const ACTIONS = [
  ["kill", "Kill", "End its process now, as a crash of its machine would"],
  ["reclaim", "Reclaim", "Take its machine away with a short notice, as happens to spot machines"],
  ["freeze", "Freeze", "Stop its processes, as FlashBoot does"],
  ["thaw", "Thaw", "Let its processes go on"],
];

export function makeLegend() {
  $("legend").append(...STATES.map((what) => h("span", {}, h("i", { class: `dot ${what}` }), what)));
}

function isShown(lane, start) {
  if (state.chosen && lane.endpoint !== state.chosen) return false;
  const [at, what] = lane.changes.at(-1) ?? [0, ""];
  return what !== "exited" || at > start;
}

function order(a, b) {
  const names = endpointNames();
  const place = names.indexOf(a.endpoint) - names.indexOf(b.endpoint);
  return place || (a.state === "exited") - (b.state === "exited") || b.changes[0][0] - a.changes[0][0];
}

export function drawLanes(act) {
  const start = startOfShown();
  const shown = [...state.lanes.values()].filter((lane) => lane.changes.length && isShown(lane, start)).sort(order);
  keyed($("lanes"), shown.slice(0, SHOWN), (lane) => lane.worker_id, (lane) => makeLane(lane, act), (node, lane) => updateLane(node, lane, start));
  $("lanes").dataset.empty = shown.length ? "" : "No workers now. A job starts one.";
}

function makeLane(lane, act) {
  const buttons = ACTIONS.map(([action, text, title]) =>
    h("button", { type: "button", class: "quiet small", title, data: { action }, aria: { label: `${text} worker ${visible(lane.worker_id)}` }, onclick: () => act(lane.worker_id, action) }, text),
  );
  const canvas = h("canvas", { height: 1, width: 1, aria: { hidden: "true" } });
  canvas.addEventListener("pointermove", (event) => showMoment(canvas, event));
  return h(
    "div",
    { class: "lane", data: { worker: lane.worker_id } },
    h("span", { class: "who" }, h("i", { class: "swatch" }), h("b", {}, visible(lane.worker_id.replace(/-[0-9a-f]{8}$/, "")))),
    canvas,
    h("span", { class: "state" }),
    h("span", { class: "buttons" }, buttons),
  );
}

function updateLane(node, lane, start) {
  const [since, what] = lane.changes.at(-1);
  node.lane = lane;
  node.title = lane.worker_id;
  node.classList.toggle("over", what === "exited");
  node.querySelector(".swatch").style.background = `var(${colourOf(lane.endpoint)})`;
  const jobs = lane.jobs.length > 1 ? ` ×${lane.jobs.length}` : "";
  const detail = what === "exited" && lane.detail ? lane.detail : `${what}${jobs}`;
  setText(node.querySelector(".state"), what === "exited" ? detail : `${detail} · ${milliseconds((now() - since) * 1000)}`);
  for (const button of node.querySelectorAll("button")) button.hidden = !isPossible(button.dataset.action, what);
  paint(node.querySelector("canvas"), lane, start);
}

function isPossible(action, what) {
  if (what === "exited") return false;
  if (action === "freeze") return what === "idle";
  if (action === "thaw") return what === "frozen";
  return action === "kill" || what === "idle" || what === "running";
}

function paint(canvas, lane, start) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const end = now();
  const x = (at) => Math.max(0, ((at - start) / (end - start)) * width);
  context.clearRect(0, 0, width, height);
  context.fillStyle = colour("--lane");
  context.fillRect(0, 0, width, height);
  lane.changes.forEach(([at, what], index) => {
    const until = lane.changes[index + 1]?.[0] ?? end;
    if (what === "exited" || until < start) return;
    context.fillStyle = colour(`--${what}`);
    context.fillRect(x(at), 0, Math.max(ratio, x(until) - x(at)), height);
  });
}

function showMoment(canvas, event) {
  const { lane } = canvas.parentElement;
  const at = startOfShown() + (now() - startOfShown()) * (event.offsetX / canvas.clientWidth);
  const change = lane.changes.findLast(([since]) => since <= at);
  canvas.title = change ? `${change[1]}, ${milliseconds((now() - at) * 1000)} ago` : "not there yet";
}
