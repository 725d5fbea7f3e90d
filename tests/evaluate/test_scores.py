import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from samples import break_file, config_in, make_files
from sklearn import metrics

from utils.evaluate.scores import (
    bootstrap_intervals,
    embed_images,
    extreme_pairs,
    measure_split,
    pair_distances,
    score_pairs,
)
from utils.images.frame import Frame
from utils.images.pairs import Pairs
from utils.Siamese import SiameseNetwork


def disjoint(label):
    """Pairs with these labels, no image in two of them."""
    return Pairs(np.arange(0, 2 * len(label), 2), np.arange(1, 2 * len(label), 2), label)


def test_the_surest_decisions_and_the_worst_mistakes():
    dissimilarity = np.array([0.1, 0.4, 0.9, 0.0, 0.5, 1.7, 0.45, 0.55, 2.0, 0.2])
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
    assert {
        title: list(found) for title, found in extreme_pairs(dissimilarity, disjoint(label), threshold=0.5).items()
    } == {
        "rightly called similar": [3, 0],
        "rightly called dissimilar": [5, 7],
        "wrongly called similar": [9, 6],
        "wrongly called dissimilar": [8, 2],
    }
    assert not len(extreme_pairs(dissimilarity[:4], disjoint(label[:4]), 0.5)["wrongly called similar"])


def test_no_image_is_shown_twice():
    pairs = Pairs(np.array([0, 1, 2, 3]), np.array([1, 0, 1, 4]), np.zeros(4, int))
    found = extreme_pairs(np.array([0.1, 0.1, 0.2, 0.3]), pairs, threshold=0.5, count=3)["rightly called similar"]
    assert list(found) == [0, 3]  # 1 has both images of pair 0, 2 has one of them


def test_scores_of_six_pairs_by_hand():
    scores = score_pairs(np.array([0.1, 0.5, 0.2, 0.3, 0.9, 1.7]), np.array([0, 0, 0, 1, 1, 1]), threshold=0.5)
    assert scores.confusion.tolist() == [[2, 1], [1, 2]]  # 0.5 is not below 0.5
    assert (scores.accuracy, scores.threshold) == (pytest.approx(4 / 6), 0.5)
    assert scores.auc == pytest.approx(8 / 9)  # only 0.3 against 0.5 is out of order
    assert scores.average_precision == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert scores.f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores.equal_error_rate == pytest.approx(1 / 3)  # from 0.3 on: 0.5 is a false alarm, and nothing is missed
    assert scores.as_dict() == {**vars(scores), "confusion": [[2, 1], [1, 2]]}


def test_a_confusion_always_has_two_rows():
    assert score_pairs(np.array([0.1, 0.2]), np.array([0, 1]), threshold=5).confusion.tolist() == [[1, 0], [1, 0]]


def resampled(dissimilarity, pairs, threshold, seed, resamples):
    """The scores of every resample by scikit-learn, its pairs written out one after the other."""
    images = np.unique(pairs.first)
    draws = np.random.default_rng(seed).multinomial(len(images), np.full(len(images), 1 / len(images)), resamples)
    scores = []
    for counts in draws:
        chosen = [p for image in np.repeat(images, counts) for p in np.flatnonzero(pairs.first == image)]
        label, values = pairs.label[chosen], dissimilarity[chosen]
        if len(set(label)) == 2:
            of_decisions = (metrics.accuracy_score, metrics.balanced_accuracy_score, metrics.f1_score)
            of_order = (metrics.roc_auc_score, metrics.average_precision_score)
            mistakes = [((values[label == 0] >= t).mean(), (values[label == 1] < t).mean()) for t in [*values, np.inf]]
            scores.append([score(label, values >= threshold) for score in of_decisions])
            scores[-1] += [*(score(label, values) for score in of_order), min(map(max, mistakes))]
    return np.array(scores)


@pytest.mark.parametrize("values", [4, 1000], ids=["ties", "few ties"])
@pytest.mark.parametrize("both_together", [True, False], ids=["three pairs an image", "one pair an image"])
def test_intervals_are_those_of_written_out_resamples(values, both_together):
    rng = np.random.default_rng(0)
    first = np.tile([7, 3, 9, 5, 11, 0, 2, 4], 3) if both_together else np.arange(24)
    label = np.repeat([0, 1], [8, 16] if both_together else [21, 3])
    pairs = Pairs(first, np.zeros(24, int), label)
    dissimilarity = rng.integers(0, values, 24) / values + 0.25 * label
    scores = resampled(dissimilarity, pairs, 0.5, seed=1, resamples=90)
    assert (len(scores) < 90) == (not both_together)  # some resamples have one kind only
    intervals = bootstrap_intervals(dissimilarity, pairs, 0.5, seed=1, resamples=90)
    assert list(intervals) == ["accuracy", "balanced_accuracy", "f1", "auc", "average_precision", "equal_error_rate"]
    assert np.allclose(np.transpose(list(intervals.values())), np.percentile(scores, [2.5, 97.5], axis=0))


def test_pair_distances_by_hand():
    pairs = Pairs(np.array([0, 2]), np.array([1, 2]), np.array([1, 0]))
    found = pair_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]), pairs)
    assert found.tolist() == pytest.approx([5, 0], abs=1e-5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SiameseNetwork("Conv4", embedding_dim=4, image_size=(16, 24)).eval()


def test_batches_embed_as_single_images_in_order(model):
    images = torch.randint(0, 256, (7, 3, 16, 24), dtype=torch.uint8)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        expected = torch.cat([model.embed(((image / 255 - mean) / std)[None]) for image in images])
    embeddings = embed_images(model.train(), images, batch_size=3)
    assert torch.allclose(embeddings, expected, atol=1e-5) and not embeddings.requires_grad
    assert len(expected.unique(dim=0)) == 7


def test_a_split_is_measured_in_the_networks_frame(model, tmp_path):
    files = [f"{label}/{i}.png" for label in "ab" for i in range(2)]
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new("RGB", (10, 20), "white").save(tmp_path / file)
    model.frame, model.info = Frame((16, 24), "pad", (0, 0, 0)), {"config": {"seed": 3}}
    table = pd.DataFrame({"file": files, "label": list("aabb"), "split": "test"})
    images = measure_split(model, table, "test", config_in(tmp_path)).images[range(4)]
    assert (images[..., 8:16] == 255).all() and not images[..., :8].any() and not images[..., 16:].any()


def test_a_split_is_measured_at_one_forward_pass_per_image_on_the_same_pairs(model, tmp_path):
    rng = np.random.default_rng(0)
    rows = [(f"{label}/{i}.png", label, "valid" if i == 5 else "test") for label in "ab" for i in range(6)]
    for file, label, _ in rows:
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(tmp_path / file)
    config = config_in(tmp_path, hyperparameters={"batch_size": 4, "verbose": False})
    model.info, model.margin = {"config": {"seed": 3}}, 0.002
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))

    table = pd.DataFrame(rows, columns=["file", "label", "split"])
    measured = measure_split(model, table, "test", config)
    # The network's size, not the configuration's.
    assert [tuple(shape) for shape in seen] == [(count, 3, 16, 24) for count in (4, 4, 2)]
    assert torch.allclose(embed_images(model, measured.images), measured.embeddings, atol=1e-6)
    assert measured.labels.tolist() == ["a"] * 5 + ["b"] * 5
    first, second, label = measured.pairs
    assert len(label) == 20 and (first != second).all()
    assert ((measured.labels[first] != measured.labels[second]) == label).all()
    z = measured.embeddings.double().numpy()
    distances = [np.linalg.norm(z[i] - z[j]) for i, j in zip(first, second)]
    assert np.allclose(measured.dissimilarity, np.array(distances) / 0.002, rtol=1e-3, atol=1e-3)
    assert measured.dissimilarity.max() > 1  # not clipped
    other = config.model_copy(update={"seed": 7})  # the network was trained and calibrated with its own seed
    again = measure_split(model, table, "test", other)
    assert all(np.array_equal(*columns) for columns in zip(measured.pairs, again.pairs))


def test_images_that_are_lost_after_training_are_left_out_in_a_line(model, tmp_path, capsys):
    files = [f"{label}/{i}.png" for label in "ab" for i in range(3)]
    make_files(tmp_path, files)
    table = pd.DataFrame({"file": ["x/1.png", *files], "label": list("xaaabbb"), "split": ["train"] + 6 * ["test"]})
    model.info = {"config": {"seed": 3}}
    measure_split(model, table, "test", config_in(tmp_path))  # so that they are in the cache
    (tmp_path / "a/1.png").unlink()
    break_file(tmp_path / "b/2.png", 0.5)
    measured = measure_split(model, table, "test", config_in(tmp_path))
    assert measured.files == ["a/0.png", "a/2.png", "b/0.png", "b/1.png"] and measured.labels.tolist() == list("aabb")
    assert capsys.readouterr().out == "test: 2 of 6 images gone or unreadable, left out: a/1.png, b/2.png\n"
    pixels = torch.stack([model.preprocess(Image.open(tmp_path / file)) for file in measured.files])
    assert torch.allclose(model.normalize(measured.images[range(len(pixels))]), pixels)
    assert torch.allclose(measured.embeddings, model.embed(pixels), atol=1e-5) and len(measured.pairs.label) == 8
