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
    `valid_size` of the rest for validation (as in the paper), rounded. Images of the same number in `groups` (N,) stay
    together, so the shares are met as nearly as whole groups allow."""
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
    # Each group goes to the first split where as many images of its classes are missing, and otherwise to training.
    missing, training, split_of = {name: Counter(counts) for name, counts in shares.items()}, Counter(), {}
    for group in dict.fromkeys(order):
        size = members[group]
        fits = [name for name, left in missing.items() if all(left[label] >= count for label, count in size.items())]
        split_of[group] = fits[0] if fits else "train"
        if fits:
            missing[fits[0]].subtract(size)
        else:
            training.update(size)
    # Where images are still missing, larger groups move from training if they bring the split at least as near to its
    # share, the smallest first; never the last images of a class.
    larger = [group for group in sorted(members, key=lambda g: members[g].total()) if members[group].total() > 1]
    for (name, left), group in product(missing.items(), larger):
        size = members[group]
        nearer = sum(abs(left[label]) - abs(left[label] - count) for label, count in size.items())  # by so many images
        wanted = all(shares[name][label] for label in size) and nearer >= 0
        if split_of[group] == "train" and wanted and all(training[label] > size[label] for label in size):
            split_of[group] = name
            left.subtract(size)
            training.subtract(size)
    return table.assign(split=[split_of[group] for group in groups])


def draw_classes(labels: pd.Series, share: float, seed: int) -> list[str]:
    """Draw a share of the classes of `labels` (N,), rounded, but two at least, from those with two images or more: one
    from each of equal parts of them by size, so that small and large ones are drawn alike (stratified sampling)."""
    rng = np.random.default_rng(seed)
    counts = labels.value_counts().sort_index()
    by_size = counts[counts > 1].sample(frac=1, random_state=rng).sort_values(kind="stable").index
    number = min(max(2, round(share * len(counts))), len(by_size))
    steps = np.arange(number)
    drawn = ((rng.random(number) + steps) * len(by_size) / number).astype(int)
    return sorted(by_size[np.maximum.accumulate(drawn - steps) + steps])  # where two are the same, the next one


def on_own_side(labels: pd.Series, side: pd.Series, groups: np.ndarray) -> np.ndarray:
    """Whether each image's class is on the side to which its group belongs, shape (N,): that where its images are the
    larger share of their classes, so that rare classes keep theirs. The group's other images then take no part."""
    share = 1 / labels.groupby(labels).transform("size")
    of_group = share.groupby([groups, side.to_numpy()]).sum().unstack(fill_value=0).idxmax(axis=1)
    return (side == of_group.loc[groups].to_numpy()).to_numpy()
