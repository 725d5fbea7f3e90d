"""Chooses the threshold on validation pairs, and turns distances into probabilities of "same class"."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_curve


def calibrate_threshold(dissimilarity: np.ndarray, label: np.ndarray) -> float:
    """Choose the threshold with the highest balanced accuracy (Youden's J), midway between the two nearest pairs; of
    equally good ones the highest; where calling any pair dissimilar is no gain, just above all pairs.

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


def brier_scores(estimates: dict[str, np.ndarray], label: np.ndarray) -> dict[str, float]:
    """Compute the mean squared difference between each estimate of "same class" (P,), in [0, 1], and the truth (Brier,
    1950); `label` is 0 similar, 1 dissimilar. 0 is best; a constant 0.5 has 0.25."""
    return {name: float(brier_score_loss(label == 0, values)) for name, values in estimates.items()}


def same_class_estimates(
    dissimilarity: np.ndarray, valid_dissimilarity: np.ndarray, valid_label: np.ndarray
) -> dict[str, np.ndarray]:
    """Estimate "same class" in two ways, by the similarity 1 - d and by a fitted probability; name -> (P,).

    The probability is a logistic curve over D / margin (Platt, 1999), fitted by maximum likelihood to validation pairs;
    it holds for pairs like those of a split, half similar, half dissimilar. With Platt's targets, (N + 1) / (N + 2) and
    1 / (N + 2) of N similar or dissimilar pairs, the slope stays finite where both are fully separated.

    Args:
        dissimilarity: D / margin, not clipped, of P pairs, and `valid_dissimilarity` of the V validation pairs.
        valid_label: 0 similar, 1 dissimilar, shape (V,); both must occur.
    """
    same = valid_label == 0
    target = np.where(same, (same.sum() + 1) / (same.sum() + 2), 1 / ((~same).sum() + 2))
    # Every pair occurs twice, as "same class" and as "other class", weighted by its target and by the rest.
    values = np.tile(valid_dissimilarity, 2)[:, None].astype(float)
    truth, weights = np.repeat([1, 0], len(same)), np.concatenate([target, 1 - target])
    curve = LogisticRegression(C=np.inf, tol=1e-8).fit(values, truth, sample_weight=weights)
    probability = curve.predict_proba(dissimilarity[:, None].astype(float))[:, 1]
    return {"similarity": 1 - np.minimum(dissimilarity, 1), "fitted probability": probability}
