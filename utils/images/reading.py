"""Reads an image file as an upright RGB image of 8 bits a channel, whatever is stored."""

import io
import os
import re
from contextlib import suppress
from math import ceil, log2
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError

from utils.system.errors import DataError

with suppress(ImportError):  # not required, but where it is installed, HEIC is read
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = 2**27  # of which twice as many are read: some telephones make 200 million
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # bytes; Pillow takes sound files for bombs

# `.jfif` and `.jpe` are JPEG too: some browsers on Windows save the first.
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
SUFFIXES |= {".heic", ".heif", ".avif"}
# How files begin that are not what they are called, or that no decoder reads -> what they are, and what to do.
KINDS = {
    b"....ftyp(hei|hev|mif1|msf1)": "a HEIC image; install what reads it (pip install pillow-heif), or save it as JPEG",
    b"....ftypavi": "an AVIF image; install what reads it (pip install --upgrade pillow), or save it as JPEG",
    b"\xff\x0a|....JXL ": "a JPEG XL image; save it as JPEG or PNG",
    b"version https://git-lfs": "a Git LFS pointer, not the image; fetch the images: git lfs pull",
    rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)": "a saved web page, not the image; download the image itself",
    b".{128}DICM": "a DICOM file; export it as PNG or TIFF of 16 bits",
    rb"II\*\0|MM\0\*": "a TIFF of a kind that is not read; save it as PNG, or with 1 or 3 bands of 8 or 16 bits",
}
ORIENTATION = 0x0112  # of EXIF
BITS, INK, LAYOUT, SAMPLE = 258, 262, 284, 339  # tags of TIFF
WHITE_IS_ZERO, PLANES, UNSIGNED, SIGNED = 0, 2, 1, 2  # values of these
STORED = {("L", SIGNED): np.int8, ("I", UNSIGNED): np.uint32}  # in a TIFF, other than Pillow takes it
LIGHT = 191  # grey level, three quarters of white, above which a drawing would hardly show on white


def is_named_as_image(path: Path) -> bool:
    """Tell whether a file has the suffix of an image and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path, levels: tuple[float, float] | None = None) -> Image.Image:
    """Read one image file as upright RGB, of several pages the first; `levels` as in `to_rgb`.

    Raises:
        DataError: the file cannot be read as an image; the message has its path, what is wrong and what to do.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise OSError
        # Opened by Python: where Pillow maps a file into memory, it garbles turned grey TIFFs.
        with path.open("rb") as file, Image.open(file) as image:
            rgb = to_rgb(image, levels)
            with suppress(Exception):  # of a second page; MPO is a photograph with its preview
                rgb.info["pages"] = image.format != "MPO" and image.is_animated
            return rgb
    except Exception as error:  # on damaged files, decoders raise errors of all types
        raise DataError(f"{path}: {what_is_wrong(path, error)}") from None


def what_is_wrong(path: Path, error: Exception) -> str:
    """Tell from an error why a file could not be read, and what to do."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "a link to nowhere; delete it, or bring back the file that it leads to"
    if isinstance(error, FileNotFoundError):
        return "no such image; check the path, or train again if the data have moved"
    if os.path.exists(path) and not os.path.isfile(path):
        return "a folder; name an image" if os.path.isdir(path) else "not a file; delete it"
    if isinstance(error, PermissionError):
        return "no permission to read it; change the file's access rights"
    if isinstance(error, OSError) and error.errno is not None:  # an error of the system, not of the decoder
        return f"cannot be read ({error.strerror}); check the disk or network drive that it is on, and run again"
    if isinstance(error, Image.DecompressionBombError):
        return f"over {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels, which is not read; save it smaller"
    if isinstance(error, UnidentifiedImageError):  # whose own message only repeats the path
        with suppress(OSError), path.open("rb") as file:  # it may have gone meanwhile
            start = file.read(256)
            for kind, what in KINDS.items():
                if re.match(kind, start, re.DOTALL | re.IGNORECASE):
                    return what
            error = "its content is not an image's" if start else "the file is empty"
    return f"not a readable image ({' '.join(str(error).split()) or type(error).__name__}); delete or replace it"


def to_rgb(image: Image.Image, levels: tuple[float, float] | None = None) -> Image.Image:
    """Convert a PIL image of any mode to upright RGB; transparency is laid on white, light drawings on black. `levels`
    are the values that become black and white in images of more than 8 bits, see `in_8_bits`."""
    if (values := deep_values(image)) is not None:
        turned, image = image.getexif().get(ORIENTATION, 1), in_8_bits(values, levels)
        image.getexif()[ORIENTATION] = turned
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opacity = np.asarray(image.getchannel("A"), np.float32)
        is_light = (np.asarray(image.convert("L")) * opacity).sum() > LIGHT * opacity.sum()
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black" if is_light else "white"), image)
    return image.convert("RGB")


def deep_values(image: Image.Image) -> np.ndarray | None:
    """Read the values, float32, (H, W) or (H, W, 3), of an image of more than 8 bits, or signed ones; else `None`."""
    tags = getattr(image, "tag_v2", {})
    if image.mode == "RGB" and tags.get(BITS, (8,))[0] == 16 and tags.get(LAYOUT) == PLANES:  # Pillow reads noise
        raise ValueError("its colours are in planes of 16 bits: save it as PNG")
    if image.mode == "RGB" and "RGB;16" in str(getattr(image, "tile", "")):
        return _lower_bytes(image) + np.float32(256) * np.asarray(image)
    kind = STORED.get((image.mode, tags.get(SAMPLE, (UNSIGNED,))[0])) if tags else None
    if image.mode[0] not in "IF" and not kind:
        return None
    image.load()  # a damaged file would be no error to NumPy
    values = np.asarray(image)
    values = values.view(kind or values.dtype).astype(np.float32)
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
    image.load()
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


def shrink(image: Image.Image, longest_side: int = 640) -> Image.Image:
    """Make an RGB copy, for figures, whose longer side has at most `longest_side` pixels; keeps the aspect ratio."""
    image = to_rgb(image)
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image
