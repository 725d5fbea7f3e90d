const figures = [...document.querySelectorAll("figure")].map((figure) => ({
  name: figure.querySelector("bdi"), stage: figure.querySelector(".stage"), canvas: figure.querySelector("canvas"),
  badge: figure.querySelector(".badge"),
}));
const kinds = [...document.querySelectorAll(".evidence")]; // factual, counterfactual

const number = (value, digits = 2) => value.toFixed(digits);
const word = (similar) => (similar ? "similar" : "dissimilar");
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const called = (image) => { // isolated, so that a name written from right to left does not turn the sentence round
  const letters = [...image.name], long = letters.length > 40;
  const name = long ? `${letters.slice(0, 18).join("")}…${letters.slice(-20).join("")}` : image.name;
  return `\u2068${name}\u2069`;
};
const removed = () => state.pair.gone[0].length + state.pair.gone[1].length;
const guess = (gone) => (gone.some((regions) => regions.length > 1) ? "about " : "");

function closenessWithout(gone) {
  return closeness(...state.pair.ends.map((image, side) => occluded(image, gone[side])));
}

// Two numbers by two decimals, or, up to four, as many as tell them apart.
function apart(before, after, about) {
  const digits = [2, 3].find((digits) => number(before, digits) !== number(after, digits)) ?? 4;
  return `${number(before, digits)} → ${about}${number(after, digits)}`;
}

// The similarity before and after; where it is 0 both times, the distances, which still tell them apart.
function change(before, after, about) {
  if (Math.max(before, after) <= 0) return `distance / margin ${apart(1 - before, 1 - after, about)}`;
  return `similarity ${apart(Math.max(before, 0), Math.max(after, 0), about)}`;
}

// Every region that can be pointed at in one image, beside the other: the strongest match of each, and of them all.
function matching(side) {
  const pair = state.pair, [a, b] = [pair.ends[side], pair.ends[1 - side]];
  if (pair.matches[side]) return pair.matches[side];
  const first = windowAt(0, 0), length = PER_SIDE ** 2;
  const found = Array.from({ length }, (_, k) => {
    const common = interactions(a, first + k, b), map = spread(common).map((value) => Math.max(value, 0));
    const windows = common.subarray(first, first + length), best = windows.indexOf(Math.max(...windows));
    return { map, most: largest(map), region: first + best, common: windows[best] };
  });
  const most = Math.max(...found.map((one) => one.most)), common = Math.max(...found.map((one) => one.common));
  return (pair.matches[side] = { first, found, most: most || 1, common });
}

function matchOf(side, region) {
  const { first, found, most, common } = matching(side), one = found[region - first];
  const matches = one.common > 0 && one.common >= data.weakest * common;
  return { map: one.map.map((value) => value / most), region: one.region, matches };
}

function showPair(i, j) {
  const ends = [images[i], images[j]];
  state.pair = { ends, evidence: evidence(...ends), gone: [[], []], matches: {}, pointed: null };
  figures.forEach(({ name, stage }, side) => {
    name.textContent = name.title = ends[side].name;
    stage.style.setProperty("--ratio", ends[side].pixels.width / ends[side].pixels.height);
    stage.setAttribute("aria-label", `Image ${side + 1}: ${ends[side].name}`);
  });
  refresh();
}

// Everything that depends on the state of the pair.
function refresh() {
  const { ends, gone, pointed } = state.pair, before = similarity(ends[0].z, ends[1].z);
  const now = Math.max(closenessWithout(gone), 0);
  $("number").textContent = number(now);
  $("verdict").textContent = isSimilar(now) ? "similar" : "dissimilar";
  const several = guess(gone) && "; about, the effects of several regions being added";
  $("before").textContent = removed() ? `similarity, was ${number(before)}${several}` : "similarity";
  $("is").style.left = `${100 * now}%`;
  $("was").style.left = `${100 * before}%`;
  $("reset").disabled = !removed();
  const signs = isSimilar(before) ? [1, -1] : [-1, 1]; // of the evidence for the decision, and against it
  kinds.forEach((button, kind) => {
    button.textContent = `${kind ? "Counterfactual" : "Factual"}: for “${word(signs[kind] > 0)}”`;
    button.setAttribute("aria-pressed", state.shown === kind);
  });
  document.title = `${capital(word(isSimilar(before)))}, ${number(before)}: ${ends[0].name} – ${ends[1].name}`;
  const match = pointed && matchOf(pointed.side, pointed.region);
  figures.forEach(({ stage, canvas, badge }, side) => {
    const shown = shownOf(state.pair.evidence[side], signs[state.shown], state.shown === 1, ends[side], ends[1 - side]);
    const lit = pointed && pointed.side !== side, strongest = largest(shown);
    paint(canvas, ends[side], lit ? match.map : state.shown === null ? null : shown, lit);
    badge.hidden = pointed || state.shown === null || strongest > FAINT;
    badge.textContent = strongest ? "hardly any" : "no such evidence";
    gone[side].forEach((region) => blurWindow(canvas, ends[side], region));
    stage.querySelectorAll(".window").forEach((frame) => frame.remove());
    gone[side].forEach((region) => outline(stage, ends[side], region, "gone"));
    if (pointed && !lit) outline(stage, ends[side], pointed.region, "here");
    if (lit && match.matches) outline(stage, ends[side], match.region, "there");
  });
  $("readout").textContent = pointed ? sentence(match) : "Point at a region of an image; a click takes it away.";
  $("readout").classList.toggle("idle", !pointed);
}

function sentence(match) {
  const { ends, gone, pointed: { side, region } } = state.pair;
  const back = gone[side].includes(region), then = toggled(side, region);
  const effect = effects(ends[side], ends[1 - side])[region];
  const does = change(closenessWithout(gone), closenessWithout(then), guess(then));
  const first = back ? `With this region of ${called(ends[side])} back: ${does}.`
    : `Without this region of ${called(ends[side])}: ${does}. It speaks for “${word(effect > 0)}”.`;
  const other = called(ends[1 - side]);
  return `${first} ${match.matches ? `What matches it in ${other} is lit.` : `Nothing in ${other} matches it.`}`;
}

function toggled(side, region) {
  return state.pair.gone.map((regions, s) => s !== side ? regions
    : regions.includes(region) ? regions.filter((one) => one !== region) : [...regions, region]);
}

function point(side, region) {
  const { pointed } = state.pair;
  if (pointed?.side === side && pointed.region === region) return;
  if (region === null && pointed?.side !== side) return; // it has gone to the other image already
  state.pair.pointed = region === null ? null : { side, region };
  refresh();
}

function clickAway(side, region) {
  state.pair.gone = toggled(side, region);
  refresh();
}

function bringBack() {
  state.pair.gone = [[], []];
  refresh();
}

figures.forEach(({ stage }, side) => {
  const under = (event) => {
    const frame = stage.getBoundingClientRect();
    const down = (event.clientY - frame.top) / frame.height, across = (event.clientX - frame.left) / frame.width;
    return regionAt(state.pair.ends[side], down, across);
  };
  stage.addEventListener("pointermove", (event) => event.pointerType !== "touch" && point(side, under(event)));
  stage.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && point(side, null));
  stage.addEventListener("click", (event) => { // a finger cannot point: its first tap does, its second one clicks
    const region = under(event), { pointed } = state.pair;
    if (pointed?.side === side && pointed.region === region) clickAway(side, region);
    else point(side, region);
  });
  stage.addEventListener("focus", () => { // by the keyboard
    if (stage.matches(":focus-visible")) point(side, regionAt(state.pair.ends[side], 0.5, 0.5));
  });
  stage.addEventListener("blur", () => point(side, null));
  stage.addEventListener("keydown", (event) => {
    const image = state.pair.ends[side], move = moveOf(event), { pointed } = state.pair;
    const here = pointed?.side === side ? pointed.region : regionAt(image, 0.5, 0.5);
    if (move) {
      const [row, column] = rowAndColumn(here).map((from, axis) => {
        const allowed = choices(image, axis).map(({ k }) => k);
        return Math.min(Math.max(from + move[axis], allowed[0]), allowed.at(-1));
      });
      point(side, windowAt(row, column));
    } else if (event.key === "Enter" || event.key === " ") clickAway(side, here);
    else return;
    event.preventDefault();
  });
});

// Rows down and columns across that an arrow key asks for.
const moveOf = (event) => ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] })[event.key];

kinds.forEach((button, kind) => {
  button.addEventListener("click", () => {
    state.shown = state.shown === kind ? null : kind;
    refresh();
  });
});
const ramp = [0, 0.25, 0.5, 0.75, 1].map((share) => colourOf(EVIDENCE, share));
$("ramp").style.background = `linear-gradient(to right, ${ramp.join(", ")})`;

$("reset").addEventListener("click", bringBack);
