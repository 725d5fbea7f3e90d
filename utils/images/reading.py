"""Reads an image file as an upright RGB image."""

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
    """Tell whether a file has the suffix of an image and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path) -> Image.Image:
    """Read one image file as upright RGB.

    Raises:
        DataError: the file cannot be read as an image; the message has its path, what is wrong and what to do.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # on damaged files, decoders raise errors of all types
        raise DataError(f"{path}: {what_is_wrong(path, error)}") from None


def what_is_wrong(path: Path, error: Exception) -> str:
    """Tell from an error why a file could not be read, and what to do."""
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
    if isinstance(error, OSError) and error.errno is not None:  # an error of the system, not of the decoder
        return f"cannot be read ({error.strerror}); check the disk or network drive that it is on, and run again"
    if isinstance(error, Image.DecompressionBombError):
        return f"over {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels, which is not read; save it smaller"
    if isinstance(error, UnidentifiedImageError):  # whose own message only repeats the path
        with suppress(OSError):  # the file may have gone meanwhile
            error = "its content is not an image's" if path.stat().st_size else "the file is empty"
    return f"not a readable image ({' '.join(str(error).split()) or type(error).__name__}); delete or replace it"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to upright RGB, with transparency on white and 16 bits per pixel scaled to 8.

    Raises:
        ValueError: pixels are floating-point numbers, whose range is unknown, or of a mode that Pillow cannot convert.
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
    """Make an RGB copy, for figures, whose longer side has at most `longest_side` pixels; keeps the aspect ratio."""
    image = to_rgb(image)
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image
