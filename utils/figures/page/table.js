const table = document.querySelector("table");
const cellOf = (pair) => table.querySelector(`a[href="#pair=${pair.join("-")}"]`);
const picture = (k, alt = "") => make("img", { src: images[k].picture, alt, title: images[k].name });

function makeCell(i, j) {
  const value = similarity(images[i].z, images[j].z), textContent = value.toFixed(2);
  const ariaLabel = `${images[i].name} and ${images[j].name}: ${textContent}`;
  const step = 3 * Math.round(255 * value), colour = SIMILARITY.subarray(step, step + 3);
  // Black or white ink, whichever has more contrast on viridis.
  const style = `background: rgb(${colour}); color: ${value > 0.435 ? "#000" : "#fff"}`;
  return make("a", { href: `#pair=${i}-${j}`, textContent, ariaLabel, style, value, pair: [i, j] });
}

// The table in the chosen order; gaps part the images of different folders.
function buildTable() {
  const byName = $("order").value === "name", order = byName ? [...images.keys()] : data.likeness;
  const folders = order.map((i) => images[i].name.split("/").slice(0, -1).join("/"));
  const gap = order.map((_, k) => (byName && k && folders[k] !== folders[k - 1] ? "gap" : ""));
  const heads = order.map((i, k) => make("th", { scope: "col", className: gap[k] }, picture(i, images[i].name)));
  const rows = order.map((i, k) => make("tr", { className: gap[k] },
    make("th", { scope: "row" }, picture(i), make("bdi", { textContent: images[i].name })),
    ...order.map((j, m) => make("td", { className: gap[m] }, i === j ? "" : makeCell(i, j)))));
  table.style.setProperty("--count", images.length);
  table.replaceChildren(make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...rows));
  refreshTable();
  preview({ target: [...table.querySelectorAll("a")].reduce((a, b) => (b.value > a.value ? b : a)) });
}

function refreshTable() {
  for (const cell of table.querySelectorAll("a")) cell.classList.toggle("similar", isSimilar(cell.value));
  const pairs = (images.length * (images.length - 1)) / 2;
  const similar = table.querySelectorAll(".similar").length / 2, are = similar === 1 ? "is" : "are"; // two cells a pair
  $("similar").textContent = `${images.length} images: ${similar} of ${pairs} pairs ${are} similar at this threshold.`;
  $("above").textContent = `similar above ${state.threshold.toFixed(2)}`;
}

function preview({ target }) {
  if (!target.pair) return;
  const named = ({ name }) => make("figcaption", { textContent: name });
  const both = target.pair.map((k) => make("figure", {}, picture(k), named(images[k])));
  $("preview").replaceChildren(...both, `${target.textContent}, ${word(isSimilar(target.value))}`);
}

for (const kind of ["mouseover", "focusin"]) table.addEventListener(kind, preview);
$("order").addEventListener("change", buildTable);
