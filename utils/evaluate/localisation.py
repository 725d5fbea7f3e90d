"""Do maps find the deciding object? Scores against ground-truth masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from utils.images.frame import Frame
from utils.images.pairs import PAIR_LABELS, Pairs


def pointing_game(maps: torch.Tensor, masks: torch.Tensor, tolerance: float = 1 / 12) -> torch.Tensor:
    """Whether each map's maximum lies on the object or within `tolerance` times the image's longer side of it.

    Args:
        maps: shape (N, H, W), values >= 0.
        masks: the objects, bool of shape (N, H, W).

    Returns:
        bool of shape (N,); false for a map that is zero everywhere (Zhang et al., 2018).
    """
    height, width = maps.shape[1:]
    peak = maps.flatten(1).argmax(1)
    y, x = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    away = (y[None, :, None] - (peak // width)[:, None, None]) ** 2 + (
        x[None, None] - (peak % width)[:, None, None]
    ) ** 2
    near = away <= (tolerance * max(height, width)) ** 2
    return (near & masks).flatten(1).any(1) & (maps.flatten(1).amax(1) > 0)


def energy_ratio(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of each map's sum inside the object over the object's share of the image, shape (N,); 1 is chance, NaN an
    empty map."""
    maps, masks = maps.flatten(1).double(), masks.flatten(1).double()
    return (maps * masks).sum(1) / maps.sum(1) / masks.mean(1)


def iou_at_half(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Intersection over union of the object and the region above half of each map's maximum, shape (N,); 0 for an empty
    map."""
    maps, masks = maps.flatten(1), masks.flatten(1)
    peak = maps.amax(1, keepdim=True)
    above = (maps >= peak / 2) & (peak > 0)
    return (above & masks).sum(1) / (above | masks).sum(1)


def centred_gaussian(count: int, image_size: tuple[int, int]) -> torch.Tensor:
    """The baseline that looks at the middle: a Gaussian of a quarter of each side, shape (count, H, W)."""
    y, x = (torch.exp(-(torch.linspace(-0.5, 0.5, side) ** 2) / (2 * 0.25**2)) for side in image_size)
    return (y[:, None] * x).expand(count, -1, -1)


def load_masks(data_path: Path, files: Sequence[str], frame: Frame, ending: str = "") -> torch.Tensor | None:
    """Masks of images, white on the object, fitted into the network's frame as the images are.

    Args:
        files: as in `split.csv`, relative to `data_path`.
        ending: of the mask's stem; `_intruder` for the synthetic scenes' second object.

    Returns:
        bool of shape (N, H, W), false beside an image and everywhere for one without a mask; `None` if no image has
        one.
    """
    folder = data_path.with_name(f"{data_path.name}_masks")
    paths = [(folder / file).with_name(f"{Path(file).stem}{ending}.png") for file in files]
    masks = torch.zeros(len(paths), *frame.size, dtype=torch.bool)
    for mask, path in zip(masks, paths):
        if path.is_file():
            with Image.open(path) as image:
                box = frame.box(image.size)
                fitted = image.convert("L").resize((box.width, box.height), Image.Resampling.NEAREST)
                mask[box.slices] = torch.from_numpy(np.array(fitted) > 127)
    return masks if masks.any() else None


def localisation_table(
    maps: dict[str, torch.Tensor], masks: torch.Tensor, pairs: Pairs, decided_right: np.ndarray
) -> pd.DataFrame:
    """How well factual maps find the deciding object, for similar and dissimilar pairs that were decided rightly.

    Args:
        maps: method -> maps of shape (P, 2, H, W); beside them the table has a centred Gaussian and random maps.
        masks: of the images, bool of shape (N, H, W); `pairs` holds positions in it.
        decided_right: bool of shape (P,).

    Returns:
        One row per method and kind of pair: `pointing` (share of hits), `energy` (share of the map on the object over
        the object's share of the image; 1 is chance), `IoU` at half maximum, means over both images, and the `number`
        of maps.
    """
    size = tuple(masks.shape[1:])
    count = len(pairs.label)
    random = torch.rand(count, 2, *size, generator=torch.Generator().manual_seed(0))
    baselines = {"centred Gaussian": centred_gaussian(2 * count, size).view(count, 2, *size), "random": random}
    objects = masks[np.stack([pairs.first, pairs.second], axis=1)]
    rows = []
    for name, values in (maps | baselines).items():
        for label, kind in enumerate(PAIR_LABELS):
            chosen = torch.from_numpy(decided_right & (pairs.label == label))
            found, truth = values[chosen].cpu().flatten(0, 1), objects[chosen].flatten(0, 1)
            scores = (pointing_game(found, truth).double(), energy_ratio(found, truth), iou_at_half(found, truth))
            rows.append((name, kind, *(float(score.nanmean()) for score in scores), len(found)))
    return pd.DataFrame(rows, columns=["maps", "pairs", "pointing", "energy", "IoU", "number"])
