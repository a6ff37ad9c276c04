// The form for a new job, and the questions that the page asks: the key, a step of the clock, help.

import { ask, setKey } from "./api.js";
import { $, h, toast, visible } from "./dom.js";
import { endpointNames, state } from "./state.js";

const SHORTCUTS = [
  ["/", "search jobs"], ["l", "search logs"], ["j / k", "next, previous job"], ["Enter", "open the job"], ["s", "send a job"],
  ["c", "cancel the open job"], ["r", "retry the open job"], ["y", "copy the open job as curl"], ["e", "next endpoint alone"],
  ["0", "all endpoints"], ["f", "follow the logs"], ["a", "advance the clock"], ["t", "light or dark"], ["Esc", "close"], ["?", "this list"],
];

/** An input to begin with: the endpoint's example, or what its schema asks for. */
function firstInput(name) {
  const about = state.endpoints[name];
  if (about?.example !== null && about?.example !== undefined) return about.example;
  const properties = about?.schema?.properties ?? {};
  const blank = { string: "", integer: 0, number: 0, boolean: false, array: [], object: {} };
  return Object.fromEntries(Object.entries(properties).map(([key, value]) => [key, value.default ?? blank[value.type] ?? null]));
}

/** Endpoints that take jobs; load-balanced ones take requests. */
const queueBased = () => endpointNames().filter((name) => !state.endpoints[name].is_load_balanced);

export function openSending(name, input, sent) {
  const dialog = $("sending");
  const select = h("select", { id: "send-endpoint" }, queueBased().map((each) => h("option", { value: each, selected: each === name }, visible(each))));
  const text = h("textarea", { id: "send-input", rows: 14, spellcheck: false, aria: { describedby: "send-problem" } });
  const problem = h("p", { id: "send-problem", class: "bad", role: "alert" });
  const about = h("p", { class: "note" });
  const fill = (value) => {
    text.value = JSON.stringify(value, null, 2);
    about.textContent = visible(state.endpoints[select.value]?.description ?? "");
  };
  select.addEventListener("change", () => fill(firstInput(select.value)));
  fill(input === undefined ? firstInput(select.value) : input);
  const send = async (event) => {
    event?.preventDefault();
    problem.textContent = "";
    let value;
    try {
      value = JSON.parse(text.value);
    } catch (error) {
      problem.textContent = `This is not JSON: ${visible(error.message)}`;
      return;
    }
    try {
      const job = await ask(`/v2/${encodeURIComponent(select.value)}/run`, { input: value });
      dialog.close();
      sent(select.value, job.id);
    } catch (error) {
      problem.textContent = visible([error.message, error.report?.hint].filter(Boolean).join(". "));
    }
  };
  text.addEventListener("keydown", (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && send(event));
  const form = h(
    "form",
    { onsubmit: send },
    h("h2", { id: "sending-title" }, "Send a job"),
    h("label", { htmlFor: "send-endpoint" }, "Endpoint"), select, about,
    h("label", { htmlFor: "send-input" }, "Input, as JSON"), text, problem,
    h("div", { class: "buttons end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close"), h("button", { type: "submit", class: "primary", title: "Ctrl+Enter" }, "Send")),
  );
  dialog.replaceChildren(form);
  if (!dialog.open) dialog.showModal();
  text.focus();
}

/** Ask for the platform's key; resolves when one was given. */
export function askForKey() {
  return new Promise((resolve) => {
    const dialog = $("asking");
    const input = h("input", { type: "password", id: "key", autocomplete: "off", required: true });
    const form = h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          setKey(input.value.trim());
          dialog.close();
          resolve();
        },
      },
      h("h2", { id: "asking-title" }, "This platform has a key"),
      h("label", { htmlFor: "key" }, "Key"), input,
      h("p", { class: "note" }, "It is kept for this tab only, and sent to this platform only."),
      h("div", { class: "buttons end" }, h("button", { type: "submit", class: "primary" }, "Use it")),
    );
    dialog.replaceChildren(form);
    if (!dialog.open) dialog.showModal();
    input.focus();
  });
}

export function openClock() {
  const dialog = $("asking");
  const change = async (body) => {
    try {
      state.clock = await ask("/_/clock", body);
      toast(body.advance ? "The clock was moved on." : `The clock goes ${body.speed} times as fast.`);
      dialog.close();
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  const button = (text, body) => h("button", { type: "button", onclick: () => change(body) }, text);
  dialog.replaceChildren(
    h("h2", { id: "asking-title" }, "Clock"),
    h("p", { class: "note" }, "Times to live, timeouts, idle times and cold starts follow this clock."),
    h("h3", {}, "Advance by"),
    h("div", { class: "buttons" }, button("10 s", { advance: 10 }), button("1 min", { advance: 60 }), button("10 min", { advance: 600 }), button("1 h", { advance: 3600 }), button("1 day", { advance: 86_400 })),
    h("h3", {}, `Speed, now ${state.clock.speed}`),
    h("div", { class: "buttons" }, [1, 10, 60].map((speed) => button(`× ${speed}`, { speed }))),
    h("div", { class: "buttons end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
  );
  dialog.showModal();
}

export function openHelp() {
  const dialog = $("asking");
  dialog.replaceChildren(
    h("h2", { id: "asking-title" }, "Keyboard"),
    h("dl", { class: "keys-help" }, SHORTCUTS.flatMap(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])),
    h("div", { class: "buttons end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
  );
  dialog.showModal();
}
