"""Decides when to stop training, and which epoch to keep."""

import math

import pandas as pd


class EarlyStopping:
    """Remembers the best value of a score that should rise, such as the AUC. After `patience` epochs without an
    improvement larger than `min_delta`, `should_stop` turns true."""

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best, self.epochs_without_improvement = -math.inf, 0

    def step(self, value: float) -> bool:
        """Record the score of one epoch; return whether it is the best so far. NaN is never an improvement."""
        improved = value - self.best > self.min_delta
        if improved:
            self.best = value
        self.epochs_without_improvement = 0 if improved else self.epochs_without_improvement + 1
        return improved

    @property
    def should_stop(self) -> bool:
        return self.epochs_without_improvement >= self.patience


def best_epoch(history: pd.DataFrame, first: int = 1, last: int | None = None) -> int:
    """Choose the epoch to keep: the one with the highest `valid_auc` and, among equals, the lowest `valid_loss`.

    Epochs before `first`, counted from 1, are not candidates; if it is still to come, the latest is kept. Once `last`,
    the end of the learning rate's schedule, is there it is kept: on few images, which epoch scores best is chance.
    """
    if len(history) == last:
        return last
    candidates = history.reset_index(drop=True)[min(first, len(history)) - 1 :]
    order = candidates.sort_values(["valid_auc", "valid_loss"], ascending=[False, True], kind="stable")
    return int(order.index[0]) + 1
