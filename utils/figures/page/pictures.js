const LONGEST = 640; // pixels of a canvas
// As utils/imshow.py: opacity of the strongest evidence, and the evidence from which on the photograph is grey. Here it
// is nearly grey elsewhere, too, as an orange flower would look like evidence.
const OPACITY = 0.9, DRAINED = 0.15, PALE = 0.8;
const DIM = 0.3; // brightness of what does not match
// Weak to strong, for and against the decision: apart in hue for colour-blind readers, and in brightness within each.
const RAMPS = [["#7f2704", "#cc4c02", "#fb8b24", "#ffe08a"], ["#0b2f7a", "#1c63d6", "#35a7ff", "#b5ecff"]];

// Colours of a ramp at 256 steps, three numbers each.
const tables = RAMPS.map((ramp) => Float32Array.from({ length: 3 * 256 }, (_, i) => {
  const place = (Math.floor(i / 3) / 255) * (ramp.length - 1), k = Math.min(Math.floor(place), ramp.length - 2);
  const from = 1 + 2 * (i % 3);
  const [low, high] = [ramp[k], ramp[k + 1]].map((one) => parseInt(one.slice(from, from + 2), 16));
  return low + (place - k) * (high - low);
}));

async function open(image) {
  if (image.pixels) return;
  const picture = new Image();
  picture.src = image.source;
  await picture.decode();
  const scale = LONGEST / Math.max(picture.naturalWidth, picture.naturalHeight);
  const draw = (longest) => {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round((longest / LONGEST) * scale * picture.naturalWidth));
    canvas.height = Math.max(1, Math.round((longest / LONGEST) * scale * picture.naturalHeight));
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingQuality = "high";
    return { canvas, pen };
  };
  const { canvas, pen } = draw(LONGEST), tiny = draw(10), soft = draw(LONGEST);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  tiny.pen.drawImage(canvas, 0, 0, tiny.canvas.width, tiny.canvas.height);
  soft.pen.drawImage(tiny.canvas, 0, 0, canvas.width, canvas.height);
  image.pixels = pen.getImageData(0, 0, canvas.width, canvas.height);
  image.blurred = soft.canvas;
}

// A map on its image: as light (the rest dims), or as evidence in colour on a photograph that turns grey under it;
// without one, the photograph as it is.
function paint(canvas, image, map, asLight) {
  const { width, height, data: source } = image.pixels;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  if (!map) return pen.putImageData(image.pixels, 0, 0);
  const result = pen.createImageData(width, height), target = result.data;
  const [top, bottom, left, right] = image.box;
  const rows = steps(height, top, bottom, data.size[0], GRID);
  const columns = steps(width, left, right, data.size[1], GRID);
  for (let y = 0, p = 0; y < height; y++) {
    const [g, down] = rows[y];
    for (let x = 0; x < width; x++, p += 4) {
      const [h, across] = columns[x], at = g * GRID + h;
      const value = between(map, at, GRID, down, across), strength = Math.min(Math.abs(value), 1);
      const grey = 0.299 * source[p] + 0.587 * source[p + 1] + 0.114 * source[p + 2];
      const drained = asLight ? 1 - strength : PALE + (1 - PALE) * Math.min(strength / DRAINED, 1);
      const alpha = asLight ? 0 : OPACITY * strength ** 0.7, light = asLight ? DIM + (1 - DIM) * strength : 1;
      const table = tables[value > 0 ? 0 : 1], colour = 3 * Math.round(255 * strength);
      for (let c = 0; c < 3; c++) {
        const plain = light * (source[p + c] + drained * (grey - source[p + c]));
        target[p + c] = plain + alpha * (table[colour + c] - plain);
      }
      target[p + 3] = 255;
    }
  }
  pen.putImageData(result, 0, 0);
}

// A region's place on its image, in shares of its sides.
function place(image, region) {
  const [top, bottom, left, right] = image.box, [t, b, l, r] = image.regions.subarray(4 * region, 4 * region + 4);
  const share = (value, from, to) => Math.min(Math.max((value - from) / (to - from), 0), 1);
  return [share(t, top, bottom), share(b, top, bottom), share(l, left, right), share(r, left, right)];
}

function blurWindow(canvas, image, region) {
  const [top, bottom, left, right] = place(image, region), { width, height } = canvas;
  const box = [left * width, top * height, (right - left) * width, (bottom - top) * height];
  if (box[2] >= 1 && box[3] >= 1) canvas.getContext("2d").drawImage(image.blurred, ...box, ...box);
}

function outline(stage, image, region, kind) {
  const [top, bottom, left, right] = place(image, region), frame = document.createElement("div");
  const sides = { top, left, height: bottom - top, width: right - left };
  frame.className = `window ${kind}`;
  for (const [side, share] of Object.entries(sides)) frame.style[side] = `${100 * share}%`;
  stage.append(frame);
}
