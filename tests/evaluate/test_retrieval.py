import numpy as np
import pytest
import torch

from utils.evaluate import retrieval
from utils.evaluate.retrieval import query_scores

COLUMNS = ["recall@1", "recall@5", "recall@10", "mAP", "MAP@R"]


def naive(embeddings, labels):
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
def test_scores_equal_a_naive_loop(scale, chunk, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    labels = rng.permutation(["rose"] * 14 + ["aster"] * 3 + ["lily"] * 20 + ["lonely"] + ["pair"] * 2)
    embeddings = torch.from_numpy(rng.integers(0, scale, (40, 1))).float()
    names, scores = zip(*naive(embeddings, labels))
    found = query_scores(embeddings, labels)
    assert list(found.index) == list(names) and np.allclose(found, np.array(scores, float))


def test_a_collapsed_network_finds_nothing_whatever_the_order_of_the_images():
    labels = np.array(["a"] * 12 + ["b"] * 12)
    for order in (np.arange(24), np.random.default_rng(0).permutation(24)):
        assert not query_scores(torch.zeros(24, 2), labels[order])[["recall@1", "recall@5", "recall@10"]].any(axis=None)
