import numpy as np
import pytest
import torch
from samples import config_in

from utils.models import about_threshold, build_model, every_pair, load_trained, strangers, threshold_for
from utils.system.errors import ModelError
from utils.system.settings import SHIPPED


def config_of(folder, dataset="Synthetic", **settings):
    given = {"dataset": dataset, "data_path": folder / dataset, "checkpoints_path": folder / "checkpoints"}
    return config_in(folder, backbone_model="Conv4", device="cpu", **given | settings)


def test_before_training_the_shipped_network_stands_in_and_says_so(tmp_path):
    config = config_of(tmp_path, threshold=0.3)
    model, note = load_trained(config)
    assert config.trained_path == SHIPPED / "Synthetic" and model.threshold == 0.3
    assert note.startswith("Synthetic: trained on checks, dots") and "not trained yet" in note and "match" not in note
    assert not (tmp_path / "Synthetic").exists()  # no scenes are drawn


@pytest.mark.parametrize(("count", "end"), [(2, "c0, c1"), (1000, "c18, c19 and 980 more")])
def test_a_network_of_ones_own_is_preferred_and_its_first_classes_are_named(tmp_path, count, end):
    config, classes = config_of(tmp_path), [f"c{i}" for i in range(count)]
    info = {"classes": classes, "config": {}, "calibrated_threshold": 0.5}
    build_model(config).save(config.checkpoints_path / "model.pth", **info)
    model, note = load_trained(config)
    assert note.startswith("Synthetic: trained on c0") and note.endswith(end) and model.info["classes"] == classes


def test_a_network_without_what_training_leaves_beside_it_is_used(tmp_path):
    config = config_of(tmp_path, dataset="Mine", threshold=0.4)
    build_model(config).save(config.checkpoints_path / "model.pth")
    model, note = load_trained(config)
    assert (model.threshold, note) == (0.4, "Mine: trained on images that its file does not name")
    with pytest.raises(ModelError, match="false_matches is set on validation images"):
        load_trained(config_of(tmp_path, dataset="Mine", threshold={"false_matches": 0.1}))


def test_without_either_the_notebook_that_trains_is_named(tmp_path):
    with pytest.raises(ModelError, match="run 01_Train_Siamese_model.ipynb first"):
        load_trained(config_of(tmp_path, dataset="Mine"))


def test_the_threshold_for_a_share_of_false_matches_by_hand(tmp_path):
    z, labels = torch.tensor([[0.0], [1.0], [1.5], [4.0]]), torch.tensor([0, 0, 1, 1])
    info = {"valid_embeddings": z, "valid_labels": labels}  # pairs of two classes: 0.5, 1.5, 3, 4
    for share, distance in ((0.1, 0.5), (0.25, 1.5), (0.49, 1.5), (0.5, 3.0), (0.99, 4.0)):
        config = config_of(tmp_path, threshold={"false_matches": share})
        assert threshold_for(config, info, margin=8.0) == distance / 8
        assert np.mean(np.array([0.5, 1.5, 3, 4]) < distance) <= share
    assert threshold_for(config, info, margin=2.0) == 1  # all from the margin on are as dissimilar as can be
    assert threshold_for(config_of(tmp_path, threshold=0.3), {}, margin=2.0) == 0.3
    with pytest.raises(ModelError, match="false_matches is set on validation images, of which this network keeps none"):
        threshold_for(config, {}, margin=2.0)


def test_every_pair_is_compared_once_and_of_very_many_images_some(monkeypatch):
    z, labels = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), np.array([0, 1, 0, 2, 1, 0, 0])
    distance, label, (one, two) = every_pair(z, labels)
    assert list(zip(one, two)) == [(i, j) for i in range(7) for j in range(i + 1, 7)]
    assert distance == pytest.approx([float((z[i] - z[j]).norm()) for i, j in zip(one, two)], rel=1e-5)
    assert label.tolist() == [int(labels[i] != labels[j]) for i, j in zip(one, two)]
    monkeypatch.setattr("utils.models.MOST_IMAGES", 3)
    assert [ends.tolist() for ends in every_pair(z, labels)[2]] == [[0, 0, 3], [3, 6, 6]]


@pytest.mark.parametrize(
    ("most", "found"), [(30, "0.1000 ({:.4f}-{:.4f}) of 300"), (15, "0.0933 ({:.4f}-{:.4f}) of 75")]
)
def test_the_network_says_how_many_false_matches_there_are_and_how_surely(tmp_path, monkeypatch, most, found):
    monkeypatch.setattr("utils.models.MOST_IMAGES", most)
    rng = np.random.default_rng(5)
    z, labels = rng.normal(size=(30, 2)), np.repeat([0, 1, 2], 10)
    config = config_of(tmp_path, threshold={"false_matches": 0.1})
    kept = {"valid_embeddings": torch.from_numpy(z), "valid_labels": torch.from_numpy(labels)}
    info = {"classes": ["a", "b"], "config": {}, "calibrated_threshold": 0.5} | kept
    build_model(config).save(config.checkpoints_path / "model.pth", **info)
    model, note = load_trained(config)
    assert note == f"Synthetic: trained on a, b{about_threshold(config, model)}"
    # A naive loop over images, drawn as often as the multinomial says, and all their pairs.
    rates, used = [], set(np.linspace(0, 29, most).round())
    for drawn in np.random.default_rng(0).multinomial(30, [1 / 30] * 30, 40):
        images = [i for i in np.repeat(np.arange(30), drawn) if i in used]
        pairs = [(i, j) for n, i in enumerate(images) for j in images[:n] if labels[i] != labels[j]]
        rates.append(np.mean([np.linalg.norm(z[i] - z[j]) / 2 < model.threshold for i, j in pairs]))
    said = found.format(*np.percentile(rates, [2.5, 97.5])) + " validation pairs of two classes match falsely"
    assert about_threshold(config, model, resamples=40) == f"; above a similarity of {1 - model.threshold:.3f}, {said}"


def test_an_image_far_from_all_validation_images_is_a_stranger(tmp_path):
    model = build_model(config_of(tmp_path, image={"size": (16, 16)})).eval()
    generator = torch.Generator().manual_seed(0)
    assert strangers(model, torch.zeros(1, 3, 16, 16), ["a"]) == []  # of a network without validation images, nothing
    with torch.no_grad():
        batch = torch.randn(46, 3, 16, 16, generator=generator)
        batch[40:43] = torch.tensor([3.0, -3.0, 0.0])[:, None, None]  # plain colours
        features = torch.nn.functional.normalize(model.pooling(model.backbone(batch))).double()
    model.info = {"valid_features": features[:40]}

    def distance(one, others):
        return np.mean(sorted(float((features[one] - features[other]).norm()) for other in others)[:5])

    own = [distance(i, [j for j in range(40) if j != i]) for i in range(40)]
    expected = [(1 + sum(value >= distance(i, range(40)) for value in own)) / 41 for i in range(40, 46)]
    lines = strangers(model, batch[40:], [*"uvwxyz"], level=0.3)
    assert lines == [
        f"{name}: resembles nothing that the network knows (p = {p:.3f}, from 40 validation images)"
        for name, p in zip("uvwxyz", expected)
        if p <= 0.3
    ]
    assert expected[:3] == [1 / 41] * 3 and len(lines) < 6
    assert [line[0] for line in strangers(model, batch[40:], [*"uvwxyz"], level=0.03)] == [*"uvw"]
