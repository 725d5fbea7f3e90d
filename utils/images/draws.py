"""What is to happen to training images: the random draws of `augmentation`, as plain arrays with a row per image.

The distributions are those of torchvision's RandomHorizontalFlip, RandomRotation, RandomResizedCrop, ColorJitter and
RandomErasing. Boxes of CutMix (Yun et al., 2019) are drawn as those that are erased.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from utils.settings import ImageOptions

COLOURS = ("brightness", "contrast", "saturation", "hue")
TRIES = 10  # at a box that fits
# An image takes as many numbers, whatever is switched on: switching one change on leaves the others as they were.
COLUMNS = {"flips": 2, "angle": 1, "order": 4, "factors": 4, "crop": 2 * TRIES + 2, "hit": 1, "hole": 2 * TRIES + 2}
NUMBERS = sum(COLUMNS.values())


class Changes(NamedTuple):
    """What happens to N images, in this order; what is switched off is None."""

    flips: np.ndarray | None  # (N, 2) bool: left to right, upside down
    angles: np.ndarray | None  # (N,) degrees, counter-clockwise
    crops: np.ndarray | None  # (N, 4) ints: top, left, height, width of what is enlarged to the size the image had
    order: np.ndarray | None  # (N, K) positions in `COLOURS`: what comes first, second, ...
    factors: np.ndarray  # (N, 4) of the colour changes
    holes: np.ndarray | None  # (N, 4) ints: top, left, height, width; without a height, nothing is erased
    covers: np.ndarray | None  # (N, 4), likewise: what is covered by another image

    def of(self, part: slice) -> Changes:
        """Those of some of the images."""
        return Changes(*(None if rows is None else rows[part] for rows in self))


def draw_changes(
    options: ImageOptions, rng: np.random.Generator, count: int, size: tuple[int, int], progress: float = 1.0
) -> Changes:
    """Changes of `count` images of `size` (height, width).

    Args:
        progress: in [0, 1]; boxes are erased with `progress` times their probability.
    """
    numbers = rng.random((count, NUMBERS))
    ends = np.cumsum(list(COLUMNS.values()))[:-1]
    drawn = dict(zip(COLUMNS, np.split(numbers, ends, axis=1)))
    height, width = size

    chances = (options.HorizontalFlip, options.VerticalFlip)
    limit, smallest = options.RandomRotationDegrees, options.RandomResizedCrop
    strengths = np.array([getattr(options, name) for name in COLOURS])
    lowest = np.where(np.array(COLOURS) == "hue", -strengths, (1 - strengths).clip(0))
    highest = np.where(np.array(COLOURS) == "hue", strengths, 1 + strengths)
    on = np.flatnonzero(strengths)
    shape = width / height
    crops = draw_boxes(drawn["crop"], size, (smallest, 1), (3 / 4 * shape, 4 / 3 * shape), size, (0, 0, *size))
    boxes = draw_boxes(drawn["hole"], size, (0.02, 0.33), (1 / 3.3, 1 / 0.3), (height - 1, width - 1), (0, 0, 0, 0))
    return Changes(
        flips=drawn["flips"] < chances if any(chances) else None,
        angles=between(drawn["angle"][:, 0], -limit, limit) if limit else None,
        crops=crops if smallest < 1 else None,
        order=on[drawn["order"][:, on].argsort(1)] if on.size else None,
        factors=between(drawn["factors"], lowest, highest),
        holes=np.where(drawn["hit"] < progress * options.RandomErasing, boxes, 0) if options.RandomErasing else None,
        # From the other end, so that few are erased as well.
        covers=np.where(drawn["hit"] >= 1 - options.CutMix, boxes, 0) if options.CutMix else None,
    )


def between(numbers: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Numbers uniform in [0, 1) -> in [low, high)."""
    return low + (high - low) * numbers


def draw_boxes(
    numbers: np.ndarray,
    size: tuple[int, int],
    share: tuple[float, float],
    aspect: tuple[float, float],
    largest: tuple[int, int],
    otherwise: tuple[int, int, int, int],
) -> np.ndarray:
    """Boxes inside images of `size` (height, width): of some tries the first that fits.

    Args:
        numbers: uniform in [0, 1), shape (N, 2 `TRIES` + 2).
        share: least and greatest share of the image's area.
        aspect: least and greatest width / height, drawn on a logarithmic scale.
        largest: height and width that still fit.
        otherwise: the box where no try fits.

    Returns:
        Top, left, height and width, ints of shape (N, 4).
    """
    height, width = size
    area = height * width * between(numbers[:, :TRIES], *share)
    ratio = np.exp(between(numbers[:, TRIES : 2 * TRIES], *np.log(aspect)))
    tall, wide = np.sqrt(area / ratio).round().astype(int), np.sqrt(area * ratio).round().astype(int)
    fits = (0 < tall) & (tall <= largest[0]) & (0 < wide) & (wide <= largest[1])
    first = np.arange(len(numbers)), fits.argmax(1)
    tall, wide = tall[first], wide[first]
    top, left = (numbers[:, -2] * (height - tall + 1)).astype(int), (numbers[:, -1] * (width - wide + 1)).astype(int)
    return np.where(fits.any(1)[:, None], np.stack([top, left, tall, wide], axis=1), otherwise)
