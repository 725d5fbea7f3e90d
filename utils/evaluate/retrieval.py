"""Scores of retrieval: each image of a split is a query for its class among all the others."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

RECALL_AT = (1, 5, 10)  # nearest images


def retrieval_scores(embeddings: torch.Tensor, labels: Sequence[str], chunk: int = 256) -> pd.DataFrame:
    """Compute recall@k, mAP and MAP@R, with every image as a query against all others, nearest embedding first.

    For a query with R other images of its class, `hit(i)` says whether the i-th nearest is one of them, and `P(i)` is
    the share of hits among the i nearest. recall@k is whether there is a hit among the k nearest; AP the mean of P(i)
    over all hits; AP@R the sum of P(i) over the hits among the R nearest, divided by R (its mean over queries is MAP@R;
    Musgrave et al., 2020). Of equally near images those of other classes come first, so that a network that maps all
    images to one point gains nothing.

    Args:
        embeddings: shape (N, D).
        labels: class of each image, shape (N,). An image alone in its class is no query, but is among those searched.
        chunk: queries at a time, which bounds the memory by a few matrices of shape (`chunk`, N).

    Returns:
        A row per class and the last, "all", for all queries together: the number of `queries`, and the means of
        `recall@1`, `recall@5`, `recall@10`, `mAP` and `MAP@R`, in [0, 1].
    """
    scores = query_scores(embeddings, labels, chunk)
    by_class = scores.groupby(level=0)
    table = pd.concat([by_class.mean(), scores.mean().to_frame("all").T])
    table.insert(0, "queries", [*by_class.size(), len(scores)])
    return table


def retrieval_intervals(
    embeddings: torch.Tensor, labels: Sequence[str], seed: int, resamples: int = 1000
) -> dict[str, tuple[float, float]]:
    """Compute 95 % percentile intervals of the scores of `retrieval_scores` over all queries, which are resampled; name
    -> (low, high)."""
    scores = query_scores(embeddings, labels)
    count = len(scores)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    low, high = np.quantile(drawn @ scores.to_numpy() / count, [0.025, 0.975], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(scores.columns, low, high)}


def query_scores(embeddings: torch.Tensor, labels: Sequence[str], chunk: int = 256) -> pd.DataFrame:
    """Compute the scores of `retrieval_scores` of every query, a row each, under its class."""
    labels = np.asarray(labels)
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(counts[codes] >= 2)
    parts = [_query_scores(embeddings, codes, part) for part in np.split(queries, range(chunk, len(queries), chunk))]
    columns = [*(f"recall@{k}" for k in RECALL_AT), "mAP", "MAP@R"]
    return pd.DataFrame(np.concatenate(parts), labels[queries], columns)


def _query_scores(embeddings: torch.Tensor, codes: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Compute recall@k for each k, AP and AP@R of every query, shape (Q, 5)."""
    distance = torch.cdist(embeddings[queries], embeddings, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
    distance[np.arange(len(queries)), queries] = np.inf  # the query itself comes last, and is dropped there
    same = codes[queries, None] == codes
    order = np.lexsort((same, distance))[:, :-1]
    hit = np.take_along_axis(same, order, axis=1)
    rank = np.arange(1, hit.shape[1] + 1)
    precision = hit * hit.cumsum(axis=1) / rank
    wanted = hit.sum(axis=1)
    recall = [hit[:, :k].any(axis=1) for k in RECALL_AT]
    within = (precision * (rank <= wanted[:, None])).sum(axis=1)
    return np.stack([*recall, precision.sum(axis=1) / wanted, within / wanted], axis=1)
