"""Scores of a trained network: each image is embedded once, and the distances of pairs give all scores."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd
import torch
from sklearn import metrics
from tqdm.auto import tqdm

from utils.dataset import load_split
from utils.evaluate.retrieval import query_scores
from utils.images.cache import StoredImages
from utils.images.pairs import PAIR_LABELS, Pairs, evaluation_pairs
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode
from utils.system.settings import Config


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
    confusion: np.ndarray

    def as_dict(self) -> dict:
        return {**vars(self), "confusion": self.confusion.tolist()}


def score_pairs(dissimilarity: np.ndarray, label: np.ndarray, threshold: float) -> PairScores:
    """Score dissimilarities (P,) of any scale, not clipped: a pair is called similar iff it lies below the threshold.
    Labels (P,) are 0, similar, and 1, dissimilar; both must occur."""
    called = (dissimilarity >= threshold).astype(int)
    confusion = metrics.confusion_matrix(label, called, labels=[0, 1])
    false_alarms, hits, _ = metrics.roc_curve(label, dissimilarity, drop_intermediate=False)
    return PairScores(
        threshold=float(threshold),
        accuracy=float(np.trace(confusion) / confusion.sum()),
        balanced_accuracy=float(metrics.balanced_accuracy_score(label, called)),
        f1=float(metrics.f1_score(label, called)),
        auc=float(metrics.roc_auc_score(label, dissimilarity)),
        average_precision=float(metrics.average_precision_score(label, dissimilarity)),
        equal_error_rate=float(np.maximum(false_alarms, 1 - hits).min()),
        confusion=confusion,
    )


def bootstrap_intervals(
    dissimilarity: np.ndarray, pairs: Pairs, threshold: float, seed: int, resamples: int = 1000
) -> dict[str, tuple[float, float]]:
    """Compute 95 % percentile intervals (Efron & Tibshirani, 1993) of the scores of `score_pairs`: name -> (low, high).
    Anchors are resampled, not pairs: all pairs of an anchor are drawn together, as they are not independent. Resamples
    with no similar or no dissimilar pair are left out."""
    rng = np.random.default_rng(seed)
    anchors, anchor = np.unique(pairs.first, return_inverse=True)
    order = np.argsort(dissimilarity)
    values, starts = np.unique(dissimilarity[order], return_index=True)
    anchor, label = anchor[order], pairs.label[order]
    parts = []
    for size in np.diff([*range(0, resamples, 100), resamples]):  # bounds the memory
        # How often each pair is drawn.
        drawn = rng.multinomial(len(anchors), np.full(len(anchors), 1 / len(anchors)), size)[:, anchor]
        similar, dissimilar = (np.add.reduceat(drawn * mask, starts, axis=1) for mask in (label == 0, label == 1))
        both = similar.any(1) & dissimilar.any(1)
        parts.append(_scores_of_counts(similar[both], dissimilar[both], values >= threshold))
    return {name: tuple(ends) for name, ends in pd.concat(parts).quantile([0.025, 0.975]).items()}


def _scores_of_counts(similar: np.ndarray, dissimilar: np.ndarray, called: np.ndarray) -> pd.DataFrame:
    """Compute the scores of R resamples at once from the numbers of pairs (R, V) at V rising dissimilarities, and which
    of these are called dissimilar (V,)."""
    negatives, positives = similar.sum(1), dissimilar.sum(1)
    false_alarms, hits = similar[:, called].sum(1), dissimilar[:, called].sum(1)
    nearer = similar.cumsum(1) - similar / 2  # similar pairs below each value, ties as half
    found, alarms = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in (dissimilar, similar))  # at or above each value
    precision = found / np.maximum(found + alarms, 1)
    mistakes = np.maximum(alarms / negatives[:, None], 1 - found / positives[:, None])
    scores = {
        "accuracy": (hits + negatives - false_alarms) / (negatives + positives),
        "balanced_accuracy": (hits / positives + 1 - false_alarms / negatives) / 2,
        "f1": 2 * hits / (hits + false_alarms + positives),
        "auc": (dissimilar * nearer).sum(1) / (negatives * positives),
        "average_precision": (dissimilar * precision).sum(1) / positives,
        "equal_error_rate": mistakes.min(1),
    }
    return pd.DataFrame(scores)


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
