const taken = new Map();
for (const drawn of document.querySelectorAll("figure svg")) {
  const title = drawn.getElementsByTagName("dc:title")[0]?.textContent || "figure";
  const plain = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "figure";
  const count = (taken.get(plain) || 0) + 1;
  taken.set(plain, count);
  const link = document.createElement("a");
  link.className = "save";
  link.textContent = "save as SVG";
  link.download = `${plain}${count > 1 ? `-${count}` : ""}.svg`;
  link.href = "#";
  link.addEventListener("click", () => {
    const copy = drawn.cloneNode(true);
    copy.querySelector("metadata")?.remove();
    copy.style.color = "#1d2129";  // what the page's own colour stands for on paper
    copy.style.background = "#fff";
    const text = new XMLSerializer().serializeToString(copy);
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });
  drawn.after(link);
}
