"""Which part of one image matches which part of the other: the strongest interactions of a pair's regions."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.explain.occlusion import RegionEffects
from utils.images.frame import Box

MATCH_DISTANCE = 0.2  # share of a map's longer side; positions nearer to a chosen match than this belong to it
WEAKEST_MATCH = 0.3  # share of the strongest match; weaker ones are not shown


class Match(NamedTuple):
    """Two regions that match: their centres, (row, column) as shares of each image's sides, and their interaction."""

    first: tuple[float, float]
    second: tuple[float, float]
    strength: float


def matching_regions(
    effects: RegionEffects, first: int, second: int, boxes: tuple[Box, Box], image_size: tuple[int, int]
) -> list[Match]:
    """Find the strongest matches between two images, by their positions in `effects`; `boxes` are the part of the
    network's frame, of `image_size` in pixels, that each image fills. Centres are shares of the images' sides."""
    interaction = effects.interaction(first, second).cpu()
    filled = torch.zeros(2, *image_size)
    for frame, box in zip(filled, boxes):
        frame[box.slices] = 1
    inside = F.adaptive_max_pool2d(filled, interaction.shape[:2]) > 0
    interaction *= inside[0][:, :, None, None] & inside[1]

    def in_image(centre: tuple[float, float], box: Box) -> tuple[float, float]:
        row, column = (share * side for share, side in zip(centre, image_size))
        return min(max((row - box.top) / box.height, 0.0), 1.0), min(max((column - box.left) / box.width, 0.0), 1.0)

    matches = strongest_matches(interaction)
    return [Match(in_image(m.first, boxes[0]), in_image(m.second, boxes[1]), m.strength) for m in matches]


def strongest_matches(interaction: torch.Tensor, count: int = 4) -> list[Match]:
    """Find the pairs of positions with the largest interaction (h, w, h, w), the strongest first.

    Positions nearer than `MATCH_DISTANCE` to a match, in its image, belong to it and start no other. Matches weaker
    than `WEAKEST_MATCH` times the strongest are left out, so there may be fewer than `count`; none where no interaction
    is positive.
    """
    shape = interaction.shape[:2]
    remaining, matches = interaction.clone(), []
    least = WEAKEST_MATCH * interaction.max().clamp(min=0)
    while len(matches) < count and remaining.max() > least:
        at = [int(i) for i in torch.unravel_index(remaining.argmax(), remaining.shape)]
        centres = [tuple((i + 0.5) / side for i, side in zip(position, shape)) for position in (at[:2], at[2:])]
        matches.append(Match(*centres, strength=float(remaining.max())))
        remaining[_near(at[:2], shape)] = 0
        remaining[:, :, _near(at[2:], shape)] = 0
    return matches


def _near(position: list[int], shape: tuple[int, int]) -> torch.Tensor:
    """The positions of a map (h, w) that belong to a match at `position`, bool of shape (h, w)."""
    rows, columns = torch.arange(shape[0])[:, None], torch.arange(shape[1])
    return (rows - position[0]) ** 2 + (columns - position[1]) ** 2 < (MATCH_DISTANCE * max(shape)) ** 2
