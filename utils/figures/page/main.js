// The state is in the address, so that who gets it sees the same: #pair=3-5&blurred1=41-57&threshold=0.4
function wanted() {
  const asked = new URLSearchParams(location.hash.slice(1)), threshold = parseFloat(asked.get("threshold"));
  const numbers = (name, below) => [...new Set(asked.get(name)?.match(/\d+/g)?.map(Number))].filter((k) => k < below);
  const pair = images.length === 2 ? [0, 1] : numbers("pair", images.length);
  return {
    pair: pair.length === 2 ? pair : null,
    occluded: ["blurred1", "blurred2"].map((name) => numbers(name, regions.length)),
    threshold: threshold >= 0 && threshold <= 1 ? threshold : state.threshold,
  };
}

function remember() {
  const { pair, threshold } = state, told = new URLSearchParams();
  if (pair) told.set("pair", pair.positions.join("-"));
  pair?.occluded.forEach((list, side) => list.length && told.set(`blurred${side + 1}`, list.join("-")));
  if (threshold !== 1 - data.threshold) told.set("threshold", threshold);
  history.replaceState(null, "", `#${told}`);
}

async function show() {
  const { pair, occluded, threshold } = wanted(), last = state.pair?.positions;
  $("page").ariaBusy = "true";
  await Promise.all((pair ?? []).map((k, side) => {
    figures[side].photo.src = images[k].picture;
    return figures[side].photo.decode().catch(() => null); // another pair is asked for meanwhile
  }));
  $("threshold").value = state.threshold = threshold;
  document.body.className = pair ? "pair" : "table";
  if (pair) {
    showPair(pair, occluded);
  } else {
    state.pair = null;
    document.title = `Similarity of ${images.length} images`;
    refreshTable();
  }
  if (location.hash) remember();
  $("page").ariaBusy = "false"; // shown, so that it can have the focus
  if (pair && images.length > 2) $("decision").focus();
  if (!pair && last) cellOf(last).focus();
}

$("threshold").addEventListener("input", ({ target }) => {
  state.threshold = Number(target.value);
  if (state.pair) refresh();
  else refreshTable();
});
$("threshold").addEventListener("change", remember); // when the pointer lets go: browsers limit how often
addEventListener("keydown", ({ key }) => {
  if (key !== "Escape" || !state.pair) return;
  if (state.pair.occluded.flat().length) occlude([[], []]);
  else if (images.length > 2) $("back").click();
});
addEventListener("hashchange", show);

$("network").textContent = data.network;
$("count").textContent = regions.length;
$("missing").append(...data.missing.map((textContent) => make("li", { textContent })));
if (images.length > 2) buildTable();
show();
