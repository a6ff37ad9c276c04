// What the page knows: everything from the first message, then kept up to date by changes.

const JOBS_KEPT = 600;
const LINES_KEPT = 2000;
const SAMPLES_KEPT = 900;

export const state = {
  isLive: false,
  now: Date.now() / 1000,
  skew: 0,
  clock: { now: 0, speed: 1 },
  problems: {},
  /** What the figures of the last minutes advise. */
  advice: [],
  endpoints: {},
  figures: {},
  columns: [],
  series: {},
  lanes: new Map(),
  jobs: new Map(),
  lines: [],
  linesDropped: 0,
  /** Name of the endpoint that is looked at, or null for all. */
  chosen: null,
  windowSeconds: 300,
};

/** The platform's time of day, also between two messages. */
export const now = () => Date.now() / 1000 + state.skew;

export const endpointNames = () => Object.keys(state.endpoints);

export const shownNames = () => (state.chosen ? [state.chosen] : endpointNames());

/** A colour for each endpoint, by its place. */
export const colourOf = (name) => `--series-${(Math.max(0, endpointNames().indexOf(name)) % 8) + 1}`;

export function takeEverything(message) {
  state.columns = message.columns;
  state.endpoints = message.endpoints;
  state.series = {};
  state.lanes.clear();
  state.jobs.clear();
  state.lines = [];
  if (state.chosen && !(state.chosen in state.endpoints)) state.chosen = null;
  takeChanges(message);
}

export function takeChanges(message) {
  state.skew = message.now - Date.now() / 1000;
  state.clock = message.clock;
  state.problems = message.problems;
  state.advice = message.advice;
  state.figures = message.figures;
  for (const [name, samples] of Object.entries(message.series)) {
    const kept = (state.series[name] ??= []);
    kept.push(...samples);
    if (kept.length > SAMPLES_KEPT) kept.splice(0, kept.length - SAMPLES_KEPT);
  }
  for (const lane of message.lanes) state.lanes.set(lane.worker_id, lane);
  for (const job of message.jobs.reverse()) takeJob(job);
  takeLines(message.lines);
}

function takeJob(job) {
  const isNew = !state.jobs.has(job.id);
  state.jobs.set(job.id, job);
  if (isNew && state.jobs.size > JOBS_KEPT) state.jobs.delete(state.jobs.keys().next().value);
}

function takeLines(lines) {
  state.lines.push(...lines);
  const excess = state.lines.length - LINES_KEPT;
  if (excess > 0) {
    state.lines.splice(0, excess);
    state.linesDropped += excess;
  }
}

/** Forget the lanes of workers that ended before what is shown. */
export function dropOldLanes() {
  const start = now() - 900;
  for (const [id, lane] of state.lanes) {
    const [at, what] = lane.changes.at(-1) ?? [0, ""];
    if (what === "exited" && at < start) state.lanes.delete(id);
  }
}

const SHORTEST_WINDOW = 60;

/** Where the time that is shown begins: what was chosen, or less while the platform is younger. */
export function startOfShown() {
  const first = Math.min(...Object.values(state.series).map((samples) => samples[0]?.[0] ?? Infinity));
  const begin = Math.min(first, now() - SHORTEST_WINDOW);
  return Math.max(begin, now() - state.windowSeconds);
}

/** The samples of each endpoint that is shown, and the place of one column in them. */
export function seriesOf(column) {
  const place = state.columns.indexOf(column);
  return shownNames().map((name) => ({ name, samples: state.series[name] ?? [], place }));
}
