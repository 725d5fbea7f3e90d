"""Close hashes: against all pairs, one by one."""

from itertools import combinations

import numpy as np
import pytest

from utils.images import hashes
from utils.images.duplicates import MOST_BITS
from utils.images.hashes import close_pairs


def hashes_with_twins(rng):
    """Hashes around 12 centres, between 0 and about 80 bits apart, and some that stand alone."""
    bits = rng.random((12, 256)) < 0.5
    bits = bits[rng.integers(0, 12, 60)] ^ (rng.random((60, 256)) < rng.uniform(0, 0.17, (60, 1)))
    return np.concatenate([bits, rng.random((20, 256)) < 0.5])


def found(bits, most=MOST_BITS):
    return {tuple(sorted(pair)) for pairs in close_pairs(bits, most) for pair in pairs.T.tolist()}


def naive(bits, most=MOST_BITS):
    return {(i, j) for i, j in combinations(range(len(bits)), 2) if (bits[i] != bits[j]).sum() <= most}


@pytest.mark.parametrize("settings", [{}, {"CHUNK": 7}, {"FEW": 0}, {"FEW": 0, "CANDIDATES": 3}])
@pytest.mark.parametrize("seed", range(3))
def test_close_pairs_are_those_of_a_loop_over_all(monkeypatch, settings, seed):
    for name, value in settings.items():
        monkeypatch.setattr(hashes, name, value)
    bits = hashes_with_twins(np.random.default_rng(seed))
    expected = naive(bits)
    assert 20 < len(expected) < 1000 and found(bits) == expected


def test_bits_that_differ_may_lie_anywhere(monkeypatch):
    monkeypatch.setattr(hashes, "FEW", 0)
    rng = np.random.default_rng(0)
    for count, close in ((MOST_BITS, True), (MOST_BITS + 1, False)):
        for places in (np.arange(count), np.linspace(0, 255, count).astype(int), rng.permutation(256)[:count]):
            bits = rng.random((3, 256)) < 0.5
            bits[2] = bits[0]
            bits[2, places] ^= True
            assert ((0, 2) in found(bits)) == close


def test_hashes_that_agree_in_most_parts_are_compared_without_parts(monkeypatch):
    bits = np.zeros((30, 256), bool)
    bits[np.arange(30), np.arange(30)] = True
    bits[:3] = True
    expected = naive(bits)
    monkeypatch.setattr(hashes, "FEW", 0)
    monkeypatch.setattr(hashes, "CANDIDATES", 50)  # given up after the first portions
    assert found(bits) == expected
