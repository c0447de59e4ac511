// The page as a whole: what is shown and in which order, how far one has come, and how training goes on.

import * as grid from "./grid.js";
import * as picture from "./picture.js";
import {
  NONE, NOT_SURE, answer, ask, changed, divided, element, evidence, has, load, onChange, refresh, state, strange, value, word,
} from "./state.js";

const $ = (id) => document.getElementById(id);
const ONLY = [["divided", "networks disagree"], ["changed", "label changed"], ["outlier", "outlier"]];
const is = { divided, changed, outlier: (place) => value("status", place) === "outlier" };
const POLL_MS = 2000;
let only = new Set(), view = "single", shuffled = null, polling = null;

// What is shown.

function setUpFilters() {
  const every = [...state.facts.ids.keys()];
  const states = [["open", "what has no label"], ["all", "everything"], ["done", "what has a label"],
    ["unsure", "not sure"], ["none", "none of these"]];
  if (every.some(strange)) states.push(["strange", "labels that are no class"]);
  options($("filter-state"), states);
  if (has("suggestion")) {
    const counts = tally(every.map((place) => answer("suggestion", place)).filter((number) => number !== null));
    options($("filter-class"), [["", "all"], ...counts.map(([number, count]) => [String(number), `${word(number)} (${count})`])]);
  } else {
    $("filter-class").parentElement.hidden = true;
    $("view-grid").hidden = true;
  }
  if (has("status")) {
    const counts = tally(every.map((place) => value("status", place)).filter(Boolean));
    options($("filter-status"), [["", "all"], ...counts.map(([name, count]) => [name, `${name} (${count})`])]);
    $("filter-status-label").hidden = false;
  }
  for (const [name, title] of ONLY) {
    const count = every.filter(is[name]).length;
    if (!count) continue; // the run does not know of any
    const button = element("button", "", `${title} (${count})`);
    button.type = "button";
    button.id = `only-${name}`;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      only = new Set(only.has(name) ? [...only].filter((other) => other !== name) : [...only, name]);
      button.setAttribute("aria-pressed", String(only.has(name)));
      apply();
    });
    $("filter-only").append(button);
  }
  for (const id of ["filter-state", "filter-class", "filter-status", "filter-order"]) $(id).addEventListener("change", apply);
  $("filter-reset").addEventListener("click", () => { reset(); apply(); });
  $("show-filters").addEventListener("click", () => {
    $("filters").hidden = !$("filters").hidden;
    $("show-filters").setAttribute("aria-expanded", String(!$("filters").hidden));
  });
}

function reset() {
  for (const id of ["filter-state", "filter-class", "filter-status", "filter-order"]) $(id).selectedIndex = 0;
  only = new Set();
  document.querySelectorAll("#filter-only button").forEach((button) => button.setAttribute("aria-pressed", "false"));
}

function tally(values) {
  const counts = new Map();
  values.forEach((one) => counts.set(one, (counts.get(one) ?? 0) + 1));
  return [...counts].sort((one, other) => other[1] - one[1]);
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([name, title]) => Object.assign(element("option", "", title), { value: name })));
}

function passes(place) {
  const label = state.labels[place];
  const shown = { open: !label, all: true, done: Boolean(label), unsure: label === NOT_SURE, none: label === NONE,
    strange: strange(place) }[$("filter-state").value];
  const [number, status] = [$("filter-class").value, $("filter-status").value];
  return shown && (number === "" || answer("suggestion", place) === Number(number)) &&
    (status === "" || value("status", place) === status) && [...only].every((name) => is[name](place));
}

/** Show what the filters leave. Images that were picked out are no evidence about the rest. */
function apply() {
  const random = $("filter-order").value === "random";
  const whole = $("filter-class").value === "" && $("filter-status").value === "" && !only.size;
  const open = ["open", "all"].includes($("filter-state").value);
  if (random && !shuffled) shuffled = shuffle([...state.facts.ids.keys()]);
  const places = (random ? shuffled : [...state.facts.ids.keys()]).filter(passes);
  $("show-filters").setAttribute("aria-pressed", String(!whole || random || $("filter-state").value !== "open"));
  notice(null);
  if (view === "grid") grid.show(places);
  else picture.show(places, open && whole ? (random ? "random" : "listed") : "chosen", !open);
}

function shuffle(places) {
  for (let last = places.length - 1; last > 0; last -= 1) {
    const other = Math.floor(Math.random() * (last + 1));
    [places[last], places[other]] = [places[other], places[last]];
  }
  return places;
}

function look(name) {
  view = name;
  for (const one of ["single", "grid"]) {
    $(one).hidden = one !== name;
    $(`view-${one}`).setAttribute("aria-pressed", String(one === name));
  }
  picture.setActive(name === "single");
  grid.setActive(name === "grid");
}

// How far one has come.

function progress() {
  const done = state.labels.filter(Boolean).length, unsure = state.labels.filter((label) => label === NOT_SURE).length;
  const none = state.labels.filter((label) => label === NONE).length;
  const parts = [`${done} of ${state.count} have a label`];
  if (unsure) parts.push(`${unsure} not sure`);
  if (none) parts.push(`${none} none of these`);
  $("count").textContent = parts.join(" · ");
  $("progress").firstElementChild.style.width = `${(100 * done) / Math.max(1, state.count)}%`;
  $("progress").setAttribute("aria-valuemax", String(state.count));
  $("progress").setAttribute("aria-valuenow", String(done));
  document.title = `${done} of ${state.count} - Review`;
  if (state.trouble) notice(state.trouble);
}

function notice(text, offer = null) {
  $("notice").hidden = !text;
  $("notice").textContent = text ?? "";
  if (text && offer) {
    const button = element("button", "quiet", offer[0]);
    button.type = "button";
    button.addEventListener("click", offer[1]);
    $("notice").append(" ", button);
  }
}

// How training goes on.

async function finish() {
  const labels = state.labels.filter((label) => state.classes.has(label)).length;
  $("finish-count").textContent = `${labels} ${labels === 1 ? "image has" : "images have"} a class from you. Every label ` +
    "is on disk already, so you may also just close this page.";
  $("finish-evidence").textContent = evidence() ?? "";
  $("finish-evidence").hidden = !evidence();
  $("finish").showModal();
  await training("training");
}

async function training(where, body) {
  try {
    const told = await ask(where, body);
    $("command").textContent = told.command;
    const over = told.started && told.exit !== null;
    $("train").disabled = told.started && !over;
    $("training").hidden = $("training-log").hidden = !told.started;
    if (!told.started) return;
    $("training").textContent = !over
      ? `Training is under way and goes on when this page is closed; ${told.log} has all it says.`
      : told.exit === 0 ? "Training has ended well." : `Training has ended with exit code ${told.exit}; the lines below say why.`;
    $("training-log").textContent = told.lines.join("\n");
    $("training-log").scrollTop = $("training-log").scrollHeight;
    clearTimeout(polling);
    if (!over && $("finish").open) polling = setTimeout(() => training("training"), POLL_MS);
  } catch (error) {
    $("training").hidden = false;
    $("training").textContent = error.message;
  }
}

function setUpFinish() {
  $("show-finish").addEventListener("click", finish);
  $("close").addEventListener("click", () => $("finish").close());
  $("train").addEventListener("click", () => training("training", {}));
  $("copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText($("command").textContent);
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
  });
}

async function begin() {
  try {
    await load();
  } catch (error) {
    notice(error.message);
    return;
  }
  $("run").textContent = state.facts.run;
  setUpFilters();
  setUpFinish();
  picture.start(notice);
  grid.start(notice, (places) => { look("single"); notice(null); picture.show(places, "chosen"); });
  onChange(() => { progress(); picture.redraw(); grid.redraw(); });
  $("view-single").addEventListener("click", (event) => { event.currentTarget.blur(); look("single"); apply(); });
  $("view-grid").addEventListener("click", (event) => { event.currentTarget.blur(); look("grid"); apply(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh().catch((error) => notice(error.message)); });
  look("single");
  progress();
  apply();
  document.body.dataset.ready = "1";
}

begin();
