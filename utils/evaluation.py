"""Scores of a trained network: embeddings once per image, then everything from distances of pairs."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve
from tqdm.auto import tqdm

from utils.config import Config
from utils.dataset import Pairs, evaluation_pairs, load_split
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode


@torch.no_grad()
def embed_images(model: SiameseNetwork, images: torch.Tensor, batch_size: int = 64, verbose: bool = False) -> torch.Tensor:
    """Embed uint8 images (N, 3, H, W) in eval mode -> float (N, D) on the CPU; modes are left as found."""
    batches = tqdm(images.split(batch_size), desc="Embedding images", disable=not verbose)
    with eval_mode(model):
        return torch.cat([model.embed(model.normalize(batch)).float().cpu() for batch in batches])


def pair_distances(embeddings: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Raw distances D of pairs, shape (P,)."""
    return embedding_distance(embeddings[pairs.first], embeddings[pairs.second])


@dataclass(frozen=True)
class SplitDistances:
    """A split as the network sees it.

    `embeddings` (N, D) and `labels` (N,) of its images, its fixed `pairs`, and their `dissimilarity` (P,): D / margin,
    not clipped at 1, so that pairs beyond the margin still have an order.
    """

    embeddings: torch.Tensor
    labels: np.ndarray
    pairs: Pairs
    dissimilarity: np.ndarray


def measure_split(model: SiameseNetwork, table: pd.DataFrame, split: str, config: Config) -> SplitDistances:
    """Embed every image of a split once and measure its fixed pairs.

    Args:
        table: `file`, `label`, `split`, as in `split.csv`.
        config: where the images lie; size and seed are the network's own.
    """
    images, labels = load_split(table, split, config, model.image_size)
    embeddings = embed_images(model, images, config.hyperparameters.batch_size, config.hyperparameters.verbose)
    pairs = evaluation_pairs(labels, model.info["config"]["seed"])
    return SplitDistances(embeddings, labels, pairs, (pair_distances(embeddings, pairs) / model.margin).numpy())


@dataclass(frozen=True)
class PairScores:
    """How well dissimilarities separate dissimilar from similar pairs at one threshold.

    `confusion[i, j]`: number of pairs of kind i called kind j; 0 similar, 1 dissimilar.
    """

    threshold: float
    accuracy: float
    auc: float
    average_precision: float
    confusion: np.ndarray

    def as_dict(self) -> dict:
        return {**vars(self), "confusion": self.confusion.tolist()}


def score_pairs(dissimilarity: np.ndarray, label: np.ndarray, threshold: float) -> PairScores:
    """Accuracy at a threshold ("similar" iff dissimilarity < threshold), and AUC and average precision of "dissimilar".

    Args:
        dissimilarity: shape (P,), any scale that rises with D; unclipped values rank ties at the clip rightly.
        label: 0 similar, 1 dissimilar, shape (P,); both must occur.
    """
    confusion = confusion_matrix(label, dissimilarity >= threshold, labels=[0, 1])
    return PairScores(
        threshold=float(threshold),
        accuracy=float(np.trace(confusion) / confusion.sum()),
        auc=float(roc_auc_score(label, dissimilarity)),
        average_precision=float(average_precision_score(label, dissimilarity)),
        confusion=confusion,
    )


def calibrate_threshold(dissimilarity: np.ndarray, label: np.ndarray) -> float:
    """The threshold with the highest balanced accuracy (Youden's J), midway between the two pairs it parts.

    Of several equally good ones the highest; where nothing is gained by calling any pair dissimilar, just above all pairs.

    Args:
        dissimilarity: shape (P,), any scale that rises with D.
        label: 0 similar, 1 dissimilar, shape (P,); both must occur.
    """
    false_alarms, hits, thresholds = roc_curve(label, dissimilarity, drop_intermediate=False)
    best = thresholds[np.argmax(hits - false_alarms)]
    if np.isinf(best):
        return float(np.nextafter(dissimilarity.max(), np.inf))
    below = dissimilarity[dissimilarity < best].max()
    best = below.dtype.type(best)
    middle = below + (best - below) / 2
    return float(middle if middle > below else best)  # neighbouring numbers have no middle


def class_similarity(similarity: np.ndarray, labels: pd.Series) -> pd.DataFrame:
    """Mean similarity between the images of every two classes, an image's similarity to itself left out.

    Args:
        similarity: all images against all, shape (N, N).
        labels: class of each image, shape (N,).
    """
    labels = np.asarray(labels)
    off_diagonal = np.where(np.eye(len(labels), dtype=bool), np.nan, similarity)
    names = np.unique(labels)
    means = [[_mean(off_diagonal[np.ix_(labels == a, labels == b)]) for b in names] for a in names]
    return pd.DataFrame(means, names, names)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def similarity_matrix(model: SiameseNetwork, embeddings: torch.Tensor) -> np.ndarray:
    """Similarity 1 - d of all images against all, shape (N, N), 1 on the diagonal."""
    distance = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    return (1 - model.dissimilarity(distance)).cpu().numpy()
