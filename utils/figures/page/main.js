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

$("threshold").addEventListener("input", (event) => {
  state.threshold = Number(event.target.value);
  setThreshold();
  if (state.from) refresh();
  else refreshTable();
});

function setThreshold() {
  $("above").textContent = `similar above ${number(state.threshold)}`;
  $("threshold").setAttribute("aria-valuetext", number(state.threshold));
}

addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !state.from) return;
  if (countOccluded()) showAllAgain();
  else if (images.length > 2) location.hash = "";
});
addEventListener("hashchange", show);

$("threshold").value = state.threshold;
setThreshold();
$("network").textContent = data.network;
$("left-out").hidden = !data.missing.length;
$("missing").append(...data.missing.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
$("regions").textContent = count(images[0]);
if (images.length > 2) buildTable();
show();
