"use strict";

// What Python measured: per image an embedding z, and for each of its regions R what occluding R does to it, delta.
const data = JSON.parse(document.getElementById("data").textContent);
const GRID = data.grid;

const $ = (id) => document.getElementById(id);
function make(tag, values = {}, ...children) {
  const node = Object.assign(document.createElement(tag), values);
  node.append(...children);
  return node;
}
const state = { threshold: 1 - data.threshold, shown: 0, pair: null };

function bytes(text, Type) {
  return new Type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

const inSteps = ({ step, values }) => Float64Array.from(bytes(values, Int16Array), (value) => value * step);
const regression = inSteps(data.regression); // (GRID * GRID, regions)

const images = data.images.map((one) => ({
  ...one, // name, picture, and box: top, bottom, left, right of what it fills of the network's frame, in its pixels
  z: bytes(one.embedding, Float32Array),
  delta: inSteps(one.delta),
  regions: bytes(one.regions, Int16Array), // top, bottom, left, right of each, likewise
}));

function dot(a, b, startA = 0, startB = 0, length = b.length) {
  let sum = 0;
  for (let k = 0; k < length; k++) sum += a[startA + k] * b[startB + k];
  return sum;
}

const deltaOf = (image, region) => image.delta.subarray(region * image.z.length, (region + 1) * image.z.length);
const sidesOf = (image, region) => image.regions.subarray(4 * region, 4 * region + 4); // top, bottom, left, right
const count = (image) => image.regions.length / 4;
const subtract = (a, b) => a.map((value, k) => value - b[k]);
// 1 - distance / margin: the similarity, but below 0 beyond the margin.
const closeness = (a, b) => 1 - Math.sqrt(dot(subtract(a, b), subtract(a, b)) + 1e-12) / data.margin;
const similarity = (a, b) => Math.max(closeness(a, b), 0);
const isSimilar = (value) => value > state.threshold;

// The effect on the squared distance of a from b of a change of z_a by -delta: |delta|^2 - 2 <delta, z_a - z_b>.
const effectOnDistance = (delta, a, b) => dot(delta, delta) - 2 * dot(delta, subtract(a.z, b.z));
// The effect of each region of a on it.
const effects = (a, b) => Float64Array.from({ length: count(a) }, (_, r) => effectOnDistance(deltaOf(a, r), a, b));

// The interaction of a region of a with each region of b: 2 <delta, delta'>. Above 0 they match.
function interactions(a, region, b) {
  return Float64Array.from({ length: count(b) }, (_, q) => 2 * dot(deltaOf(a, region), deltaOf(b, q)));
}

// Effects of an image's regions -> a map (GRID x GRID) whose sum over a region is about its effect: `regression` in
// utils/explain/occlusion.py, a matrix that is the same for all images.
function spread(values) {
  return Float64Array.from({ length: GRID * GRID }, (_, p) => dot(regression, values, p * values.length));
}

// The effect on the squared distance from another image of occluding positions of an image all at once: `of_masks` in
// utils/explain/occlusion.py.
function effectOfPositions(image, other, positions) {
  const delta = new Float64Array(image.z.length);
  for (let r = 0; r < count(image); r++) {
    const weight = positions.reduce((sum, p) => sum + regression[p * count(image) + r], 0);
    deltaOf(image, r).forEach((value, k) => (delta[k] += weight * value));
  }
  return effectOnDistance(delta, image, other);
}

const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);

// Signed evidence for "similar" in both images of a pair, as a share of the pair's strongest.
function evidence(a, b) {
  const maps = [[a, b], [b, a]].map(([one, other]) => spread(effects(one, other)));
  const most = Math.max(...maps.map(largest)) || 1;
  return maps.map((map) => map.map((value) => value / most));
}

// The evidence of one sign that an image's map shows, for or against the decision: not the weak one, and none against
// the decision if occluding its strongest tenth of the image would not make the decision stronger.
function shownOf(map, sign, against, image, other) {
  const least = against ? data.minCounterfactual : data.minFactual * largest(map);
  const shown = map.map((value) => (sign * value > least ? sign * value : 0));
  return against && sign * effectOfPositions(image, other, strongestPositions(shown)) <= 0 ? shown.fill(0) : shown;
}

// The positions of a map that a check removes: those with evidence among its strongest tenth.
function strongestPositions(map) {
  const order = [...map.keys()].sort((p, q) => map[q] - map[p]);
  return order.slice(0, Math.round(data.region * map.length)).filter((p) => map[p] > 0);
}

// The embedding of an image with regions occluded. One region's effect is as measured; those of several are added, each
// in proportion to the part of its pixels that the regions before it leave free.
function embeddingWith(image, regions) {
  const z = Float64Array.from(image.z);
  regions.forEach((region, number) => {
    const [top, bottom, left, right] = sidesOf(image, region);
    const before = regions.slice(0, number).map((other) => sidesOf(image, other));
    let free = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) free += !before.some(([t, b, l, r]) => t <= y && y < b && l <= x && x < r);
    }
    const share = free / ((bottom - top) * (right - left));
    deltaOf(image, region).forEach((value, k) => (z[k] -= share * value));
  });
  return z;
}

// The windows that can be pointed at are the last of an image's regions, a grid over the frame.
const PER_SIDE = data.perSide, FIRST_WINDOW = count(images[0]) - PER_SIDE ** 2;

function middle(image, region) {
  const [top, bottom, left, right] = sidesOf(image, region);
  return [(top + bottom) / 2, (left + right) / 2];
}

// The window nearest to a place, in pixels of the frame, or to where the image comes nearest to that place.
function windowAt(image, row, column) {
  const [top, bottom, left, right] = image.box;
  const [y, x] = [Math.min(Math.max(row, top), bottom), Math.min(Math.max(column, left), right)];
  const away = Array.from({ length: PER_SIDE ** 2 }, (_, k) => {
    const [down, across] = middle(image, FIRST_WINDOW + k);
    return (down - y) ** 2 + (across - x) ** 2;
  });
  return FIRST_WINDOW + away.indexOf(Math.min(...away));
}

// The window nearest to a place in shares of the image's sides.
function regionAt(image, down, across) {
  const [top, bottom, left, right] = image.box;
  return windowAt(image, top + down * (bottom - top), left + across * (right - left));
}
