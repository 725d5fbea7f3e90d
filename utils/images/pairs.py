"""Pairs of images, similar and dissimilar, and the batches of an epoch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.system.errors import DataError

PAIR_LABELS = ("similar", "dissimilar")  # names of the labels 0 and 1


class Pairs(NamedTuple):
    """Pairs of image positions: `first`, `second` and `label` (0 similar, 1 dissimilar), each of shape (P,)."""

    first: np.ndarray
    second: np.ndarray
    label: np.ndarray

    def at(self, positions: np.ndarray) -> "Pairs":
        """Select the pairs at these positions."""
        return Pairs(*(column[positions] for column in self))


def make_pairs(labels: Sequence, rng: np.random.Generator, rounds: int = 1) -> Pairs:
    """Pair every image with a random one of its own class (never itself) and a random one of another: the paper's rule.
    An image alone in its class gets no pairs, but may be a dissimilar partner. Raises a DataError if there are fewer
    than two classes, or none with two images."""
    classes, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.max() < 2:
        raise DataError("pairs need two classes, one of them with two images; add images or change the split")
    order = np.argsort(codes, kind="stable")  # here, the images of a class stand together, from `start`
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
    """Make the pairs on which a split is scored: for one seed always the same."""
    return make_pairs(labels, np.random.default_rng(seed))


def image_batches(labels: Sequence, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Divide the images into random batches for one epoch; returns their positions, every image once. They are drawn
    two by two from one class, so that even small batches hold a similar pair."""
    labels = np.asarray(labels)
    couples, singles = [], []
    for name in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == name))
        even = len(members) // 2 * 2
        couples.append(members[:even].reshape(-1, 2))
        singles.append(members[even:])
    couples = rng.permutation(np.concatenate(couples))
    order = np.concatenate([couples.ravel(), *singles])
    return np.split(order, range(batch_size, len(order) - 1, batch_size))  # one left over joins the last


def pair_batches(pairs: Pairs, batch_size: int, rng: np.random.Generator) -> list[Pairs]:
    """Divide the pairs into random batches for one epoch."""
    order = rng.permutation(len(pairs.label))
    return [pairs.at(part) for part in np.split(order, range(batch_size, len(order), batch_size))]


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Positions of at most `most` of `count` things, at even spacing."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def evenly_spaced_pairs(pairs: Pairs, most: int = 60) -> Pairs:
    """Select at most `most` of the pairs, at even spacing."""
    return pairs.at(evenly_spaced(len(pairs.label), most))


def used_images(first: Sequence[int], second: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the images in pairs (P,): their U positions, sorted; and `first` and `second` as positions among these."""
    used, renumbered = np.unique(np.concatenate([first, second]).astype(int), return_inverse=True)
    return used, *np.split(renumbered, 2)


def renumber_pairs(pairs: Pairs) -> tuple[np.ndarray, Pairs]:
    """Find the images that occur in `pairs`, and the pairs as positions among these, like `used_images`."""
    used, *ends = used_images(pairs.first, pairs.second)
    return used, Pairs(*ends, pairs.label)
