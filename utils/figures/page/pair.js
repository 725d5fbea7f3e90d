const figures = [...document.querySelectorAll("figure")].map((figure) => ({
  name: figure.querySelector("bdi"), stage: figure.querySelector(".stage"), canvas: figure.querySelector("canvas"),
  badge: figure.querySelector(".badge"),
}));
const mapButtons = [...document.querySelectorAll(".evidence")]; // factual, counterfactual

const number = (value, digits = 2) => value.toFixed(digits);
const word = (similar) => (similar ? "similar" : "dissimilar");
const capital = (text) => text[0].toUpperCase() + text.slice(1);
// Isolated, so that a name written from right to left does not turn the sentence round.
const called = (image) => `\u2068${image.name}\u2069`;
const countOccluded = () => state.pair.occluded[0].length + state.pair.occluded[1].length;

function closenessWith(occluded) {
  return closeness(...state.pair.both.map((image, side) => embeddingWith(image, occluded[side])));
}

// The similarity before and after, with two decimals, or with as many, up to four, as make them differ; where it is 0
// both times, the distances, which still tell them apart.
function change(before, after) {
  const beyond = Math.max(before, after) <= 0;
  const both = [before, after].map((value) => (beyond ? 1 - value : Math.max(value, 0)));
  const digits = [2, 3].find((digits) => number(both[0], digits) !== number(both[1], digits)) ?? 4;
  return `${beyond ? "distance / margin" : "similarity"} ${both.map((value) => number(value, digits)).join(" → ")}`;
}

// What of the other image matches a region: a map, beside those of all regions that can be pointed at, and the window
// that matches best, if it does.
function matchOf(side, region) {
  const a = state.pair.both[side], b = state.pair.both[1 - side];
  const found = Array.from({ length: PER_SIDE ** 2 }, (_, k) => {
    const common = interactions(a, FIRST_WINDOW + k, b), map = spread(common).map((value) => Math.max(value, 0));
    const windows = common.subarray(FIRST_WINDOW), best = windows.indexOf(Math.max(...windows));
    return { map, most: largest(map), region: FIRST_WINDOW + best, common: windows[best] };
  });
  const [most, common] = ["most", "common"].map((name) => Math.max(...found.map((one) => one[name])));
  const one = found[region - FIRST_WINDOW], matches = one.common > 0 && one.common >= data.weakest * common;
  return { map: one.map.map((value) => value / (most || 1)), region: one.region, matches };
}

function showPair(i, j) {
  const both = [images[i], images[j]];
  state.pair = { both, evidence: evidence(...both), occluded: [[], []], pointed: null };
  figures.forEach(({ name, stage }, side) => {
    name.textContent = name.title = both[side].name;
    stage.style.setProperty("--ratio", both[side].pixels.width / both[side].pixels.height);
    stage.setAttribute("aria-label", `Image ${side + 1}: ${both[side].name}`);
  });
  refresh();
}

// Everything that depends on the state of the pair.
function refresh() {
  const { both, occluded, pointed } = state.pair, before = similarity(both[0].z, both[1].z);
  const now = Math.max(closenessWith(occluded), 0);
  $("number").textContent = number(now);
  $("verdict").textContent = isSimilar(now) ? "similar" : "dissimilar";
  const several = occluded.some((regions) => regions.length > 1) ? "; about, as the effects of regions are added" : "";
  $("before").textContent = countOccluded() ? `similarity, was ${number(before)}${several}` : "similarity";
  $("is").style.left = `${100 * now}%`;
  $("was").style.left = `${100 * before}%`;
  $("reset").disabled = !countOccluded();
  const signs = isSimilar(before) ? [1, -1] : [-1, 1]; // of the evidence for the decision, and against it
  mapButtons.forEach((button, map) => {
    button.textContent = `${map ? "Counterfactual" : "Factual"}: for “${word(signs[map] > 0)}”`;
    button.setAttribute("aria-pressed", state.shown === map);
  });
  document.title = `${capital(word(isSimilar(before)))}, ${number(before)}: ${both[0].name} – ${both[1].name}`;
  const match = pointed && matchOf(pointed.side, pointed.region);
  figures.forEach(({ stage, canvas, badge }, side) => {
    const shown = shownOf(state.pair.evidence[side], signs[state.shown], state.shown === 1, both[side], both[1 - side]);
    const lit = pointed && pointed.side !== side, strongest = largest(shown);
    paint(canvas, both[side], lit ? match.map : state.shown === null ? null : shown, lit);
    badge.hidden = pointed || state.shown === null || strongest > FAINT;
    badge.textContent = strongest ? "hardly any" : "no such evidence";
    occluded[side].forEach((region) => blurWindow(canvas, both[side], region));
    stage.querySelectorAll(".window").forEach((frame) => frame.remove());
    occluded[side].forEach((region) => outline(stage, both[side], region, "occluded"));
    if (pointed && !lit) outline(stage, both[side], pointed.region, "here");
    if (lit && match.matches) outline(stage, both[side], match.region, "there");
  });
  $("readout").textContent = pointed ? sentence(match) : "Point at a region of an image; a click blurs it.";
  $("readout").classList.toggle("idle", !pointed);
}

function sentence(match) {
  const { both, occluded, pointed: { side, region } } = state.pair;
  const back = occluded[side].includes(region), then = toggled(side, region);
  const effect = effects(both[side], both[1 - side])[region];
  const does = change(closenessWith(occluded), closenessWith(then));
  const first = back ? `With this region of ${called(both[side])} shown again: ${does}.`
    : `With this region of ${called(both[side])} blurred: ${does}. It speaks for “${word(effect > 0)}”.`;
  const other = called(both[1 - side]);
  return `${first} ${match.matches ? `What matches it in ${other} is lit.` : `Nothing in ${other} matches it.`}`;
}

function toggled(side, region) {
  return state.pair.occluded.map((regions, s) => s !== side ? regions
    : regions.includes(region) ? regions.filter((one) => one !== region) : [...regions, region]);
}

function point(side, region) {
  const { pointed } = state.pair;
  if (pointed?.side === side && pointed.region === region) return;
  if (region === null && pointed?.side !== side) return; // it has moved to the other image already
  state.pair.pointed = region === null ? null : { side, region };
  refresh();
}

function occlude(occluded) {
  state.pair.occluded = occluded;
  refresh();
}

const showAllAgain = () => occlude([[], []]);

figures.forEach(({ stage }, side) => {
  const under = (event) => {
    const frame = stage.getBoundingClientRect();
    const down = (event.clientY - frame.top) / frame.height, across = (event.clientX - frame.left) / frame.width;
    return regionAt(state.pair.both[side], down, across);
  };
  stage.addEventListener("pointermove", (event) => event.pointerType !== "touch" && point(side, under(event)));
  stage.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && point(side, null));
  stage.addEventListener("click", (event) => { // a finger cannot point: its first tap does, its second one clicks
    const region = under(event), { pointed } = state.pair;
    if (pointed?.side === side && pointed.region === region) occlude(toggled(side, region));
    else point(side, region);
  });
  stage.addEventListener("focus", () => { // by the keyboard
    if (stage.matches(":focus-visible")) point(side, regionAt(state.pair.both[side], 0.5, 0.5));
  });
  stage.addEventListener("blur", () => point(side, null));
  stage.addEventListener("keydown", (event) => {
    const image = state.pair.both[side], move = moveOf(event), { pointed } = state.pair;
    const here = pointed?.side === side ? pointed.region : regionAt(image, 0.5, 0.5);
    if (move) {
      const [row, column] = middle(image, here).map((from, axis) => from + (move[axis] * data.size[axis]) / PER_SIDE);
      point(side, windowAt(image, row, column));
    } else if (event.key === "Enter" || event.key === " ") occlude(toggled(side, here));
    else return;
    event.preventDefault();
  });
});

// Rows down and columns across that an arrow key asks for.
const moveOf = (event) => ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] })[event.key];

mapButtons.forEach((button, map) => {
  button.addEventListener("click", () => {
    state.shown = state.shown === map ? null : map;
    refresh();
  });
});
const ramp = [0, 0.25, 0.5, 0.75, 1].map((share) => colourOf(EVIDENCE, share));
$("ramp").style.background = `linear-gradient(to right, ${ramp.join(", ")})`;

$("reset").addEventListener("click", showAllAgain);
