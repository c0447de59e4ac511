// What annotator and networks answered about one image, as a small table.

import { answer, element, has, percent, value, word } from "./state.js";

const NAMES = [["suggestion", "Both networks"], ["a", "Network a"], ["b", "Network b"], ["annotator", "Annotator"]];

/** The table's rows; answers other than both networks' are set apart. */
export function answers(place) {
  const rows = [], main = answer("suggestion", place);
  for (const [column, title] of NAMES) {
    if (!has(column)) continue;
    const given = answer(column, place);
    const row = element("tr", column === "suggestion" ? "main" : given === main ? "same" : given !== null ? "other" : "");
    row.append(element("th", "", title), element("td", "", given === null ? "no answer" : word(given)),
      element("td", "", percent(value(`${column}_confidence`, place))));
    rows.push(row);
  }
  const others = (value("candidates", place) ?? []).filter(([number]) => number !== answer("annotator", place));
  if (others.length) {
    rows.push(wide("Candidates", others.map(([number, share]) => `${word(number)} ${percent(share)}`).join(", "), "faint"));
    rows.at(-1).className = "same";
  }
  if (value("status", place)) rows.push(wide("Status", value("status", place)));
  return rows;
}

function wide(title, text, kind = "") {
  const row = element("tr");
  row.append(element("th", "", title), Object.assign(element("td", kind, text), { colSpan: 2 }));
  return row;
}
