// One job in full: what went in and came out, its error with what to do, its story, its lines.

import { ask } from "./api.js";
import { $, h, toast, visible } from "./dom.js";
import { bytes, milliseconds, timeOfDay } from "./format.js";
import { words } from "./jobs.js";
import { lineElement } from "./logs.js";
import { state } from "./state.js";
import { drawTrace } from "./traces.js";

const PREVIEW = 100_000;
let open = null;
let seen = "";

export async function openJob(endpoint, id, actions) {
  open = { endpoint, id, actions };
  seen = "";
  await refresh();
  if (open?.id === id && !$("detail").open) $("detail").showModal();
}

export function makeDetail() {
  $("detail").addEventListener("close", () => {
    const row = open && $("jobs").querySelector(`button[data-job="${CSS.escape(open.id)}"]`);
    open = null;
    row?.focus();
  });
  $("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
}

/** Draw it anew when something has happened to it. */
export function updateDetail() {
  if (!open) return;
  const job = state.jobs.get(open.id);
  const lines = state.lines.filter((line) => line.job_id === open.id).length;
  if (job && `${job.status} ${job.attempt} ${lines}` !== seen) refresh();
}

async function refresh() {
  const { endpoint, id, actions } = open;
  const known = state.jobs.get(id);
  seen = known ? `${known.status} ${known.attempt} ${state.lines.filter((line) => line.job_id === id).length}` : "";
  try {
    const job = await ask(`/_/jobs/${encodeURIComponent(endpoint)}/${encodeURIComponent(id)}?preview=${PREVIEW}`);
    if (open?.id !== id) return;
    const at = $("detail").scrollTop;
    const focused = document.activeElement?.dataset?.action;
    const traces = open.trace?.id === id ? open.trace.place : h("div", { class: "trace" });
    open.trace = { id, place: traces };
    $("detail").replaceChildren(...view(job, actions, traces));
    $("detail").scrollTop = at;
    if (focused) $("detail").querySelector(`[data-action="${focused}"]`)?.focus();
    traces.dataset.tries = 0;
    drawTrace(traces, id, isOver(job));
  } catch (error) {
    toast(error.message, "bad");
  }
}

const isOver = (job) => !["IN_QUEUE", "IN_PROGRESS"].includes(job.status);

function view(job, actions, traces) {
  const canRetry = ["FAILED", "TIMED_OUT"].includes(job.status) && job.is_kept;
  const button = (action, text, act, hidden = false) => h("button", { type: "button", data: { action }, hidden, onclick: act }, text);
  return [
    h(
      "header",
      {},
      h("h2", { id: "detail-title" }, h("span", { class: `status ${job.status}` }, words(job.status)), " ", h("span", { class: "mono" }, visible(job.id))),
      h("button", { type: "button", class: "quiet", aria: { label: "Close" }, title: "Close (Esc)", onclick: () => $("detail").close() }, "✕"),
    ),
    h(
      "div",
      { class: "buttons" },
      button("cancel", "Cancel", () => actions.cancel(job), isOver(job)),
      button("retry", "Retry", () => actions.retry(job), !canRetry),
      button("again", "Send again…", () => actions.again(job), !job.is_kept),
      button("curl", "Copy as curl", () => actions.copy(job), !job.is_kept),
    ),
    facts(job),
    job.error ? failure(job.error) : null,
    story(job),
    section("Trace", traces),
    data("Input", job.input_text, job.input_characters, job.is_kept, job.input_bytes),
    isOver(job) || job.output_text !== undefined ? data("Output", job.output_text, job.output_characters, job.is_kept, job.output_bytes) : null,
    section("Logs", job.lines.length ? h("div", { class: "log short" }, job.lines.map(lineElement)) : h("p", { class: "empty" }, "It printed nothing that can be told to be its own.")),
  ].filter(Boolean);
}

function section(title, ...children) {
  return h("section", {}, h("h3", {}, title), ...children);
}

function facts(job) {
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, visible(value)));
  return h(
    "dl",
    { class: "facts" },
    fact("endpoint", job.endpoint),
    fact("worker", job.worker_id ?? "–"),
    fact("attempt", String(job.attempt)),
    fact("queued for", milliseconds(job.delay_ms)),
    fact("ran for", milliseconds(job.execution_ms)),
    fact("cold start", milliseconds(job.cold_start_ms)),
  );
}

function failure(error) {
  const tail = error.details?.log_tail ?? error.details?.traceback;
  const text = Array.isArray(tail) ? tail.join("\n") : tail;
  return h(
    "section",
    { class: "failure" },
    h("h3", {}, visible(`${error.type ?? "Error"} · ${error.code}`)),
    h("p", { class: "message" }, visible(error.message)),
    error.where ? h("p", { class: "mono" }, visible(error.where)) : null,
    error.hint ? h("p", { class: "hint" }, h("b", {}, "What to do: "), visible(error.hint)) : null,
    typeof text === "string" ? h("pre", {}, visible(text)) : null,
  );
}

function story(job) {
  const begin = job.timeline[0].at;
  const end = job.timeline.at(-1).at;
  const span = Math.max(end - begin, 0.001);
  const bar = h("div", { class: "bar", aria: { hidden: "true" } });
  job.timeline.slice(0, -1).forEach((moment, index) => {
    const part = h("i", { class: moment.status });
    part.style.left = `${((moment.at - begin) / span) * 100}%`;
    part.style.width = `${((job.timeline[index + 1].at - moment.at) / span) * 100}%`;
    bar.append(part);
  });
  const moments = job.timeline.map((moment) =>
    h(
      "li",
      {},
      h("time", {}, timeOfDay(moment.at, true)),
      h("span", { class: `status ${moment.status}` }, words(moment.status)),
      h("span", { class: "note" }, visible([`+${milliseconds((moment.at - begin) * 1000)}`, moment.attempt ? `attempt ${moment.attempt}` : "", moment.worker_id ?? "", moment.cold_start_ms ? `cold start ${milliseconds(moment.cold_start_ms)}` : ""].filter(Boolean).join(" · "))),
    ),
  );
  return section("Timeline", bar, h("ol", { class: "story" }, moments));
}

function data(title, text, characters, isKept, size) {
  if (text === undefined) return section(title, h("p", { class: "empty" }, isKept ? "There is none." : "It is not kept any more: the time for which results are kept is over."));
  const note = characters > text.length ? `${bytes(size)}; the first ${text.length.toLocaleString("en")} of ${characters.toLocaleString("en")} characters` : bytes(size);
  return section(title, h("pre", { tabIndex: 0 }, visible(text)), h("p", { class: "note" }, note));
}
