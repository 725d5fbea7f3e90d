"""Classes that were held out: their scores, what they lose, and the way from a folder to a model card."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from samples import colour_config, make_files
from trainers import QUICK

from utils.dataset import read_split
from utils.evaluate import class_table, measure_split, metrics_table, split_metrics, unseen, what_is_lost
from utils.evaluate.scores import SplitDistances, bootstrap_intervals, query_scores, score_pairs
from utils.images.pairs import Pairs
from utils.models import load_trained
from utils.Siamese import SiameseNetwork
from utils.training import train, write_model_card


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(unseen, "bootstrap_intervals", partial(bootstrap_intervals, resamples=20))


def split_of(rng, shift):
    """20 images of two classes on a line, `shift` apart, and every pair of neighbours in the list."""
    labels = np.repeat(["a", "b"], 10)
    z = torch.from_numpy(rng.normal(size=20) + shift * (labels == "b"))[:, None]
    first = np.arange(20)
    second = (first + 10 * (first % 2) + 1) % 20
    label = (labels[first] != labels[second]).astype(int)
    return SplitDistances(
        None, z, labels, Pairs(first, second, label), (z[first] - z[second]).abs().numpy()[:, 0], None
    )


def test_metrics_of_a_split_are_those_of_its_parts():
    split = split_of(np.random.default_rng(0), 1.0)
    found = split_metrics(split, 0.5, seed=3)
    assert (found["images"], found["classes"], found["pairs"]) == (20, 2, 20)
    scores = score_pairs(split.dissimilarity, split.pairs.label, 0.5)
    assert {key: found[key] for key in vars(scores)} == vars(scores)
    assert found["retrieval"] == {"queries": 20, **query_scores(split.embeddings, split.labels).mean()}
    assert found["intervals"].items() >= bootstrap_intervals(split.dissimilarity, split.pairs, 0.5, 3, 20).items()
    # recall@1 of resamples of the 20 queries, written out
    hits = [split.labels[i] == split.labels[nearest(split.embeddings, i)] for i in range(20)]
    draws = np.random.default_rng(3).multinomial(20, [1 / 20] * 20, 1000)
    means = [np.mean(np.repeat(hits, counts)) for counts in draws]
    assert found["intervals"]["recall@1"] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    json.dumps(found)


def nearest(z, i):
    return min((j for j in range(len(z)) if j != i), key=lambda j: abs(float(z[i] - z[j])))


def test_what_unseen_classes_lose_by_hand():
    seen, unseen = (split_metrics(split_of(np.random.default_rng(1), shift), 0.5, 0) for shift in (3.0, 0.0))
    for metrics, auc, recall in (
        (seen, (0.95, 0.92, 0.98), (0.9, 0.8, 0.95)),
        (unseen, (0.8, 0.76, 0.83), (0.8, 0.7, 0.9)),
    ):
        metrics["auc"], *metrics["intervals"]["auc"] = auc
        metrics["retrieval"]["recall@1"], *metrics["intervals"]["recall@1"] = recall
    seen["confusion"], unseen["confusion"] = [[5, 3], [1, 11]], [[9, 0], [6, 2]]
    table, sentence = metrics_table({"test images": seen, "unseen classes": unseen}), what_is_lost(seen, unseen)
    assert table.loc["false matches"].tolist() == ["0.083", "0.750"]  # 1 of 12, 6 of 8
    assert sentence == (
        "On classes that it has never seen: AUC 0.800 instead of 0.950; "
        "recall@1 (among 20 images instead of 20) 0.800 instead of 0.900"
    )
    assert list(table) == ["test images", "unseen classes"] and table.loc["images"].tolist() == ["20"] * 2
    assert table.loc["AUC"].tolist() == ["0.950 (0.920-0.980)", "0.800 (0.760-0.830)"]


def test_each_class_has_its_scores_and_its_nearest_other_class():
    """On a line, with a margin of 2: 0, 0.5 and 1 of class a, 1.5 and 1.75 of class b, 3 of class c."""
    z, labels = torch.tensor([[0.0], [0.5], [1.0], [1.5], [1.75], [3.0]]), np.array([*"aaabbc"])
    split = SplitDistances(None, z, labels, None, None, None)
    model = SiameseNetwork("Conv4", embedding_dim=1, image_size=(16, 16), margin=2)
    table = class_table(model, split)
    assert table.images.tolist() == [3, 2, 1] and table["nearest other"].tolist() == ["b", "a", "b"]
    assert table["recall@1"].tolist()[:2] == [2 / 3, 1.0]  # 1 lies between 0.5 and 1.5, and a tie is no hit
    assert table.within.tolist()[:2] == pytest.approx([(0.75 + 0.75 + 0.5) / 3, 0.875])
    between = (0.25 + 0.125 + 0.5 + 0.375 + 0.75 + 0.625) / 6
    assert table.similarity.tolist() == pytest.approx([between, between, (0.25 + 0.375) / 2])
    assert table.loc["c", ["recall@1", "MAP@R", "within"]].isna().all()


def test_a_network_meets_unseen_classes_only_in_the_end(tmp_path, capsys):
    """From a folder to the model card."""
    names = [f"{colour}/{i}.png" for colour in ("red", "green", "blue", "grey", "black", "white") for i in range(6)]
    make_files(tmp_path / "data", names)
    settings = {
        "threshold": {"false_matches": 0.25},
        "test_size": 0.34,
        "valid_size": 0.5,
        "unseen_classes": ["grey", "red"],
        "hyperparameters": QUICK,
    }
    config = colour_config(tmp_path / "data", tmp_path, **settings)
    train(config)
    model, note = load_trained(config)
    valid = measure_split(model, read_split(config.trained_path / "split.csv"), "valid", config)
    z, other = valid.embeddings, valid.labels[:, None] != valid.labels
    far = torch.cdist(z, z).numpy()[np.triu(other)] / model.margin
    assert (far < model.threshold * 0.9999).sum() <= len(far) // 4 <= (far < model.threshold * 1.0001).sum()
    assert SiameseNetwork.load(config.checkpoints_path / "model.pth").threshold == model.threshold
    table = read_split(config.trained_path / "split.csv")
    assert model.info["classes"] == ["black", "blue", "green", "white"] and "grey" not in note
    assert set(table.file[table.split == "unseen"]) == {name for name in names if name.startswith(("grey", "red"))}
    never_seen = measure_split(model, table, "unseen", config)
    assert sorted(never_seen.files) == sorted(table.file[table.split == "unseen"]) and len(never_seen.pairs.label) == 24
    metrics = [split_metrics(split, 0.5, 0) for split in (measure_split(model, table, "test", config), never_seen)]
    metrics[0]["calibrated"] = {"accuracy": 0.5}
    history = pd.read_csv(config.checkpoints_path / "history.csv")
    write_model_card(config, model.info, table, history, *metrics)
    card = (config.checkpoints_path / "README.md").read_text(encoding="utf-8")
    assert "| class | train | validation | test | never seen |\n| --- | --- | --- | --- | --- |\n" in card
    assert "| black | 2 | 2 | 2 | 0 |\n" in card and "| grey | 0 | 0 | 0 | 6 |\n" in card
    assert f"above {1 - model.threshold:.3g} (so that 0.25 of all validation pairs of two classes are called" in card
    assert f"of 2 classes that were held out as a whole, 12 images, AUC {metrics[1]['auc']:.3f} (" in card
