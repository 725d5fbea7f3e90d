"""When to stop training, and which epoch to keep."""

from __future__ import annotations

import math

import pandas as pd


class EarlyStopping:
    """Remembers the best value of a score and counts the epochs since.

    Args:
        patience: epochs without improvement after which `should_stop` turns true.
        min_delta: an improvement counts only if it is larger than this.
        mode: `max` for scores that should rise (AUC), `min` for those that should fall (loss).

    Raises:
        ValueError: another mode.

    Examples:
        >>> stopping = EarlyStopping(patience=1, mode="max")
        >>> stopping.step(0.7), stopping.step(0.6), stopping.should_stop
        (True, False, True)
    """

    def __init__(self, patience: int, min_delta: float = 0.0, mode: str = "max") -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        self.patience, self.min_delta = patience, min_delta
        self.sign = 1 if mode == "max" else -1
        self.best = -self.sign * math.inf
        self.epochs_without_improvement = 0

    def step(self, value: float) -> bool:
        """Take the score of one epoch; true if it is the best so far. NaN is never an improvement."""
        improved = self.sign * (value - self.best) > self.min_delta
        if improved:
            self.best = value
        self.epochs_without_improvement = 0 if improved else self.epochs_without_improvement + 1
        return improved

    @property
    def should_stop(self) -> bool:
        return self.epochs_without_improvement >= self.patience


def best_epoch(history: pd.DataFrame, first: int = 1, last: int | None = None) -> int:
    """The epoch to keep: of those from `first` on, that with the highest `valid_auc`; among equals, as at 1.0, that
    with the lowest `valid_loss`. Epochs count from 1; the last one if `first` is yet to come.

    Args:
        last: the epoch that ends a schedule of the learning rate: kept, whatever its score, once it is there. Which one
            scores best on few validation images is chance (docs/trials.md).
    """
    if len(history) == last:
        return last
    candidates = history.reset_index(drop=True)[min(first, len(history)) - 1 :]
    order = candidates.sort_values(["valid_auc", "valid_loss"], ascending=[False, True], kind="stable")
    return int(order.index[0]) + 1
