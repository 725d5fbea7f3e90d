"""Regions in pixels of original images, and in pixels of the network's frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from utils.images.cache import ImageCache
from utils.images.frame import Frame
from utils.system.errors import DataError
from utils.system.settings import Config

SIDES = (("top", "height"), ("bottom", "height"), ("left", "width"), ("right", "width"))


def _with_boxes(config: Config, regions: pd.DataFrame, frame: Frame) -> pd.DataFrame:
    """Add the size of each region's image, and the part of the frame that it fills: `y`, `x`, `down`, `across`."""
    files = regions.file.drop_duplicates().tolist()
    _, rows, _ = ImageCache(config, frame).find(files)
    sizes = rows.reindex(files)[["width", "height"]]
    boxes = [frame.box((width, height)) for width, height in sizes.fillna(1).astype(int).to_numpy()]
    sizes[["y", "x", "down", "across"]] = [(box.top, box.left, box.height, box.width) for box in boxes]
    return regions.join(sizes, on="file")


def in_originals(config: Config, regions: pd.DataFrame, frame: Frame) -> pd.DataFrame:
    """Convert `top`, `bottom`, `left`, `right` from pixels of the frame to those of the images `file`; what lies in the
    frame's padding is left out."""
    placed, found = _with_boxes(config, regions, frame), regions.copy()
    for side, size in SIDES:
        start, length = ("y", "down") if size == "height" else ("x", "across")
        share = ((placed[side] - placed[start]) / placed[length]).clip(0, 1)
        found[side] = (share * placed[size]).round().fillna(0).astype(int)
    return found[(found.top < found.bottom) & (found.left < found.right)]


def in_frame(config: Config, regions: pd.DataFrame, frame: Frame, source: Path) -> pd.DataFrame:
    """Convert them back; pixels of the frame that a region covers in part are its own.

    Raises:
        DataError: a region is empty or not inside its image; `source` is the file that says so.
    """
    placed = _with_boxes(config, regions, frame)
    outside = (placed.top < 0) | (placed.left < 0) | (placed.top >= placed.bottom) | (placed.left >= placed.right)
    outside |= (placed.bottom > placed.height) | (placed.right > placed.width)
    if outside.any():
        row = placed[outside].iloc[0]
        raise DataError(
            f"{source}: {row.file}: the region {row.top}, {row.bottom}, {row.left}, {row.right} (top, bottom, left, "
            f"right) does not lie in the image of {row.width:.0f} x {row.height:.0f} pixels; correct the file"
        )
    found = regions.copy()
    for side, size in SIDES:
        start, length = ("y", "down") if size == "height" else ("x", "across")
        whole = np.floor if side in ("top", "left") else np.ceil
        found[side] = whole(placed[start] + placed[side] / placed[size] * placed[length]).fillna(0).astype(int)
    return found
