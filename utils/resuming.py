"""A training run that was killed goes on: what it has to remember, and when it may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from utils.images.cache import Images, checksums
from utils.machine import random_states, set_random_states

if TYPE_CHECKING:
    from utils.training import Trainer

# Settings that leave the result as it is.
INCONSEQUENTIAL = {
    "hyperparameters.num_workers",
    "hyperparameters.verbose",
    "LRScheduler.verbose",
    "on_bad_image",  # what it leaves out shows in the data
    "cache",
    "cache_gigabytes",
    "outputs_path",
    "compare_path",
}


def fingerprints(table: pd.DataFrame, images: dict[str, Images]) -> dict[str, list]:
    """Of every file of a split its label, its split and, of those that training sees, a checksum of its pixels.

    Args:
        images: by split, uint8 of shape (N, 3, H, W), in the table's order.
    """
    sums: dict[str, int] = {}
    for split, stack in images.items():
        sums |= zip(table.file[table.split == split], checksums(stack))
    return {row.file: [row.label, row.split, sums.get(row.file)] for row in table.itertuples()}


def unfinished(path: Path, settings: dict[str, Any], data: dict[str, list]) -> dict[str, Any] | None:
    """The checkpoint `last.pth` of a run that was stopped, if its settings and data are those of now; prints whether
    that run goes on.

    Args:
        settings: of the configuration, as plain values.
        data: `fingerprints`.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        run = checkpoint["info"]["run"]
        run["best"], run["random"]  # earlier versions had none
    except Exception:  # none there, finished, or another version's: nothing to go on with
        return None
    before, now = (dict(_flat(values)) for values in (checkpoint["info"]["config"], settings))
    changed = [key for key in {**now, **before} if before.get(key) != now.get(key) and key not in INCONSEQUENTIAL]
    changed = changed or [f for f in {**data, **run["data"]} if run["data"].get(f) != data.get(f)]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        print(f"{path}: a run that was stopped; training starts anew, as {changed[0]}{others} changed")
        return None
    print(f"{path}: a run that was stopped after epoch {len(run['history'])}; training goes on from there")
    return checkpoint


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def state_of(trainer: Trainer) -> dict[str, Any]:
    """What a run has to remember beside its `Results` and the network's weights, as plain values and tensors."""
    return {
        "data": trainer.data,
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "stopping": vars(trainer.stopping),
        "generators": [trainer.rng.bit_generator.state, trainer.augment.rng.bit_generator.state],
        "random": random_states(trainer.device),
    }


def put_back(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Bring a trainer that is about to start back to where `state_of` was taken."""
    run = checkpoint["info"]["run"]
    trainer.model.load_state_dict(checkpoint["state_dict"])
    trainer.results.history, trainer.results.best = run["history"], run["best"]
    trainer.results.written = len(run["history"])
    # Fine-tuning begins with an optimizer of its own, and a run that only has to finish needs none.
    if len(trainer.history) not in (trainer.head_epochs, trainer.epochs):
        trainer.optimizer.load_state_dict(run["optimizer"])
        trainer.scheduler.load_state_dict(run["scheduler"])
    vars(trainer.stopping).update(run["stopping"])
    for generator, state in zip((trainer.rng, trainer.augment.rng), run["generators"]):
        generator.bit_generator.state = state
    set_random_states(run["random"], trainer.device)
