"""Pairs of hashes that differ in few bits, among a million of them.

If two hashes differ in at most `most` bits and are cut into `PARTS`, they differ in at most `most / PARTS` bits of at
least one part (multi-index hashing: Norouzi, Punjani & Fleet, 2012, arXiv 1307.2982). So for each part only those pairs
are compared that nearly agree in it: one in some hundred of all pairs. None is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

CHUNK = 2048  # rows and columns of the distance matrix at a time: 16 MB
FEW = 10_000  # hashes: up to here all pairs are compared, in less than a second
PARTS = 14  # of 18 or 19 of 256 bits: among a million hashes about four have the same value in one
CANDIDATES = 2**20  # pairs that are compared at a time


def close_pairs(bits: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """All pairs of different rows of `bits`, bool (N, 256), that differ in at most `most` places.

    Yields:
        Positions, int (2, P), a portion at a time; a pair may come more than once, and in either order.
    """
    if len(bits) <= FEW:
        yield from _compare_all(bits, most)
        return
    words = np.ascontiguousarray(np.packbits(bits, axis=1).view(np.uint64).T)
    compared = 0
    for pairs in _candidates(bits, most // PARTS):
        compared += pairs.shape[1]
        if compared > len(bits) ** 2 / 8:  # so many agree in a part that it is quicker to compare all
            yield from _compare_all(bits, most)
            return
        pairs = pairs[:, _distance(words[:2], pairs) <= most]  # half of the bits rule out nearly all
        yield pairs[:, _distance(words, pairs) <= most]


def _distance(words: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """In how many bits pairs (2, P) differ in some words, uint64 (W, N): shape (P,)."""
    first, second = pairs
    return sum(np.bitwise_count(word[first] ^ word[second]).astype(np.uint16) for word in words)


def _compare_all(bits: np.ndarray, most: int) -> Iterator[np.ndarray]:
    for row in range(0, len(bits), CHUNK):
        for column in range(row, len(bits), CHUNK):
            a, b = (bits[start : start + CHUNK].astype(np.float32) * 2 - 1 for start in (row, column))
            pairs = np.stack(np.nonzero(a @ b.T >= bits.shape[1] - 2 * most))  # bits that agree less those that differ
            pairs += [[row], [column]]
            yield pairs[:, pairs[0] < pairs[1]]


def _candidates(bits: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """The pairs that differ in at most `most` bits of a part, part by part, in portions of about `CANDIDATES`."""
    for part in np.array_split(np.arange(bits.shape[1]), PARTS):
        values = bits[:, part] @ (1 << np.arange(len(part)))
        order = np.argsort(values, kind="stable")
        values = values[order]
        sizes = np.bincount(values, minlength=1 << len(part))
        ends = np.cumsum(sizes)
        for mask in _masks(len(part), most):
            partners = values ^ mask
            start = ends[partners] - sizes[partners] if mask else np.arange(1, len(values) + 1)  # itself is no partner
            count = np.where(partners >= values, ends[partners] - start, 0)  # every two values meet once
            for first, second in _runs(start, count):
                yield np.stack([order[first], order[second]])


def _masks(width: int, most: int) -> list[int]:
    """All numbers of `width` bits of which at most `most` are 1."""
    return [sum(1 << bit for bit in ones) for size in range(most + 1) for ones in combinations(range(width), size)]


def _runs(start: np.ndarray, count: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every position i with each of start[i], start[i] + 1, ... start[i] + count[i] - 1, in portions."""
    some = np.flatnonzero(count)
    total = np.cumsum(count[some])
    cuts = np.searchsorted(total, np.arange(CANDIDATES, total[-1], CANDIDATES)) if len(some) else []
    for portion in np.split(some, cuts):
        number = count[portion]
        offset = start[portion] - (np.cumsum(number) - number)
        yield np.repeat(portion, number), np.repeat(offset, number) + np.arange(number.sum())
