"""Pairs of images, similar and dissimilar, and the batches that training takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.system.errors import DataError

KINDS = ("similar", "dissimilar")  # of pairs; the positions are the labels


class Pairs(NamedTuple):
    """Pairs of image positions: `first`, `second` and `label` (0 similar, 1 dissimilar), each of shape (P,)."""

    first: np.ndarray
    second: np.ndarray
    label: np.ndarray

    def at(self, positions: np.ndarray) -> Pairs:
        """The pairs at positions."""
        return Pairs(*(column[positions] for column in self))


def make_pairs(labels: Sequence, rng: np.random.Generator, rounds: int = 1) -> Pairs:
    """The paper's rule: every image gets one partner of its own class (never itself) and one of another.

    Args:
        labels: class of each image, shape (N,).
        rng: source of the partners.
        rounds: how often the rule is applied, with new partners.

    Returns:
        2 x `rounds` pairs per image; an image alone in its class starts none, but may be a dissimilar partner.

    Raises:
        DataError: fewer than two classes, or no class with two images.
    """
    classes, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.max() < 2:
        raise DataError("pairs need two classes, one of them with two images; add images or change the split")
    order = np.argsort(codes, kind="stable")  # the images of a class stand together, from `start`
    start = (np.cumsum(counts) - counts)[codes]
    size = counts[codes]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    anchors = np.tile(np.flatnonzero(size >= 2), rounds)
    start, size, place = start[anchors], size[anchors], place[anchors]
    step = rng.integers(1, size)  # 1 ... size - 1 places onwards, around the class: never the image itself
    similar = order[start + (place - start + step) % size]
    other = rng.integers(0, len(order) - size)  # a place among those outside the class
    dissimilar = order[np.where(other < start, other, other + size)]
    label = np.concatenate([np.zeros(len(anchors), int), np.ones(len(anchors), int)])
    return Pairs(np.concatenate([anchors, anchors]), np.concatenate([similar, dissimilar]), label)


def evaluation_pairs(labels: Sequence, seed: int) -> Pairs:
    """The fixed pairs on which a split is always judged."""
    return make_pairs(labels, np.random.default_rng(seed))


def image_batches(labels: Sequence, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One epoch of image positions in random batches, every image once.

    Images are drawn as couples of one class, so that even small batches hold a similar pair. An image left over
    joins the last batch: alone it would make no pair.
    """
    labels = np.asarray(labels)
    couples, singles = [], []
    for name in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == name))
        even = len(members) // 2 * 2
        couples.append(members[:even].reshape(-1, 2))
        singles.append(members[even:])
    couples = rng.permutation(np.concatenate(couples))
    order = np.concatenate([couples.ravel(), *singles])
    return np.split(order, range(batch_size, len(order) - 1, batch_size))


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` positions, evenly from all."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def pair_batches(pairs: Pairs, batch_size: int, rng: np.random.Generator) -> list[Pairs]:
    """One epoch of pairs in random batches."""
    order = rng.permutation(len(pairs.label))
    return [pairs.at(part) for part in np.split(order, range(batch_size, len(order), batch_size))]


def some_pairs(pairs: Pairs, most: int = 60) -> Pairs:
    """At most `most` pairs, evenly from all, so that interventions take seconds."""
    return pairs.at(evenly(len(pairs.label), most))


def used_in(first: Sequence[int], second: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images that are in pairs (P,), sorted, and the first and second images of these by their places among them,
    so that no other images have to be looked at or held."""
    used, places = np.unique(np.concatenate([first, second]).astype(int), return_inverse=True)
    return used, *np.split(places, 2)


def only_used(pairs: Pairs) -> tuple[np.ndarray, Pairs]:
    """`used_in`, of pairs with their labels."""
    used, *ends = used_in(pairs.first, pairs.second)
    return used, Pairs(*ends, pairs.label)
