from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from toy import SIZE, A, B, toy_image

from utils.evaluate.mosaics import Mosaics, make_mosaics, mosaic_scores, oracle_cells
from utils.Siamese import SiameseNetwork

LABELS = np.array(["a"] * 6 + ["b"] * 5 + ["c"] * 2)


def flat_images(height=8, width=12):
    """Image i is all of value 10 i."""
    return (torch.arange(len(LABELS)) * 10).byte().view(-1, 1, 1, 1).expand(-1, 3, height, width)


def cells_of(mosaic):
    """The numbers of the images in a mosaic of flat ones, by their corners."""
    height, width = mosaic.shape[1:]
    corners = [mosaic[0, y, x] for y in (0, height - 1) for x in (0, width - 1)]
    return [int(value) // 10 for value in corners]


def test_four_of_a_class_beside_one_of_it_among_three_others():
    mosaics = make_mosaics(flat_images(), LABELS, 40, seed=0)
    assert mosaics.first.shape == mosaics.second.shape == (40, 3, 8, 12) and mosaics.first.dtype == torch.uint8
    classes = []
    for first, second, cell in zip(mosaics.first, mosaics.second, mosaics.cell.tolist()):
        one, two = cells_of(first), cells_of(second)
        (label,) = set(LABELS[one])
        assert len(set(one + two)) == 8  # no image twice
        assert [LABELS[i] == label for i in two] == [k == cell for k in range(4)]
        classes.append(label)
    assert classes == ["a", "b"] * 20  # c has too few
    assert set(mosaics.cell.tolist()) == {0, 1, 2, 3}


def test_cells_tile_a_mosaic_of_odd_sides():
    first = make_mosaics(flat_images(7, 9), LABELS, 1, seed=0).first[0, 0]
    for number, cell in zip(cells_of(first[None]), (first[:3, :4], first[:3, 4:], first[3:, :4], first[3:, 4:])):
        assert (cell == 10 * number).all()


def test_the_seed_decides():
    one, again, other = (make_mosaics(flat_images(), LABELS, 5, seed).second for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("labels", [["a"] * 4 + ["b"] * 4, ["a"] * 9 + ["b"] * 2])
def test_too_few_images_make_none(labels):
    assert make_mosaics(torch.zeros(len(labels), 3, 4, 4).byte(), np.array(labels), 3, seed=0) is None


class MeanRed(nn.Module):
    """Of two patches, A in the second and B in the first cell of an image."""

    def forward(self, batch):
        return sum(batch[:, 0, rows, columns].mean((1, 2)) for rows, columns in (A, B))[:, None]


@pytest.fixture
def model():
    return SiameseNetwork.around(MeanRed(), SIZE, normalize_embeddings=False)


def test_the_oracle_is_the_cell_whose_blurring_takes_the_pair_apart(model):
    first, second = ([toy_image(*a), toy_image(1.6, 0.3)] for a in ((1.6, 2), (0.2, 3)))
    # Without B, z of the first pair's second image falls from 3.2 to below 1; its partner's is 3.6.
    assert oracle_cells(model, torch.stack(first), torch.stack(second)).tolist() == [0, 1]


def test_scores_count_the_cells_that_evidence_for_similar_finds(model):
    mosaics = Mosaics(*(torch.zeros(2, 3, 24, 40, dtype=torch.uint8) for _ in range(2)), torch.tensor([1, 2]))
    raw = torch.zeros(2, 2, 4, 4)
    raw[0, 1, :2, 2:] = 0.3  # decided similar: the evidence is for it, the largest sum beats the largest value
    raw[0, 1, 3, 3] = 1
    raw[1, 1, 3, 0] = -1  # decided dissimilar: what speaks against speaks for similar
    explained = SimpleNamespace(is_similar=torch.tensor([True, False]), raw=raw)
    other = SimpleNamespace(is_similar=torch.tensor([True, True]), raw=raw)
    table = mosaic_scores(model, mosaics, {"maps": explained, "wrong sign": other})["finds the cell"]
    assert table["maps"] == 1 and table["wrong sign"] == 0.5 and table["chance"] == 0.25
    assert table.index.tolist() == ["maps", "wrong sign", "oracle", "chance"]
