// Lines over time, drawn by uPlot: queue, workers by what they do, what ended, latencies.

import uPlot from "./vendor/uPlot.js";
import { $, h, visible } from "./dom.js";
import { count, milliseconds, rate, timeOfDay } from "./format.js";
import { colourOf, now, seriesOf, shownNames, startOfShown, state } from "./state.js";
import { colour } from "./theme.js";

const HEIGHT = 150;
const WINDOWS = [60, 300, 900];
/** Steps of axes that count things: there is no half of a job. */
const WHOLE = [1, 2, 5].flatMap((step) => [0, 1, 2, 3, 4, 5].map((power) => step * 10 ** power)).sort((a, b) => a - b);
let charts = [];
let drawn = "";

const CHARTS = [
  { title: "Jobs in queue", lines: () => perEndpoint("queued"), show: count },
  {
    title: "Workers",
    stacked: true,
    lines: () => [
      { name: "leaving", colour: "--draining", values: total("leaving") },
      { name: "starting", colour: "--starting", values: total("starting") },
      { name: "idle", colour: "--idle", values: total("idle") },
      { name: "busy", colour: "--running", values: total("busy") },
    ],
    show: count,
  },
  {
    title: "Jobs ended per second",
    lines: () => [
      { name: "finished", colour: "--good", values: total("finished", 5) },
      { name: "failed", colour: "--bad", values: total("failed", 5) },
    ],
    show: rate,
  },
  { title: "Latency p95", lines: () => perEndpoint("p95_ms"), show: milliseconds },
];

/** The times of all samples that are shown: those of the endpoint with the most, as all are taken together. */
function times() {
  const start = startOfShown();
  const longest = seriesOf("queued").reduce((best, { samples }) => (samples.length > best.length ? samples : best), []);
  return longest.map((sample) => sample[0]).filter((at) => at >= start);
}

function aligned(samples, place, axis) {
  const byTime = new Map(samples.map((sample) => [sample[0], sample[place]]));
  return axis.map((at) => byTime.get(at) ?? null);
}

function perEndpoint(column) {
  const axis = times();
  return seriesOf(column).map(({ name, samples, place }) => ({ name, colour: colourOf(name), values: aligned(samples, place, axis) }));
}

function total(column, smooth = 1) {
  const axis = times();
  const all = seriesOf(column).map(({ samples, place }) => aligned(samples, place, axis));
  const sums = axis.map((_, index) => all.reduce((sum, values) => sum + (values[index] ?? 0), 0));
  if (smooth === 1) return sums;
  return sums.map((_, index) => {
    const part = sums.slice(Math.max(0, index - smooth + 1), index + 1);
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

export function makeWindows(redraw) {
  const label = (seconds) => (seconds < 60 ? `${seconds} s` : `${seconds / 60} min`);
  $("windows").append(
    ...WINDOWS.map((seconds) =>
      h("button", { type: "button", data: { seconds }, aria: { pressed: String(seconds === state.windowSeconds) }, onclick: () => choose(seconds) }, label(seconds)),
    ),
  );
  function choose(seconds) {
    state.windowSeconds = seconds;
    for (const button of $("windows").children) button.setAttribute("aria-pressed", String(button.dataset.seconds === String(seconds)));
    redraw();
  }
}

/** Make the charts anew: other endpoints are shown, or in other colours. */
export function rebuildCharts() {
  for (const chart of charts) chart.plot?.destroy();
  const boxes = CHARTS.map((chart) =>
    h("figure", { class: "chart" }, h("figcaption", {}, chart.title, h("span", { class: "keys" })), h("div", { class: "plot", role: "img", aria: { label: chart.title } })),
  );
  $("charts").replaceChildren(...boxes);
  charts = CHARTS.map((chart, index) => ({ ...chart, box: boxes[index], plot: null }));
}

export function drawCharts() {
  const names = shownNames().join("\n");
  if (names !== drawn || !charts.length) {
    drawn = names;
    rebuildCharts();
  }
  const axis = times();
  for (const chart of charts) drawChart(chart, axis);
}

function drawChart(chart, axis) {
  const lines = chart.lines();
  const values = chart.stacked ? stack(lines) : lines.map((line) => line.values);
  const holder = chart.box.querySelector(".plot");
  const width = Math.max(160, Math.floor(holder.clientWidth));
  if (!chart.plot) {
    chart.plot = new uPlot(options(chart, lines, width), [axis, ...values], holder);
    drawKeys(chart, lines);
  } else {
    if (chart.plot.width !== width) chart.plot.setSize({ width, height: HEIGHT });
    chart.plot.setData([axis, ...values], false);
  }
  chart.plot.batch(() => {
    chart.plot.setScale("x", { min: startOfShown(), max: now() });
    const top = values.flat().reduce((most, value) => Math.max(most, value ?? 0), 0);
    chart.plot.setScale("y", { min: 0, max: Math.max(top * 1.15, 1) });
  });
}

function drawKeys(chart, lines) {
  const key = (line) => {
    const swatch = h("i");
    swatch.style.background = `var(${line.colour})`;
    return h("span", {}, swatch, visible(line.name));
  };
  chart.box.querySelector(".keys").replaceChildren(...lines.slice(0, 8).map(key));
}

/** The upper edge of each layer; the first one lies on top, so layers are drawn from the last sum down. */
function stack(lines) {
  let below = lines[0]?.values.map(() => 0) ?? [];
  const edges = [...lines].reverse().map((line) => (below = below.map((sum, index) => sum + (line.values[index] ?? 0))));
  return edges.reverse();
}

function options(chart, lines, width) {
  const text = colour("--muted");
  const grid = { stroke: colour("--line"), width: 1 };
  const shared = { stroke: text, font: "11px system-ui, sans-serif", grid, ticks: { show: false } };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    padding: [8, 8, 0, 0],
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    hooks: { setCursor: [(plot) => showTip(plot, chart, lines)] },
    scales: { x: { time: true, auto: false }, y: { auto: false } },
    axes: [
      { ...shared, size: 26, grid: { show: false }, space: 80, values: (_, ticks) => ticks.map((at) => timeOfDay(at)) },
      { ...shared, size: 48, space: 34, ...(chart.show === count ? { incrs: WHOLE } : {}), values: (_, ticks) => ticks.map(chart.show) },
    ],
    series: [
      {},
      ...lines.map((line) => ({
        stroke: colour(line.colour),
        width: 1.6,
        fill: chart.stacked ? colour(line.colour) : colour(line.colour, 0.1),
        points: { show: false },
        spanGaps: false,
      })),
    ],
  };
}

function showTip(plot, chart, lines) {
  const index = plot.cursor.idx;
  const keys = chart.box.querySelector(".keys");
  const isOver = index !== null && index !== undefined && plot.cursor.left >= 0;
  const current = isOver ? chart.lines() : [];
  [...keys.children].forEach((key, place) => {
    const value = current[place]?.values[index];
    key.lastChild.textContent = visible(lines[place].name) + (isOver && value !== null && value !== undefined ? ` ${chart.show(value)}` : "");
  });
}

export function forgetCharts() {
  drawn = "";
}
