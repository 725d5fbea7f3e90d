"""Divides a table of images into the splits: training, validation and test, and classes that are held out."""

from collections import Counter
from itertools import product

import numpy as np
import pandas as pd


def split_sizes(count: int, test_size: float, valid_size: float) -> dict[str, int]:
    """Compute how many of a class's `count` images are for testing and for validation; the rest is for training."""
    test = round(count * test_size)
    return {"test": test, "valid": round((count - test) * valid_size)}


def split_images(
    table: pd.DataFrame, test_size: float, valid_size: float, seed: int, groups: np.ndarray | None = None
) -> pd.DataFrame:
    """Assign every image to a split, in a new column `split`: in every class, the share `test_size` is for testing, and
    `valid_size` of the rest for validation (as in the paper), rounded.

    Args:
        groups: for every image the number of its group, shape (N,); each stays in one split, so the shares are met as
            nearly as whole groups allow. `None`: every image is a group of its own.
    """
    rng = np.random.default_rng(seed)
    groups = np.arange(len(table)) if groups is None else groups
    members: dict[int, Counter] = {}  # group -> class -> number of images
    for group, label in zip(groups, table.label):
        members.setdefault(group, Counter())[label] += 1
    shares, order = {"test": Counter(), "valid": Counter()}, []
    for label, rows in sorted(table.groupby("label").indices.items()):
        order.extend(groups[rng.permutation(rows)])
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
    least as near to its share, the smallest first; never the last images of a class."""
    training: Counter = Counter()
    for group, name in split_of.items():
        if name == "train":
            training.update(members[group])
    larger = sorted((group for group, size in members.items() if size.total() > 1), key=lambda g: members[g].total())
    for (name, left), group in product(missing.items(), larger):
        size = members[group]
        worse = not all(shares[name][label] for label in size) or _improvement(size, left) < 0
        if split_of[group] == "train" and not worse and all(training[label] > size[label] for label in size):
            split_of[group] = name
            left.subtract(size)
            training.subtract(size)


def _improvement(size: Counter, missing: Counter) -> int:
    """Compute by how many images a group of this size brings a split nearer to its share."""
    return sum(abs(missing[label]) - abs(missing[label] - count) for label, count in size.items())


def draw_classes(labels: pd.Series, share: float, seed: int) -> list[str]:
    """Draw a share of the classes of `labels` (N,), rounded, from those with two images or more: one from each of
    equal parts of them by size, so that small and large ones are drawn alike (stratified sampling)."""
    rng = np.random.default_rng(seed)
    counts = labels.value_counts().sort_index()
    by_size = counts[counts > 1].sample(frac=1, random_state=rng).sort_values(kind="stable").index
    number = min(round(share * len(counts)), len(by_size))
    steps = np.arange(number)
    drawn = ((rng.random(number) + steps) * len(by_size) / number).astype(int)
    return sorted(by_size[np.maximum.accumulate(drawn - steps) + steps])  # where two are the same, the next one


def on_own_side(labels: pd.Series, side: pd.Series, groups: np.ndarray) -> np.ndarray:
    """Whether each image's class is on the side to which its group belongs, shape (N,): that where its images are the
    larger share of their classes, so that rare classes keep theirs. The group's other images then take no part."""
    share = 1 / labels.groupby(labels).transform("size")
    of_group = share.groupby([groups, side.to_numpy()]).sum().unstack(fill_value=0).idxmax(axis=1)
    return (side == of_group.loc[groups].to_numpy()).to_numpy()
