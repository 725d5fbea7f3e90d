"""Divides a table of images into the splits: training, validation and test."""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush

import numpy as np
import pandas as pd


def split_sizes(count: int, test_size: float, valid_size: float) -> dict[str, int]:
    """Compute how many of a class's `count` images are for testing and for validation; the rest is for training."""
    test = round(count * test_size)
    return {"test": test, "valid": round((count - test) * valid_size)}


def split_images(
    table: pd.DataFrame, test_size: float, valid_size: float, seed: int, groups: np.ndarray | None = None
) -> pd.DataFrame:
    """Assign every image to a split, in a new column `split`.

    In every class, the share `test_size` of the images is for testing, and `valid_size` of the rest for validation (as
    in the paper), rounded; of a very small class, that may be none.

    Args:
        groups: for every image the number of its group, shape (N,); all images of a group come into one split, so the
            shares are met as nearly as whole groups allow. `None`: every image is a group of its own.
    """
    rng = np.random.default_rng(seed)
    groups = np.arange(len(table)) if groups is None else groups
    members: dict[int, Counter] = {}  # group -> class -> number of images
    for group, label in zip(groups, table.label):
        members.setdefault(group, Counter())[label] += 1
    shares, order = {"test": Counter(), "valid": Counter()}, []
    for label, rows in table.groupby("label", sort=True).groups.items():
        order.extend(groups[table.index.get_indexer(rng.permutation(rows.to_numpy()))])
        for name, count in split_sizes(len(rows), test_size, valid_size).items():
            shares[name][label] = count
    missing = {name: Counter(counts) for name, counts in shares.items()}
    split_of = _assign_fitting_groups({group: members[group] for group in order}, missing)
    _add_larger_groups(split_of, members, shares, missing)
    return table.assign(split=[split_of[group] for group in groups])


def _assign_fitting_groups(members: dict[int, Counter], missing: dict[str, Counter]) -> dict[int, str]:
    """Assign each group to the first split, of test and validation, where as many images of its classes are `missing`,
    and otherwise to training; what it fills is taken off `missing`."""
    split_of = {}
    for group, size in members.items():
        fits = [name for name, left in missing.items() if all(left[label] >= count for label, count in size.items())]
        split_of[group] = fits[0] if fits else "train"
        if fits:
            missing[fits[0]].subtract(size)
    return split_of


def _add_larger_groups(
    split_of: dict[int, str], members: dict[int, Counter], shares: dict[str, Counter], missing: dict[str, Counter]
) -> None:
    """Where images are still missing, move groups from training that exceed what is missing but bring the split at
    least as near to its share, the best first; never the last images of a class.

    A group's improvement only falls as others are moved. So the queue finds the best one without computing all again.
    """
    training: Counter = Counter()
    for group, name in split_of.items():
        if name == "train":
            training.update(members[group])
    for name, left in missing.items():
        queue = [
            (-_improvement(size, left), position, group)
            for position, (group, size) in enumerate(members.items())
            if size.total() > 1 and split_of[group] == "train" and all(shares[name][label] for label in size)
        ]
        heapify(queue)
        while queue:
            before, position, group = heappop(queue)
            size, improvement = members[group], _improvement(members[group], left)
            if improvement < 0 or any(training[label] <= count for label, count in size.items()):
                continue
            if improvement < -before:
                heappush(queue, (-improvement, position, group))
                continue
            split_of[group] = name
            left.subtract(size)
            training.subtract(size)


def _improvement(size: Counter, missing: Counter) -> int:
    """Compute by how many images a group of this size brings a split nearer to its share."""
    return sum(abs(missing[label]) - abs(missing[label] - count) for label, count in size.items())
