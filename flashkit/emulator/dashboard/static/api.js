// Requests to the platform that this page comes from, and its live stream. Nothing is asked of anybody else.

const KEY = "flashkit-key";

export class Refused extends Error {
  constructor(status, report) {
    super(report.message);
    this.status = status;
    this.report = report;
  }
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}`, ...more } : more;
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

async function refusal(response) {
  const report = await response.json().then((body) => body.error, () => null);
  return new Refused(response.status, report ?? { message: `the platform answered ${response.status}` });
}

/** Ask for JSON; a body makes it a POST. */
export async function ask(path, body) {
  const isChange = body !== undefined;
  const response = await fetch(path, {
    method: isChange ? "POST" : "GET",
    headers: headers(isChange ? { "content-type": "application/json" } : {}),
    body: isChange ? JSON.stringify(body) : undefined,
  });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** Call `take(name, data)` for each event of a stream, until it ends. */
export async function follow(path, take, signal) {
  const response = await fetch(path, { headers: headers({ accept: "text/event-stream" }), signal });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) takeEvent(part, take);
  }
}

function takeEvent(text, take) {
  let name = "message";
  let data = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data = line.slice(6);
  }
  if (data) take(name, JSON.parse(data));
}
