"""One image file -> an upright RGB picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.settings import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"}


class DataError(UserError):
    """The images are missing, unreadable or too few."""


def read_image(path: Path) -> Image.Image:
    """One image file as `to_rgb` makes it.

    Raises:
        DataError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image; check the path, or train again if the data have moved") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error}); delete or replace it") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as upright RGB, transparency on white, 16 bits a pixel scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255: nearly all white
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def shrink(image: Image.Image, longest_side: int = 640) -> Image.Image:
    """An RGB copy of at most `longest_side` pixels, at the same aspect ratio: enough for a figure."""
    image = to_rgb(image)
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    return image
