const cells = []; // of the table, by row and column

function buildTable() {
  const table = document.querySelector("table"), head = table.createTHead().insertRow(), body = table.createTBody();
  head.append(document.createElement("th"));
  images.forEach((image, i) => {
    const row = body.insertRow();
    head.append(heading(image, "col", false));
    row.append(heading(image, "row", true));
    cells.push(images.map((other, j) => {
      const cell = row.insertCell();
      if (i === j) return null;
      const link = document.createElement("a"), value = similarity(image.z, other.z);
      Object.assign(link, { href: `#${i}-${j}`, textContent: number(value), value, tabIndex: -1 });
      link.style.setProperty("--colour", colourOf(SIMILARITY, value));
      link.classList.toggle("bright", value > 0.6);
      cell.append(link);
      return link;
    }));
  });
  cells[0][1].tabIndex = 0;
  table.addEventListener("keydown", moveInTable);
  table.addEventListener("focusin", (event) => {
    cells.flat().forEach((link) => link && (link.tabIndex = link === event.target ? 0 : -1));
  });
}

function heading(image, scope, named) {
  const [cell, inside, picture, name] = ["th", "div", "img", "bdi"].map((tag) => document.createElement(tag));
  Object.assign(picture, { src: image.source, alt: named ? "" : image.name });
  inside.append(picture);
  name.textContent = cell.title = image.name;
  if (named) inside.append(name);
  cell.scope = scope;
  cell.append(inside);
  return cell;
}

function moveInTable(event) {
  const move = moveOf(event), row = cells.findIndex((line) => line.includes(event.target));
  if (!move || row < 0) return;
  event.preventDefault();
  let [i, j] = [row + move[0], cells[row].indexOf(event.target) + move[1]];
  if (i === j) [i, j] = [i + move[0], j + move[1]]; // over the diagonal
  cells[i]?.[j]?.focus();
}

function refreshTable() {
  let similar = 0;
  cells.forEach((line, i) => line.forEach((link, j) => {
    if (!link) return;
    similar += isSimilar(link.value) && i < j;
    link.classList.toggle("dissimilar", !isSimilar(link.value));
    const decision = word(isSimilar(link.value));
    link.setAttribute("aria-label", `${images[i].name} and ${images[j].name}: ${number(link.value)}, ${decision}`);
  }));
  const pairs = (images.length * (images.length - 1)) / 2;
  $("count").textContent = `${images.length} images: ${similar} of ${pairs} pairs ${similar === 1 ? "is" : "are"} similar at this threshold.`;
}
