"""Which part of one image matches which part of the other: the strongest interactions of a pair's regions."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.explain.occlusion import RegionEffects
from utils.images.frame import Box

APART = 0.2  # of the map's longer side: positions nearer to a chosen match than this belong to it
WEAKEST = 0.3  # of the strongest match: weaker ones are not worth showing


class Match(NamedTuple):
    """Centres of two regions that match, (row, column) as shares of each image's sides, and how much they add to the
    similarity."""

    first: tuple[float, float]
    second: tuple[float, float]
    strength: float


def matching_regions(
    effects: RegionEffects, first: int, second: int, boxes: tuple[Box, Box], image_size: tuple[int, int]
) -> list[Match]:
    """The strongest matching regions of two images whose effects are known, by position; their places are shares of the
    images' sides, not of the frame's.

    Args:
        boxes: the part of the network's frame, `image_size`, that each image fills.
    """
    similarity = effects.interaction(first, second).cpu()
    inside = [_inside(box, image_size, similarity.shape[:2]) for box in boxes]
    similarity *= inside[0][:, :, None, None] & inside[1]
    return [
        Match(*(_in_image(place, box, image_size) for place, box in zip(match, boxes)), match.strength)
        for match in strongest_matches(similarity)
    ]


def _inside(box: Box, image_size: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
    """Positions of a map that see some of what lies in a box of the frame, bool of shape (h, w)."""
    filled = torch.zeros(1, *image_size)
    filled[0][box.slices] = 1
    return F.adaptive_max_pool2d(filled, shape)[0] > 0


def _in_image(place: tuple[float, float], box: Box, image_size: tuple[int, int]) -> tuple[float, float]:
    """A place in shares of the frame's sides, as shares of those of the image in the box."""
    row = (place[0] * image_size[0] - box.top) / box.height
    column = (place[1] * image_size[1] - box.left) / box.width
    return min(max(row, 0.0), 1.0), min(max(column, 0.0), 1.0)


def strongest_matches(similarity: torch.Tensor, count: int = 4) -> list[Match]:
    """The pairs of positions with the largest similarity (h, w, h, w), strongest first.

    Positions nearer than `APART` to a match, in its image, belong to it and start no other. Matches weaker than
    `WEAKEST` times the strongest are left out, so there may be fewer than `count`; none where no similarity is
    positive.
    """
    shape = similarity.shape[:2]
    left, matches = similarity.clone(), []
    least = WEAKEST * similarity.max().clamp(min=0)
    while len(matches) < count and left.max() > least:
        at = [int(i) for i in torch.unravel_index(left.argmax(), left.shape)]
        centres = [tuple((i + 0.5) / side for i, side in zip(position, shape)) for position in (at[:2], at[2:])]
        matches.append(Match(*centres, strength=float(left.max())))
        left[_near(at[:2], shape)] = 0
        left[:, :, _near(at[2:], shape)] = 0
    return matches


def _near(position: list[int], shape: tuple[int, int]) -> torch.Tensor:
    """Positions of a map (h, w) that belong to a match at one of them, bool."""
    rows, columns = torch.arange(shape[0])[:, None], torch.arange(shape[1])
    return (rows - position[0]) ** 2 + (columns - position[1]) ** 2 < (APART * max(shape)) ** 2
