from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from toy import IMAGES1, IMAGES2, MARGINS_AFTER, MARGINS_BEFORE, SIZE, Toy, boxes, maps_of, naive_margins

from utils.explain import removal
from utils.explain.removal import (
    REMOVALS,
    Interventions,
    WhatIf,
    blur,
    equal_shares,
    filled,
    randomly_moved,
    strongest_region,
)


def test_the_strongest_region_equals_a_sort_with_ties_in_reading_order():
    maps = torch.randint(-1, 4, (3, 2, 5, 7), generator=torch.Generator().manual_seed(0)).float()
    maps[0, 0] = -1
    maps[0, 0, 2, 3:5] = 1  # fewer than a tenth of 35 pixels
    regions = strongest_region(maps)
    assert regions.shape == maps.shape and regions.dtype == torch.bool
    for values, region in zip(maps.view(6, 35).tolist(), regions.view(6, 35).tolist()):
        strongest = sorted(range(35), key=lambda i: (-values[i], i))[:4]
        assert [i for i, chosen in enumerate(region) if chosen] == sorted(i for i in strongest if values[i] > 0)


def test_moved_regions_are_seeded_shifts_of_their_own_each():
    regions = torch.rand(5, 2, 6, 7, generator=torch.Generator().manual_seed(0)) > 0.7
    first, again, other = (randomly_moved(regions, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    shifts = set()
    for region, moved in zip(regions.flatten(0, 1), first.flatten(0, 1)):
        ((dy, dx),) = [(y, x) for y in range(6) for x in range(7) if torch.equal(region.roll((y, x), (0, 1)), moved)]
        shifts.add((dy, dx))
    assert len(shifts) > 5


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (16, 16), (16, 200), (200, 16)])
def test_blur_equals_scipys(size):
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    sigma, result = max(size) / 8, blur(images)
    reach = [min(2 * max(size) // 8, side - 1) for side in size]
    expected = gaussian_filter(images.double(), sigma, mode="mirror", radius=reach, axes=(2, 3))
    assert result.dtype == torch.float32 and abs(result.numpy() - expected).max() < 1e-5


def test_blur_keeps_a_colour_and_takes_small_shapes_away():
    colour = torch.tensor([0.2, -1.5, 3.0]).view(1, 3, 1, 1).expand(1, 3, *SIZE)
    assert torch.allclose(blur(colour), colour, atol=1e-5)
    shape = boxes((slice(10, 14), slice(18, 22))).expand(1, 3, *SIZE)  # 4 pixels wide: a tenth of the image
    assert blur(shape).max() < 1 / 8 and blur(shape).mean() == pytest.approx(shape.mean().item(), rel=0.1)
    large = boxes((slice(None), slice(20, None))).expand(1, 3, *SIZE)
    assert blur(large)[..., 0].max() < 0.05 and blur(large)[..., -1].min() > 0.95


@pytest.mark.parametrize("patch", MARGINS_AFTER)
def test_margins_by_hand(monkeypatch, patch):
    monkeypatch.setattr(removal, "blur", torch.zeros_like)
    interventions, expected = Interventions(Toy(), IMAGES1, IMAGES2), torch.tensor(MARGINS_AFTER[patch])
    assert torch.allclose(interventions.margins_before, torch.tensor(MARGINS_BEFORE), atol=1e-5)
    assert torch.allclose(interventions.margins_after(maps_of(patch).bool()), expected, atol=1e-5)


def test_margins_equal_a_naive_loop_with_the_real_blur_and_leave_modes_as_found():
    regions, toy = torch.rand(3, 2, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.4, Toy().train()
    margins = Interventions(toy, IMAGES1, IMAGES2).margins_after(regions)
    assert abs(margins.numpy() - naive_margins(regions.numpy())).max() < 1e-5
    assert all(module.training for module in toy.modules()) and not margins.requires_grad


def test_margins_follow_the_networks_margin_and_threshold():
    toy = Toy()
    toy.margin, toy.threshold = 4.0, 0.7  # distances 0.4, 2.5, 8: similar, similar, dissimilar
    interventions = Interventions(toy, IMAGES1, IMAGES2)
    assert interventions.margins_before.tolist() == pytest.approx([0.7 - 0.1, 0.7 - 0.625, 2 - 0.7])


def test_three_removals():
    image = torch.arange(3 * 4 * 6.0).view(1, 3, 4, 6)
    blurred, filled, moved = (removal(image) for removal in REMOVALS.values())
    assert torch.equal(blurred, blur(image))
    for channel in range(3):
        assert (filled[0, channel] == 24 * channel + 11.5).all()  # of 0 to 23
        for row in range(4):
            for column in range(6):
                assert moved[0, channel, (row + 2) % 4, (column + 3) % 6] == image[0, channel, row, column]


def test_the_report_says_which_map_fails_its_own_check():
    changes = {
        "blurred": np.array([[-0.1, 0.1], [0.1, -0.1]]),
        "filled": np.array([[-0.1, -0.1], [0.1, 0.1]]),
        "covered": np.array([[0.1, -0.1], [-0.1, 0.1]]),
    }
    empty, flips = np.array([[False, False], [False, True]]), np.array([[True, False], [False, False]])
    result = WhatIf(0.8, np.zeros((2, 2)), changes, torch.zeros(2, 2, 4, 4), empty, flips, (None, None))
    assert result.report(("a", "b")).splitlines() == [
        "a, factual region blurred: similarity 0.80 → 0.00, the decision flips, as it should, "
        "also if it is filled; but not if it is covered",
        "a, counterfactual region blurred: similarity 0.80 → 0.00, the decision gets stronger, as it should; "
        "but not if it is filled or covered",
        "b, factual region blurred: similarity 0.80 → 0.00, the decision gets stronger, so do not trust this map",
        "b, counterfactual region has no evidence to blur",
    ]
    without_effect = replace(result, changes={"blurred": np.zeros((2, 2))}).report(("a", "b"))
    assert without_effect.count("so do not trust this map") == 3 and "as it should" not in without_effect


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (-0.2, 0.1, "similarity 0.00 → 0.10"),
        (0.9, 0.904, "similarity 0.900 → 0.904"),
        (0.9, 0.90004, "similarity 0.9000 → 0.9000"),
        (-0.3, -0.3003, "distance / margin 1.3000 → 1.3003"),
    ],
)
def test_a_change_has_as_many_decimals_as_show_it(before, after, words):
    assert WhatIf(before, np.full((2, 2), after), {}, None, None, None, (None, None)).change_in_words(0, 0) == words


def test_a_filled_region_shows_nothing_of_itself_and_continues_its_surroundings():
    across = torch.linspace(0, 1, 48).expand(1, 3, 40, 48).clone()
    inside = torch.zeros(1, 1, 40, 48, dtype=torch.bool)
    inside[..., 10:22, 15:30] = True
    marked = torch.where(inside, 7.0, across)
    result = filled(marked, inside)
    assert torch.equal(result, filled(across, inside))  # whatever was there
    assert torch.equal(torch.where(inside, across, result), across)  # the rest stays as it was
    assert (result - across).abs().max() < 0.1  # a ramp of 0.3 within the region
    assert torch.equal(filled(marked, torch.zeros_like(inside)), marked)


def test_as_large_a_share_of_each_class_is_filled_at_places_of_marked_images():
    labels, marked = np.array([*"aaaabbbbbbccd"]), np.isin(np.arange(13), [0, 1, 2, 4, 12])  # 3 of 4, 1 of 6, 0, 1 of 1
    for seed in range(5):
        more, like = equal_shares(labels, marked, np.random.default_rng(seed))
        assert len(set(more)) == len(more) == len(like) and marked[like].all() and not marked[more].any()
        assert sorted(labels[more]) == [*"bbbcc"]  # 4 of 6 (4.5, to the even number), and 2 of 2 (1.5)
    assert not len(equal_shares(labels, np.ones(13, bool), np.random.default_rng(0))[0])
