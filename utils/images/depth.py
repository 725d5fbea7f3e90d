"""Images of more than 8 bits: their values, and the range of values that is shown from black to white."""

import io
from math import ceil, log2

import numpy as np
from PIL import Image, ImageFile

BITS, INK, LAYOUT, SAMPLE = 258, 262, 284, 339  # tags of TIFF
WHITE_IS_ZERO, PLANES, UNSIGNED, SIGNED = 0, 2, 1, 2  # values of these


def deep_values(image: Image.Image) -> np.ndarray | None:
    """Read the values of an image of more than 8 bits, or signed ones: float32, (H, W) or (H, W, 3); or `None`."""
    tags = getattr(image, "tag_v2", {})
    kind = {("L", SIGNED): np.int8, ("I", UNSIGNED): np.uint32}.get((image.mode, tags.get(SAMPLE, (UNSIGNED,))[0]))
    if image.mode == "RGB" and tags.get(BITS, (8,))[0] == 16 and tags.get(LAYOUT) == PLANES:
        raise ValueError("its colours are in planes of 16 bits: save it as PNG")
    if image.mode == "RGB" and "RGB;16" in str(getattr(image, "tile", "")):
        values = _lower_bytes(image) + np.float32(256) * np.asarray(image)
    elif kind or image.mode[0] in "IF":
        image.load()  # a damaged file would be no error to NumPy
        values = np.asarray(image)
        values = values.view(kind or values.dtype).astype(np.float32)
    else:
        return None
    return sum(range_of(*extremes(values))) - values if tags.get(INK) == WHITE_IS_ZERO else values


def _lower_bytes(image: Image.Image) -> np.ndarray:
    """Load an image of 16 bits a colour, of which Pillow gives the upper bytes, and return the lower ones, uint8
    (H, W, 3), which it gives if it is told that bytes are the other way round."""
    place = image.fp.tell()
    image.fp.seek(0)
    swapped = Image.open(io.BytesIO(image.fp.read()))
    image.fp.seek(place)
    tile = getattr(ImageFile, "_Tile", lambda *parts: parts)  # before Pillow 11 a plain tuple
    for k, (codec, box, offset, arguments) in enumerate(swapped.tile):
        kind, *more = (arguments,) if isinstance(arguments, str) else arguments
        swapped.tile[k] = tile(codec, box, offset, (f"RGB;16{'L' if kind.endswith('B') else 'B'}", *more))
    image.load(), swapped.load()
    return np.asarray(swapped)


def extremes(values: np.ndarray) -> tuple[float, float]:
    """Find the lowest and the highest value that is a number."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("its pixels are not numbers")
    return float(finite.min()), float(finite.max())


def range_of(low: float, high: float) -> tuple[float, float]:
    """Compute the range that is shown from black to white for values from `low` to `high`: from 0 to the least 2^k - 1
    that holds them; these two themselves where some are negative or they fill less than a quarter of that."""
    top = 2.0 ** ceil(log2(high + 1)) - 1 if low >= 0 else 0.0
    return (low, high) if low < 0 or 0 < high - low < top / 4 else (0.0, top)


def in_8_bits(values: np.ndarray, levels: tuple[float, float] | None) -> Image.Image:
    """Convert values to an 8-bit image, from black at `levels[0]` to white at `levels[1]`, or over the `range_of` their
    `extremes`, which are left in `info["values"]`; what is no number becomes black."""
    low, high = extremes(values)
    black, white = levels or range_of(low, high)
    grey = np.nan_to_num((values - black) * (255 / ((white - black) or 1)))
    image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
    image.info["values"] = low, high
    return image
