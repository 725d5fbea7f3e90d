from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy import SIZE, network_images, trained_network

from utils.explain import incremental, occlusion
from utils.explain.occlusion import (
    GRID,
    WINDOWS,
    Match,
    Windows,
    all_windows,
    effects_of_regions,
    region_effects,
    regression,
    strongest_matches,
    windows,
)
from utils.explain.removal import blur
from utils.Grad_CAM import MIN_COUNTERFACTUAL, MIN_FACTUAL, explain, explain_effects, explain_pairs

REGIONS = sum(per_side**2 for _, per_side, _ in WINDOWS)


pytestmark = pytest.mark.usefixtures("exact")


@pytest.fixture(scope="module")
def model():
    return trained_network()


@pytest.fixture(scope="module")
def batch():
    return torch.cat(network_images())


def test_effects_equal_a_loop_that_covers_and_runs_the_whole_network_for_one_pair(model, batch):
    effects = region_effects(model, batch[:2])
    assert effects.regions.shape == (2, REGIONS, 4) and effects.density.shape == (2, GRID, GRID, 6)
    measured = effects.on_pairs([0], [1])[0]
    with torch.no_grad():
        whole = (model.embed(batch[:2]).double().diff(dim=0) ** 2).sum()
        for image in (0, 1):
            for r in range(0, REGIONS, 7):
                top, bottom, left, right = effects.regions[image, r]
                changed = batch[:2].clone()
                changed[image, :, top:bottom, left:right] = blur(batch[[image]])[0, :, top:bottom, left:right]
                without = (model.embed(changed).double().diff(dim=0) ** 2).sum()
                assert float(measured[image, r]) == pytest.approx(float(without - whole), abs=2e-4)


def test_images_of_another_size_than_the_networks_are_measured(model, batch):
    images = batch[:1, :, :-3, :-5]  # no multiple of its strides
    effects, region = region_effects(model, images), 40
    top, bottom, left, right = effects.regions[0, region]
    changed = images.clone()
    changed[..., top:bottom, left:right] = blur(images)[..., top:bottom, left:right]
    with torch.no_grad():
        expected = (model.embed(images) - model.embed(changed))[0]
    assert torch.allclose(effects.delta[0, region], expected, atol=1e-5) and expected.abs().max() > 1e-4


def test_in_bfloat16_it_is_nearly_the_same(model, batch, monkeypatch):
    exact = region_effects(model, batch[:1]).maps([0], [0])
    monkeypatch.setattr(incremental, "bfloat16_pays", lambda device: True)
    rough = region_effects(model, batch[:1]).maps([0], [0])
    assert np.corrcoef(exact.flatten(), rough.flatten())[0, 1] > 0.95


def test_a_thousand_pairs_of_six_images_cost_six_images(model, monkeypatch):
    images = torch.randn(6, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    seen = []
    monkeypatch.setattr(occlusion, "local_stages", lambda model: [])  # so that all passes are of whole images
    hook = model.backbone[0].register_forward_hook(lambda module, given, made: seen.append(len(given[0])))
    first, second = np.random.default_rng(0).integers(6, size=(2, 1000))
    explanation = explain_pairs(model, images, first, second)
    hook.remove()
    assert len(explanation.distance) == 1000 and sum(seen) == 6 * (REGIONS + 2)  # occluded, and the whole image twice
    alone = explain(model, images[first[[7]]], images[second[[7]]])
    assert torch.allclose(alone.raw[0], explanation.raw[7], atol=1e-5)


def test_windows_cover_the_image_from_border_to_border():
    for size in ((24, 40), (64, 64), (5, 200)):
        for side, count, _ in WINDOWS:
            found = windows(side, count, size)
            assert found.shape == (count**2, 4) and found[:, ::2].min() == 0
            assert found[:, 1].max() == size[0] and found[:, 3].max() == size[1]
            height, width = (found[:, 1] - found[:, 0]).unique(), (found[:, 3] - found[:, 2]).unique()
            assert height.tolist() == [max(1, round(side * size[0]))]
            assert width.tolist() == [max(1, round(side * size[1]))]


def test_no_window_is_a_cell_of_the_grids_that_maps_are_judged_by():
    assert all(abs(side - 1 / grid) > 0.005 for side, _, _ in WINDOWS for grid in (3, 5))


def test_density_equals_gaussian_process_regression_on_single_positions(monkeypatch):
    """The same by matrices over all positions, without the products of rows and columns."""
    size, sizes = (48, 64), (Windows(0.5, 2, 0.3), Windows(0.3, 2, 2.0))
    monkeypatch.setattr(occlusion, "WINDOWS", sizes)
    regions = all_windows(size)
    assert regions.tolist()[::5] == [[0, 24, 0, 32], [0, 14, 45, 64]]
    centres = (np.arange(GRID) + 0.5) / GRID
    y, x = (axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij"))
    kernel = np.exp(-((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / (2 * occlusion.KERNEL_LENGTH**2))
    cover = np.zeros((8, GRID, GRID))
    for r, i, j in np.ndindex(cover.shape):
        top, bottom, left, right = regions[r].tolist()
        overlaps = [
            max(0, min(end, (k + 1) * side / GRID) - max(start, k * side / GRID)) * GRID / side
            for k, start, end, side in ((i, top, bottom, 48), (j, left, right, 64))
        ]
        cover[r, i, j] = overlaps[0] * overlaps[1]
    cover = cover.reshape(8, -1)
    covariance = cover @ kernel @ cover.T
    covariance += np.diag(np.diag(covariance) * np.repeat([0.3, 2.0], 4))
    effects = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(0))
    squares = (effects[0].numpy() ** 2).sum(1, keepdims=True)
    expected = kernel @ cover.T @ np.linalg.solve(covariance, np.concatenate([effects[0].numpy(), squares], axis=1))
    regression.cache_clear()
    density = effects_of_regions(torch.zeros(1, 3), effects, size).density
    regression.cache_clear()
    assert np.allclose(density.reshape(-1, 4), expected, atol=1e-5)


def test_maps_are_the_effects_on_a_pair_spread_over_the_images(model, batch):
    """Both by each image's numbers, for any partner, and from the pair's own effects; the regression is linear."""
    effects = region_effects(model, batch[:2])
    maps, on_pair = effects.maps([0, 1], [1, 0]), effects.on_pairs([0], [1])[0]
    for i in (0, 1):
        own = (regression(SIZE) @ on_pair[i].double()).view(GRID, GRID).float()
        assert torch.allclose(maps[0, i], own, atol=1e-5 * float(own.abs().max()))
        assert torch.equal(maps[1, 1 - i], maps[0, i])


def test_interaction_is_what_two_removals_have_in_common(model, batch):
    effects = region_effects(model, batch[:2])
    interaction = effects.interaction(0, 1)
    assert interaction.shape == (GRID // 2,) * 4
    one, two = (effects.density[i, ..., :-1].unfold(0, 2, 2).unfold(1, 2, 2).mean((3, 4)) for i in (0, 1))
    assert float(interaction[3, 5, 7, 2]) == pytest.approx(float(2 * one[3, 5] @ two[7, 2]), rel=1e-4, abs=1e-9)


def test_raw_evidence_is_for_the_decision_in_units_of_squared_distance(model, batch):
    e, both = explain_pairs(model, batch, [0, 0, 1], [1, 2, 3]), []
    towards_similar = region_effects(model, batch).maps([0, 0, 1], [1, 2, 3])
    for raw, maps, similar in zip(e.raw, towards_similar, e.is_similar):
        assert torch.allclose(raw, maps if similar else -maps, rtol=1e-4, atol=1e-6)
        both.append(bool(similar))
    assert set(both) == {True, False}


def test_weak_evidence_is_in_no_map(model, batch):
    """For the decision: weaker than a fifth of its image's strongest; against it: than a tenth of the pair's."""
    effects = region_effects(model, batch[:2])
    scale = torch.tensor([1.0, 0.2])[:, None, None, None]  # so that the limits differ
    e = explain_effects(model, replace(effects, density=effects.density * scale), [0], [1], (GRID, GRID))
    raw = e.raw[0]
    strongest = raw.abs().amax((1, 2), keepdim=True)
    assert strongest[1] < 0.9 * strongest[0] and (MIN_FACTUAL, MIN_COUNTERFACTUAL) == (0.2, 0.1)
    assert torch.equal(e.factual[0] > 0, raw > 0.2 * strongest)  # maps as fine as densities
    assert torch.equal(e.counterfactual[0] > 0, (-raw > 0.1 * strongest.max()) & ~e.empty[0, :, 1, None, None])
    weak = [((raw > 0) & (e.factual[0] == 0)).any(), ((raw < 0) & (e.counterfactual[0] == 0)).any()]
    assert all(weak) and not e.empty.all(1).any()


def test_masks_occluded_all_at_once_add_up_on_the_embedding(model, batch):
    effects = region_effects(model, batch[:2])
    masks = torch.rand(1, 2, GRID, GRID, generator=torch.Generator().manual_seed(0)) < 0.1
    changes = effects.of_masks([0], [1], masks)
    for i in (0, 1):
        without = effects.embeddings[i].clone()
        for row, column in masks[0, i].nonzero().tolist():
            without -= effects.density[i, row, column, :-1]
        away = effects.embeddings[1 - i]
        change = (without - away).square().sum() - (effects.embeddings[i] - away).square().sum()
        assert float(changes[0, i]) == pytest.approx(float(change), rel=1e-3)


@pytest.mark.parametrize(("steps", "kept"), [(1.0, True), (1.9, True), (2.1, False)])
def test_evidence_against_a_decision_is_shown_if_occluding_it_would_strengthen_the_decision(model, batch, steps, kept):
    """The strongest tenth of image 1 takes its embedding `steps` times the way to image 2 when occluded."""
    effects, against = region_effects(model, batch[:2]), round(0.1 * GRID**2)
    away = torch.tensor([0.01, 0, 0, 0, 0])
    embeddings, density = torch.stack([away, 0 * away]), torch.zeros(2, GRID, GRID, 6)
    density[0].view(-1, 6)[300 : 300 + against, :5] = steps * away / against
    e = explain_effects(model, replace(effects, embeddings=embeddings, density=density), [0], [1], (GRID, GRID))
    assert e.is_similar.all() and (e.raw[0, 0] < 0).sum() == against
    assert e.empty[0].tolist() == [[True, not kept], [True, True]]
    assert (e.counterfactual[0, 0] > 0).sum() == kept * against


def test_a_blank_image_has_no_evidence(model):
    e = explain(model, torch.zeros(1, 3, *SIZE), torch.zeros(1, 3, *SIZE))
    assert e.empty.all() and not e.raw.any() and torch.isfinite(e.factual).all()


def test_effects_that_are_no_more_than_rounding_count_as_none(model, batch, monkeypatch):
    """A hundred thousandth of an embedding's length, by the length of an effect."""
    whole, delta = model.embed(batch[:1])[0].detach(), torch.zeros(REGIONS, 5)
    delta[:3, :2] = 1e-5 * whole.norm() * torch.tensor([[0.8, 0.8], [0.6, 0.6], [0, 1.2]])
    embedder = SimpleNamespace(embedding=whole, embeddings=lambda fill, regions: whole - delta)
    monkeypatch.setattr(occlusion, "IncrementalEmbedder", lambda *args: embedder)
    found = region_effects(model, batch[:1]).delta[0]
    assert found.any(1).nonzero().flatten().tolist() == [0, 2]


def test_the_strongest_matches_are_found_in_order_and_keep_their_surroundings():
    interaction = -torch.ones(10, 10, 10, 10)
    interaction[1, 1, 8, 8] = 3.0
    interaction[1, 2, 0, 0] = 2.9  # next to the first match in image 1: less than 2 positions away
    interaction[9, 9, 8, 7] = 2.8  # next to it in image 2
    interaction[1, 3, 4, 4] = 2.0  # 2 positions away
    interaction[6, 6, 1, 9] = 1.0
    interaction[9, 1, 1, 1] = 0.8  # less than 0.3 of the strongest
    assert strongest_matches(interaction) == [
        Match((0.15, 0.15), (0.85, 0.85), 3.0),
        Match((0.15, 0.35), (0.45, 0.45), 2.0),
        Match((0.65, 0.65), (0.15, 0.95), 1.0),
    ]
    assert [match.strength for match in strongest_matches(interaction, count=1)] == [3.0]
    assert strongest_matches(-torch.ones(3, 4, 3, 4)) == []
