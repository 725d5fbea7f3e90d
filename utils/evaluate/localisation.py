"""Scores how well maps find the deciding object, by ground-truth masks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from utils.images.frame import Frame
from utils.images.pairs import PAIR_LABELS, Pairs
from utils.images.reading import read_image


def pointing_game(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Test whether the maximum of each map (N, H, W), values >= 0, lies on its object, or at most a twelfth of the
    image's longer side away (Zhang et al., 2018): bool (N,), false for a map that is zero everywhere."""
    height, width = maps.shape[1:]
    peak = maps.flatten(1).argmax(1)
    y, x = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    rows, columns = y[:, None] - (peak // width)[:, None, None], x - (peak % width)[:, None, None]
    near = rows**2 + columns**2 <= (max(height, width) / 12) ** 2
    return (near & masks).flatten(1).any(1) & (maps.flatten(1).amax(1) > 0)


def energy_ratio(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Divide the share of each map's sum that lies on the object by the object's share of the image, shape (N,): 1 is
    chance, NaN stands for an empty map."""
    maps, masks = maps.flatten(1).double(), masks.flatten(1).double()
    return (maps * masks).sum(1) / maps.sum(1) / masks.mean(1)


def baseline_maps(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Make maps (..., H, W) to compare others with: a Gaussian in the middle, with a quarter of each side as standard
    deviation, and random numbers, always the same."""
    y, x = (torch.exp(-(torch.linspace(-0.5, 0.5, side) ** 2) / (2 * 0.25**2)) for side in shape[-2:])
    random = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return {"centred Gaussian": (y[:, None] * x).expand(shape), "random": random}


def load_masks(
    data_path: Path, files: Sequence[str], frame: Frame, ending: str = "", folder: Path | None = None
) -> torch.Tensor | None:
    """Load the masks of images, white on the object, and fit them into the network's frame like the images: bool
    (N, H, W), false outside an image, and everywhere if it has no mask; `None` if no image has one.

    Args:
        files: of the images, as in `split.csv`.
        ending: of the mask's file name, before `.png`; `_intruder` for the second object of synthetic scenes.
        folder: of the masks; `None`: `<data_path>_masks`.
    """
    folder = folder or data_path.with_name(f"{data_path.name}_masks")
    paths = [(folder / file).with_name(f"{Path(file).stem}{ending}.png") for file in files]
    masks = torch.zeros(len(paths), *frame.size, dtype=torch.bool)
    for mask, path in zip(masks, paths):
        if path.is_file():
            image = read_image(path)
            box = frame.box(image.size)
            fitted = image.convert("L").resize((box.width, box.height), Image.Resampling.NEAREST)
            mask[box.slices] = torch.from_numpy(np.array(fitted) > 127)
    return masks if masks.any() else None


def localisation_table(
    maps: dict[str, torch.Tensor], masks: torch.Tensor, pairs: Pairs, decided_right: np.ndarray
) -> pd.DataFrame:
    """Score how well factual maps (P, 2, H, W) of several methods, and `baseline_maps`, find the deciding object in
    pairs that were decided rightly; `masks` are of the images, bool (N, H, W), in which `pairs` are positions. A row
    per method, for similar and for dissimilar pairs, has `pointing` (share of hits) and `energy` (`energy_ratio`), both
    averaged over both images, and the `number` of maps."""
    objects, rows = masks[np.stack([pairs.first, pairs.second], axis=1)], []
    for name, values in (maps | baseline_maps(objects.shape)).items():
        for label, label_name in enumerate(PAIR_LABELS):
            chosen = torch.from_numpy(decided_right & (pairs.label == label))
            found, truth = values[chosen].cpu().flatten(0, 1), objects[chosen].flatten(0, 1)
            scores = (pointing_game(found, truth).double(), energy_ratio(found, truth))
            rows.append((name, label_name, *(float(score.nanmean()) for score in scores), len(found)))
    return pd.DataFrame(rows, columns=["maps", "pairs", "pointing", "energy", "number"])
