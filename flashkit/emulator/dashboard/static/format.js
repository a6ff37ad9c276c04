// Numbers, times and sizes as people read them.

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const minutes = Math.floor(ms / 60_000);
  return minutes < 60 ? `${minutes} min ${Math.round((ms % 60_000) / 1000)} s` : `${(ms / 3_600_000).toFixed(1)} h`;
}

export function ago(seconds) {
  if (seconds < 1.5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

export function count(number) {
  if (number === null || number === undefined) return "–";
  if (number < 10_000) return Math.round(number).toLocaleString("en");
  if (number < 1_000_000) return `${(number / 1000).toFixed(number < 100_000 ? 1 : 0)}k`;
  return `${(number / 1_000_000).toFixed(2)}M`;
}

export function rate(number) {
  return number >= 100 ? count(number) : number >= 10 ? number.toFixed(0) : number.toFixed(1);
}

export function dollars(usd, digits = 2) {
  return usd === null || usd === undefined ? "–" : `$${usd.toFixed(digits)}`;
}

export function bytes(size) {
  if (size < 1024) return `${size} B`;
  if (size < 1024 * 1024) return `${(size / 1024).toFixed(1)} KB`;
  return `${(size / 1024 / 1024).toFixed(1)} MB`;
}

const clockTime = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function timeOfDay(seconds, withMilliseconds = false) {
  const text = clockTime.format(new Date(seconds * 1000));
  return withMilliseconds ? `${text}.${String(Math.floor((seconds % 1) * 1000)).padStart(3, "0")}` : text;
}

export function percentile(values, share) {
  if (!values.length) return null;
  const ordered = [...values].sort((a, b) => a - b);
  return ordered[Math.ceil((share / 100) * ordered.length) - 1];
}
