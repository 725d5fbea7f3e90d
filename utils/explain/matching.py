"""Which part of one image matches which part of the other: the strongest interactions of a pair's regions."""

from __future__ import annotations

from typing import NamedTuple

import torch

APART = 0.2  # of the map's longer side: positions nearer to a chosen match than this belong to it
WEAKEST = 0.3  # of the strongest match: weaker ones are not worth showing


class Match(NamedTuple):
    """Centres of two regions that match, (row, column) as shares of each image's sides, and how much they add to the
    similarity."""

    first: tuple[float, float]
    second: tuple[float, float]
    strength: float


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
