import time
from itertools import product

import numpy as np
import pandas as pd
import pytest
from samples import generator
from scipy.stats import chisquare

from utils.images.splitting import draw_classes, on_own_side, split_images


def table_of(**counts):
    """Images of each class, the classes taking turns, so that the table is not sorted by class."""
    rows = sorted((i, label) for label, count in counts.items() for i in range(count))
    return pd.DataFrame([(f"{label}/{i}.png", label) for i, label in rows], columns=["file", "label"])


# by hand: test = round(n * share); valid = round((n - test) * share)
@pytest.mark.parametrize(
    "test_size, valid_size, expected",
    [
        (0.1, 0.1, {"a": (81, 9, 10), "b": (32, 4, 4), "c": (2, 0, 0)}),  # b: 4; 0.1 * 36 = 3.6 -> 4
        # a: 0.5 * 75 = 37.5 -> 38; c: 0.5 -> 0, then 1
        (0.25, 0.5, {"a": (37, 38, 25), "b": (15, 15, 10), "c": (1, 1, 0)}),
    ],
)
def test_every_class_gets_its_share(test_size, valid_size, expected):
    split = split_images(table_of(a=100, b=40, c=2), test_size, valid_size, 0)
    found = {
        label: tuple((split.split[split.label == label] == name).sum() for name in ("train", "valid", "test"))
        for label in "abc"
    }
    assert found == expected


def test_the_seed_and_only_the_seed_decides():
    table = table_of(a=50, b=50)
    first, again, other = (split_images(table, 0.2, 0.2, seed).split for seed in (7, 7, 8))
    assert first.equals(again) and not first.equals(other)
    np.random.seed(1)
    assert split_images(table, 0.2, 0.2, 7).split.equals(first)


def test_every_image_can_be_tested():
    table = table_of(a=20, b=20)
    tested = sum((split_images(table, 0.2, 0.2, seed).split == "test").astype(int) for seed in range(100))
    assert tested.sum() == 100 * 8 and chisquare(tested).pvalue > 0.001


def random_groups(count, seed):
    """Singles, pairs and larger groups at random, across classes too."""
    rng = generator(seed)
    return np.where(rng.random(count) < 0.5, np.arange(count), rng.integers(0, count, count) // 4 * 4)


@pytest.mark.parametrize("seed", range(25))
def test_no_group_is_parted_and_the_shares_stay_near(seed):
    table = table_of(a=100, b=60, c=37, few=3)
    groups = random_groups(len(table), seed)
    split = split_images(table, 0.2, 0.25, seed, groups)
    assert (split.groupby(groups).split.nunique() == 1).all()
    wanted = split_images(table, 0.2, 0.25, seed).groupby(["label", "split"]).size()
    found = split.groupby(["label", "split"]).size().reindex(wanted.index, fill_value=0)
    assert (found - wanted).abs().max() <= 1
    assert split.split.equals(split_images(table, 0.2, 0.25, seed, groups).split)


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_one_change_nothing(seed):
    table = table_of(a=30, b=20, c=2)
    rng, expected = generator(seed), pd.Series("train", index=table.index)  # the rule without groups, written out
    for label in "abc":
        rows = rng.permutation(table.index[table.label == label].to_numpy())
        test = round(len(rows) * 0.2)
        valid = round((len(rows) - test) * 0.3)
        expected[rows[:test]], expected[rows[test : test + valid]] = "test", "valid"
    assert split_images(table, 0.2, 0.3, seed).split.tolist() == expected.tolist()
    assert split_images(table, 0.2, 0.3, seed, generator(9).permutation(len(table))).split.tolist() == expected.tolist()


# a: of 40, 8 are for testing and 0.25 * 32 = 8 for validation; by hand, what whole groups of one size can make of it
@pytest.mark.parametrize(
    "size, expected",
    [
        (2, (24, 8, 8)),
        (4, (24, 8, 8)),
        (5, (20, 10, 10)),  # 5: 10 is nearer to 8 than 5
        (10, (20, 10, 10)),
        (20, (40, 0, 0)),  # 20 is farther from 8 than 0
        (40, (40, 0, 0)),
    ],
)
def test_large_groups_come_as_near_to_the_shares_as_they_can(size, expected):
    table = table_of(a=40, b=40)
    groups = np.where(table.label == "a", table.groupby("label").cumcount() // size, 1000 + np.arange(80))
    split = split_images(table, 0.2, 0.25, 0, groups)
    counts = pd.crosstab(split.label, split.split).reindex(columns=["train", "valid", "test"], fill_value=0)
    assert tuple(counts.loc["a"]) == expected and tuple(counts.loc["b"]) == (24, 8, 8)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_thousands_of_classes_are_split_in_a_moment(size):
    counts = generator().integers(2, 7, 3000)
    table = table_of(**{f"c{i}": count for i, count in enumerate(counts)}).sort_values("label", ignore_index=True)
    start = time.perf_counter()
    split = split_images(table, 0.25, 0.25, 0, np.arange(len(table)) // size)
    assert time.perf_counter() - start < 5  # a second, where each group was compared to all classes half a minute
    assert split.groupby(np.arange(len(table)) // size).split.nunique().max() == 1
    assert (split.split == "test").sum() > 1500


def test_groups_leave_something_to_train_on():
    # a: two pairs.
    split = split_images(table_of(a=4, b=100), 0.25, 0.25, 0, np.array([0, 1, 0, 3, 2, 5, 2] + list(range(7, 104))))
    assert "train" in set(split.split[split.label == "a"])


def test_a_split_does_not_depend_on_which_class_comes_first():
    table = table_of(a=20, b=20)
    one, two = (table.sort_values("label", ascending=up, kind="stable", ignore_index=True) for up in (True, False))
    chosen = [set(split.file[split.split == "test"]) for split in (split_images(t, 0.2, 0.2, 3) for t in (one, two))]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 8


def test_groups_of_two_are_for_testing_where_a_single_image_is_wanted():
    split = split_images(table_of(a=10, b=10), 0.1, 0.1, 0, np.arange(20) // 4 * 2 + np.arange(20) % 2)
    assert split[split.split == "test"].label.value_counts().to_dict() == {"a": 2, "b": 2}


# ---------------------------------------------------------------------------------------- classes held out


def test_classes_are_drawn_from_every_size():
    sizes = {f"c{i:02d}": i for i in range(1, 41)}  # c01 has one image, which makes no pair
    labels = pd.Series(np.repeat(list(sizes), list(sizes.values())))
    drawn = draw_classes(labels, 0.25, 3)
    assert len(drawn) == 10 and drawn == draw_classes(labels, 0.25, 3) != draw_classes(labels, 0.25, 4)
    for step, name in enumerate(drawn):  # 39 classes with pairs, by size: one from each run of 3.9
        assert abs(sizes[name] - 2 - 3.9 * (step + 0.5)) <= 0.5 * 3.9 + 1
    alike = pd.Series(np.repeat([f"c{i:02d}" for i in range(20)], 2))
    for share, seed in product((0.4, 0.6, 0.9), range(20)):  # parts of no whole number of classes
        drawn = draw_classes(labels, share, seed)
        assert len(set(drawn)) == len(drawn) == round(40 * share)
    times = pd.Series([name for seed in range(400) for name in draw_classes(alike, 0.25, seed)]).value_counts()
    assert times.sum() == 400 * 5 and chisquare(times.reindex(alike.unique(), fill_value=0)).pvalue > 0.01


def test_a_group_stays_where_it_is_the_larger_share_of_its_classes():
    labels = pd.Series([*"aaaa", *"bb", *"cc"])
    side = labels.map({"a": "train", "b": "unseen", "c": "train"})
    groups = np.array([0, 0, 1, 2, 0, 1, 1, 3])
    # 0: two of a (2/4) against one of b (1/2), equal, so the first by name; 1: a and c (1/4 + 1/2) against b (1/2)
    assert on_own_side(labels, side, groups).tolist() == [True] * 4 + [False] * 2 + [True] * 2
    # without c, group 1 is a (1/4) against b (1/2)
    kept = labels != "c"
    assert on_own_side(labels[kept], side[kept], groups[kept]).tolist() == [True, True, False, True, False, True]
