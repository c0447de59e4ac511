for (const head of document.querySelectorAll("table.sortable th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const text = row => row.cells[column].textContent, value = row => parseFloat(text(row).replaceAll(",", ""));
    const numeric = head.classList.contains("n");
    const rows = [...body.rows].sort((one, other) => numeric
      ? (value(one) || 0) - (value(other) || 0) : text(one).localeCompare(text(other)));
    body.append(...(down ? rows.reverse() : rows));
  });
}
