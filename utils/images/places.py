"""Regions of images in pixels of the originals, and in pixels of the network's frame."""

import numpy as np
import pandas as pd

from utils.images.cache import look_up
from utils.images.frame import Frame
from utils.system.errors import DataError
from utils.system.settings import Config

BOX = ["top", "bottom", "left", "right"]


def _scales(config: Config, files: pd.Series, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each file and side of a `BOX`, (M, 4): where the image begins in the frame, pixels of the frame for one of
    the image, and the image's height or width."""
    _, rows, _ = look_up(config, frame, files.unique())
    sizes = rows.reindex(files)[["width", "height"]].fillna(1).to_numpy(int)
    boxes = np.array([frame.box(tuple(size)) for size in sizes]).reshape(-1, 4)
    start, end, limit = boxes[:, [0, 0, 2, 2]], boxes[:, [1, 1, 3, 3]], sizes[:, [1, 1, 0, 0]]
    return start, (end - start) / limit, limit


def in_originals(config: Config, regions: pd.DataFrame, frame: Frame) -> pd.DataFrame:
    """Convert the `BOX` of each row from pixels of the frame to those of its `file`; without what lies in padding."""
    start, scale, limit = _scales(config, regions.file, frame)
    found = regions.copy()
    found[BOX] = ((regions[BOX] - start) / scale).clip(0, limit).round().astype(int)
    return found[(found.top < found.bottom) & (found.left < found.right)]


def in_frame(config: Config, regions: pd.DataFrame, frame: Frame, source: str) -> np.ndarray:
    """Convert the `BOX` of each row to pixels of the frame, those that it touches, (M, 4).

    Raises:
        DataError: a box is empty, or not inside of its image; `source` says where it was read.
    """
    start, scale, limit = _scales(config, regions.file, frame)
    box = regions[BOX].to_numpy()
    wrong = ((box < 0) | (box > limit)).any(1) | (box[:, [0, 2]] >= box[:, [1, 3]]).any(1)
    if wrong.any():
        at = int(wrong.argmax())
        where = f"{regions.file.iloc[at]}: {', '.join(map(str, box[at]))} ({', '.join(BOX)})"
        size = f"{limit[at, 2]} x {limit[at, 0]} pixels"
        raise DataError(f"{source}: {where} is empty or not inside of its image of {size}; correct it")
    exact = start + box * scale
    return np.where([True, False, True, False], np.floor(exact + 1e-6), np.ceil(exact - 1e-6)).astype(int)
