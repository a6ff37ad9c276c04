// The list of jobs: the newest ones live, or what a search on the platform finds.

import { ask } from "./api.js";
import { $, h, keyed, setText, toast, visible } from "./dom.js";
import { ago, milliseconds } from "./format.js";
import { colourOf, now, state } from "./state.js";

const SHOWN = 100;
const STATUSES = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"];
let found = null;
let asked = 0;

export const words = (status) => status.toLowerCase().replace("_", " ");

export function makeJobs(redraw) {
  const select = $("jobs-status");
  select.append(h("option", { value: "" }, "any status"), ...STATUSES.map((status) => h("option", { value: status }, words(status))));
  let timer = 0;
  const changed = () => {
    clearTimeout(timer);
    timer = setTimeout(() => search(redraw), 200);
  };
  $("jobs-search").addEventListener("input", changed);
  select.addEventListener("change", changed);
}

/** Ask the platform, which knows more jobs than this page, and what went in and came out. */
export async function search(redraw) {
  const needle = $("jobs-search").value.trim();
  const status = $("jobs-status").value;
  const turn = ++asked;
  if (!needle && !status) {
    found = null;
    redraw();
    return;
  }
  const query = new URLSearchParams({ search: needle, status, endpoint: state.chosen ?? "", limit: String(SHOWN) });
  try {
    const { jobs } = await ask(`/_/jobs?${query}`);
    if (turn === asked) found = jobs.map((job) => job.id).filter((id) => remember(id, jobs));
  } catch (error) {
    toast(error.message, "bad");
  }
  redraw();
}

function remember(id, jobs) {
  if (!state.jobs.has(id)) state.jobs.set(id, jobs.find((job) => job.id === id));
  return true;
}

export function isSearching() {
  return Boolean($("jobs-search").value.trim() || $("jobs-status").value);
}

function shownJobs() {
  const jobs = found ? found.map((id) => state.jobs.get(id)).filter(Boolean) : [...state.jobs.values()];
  return jobs
    .filter((job) => !state.chosen || job.endpoint === state.chosen)
    .sort((a, b) => b.submitted_at - a.submitted_at)
    .slice(0, SHOWN);
}

export function drawJobs(open) {
  const jobs = shownJobs();
  keyed($("jobs"), jobs, (job) => job.id, (job) => makeRow(job, open), updateRow);
  $("jobs-empty").hidden = jobs.length > 0;
  setText($("jobs-empty"), isSearching() ? "No job fits." : "No jobs yet. Press s to send one.");
}

function makeRow(job, open) {
  const row = h(
    "tr",
    { tabIndex: -1, data: { job: job.id, endpoint: job.endpoint }, onclick: () => open(job.endpoint, job.id) },
    h("td", {}, h("span", { class: "status" })),
    h("td", { class: "id" }, h("button", { type: "button", class: "link", title: visible(job.id), data: { job: job.id } }, visible(job.id.slice(0, job.id.startsWith("sync-") ? 13 : 8)))),
    h("td", { class: "endpoint" }, h("i", { class: "swatch" }), h("span", {}, visible(job.endpoint))),
    h("td", { class: "number" }),
    h("td", { class: "number" }),
    h("td", { class: "when" }),
  );
  return row;
}

function updateRow(row, job) {
  const [status, , endpoint, delay, ran, when] = row.children;
  const cold = job.cold_start_ms === null ? "" : " ❄";
  status.firstChild.className = `status ${job.status}`;
  setText(status.firstChild, words(job.status));
  endpoint.firstChild.style.background = `var(${colourOf(job.endpoint)})`;
  setText(delay, milliseconds(job.delay_ms) + cold);
  delay.title = cold ? `cold start of ${milliseconds(job.cold_start_ms)}` : "";
  setText(ran, milliseconds(job.execution_ms));
  setText(when, job.error ? job.error.message : ago(now() - job.submitted_at) + (job.attempt > 1 ? ` · attempt ${job.attempt}` : ""));
  when.classList.toggle("bad", Boolean(job.error));
  when.title = job.error ? visible(job.error.message) : "";
}

/** Move the focus up or down the list. */
export function step(by) {
  const buttons = [...$("jobs").querySelectorAll("button.link")];
  const place = buttons.indexOf(document.activeElement);
  buttons[Math.max(0, Math.min(buttons.length - 1, place < 0 ? 0 : place + by))]?.focus();
}
