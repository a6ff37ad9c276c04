// Puts the page together: the stream comes in, what it changes is drawn, keys and buttons act.

import { ask, follow } from "./api.js";
import { drawCharts, forgetCharts, makeWindows } from "./charts.js";
import { makeDetail, openJob, updateDetail } from "./detail.js";
import { $, h, keyed, setText, toast, visible } from "./dom.js";
import { drawEndpoints } from "./endpoints.js";
import { drawJobs, makeJobs, search, step } from "./jobs.js";
import { drawLanes, makeLegend } from "./lanes.js";
import { drawLogs, makeLogs, toggleFollowing } from "./logs.js";
import { askForKey, openClock, openHelp, openSending } from "./sending.js";
import { dropOldLanes, endpointNames, state, takeChanges, takeEverything } from "./state.js";
import { startTheme, switchTheme } from "./theme.js";
import { drawTiles } from "./tiles.js";

const RETRY_MS = 1000;
let isDrawing = false;
let openId = null;

/** Do something that the platform may refuse, and say how it went. */
async function attempt(doing, done) {
  try {
    const result = await doing();
    if (done) toast(done);
    return result;
  } catch (error) {
    toast([error.message, error.report?.hint].filter(Boolean).join(". "), "bad");
    return null;
  }
}

const jobPath = (job, action) => `/v2/${encodeURIComponent(job.endpoint)}/${action}/${encodeURIComponent(job.id)}`;

const actions = {
  choose(name) {
    state.chosen = state.chosen === name ? null : name;
    search(redraw);
  },
  send: (name) => openSending(name, undefined, sent),
  restart: (name) => attempt(() => ask(`/_/endpoints/${encodeURIComponent(name)}/restart`, {}), `${name} restarts; running jobs finish first.`),
  cold: (name) => attempt(() => ask(`/_/endpoints/${encodeURIComponent(name)}/cold`, {}), `All workers of ${name} are gone; the next job starts one.`),
  cancel: (job) => attempt(() => ask(jobPath(job, "cancel"), {}), "The job was cancelled."),
  retry: (job) => attempt(() => ask(jobPath(job, "retry"), {}), "The job waits again."),
  async again(job) {
    const whole = await attempt(() => wholeJob(job));
    if (whole) openSending(job.endpoint, whole.input, sent);
  },
  async copy(job) {
    const whole = await attempt(() => wholeJob(job));
    if (!whole) return;
    const quoted = JSON.stringify({ input: whole.input }).replaceAll("'", "'\\''");
    const url = `${location.origin}/v2/${job.endpoint}/run`;
    await attempt(() => navigator.clipboard.writeText(`curl -sS ${url} -H 'content-type: application/json' -d '${quoted}'`), "Copied.");
  },
};

const wholeJob = (job) => ask(`/_/jobs/${encodeURIComponent(job.endpoint)}/${encodeURIComponent(job.id)}`);

const actOnWorker = (id, action) => attempt(() => ask(`/_/workers/${encodeURIComponent(id)}/${action}`, {}), `${action}: ${id}`);

function show(endpoint, id) {
  openId = { endpoint, id };
  return attempt(() => openJob(endpoint, id, actions));
}

function sent(endpoint, id) {
  toast("Sent.");
  show(endpoint, id);
}

function draw() {
  isDrawing = false;
  if (document.hidden) return;
  dropOldLanes();
  drawProblems();
  drawAdvice();
  drawTiles();
  drawEndpoints(actions);
  drawCharts();
  drawLanes(actOnWorker);
  drawJobs(show);
  drawLogs();
  updateDetail();
  $("clock").hidden = !state.isLive;
  $("clock").textContent = state.clock.speed === 1 ? "clock" : `clock × ${state.clock.speed}`;
}

function redraw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(draw);
}

function redrawAnew() {
  forgetCharts();
  redraw();
}

function drawProblems() {
  const texts = Object.entries(state.problems).map(([file, report]) =>
    h("div", { class: "problem" }, h("b", {}, visible(file)), " ", visible(report.message), report.where ? h("span", { class: "mono" }, ` ${visible(report.where)}`) : null, report.hint ? h("span", { class: "hint" }, ` ${visible(report.hint)}`) : null),
  );
  $("problems").replaceChildren(...texts);
}

function drawAdvice() {
  keyed(
    $("advice"),
    state.advice.filter((each) => !state.chosen || each.endpoint === state.chosen),
    (each) => `${each.topic} ${each.endpoint}`,
    () => h("div", { class: "advice" }, h("b"), h("span"), h("span", { class: "hint" })),
    (node, each) => {
      setText(node.children[0], visible(each.endpoint));
      setText(node.children[1], ` ${visible(each.figure)}.`);
      setText(node.children[2], ` ${visible(each.setting)}`);
    },
  );
}

function say(text, kind) {
  state.isLive = kind === "good";
  $("link").className = `pill ${kind}`;
  if ($("link").textContent !== text) $("link").textContent = text;
}

async function stayConnected() {
  for (;;) {
    try {
      await follow("/_/metrics", take);
      say("platform stopped", "bad");
    } catch (error) {
      if (error.status === 401) {
        say("needs a key", "bad");
        await askForKey();
        continue;
      }
      say("no connection", "bad");
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

function take(name, message) {
  say("live", "good");
  if (name === "all") takeEverything(message);
  else takeChanges(message);
  redraw();
}

function nextEndpoint() {
  const names = endpointNames();
  const place = names.indexOf(state.chosen) + 1;
  state.chosen = names[place] ?? null;
  search(redraw);
}

function inDetail(action) {
  const button = $("detail").open && $("detail").querySelector(`[data-action="${action}"]`);
  if (button && !button.hidden) button.click();
}

const KEYS = {
  "/": () => $("jobs-search").focus(),
  l: () => $("logs-search").focus(),
  j: () => step(1),
  k: () => step(-1),
  s: () => openSending(state.chosen ?? undefined, undefined, sent),
  e: nextEndpoint,
  0: () => actions.choose(state.chosen),
  f: toggleFollowing,
  a: openClock,
  t: () => switchTheme(redrawAnew),
  "?": openHelp,
};
const DETAIL_KEYS = { c: "cancel", r: "retry", y: "curl" };

function isTyping(target) {
  return target.matches("input, textarea, select");
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && isTyping(event.target)) event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if ($("detail").open && event.key in DETAIL_KEYS) inDetail(DETAIL_KEYS[event.key]);
  else if (!document.querySelector("dialog[open]") && event.key in KEYS) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

$("send").addEventListener("click", KEYS.s);
$("theme").addEventListener("click", KEYS.t);
$("help").addEventListener("click", openHelp);
$("clock").addEventListener("click", openClock);
$("all").addEventListener("click", KEYS[0]);
document.addEventListener("visibilitychange", redraw);
addEventListener("resize", redraw);
startTheme(redrawAnew);
makeWindows(redraw);
makeLegend();
makeJobs(redraw);
makeLogs();
makeDetail();
setInterval(redraw, 1000);
stayConnected();
