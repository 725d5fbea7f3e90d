const cells = []; // of the table, by row and column

function buildTable() {
  const heads = images.map((image) => make("th", { scope: "col", title: image.name },
    make("img", { src: image.picture, alt: image.name })));
  const rows = images.map((image, i) => {
    cells.push(images.map((other, j) => {
      if (i === j) return null;
      const value = similarity(image.z, other.z), className = value > 0.6 ? "bright" : "";
      const link = make("a", { href: `#${i}-${j}`, textContent: number(value), value, className });
      link.style.setProperty("--colour", colourOf(SIMILARITY, value));
      return link;
    }));
    const named = [make("img", { src: image.picture, alt: "" }), make("bdi", { textContent: image.name })];
    const head = make("th", { scope: "row", title: image.name }, make("div", {}, ...named));
    return make("tr", {}, head, ...cells[i].map((link) => make("td", {}, link ?? "")));
  });
  document.querySelector("table").append(make("thead", {}, make("tr", {}, make("th"), ...heads)), make("tbody", {}, ...rows));
}

function refreshTable() {
  let similar = 0;
  cells.forEach((line, i) => line.forEach((link, j) => {
    if (!link) return;
    similar += isSimilar(link.value) && i < j;
    link.classList.toggle("dissimilar", !isSimilar(link.value));
    link.ariaLabel = `${images[i].name} and ${images[j].name}: ${number(link.value)}, ${word(isSimilar(link.value))}`;
  }));
  const pairs = (images.length * (images.length - 1)) / 2;
  $("count").textContent = `${images.length} images: ${similar} of ${pairs} pairs ${similar === 1 ? "is" : "are"} similar at this threshold.`;
}
