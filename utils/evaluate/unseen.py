"""The scores of a split in numbers and as tables: all in all, class by class, and what unseen classes lose."""

from typing import Any

import numpy as np
import pandas as pd

from utils.evaluate.scores import SplitDistances, bootstrap_intervals, score_pairs
from utils.Siamese import SiameseNetwork, similarity_matrix

SHOWN = {"auc": "AUC", "accuracy": "accuracy", "equal_error_rate": "equal error rate"}
SHOWN |= {name: name for name in ("recall@1", "recall@5", "recall@10", "MAP@R")}


def split_metrics(split: SplitDistances, threshold: float, seed: int) -> dict[str, Any]:
    """Score a split as `metrics.json` has it: the numbers of `images`, `classes` and `pairs`, the scores of
    `score_pairs`, those of `retrieval` over all images, and the 95 % `intervals` of both, name -> (low, high)."""
    return {
        "images": len(split.labels),
        "classes": len(set(split.labels)),
        "pairs": len(split.pairs.label),
        **vars(score_pairs(split.dissimilarity, split.pairs.label, threshold)),
        "intervals": bootstrap_intervals(split.dissimilarity, split.pairs, threshold, seed)
        | retrieval_intervals(split.queries, seed),
        "retrieval": {"queries": len(split.queries), **split.queries.mean().to_dict()},
    }


def retrieval_intervals(scores: pd.DataFrame, seed: int, resamples: int = 1000) -> dict[str, tuple[float, float]]:
    """Compute 95 % percentile intervals of the mean `query_scores`, by resampling the queries; name -> (low, high)."""
    count = len(scores)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    low, high = np.quantile(drawn @ scores.to_numpy() / count, [0.025, 0.975], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(scores.columns, low, high)}


def metrics_table(splits: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Tabulate the `split_metrics` of splits, a column each, entries such as "0.912 (0.880-0.941)"; with the share of
    dissimilar pairs that are called similar, as `false matches`."""
    table = {}
    for title, metrics in splits.items():
        entries = {name: str(metrics[name]) for name in ("images", "classes", "pairs")}
        entries |= {
            shown: "{:.3f} ({:.3f}-{:.3f})".format((metrics | metrics["retrieval"])[name], *metrics["intervals"][name])
            for name, shown in SHOWN.items()
        }
        wrong, right = metrics["confusion"][1]
        table[title] = entries | {"false matches": f"{wrong / (wrong + right):.3f}"}
    return pd.DataFrame(table)


def class_table(model: SiameseNetwork, split: SplitDistances) -> pd.DataFrame:
    """Score each class of a split: its number of `images`; `recall@1` and `MAP@R`, see `query_scores`; the mean
    similarity of its images to each other, `within`; and the `nearest other` class, with its mean `similarity`."""
    member = pd.get_dummies(np.asarray(split.labels), dtype=float)
    other = 1 - np.eye(len(member))  # 0 for an image and itself
    similarity = similarity_matrix(model, split.embeddings) * other
    means = (member.T @ similarity @ member) / (member.T @ other @ member)
    apart = means.mask(np.eye(len(means), dtype=bool))
    table = split.queries.groupby(level=0)[["recall@1", "MAP@R"]].mean().reindex(means.index)  # NaN for a single image
    table.insert(0, "images", member.sum().astype(int))
    others = {"nearest other": apart.idxmax(axis=1), "similarity": apart.max(axis=1)}
    return table.assign(within=np.diag(means), **others)


def what_is_lost(seen: dict[str, Any], unseen: dict[str, Any]) -> str:
    """Tell in a sentence what the `split_metrics` of unseen classes lose beside those of the test images."""
    recall, of_seen = (split["retrieval"]["recall@1"] for split in (unseen, seen))
    searched = f"among {unseen['images']:,} images instead of {seen['images']:,}"
    auc = f"AUC {unseen['auc']:.3f} instead of {seen['auc']:.3f}"
    return f"On classes that it has never seen: {auc}; recall@1 ({searched}) {recall:.3f} instead of {of_seen:.3f}"
