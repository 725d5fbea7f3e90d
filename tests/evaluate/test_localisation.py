import math

import numpy as np
import pytest
import torch
from PIL import Image
from toy import SIZE, boxes

from utils.evaluate.localisation import baseline_maps, energy_ratio, load_masks, localisation_table, pointing_game
from utils.images.frame import Frame
from utils.images.pairs import Pairs
from utils.system.errors import DataError


@pytest.mark.parametrize(
    ("peak", "hit"),
    [
        ((10, 20), True), ((11, 21), True),  # on the object
        ((5, 20), True), ((10, 15), True), ((14, 25), True), ((7, 16), True),  # 5 pixels away: above, beside, 3 and 4
        ((4, 20), False), ((10, 14), False), ((17, 21), False), ((6, 16), False), ((14, 26), False),  # 6 and more
    ],
)  # fmt: skip
def test_pointing_game_by_hand(peak, hit):
    masks = boxes((slice(10, 12), slice(20, 22)), size=(30, 60)).bool()
    maps = boxes(peak, size=(30, 60))
    assert pointing_game(maps, masks).tolist() == [hit]  # tolerance 60 / 12 = 5 pixels
    assert pointing_game(maps.mT, masks.mT).tolist() == [hit]
    assert not pointing_game(0 * maps, ~boxes(size=(30, 60)).bool())  # an empty map points at nothing


OBJECT = (slice(0, 6), slice(0, 10))  # 60 of 960 pixels: 1/16 of the image


@pytest.mark.parametrize(
    ("maps", "ratio"),
    [
        (torch.ones(1, *SIZE), 1),
        (boxes(OBJECT), 16),
        (boxes((slice(0, 6), slice(0, 5))), 16),
        (boxes((slice(0, 6), slice(5, 15))), 8),
        (boxes((slice(12, 14), slice(0, 9))), 0),
        (boxes(), math.nan),
    ],
)
def test_energy_by_hand(maps, ratio):
    masks = boxes(OBJECT).bool()
    assert energy_ratio(maps, masks).tolist() == pytest.approx([ratio], nan_ok=True)


@pytest.mark.parametrize("size", [(9, 13), (8, 5)])
def test_maps_to_compare_with(size):
    found, random = baseline_maps((3, 2, *size)).values()
    assert torch.equal(found, found[0, 0].expand(3, 2, *size)) and len(random.unique()) > 0.99 * random.numel()
    middle = [(side - 1) / 2 for side in size]
    for y, x in np.ndindex(*size):  # distance from the middle in standard deviations, a quarter of the side each
        z = [(i - m) / (side - 1) / 0.25 for i, m, side in zip((y, x), middle, size)]
        assert found[0, 0, y, x].item() == pytest.approx(math.exp(-(z[0] ** 2 + z[1] ** 2) / 2), rel=1e-5)


@pytest.fixture
def masks(tmp_path):
    """Two images of 20 x 10 pixels with a mask on the right half, one without a mask."""
    folder = tmp_path / "Shapes_masks" / "a"
    folder.mkdir(parents=True)
    half = np.zeros((10, 20), dtype=np.uint8)
    half[:, 10:] = 255
    for name in ("1.png", "2.png", "2_intruder.png"):
        Image.fromarray(half[:, ::-1] if "intruder" in name else half).save(folder / name)
    return tmp_path / "Shapes"


def test_masks_come_at_the_networks_size_and_are_empty_where_there_is_none(masks):
    found = load_masks(masks, ["a/1.jpg", "a/3.jpg", "a/2.jpg"], Frame((4, 6)))
    right = torch.tensor([False] * 3 + [True] * 3).expand(4, 6)
    assert torch.equal(found, torch.stack([right, torch.zeros(4, 6, dtype=torch.bool), right]))
    assert torch.equal(load_masks(masks, ["a/1.jpg", "a/2.jpg"], Frame((4, 6)), "_intruder")[1], ~right)
    assert load_masks(masks, ["a/3.jpg"], Frame((4, 6))) is None
    assert load_masks(masks.parent / "Other", ["a/1.jpg"], Frame((4, 6))) is None


def test_masks_are_drawn_in_any_way_and_a_broken_one_is_named(masks):
    folder = masks.parent / "Shapes_masks" / "a"
    white = Image.new("RGBA", (20, 10), (255, 255, 255, 0))  # on transparent ground
    white.paste((255, 255, 255, 255), (10, 0, 20, 10))
    white.save(folder / "2.png")
    one, other = load_masks(masks, ["a/1.jpg", "a/2.jpg"], Frame((4, 6)))
    assert torch.equal(one, other)
    (folder / "2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2\.png: not a readable image"):
        load_masks(masks, ["a/2.jpg"], Frame((4, 6)))


def test_masks_are_padded_as_their_images_are(masks):
    found = load_masks(masks, ["a/1.jpg"], Frame((8, 8), "pad"))  # 20 x 10 pixels: rows 2 to 5
    expected = torch.zeros(1, 8, 8, dtype=torch.bool)
    expected[0, 2:6, 4:] = True
    assert torch.equal(found, expected)


def test_localisation_counts_both_images_of_rightly_decided_pairs_only():
    masks = torch.zeros(3, 12, 12, dtype=torch.bool)
    masks[:, :, 6:] = True
    pairs = Pairs(np.array([0, 1, 0, 1]), np.array([1, 2, 2, 0]), np.array([0, 0, 1, 1]))
    maps = torch.zeros(4, 2, 12, 12)
    maps[..., 0] = 1  # the wrong edge
    maps[0, 0] = masks[0].float()
    maps[2] = masks[:2].float()
    table = localisation_table({"ours": maps}, masks, pairs, np.array([True, True, True, False]))
    assert table.maps.tolist() == ["ours"] * 2 + ["centred Gaussian"] * 2 + ["random"] * 2
    table = table.set_index(["maps", "pairs"])[["pointing", "energy", "number"]]
    assert table.loc[("ours", "similar")].tolist() == [0.25, 0.5, 4]
    assert table.loc[("ours", "dissimilar")].tolist() == [1, 2, 2]
    assert table.loc[("random", "similar"), "energy"] == pytest.approx(1, abs=0.1)
