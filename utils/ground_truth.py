"""Explanations against ground-truth masks, where a dataset has them: `Data/<dataset>_masks/<class>/<image stem>.png`."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from utils.dataset import Pairs
from utils.faithfulness import centred_gaussian, energy_ratio, iou_at_half, pointing_game

KINDS = ("similar", "dissimilar")


def load_masks(data_path: Path, files: Sequence[str], image_size: tuple[int, int], ending: str = "") -> torch.Tensor | None:
    """Masks of images, white on the object, at the network's image size.

    Args:
        files: as in `split.csv`, relative to `data_path`.
        ending: of the mask's stem; `_intruder` for the synthetic scenes' second object.

    Returns:
        bool of shape (N, H, W), false everywhere for an image without a mask; `None` if no image has one.
    """
    folder = data_path.with_name(f"{data_path.name}_masks")
    paths = [(folder / file).with_name(f"{Path(file).stem}{ending}.png") for file in files]
    masks = torch.zeros(len(paths), *image_size, dtype=torch.bool)
    for mask, path in zip(masks, paths):
        if path.is_file():
            with Image.open(path) as image:
                mask.copy_(torch.from_numpy(np.array(image.convert("L").resize(image_size[::-1], Image.Resampling.NEAREST)) > 127))
    return masks if masks.any() else None


def localisation_table(maps: dict[str, torch.Tensor], masks: torch.Tensor, pairs: Pairs, decided_right: np.ndarray) -> pd.DataFrame:
    """How well factual maps find the deciding object, for similar and dissimilar pairs that were decided rightly.

    Args:
        maps: method -> maps of shape (P, 2, H, W); beside them the table has a centred Gaussian and random maps.
        masks: of the images, bool of shape (N, H, W); `pairs` holds positions in it.
        decided_right: bool of shape (P,).

    Returns:
        One row per method and kind of pair: `pointing` (share of hits), `energy` (share of the map on the object over the
        object's share of the image; 1 is chance), `IoU` at half maximum, `maps` (number), means over both images.
    """
    size = tuple(masks.shape[1:])
    count = len(pairs.label)
    random = torch.rand(count, 2, *size, generator=torch.Generator().manual_seed(0))
    baselines = {"centred Gaussian": centred_gaussian(2 * count, size).view(count, 2, *size), "random": random}
    objects = masks[np.stack([pairs.first, pairs.second], axis=1)]
    rows = []
    for name, values in (maps | baselines).items():
        for label, kind in enumerate(KINDS):
            chosen = torch.from_numpy(decided_right & (pairs.label == label))
            found, truth = values[chosen].cpu().flatten(0, 1), objects[chosen].flatten(0, 1)
            scores = (pointing_game(found, truth).double(), energy_ratio(found, truth), iou_at_half(found, truth))
            rows.append((name, kind, *(float(np.nanmean(score)) for score in scores), len(found)))
    return pd.DataFrame(rows, columns=["maps of", "pairs", "pointing", "energy", "IoU", "maps"])
