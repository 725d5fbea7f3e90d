const state = { threshold: 1 - data.threshold, pair: null };
const figures = [...document.querySelectorAll("#pair figure")].map((figure) => {
  const [name, stage, photo, map, badge] = figure.querySelectorAll("bdi, .stage, img, canvas, .badge");
  return { name, stage, photo, map, badge };
});
const choices = document.getElementsByName("map"); // factual, counterfactual, none

const isSimilar = (value) => value > state.threshold;
const word = (similar) => (similar ? "similar" : "dissimilar");

function closenessWith(occluded) {
  return closeness(...state.pair.both.map((image, side) => embeddingWith(image, occluded[side])));
}

// Two numbers with two decimals, or with as many, up to four, as tell them apart.
function apart(...both) {
  const digits = [2, 3].find((digits) => both[0].toFixed(digits) !== both[1].toFixed(digits)) ?? 4;
  return both.map((value) => value.toFixed(digits));
}

// The similarity before and after; where it is 0 both times, the distances, which still tell them apart.
function change(before, after) {
  if (Math.max(before, after) <= 0) return `distance / margin ${apart(1 - before, 1 - after).join(" → ")}`;
  return `similarity ${apart(Math.max(before, 0), Math.max(after, 0)).join(" → ")}`;
}

function showPair(positions, occluded) {
  const both = positions.map((k) => images[k]), strongest = bestMatch(...both);
  state.pair = { positions, both, evidence: evidence(...both), strongest, occluded, pointed: null };
  figures.forEach(({ name, stage, photo }, side) => {
    name.textContent = name.title = stage.ariaLabel = both[side].name;
    stage.style.setProperty("--ratio", photo.naturalWidth / photo.naturalHeight);
  });
  refresh();
}

// Everything that depends on the state of the pair.
function refresh() {
  const { both, occluded } = state.pair, was = similarity(both[0].z, both[1].z);
  const now = Math.max(closenessWith(occluded), 0), [shown, limit] = apart(now, state.threshold);
  const before = occluded.flat().length ? `, was ${apart(was, now)[0]}` : "";
  const estimated = occluded.some((list) => list.length > 1) ? "estimated " : ""; // as effects are added
  $("number").textContent = shown;
  $("verdict").textContent = word(isSimilar(now));
  $("above").textContent = `similar above ${limit}`;
  $("before").textContent = `${estimated}similarity${before}`;
  $("reset").hidden = !before;
  $("mark").style.left = `${100 * now}%`;
  document.title = `${shown}, ${word(isSimilar(now))}: ${both[0].name} – ${both[1].name}`;
  const against = choices[1].checked, signs = isSimilar(was) ? [1, -1] : [-1, 1]; // for the decision, and against it
  signs.forEach((sign, k) => (choices[k].nextElementSibling.textContent = word(sign > 0)));
  figures.forEach(({ photo, map, badge }, side) => {
    const laid = shownOf(state.pair.evidence[side], signs[Number(against)], against, both[side], both[1 - side]);
    const strongest = Math.max(...laid.map), faint = strongest > FAINT ? "" : "hardly any";
    paintMap(map, photo, both[side].box, laid);
    badge.textContent = strongest > laid.least ? faint : "no such evidence";
  });
  showMatch();
}

// The regions outlined in image 1 and image 2: the one pointed at with its partner, if it has one, or the best match.
function matched() {
  const { both, pointed, strongest } = state.pair;
  if (!pointed) return strongest.strength > 0 ? strongest.regions : [];
  const { strength, regions: [here, there] } = partnerOf(both[pointed.side], pointed.region, both[1 - pointed.side]);
  const found = strength > 0 && strength >= data.weakest * strongest.strength ? [here, there] : [here, undefined];
  return pointed.side ? found.reverse() : found;
}

function showMatch() {
  const { both, occluded, pointed } = state.pair, match = matched();
  figures.forEach(({ stage }, side) => {
    stage.querySelectorAll(".window").forEach((frame) => frame.remove());
    for (const region of occluded[side]) outline(stage, both[side], region, "occluded");
    if (match[side] !== undefined) outline(stage, both[side], match[side], "matched");
    stage.classList.toggle("lit", pointed?.side === 1 - side && match[side] !== undefined);
  });
  joinMatch();
  const strongest = match.length ? "The two regions that match best are joined." : "No regions match.";
  $("readout").textContent = pointed ? sentence(match) : strongest;
}

function outline(stage, { box: [top, bottom, left, right] }, region, style) {
  const [t, b, l, r] = regions[region], height = bottom - top, width = right - left;
  const sides = [(t - top) / height, (right - r) / width, (bottom - b) / height, (l - left) / width];
  const inset = sides.map((share) => `${100 * within(share, 0, 1)}%`).join(" "); // top, right, bottom, left
  stage.append(make("div", { className: `window ${style}`, style: `inset: ${inset}` }));
}

// A line between the outlined regions, from edge to edge.
function joinMatch() {
  const nodes = [...document.querySelectorAll("#pair, .matched")];
  const [frame, a, b] = nodes.map((node) => node.getBoundingClientRect());
  if (!b) return $("line").setAttribute("d", "");
  const beside = b.left > a.right;
  const from = beside ? [a.right, (a.top + a.bottom) / 2] : [(a.left + a.right) / 2, a.bottom];
  const to = beside ? [b.left, (b.top + b.bottom) / 2] : [(b.left + b.right) / 2, b.top];
  const [start, end] = [from, to].map(([x, y]) => `${x - frame.x} ${y - frame.y}`);
  $("line").setAttribute("d", `M ${start} L ${end}`);
}

function sentence(match) {
  const { occluded, pointed: { side, region } } = state.pair, hidden = occluded[side].includes(region);
  const [before, after] = [occluded, toggled(side, region)].map(closenessWith);
  const speaks = word(hidden === after > before); // beside what is blurred already
  const partner = match[1 - side] === undefined ? "Nothing in the other image matches it." : "Its partner is lit.";
  return `With this region ${hidden ? "shown again" : "blurred"}: ${change(before, after)}. It speaks for “${speaks}”. ${partner}`;
}

function toggled(side, region) {
  return state.pair.occluded.map((list, s) => s !== side ? list
    : list.includes(region) ? list.filter((one) => one !== region) : [...list, region]);
}

function point(side, region) {
  const pointed = state.pair?.pointed; // without a pair, the pointer leaves an image that went with it
  if (pointed?.side === side && pointed.region === region) return;
  if (region === null && pointed?.side !== side) return; // it has moved to the other image already
  state.pair.pointed = region === null ? null : { side, region };
  showMatch();
}

function occlude(occluded) {
  state.pair.occluded = occluded;
  refresh();
  remember();
}

figures.forEach(({ stage }, side) => {
  const under = ({ offsetX, offsetY }) => {
    const { box: [top, bottom, left, right] } = state.pair.both[side];
    const down = offsetY / stage.clientHeight, across = offsetX / stage.clientWidth;
    return windowAt(state.pair.both[side], top + down * (bottom - top), left + across * (right - left));
  };
  const pointed = () => (state.pair.pointed?.side === side ? state.pair.pointed.region : null);
  const here = () => pointed() ?? state.pair.strongest.regions[side];
  stage.addEventListener("pointermove", (event) => event.pointerType !== "touch" && point(side, under(event)));
  stage.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && point(side, null));
  stage.addEventListener("click", (event) => { // a finger cannot point: its first tap does, its second one clicks
    if (pointed() === under(event)) occlude(toggled(side, pointed()));
    else point(side, under(event));
  });
  stage.addEventListener("focus", () => stage.matches(":focus-visible") && point(side, here())); // by the keyboard
  stage.addEventListener("blur", () => point(side, null));
  stage.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Enter") occlude(toggled(side, here()));
    if (!move) return;
    const place = middle(regions[here()]).map((from, axis) => from + (move[axis] * data.size[axis]) / PER_SIDE);
    point(side, windowAt(state.pair.both[side], ...place));
    event.preventDefault(); // it would scroll
  });
});

// Both images as they are shown, below the page's title, as one picture.
function snapshot() {
  const frame = $("pair").getBoundingClientRect(), scale = 2;
  const { color, backgroundColor } = getComputedStyle(document.body);
  const pen = new OffscreenCanvas(scale * frame.width, scale * frame.height).getContext("2d");
  const boxOf = (node) => (({ x, y, width, height }) => [x, y, width, height])(node.getBoundingClientRect());
  pen.setTransform(scale, 0, 0, scale, -scale * frame.x, -scale * frame.y);
  pen.fillStyle = backgroundColor;
  pen.fillRect(...boxOf($("pair")));
  Object.assign(pen, { fillStyle: color, font: "16px system-ui, sans-serif", textBaseline: "top" });
  pen.fillText(document.title, frame.x, frame.y + 3, frame.width);
  for (const { photo, map } of figures) {
    for (const layer of choices[2].checked ? [photo] : [photo, map]) pen.drawImage(layer, ...boxOf(photo));
  }
  Object.assign(pen, { fillStyle: "#888e", strokeStyle: "white", lineWidth: 2, shadowColor: "black", shadowBlur: 3 });
  for (const node of document.querySelectorAll(".occluded")) pen.fillRect(...boxOf(node));
  for (const node of document.querySelectorAll(".window")) pen.strokeRect(...boxOf(node));
  pen.translate(frame.x, frame.y);
  pen.stroke(new Path2D($("line").getAttribute("d")));
  return pen.canvas.convertToBlob();
}

$("copy").addEventListener("click", async () => {
  const png = snapshot();
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
    $("readout").textContent = "The image is copied.";
  } catch { // the browser does not let pages write there
    make("a", { href: URL.createObjectURL(await png), download: "similarity.png" }).click();
  }
});
$("reset").addEventListener("click", () => occlude([[], []]));
choices.forEach((choice) => choice.addEventListener("change", refresh));
addEventListener("resize", () => state.pair && joinMatch());
