"""A table of images -> which of them are for training, for validation and for testing."""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush

import numpy as np
import pandas as pd


def split_sizes(count: int, test_size: float, valid_size: float) -> dict[str, int]:
    """How many images of a class of `count` are for testing and for validation, the rest being for training."""
    test = round(count * test_size)
    return {"test": test, "valid": round((count - test) * valid_size)}


def split_images(
    table: pd.DataFrame, test_size: float, valid_size: float, seed: int, groups: np.ndarray | None = None
) -> pd.DataFrame:
    """Add the column `split`: in every class, `test_size` of the images are for testing and `valid_size` of the
    rest for validation (as in the paper), rounded; a class too small for a share of its own trains only.

    Args:
        groups: for every image the number of its group, shape (N,); a group is never split up, so the shares are met
            as nearly as whole groups allow. `None`: every image stands alone.
    """
    rng = np.random.default_rng(seed)
    groups = np.arange(len(table)) if groups is None else groups
    members: dict[int, Counter] = {}  # of each group: images of each class
    for group, label in zip(groups, table.label):
        members.setdefault(group, Counter())[label] += 1
    shares, order = {"test": Counter(), "valid": Counter()}, []
    for label, rows in table.groupby("label", sort=True).groups.items():
        order.extend(groups[table.index.get_indexer(rng.permutation(rows.to_numpy()))])
        for name, count in split_sizes(len(rows), test_size, valid_size).items():
            shares[name][label] = count
    missing = {name: Counter(counts) for name, counts in shares.items()}
    place = _deal_out({group: members[group] for group in order}, missing)
    _fill_up(place, members, shares, missing)
    return table.assign(split=[place[group] for group in groups])


def _deal_out(members: dict[int, Counter], missing: dict[str, Counter]) -> dict[int, str]:
    """The first groups that fit into what is missing for testing are for testing, the next for validation, and the rest
    for training; `missing` gets smaller."""
    place = {}
    for group, size in members.items():
        fits = [name for name, left in missing.items() if all(left[label] >= count for label, count in size.items())]
        place[group] = fits[0] if fits else "train"
        if fits:
            missing[fits[0]].subtract(size)
    return place


def _fill_up(
    place: dict[int, str], members: dict[int, Counter], shares: dict[str, Counter], missing: dict[str, Counter]
) -> None:
    """Where no group fitted, take larger ones from training that come at least as near to the share, the nearest first;
    never the last images of a class.

    What a group gains only falls as others are taken, so the best one is found without asking all of them again.
    """
    training: Counter = Counter()
    for group, name in place.items():
        if name == "train":
            training.update(members[group])
    for name, left in missing.items():
        queue = [
            (-_gain(size, left), position, group)
            for position, (group, size) in enumerate(members.items())
            if size.total() > 1 and place[group] == "train" and all(shares[name][label] for label in size)
        ]
        heapify(queue)
        while queue:
            before, position, group = heappop(queue)
            size, gain = members[group], _gain(members[group], left)
            if gain < 0 or any(training[label] <= count for label, count in size.items()):
                continue
            if gain < -before:
                heappush(queue, (-gain, position, group))
                continue
            place[group] = name
            left.subtract(size)
            training.subtract(size)


def _gain(size: Counter, missing: Counter) -> int:
    """How much nearer a group comes to what is missing."""
    return sum(abs(missing[label]) - abs(missing[label] - count) for label, count in size.items())
