// The trace of a job: a line for each span, with its place in time; what never ended is red.

import { ask } from "./api.js";
import { h, visible } from "./dom.js";
import { milliseconds } from "./format.js";

const SHOWN = 500;
const LONGEST = 400;
const AGAIN_MS = 1500;
const opened = new Set();

/** Fill an element with the trace of a job, and again while its spans come in. */
export async function drawTrace(place, jobId, isOver) {
  const turn = (place.turn = (place.turn ?? 0) + 1); // of two that draw the same place, the later one goes on
  let trace;
  try {
    trace = await ask(`/_/traces/${encodeURIComponent(jobId)}`);
  } catch {
    return; // the page says elsewhere that the platform is gone
  }
  if (!place.isConnected || place.turn !== turn) return;
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.span : null;
  place.replaceChildren(...view(trace));
  if (focused) place.querySelector(`[data-span="${CSS.escape(focused)}"]`)?.focus();
  const isSettled = isOver && trace.spans.length && (trace.hung || !trace.spans.some((span) => span.is_open));
  const tries = Number(place.dataset.tries ?? 0);
  // Other workers may tell their part a second or two later.
  if (!isOver || tries < (isSettled ? 3 : 8)) {
    place.dataset.tries = isOver ? tries + 1 : 0;
    setTimeout(() => place.isConnected && place.turn === turn && drawTrace(place, jobId, isOver), AGAIN_MS);
  }
}

function view(trace) {
  if (!trace.spans.length) return [h("p", { class: "empty" }, visible(trace.message || "No trace is kept of it."))];
  const total = Math.max(trace.duration_s, 1e-6);
  const skewed = Object.entries(trace.skew_ms);
  const more = trace.spans.length - SHOWN;
  return [
    trace.message ? h("p", { class: "hung", role: "alert" }, short(trace.message)) : null,
    skewed.length ? h("p", { class: "note" }, `Clocks disagree: ${skewed.map(([worker, ms]) => `${short(worker)} by ${milliseconds(ms)}`).join(", ")}. Their spans were moved into their parents.`) : null,
    h("div", { class: "waterfall" }, trace.spans.slice(0, SHOWN).map((span) => row(span, total, trace.hung))),
    more > 0 ? h("p", { class: "note" }, `… and ${more.toLocaleString("en")} more spans`) : null,
    h("p", { class: "note mono" }, `trace ${visible(trace.trace_id)} · ${trace.spans.length} spans · ${milliseconds(total * 1000)}`),
  ].filter(Boolean);
}

function row(span, total, hung) {
  const bar = h("i", { class: `op-${/^[a-z_]+$/.test(span.op) ? span.op : "other"}` });
  bar.style.left = `${Math.min(99.5, (span.start_s / total) * 100)}%`;
  bar.style.width = `${Math.max(0.5, Math.min(100, (span.duration_s / total) * 100))}%`;
  const name = h("span", { class: "name" }, span.op && span.op !== span.name ? h("span", { class: "op" }, `${short(span.op)} `) : null, short(span.name));
  name.style.paddingInlineStart = `${Math.min(span.depth, 12) * 12}px`;
  const state = span.is_cut_off ? "never ended" : span.is_open ? "open" : span.is_stopped ? "stopped" : span.error ? "error" : "";
  const button = h(
    "button",
    {
      type: "button",
      class: `span ${span.is_cut_off || span.span_id === hung ? "cut" : span.error ? "failed" : span.is_open ? "open" : ""}`,
      data: { span: span.span_id },
      aria: { expanded: String(opened.has(span.span_id)) },
      onclick: () => toggle(button, span),
    },
    name,
    h("span", { class: "took" }, `${milliseconds(span.duration_s * 1000)}${state ? ` · ${state}` : ""}`),
    h("span", { class: "track", aria: { hidden: "true" } }, bar),
  );
  return h("div", { class: "row" }, button, opened.has(span.span_id) ? facts(span) : null);
}

function toggle(button, span) {
  const isOpen = opened.delete(span.span_id) ? false : Boolean(opened.add(span.span_id));
  button.setAttribute("aria-expanded", String(isOpen));
  if (isOpen) button.after(facts(span));
  else button.nextElementSibling?.remove();
}

function facts(span) {
  const told = { ...(span.error ? { error: span.error } : {}), ...(span.worker_id ? { worker: span.worker_id } : {}), ...span.attributes };
  if (span.skew_ms) told["clock moved by"] = `${span.skew_ms} ms`;
  const pairs = Object.entries(told).map(([name, value]) => h("div", {}, h("dt", {}, short(name)), h("dd", {}, visible(typeof value === "string" ? value : JSON.stringify(value)))));
  return h("dl", { class: "span-facts" }, pairs);
}

const short = (text) => visible(String(text).length > LONGEST ? `${String(text).slice(0, LONGEST)}…` : text).replaceAll("\n", " ");
