import numpy as np
import pytest
from scipy.optimize import minimize

from utils.evaluate.calibration import brier_scores, calibrate_threshold, same_class_estimates


def likelihood(parameters, dissimilarity, target):
    """Negative log-likelihood of targets between 0 and 1."""
    p = 1 / (1 + np.exp(-(parameters[0] + parameters[1] * dissimilarity)))
    return -np.sum(target * np.log(p) + (1 - target) * np.log(1 - p))


def fitted(dissimilarity, valid_dissimilarity, valid_label):
    return same_class_estimates(dissimilarity, valid_dissimilarity, valid_label)["fitted probability"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("similar", [30, 8])
def test_the_curve_is_the_most_likely_one_for_platts_targets(dtype, similar):
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [similar, 20])
    dissimilarity = (rng.random(len(label)) + 0.4 * label).astype(dtype)
    target = np.where(label == 0, 1 - 1 / (similar + 2), 1 / 22)
    options = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 2000}
    found = minimize(likelihood, [0, 0], (dissimilarity, target), method="Nelder-Mead", options=options)
    intercept, slope = found.x
    at = np.array([0.1, 0.5, 1.7], dtype)  # the last beyond the margin
    expected = 1 / (1 + np.exp(-(intercept + slope * at)))
    assert fitted(at, dissimilarity, label) == pytest.approx(expected, rel=1e-3)


def test_separated_pairs_give_a_finite_curve_that_is_sure_but_not_certain_and_never_overflows():
    pairs = np.array([0.1, 0.2, 0.15, 1.0, 1.1, 1.3]), np.array([0, 0, 0, 1, 1, 1])
    probability = fitted(np.array([0.15, 0.6, 1.1]), *pairs)
    assert 0.7 < probability[0] < 0.95 and 0.05 < probability[2] < 0.3 and 0.3 < probability[1] < 0.7
    with np.errstate(all="raise"):
        assert fitted(np.array([-1e3, 1e3]), *pairs) == pytest.approx([1, 0])


def test_brier_score_by_hand():
    estimates = {"right": np.array([1.0, 0.0]), "wrong": np.array([0.0, 1.0]), "some": np.array([0.9, 0.4])}
    expected = {"right": 0, "wrong": 1, "some": (0.1**2 + 0.4**2) / 2}
    assert brier_scores(estimates, np.array([0, 1])) == pytest.approx(expected)


def test_the_similarity_is_clipped_at_the_margin():
    estimates = same_class_estimates(np.array([0.25, 1.0, 3.0]), np.array([0.1, 0.9]), np.array([0, 1]))
    assert estimates["similarity"].tolist() == [0.75, 0, 0]


def balanced_accuracy(dissimilarity, label, threshold):
    called = dissimilarity >= threshold
    return (called[label == 1].mean() + (~called)[label == 0].mean()) / 2


RNG, LABEL = np.random.default_rng(1), np.arange(30) % 2
CALIBRATION = {
    "random": RNG.random(30) + 0.3 * LABEL,
    "few values": RNG.integers(0, 4, 30) / 4 + 0.25 * LABEL,
    "separated": RNG.random(30) + 2.0 * LABEL,
    "reversed": RNG.random(30) - 2.0 * LABEL + 50,
    "constant": np.full(30, 0.7),
    "neighbouring numbers": np.where(LABEL, np.nextafter(np.float32(0.3), np.float32(1)), np.float32(0.3)),
    "neighbours the other side": 1 - np.where(LABEL, np.nextafter(np.float32(0.3), np.float32(0)), np.float32(0.3)),
    "far beyond the margin": RNG.random(30) * 100 - 100 * LABEL + 100,
}


@pytest.mark.parametrize("case", CALIBRATION)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label", [LABEL, (np.arange(30) % 5 == 0).astype(int)], ids=["balanced", "unbalanced"])
def test_calibrated_threshold_is_the_best_of_all_cuts(case, dtype, label):
    dissimilarity = CALIBRATION[case].astype(dtype)
    best = max(balanced_accuracy(dissimilarity, label, cut) for cut in [*dissimilarity, np.inf])
    threshold = calibrate_threshold(dissimilarity, label)
    assert isinstance(threshold, float) and np.isfinite(threshold)
    assert balanced_accuracy(dissimilarity, label, threshold) == pytest.approx(best)


def test_calibrated_threshold_lies_midway():
    assert calibrate_threshold(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    # Of equals, the highest.
    assert calibrate_threshold(np.array([0.1, 0.8, 0.4, 0.9]), np.array([0, 0, 1, 1])) == pytest.approx(0.85)
