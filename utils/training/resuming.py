"""A training run that was killed goes on: what it has to remember, and when it may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

from utils.images.stored import Images, checksums
from utils.system.settings import Config

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


def unfinished(config: Config, data: dict[str, list]) -> dict[str, Any] | None:
    """The checkpoint `last.pth` of a run that was stopped, if its settings and data are those of now; prints whether
    that run goes on. Batches may have been smaller than configured, where memory did not hold these.

    Args:
        data: `fingerprints`.
    """
    path = config.checkpoints_path / "last.pth"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        run = checkpoint["info"]["run"]
        size = run["configured_batch_size"]  # earlier versions had none
    except Exception:  # none there, finished, or another version's: nothing to go on with
        return None
    settings = checkpoint["info"]["config"], config.model_dump(mode="json")
    before, now = (dict(_flat(values)) for values in settings)
    before["hyperparameters.batch_size"] = size
    changed = [key for key in {**now, **before} if before.get(key) != now.get(key) and key not in INCONSEQUENTIAL]
    changed = changed or [f for f in {**data, **run["data"]} if run["data"].get(f) != data.get(f)]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        print(f"{path}: a run that was stopped; training starts from the beginning, as {changed[0]}{others} changed")
        return None
    print(f"{path}: a run that was stopped after epoch {len(run['history'])}; training goes on from there")
    return checkpoint


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
