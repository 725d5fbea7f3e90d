from collections import Counter

import numpy as np
import pandas as pd
import pytest
from samples import generator
from scipy.stats import chisquare

from utils.images.pairs import (
    Pairs,
    evaluation_pairs,
    evenly_spaced_pairs,
    image_batches,
    make_pairs,
    pair_batches,
    renumber_pairs,
)
from utils.system.errors import DataError


@pytest.mark.parametrize(
    "labels",
    [
        ["rose", "daisy", "rose", "tulip", "daisy", "rose", "rose", "tulip"],
        ["b", "a", "lonely", "a", "b", "b"],  # an image alone in its class
        [1, 0, 0, 0],
        pd.Series(["x", "y", "x", "y"], index=[7, 3, 5, 1]),
    ],
)
@pytest.mark.parametrize("rounds", [1, 3])
def test_pairs_follow_the_papers_rule(labels, rounds):
    labels = list(labels)
    pairs = make_pairs(labels, generator(), rounds)
    with_partner = [i for i in range(len(labels)) if labels.count(labels[i]) > 1]
    for wanted in (0, 1):
        assert Counter(pairs.first[pairs.label == wanted].tolist()) == dict.fromkeys(with_partner, rounds)
    assert len(pairs.first) == len(pairs.second) == len(pairs.label) == 2 * rounds * len(with_partner)
    for first, second, label in zip(*pairs, strict=True):
        assert first != second
        assert (labels[first] != labels[second]) == label


def test_every_possible_partner_is_equally_likely():
    labels = ["b", "a", "c", "a", "b", "a", "lonely", "b", "a"]
    pairs = make_pairs(labels, generator(1), rounds=3000)
    for anchor in (i for i in range(9) if labels[i] in "ab"):
        for wanted in (0, 1):
            possible = [i for i in range(9) if i != anchor and (labels[i] != labels[anchor]) == wanted]
            counts = Counter(pairs.second[(pairs.first == anchor) & (pairs.label == wanted)].tolist())
            assert set(counts) == set(possible)
            assert len(possible) == 1 or chisquare([counts[i] for i in possible]).pvalue > 1e-4


@pytest.mark.parametrize("labels", [["a", "a", "a"], ["a", "b", "c"], ["a"]])
def test_labels_that_give_no_similar_or_no_dissimilar_pair_are_an_error(labels):
    with pytest.raises(DataError, match="two classes, one of them with two images"):
        make_pairs(labels, generator())


def test_evaluation_pairs_depend_on_the_seed_alone():
    labels = ["a", "b", "c"] * 20
    first, again, other = (evaluation_pairs(labels, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first.second, other.second)


@pytest.mark.parametrize("batch_size", [2, 3, 7, 64, 1000])
@pytest.mark.parametrize("count", [2, 3, 33, 64, 65])
def test_image_batches_hold_every_image_once(count, batch_size):
    labels = generator(5).integers(0, 3, count)
    batches = image_batches(labels, batch_size, generator())
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    *full, last = map(len, batches)
    assert set(full) <= {batch_size} and 2 <= last <= batch_size + 1


@pytest.mark.parametrize("labels", [["a", "b", "c", "d"] * 10, [0] * 10 + [1] * 30, [i // 2 for i in range(40)]])
@pytest.mark.parametrize("batch_size", [3, 4, 8])
def test_small_batches_hold_a_similar_pair(labels, batch_size):
    for seed in range(20):
        for batch in image_batches(labels, batch_size, generator(seed))[:-1]:
            assert max(Counter(labels[i] for i in batch).values()) > 1


def test_image_batches_depend_on_the_generator_alone():
    batches = (image_batches([0, 1] * 20, 8, generator(seed)) for seed in (1, 1, 2))
    first, again, other = (np.concatenate(one).tolist() for one in batches)
    assert first == again != other
    couples = [{frozenset(one[i : i + 2]) for i in range(0, 40, 2)} for one in (first, other)]
    assert len(couples[0] & couples[1]) < 10  # the couples themselves are drawn again


@pytest.mark.parametrize("count, most, chosen", [(10, 4, [0, 3, 6, 9]), (3, 60, [0, 1, 2]), (5, 2, [0, 4])])
def test_evenly_spaced_pairs_span_all(count, most, chosen):
    assert evenly_spaced_pairs(Pairs(*np.tile(np.arange(count), (3, 1))), most).first.tolist() == chosen


@pytest.mark.parametrize("batch_size, sizes", [(4, [4, 4, 2]), (5, [5, 5]), (50, [10])])
def test_pair_batches_hold_every_pair_once_and_whole(batch_size, sizes):
    pairs = Pairs(np.arange(10), np.arange(10) + 100, np.arange(10) % 2)
    batches = pair_batches(pairs, batch_size, generator())
    assert [len(batch.label) for batch in batches] == sizes
    rows = [row for batch in batches for row in zip(*batch, strict=True)]
    assert sorted(rows) == list(zip(*pairs, strict=True)) and rows != sorted(rows)
    again = pair_batches(pairs, batch_size, generator())
    assert all(np.array_equal(x.first, y.first) for x, y in zip(batches, again, strict=True))


def test_pairs_are_renumbered_by_the_images_that_occur_in_them():
    used, pairs = renumber_pairs(Pairs(np.array([7, 2, 9]), np.array([2, 9, 4]), np.array([0, 1, 1])))
    assert used.tolist() == [2, 4, 7, 9]
    assert [column.tolist() for column in pairs] == [[2, 0, 3], [0, 3, 1], [0, 1, 1]]
