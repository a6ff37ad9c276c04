// Light or dark: as the system has it, until the person chooses.

const KEY = "flashkit-theme";
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const known = new Map();
let probe = null;

export function startTheme(redraw) {
  const chosen = localStorage.getItem(KEY);
  if (chosen) root.dataset.theme = chosen;
  dark.addEventListener("change", () => changed(redraw));
}

export function switchTheme(redraw) {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem(KEY, root.dataset.theme);
  changed(redraw);
}

function changed(redraw) {
  known.clear();
  redraw();
}

/** The colour that a variable of the style sheet stands for now, as a canvas understands it. */
export function colour(name, alpha = 1) {
  if (!known.has(name)) {
    probe ??= document.body.appendChild(Object.assign(document.createElement("span"), { hidden: true }));
    probe.style.color = `var(${name})`;
    known.set(name, getComputedStyle(probe).color);
  }
  const solid = known.get(name);
  return alpha === 1 ? solid : solid.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
}
