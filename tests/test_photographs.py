"""Photographs before any training: compared by ImageNet features."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import config_in
from scipy.stats import norm
from sklearn.datasets import load_sample_image
from torch import nn

from utils.explain.occlusion import RegionEffects, effect_on_distance, in_few_dimensions
from utils.models import CentredPooling, build_model, network_for, photographs_network
from utils.Siamese import embedding_distance

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def photographs():
    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def test_unrelated_photographs_are_dissimilar_and_crops_of_one_are_similar(photographs):
    model, rng = photographs_network(torch.device("cpu")), np.random.default_rng(0)
    crops = []
    for image in photographs:
        width, height = (round(side * 0.5**0.5) for side in image.size)  # half of the area
        for _ in range(4):
            left, top = rng.integers(image.width - width), rng.integers(image.height - height)
            crops.append(model.preprocess(image.crop((left, top, left + width, top + height))))
    with torch.no_grad():
        z = model.embed(torch.stack(crops))
    similar = model.is_similar(embedding_distance(z[:, None], z[None]))
    assert similar[:4, :4].all() and similar[4:, 4:].all() and not similar[:4, 4:].any()
    assert torch.allclose(z.norm(dim=1), torch.tensor(2.0).sqrt())


def test_the_centre_is_the_mean_of_relu6_of_normally_distributed_values():
    batch_norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        batch_norm.weight.copy_(torch.tensor([1.0, -2.0, 4.0]))
        batch_norm.bias.copy_(torch.tensor([-0.5, 1.0, 3.0]))
    expected = [norm(m, s).expect(lambda y: min(max(y, 0), 6)) for m, s in ((-0.5, 1), (1, 2), (3, 4))]
    pooled = CentredPooling(batch_norm)(torch.full((2, 3, 4, 5), 1.5))
    assert torch.allclose(pooled, 1.5 - torch.tensor(expected).float().expand(2, 3), atol=1e-4)


@pytest.mark.parametrize(
    ("dataset", "inside", "trained", "words"),
    [
        ("Synthetic", True, False, "Synthetic: trained on"),
        ("Synthetic", False, False, "ImageNet features"),
        ("Synthetic", False, True, "ImageNet features"),
        ("Mine", True, False, "ImageNet features"),
        ("Mine", False, True, "Mine: trained on a, b"),
    ],
)
def test_which_network_compares(tmp_path, dataset, inside, trained, words):
    folder = tmp_path / "Data" / dataset
    given = {"dataset": dataset, "data_path": folder, "checkpoints_path": tmp_path / "checkpoints"}
    config = config_in(tmp_path, backbone_model="Conv4", device="cpu", **given)
    if trained:
        config.checkpoints_path.mkdir()
        build_model(config).save(
            config.checkpoints_path / "model.pth", classes=["a", "b"], config={}, calibrated_threshold=0.5
        )
    model, note = network_for(config, [folder / "a" / "1.png", (folder if inside else tmp_path) / "2.png"])
    assert words in note and (model.threshold == 0.7) == ("ImageNet" in words)


def test_a_page_of_fewer_numbers_keeps_the_effects_of_pairs():
    rng = torch.Generator().manual_seed(0)
    z, delta = torch.randn(5, 300, generator=rng), torch.randn(5, 9, 300, generator=rng)
    whole = RegionEffects(z, torch.zeros(5, 9, 4), delta, torch.zeros(5, 2, 2, 301))
    few = in_few_dimensions(whole, 8)
    assert few.embeddings.shape == (5, 8) and few.delta.shape == (5, 9, 8)
    for i, j in ((0, 1), (3, 2), (4, 0)):
        expected = effect_on_distance(delta[[i]], z[[i]] - z[[j]])
        found = effect_on_distance(few.delta[[i]], few.embeddings[[i]] - few.embeddings[[j]])
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-2)
    assert torch.allclose(torch.cdist(few.embeddings, few.embeddings), torch.cdist(z, z), rtol=1e-4)
    assert in_few_dimensions(whole, 300) is whole
