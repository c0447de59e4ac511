// What this page knows: facts that do not change, labels that do, and the way to the server.
// A label counts when the server has answered that it is on disk.

export const NOT_SURE = "?", NONE = "-";
export const state = { facts: null, count: 0, labels: [], changes: 0, trouble: null, accuracy: null };
const undone = []; // what was given here, last at the end: [[place, label before, label], ...]
const listeners = [];

export const onChange = (listener) => listeners.push(listener);
const tell = () => listeners.forEach((listener) => listener());

/** Load everything; the page is of no use before. */
export async function load() {
  const [facts, told] = await Promise.all([ask("facts"), ask("state")]);
  state.facts = facts;
  state.count = facts.ids.length;
  state.labels = new Array(state.count).fill("");
  state.classes = new Map(facts.classes.map((name, number) => [name, number]));
  take(told);
}

/** What other pages have labelled meanwhile. */
export async function refresh() {
  take(await ask(`state?since=${state.changes}`));
}

/**
 * Store labels; resolves when they are on disk.
 * @param {[number, string][]} pairs place in the list, label.
 * @param {string} how picture, grid or undo. @param {string} order how the picture came up.
 * @returns {Promise<{stored: number[], refused: Object<string, string>}>} refused: another page has labelled these.
 */
export async function give(pairs, how, order) {
  const before = pairs.map(([place]) => state.labels[place]);
  const answer = await ask("labels", {
    labels: Object.fromEntries(pairs),
    before: Object.fromEntries(pairs.map(([place], number) => [place, before[number]])),
    how,
    order,
    since: state.changes,
  });
  const stored = new Set(answer.stored);
  if (how !== "undo" && stored.size) {
    const steps = pairs.map(([place, label], number) => [place, before[number], label]);
    undone.push(steps.filter(([place]) => stored.has(place)));
  }
  Object.entries(answer.refused).forEach(([place, label]) => { state.labels[place] = label; });
  take(answer);
  return answer;
}

export const canUndo = () => undone.length > 0;

/** Take the last labels of this page back, unless another page has changed them; resolves to their places. */
export async function undo() {
  const steps = undone.pop();
  if (!steps) return [];
  const own = steps.filter(([place, , label]) => state.labels[place] === label);
  try {
    if (own.length) await give(own.map(([place, before]) => [place, before]), "undo", "chosen");
  } catch (error) {
    undone.push(steps);
    throw error;
  }
  return steps.map(([place]) => place);
}

/** GET, or POST of JSON; throws an Error whose message is a sentence. */
export async function ask(where, body) {
  const options = body === undefined ? {} : {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" },
  };
  let answer;
  try {
    answer = await fetch(where, options);
  } catch {
    throw new Error("The review command does not answer, so this was not stored. Start it again and open its new address.");
  }
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

/** Why a picture is not there, as the server says it. */
export async function reason(place) {
  try {
    const told = await fetch(`image/${place}`);
    return told.ok ? "The browser cannot show this file." : await told.text();
  } catch {
    return "The review command does not answer.";
  }
}

function take(told) {
  for (const [place, label] of Object.entries(told.labels)) state.labels[place] = label;
  state.changes = Math.max(state.changes, told.changes);
  state.trouble = told.trouble;
  state.accuracy = told.accuracy;
  tell();
}

// What is known of one image. Answers are places in `words`, -1 where there is none.

export const value = (column, place) => state.facts.columns[column]?.[place] ?? null;
export const has = (column) => column in state.facts.columns;
export const answer = (column, place) => {
  const word = value(column, place);
  return word === null || word < 0 ? null : word;
};
export const word = (number) => state.facts.words[number];
export const isClass = (number) => number !== null && number < state.facts.classes.length;
export const divided = (place) => {
  const [a, b] = [answer("a", place), answer("b", place)];
  return a !== null && b !== null && a !== b;
};
export const changed = (place) => {
  const settled = value("changed", place);
  if (settled !== null) return settled;
  const [first, now] = [answer("annotator", place), answer("suggestion", place)];
  return first !== null && now !== null && first !== now;
};
export const strange = (place) => {
  const label = state.labels[place];
  return label !== "" && label !== NOT_SURE && label !== NONE && !state.classes.has(label);
};
export const spoken = (label) => (label === NOT_SURE ? "not sure" : label === NONE ? "none of these" : label);
export const percent = (share) => (share === null ? "" : `${(100 * share).toFixed(0)} %`);

/** What the reviewed images say of the rest, as sentences; null while they are too few. */
export function evidence() {
  const seen = state.accuracy;
  if (!seen) return null;
  const range = `${(100 * seen.low).toFixed(1)} to ${(100 * seen.high).toFixed(1)} %`;
  if (seen.order === "random") {
    return `Of ${seen.count} images that came up at random, the networks' own label was right for ${seen.right}. ` +
      `For those of this list that are left, that allows an accuracy of ${range} (95 % interval).`;
  }
  return `Of ${seen.count} reviewed images, the networks' own label was right for ${seen.right}: ${range} ` +
    "(95 % interval). They are the ones that the networks doubt most, so the rest should be better than that. An interval " +
    "that holds for the rest of this list comes from images at random (Filter, Order).";
}

export function element(name, kind = "", text = null) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== null) made.textContent = text;
  return made;
}
