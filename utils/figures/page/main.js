// The pair that the address asks for (#3-5), the only one there is, or none.
function wanted() {
  const [, i, j] = (location.hash.match(/^#(\d+)-(\d+)$/) ?? []).map(Number);
  if (i !== j && i < images.length && j < images.length) return [i, j];
  return images.length === 2 ? [0, 1] : null;
}

async function show() {
  const pair = wanted(), last = state.from;
  $("page").setAttribute("aria-busy", "true");
  if (pair) {
    await Promise.all(pair.map((k) => open(images[k])));
    if (String(wanted()) !== String(pair)) return; // another one was asked for meanwhile
    showPair(...pair);
  } else {
    refreshTable();
    document.title = `Similarity of ${images.length} images`;
  }
  document.body.classList.toggle("table", !pair);
  $("pair-view").hidden = !pair;
  $("table-view").hidden = Boolean(pair);
  $("back").hidden = !pair || images.length === 2;
  state.from = pair;
  $("page").setAttribute("aria-busy", "false");
  if (pair && images.length > 2) scrollTo(0, 0);
  if (!pair && last) cells[last[0]][last[1]].focus();
}

function setThreshold(value) {
  state.threshold = value;
  $("above").textContent = `similar above ${number(value)}`;
  $("threshold").setAttribute("aria-valuetext", number(value));
  if (state.from) refresh();
  else refreshTable();
}

addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !state.from) return;
  if (countOccluded()) showAllAgain();
  else if (images.length > 2) location.hash = "";
});
addEventListener("hashchange", show);

$("threshold").value = 1 - data.threshold;
setThreshold(1 - data.threshold);
$("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
$("network").textContent = data.network;
$("left-out").hidden = !data.missing.length;
$("missing").append(...data.missing.map((textContent) => make("li", { textContent })));
$("regions").textContent = count(images[0]);
if (images.length > 2) buildTable();
show();
