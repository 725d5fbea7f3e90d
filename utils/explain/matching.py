"""Which part of one image matches which part of the other: the similarity of a pair, split over pairs of positions."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.explain.evidence import local_mean, traced, weighted
from utils.Siamese import SiameseNetwork

APART = 0.2  # of the map's longer side: positions nearer to a chosen match than this belong to it
SIDE = 32  # positions of a map: more are merged, as the matrix grows with their fourth power
WEAKEST = 0.3  # of the strongest match: weaker ones are not worth showing


class Match(NamedTuple):
    """Centres of two regions that match, (row, column) as shares of each image's sides, and how much they add to the
    similarity."""

    first: tuple[float, float]
    second: tuple[float, float]
    strength: float


def region_similarity(
    model: SiameseNetwork, features1: torch.Tensor, features2: torch.Tensor, method: str = "contrast"
) -> torch.Tensor:
    """The similarity of one pair, split over its positions.

    What position p adds to an embedding is `u_p = sum_c (dz/dA_cp) (A_cp - b_c)`, b what a blurred image has there on
    average, dz/dA by DeepLIFT's rescale rule (`distance`: b = 0, and the derivative averaged over the positions). What
    these leave of `z - mu` is spread evenly, so that `z - mu = sum_p u_p`, and how alike the images are, compared with
    the mean training embedding mu, is `<z1 - mu, z2 - mu> = sum_pq <u1_p, u2_q>`. Its terms say how much position p of
    image 1 and position q of image 2 together speak for "similar".

    Args:
        features1, features2: `Grad_CAM.feature_maps` of the two images by the same method, each of shape (1, C, h, w).

    Returns:
        Shape (h, w, h, w), positions of image 1 first, h and w at most `SIDE`; averaged over a Gaussian neighbourhood
        in both images.
    """
    parts = _contributions(model, torch.cat([features1, features2]), method)
    sides = [min(side, SIDE) for side in parts.shape[2:]]
    merged = F.adaptive_avg_pool2d(local_mean(parts), sides) * (parts[0, 0].numel() / (sides[0] * sides[1]))
    one, two = merged.flatten(2)
    return (one.T @ two).view(*sides, *sides)


def _contributions(model: SiameseNetwork, features: torch.Tensor, method: str) -> torch.Tensor:
    """What each position of N feature maps (N, C, h, w) adds to `z - mu`, shape (N, D, h, w)."""
    leaf, z = traced(model, features, method)
    directions = torch.eye(z.shape[1], device=z.device)[:, None].expand(-1, *z.shape)
    (gradient,) = torch.autograd.grad(z, leaf, directions, is_grads_batched=True)  # (D, N, C, h, w)
    parts = weighted(model, gradient, features, method).transpose(0, 1)
    rest = (z.detach() - model.mean_embedding) - parts.sum((2, 3))
    return parts + rest[..., None, None] / parts[0, 0].numel()


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
