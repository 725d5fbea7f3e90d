"""One image file -> an upright RGB picture."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.system.errors import DataError

# `.jfif` and `.jpe` are JPEG too: some browsers on Windows save the first.
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def is_named_as_image(path: Path) -> bool:
    """By its suffix; hidden files are not."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path) -> Image.Image:
    """One image file as `to_rgb` makes it.

    Raises:
        DataError: the file cannot be read as an image; the message is its path, what is wrong and what to do.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # on damaged files decoders raise whatever they stumble over
        raise DataError(f"{path}: {what_is_wrong(path, error)}") from None


def what_is_wrong(path: Path, error: Exception) -> str:
    """Why a file was not read, and what to do, of the error that was raised instead."""
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return "a link to nowhere; delete it, or bring back the file that it leads to"
        return "no such image; check the path, or train again if the data have moved"
    if os.path.isdir(path):
        return "a folder; name an image"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "a link that leads to itself; delete it"
    if isinstance(error, PermissionError):
        return "no permission to read it; change the file's access rights"
    if isinstance(error, OSError) and error.errno is not None:  # the system's words, not the decoder's
        return f"cannot be read ({error.strerror}); check the disk or network drive that it is on, and run again"
    if isinstance(error, Image.DecompressionBombError):
        return f"over {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels, which is not read; save it smaller"
    if isinstance(error, UnidentifiedImageError):  # Pillow's own words only repeat the path
        with suppress(OSError):  # it has gone meanwhile
            error = "its content is not an image's" if path.stat().st_size else "the file is empty"
    return f"not a readable image ({' '.join(str(error).split()) or type(error).__name__}); delete or replace it"


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as upright RGB, transparency on white, 16 bits a pixel scaled to 8.

    Raises:
        ValueError: pixels are fractions, whose black and white nobody knows, or of a mode that Pillow cannot convert.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, in some formats as 32: Pillow's conversion would clip at 255, to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def shrink(image: Image.Image, longest_side: int = 640) -> Image.Image:
    """An RGB copy of at most `longest_side` pixels, at the same aspect ratio: enough for a figure."""
    image = to_rgb(image)
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image
