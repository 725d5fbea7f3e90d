import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import nn

from utils import faithfulness
from utils.faithfulness import (
    Interventions, area_under, blur, centred_gaussian, check, curves, energy_ratio, iou_at_half, moved, pointing_game, randomisation_check,
    rank_correlation, top_region,
)
from utils.Siamese import SiameseNetwork

H, W = SIZE = (24, 40)
A, B = (slice(8, 12), slice(20, 24)), (slice(0, 4), slice(0, 4))  # the toy network's patches, 16 pixels each
SIDES = ["image 1", "image 2"]


def boxes(*pixels, size=SIZE):
    """One map or mask, 1 at the given (row, column) or slices, shape (1, H, W)."""
    maps = torch.zeros(1, *size)
    for pixel in pixels:
        maps[0][pixel] = 1
    return maps


def random_maps_and_masks(n=20, size=(9, 13)):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(n, *size, generator=generator)
    return maps, torch.rand(n, *size, generator=generator) > torch.linspace(0.5, 0.99, n)[:, None, None]


# ---------------------------------------------------------------------------------------------- localisation


@pytest.mark.parametrize(
    ("peak", "hit"),
    [
        ((10, 20), True), ((11, 21), True),  # on the object
        ((5, 20), True), ((10, 15), True), ((15, 26), True), ((14, 17), True),  # at a distance of 5 pixels: below, beside, 3-4-5
        ((4, 20), False), ((10, 14), False), ((17, 21), False), ((7, 16), True), ((6, 16), False),  # 6; 6; 6; 5 again; sqrt(32)
        (None, False),
    ],
)  # fmt: skip
def test_pointing_game_by_hand(peak, hit):
    masks = boxes((slice(10, 12), slice(20, 22)), size=(30, 60)).bool()
    maps = boxes(*[] if peak is None else [peak], size=(30, 60))
    assert pointing_game(maps, masks).tolist() == [hit]  # tolerance 60 / 12 = 5 pixels
    assert pointing_game(maps.mT, masks.mT).tolist() == [hit]


@pytest.mark.parametrize("tolerance", [0.0, 1 / 13, 1 / 12, 2.5 / 13])
def test_pointing_game_equals_a_double_loop(tolerance):
    maps, masks = random_maps_and_masks()
    expected = []
    for m, mask in zip(maps.tolist(), masks.tolist()):
        pixels = [(y, x) for y in range(9) for x in range(13)]
        peak = max(pixels, key=lambda p: m[p[0]][p[1]])
        expected.append(any(mask[y][x] and math.dist(peak, (y, x)) <= tolerance * 13 + 1e-9 for y, x in pixels))
    assert set(expected) == {True, False}
    assert pointing_game(maps, masks, tolerance).tolist() == expected


OBJECT = (slice(0, 6), slice(0, 10))  # 60 of 960 pixels: 1/16 of the image


@pytest.mark.parametrize(
    ("maps", "ratio", "iou"),
    [
        (torch.ones(1, *SIZE), 1, 1 / 16),
        (boxes(OBJECT), 16, 1),
        (boxes((slice(0, 6), slice(0, 5))), 16, 0.5),
        (boxes((slice(0, 6), slice(5, 15))), 8, 30 / 90),
        (boxes((slice(12, 14), slice(0, 9))), 0, 0),
        (boxes((slice(0, 6), slice(0, 5))) + 0.5 * boxes(OBJECT), 16, 0.5),  # 0.5 is a third of the maximum: below half
        (boxes((slice(0, 6), slice(0, 5))) + boxes(OBJECT), 16, 1),  # exactly half belongs to it
        (boxes(), math.nan, 0),
    ],
)
def test_energy_and_iou_by_hand(maps, ratio, iou):
    masks = boxes(OBJECT).bool()
    assert energy_ratio(maps, masks).tolist() == pytest.approx([ratio], nan_ok=True)
    assert iou_at_half(maps, masks).tolist() == pytest.approx([iou])


def test_energy_and_iou_equal_loops():
    maps, masks = random_maps_and_masks()
    for m, mask, ratio, iou in zip(maps.tolist(), masks.tolist(), energy_ratio(maps, masks).tolist(), iou_at_half(maps, masks).tolist()):
        pixels = [(v, o) for row, objects in zip(m, mask) for v, o in zip(row, objects)]
        half = max(v for v, _ in pixels) / 2
        assert ratio == pytest.approx(sum(v for v, o in pixels if o) / sum(v for v, _ in pixels) / (sum(o for _, o in pixels) / 117))
        assert iou == pytest.approx(sum(v >= half and o for v, o in pixels) / sum(v >= half or o for v, o in pixels))


@pytest.mark.parametrize("size", [(9, 13), (8, 5)])
def test_centred_gaussian(size):
    maps = centred_gaussian(3, size)
    middle = [(side - 1) / 2 for side in size]
    assert maps.shape == (3, *size) and torch.equal(maps[0], maps[2])
    assert torch.allclose(maps, maps.flip(1)) and torch.allclose(maps, maps.flip(2))
    for y, x in np.ndindex(*size):  # distance from the middle in standard deviations, a quarter of the side each
        z = [(i - m) / (side - 1) / 0.25 for i, m, side in zip((y, x), middle, size)]
        assert maps[0, y, x].item() == pytest.approx(math.exp(-(z[0] ** 2 + z[1] ** 2) / 2), rel=1e-5)


# ------------------------------------------------------------------------------------------------------ regions


def test_top_region_equals_a_sort_with_ties_in_reading_order():
    maps = torch.randint(4, (3, 2, 5, 7), generator=torch.Generator().manual_seed(0)).float()
    for share, count in [(0, 0), (0.1, 4), (0.2, 7), (1 / 3, 12), (0.9, 32), (1, 35)]:
        regions = top_region(maps, share)
        assert regions.shape == maps.shape and regions.dtype == torch.bool
        for values, region in zip(maps.view(6, 35).tolist(), regions.view(6, 35).tolist()):
            strongest = sorted(range(35), key=lambda i: (-values[i], i))[:count]
            assert [i for i, chosen in enumerate(region) if chosen] == sorted(strongest)


def test_moved_regions_are_seeded_shifts_of_their_own_each():
    regions = torch.rand(5, 2, 6, 7, generator=torch.Generator().manual_seed(0)) > 0.7
    untouched = regions.clone()
    first, again, other = (moved(regions, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(regions, untouched)
    shifts = []
    for region, result in zip(regions.flatten(0, 1).numpy(), first.flatten(0, 1).numpy()):
        shifts.append([(dy, dx) for dy in range(6) for dx in range(7) if (np.roll(region, (dy, dx), (0, 1)) == result).all()])
        assert len(shifts[-1]) == 1
    assert len({shift[0] for shift in shifts}) > 5


def test_moved_regions_get_everywhere():
    places = moved(boxes((3, 4), size=(4, 6)).expand(500, 2, 4, 6), np.random.default_rng(0)).sum((0, 1))
    assert abs(places / 1000 - 1 / 24).max() < 4 * math.sqrt(1 / 24 * 23 / 24 / 1000)  # binomial


# --------------------------------------------------------------------------------------------------------- blur


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (16, 16), (16, 200), (200, 16)])
def test_blur_equals_scipys(size):
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    sigma, result = max(size) / 8, blur(images)
    reach = [min(2 * max(size) // 8, side - 1) for side in size]
    expected = gaussian_filter(images.double(), sigma, mode="mirror", radius=reach, axes=(2, 3))
    assert result.dtype == torch.float32 and abs(result.numpy() - expected).max() < 1e-5
    for image, blurred in zip(images, result):
        assert torch.allclose(blur(image[None])[0], blurred, atol=1e-6)


def test_blur_keeps_a_colour_and_takes_small_shapes_away():
    colour = torch.tensor([0.2, -1.5, 3.0]).view(1, 3, 1, 1).expand(1, 3, *SIZE)
    assert torch.allclose(blur(colour), colour, atol=1e-5)
    shape = boxes((slice(10, 14), slice(18, 22))).expand(1, 3, *SIZE)  # 4 pixels wide: a tenth of the image
    assert blur(shape).max() < 1 / 8 and blur(shape).mean() == pytest.approx(shape.mean().item(), rel=0.1)
    large = boxes((slice(None), slice(20, None))).expand(1, 3, *SIZE)
    assert blur(large)[..., 0].max() < 0.05 and blur(large)[..., -1].min() > 0.95


# ---------------------------------------------------------------- interventions on a network known by hand


class Toy(SiameseNetwork):
    """z = mean red of patch A + mean red of patch B, a number; margin 2, so a pair is similar if closer than 1."""

    def __init__(self):
        super().__init__("Conv4", image_size=SIZE)
        self.seen = []

    def embed(self, batch):
        self.seen.append(len(batch))
        return batch[:, 0, *A].mean((1, 2))[:, None] + batch[:, 0, *B].mean((1, 2))[:, None]


def toy_image(a, b, elsewhere=0.3):
    image = torch.full((3, *SIZE), elsewhere)
    image[:, *A], image[:, *B] = a, b
    return image


SIMILAR, DISSIMILAR, BEYOND = 0, 1, 2
IMAGES1 = [toy_image(0.8, 0.2), toy_image(3, -1), toy_image(5, 0)]  # z = 1, 2, 5
IMAGES2 = [toy_image(0.8, -0.2), toy_image(-1, 0.5), toy_image(-5, 1)]  # z = 0.6, -0.5, -4
BEFORE = [0.3, 0.75, 4.0]  # distances 0.4, 2.5, 9: (0.5 - 0.4 / 2) and (2.5 / 2 - 0.5), (9 / 2 - 0.5): not clipped at 2
WITHOUT_A = [[0.3 - 0.1, 0.3 - 0.4], [-0.5, 0.25], [1.5, 1.5]]  # distances 0.4 -> 0.6, 1.2; 2.5 -> 0, 1.5; 9 -> 4, 4
WITHOUT_A[0] = [0.5 - 0.4 / 2, 0.5 - 1.2 / 2]  # image 1 without A: z = 0.2, distance 0.4; image 2: z = -0.2, distance 1.2
WITHOUT_A[1] = [-0.5 / 2 * 1 + 0.5 * 0 - 0.25 + 0.5 * 0, 1.0]
WITHOUT_B = [[0.4, 0.4], [1.25, 1.0], [4.0, 4.5]]
