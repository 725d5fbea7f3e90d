"""How a network does on classes that it has never seen, beside those it was trained on."""

import math
from typing import Any

import pandas as pd

from utils.evaluate.retrieval import retrieval_intervals, retrieval_scores
from utils.evaluate.scores import SplitDistances, bootstrap_intervals, score_pairs

SHOWN = ("auc", "accuracy", "equal_error_rate", "recall@1", "recall@5", "recall@10", "MAP@R")


def split_metrics(split: SplitDistances, threshold: float, seed: int) -> dict[str, Any]:
    """Score a split as `metrics.json` has it: the numbers of `images`, `classes` and `pairs`, the scores of
    `score_pairs`, those of `retrieval` over all images, and the 95 % `intervals` of both, name -> (low, high)."""
    return {
        "images": len(split.labels),
        "classes": len(set(split.labels)),
        "pairs": len(split.pairs.label),
        **score_pairs(split.dissimilarity, split.pairs.label, threshold).as_dict(),
        "intervals": bootstrap_intervals(split.dissimilarity, split.pairs, threshold, seed)
        | retrieval_intervals(split.embeddings, split.labels, seed),
        "retrieval": retrieval_scores(split.embeddings, split.labels).iloc[-1].to_dict(),
    }


def compare_unseen(seen: dict[str, Any], unseen: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    """Tabulate the `split_metrics` of seen and of unseen classes, with the share of dissimilar pairs that are called
    similar, as `false matches`; and tell in a sentence what the unseen ones lose."""
    table = {}
    for title, metrics in (("test images", seen), ("unseen classes", unseen)):
        entries = {name: "{:.3f} ({:.3f}-{:.3f})".format(*_with_interval(metrics, name)) for name in SHOWN}
        table[title] = {name: str(metrics[name]) for name in ("images", "classes", "pairs")} | entries
        wrong, right = metrics["confusion"][1]
        table[title]["false matches"] = f"{wrong / (wrong + right):.3f}"
    table = pd.DataFrame(table).rename({"auc": "AUC", "equal_error_rate": "equal error rate"})
    auc, recall = (_loss(_with_interval(seen, name), _with_interval(unseen, name)) for name in ("auc", "recall@1"))
    searched = f"among {unseen['images']:,} images instead of {seen['images']:,}"
    return table, f"On classes that it has never seen: AUC {auc}; recall@1 ({searched}) {recall}"


def _with_interval(metrics: dict[str, Any], name: str) -> tuple[float, float, float]:
    return (metrics | metrics["retrieval"])[name], *metrics["intervals"][name]


def _loss(seen: tuple[float, float, float], unseen: tuple[float, float, float]) -> str:
    """What is lost between two scores with their intervals; as they are of different images, the interval of the
    difference follows from the two (Zou & Donner, 2008)."""
    (one, one_low, one_high), (two, two_low, two_high) = seen, unseen
    low = one - two - math.hypot(one - one_low, two_high - two)
    high = one - two + math.hypot(one_high - one, two - two_low)
    chance = ", which may be chance" if low <= 0 <= high else ""
    word, difference, low, high = ("less", one - two, low, high) if two <= one else ("more", two - one, -high, -low)
    return f"{two:.3f} instead of {one:.3f}, {difference:.3f} {word} ({low:.3f} to {high:.3f}{chance})"
