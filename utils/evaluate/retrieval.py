"""Scores of retrieval: each image of a split is a query for its class among all the others."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

RECALL_AT = (1, 5, 10)  # nearest images
CHUNK = 256  # queries at a time, which bounds the memory by a few matrices of shape (CHUNK, N)


def retrieval_intervals(scores: pd.DataFrame, seed: int, resamples: int = 1000) -> dict[str, tuple[float, float]]:
    """Compute 95 % percentile intervals of the mean `query_scores`, by resampling the queries; name -> (low, high)."""
    count = len(scores)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    low, high = np.quantile(drawn @ scores.to_numpy() / count, [0.025, 0.975], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(scores.columns, low, high)}


def query_scores(embeddings: torch.Tensor, labels: Sequence[str]) -> pd.DataFrame:
    """Compute recall@k, AP and AP@R of every image (N, D) as a query for its class, labels (N,), among all others,
    nearest embedding first: a row each, under its class. Their means are recall@k, mAP and MAP@R.

    For a query with R other images of its class, recall@k is whether one of them is among the k nearest. With P(i) the
    share of them among the i nearest, AP is the mean of P(i) over all places i at which they stand; AP@R is the sum
    over those among the first R, divided by R (Musgrave et al., 2020). Of equally near images those of other classes
    come first, so that a network that maps all images to one point gains nothing. An image alone in its class is no
    query, but is among those searched.
    """
    labels, parts = np.asarray(labels), []
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[codes] >= 2)
    for part in np.split(queries, range(CHUNK, len(queries), CHUNK)):
        distance = torch.cdist(embeddings[part], embeddings, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
        distance[np.arange(len(part)), part] = np.inf  # the query itself comes last, and is dropped there
        same = codes[part, None] == codes
        order = np.lexsort((same, distance))[:, :-1]
        hit = np.take_along_axis(same, order, axis=1)
        rank, wanted = np.arange(1, hit.shape[1] + 1), hit.sum(axis=1)
        precision = hit * hit.cumsum(axis=1) / rank
        recall = [hit[:, :k].any(axis=1) for k in RECALL_AT]
        within = (precision * (rank <= wanted[:, None])).sum(axis=1)
        parts.append(np.stack([*recall, precision.sum(axis=1) / wanted, within / wanted], axis=1))
    return pd.DataFrame(np.concatenate(parts), labels[queries], [*(f"recall@{k}" for k in RECALL_AT), "mAP", "MAP@R"])
