const LONGEST = 640; // pixels of a canvas
const DIM = 0.3; // brightness of what does not match
const { opacity, weak, drained: DRAINED, faint: FAINT } = data.style; // as in the notebooks, see utils/figures/style.py
// 256 colours from weak to strong, three bytes each.
const [EVIDENCE, SIMILARITY] = data.style.colours.map((colours) => bytes(colours, Uint8Array));

const stepOf = (share) => 3 * Math.round(255 * share);
const colourOf = (table, share) => `rgb(${table.subarray(stepOf(share), stepOf(share) + 3).join(" ")})`;

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

// A map in [0, 1] on its image: as light (the rest dims), or as evidence in colour on a photograph that turns grey
// under it; without one, the photograph as it is.
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
      const strength = Math.min(between(map, at, GRID, down, across), 1);
      const grey = 0.299 * source[p] + 0.587 * source[p + 1] + 0.114 * source[p + 2];
      const drained = asLight ? 1 - strength : Math.min(strength / DRAINED, 1), colour = stepOf(strength);
      const alpha = asLight ? 0 : opacity * strength ** weak, light = asLight ? DIM + (1 - DIM) * strength : 1;
      for (let c = 0; c < 3; c++) {
        const plain = light * (source[p + c] + drained * (grey - source[p + c]));
        target[p + c] = plain + alpha * (EVIDENCE[colour + c] - plain);
      }
      target[p + 3] = 255;
    }
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
  const [top, bottom, left, right] = place(image, region), frame = document.createElement("div");
  const sides = { top, left, height: bottom - top, width: right - left };
  frame.className = `window ${style}`;
  for (const [side, share] of Object.entries(sides)) frame.style[side] = `${100 * share}%`;
  stage.append(frame);
}
