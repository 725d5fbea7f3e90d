const LONGEST = 640; // pixels of a map as it is drawn
const { opacity, weak, drained: DRAINED, faint: FAINT } = data.style; // as in the notebooks, see utils/figures/style.py
// 256 colours from weak to strong, three bytes each.
const [EVIDENCE, SIMILARITY] = data.colours.map((colours) => bytes(colours, Uint8Array));

const $ = (id) => document.getElementById(id);
function make(tag, values = {}, ...children) {
  const node = Object.assign(document.createElement(tag), values);
  node.append(...children);
  return node;
}

// A function of x and y, in shares of an image's sides: a map (GRID x GRID) between the four nearest of its positions.
function stretched(map, [top, bottom, left, right]) {
  const cell = (share, from, to, side) => within((GRID * (from + share * (to - from))) / side - 0.5, 0, GRID - 1.001);
  return (x, y) => {
    const row = cell(y, top, bottom, data.size[0]), column = cell(x, left, right, data.size[1]);
    const p = GRID * Math.floor(row) + Math.floor(column), q = p + GRID, down = row % 1, across = column % 1;
    return (1 - down) * (map[p] + across * (map[p + 1] - map[p])) + down * (map[q] + across * (map[q + 1] - map[q]));
  };
}

// What lies on a photograph: its evidence in colour, on a ground that turns grey, and a line around the strongest.
function paintMap(canvas, photo, box, { map, least, edge }) {
  const natural = [photo.naturalWidth, photo.naturalHeight], valueAt = stretched(map, box);
  const [width, height] = natural.map((side) => Math.max(1, Math.round((LONGEST * side) / Math.max(...natural))));
  const pen = Object.assign(canvas, { width, height }).getContext("2d", { willReadFrequently: true });
  pen.drawImage(photo, 0, 0, width, height);
  const pixels = pen.getImageData(0, 0, width, height), part = pixels.data;
  for (let p = 0; p < part.length; p += 4) {
    const x = ((p / 4) % width) / width, y = Math.floor(p / 4 / width) / height, value = valueAt(x, y);
    part[p + 3] = 0;
    if (value < least - 0.1) continue; // nowhere near a line
    const strength = value > least ? value : 0, tint = 3 * Math.round(255 * strength);
    const slope = Math.hypot(valueAt(x + 1 / width, y) - value, valueAt(x, y + 1 / height) - value);
    const white = slope && within(1.5 - Math.abs(value - edge) / slope, 0, 1); // the line: its distance in pixels
    const colour = (1 - white) * opacity * strength ** weak;
    const ground = (1 - white - colour) * Math.min(strength / DRAINED, 1);
    const grey = 0.299 * part[p] + 0.587 * part[p + 1] + 0.114 * part[p + 2], all = white + colour + ground;
    for (let c = 0; c < 3; c++) part[p + c] = (white * 255 + colour * EVIDENCE[tint + c] + ground * grey) / all;
    part[p + 3] = 255 * all;
  }
  pen.putImageData(pixels, 0, 0);
}
