const fields = [...document.querySelectorAll("input.find")];
const named = [...document.querySelectorAll("table.find tbody tr, .gallery figure")].map(part => ({
  part,
  home: part.closest("section"),
  names: (part.cells ? [...part.cells].filter(cell => !cell.classList.contains("n")) : [part.querySelector("figcaption")])
    .map(cell => cell.textContent.toLowerCase()).join("\n"),
}));
function find(text) {
  const wanted = text.trim().toLowerCase();
  for (const { part, names } of named) part.hidden = !names.includes(wanted);
  for (const field of fields) {
    field.value = text;
    const here = named.filter(({ home }) => home === field.closest("section"));
    const shown = here.filter(({ part }) => !part.hidden).length;
    field.parentNode.querySelector("output").textContent = wanted ? `${shown} of ${here.length}` : "";
  }
}
for (const field of fields) field.addEventListener("input", () => find(field.value));
