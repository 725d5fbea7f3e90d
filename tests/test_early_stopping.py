import pandas as pd
import pytest

from utils.early_stopping import EarlyStopping, best_epoch


def test_only_higher_scores_are_improvements():
    stopping = EarlyStopping(patience=2)
    assert [(stopping.step(value), stopping.should_stop) for value in (0.5, 0.6, 0.6, 0.55, 0.7)] == [
        (True, False),
        (True, False),
        (False, False),
        (False, True),
        (True, False),
    ]
    assert stopping.best == 0.7


def test_an_improvement_must_exceed_min_delta_since_the_best_not_since_the_last_epoch():
    stopping = EarlyStopping(patience=10, min_delta=0.125)
    assert [stopping.step(value) for value in (0.5, 0.625, 0.6875, 0.6)] == [True, False, True, False]


def test_nan_is_no_improvement():
    stopping = EarlyStopping(patience=1)
    assert not stopping.step(float("nan")) and stopping.should_stop
    assert stopping.step(0.1)


@pytest.mark.parametrize(
    "auc, loss, best", [([0.6, 0.9, 0.8], [3, 2, 1], 2), ([0.9, 1.0, 1.0, 1.0], [1, 3, 2, 2], 3), ([0.5], [1], 1)]
)
def test_the_best_epoch_has_the_highest_auc_then_the_lowest_loss(auc, loss, best):
    assert best_epoch(pd.DataFrame({"valid_auc": auc, "valid_loss": loss})) == best


@pytest.mark.parametrize(
    "first, last, best",
    [(1, None, 1), (2, None, 3), (3, None, 3), (4, None, 4), (9, None, 4), (1, 4, 4), (1, 5, 1)],
)
def test_epochs_from_the_first_on_compete_and_the_end_of_a_schedule_is_kept_whatever_its_score(first, last, best):
    history = pd.DataFrame({"valid_auc": [0.9, 0.6, 0.8, 0.7], "valid_loss": [1, 1, 1, 1]})
    assert best_epoch(history, first, last) == best
