"""Scores of a trained network: each image is embedded once, and the distances of pairs give all scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd
import torch
from sklearn import metrics
from tqdm.auto import tqdm

from utils.dataset import load_split
from utils.images.cache import StoredImages
from utils.images.pairs import PAIR_LABELS, Pairs, evaluation_pairs
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode
from utils.system.settings import Config

RECALL_AT = (1, 5, 10)  # nearest images
CHUNK = 256  # queries at a time, which bounds the memory by a few matrices of shape (CHUNK, N)


@torch.no_grad()
def embed_images(
    model: SiameseNetwork, images: StoredImages, batch_size: int = 64, verbose: bool = False
) -> torch.Tensor:
    """Embed uint8 images (N, 3, H, W) in eval mode -> float (N, D) on the CPU; restores the network's modes."""
    count = math.ceil(len(images) / batch_size)  # `split` of images on disk is an iterator, which has no length
    batches = tqdm(images.split(batch_size), desc="Embedding images", total=count, disable=not verbose)
    with eval_mode(model):
        return torch.cat([model.embed(model.normalize(batch)).float().cpu() for batch in batches])


def pair_distances(embeddings: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Compute the raw distances D of pairs, shape (P,)."""
    return embedding_distance(embeddings[pairs.first], embeddings[pairs.second])


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


@dataclass(frozen=True)
class SplitDistances:
    """The images of a split with their embeddings, and its pairs with their distances."""

    images: StoredImages  # uint8 (N, 3, H, W)
    embeddings: torch.Tensor  # (N, D)
    labels: np.ndarray  # class of each image, (N,)
    pairs: Pairs  # those on which the split is always scored, P of them
    dissimilarity: np.ndarray  # D / margin, (P,); not clipped at 1, so that pairs beyond the margin have an order
    files: list[str]  # of the images, as in `split.csv`

    @cached_property
    def queries(self) -> pd.DataFrame:
        """What each image finds among the others, see `query_scores`."""
        return query_scores(self.embeddings, self.labels)


def measure_split(model: SiameseNetwork, table: pd.DataFrame, split: str, config: Config) -> SplitDistances:
    """Embed every image of a split and measure its pairs; unreadable files are left out, and a printed line names them.
    `table` is that of `split.csv`; `config` tells where the images are, frame and seed are those of the network."""
    images, rows = load_split(table, split, config, model.frame)
    labels = rows.label.to_numpy()
    embeddings = embed_images(model, images, config.hyperparameters.batch_size, config.hyperparameters.verbose)
    pairs = evaluation_pairs(labels, model.info.get("config", {"seed": config.seed})["seed"])
    dissimilarity = (pair_distances(embeddings, pairs) / model.margin).numpy()
    return SplitDistances(images, embeddings, labels, pairs, dissimilarity, rows.file.tolist())


@dataclass(frozen=True)
class PairScores:
    """How well dissimilarities separate dissimilar from similar pairs at one threshold.

    `f1` and `average_precision` are those of "dissimilar". `equal_error_rate` is the larger one of the two shares of
    mistakes, of similar and of dissimilar pairs, at the threshold at which it is smallest: there, they are about equal.
    `confusion[i, j]` is the number of pairs of label i that are called j; 0 similar, 1 dissimilar.
    """

    threshold: float
    accuracy: float
    balanced_accuracy: float
    f1: float
    auc: float
    average_precision: float
    equal_error_rate: float
    confusion: list[list[int]]


def score_pairs(
    dissimilarity: np.ndarray, label: np.ndarray, threshold: float, times: np.ndarray | None = None
) -> PairScores:
    """Score dissimilarities (P,) of any scale, not clipped: a pair is called similar iff it lies below the threshold.
    Labels (P,) are 0, similar, and 1, dissimilar; both must occur. Each pair counts once, or so many `times`, (P,)."""
    false_alarms, hits, _ = metrics.roc_curve(label, dissimilarity, sample_weight=times, drop_intermediate=False)
    called = 2 * label + (dissimilarity >= threshold)
    confusion = np.bincount(called, times, minlength=4).astype(int).reshape(2, 2)
    (kept, alarms), (missed, found) = confusion.tolist()
    positives = hits * (missed + found)  # at or above each threshold; sklearn would sort once more for the precision
    precision = positives / np.maximum(positives + false_alarms * (kept + alarms), 1)
    return PairScores(
        threshold=float(threshold),
        accuracy=(kept + found) / (kept + alarms + missed + found),
        balanced_accuracy=(kept / (kept + alarms) + found / (missed + found)) / 2,
        f1=2 * found / (2 * found + alarms + missed),
        auc=float(metrics.auc(false_alarms, hits)),
        average_precision=float(np.diff(hits) @ precision[1:]),
        equal_error_rate=float(np.maximum(false_alarms, 1 - hits).min()),
        confusion=confusion.tolist(),
    )


def bootstrap_intervals(
    dissimilarity: np.ndarray, pairs: Pairs, threshold: float, seed: int, resamples: int = 1000
) -> dict[str, tuple[float, float]]:
    """Compute 95 % percentile intervals (Efron & Tibshirani, 1993) of the scores of `score_pairs`: name -> (low, high).
    Anchors are resampled, not pairs: all pairs of an anchor are drawn together, as they are not independent. Resamples
    with no similar or no dissimilar pair are left out."""
    anchors, anchor = np.unique(pairs.first, return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(anchors), np.full(len(anchors), 1 / len(anchors)), resamples)
    times = (drawn[anchor] for drawn in draws)
    scores = [vars(score_pairs(dissimilarity, pairs.label, threshold, t)) for t in times if np.ptp(pairs.label[t > 0])]
    table = pd.DataFrame(scores).drop(columns=["threshold", "confusion"])
    return {name: tuple(ends) for name, ends in table.quantile([0.025, 0.975]).items()}


def calibrate_threshold(dissimilarity: np.ndarray, label: np.ndarray) -> float:
    """Choose the threshold with the highest balanced accuracy (Youden's J), midway between the two nearest pairs; of
    equally good ones the highest; where calling any pair dissimilar is no gain, just above all pairs. Arguments are as
    for `score_pairs`."""
    false_alarms, hits, thresholds = metrics.roc_curve(label, dissimilarity, drop_intermediate=False)
    best = thresholds[np.argmax(hits - false_alarms)]
    if np.isinf(best):
        return float(np.nextafter(dissimilarity.max(), np.inf))
    below = dissimilarity[dissimilarity < best].max()
    best = below.dtype.type(best)
    middle = below + (best - below) / 2
    return float(middle if middle > below else best)  # neighbouring numbers have no middle


def extreme_pairs(dissimilarity: np.ndarray, pairs: Pairs, threshold: float, count: int = 2) -> dict[str, np.ndarray]:
    """Find the right and the wrong decisions that lie farthest from the threshold, by D / margin (P,), not clipped.

    Returns:
        Title -> positions of at most `count` pairs, the farthest first, no image in two of them.
    """
    galleries = {}
    for how, decision in product(("rightly", "wrongly"), (0, 1)):
        truth = decision if how == "rightly" else 1 - decision
        found = np.flatnonzero(((dissimilarity >= threshold) == decision) & (pairs.label == truth))
        chosen, shown = [], set()
        for k in found[np.argsort(-np.abs(dissimilarity[found] - threshold), kind="stable")].tolist():
            ends = {int(pairs.first[k]), int(pairs.second[k])}
            if len(chosen) < count and not ends & shown:
                chosen.append(k)
                shown |= ends
        galleries[f"{how} called {PAIR_LABELS[decision]}"] = np.array(chosen, int)
    return galleries
