const LONGEST = 640; // pixels of a canvas
const DIM = 0.3; // brightness of what does not match
const { opacity, weak, drained: DRAINED, faint: FAINT } = data.style; // as in the notebooks, see utils/figures/style.py
// 256 colours from weak to strong, three bytes each.
const [EVIDENCE, SIMILARITY] = data.style.colours.map((colours) => bytes(colours, Uint8Array));

const stepOf = (share) => 3 * Math.round(255 * share);
const colourOf = (table, share) => `rgb(${table.subarray(stepOf(share), stepOf(share) + 3).join(" ")})`;

function surface(width, height) {
  const pen = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  return pen;
}

async function open(image) {
  if (image.pixels) return;
  const picture = new Image();
  picture.src = image.picture;
  await picture.decode();
  const scale = LONGEST / Math.max(picture.naturalWidth, picture.naturalHeight);
  const sides = [picture.naturalWidth, picture.naturalHeight].map((side) => Math.max(1, Math.round(scale * side)));
  const few = sides.map((side) => Math.max(1, Math.round((10 * side) / LONGEST))); // so few that stretched ones are soft
  const [pen, tiny, soft] = [sides, few, sides].map((size) => surface(...size));
  pen.drawImage(picture, 0, 0, ...sides);
  tiny.drawImage(pen.canvas, 0, 0, ...few);
  soft.drawImage(tiny.canvas, 0, 0, ...sides);
  image.pixels = pen.getImageData(0, 0, ...sides);
  image.blurred = soft.canvas;
}

// A map in [0, 1], GRID x GRID, stretched to the pixels of its image, in 255 steps: the first of four bytes each.
function stretched(map, image) {
  const { width, height } = image.pixels, [top, bottom, left, right] = image.box, [rows, columns] = data.size;
  const small = surface(GRID, GRID), large = surface(width, height), cells = small.createImageData(GRID, GRID);
  map.forEach((value, p) => cells.data.set([255 * value, 0, 0, 255], 4 * p));
  small.putImageData(cells, 0, 0);
  const [x, y, across, down] = [left / columns, top / rows, (right - left) / columns, (bottom - top) / rows];
  large.drawImage(small.canvas, ...[x, y, across, down].map((share) => GRID * share), 0, 0, width, height);
  return large.getImageData(0, 0, width, height).data;
}

// A map on its image: as light (the rest dims), or as evidence in colour on a photograph that turns grey under it;
// without one, the photograph as it is.
function paint(canvas, image, map, asLight) {
  const { width, height, data: source } = image.pixels;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  if (!map) return pen.putImageData(image.pixels, 0, 0);
  const result = pen.createImageData(width, height), target = result.data, strengths = stretched(map, image);
  for (let p = 0; p < source.length; p += 4) {
    const strength = strengths[p] / 255;
    const grey = 0.299 * source[p] + 0.587 * source[p + 1] + 0.114 * source[p + 2];
    const drained = asLight ? 1 - strength : Math.min(strength / DRAINED, 1), colour = stepOf(strength);
    const alpha = asLight ? 0 : opacity * strength ** weak, light = asLight ? DIM + (1 - DIM) * strength : 1;
    for (let c = 0; c < 3; c++) {
      const plain = light * (source[p + c] + drained * (grey - source[p + c]));
      target[p + c] = plain + alpha * (EVIDENCE[colour + c] - plain);
    }
    target[p + 3] = 255;
  }
  pen.putImageData(result, 0, 0);
}

// A region's place on its image, in shares of its sides.
function place(image, region) {
  const [top, bottom, left, right] = image.box, [t, b, l, r] = sidesOf(image, region);
  const share = (value, from, to) => Math.min(Math.max((value - from) / (to - from), 0), 1);
  return [share(t, top, bottom), share(b, top, bottom), share(l, left, right), share(r, left, right)];
}

function blurWindow(canvas, image, region) {
  const [top, bottom, left, right] = place(image, region), { width, height } = canvas;
  const box = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  if (box[2] >= 1 && box[3] >= 1) canvas.getContext("2d").drawImage(image.blurred, ...box, ...box);
}

function outline(stage, image, region, style) {
  const [top, bottom, left, right] = place(image, region), frame = make("div", { className: `window ${style}` });
  const sides = { top, left, height: bottom - top, width: right - left };
  for (const [side, share] of Object.entries(sides)) frame.style[side] = `${100 * share}%`;
  stage.append(frame);
}
