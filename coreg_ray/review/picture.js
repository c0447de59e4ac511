// One picture after the other: shown from what was fetched before, labelled by a key or a click.

import { answers } from "./answers.js";
import { act, choices, closeSearch, few, remember, start as startClasses } from "./classes.js";
import {
  NONE, NOT_SURE, answer, canUndo, element, evidence, give, isClass, reason, spoken, state, strange, undo, word,
} from "./state.js";

const $ = (id) => document.getElementById(id);
const AHEAD = 12, BEHIND = 3, FEW = 4; // pictures kept ready, and how few are too few to wait with the next
const AT_ONCE = 3; // under way, so that labels find a free connection
const PAUSE_MS = 40; // after a picture has come
const LARGEST = 16; // times that a small picture is enlarged
const LONG = 14; // letters of a class's name that need a line of their own
const fetched = new Map(); // place -> its <img>, loaded or loading

let queue = [], at = 0, order = "listed", serial = false, moved = false; // moved: the person went to this picture
let busy = false, active = false, over = true, say = () => {};
let ahead = [], loading = 0, timer = null;

const current = () => queue[at];

/** @param {(text: string|null) => void} notice says something to the person. */
export function start(notice) {
  say = notice;
  startClasses((number) => label(word(number)), accept);
  document.querySelector(".keys").textContent = few()
    ? "Enter takes the suggestion, a key its class. Backspace undoes, arrows move."
    : "Enter takes the suggestion, a number its class, letters search. Backspace undoes, arrows move.";
  $("not-sure").addEventListener("click", pressed(() => label(NOT_SURE)));
  $("none").addEventListener("click", pressed(() => label(NONE)));
  $("undo").addEventListener("click", pressed(back));
  $("previous").addEventListener("click", pressed(() => move(-1)));
  $("next").addEventListener("click", pressed(() => move(1)));
  document.addEventListener("keydown", key);
  new ResizeObserver(fit).observe($("stage"));
}

/**
 * Show these images, from the first without a label on.
 * @param {string} how `listed` or `random` where all that has no label comes up, else `chosen`.
 * @param {boolean} each one after the other, labelled or not.
 */
export function show(places, how, each = false) {
  [queue, order, serial, moved] = [places, how, each, false];
  const open = queue.findIndex((place) => !state.labels[place]);
  at = serial ? 0 : Math.max(0, open);
  draw(!queue.length ? "empty" : open < 0 && !serial ? "done" : null);
}

export function setActive(on) {
  active = on;
  if (on) fit();
}

/** Draw what labels have become, where the picture stays. */
export function redraw() {
  if (!over) drawPanel();
  $("undo").disabled = !canUndo();
  const text = evidence();
  $("evidence").hidden = text === null;
  $("evidence").textContent = text ?? "";
}

function pressed(work) {
  return (event) => {
    if (event.detail > 0) event.currentTarget.blur(); // so that the next Enter is not this button's
    work();
  };
}

async function label(name) {
  const place = current();
  if (busy || over) return;
  await storing(async () => {
    const told = await give([[place, name]], "picture", moved ? "chosen" : order);
    if (place in told.refused) {
      const other = told.refused[place];
      say(`Another page has ${other ? `labelled this picture “${spoken(other)}”` : "taken this label back"} meanwhile. ` +
        "Press again to change that.");
      return;
    }
    say(null);
    remember(name);
    onward();
  });
}

async function back() {
  if (busy || !canUndo()) return;
  await storing(async () => {
    const places = await undo();
    const place = places.find((one) => queue.includes(one));
    if (place !== undefined) at = queue.indexOf(place);
    if (queue.length) draw();
  });
}

async function storing(work) {
  busy = true;
  clearTimeout(timer); // nothing is fetched between a key and its picture
  $("stage").classList.add("busy");
  try {
    await work();
  } catch (error) {
    say(error.message);
  } finally {
    busy = false;
    $("stage").classList.remove("busy");
    fetchSoon();
  }
}

/** To the next image without a label, else to the end. */
function onward() {
  moved = false;
  if (serial) {
    if (at + 1 >= queue.length) return draw("done");
    at += 1;
    return draw();
  }
  for (let step = 1; step < queue.length; step += 1) {
    const other = (at + step) % queue.length;
    if (!state.labels[queue[other]]) {
      at = other;
      return draw();
    }
  }
  return draw("done");
}

function move(step) {
  if (!queue.length || busy) return;
  const to = over ? at : at + step;
  if (to < 0 || to >= queue.length) return;
  [at, moved] = [to, true];
  draw();
}

// Drawing.

/** @param {string|null} end `done` or `empty` where no picture is to be shown. */
function draw(end = null) {
  over = end !== null;
  $("done").hidden = !over;
  $("single").classList.toggle("over", over);
  for (const id of ["frame", "gone", "panel"]) $(id).hidden = over;
  $("place").textContent = "";
  if (over) {
    drawEnd(end);
    redraw();
    return;
  }
  drawPicture();
  closeSearch();
  redraw();
  if (!busy) fetchSoon();
}

function drawEnd(end) {
  const all = state.labels.every(Boolean), line = element("div", "line"), button = element("button", "primary", "Finish");
  const text = all ? "Every picture has a label." : end === "done" ? "That was the last one." : "No picture is left here.";
  button.type = "button";
  button.addEventListener("click", () => $("show-finish").click());
  line.append(button);
  $("done").replaceChildren(element("b", "", text),
    element("span", "", all ? "" : "Filter has the others, if there are any."), line);
}

function picture(place) {
  let img = fetched.get(place);
  if (!img) {
    img = new Image();
    img.alt = state.facts.ids[place];
    img.decoding = "sync";
    loading += 1;
    img.addEventListener("load", () => { arrived(); if (place === current()) fit(); });
    img.addEventListener("error", () => { arrived(); img.dataset.gone = "1"; if (place === current()) drawPicture(); });
    img.src = `image/${place}`;
    fetched.set(place, img);
  }
  return img;
}

function drawPicture() {
  const place = current(), img = picture(place), gone = Boolean(img.dataset.gone);
  $("frame").hidden = gone;
  $("gone").hidden = !gone;
  $("frame").replaceChildren(img);
  fit();
  if (gone) {
    $("gone").querySelector("p").textContent = "";
    reason(place).then((text) => { if (place === current()) $("gone").querySelector("p").textContent = text; });
  }
}

/** As large as the stage allows, in its own proportions. */
function fit() {
  const img = $("frame").firstElementChild, frame = $("frame");
  if (!img?.naturalWidth || !frame.clientWidth) return;
  const scale = Math.min(frame.clientWidth / img.naturalWidth, frame.clientHeight / img.naturalHeight, LARGEST);
  img.style.width = `${Math.floor(img.naturalWidth * scale)}px`;
  img.style.height = `${Math.floor(img.naturalHeight * scale)}px`;
}

/** Fetch what comes next a moment later, or at once where few are left. */
function fetchSoon() {
  clearTimeout(timer);
  if (over) return;
  const near = queue.slice(Math.max(0, at - BEHIND), at + 1);
  ahead = [];
  for (let step = 1; step < queue.length && ahead.length < AHEAD; step += 1) {
    const place = queue[(at + step) % queue.length];
    if (serial || !state.labels[place] || step === 1) ahead.push(place);
  }
  const kept = new Set([...near, ...ahead]);
  for (const place of fetched.keys()) if (!kept.has(place)) fetched.delete(place);
  const ready = ahead.findIndex((place) => !fetched.has(place));
  if (ready >= 0) timer = setTimeout(fetchMore, ready < FEW ? 0 : PAUSE_MS);
}

function fetchMore() {
  if (busy) return;
  for (const place of ahead) {
    if (loading >= AT_ONCE) return;
    picture(place);
  }
}

function arrived() {
  loading -= 1;
  fetchMore();
}

function drawPanel() {
  const place = current(), now = state.labels[place];
  $("place").textContent = `${at + 1} of ${queue.length} · ${state.facts.ids[place]}`;
  drawLabel(place, now);
  $("answers").tBodies[0].replaceChildren(...answers(place));
  const suggested = answer("suggestion", place), offered = choices(place);
  $("choices").classList.toggle("long", offered.some(([, number]) => word(number).length > LONG));
  $("choices").replaceChildren(...offered.map(([shown, number]) => {
    const button = element("button", number === suggested ? "suggested" : "");
    button.type = "button";
    button.title = word(number);
    button.setAttribute("aria-pressed", String(word(number) === now));
    button.append(element("kbd", "", shown), element("span", "", word(number)));
    button.addEventListener("click", pressed(() => label(word(number))));
    return button;
  }));
}

function drawLabel(place, now) {
  $("label-now").hidden = now === "";
  if (now === "") return;
  const odd = strange(place), clear = element("button", "quiet", "Take back");
  clear.type = "button";
  clear.addEventListener("click", pressed(() => storing(async () => {
    await give([[place, ""]], "picture", "chosen");
    draw();
  })));
  const text = odd ? `“${now}” was typed into review.csv and is no class. Choose one.` : `Labelled ${spoken(now)}.`;
  $("label-now").classList.toggle("strange", odd);
  $("label-now").replaceChildren(element("span", "", text), clear);
}

// Keys.

function key(event) {
  if (!active || event.ctrlKey || event.altKey || event.metaKey) {
    if (active && event.ctrlKey && event.key === "z" && event.target !== $("query")) { event.preventDefault(); back(); }
    return;
  }
  if (event.target.closest?.("dialog, select, input, textarea")) return undefined;
  if (event.target.closest?.("button") && (event.key === "Enter" || event.key === " ")) return undefined;
  if (event.repeat && event.key !== "ArrowLeft" && event.key !== "ArrowRight") return undefined;
  const choice = !over ? choices(current()).find(([shown]) => shown === event.key) : undefined;
  if (choice) act(event, () => label(word(choice[1])));
  else if (event.key === "Enter") act(event, accept);
  else if (event.key === NOT_SURE) act(event, () => label(NOT_SURE));
  else if (event.key === NONE) act(event, () => label(NONE));
  else if (event.key === "Backspace") act(event, back);
  else if (event.key === "ArrowLeft") act(event, () => move(-1));
  else if (event.key === "ArrowRight") act(event, () => move(1));
  else if (!few() && (event.key === "/" || /^\p{L}$/u.test(event.key))) {
    if (event.key === "/") event.preventDefault();
    $("query").focus(); // which then gets the letter
  }
  return undefined;
}

function accept() {
  if (over) return;
  const suggested = answer("suggestion", current());
  if (isClass(suggested)) label(word(suggested));
}
