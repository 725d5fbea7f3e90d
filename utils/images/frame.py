"""Fits images of any size into the frame that the network takes, as uint8 tensors; decodes files, in threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from utils.images.reading import read_image, to_rgb, what_is_wrong
from utils.system.errors import DataError
from utils.system.settings import Normalization

CHUNK_BYTES = 32 * 2**20  # of pixels that are decoded ahead


class Box(NamedTuple):
    """A rectangle in pixels; row `bottom` and column `right` are the first ones outside."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns: `pixels[box.slices]` cuts the box out of an array (H, W, ...)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Frame(NamedTuple):
    """How every image is fitted into the network's input size."""

    size: tuple[int, int]  # height, width
    fit: str = "stretch"  # as in the paper; `pad` keeps the aspect ratio, and fills the rest with the colour of `mean`
    mean: tuple[float, float, float] = Normalization().mean
    levels: tuple[float, float] | None = None  # that become black and white, see `to_rgb`

    def box(self, image_size: tuple[int, int]) -> Box:
        """Compute the part of the frame that an image of (width, height) pixels fills."""
        filled = self.size
        if self.fit == "pad":
            scale = min(side / own for side, own in zip(self.size, image_size[::-1]))
            filled = [max(1, round(scale * own)) for own in image_size[::-1]]
        top, left = ((side - part) // 2 for side, part in zip(self.size, filled))
        return Box(top, top + filled[0], left, left + filled[1])


def mean_colour(mean: Sequence[float]) -> list[int]:
    """Convert the mean of a normalisation to RGB in 0-255; after normalisation, this colour is (nearly) zero."""
    return [round(255 * channel) for channel in mean]


def to_uint8(image: Image.Image, frame: Frame) -> torch.Tensor:
    """Fit an image into a frame; returns uint8 of shape (3, H, W)."""
    image = to_rgb(image, frame.levels)
    box = frame.box(image.size)
    pixels = np.empty((*frame.size, 3), dtype=np.uint8)
    pixels[:] = mean_colour(frame.mean)
    pixels[box.slices] = image.resize((box.width, box.height), Image.Resampling.BILINEAR)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def decode(
    paths: Sequence[Path],
    frame: Frame,
    describe: Callable[[Path, Image.Image], Any],
    num_workers: int = 0,
    verbose: bool = True,
) -> Iterator[tuple[np.ndarray, Any] | str]:
    """Read image files in `num_workers` threads; yields for each its pixels in the frame, uint8 (3, H, W), and what
    `describe` tells of the file and its image; or what is wrong with it and what to do."""

    def decoded(path: Path) -> tuple[np.ndarray, Any] | str:
        try:
            image = read_image(path, frame.levels)
            return to_uint8(image, frame).numpy(), describe(path, image)
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")
        except OSError as error:  # the file went, or its drive, before it was described
            return what_is_wrong(path, error)

    step = max(1, CHUNK_BYTES // (3 * frame.size[0] * frame.size[1]))
    parts = (paths[start : start + step] for start in range(0, len(paths), step))
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        images = chain.from_iterable(pool.map(decoded, part) for part in parts)
        yield from tqdm(images, "Reading images", len(paths), disable=not verbose)
