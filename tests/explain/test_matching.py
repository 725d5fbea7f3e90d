import copy

import numpy as np
import pytest
import torch
from naive import take_secants

from utils.explain import matching
from utils.explain.evidence import feature_maps, local_mean, split_at
from utils.explain.matching import Match, region_similarity, strongest_matches
from utils.Siamese import SiameseNetwork

SIZE = (12, 16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = SiameseNetwork("Conv4", embedding_dim=4, image_size=SIZE).eval()
    network.mean_embedding.copy_(torch.randn(4) / 10)
    network.blurred_features.copy_(torch.rand(64) / 10)
    return network


@pytest.fixture
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def naive_contributions(model, features, method):
    """What every position of one feature map (1, C, h, w) adds to `z - mu`, by the whole Jacobian and loops."""
    model, split = copy.deepcopy(model), split_at(model, method)
    rest = model.backbone[split:]
    if method == "contrast":
        take_secants(model, split - 1, features.shape[2:])
    # (D, C, h, w).
    jacobian = torch.autograd.functional.jacobian(lambda maps: model.embed_features(rest(maps))[0], features)[:, 0]
    if method == "distance":
        jacobian = jacobian.mean((2, 3), keepdim=True).expand_as(jacobian)
    z = model.embed_features(rest(features))[0].detach() - model.mean_embedding
    added_by = features[0] - (model.blurred_features[:, None, None] if method == "contrast" else 0)
    height, width = features.shape[2:]
    added = torch.zeros(len(z), height, width)
    for d in range(len(z)):
        for y in range(height):
            for x in range(width):
                added[d, y, x] = sum(jacobian[d, c, y, x] * added_by[c, y, x] for c in range(features.shape[1]))
    left = z - added.sum((1, 2))
    return added + left[:, None, None] / (height * width), z


@pytest.mark.parametrize("method", ["contrast", "distance"])
def test_region_similarity_equals_a_naive_loop(model, images, method):
    features = feature_maps(model, images, method)[:, :8]  # a few channels keep the loop short
    whole = feature_maps(model, images, method) * 0
    whole[:, :8] = features
    (one, z1), (two, z2) = (naive_contributions(model, maps[None], method) for maps in whole)
    # Nothing is left out.
    assert torch.dot(z1, z2) == pytest.approx(float(torch.einsum("dyx,dvu->", one, two)), rel=1e-3)
    one, two = local_mean(one), local_mean(two)
    found = region_similarity(model, whole[:1], whole[1:], method)
    height, width = one.shape[1:]
    assert found.shape == (height, width, height, width)
    for y, x, v, u in np.random.default_rng(0).integers(0, [height, width, height, width], (200, 4)):
        expected = sum(float(one[d, y, x] * two[d, v, u]) for d in range(4))
        assert found[y, x, v, u] == pytest.approx(expected, rel=1e-3, abs=1e-5 * float(found.abs().max()))


def test_swapping_the_images_transposes_the_matrix(model, images):
    one, two = feature_maps(model, images).split(1)
    assert torch.allclose(
        region_similarity(model, one, two), region_similarity(model, two, one).permute(2, 3, 0, 1), atol=1e-6
    )


def test_modes_and_gradients_are_left_as_found(model, images):
    features = feature_maps(model, images)
    model.train()
    region_similarity(model, features[:1], features[1:])
    assert model.training and model.backbone[1].training
    assert all(parameter.grad is None for parameter in model.parameters()) and not features.requires_grad


def test_the_strongest_matches_are_found_in_order_and_keep_their_surroundings():
    similarity = -torch.ones(10, 10, 10, 10)
    similarity[1, 1, 8, 8] = 3.0
    similarity[1, 2, 0, 0] = 2.9  # next to the first match in image 1: less than 2 positions away
    similarity[9, 9, 8, 7] = 2.8  # next to it in image 2
    similarity[1, 3, 4, 4] = 2.0  # 2 positions away
    similarity[6, 6, 1, 9] = 1.0
    similarity[9, 1, 1, 1] = 0.8  # less than 0.3 of the strongest
    assert strongest_matches(similarity) == [
        Match((0.15, 0.15), (0.85, 0.85), 3.0),
        Match((0.15, 0.35), (0.45, 0.45), 2.0),
        Match((0.65, 0.65), (0.15, 0.95), 1.0),
    ]
    assert [match.strength for match in strongest_matches(similarity, count=1)] == [3.0]
    assert strongest_matches(-torch.ones(3, 4, 3, 4)) == []


def test_large_maps_are_merged_and_nothing_is_lost(model, images, monkeypatch):
    one, two = feature_maps(model, images).split(1)
    whole = region_similarity(model, one, two)
    monkeypatch.setattr(matching, "SIDE", 4)
    merged = region_similarity(model, one, two)
    assert whole.shape == (12, 16, 12, 16) and merged.shape == (4, 4, 4, 4)
    for y, x, v, u in np.ndindex(4, 4, 4, 4):  # 3 rows and 4 columns become one position
        block = whole[3 * y : 3 * y + 3, 4 * x : 4 * x + 4, 3 * v : 3 * v + 3, 4 * u : 4 * u + 4]
        assert merged[y, x, v, u] == pytest.approx(float(block.sum()), rel=1e-3, abs=1e-5 * float(merged.abs().max()))
