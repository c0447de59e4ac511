// All images that the networks call one class, to be confirmed at once; wrong ones are clicked away first.

import { answer, canUndo, element, give, reason, state, undo, word } from "./state.js";

const $ = (id) => document.getElementById(id);
const TILES = 60, SMALL = 96;
const clicked = new Set(); // places that were clicked away here; they come one by one

let places = [], tiles = [], active = false, busy = false, say = () => {}, later = () => {};

/** @param {(places: number[]) => void} oneByOne shows images one by one. */
export function start(notice, oneByOne) {
  [say, later] = [notice, oneByOne];
  $("grid-class").addEventListener("change", draw);
  $("grid-none").addEventListener("click", () => all(false));
  $("grid-all").addEventListener("click", () => all(true));
  $("grid-confirm").addEventListener("click", confirm);
  $("grid-undo").addEventListener("click", takeBack);
  document.addEventListener("keydown", (event) => {
    if (!active || event.target.closest?.("dialog, select")) return;
    if (event.key === "Enter" && !event.target.closest?.("button")) { event.preventDefault(); confirm(); }
    if (event.key === "Backspace") { event.preventDefault(); takeBack(); }
  });
}

/** Show what is left of these images. */
export function show(from) {
  places = from;
  drawClasses();
  draw();
}

export function setActive(on) {
  active = on;
}

export function redraw() {
  $("grid-undo").disabled = !canUndo();
}

const open = (number) => places.filter(
  (place) => !state.labels[place] && !clicked.has(place) && answer("suggestion", place) === number);

function drawClasses() {
  const counts = new Map();
  for (const place of places) {
    const number = answer("suggestion", place);
    if (number !== null && !state.labels[place] && !clicked.has(place)) counts.set(number, (counts.get(number) ?? 0) + 1);
  }
  const before = $("grid-class").value;
  const sorted = [...counts].sort((one, other) => other[1] - one[1] || one[0] - other[0]);
  $("grid-class").replaceChildren(...sorted.map(([number, count]) => {
    const option = element("option", "", `${word(number)} (${count})`);
    option.value = String(number);
    return option;
  }));
  if (counts.has(Number(before)) && before !== "") $("grid-class").value = before;
}

function draw() {
  const number = $("grid-class").value === "" ? null : Number($("grid-class").value);
  const shown = number === null ? [] : open(number).slice(0, TILES);
  tiles = shown.map(tile);
  $("tiles").replaceChildren(...tiles.map((entry) => entry.button));
  $("tiles").scrollTop = 0;
  $("grid-empty").hidden = shown.length > 0;
  $("grid-empty").textContent = clicked.size
    ? "Nothing is left here but what you clicked away; that comes one by one."
    : "No image with a suggestion is left to label here.";
  $("grid-count").textContent = number === null ? "" : `${shown.length} of ${open(number).length} shown`;
  count();
}

function tile(place) {
  const button = element("button", "tile"), img = new Image(), entry = { place, button, ready: false, kept: true };
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  button.title = state.facts.ids[place];
  button.setAttribute("aria-label", state.facts.ids[place]);
  img.alt = "";
  img.addEventListener("load", () => {
    img.classList.toggle("small", Math.max(img.naturalWidth, img.naturalHeight) <= SMALL);
    entry.ready = true;
    count();
  });
  img.addEventListener("error", async () => {
    [entry.ready, entry.gone] = [true, true];
    keep(entry, false); // nobody confirms what nobody has seen
    count();
    button.append(element("span", "why", await reason(place)));
  });
  img.src = `image/${place}?side=384`;
  button.append(img);
  button.addEventListener("click", (event) => {
    if (event.detail > 0) button.blur();
    if (!entry.gone) keep(entry, !entry.kept);
    count();
  });
  return entry;
}

function keep(entry, kept) {
  entry.kept = kept;
  entry.button.setAttribute("aria-pressed", String(kept));
}

function all(kept) {
  tiles.filter((entry) => !entry.gone).forEach((entry) => keep(entry, kept));
  count();
}

function count() {
  const kept = tiles.filter((entry) => entry.kept).length, name = word(Number($("grid-class").value));
  const waiting = tiles.some((entry) => !entry.ready);
  $("grid-confirm").disabled = !tiles.length || waiting || busy;
  $("grid-confirm").textContent = !tiles.length
    ? "Nothing to confirm"
    : waiting ? "Pictures are coming ..." : kept ? `Confirm ${kept} as ${name}` : "Leave all for later";
  for (const id of ["grid-none", "grid-all"]) $(id).disabled = !tiles.length;
  redraw();
}

async function confirm() {
  if ($("grid-confirm").disabled) return;
  const name = word(Number($("grid-class").value));
  const kept = tiles.filter((entry) => entry.kept).map((entry) => entry.place);
  const away = tiles.filter((entry) => !entry.kept).map((entry) => entry.place);
  await storing(async () => {
    const told = kept.length ? await give(kept.map((place) => [place, name]), "grid", "chosen") : { refused: {} };
    away.forEach((place) => clicked.add(place));
    const others = Object.keys(told.refused).length;
    const parts = [`${kept.length - others} confirmed as ${name}.`];
    if (others) parts.push(`${others} had been labelled on another page meanwhile and stay as they are.`);
    if (away.length) parts.push(`${away.length} clicked away.`);
    say(parts.join(" "), away.length ? ["Label them one by one", () => later(away)] : null);
    drawClasses();
    draw();
  });
}

async function takeBack() {
  if (busy || !canUndo()) return;
  await storing(async () => {
    const back = await undo();
    say(`${back.length} ${back.length === 1 ? "label" : "labels"} taken back.`);
    drawClasses();
    draw();
  });
}

async function storing(work) {
  busy = true;
  count();
  try {
    await work();
  } catch (error) {
    say(error.message);
  } finally {
    busy = false;
    count();
  }
}
