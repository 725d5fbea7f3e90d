"""From a distance to the probability that two images are of one class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_curve


def calibrate_threshold(dissimilarity: np.ndarray, label: np.ndarray) -> float:
    """The threshold with the highest balanced accuracy (Youden's J), midway between the two pairs it separates.

    Of several equally good ones the highest; where nothing is gained by calling any pair dissimilar, just above all
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
    """`1 / (1 + exp(-(intercept + slope D / margin)))`, a logistic curve over the unclipped dissimilarity (Platt,
    1999).

    Two numbers, so that few validation pairs are enough, and monotone, so that the order of pairs, and with it the AUC,
    stays. Pairs of a split are half similar, half dissimilar, and the probability holds for such pairs.
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, dissimilarity: np.ndarray, label: np.ndarray) -> SameClassProbability:
        """Fit by maximum likelihood on pairs that the network has not been trained on.

        Instead of 1 and 0 the targets are (N + 1) / (N + 2) and 1 / (N + 2), N the number of pairs of each kind
        (Platt's), so that pairs that are fully separated give no infinite slope.

        Args:
            dissimilarity: D / margin, not clipped, shape (P,).
            label: 0 similar, 1 dissimilar, shape (P,); both must occur.
        """
        same = label == 0
        target = np.where(same, (same.sum() + 1) / (same.sum() + 2), 1 / ((~same).sum() + 2))
        # Every pair once as either kind, weighted by its target.
        values = np.tile(dissimilarity, 2)[:, None].astype(float)
        kinds, weights = np.repeat([1, 0], len(label)), np.concatenate([target, 1 - target])
        curve = LogisticRegression(C=np.inf, tol=1e-8).fit(values, kinds, sample_weight=weights)
        return cls(float(curve.coef_[0, 0]), float(curve.intercept_[0]))

    def __call__(self, dissimilarity: np.ndarray) -> np.ndarray:
        """D / margin, not clipped, any shape -> probability that the two images are of one class, the same shape."""
        return expit(self.intercept + self.slope * dissimilarity)


def brier_scores(estimates: dict[str, np.ndarray], label: np.ndarray) -> dict[str, float]:
    """Mean squared difference between each estimate of "same class" and the truth (Brier, 1950): 0 best, 0.25 a
    constant 0.5.

    Args:
        estimates: name -> values in [0, 1], shape (P,).
        label: 0 similar, 1 dissimilar, shape (P,).
    """
    return {name: float(brier_score_loss(label == 0, values)) for name, values in estimates.items()}


def same_class_estimates(dissimilarity: np.ndarray, probability: SameClassProbability) -> dict[str, np.ndarray]:
    """What the network says of "same class" in both ways: the similarity 1 - d, and the fitted probability; name ->
    (P,).

    Args:
        dissimilarity: D / margin, not clipped, shape (P,).
    """
    return {"similarity": 1 - np.minimum(dissimilarity, 1), "fitted probability": probability(dissimilarity)}
