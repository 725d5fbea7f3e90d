from functools import partial

import numpy as np
import pytest
import torch
from samples import config_in, small_network
from scipy.spatial import distance as scipy_distance

from utils.evaluate import baselines
from utils.evaluate.baselines import baseline_distances, colour_histograms, compare_methods, pooled_features
from utils.evaluate.scores import (
    SplitDistances,
    bootstrap_intervals,
    calibrate_threshold,
    embed_images,
    pair_distances,
    score_pairs,
)
from utils.images.pairs import Pairs, evaluation_pairs
from utils.networks.backbones import make_backbone

TRAINING_FREE = ["colour histogram", "backbone before training"]
PAIRS = evaluation_pairs([0, 0, 0, 1, 1, 1, 2, 2, 2], 0)


@pytest.fixture
def model():
    return small_network(size=(32, 40), margin=2.0)


@pytest.fixture
def images():
    return torch.randint(0, 256, (9, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def config(tmp_path, **settings):
    return config_in(tmp_path, hyperparameters={"batch_size": 4, "verbose": False}, **settings)


def test_distances_of_histograms_are_those_of_scipy(model, images, tmp_path):
    found = baseline_distances(images, PAIRS, model, config(tmp_path))
    assert list(found) == TRAINING_FREE
    shares = colour_histograms(images)
    for position, (i, j) in enumerate(zip(PAIRS.first, PAIRS.second)):
        hellinger = scipy_distance.euclidean(np.sqrt(shares[i]), np.sqrt(shares[j])) / np.sqrt(2)
        assert found["colour histogram"][position] == pytest.approx(hellinger)


def test_cosine_distance_ignores_the_scale_however_small_and_survives_zeros(model, images, tmp_path, monkeypatch):
    features = torch.tensor([[1e-14, 0], [1e-14, 1e-14], [0, 0], [0, 3], [5, 5], [1, 1]]).double()
    monkeypatch.setattr(baselines, "pooled_features", lambda *args: features)
    pairs = Pairs(np.arange(3), np.arange(3, 6), np.array([0, 0, 1]))
    found = baseline_distances(images, pairs, model, config(tmp_path))["backbone before training"]
    assert found == pytest.approx([1, 0, 1])


def test_a_colour_histogram_by_hand():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0, 0] = torch.tensor([255, 0, 31])
    image[0, :, 0, 1] = torch.tensor([224, 31, 0])  # in the same box
    image[0, :, 1, 0] = torch.tensor([0, 32, 200])
    histogram = colour_histograms(image)
    assert histogram.shape == (1, 512)
    assert {box: share for box, share in enumerate(histogram[0]) if share} == {7 * 64: 0.5, 8 + 6: 0.25, 0: 0.25}


def test_pooled_features_are_means_of_the_last_map_in_eval_mode(model, images):
    backbone = make_backbone("Conv4")
    features = pooled_features(model, backbone.train(), images, batch_size=4)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        expected = [backbone.eval()(((image / 255 - mean) / std)[None]).mean((2, 3))[0] for image in images]
    assert features.shape == (9, 64) and np.allclose(features, torch.stack(expected), atol=1e-5)


def test_random_weights_follow_the_seed_and_touch_neither_the_network_nor_the_global_generator(model, images, tmp_path):
    weights, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    first = baseline_distances(images, PAIRS, model.train(), config(tmp_path))["backbone before training"]
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    torch.manual_seed(5)
    with torch.no_grad():
        model.backbone[0].weight.zero_()  # the trained weights play no part
    again, other = (baseline_distances(images, PAIRS, model, config(tmp_path, seed=seed)) for seed in (42, 7))
    assert np.array_equal(again["backbone before training"], first)
    assert not np.array_equal(other["backbone before training"], first)


def test_pretrained_features_come_from_the_file_of_weights(model, images, tmp_path):
    torch.manual_seed(3)
    backbone = make_backbone("Conv4")
    torch.save(backbone.state_dict(), tmp_path / "weights.pth")
    distances = baseline_distances(images, PAIRS, model, config(tmp_path, weights=tmp_path / "weights.pth"))
    features = pooled_features(model, backbone, images, 4)
    expected = [scipy_distance.cosine(*features[[i, j]].numpy()) for i, j in zip(PAIRS.first, PAIRS.second)]
    assert distances["backbone before training"] == pytest.approx(expected)


def test_without_the_weights_there_is_a_row_less(model, images, tmp_path):
    found = baseline_distances(images, PAIRS, model, config(tmp_path, pretrained=True))  # of Conv4, which has none
    assert list(found) == ["colour histogram"]


def coloured_split(model, seed):
    """Twelve noisy images in three classes that differ in their colour, as the network sees them."""
    labels = np.repeat(["red", "green", "blue"], 4)
    images = torch.randint(0, 60, (12, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    for position in range(12):
        images[position, position // 4] += 150
    embeddings, pairs = embed_images(model, images), evaluation_pairs(labels, 0)
    dissimilarity = (pair_distances(embeddings, pairs) / model.margin).numpy()
    return SplitDistances(images, embeddings, labels, pairs, dissimilarity, files=[])


def test_methods_are_compared_on_the_same_pairs_at_their_own_thresholds(model, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "bootstrap_intervals", partial(bootstrap_intervals, resamples=100))
    valid, test = coloured_split(model, 0), coloured_split(model, 1)
    test.dissimilarity[:] = np.random.default_rng(0).random(24)  # a network that has learnt nothing
    table = compare_methods(valid, test, model, config(tmp_path))
    assert list(table.index) == ["trained network", *TRAINING_FREE]
    assert list(table.columns) == ["AUC", "AUC low", "AUC high", "accuracy", "average precision"]
    assert (
        table.loc["colour histogram"].tolist() == pytest.approx([1] * 5) and table.loc["trained network", "AUC"] < 0.8
    )
    assert (table["AUC low"] <= table["AUC"]).all() and (table["AUC"] <= table["AUC high"]).all()
    tables = [baseline_distances(split.images, split.pairs, model, config(tmp_path)) for split in (valid, test)]
    for name in TRAINING_FREE:
        scores = score_pairs(tables[1][name], test.pairs.label, calibrate_threshold(tables[0][name], valid.pairs.label))
        expected = [scores.auc, scores.accuracy, scores.average_precision]
        assert table.loc[name, ["AUC", "accuracy", "average precision"]].tolist() == expected
    own = score_pairs(test.dissimilarity, test.pairs.label, calibrate_threshold(valid.dissimilarity, valid.pairs.label))
    assert table.loc["trained network", "accuracy"] == own.accuracy
