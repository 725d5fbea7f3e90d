"""Training: `loop` reads from top to bottom, its parts lie beside it."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`train` and `train_and_report`, when they are asked for: a process that only prepares images needs no more than
    `augmentation`."""
    if name in ("train", "train_and_report"):
        from utils.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
