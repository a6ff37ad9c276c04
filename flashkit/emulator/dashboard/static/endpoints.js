// One card for each endpoint: what it runs on, its workers, its figures, and what can be done to it.

import { $, h, keyed, setText, visible } from "./dom.js";
import { count, dollars, milliseconds } from "./format.js";
import { colourOf, endpointNames, state } from "./state.js";

const STATES = ["running", "idle", "initializing", "starting", "frozen", "draining", "unhealthy", "throttled"];

export function drawEndpoints(actions) {
  keyed($("endpoints"), endpointNames(), (name) => name, (name) => makeCard(name, actions), updateCard);
  $("all").hidden = state.chosen === null;
}

function makeCard(name, actions) {
  const figure = (label, part) => h("div", {}, h("dt", {}, label), h("dd", { data: { part } }));
  const button = (text, title, act, name = "") => h("button", { type: "button", class: `quiet small ${name}`, title, onclick: act }, text);
  return h(
    "article",
    { class: "card", data: { endpoint: name } },
    h(
      "button",
      { type: "button", class: "choose", title: `Show ${visible(name)} alone`, onclick: () => actions.choose(name) },
      h("span", { class: "swatch" }),
      h("span", { class: "title" }, visible(name)),
      h("span", { class: "kind", data: { part: "kind" } }),
    ),
    h("p", { class: "about", data: { part: "about" } }),
    h("div", { class: "dots", data: { part: "dots" } }),
    h(
      "dl",
      {},
      figure("queued", "queued"),
      figure("running", "running"),
      figure("done", "done"),
      figure("failed", "failed"),
      figure("p50", "p50"),
      figure("p95", "p95"),
      figure("p99", "p99"),
      figure("wait p95", "delay"),
      figure("cold starts", "cold"),
      figure("cold p95", "coldtime"),
      figure("tokens", "tokens"),
      figure("$ per hour", "cost"),
    ),
    h(
      "div",
      { class: "buttons" },
      button("Send job", "Send a job to this endpoint", () => actions.send(name), "send"),
      button("Restart", "Let new workers take over; running jobs finish", () => actions.restart(name)),
      button("Force cold start", "Kill all workers, so that the next job starts one", () => actions.cold(name)),
    ),
  );
}

function updateCard(card, name) {
  const about = state.endpoints[name];
  const figures = state.figures[name];
  if (!figures) return;
  const part = (which, text) => setText(card.querySelector(`[data-part="${which}"]`), text);
  card.classList.toggle("chosen", state.chosen === name);
  card.querySelector(".choose").setAttribute("aria-pressed", String(state.chosen === name));
  card.querySelector(".swatch").style.background = `var(${colourOf(name)})`;
  part("kind", about.is_load_balanced ? `${about.kind} · http` : about.kind);
  card.querySelector(".send").hidden = about.is_load_balanced;
  part("about", [about.compute, `${figures.bounds.min}–${figures.bounds.max} workers`, about.weights].filter(Boolean).join(" · "));
  part("queued", count(figures.jobs.inQueue));
  part("running", count(figures.jobs.inProgress));
  const { done, failed } = about.is_load_balanced ? figures.requests : { done: figures.jobs.completed, failed: figures.jobs.failed };
  part("done", count(done));
  part("failed", count(failed));
  card.querySelector('[data-part="failed"]').classList.toggle("bad", failed > 0);
  for (const share of ["p50", "p95", "p99"]) part(share, milliseconds(figures.latency.total_ms?.[share]));
  part("delay", milliseconds(figures.latency.delay_ms?.p95));
  part("cold", count(figures.cold_starts.count));
  part("coldtime", milliseconds(figures.cold_starts.ms?.p95));
  part("tokens", count(figures.tokens.prompt + figures.tokens.completion));
  part("cost", dollars(figures.cost.usd_per_hour));
  drawDots(card.querySelector('[data-part="dots"]'), figures);
}

function drawDots(parent, figures) {
  const dots = STATES.flatMap((what) => Array.from({ length: Math.min(figures.workers[what] ?? 0, 24) }, (_, place) => ({ what, place })));
  const spare = Math.max(0, Math.min(figures.bounds.max, 24) - dots.length);
  const none = Array.from({ length: spare }, (_, place) => ({ what: "none", place }));
  keyed(
    parent,
    [...dots, ...none],
    (dot) => `${dot.what}${dot.place}`,
    (dot) => h("span", { class: `dot ${dot.what}`, title: dot.what === "none" ? "no worker" : dot.what }),
    () => {},
  );
  const words = STATES.filter((what) => figures.workers[what]).map((what) => `${figures.workers[what]} ${what}`);
  parent.setAttribute("role", "img");
  parent.setAttribute("aria-label", words.length ? `workers: ${words.join(", ")}` : "no workers");
}
