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
      Object.assign(link, { href: `#${i}-${j}`, textContent: number(value), value });
      link.style.setProperty("--colour", colourOf(SIMILARITY, value));
      link.classList.toggle("bright", value > 0.6);
      cell.append(link);
      return link;
    }));
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
