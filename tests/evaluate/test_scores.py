import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from samples import break_file, config_in, make_files, small_network
from sklearn import metrics

from utils.evaluate import scores as module
from utils.evaluate.scores import (
    bootstrap_intervals,
    calibrate_threshold,
    embed_images,
    extreme_pairs,
    measure_split,
    query_scores,
    score_pairs,
)
from utils.images.frame import Frame
from utils.images.pairs import Pairs


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
    assert scores.confusion == [[2, 1], [1, 2]]  # 0.5 is not below 0.5
    assert (scores.accuracy, scores.threshold) == (pytest.approx(4 / 6), 0.5)
    assert scores.auc == pytest.approx(8 / 9)  # only 0.3 against 0.5 is out of order
    assert scores.average_precision == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)
    assert scores.balanced_accuracy == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert scores.f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores.equal_error_rate == pytest.approx(1 / 3)  # from 0.3 on: 0.5 is a false alarm, and nothing is missed


def test_a_confusion_always_has_two_rows():
    assert score_pairs(np.array([0.1, 0.2]), np.array([0, 1]), threshold=5).confusion == [[1, 0], [1, 0]]


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
    scores = resampled(dissimilarity, pairs, 0.5, seed=1, resamples=40)
    assert (len(scores) < 40) == (not both_together)  # some resamples have one kind only
    intervals = bootstrap_intervals(dissimilarity, pairs, 0.5, seed=1, resamples=40)
    assert list(intervals) == ["accuracy", "balanced_accuracy", "f1", "auc", "average_precision", "equal_error_rate"]
    assert np.allclose(np.transpose(list(intervals.values())), np.percentile(scores, [2.5, 97.5], axis=0))


def balanced_accuracy(dissimilarity, label, threshold):
    called = dissimilarity >= threshold
    return (called[label == 1].mean() + (~called)[label == 0].mean()) / 2


RNG, LABEL = np.random.default_rng(1), np.arange(30) % 2
CALIBRATION = {
    "random": RNG.random(30) + 0.3 * LABEL,
    "few values": RNG.integers(0, 4, 30) / 4 + 0.25 * LABEL,
    "separated": RNG.random(30) + 2.0 * LABEL,
    "reversed": RNG.random(30) - 2.0 * LABEL + 50,
    "constant": np.full(30, 0.7),
    "neighbouring numbers": np.where(LABEL, np.nextafter(np.float32(0.3), np.float32(1)), np.float32(0.3)),
    "neighbours the other side": 1 - np.where(LABEL, np.nextafter(np.float32(0.3), np.float32(0)), np.float32(0.3)),
    "far beyond the margin": RNG.random(30) * 100 - 100 * LABEL + 100,
}


@pytest.mark.parametrize("case", CALIBRATION)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label", [LABEL, (np.arange(30) % 5 == 0).astype(int)], ids=["balanced", "unbalanced"])
def test_calibrated_threshold_is_the_best_of_all_cuts(case, dtype, label):
    dissimilarity = CALIBRATION[case].astype(dtype)
    best = max(balanced_accuracy(dissimilarity, label, cut) for cut in [*dissimilarity, np.inf])
    threshold = calibrate_threshold(dissimilarity, label)
    assert isinstance(threshold, float) and np.isfinite(threshold)
    assert balanced_accuracy(dissimilarity, label, threshold) == pytest.approx(best)


def test_calibrated_threshold_lies_midway():
    assert calibrate_threshold(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    # Of equals, the highest.
    assert calibrate_threshold(np.array([0.1, 0.8, 0.4, 0.9]), np.array([0, 0, 1, 1])) == pytest.approx(0.85)


@pytest.fixture
def model():
    return small_network(size=(16, 24), margin=2.0)


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
    rows = [(f"{label}/{i}.png", label, "valid" if i == 5 else "test") for label in "ab" for i in range(6)]
    make_files(tmp_path, [file for file, *_ in rows])
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


COLUMNS = ["recall@1", "recall@5", "recall@10", "mAP", "MAP@R"]


def naive_query_scores(embeddings, labels):
    """Class of the query, and its scores, one query and one neighbour after the other."""
    z = embeddings.double().numpy()
    rows = []
    for query in range(len(z)):
        others = [i for i in range(len(z)) if i != query]
        others.sort(key=lambda i: (np.sqrt(((z[i] - z[query]) ** 2).sum()), labels[i] == labels[query]))
        hits = [labels[i] == labels[query] for i in others]
        wanted = sum(hits)
        if wanted == 0:
            continue
        found, precision = 0, []
        for rank, hit in enumerate(hits, start=1):
            found += hit
            precision.append(found / rank if hit else 0)
        recalls = [any(hits[:k]) for k in (1, 5, 10)]
        rows.append((labels[query], [*recalls, sum(precision) / wanted, sum(precision[:wanted]) / wanted]))
    return rows


def test_four_images_on_a_line_by_hand():
    found = query_scores(torch.tensor([[0.0], [1.0], [3.0], [9.0]]), ["a", "b", "a", "b"])
    # 0: b a b;  1: a a b;  3: b a b;  9: a b a
    assert list(found.index) == ["a", "b", "a", "b"] and list(found.columns) == COLUMNS
    assert found["recall@1"].tolist() == [0] * 4 and found["recall@5"].tolist() == [1] * 4  # 5: more than there are
    assert found["mAP"].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 2, 1 / 2]) and not found["MAP@R"].any()


@pytest.mark.parametrize("scale", [3, 1000], ids=["ties", "few ties"])
@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_query_scores_equal_a_naive_loop(scale, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    labels = rng.permutation(["rose"] * 14 + ["aster"] * 3 + ["lily"] * 20 + ["lonely"] + ["pair"] * 2)
    embeddings = torch.from_numpy(rng.integers(0, scale, (40, 1))).float()
    names, expected = zip(*naive_query_scores(embeddings, labels))
    found = query_scores(embeddings, labels)
    assert list(found.index) == list(names) and np.allclose(found, np.array(expected, float))


def test_a_collapsed_network_finds_nothing_whatever_the_order_of_the_images():
    labels = np.array(["a"] * 12 + ["b"] * 12)
    for order in (np.arange(24), np.random.default_rng(0).permutation(24)):
        assert not query_scores(torch.zeros(24, 2), labels[order])[["recall@1", "recall@5", "recall@10"]].any(axis=None)
