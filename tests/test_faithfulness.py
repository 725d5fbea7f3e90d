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
    rank_correlation, removable_share, top_region,
)
from utils.Grad_CAM import feature_maps
from utils.Siamese import SiameseNetwork

H, W = SIZE = (24, 40)
A, B = (slice(8, 12), slice(20, 24)), (slice(0, 4), slice(0, 4))  # the toy network's patches, 16 pixels each


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
        ((5, 20), True), ((10, 15), True), ((14, 25), True), ((7, 16), True),  # 5 pixels away: above, beside, 3 and 4
        ((4, 20), False), ((10, 14), False), ((17, 21), False), ((6, 16), False), ((14, 26), False),  # 6, 6, 6, 4 and 4, 3 and 5
    ],
)  # fmt: skip
def test_pointing_game_by_hand(peak, hit):
    masks = boxes((slice(10, 12), slice(20, 22)), size=(30, 60)).bool()
    maps = boxes(peak, size=(30, 60))
    assert pointing_game(maps, masks).tolist() == [hit]  # tolerance 60 / 12 = 5 pixels
    assert pointing_game(maps.mT, masks.mT).tolist() == [hit]


def test_an_empty_map_points_at_nothing():
    assert pointing_game(torch.zeros(1, *SIZE), torch.ones(1, *SIZE, dtype=torch.bool)).tolist() == [False]


@pytest.mark.parametrize("tolerance", [0.0, 1 / 13, 1 / 12, 1.5 / 13])
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
        return (batch[:, 0, A[0], A[1]].mean((1, 2)) + batch[:, 0, B[0], B[1]].mean((1, 2)))[:, None]


def toy_image(a, b):
    return torch.full((3, *SIZE), 0.3) + (a - 0.3) * boxes(A) + (b - 0.3) * boxes(B)


# A speaks for the decision, B against it. A similar pair, a dissimilar one, and one far beyond the margin:
IMAGES1 = torch.stack([toy_image(1.6, 0.2), toy_image(3, -1), toy_image(5, -1)])  # z = 1.8, 2, 4
IMAGES2 = torch.stack([toy_image(1.6, -0.2), toy_image(-1, 0.5), toy_image(-5, 1)])  # z = 1.4, -0.5, -4
BEFORE = [0.3, 0.75, 3.5]  # 0.5 - D / 2 with D = 0.4; D / 2 - 0.5 with D = 2.5 and 8
WITHOUT = {  # by blurring (to black) a patch of image 1, of image 2
    "A": [[-0.1, -0.5], [-0.25, 0.25], [1, 1]],  # D = 1.2, 2; 0.5, 1.5; 3, 3
    "B": [[0.4, 0.4], [1.25, 1], [4, 4]],  # D = 0.2, 0.2; 3.5, 3; 9, 9
    "all": [[-0.2, -0.4], [-0.25, 0.5], [1.5, 1.5]],  # D = 1.4, 1.8; 0.5, 2; 4, 4
    "elsewhere": [[0.3, 0.3], [0.75, 0.75], [3.5, 3.5]],
}
PATCHES = {"A": boxes(A), "B": boxes(B), "all": torch.ones(1, *SIZE), "elsewhere": boxes((slice(14, 22), slice(2, 10)))}


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture
def to_black(monkeypatch):
    monkeypatch.setattr(faithfulness, "blur", torch.zeros_like)


def maps_of(patch, n=3):
    return PATCHES[patch].expand(n, 2, *SIZE)


def explanation_of(factual, counterfactual):
    empty = torch.stack([factual.amax((2, 3)) == 0, counterfactual.amax((2, 3)) == 0], dim=2)
    return SimpleNamespace(factual=factual, counterfactual=counterfactual, empty=empty)


@pytest.mark.parametrize("patch", WITHOUT)
def test_margins_by_hand(toy, to_black, patch):
    interventions = Interventions.on(toy, IMAGES1, IMAGES2)
    untouched = IMAGES1.clone(), IMAGES2.clone()
    assert torch.allclose(interventions.before, torch.tensor(BEFORE), atol=1e-5)
    assert torch.allclose(interventions.without(maps_of(patch).bool()), torch.tensor(WITHOUT[patch]), atol=1e-5)
    for side, images in enumerate([IMAGES1, IMAGES2]):
        changed = images * (1 - PATCHES[patch])
        assert torch.allclose(interventions.margin(changed, side), torch.tensor(WITHOUT[patch])[:, side], atol=1e-5)
    assert torch.equal(IMAGES1, untouched[0]) and torch.equal(IMAGES2, untouched[1])


def test_margins_follow_the_networks_margin_and_threshold(to_black):
    toy = Toy()
    toy.margin, toy.threshold = 4.0, 0.7  # distances 0.4, 2.5, 8: similar, similar, dissimilar
    interventions = Interventions.on(toy, IMAGES1, IMAGES2)
    assert interventions.before.tolist() == pytest.approx([0.7 - 0.1, 0.7 - 0.625, 2 - 0.7])


def naive_margins(regions):
    """Margins (N, 2) by loops: one image of each pair with its region blurred by scipy."""
    result = np.zeros((len(regions), 2))
    for n, side in np.ndindex(*result.shape):
        z = []
        for k, images in enumerate([IMAGES1, IMAGES2]):
            red = images[n, 0].double().numpy()
            if k == side:
                red = np.where(regions[n, side], gaussian_filter(red, 5, mode="mirror", radius=10), red)
            z.append(red[A].mean() + red[B].mean())
        distance = abs(z[0] - z[1])
        result[n, side] = 0.5 - distance / 2 if n == 0 else distance / 2 - 0.5
    return result


def test_margins_equal_a_naive_loop_with_the_real_blur(toy):
    regions = torch.rand(3, 2, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.4
    margins = Interventions.on(toy, IMAGES1, IMAGES2).without(regions)
    assert abs(margins.numpy() - naive_margins(regions.numpy())).max() < 1e-5


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_batch_size_bounds_what_is_embedded_at_once_and_changes_nothing(to_black, batch_size):
    toy, times = Toy(), 3
    interventions = Interventions.on(toy, IMAGES1.repeat(times, 1, 1, 1), IMAGES2.repeat(times, 1, 1, 1), batch_size)
    maps = maps_of("A", 3 * times)
    result = check(interventions, explanation_of(maps, maps), "factual", np.random.default_rng(0))
    curve = curves(interventions, maps + maps_of("B", 3 * times))["deletion"]
    expected = torch.tensor(WITHOUT["A"])
    assert torch.allclose(result.effect, (expected - torch.tensor(BEFORE)[:, None]).repeat(times, 1), atol=1e-5)
    assert curve[1] == pytest.approx(np.mean(WITHOUT["all"]), abs=1e-5)
    assert max(toy.seen) == min(batch_size, 9) and sum(toy.seen) == 9 * 2 * (1 + 2 + 2 * faithfulness.STEPS + 2)


def test_the_network_is_left_as_found():
    model = trained_network().train()
    model.head.eval()
    modes, state = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    interventions = Interventions.on(model, *network_images())
    maps = torch.rand(PAIRS, 2, *SIZE)
    check(interventions, explanation_of(maps, maps), "factual", np.random.default_rng(0))
    curves(interventions, maps)
    with torch.no_grad():
        z1, z2 = (model.eval().embed(images) for images in network_images())
    distance = (z1 - z2).norm(dim=1)
    sign = torch.where(distance < model.margin / 2, -1, 1)
    assert torch.allclose(interventions.before, sign * (distance / model.margin - 0.5), atol=1e-5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) and not interventions.before.requires_grad
    model.train().head.eval()
    assert [module.training for module in model.modules()] == modes


# ------------------------------------------------------------------------------------------------------ checks


def effect_by_hand(patch):
    return torch.tensor(WITHOUT[patch]) - torch.tensor(BEFORE)[:, None]


@pytest.mark.parametrize(("kind", "patch", "sign"), [("factual", "A", -1), ("counterfactual", "B", 1), ("counterfactual", "A", -1)])
def test_check_by_hand(toy, to_black, kind, patch, sign):
    maps = {"factual": maps_of("elsewhere"), "counterfactual": maps_of("elsewhere")} | {kind: maps_of(patch)}
    result = check(Interventions.on(toy, IMAGES1, IMAGES2), explanation_of(**maps), kind, np.random.default_rng(0))
    assert torch.allclose(result.effect, effect_by_hand(patch), atol=1e-5) and (result.effect.sign() == sign).all()
    regions = moved(maps_of(patch).bool(), np.random.default_rng(0))
    expected = Interventions.on(toy, IMAGES1, IMAGES2).without(regions) - torch.tensor(BEFORE)[:, None]
    assert torch.allclose(result.random, expected, atol=1e-5) and result.random.abs().mean() < 0.5 * result.effect.abs().mean()


@pytest.mark.parametrize("kind", ["factual", "counterfactual"])
def test_a_map_beside_the_evidence_has_no_effect(toy, to_black, kind):
    """64 of 960 pixels speak: none is blurred beyond them, above all not B, the first in reading order."""
    maps = maps_of("elsewhere")
    result = check(Interventions.on(toy, IMAGES1, IMAGES2), explanation_of(maps, maps), kind, np.random.default_rng(0))
    assert torch.equal(result.effect, torch.zeros(3, 2))


def test_check_blurs_a_tenth_of_the_image(toy, to_black):
    maps = torch.linspace(1, 0.001, H * W).view(SIZE).expand(3, 2, *SIZE)  # rows 0, 1 and 16 pixels of row 2: B down to there
    result = check(Interventions.on(toy, IMAGES1, IMAGES2), explanation_of(maps, maps), "factual", np.random.default_rng(0))
    b1, b2 = torch.tensor([[0.2, -1, -1], [-0.2, 0.5, 1]]) * 12 / 16  # lost; B is nearer to the partner's z than nothing is
    expected = torch.stack([b1 * torch.tensor([1, -1, -1]), b2 * torch.tensor([-1, 1, 1])], 1) / 2
    assert torch.allclose(result.effect, expected, atol=1e-5)


def test_empty_maps_have_no_effect_to_speak_of(toy, to_black):
    maps = maps_of("A").clone()
    maps[1, 0] = 0
    result = check(Interventions.on(toy, IMAGES1, IMAGES2), explanation_of(maps, maps_of("B")), "factual", np.random.default_rng(0))
    for values in (result.effect, result.random):
        assert values.isnan().tolist() == [[False, False], [True, False], [False, False]]
    result = check(Interventions.on(toy, IMAGES1, IMAGES2), explanation_of(maps, maps_of("B")), "counterfactual", np.random.default_rng(0))
    assert result.effect.isfinite().all()


@pytest.mark.parametrize(("patch", "shares"), [("A", [0.8, 0.5, 0.1]), ("B", [0.2, 0.5, 0.9]), ("all", [0.8, 0.5, 0.1]), ("elsewhere", [0, 0, 0])])
@pytest.mark.parametrize("mean", [0.0, -3.0])
def test_removable_share_by_hand(to_black, monkeypatch, patch, shares, mean):
    toy = Toy()  # of an image's z, A holds these parts: 8 of 10, 5 of 10, 1 of 10
    toy.mean[:], toy.std[:] = 0, 1 / 255
    toy.mean_embedding.fill_(mean)
    images = torch.stack([toy_image(8, 2), toy_image(5, 5), toy_image(1, 9)]).to(torch.uint8)
    monkeypatch.setattr(faithfulness, "own_evidence", lambda model, batch: PATCHES[patch].expand(len(batch), -1, -1))
    if patch == "all":  # the strongest tenth in reading order: rows 0 to 2, where three quarters of B lie
        shares = [0.75 * 0.2, 0.75 * 0.5, 0.75 * 0.9]
    for image, share in zip(images, shares):
        assert removable_share(toy, image[None]) == pytest.approx(share * 10 / (10 - mean), abs=1e-5)
    assert removable_share(toy, images, batch_size=2) == pytest.approx(sorted(shares)[1] * 10 / (10 - mean), abs=1e-5)


@pytest.mark.parametrize(("mean", "share"), [(9.0, 1.0), (11.0, 0.0)])
def test_removable_share_stays_between_nothing_and_all(to_black, monkeypatch, mean, share):
    toy = Toy()
    toy.mean[:], toy.std[:] = 0, 1 / 255
    toy.mean_embedding.fill_(mean)  # z goes from 10 to 2: past the mean, or away from it
    monkeypatch.setattr(faithfulness, "own_evidence", lambda model, batch: PATCHES["A"].expand(len(batch), -1, -1))
    assert removable_share(toy, toy_image(8, 2)[None].to(torch.uint8)) == share


@pytest.mark.parametrize("form", ["scattered", "rectangle"])
def test_random_maps_score_like_their_random_baseline(toy, to_black, form):
    """Of two equal images with A = 1, B = 0: the margin falls in proportion to the share of A that is blurred, by 0.5 for all of it."""
    n, rng = 300, np.random.default_rng(0)
    images = toy_image(1, 0).expand(n, -1, -1, -1)
    maps = torch.rand(n, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    if form == "rectangle":  # as large as the tenth that is blurred
        maps = moved(boxes((slice(0, 8), slice(0, 12))).expand(n, 2, *SIZE), rng)
    result = check(Interventions.on(toy, images, images), explanation_of(maps, maps), "factual", rng)
    effects, random = result.effect.flatten(), result.random.flatten()
    error = ((effects.var() + random.var()) / len(effects)).sqrt()
    assert effects.mean().item() == pytest.approx(-0.05, abs=3 * error.item())  # a tenth of A on average
    assert abs(effects.mean() - random.mean()) < 3 * error
    assert effects.std() / random.std() == pytest.approx(1, abs=0.2)


# ------------------------------------------------------------------------------------------------------ curves


def test_curves_of_the_deciding_patch_jump_at_the_first_step(toy, to_black):
    result = curves(Interventions.on(toy, IMAGES1, IMAGES2), maps_of("A") + maps_of("B"))
    before, end = np.mean(BEFORE), np.mean(WITHOUT["all"])
    assert result["deletion"] == pytest.approx([before] + [end] * 10, abs=1e-5)
    assert result["insertion"] == pytest.approx([end] + [before] * 10, abs=1e-5)


def test_curves_equal_a_naive_loop(toy):
    maps = torch.randint(5, (3, 2, *SIZE), generator=torch.Generator().manual_seed(0)).float()
    result = curves(Interventions.on(toy, IMAGES1, IMAGES2), maps)
    for step in range(11):
        region = np.zeros((6, H * W), dtype=bool)
        for row, values in zip(region, maps.view(6, -1).tolist()):
            row[sorted(range(H * W), key=lambda i: (-values[i], i))[: 96 * step]] = True
        region = region.reshape(3, 2, *SIZE)
        assert result["deletion"][step] == pytest.approx(naive_margins(region).mean(), abs=1e-5)
        assert result["insertion"][step] == pytest.approx(naive_margins(~region).mean(), abs=1e-5)


def test_curves_of_random_rankings_are_straight_on_average(toy, to_black):
    """Of two equal images with A = 1, B = 0, one with k of A's 16 pixels black: D = k / 16, margin 0.5 - k / 32.

    k is hypergeometric with mean 16 s and a standard deviation of at most 2, so that of a point or of the area is at most
    1/16 for one map and 1 / 16 / sqrt(200) for 200.
    """
    n = 100
    images = toy_image(1, 0).expand(n, -1, -1, -1)
    result = curves(Interventions.on(toy, images, images), torch.rand(n, 2, *SIZE, generator=torch.Generator().manual_seed(0)))
    tolerance = 3 / 16 / math.sqrt(2 * n)
    assert result["deletion"] == pytest.approx(np.linspace(0.5, 0, 11), abs=tolerance)
    assert result["insertion"] == pytest.approx(np.linspace(0, 0.5, 11), abs=tolerance)
    assert area_under(result["deletion"]) == pytest.approx(0.25, abs=tolerance)
    best = curves(Interventions.on(toy, images, images), maps_of("A", n))
    assert area_under(best["deletion"]) == pytest.approx(0.025, abs=1e-5) and area_under(best["insertion"]) == pytest.approx(0.475, abs=1e-5)


@pytest.mark.parametrize(("curve", "area"), [([3, 3, 3], 3), ([1, 0], 0.5), ([1, 0, 0, 0, 0], 0.125), ([0, -1, 2], 0)])
def test_area_under_by_hand(curve, area):
    assert area_under(np.array(curve)) == pytest.approx(area)


@pytest.mark.parametrize("verbose", [True, False])
def test_a_progress_bar_if_asked_for(toy, capsys, verbose):
    curves(Interventions.on(toy, IMAGES1, IMAGES2), maps_of("A"), verbose)
    assert ("Deleting and inserting: 100%" in capsys.readouterr().err) == verbose


# ----------------------------------------------------------------------------------------------- randomisation


@pytest.mark.parametrize("values", [None, 5, 2])
def test_rank_correlation_equals_scipys_without_constant_maps(values):
    """Continuous values, and whole numbers below `values`: many ties."""
    generator = torch.Generator().manual_seed(0)
    maps1 = torch.rand(4, 2, 3, 5, generator=generator) if values is None else torch.randint(values, (4, 2, 3, 5), generator=generator).float()
    maps2 = maps1 + torch.randn(maps1.shape, generator=generator).mul(0.7).round() ** 3
    maps1[1, 0], maps2[2, 1] = 0.1, -7.3
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(maps1.flatten(0, 1), maps2.flatten(0, 1)) if len(a.unique()) > 1 < len(b.unique())]
    expected = [spearmanr(a, b).statistic for a, b in pairs]
    assert len(expected) == 6 and max(expected) < 0.99
    assert rank_correlation(maps1, maps2) == pytest.approx(np.mean(expected))


def test_rank_correlation_of_nothing_but_constant_maps():
    maps = torch.rand(2, 2, 3, 5)
    assert math.isnan(rank_correlation(maps, torch.full_like(maps, 0.1)))
    assert rank_correlation(maps, maps.exp()) == pytest.approx(1) and rank_correlation(maps, -maps) == pytest.approx(-1)


PAIRS = 4


def network_images(size=SIZE):
    return torch.randn(2, PAIRS, 3, *size, generator=torch.Generator().manual_seed(3)).unbind()


def trained_network(name="Conv4", size=SIZE):
    """A network with batch statistics as if trained, which takes half of the pairs for similar."""
    torch.manual_seed(0)
    model = SiameseNetwork(name, embedding_dim=5, image_size=size)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.embed(torch.cat(network_images(size)))
        model.eval()
        z1, z2 = (model.embed(images) for images in network_images(size))
        model.mean_embedding.copy_(torch.cat([z1, z2]).mean(0))
        model.margin = 2 * float((z1 - z2).norm(dim=1).median() * 1.0001)
    for norm in norms:
        norm.momentum = 0.1
    return model


@pytest.mark.parametrize("method", ["contrast", "distance"])
@pytest.mark.parametrize(("name", "size"), [("Conv4", SIZE), ("MobileNet", (32, 64))])
def test_maps_forget_with_the_network(name, size, method):
    """For a deep backbone too, whose activations would vanish with batch statistics of other weights: all maps constant, NaN."""
    model = trained_network(name, size)
    result = randomisation_check(model, *network_images(size), method)
    assert list(result) == ["none", "head", "head and backbone"] and result["none"] == 1
    assert all(-0.7 < result[part] < 0.7 for part in ("head", "head and backbone"))
    assert randomisation_check(model, *network_images(size), method) == result
    assert randomisation_check(model, *network_images(size), method, seed=1) != result


@pytest.mark.parametrize("signed", [False, True])
def test_maps_that_ignore_the_network_are_found_out(monkeypatch, signed):
    """Also if they take their sign from the decision, which changes."""
    usual, fixed = faithfulness.explain, torch.randn(PAIRS, 2, 6, 10)

    def edges(model, *args):
        similar = usual(model, *args).is_similar
        return SimpleNamespace(is_similar=similar, raw=fixed * torch.where(similar, -1, 1)[:, None, None, None] if signed else fixed)

    model = trained_network()
    assert set(usual(model, *network_images()).is_similar.tolist()) == {True, False}
    monkeypatch.setattr(faithfulness, "explain", edges)
    assert randomisation_check(model, *network_images()) == pytest.approx({"none": 1, "head": 1, "head and backbone": 1})


@pytest.mark.parametrize("method", ["contrast", "distance"])
def test_the_maps_before_are_those_of_the_networks_own_decisions(monkeypatch, method):
    model, compared = trained_network(), []
    expected = faithfulness.explain(model, *network_images(), method).raw
    monkeypatch.setattr(faithfulness, "rank_correlation", lambda before, after: compared.append(before))
    randomisation_check(model, *network_images(), method)
    assert len(compared) == 2 and all(torch.allclose(before, expected, rtol=1e-4, atol=1e-6) for before in compared)


@pytest.mark.parametrize("fails_at", [None, 1, 3, 4, 6, 7])
def test_what_is_randomised_and_that_it_is_restored(monkeypatch, fails_at):
    model = trained_network()
    model.blurred_features.copy_(feature_maps(model, blur(torch.cat(network_images()))).mean((0, 2, 3)))
    model.train().backbone[0].eval()
    model.backbone[4].weight.requires_grad_(False)
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    draws, usual, seen = torch.get_rng_state(), faithfulness.explain, []

    def watched(*args):
        changed = {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.allclose(tensor.float(), state[name].float())}
        seen.append(changed)
        assert all(module.training for module in model.modules()) is False and [module.training for module in model.modules()] == modes
        if len(seen) > 3:
            with faithfulness.eval_mode(model), torch.no_grad():
                assert torch.allclose(model.embed(torch.cat(network_images())).mean(0), model.mean_embedding, atol=1e-5)
            assert not torch.allclose(model.head[0].weight, state["head.0.weight"])
        if len(seen) == fails_at:
            raise KeyError("broken")
        return usual(*args)

    monkeypatch.setattr(faithfulness, "explain", watched)
    threshold = model.threshold
    if fails_at:
        with pytest.raises(KeyError, match="broken"):
            randomisation_check(model, *network_images())
    else:
        randomisation_check(model, *network_images(), seed=0)  # the seed the network was made with
        assert seen == [set()] * 3 + [{"head", "mean_embedding"}] * 2 + [{"head", "backbone", "mean_embedding", "blurred_features"}] * 2
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes and model.threshold == threshold
    assert torch.equal(torch.get_rng_state(), draws)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["backbone.4.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.momentum == 0.1 for module in model.modules() if isinstance(module, nn.BatchNorm2d))
