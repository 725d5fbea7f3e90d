"use strict";

// What Python measured: of each image an embedding z, and for each region R what occluding R does to it, delta.
const data = JSON.parse(document.getElementById("data").textContent);
// Regions: top, bottom, left, right of each, in pixels of the network's frame. The last ones, windows in a grid, can be
// pointed at.
const { grid: GRID, perSide: PER_SIDE, regions } = data, windows = [...regions.keys()].slice(-(PER_SIDE ** 2));

function bytes(text, Type) {
  return new Type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

const inSteps = ({ step, values }) => Float64Array.from(bytes(values, Int16Array), (value) => value * step);
const regression = inSteps(data.regression); // (GRID * GRID, regions)
const images = data.images.map((one) => ({
  ...one, // name, picture, and box: top, bottom, left, right of what it fills of the frame
  z: bytes(one.embedding, Float32Array),
  delta: inSteps(one.delta),
}));

function dot(a, b, startA = 0) {
  let sum = 0;
  for (let k = 0; k < b.length; k++) sum += a[startA + k] * b[k];
  return sum;
}

const deltaOf = (image, region) => image.delta.subarray(region * image.z.length, (region + 1) * image.z.length);
const subtract = (a, b) => a.map((value, k) => value - b[k]);
const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
const within = (value, least, most) => Math.min(Math.max(value, least), most);

// 1 - distance / margin: the similarity, but below 0 beyond the margin.
const closeness = (a, b) => 1 - Math.sqrt(dot(subtract(a, b), subtract(a, b)) + 1e-12) / data.margin;
const similarity = (a, b) => Math.max(closeness(a, b), 0);

// The effect on the squared distance of a from b of a change of z_a by -delta: |delta|^2 - 2 <delta, z_a - z_b>.
const effectOnDistance = (delta, a, b) => dot(delta, delta) - 2 * dot(delta, subtract(a.z, b.z));
// The effect of each region of a on it.
const effects = (a, b) => Float64Array.from(regions, (_, r) => effectOnDistance(deltaOf(a, r), a, b));

// The window of b that matches a region of a best, by the interaction 2 <delta, delta'>. Above 0 they match.
function partnerOf(a, region, b) {
  const strengths = windows.map((window) => 2 * dot(deltaOf(a, region), deltaOf(b, window)));
  const strength = Math.max(...strengths);
  return { strength, regions: [region, windows[strengths.indexOf(strength)]] };
}

// Of all windows of a and b the two that match best.
const bestMatch = (a, b) => windows.map((window) => partnerOf(a, window, b)).sort((m, n) => n.strength - m.strength)[0];

// Effects of an image's regions -> a map (GRID x GRID) whose sum over a region is about its effect: `regression` in
// utils/explain/occlusion.py, a matrix that is the same for all images.
function spread(values) {
  return Float64Array.from({ length: GRID * GRID }, (_, p) => dot(regression, values, p * values.length));
}

// The effect on the squared distance from another image of occluding positions of an image all at once: `of_masks` in
// utils/explain/occlusion.py.
function effectOfPositions(image, other, positions) {
  const delta = new Float64Array(image.z.length);
  regions.forEach((_, r) => {
    const weight = positions.reduce((sum, p) => sum + regression[p * regions.length + r], 0);
    deltaOf(image, r).forEach((value, k) => (delta[k] += weight * value));
  });
  return effectOnDistance(delta, image, other);
}

// Signed evidence for "similar" in both images of a pair, as a share of the pair's strongest.
function evidence(a, b) {
  const maps = [[a, b], [b, a]].map(([one, other]) => spread(effects(one, other)));
  const most = Math.max(...maps.map(largest)) || 1;
  return maps.map((map) => map.map((value) => value / most));
}

// The evidence of one sign in an image's map, for or against the decision. What is above `least` is shown: not the weak
// one, and none against the decision if occluding the strongest tenth, above `edge`, would not make it stronger.
function shownOf(signed, sign, against, image, other) {
  const map = signed.map((value) => sign * value), ordered = [...map].sort((a, b) => b - a);
  const least = against ? data.minCounterfactual : data.minFactual * largest(map);
  const edge = Math.max(least, ordered[Math.round(data.region * map.length)]);
  const strongest = [...map.keys()].filter((p) => map[p] > edge);
  const none = against && sign * effectOfPositions(image, other, strongest) <= 0;
  return none ? { map, least: Infinity, edge: Infinity } : { map, least, edge };
}

// The embedding of an image with regions occluded. One region's effect is as measured; those of several are added, each
// in proportion to the part of its pixels that the regions before it leave free.
function embeddingWith(image, occluded) {
  const z = Float64Array.from(image.z), covered = new Set();
  for (const region of occluded) {
    const [top, bottom, left, right] = regions[region], before = covered.size;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) covered.add(y * data.size[1] + x);
    }
    const free = (covered.size - before) / ((bottom - top) * (right - left));
    deltaOf(image, region).forEach((value, k) => (z[k] -= free * value));
  }
  return z;
}

// The middle of a region, in pixels of the frame: row, column.
const middle = ([top, bottom, left, right]) => [(top + bottom) / 2, (left + right) / 2];

// The window nearest to a place in the frame, or to where the image comes nearest to that place.
function windowAt({ box: [top, bottom, left, right] }, row, column) {
  const [y, x] = [within(row, top, bottom), within(column, left, right)];
  const away = windows.map((window) => Math.hypot(middle(regions[window])[0] - y, middle(regions[window])[1] - x));
  return windows[away.indexOf(Math.min(...away))];
}
