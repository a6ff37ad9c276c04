// The row of figures at the top: the endpoints that are shown, together.

import { $, h, keyed, setText } from "./dom.js";
import { count, dollars, milliseconds, rate } from "./format.js";
import { shownNames, state } from "./state.js";

const RATE_SECONDS = 10;

function sum(values) {
  return values.reduce((total, value) => total + (value ?? 0), 0);
}

function perSecond(column) {
  const place = state.columns.indexOf(column);
  return sum(shownNames().map((name) => sum((state.series[name] ?? []).slice(-RATE_SECONDS).map((sample) => sample[place])))) / RATE_SECONDS;
}

function worst(figures, latency, share) {
  const values = figures.map((each) => each.latency[latency]?.[share]).filter((value) => value !== undefined && value !== null);
  return values.length ? Math.max(...values) : null;
}

function tiles() {
  const figures = shownNames().map((name) => state.figures[name]).filter(Boolean);
  const workers = (...states) => sum(figures.map((each) => sum(states.map((what) => each.workers[what]))));
  const jobs = (what) => sum(figures.map((each) => each.jobs[what]));
  const busy = workers("running");
  const ready = busy + workers("idle");
  const priced = figures.map((each) => each.cost.usd_per_hour).filter((value) => value !== null);
  const unpriced = figures.length - priced.length;
  const tokens = sum(figures.map((each) => each.tokens.prompt + each.tokens.completion));
  const coldStarts = figures.map((each) => each.cold_starts.ms?.p95).filter((value) => value !== undefined);
  return [
    { name: "Jobs per second", value: rate(perSecond("finished") + perSecond("failed")), note: `${count(jobs("completed") + sum(figures.map((each) => each.requests.done)))} done` },
    { name: "In queue", value: count(jobs("inQueue")), note: `${count(jobs("inProgress"))} running` },
    { name: "Failed", value: count(jobs("failed")), note: `${count(jobs("retried"))} retried`, kind: jobs("failed") ? "bad" : "" },
    { name: "Workers busy", value: `${busy} / ${ready}`, note: `${workers("starting", "initializing")} starting` },
    { name: "Latency p95", value: milliseconds(worst(figures, "total_ms", "p95")), note: `p50 ${milliseconds(worst(figures, "total_ms", "p50"))}`, help: "From queue to end, last 5 minutes; of several endpoints the slowest" },
    { name: "Cold starts", value: count(sum(figures.map((each) => each.cold_starts.count))), note: coldStarts.length ? `p95 ${milliseconds(Math.max(...coldStarts))}` : "none yet" },
    { name: "Tokens", value: count(tokens), note: `${rate(perSecond("tokens"))} per second`, help: "As counted in `usage` of outputs" },
    {
      name: "Cost per hour",
      value: priced.length ? dollars(sum(priced)) : "–",
      note: unpriced ? (priced.length ? "CPU has no price" : "no price known") : `${dollars(sum(figures.map((each) => each.cost.usd)), 3)} so far`,
      help: "What these workers would cost on Runpod now, at the catalogue's prices",
    },
  ];
}

export function drawTiles() {
  keyed(
    $("tiles"),
    tiles(),
    (tile) => tile.name,
    (tile) => h("div", { class: "tile", title: tile.help }, h("span", { class: "name" }, tile.name), h("strong"), h("span", { class: "note" })),
    (node, tile) => {
      node.classList.toggle("bad", tile.kind === "bad");
      setText(node.children[1], tile.value);
      setText(node.children[2], tile.note);
    },
  );
}
