// Classes: a key for each where they are few, numbers for the likely ones where they are many, letters for the rest.

import { answer, element, isClass, state, value, word } from "./state.js";

const $ = (id) => document.getElementById(id);
const NUMBERED = 9, SHOWN_MATCHES = 8;
const recent = []; // classes given here, last first

let plain = [], matches = [], all = 0, marked = 0, chosen = () => {}, accepted = () => {};

/** @param {(number: number) => void} choose takes a class. @param {() => void} accept takes the suggestion. */
export function start(choose, accept) {
  [chosen, accepted] = [choose, accept];
  plain = state.facts.classes.map((name, number) => [name, ...state.facts.names[number]].map(simple));
  $("search").hidden = few();
  $("query").addEventListener("input", search);
  $("query").addEventListener("keydown", searchKey);
  $("query").addEventListener("blur", () => closeSearch());
}

export const few = () => state.facts.classes.length <= 10;

/** Remember a class that was given: it is likely to come again. */
export function remember(name) {
  if (!state.classes.has(name)) return;
  const number = state.classes.get(name);
  recent.splice(0, recent.length, number, ...recent.filter((other) => other !== number));
  recent.length = Math.min(recent.length, NUMBERED);
}

/** The keys of few classes: their own digits, or numbers in their order; ten begin with 0, as zero to nine do. */
function keys() {
  const classes = state.facts.classes;
  if (classes.every((name) => /^\d$/.test(name))) return classes;
  return (classes.length === 10 ? "0123456789" : "123456789").split("").slice(0, classes.length);
}

/** [key, class number] of each class that has a button. */
export function choices(place) {
  if (few()) return keys().map((shown, number) => [shown, number]);
  const likely = ["suggestion", "a", "b", "annotator"].map((column) => answer(column, place)).filter(isClass);
  const candidates = (value("candidates", place) ?? []).map(([number]) => number);
  const distinct = [...new Set([...likely, ...candidates, ...recent])].slice(0, NUMBERED);
  return distinct.map((number, row) => [String(row + 1), number]);
}

/** A text without case, accents and underscores, as people search. */
function simple(text) {
  return text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase().replaceAll("_", " ");
}

function search() {
  const text = simple($("query").value.trim());
  marked = 0;
  if (!text) return closeSearch(false);
  const ranked = [];
  plain.forEach((names, number) => {
    let best = 9;
    for (const name of names) {
      if (name === text) best = Math.min(best, 0);
      else if (name.startsWith(text)) best = Math.min(best, 1);
      else if (name.includes(` ${text}`)) best = Math.min(best, 2);
      else if (name.includes(text)) best = Math.min(best, 3);
    }
    if (best < 9) ranked.push([best, number]);
  });
  ranked.sort((one, other) => one[0] - other[0] || one[1] - other[1]);
  matches = ranked.slice(0, SHOWN_MATCHES).map(([, number]) => number);
  all = ranked.length;
  drawMatches();
  return undefined;
}

function drawMatches() {
  const rows = matches.map((number, row) => {
    const option = element("div");
    option.id = `match-${row}`;
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", String(row === marked));
    if (row === marked) setTimeout(() => option.scrollIntoView({ block: "nearest" }), 0);
    option.append(element("span", "", word(number)), element("small", "", state.facts.names[number].join(", ")));
    option.addEventListener("pointerdown", (event) => { event.preventDefault(); choose(number); });
    return option;
  });
  const more = all - matches.length;
  if (!all) rows.push(element("div", "nothing", "No class has such a name."));
  else if (more > 0) rows.push(element("div", "nothing", `and ${more} more`));
  $("matches").replaceChildren(...rows);
  $("matches").hidden = false;
  $("query").setAttribute("aria-expanded", "true");
  $("query").setAttribute("aria-activedescendant", matches.length ? `match-${marked}` : "");
}

export function closeSearch(clear = true) {
  if (clear) {
    $("query").value = "";
    if (document.activeElement === $("query")) $("query").blur();
  }
  matches = [];
  $("matches").hidden = true;
  $("query").setAttribute("aria-expanded", "false");
}

function choose(number) {
  closeSearch();
  chosen(number);
}

function searchKey(event) {
  const empty = $("query").value === "";
  if (event.key === "Escape" || (empty && event.key === "Backspace")) act(event, () => closeSearch());
  else if (event.key === "Enter") {
    act(event, () => { if (matches.length) choose(matches[marked]); else if (empty) { closeSearch(); accepted(); } });
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && matches.length) {
    act(event, () => {
      marked = (marked + (event.key === "ArrowDown" ? 1 : -1) + matches.length) % matches.length;
      drawMatches();
    });
  }
}

export function act(event, work) {
  event.preventDefault();
  work();
}
