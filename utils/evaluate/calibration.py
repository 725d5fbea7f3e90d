"""Chooses the threshold on validation pairs, and turns distances into probabilities of "same class"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_curve


def calibrate_threshold(dissimilarity: np.ndarray, label: np.ndarray) -> float:
    """Choose the threshold with the highest balanced accuracy (Youden's J), midway between the two nearest pairs.

    Of several equally good ones it is the highest; where calling any pair dissimilar is no gain, it is just above all
    pairs.

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


@dataclass(frozen=True)
class SameClassProbability:
    """The probability that two images are of one class, as a logistic curve over D / margin, not clipped (Platt, 1999):
    `1 / (1 + exp(-(intercept + slope D / margin)))`.

    It has two numbers, so that few validation pairs are enough. It is monotone, so that the order of pairs, and with it
    the AUC, stays. It holds for pairs like those of a split, which are half similar, half dissimilar.
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, dissimilarity: np.ndarray, label: np.ndarray) -> SameClassProbability:
        """Fit the curve by maximum likelihood, on pairs that the network has not been trained on.

        The targets are Platt's (N + 1) / (N + 2) and 1 / (N + 2) instead of 1 and 0, with N the number of similar or
        dissimilar pairs, so that the slope stays finite where both are fully separated.

        Args:
            dissimilarity: D / margin, not clipped, shape (P,).
            label: 0 similar, 1 dissimilar, shape (P,); both must occur.
        """
        same = label == 0
        target = np.where(same, (same.sum() + 1) / (same.sum() + 2), 1 / ((~same).sum() + 2))
        # Every pair occurs twice, as "same class" and as "other class", weighted by its target and by the rest.
        values = np.tile(dissimilarity, 2)[:, None].astype(float)
        truth, weights = np.repeat([1, 0], len(label)), np.concatenate([target, 1 - target])
        curve = LogisticRegression(C=np.inf, tol=1e-8).fit(values, truth, sample_weight=weights)
        return cls(float(curve.coef_[0, 0]), float(curve.intercept_[0]))

    def __call__(self, dissimilarity: np.ndarray) -> np.ndarray:
        """Convert D / margin, not clipped, of any shape, to probabilities of "same class" of the same shape."""
        return expit(self.intercept + self.slope * dissimilarity)


def brier_scores(estimates: dict[str, np.ndarray], label: np.ndarray) -> dict[str, float]:
    """Compute the mean squared difference between each estimate of "same class" and the truth (Brier, 1950).

    0 is best; a constant 0.5 has 0.25.

    Args:
        estimates: name -> values in [0, 1], shape (P,).
        label: 0 similar, 1 dissimilar, shape (P,).
    """
    return {name: float(brier_score_loss(label == 0, values)) for name, values in estimates.items()}


def same_class_estimates(dissimilarity: np.ndarray, probability: SameClassProbability) -> dict[str, np.ndarray]:
    """Estimate "same class" in two ways, by the similarity 1 - d and by the fitted probability; name -> (P,).

    Args:
        dissimilarity: D / margin, not clipped, shape (P,).
    """
    return {"similarity": 1 - np.minimum(dissimilarity, 1), "fitted probability": probability(dissimilarity)}
