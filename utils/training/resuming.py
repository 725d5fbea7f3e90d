"""Resuming a training run that was stopped: finding its checkpoint, and whether settings and images are the same."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from utils.images.stored import StoredImages
from utils.system.settings import Config

# Settings that do not change the result; images that `on_bad_image` leaves out change the fingerprints.
IGNORED = {"hyperparameters.num_workers", "hyperparameters.verbose", "LRScheduler.verbose", "on_bad_image"}
IGNORED |= {"cache_gigabytes", "outputs_path", "compare_path"}


def fingerprints(table: pd.DataFrame, images: dict[str, StoredImages]) -> dict[str, list]:
    """Label, split and checksum of the pixels of each file; test images have no checksum.

    Args:
        images: training and validation images by split, uint8 (N, 3, H, W), in the table's order.
    """
    sums = {}
    for split, stack in images.items():
        sums |= zip(table.file[table.split == split], stack.checksums.tolist())
    return {row.file: [row.label, row.split, sums.get(row.file)] for row in table.itertuples()}


def unfinished(config: Config, data: dict[str, list]) -> dict[str, Any] | None:
    """Load the checkpoint `last.pth` of a stopped run; `None` if there is none, or if settings or images have changed.

    Prints whether the run goes on. Its batches may be smaller than configured, if memory ran out.

    Args:
        data: the `fingerprints` of today's images.
    """
    path = config.checkpoints_path / "last.pth"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        run = checkpoint["info"]["run"]
        batch_size = run["configured_batch_size"]
    except Exception:  # there is no file, the run has finished, or an earlier version wrote it
        return None
    before, now = flat(checkpoint["info"]["config"]), flat(config.model_dump(mode="json"))
    before["hyperparameters.batch_size"] = batch_size
    changed = [key for key in {**now, **before} if before.get(key) != now.get(key) and key not in IGNORED]
    changed = changed or [f for f in {**data, **run["data"]} if run["data"].get(f) != data.get(f)]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        print(f"{path}: a run that was stopped; training starts from the beginning, as {changed[0]}{others} changed")
        return None
    print(f"{path}: a run that was stopped after epoch {len(run['history'])}; training goes on from there")
    return checkpoint


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings in one dictionary, with keys such as `hyperparameters.epochs`."""
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
