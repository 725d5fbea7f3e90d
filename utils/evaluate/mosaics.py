"""Tests maps by mosaics: of the four images in one, only one can make a pair similar, so the right answer is known."""

from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import resize

from utils.evaluate.agreement import effects_on_pairs
from utils.evaluate.faithfulness import evidence_for_similar
from utils.explain.removal import blur
from utils.Grad_CAM import Explanation
from utils.images.cache import StoredImages
from utils.Siamese import SiameseNetwork

CELLS = 4  # images in a mosaic, 2 x 2


class Mosaics(NamedTuple):
    """M pairs of mosaics (Boehle et al., 2021), uint8."""

    first: torch.Tensor  # four images of one class, (M, 3, H, W)
    second: torch.Tensor  # one image of that class and three of others, likewise
    cell: torch.Tensor  # the place of that one image in `second`, 0 to 3 in reading order, (M,)


def make_mosaics(images: StoredImages, labels: np.ndarray, count: int, seed: int) -> Mosaics | None:
    """Make `count` random pairs of mosaics of images with these labels (N,); the classes take turns, and no image is in
    a pair twice. `None` where no class has five images, or fewer than three images are of another class."""
    rng = np.random.default_rng(seed)
    usable = [name for name in np.unique(labels) if (labels == name).sum() > CELLS and (labels != name).sum() >= 3]
    if not usable:
        return None
    firsts, seconds, cells = [], [], []
    for k in range(count):
        inside = labels == usable[k % len(usable)]
        *four, one = rng.choice(np.flatnonzero(inside), CELLS + 1, replace=False)
        others = rng.choice(np.flatnonzero(~inside), CELLS - 1, replace=False)
        cells.append(int(rng.integers(CELLS)))
        firsts.append(_mosaic(images[four]))
        seconds.append(_mosaic(images[np.insert(others, cells[-1], one)]))
    return Mosaics(torch.stack(firsts), torch.stack(seconds), torch.tensor(cells))


def _mosaic(images: torch.Tensor) -> torch.Tensor:
    """Shrink four images (4, 3, H, W) into one of the same size (3, H, W)."""
    rows, columns = ((side // 2, side - side // 2) for side in images.shape[2:])
    parts = [resize(image, cell, antialias=True) for image, cell in zip(images, product(rows, columns))]
    return torch.cat([torch.cat(parts[:2], dim=2), torch.cat(parts[2:], dim=2)], dim=1)


def oracle_cells(model: SiameseNetwork, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Find the cell (M,) of each second mosaic whose blurring increases the distance most: the network's own answer.
    Both batches are preprocessed, (M, 3, H, W)."""
    both, count = torch.cat([first, second]), len(first)
    effects = effects_on_pairs(model, both, range(count), range(count, 2 * count), {"blurred": blur(both)}, grid=2)
    return effects["blurred"][count:].argmax(1).cpu()


def mosaic_scores(model: SiameseNetwork, mosaics: Mosaics, explanations: dict[str, Explanation]) -> pd.DataFrame:
    """Compute the share of mosaics in which maps find the right cell, that with most evidence for "similar": a row per
    method of `explanations`, then the oracle (`oracle_cells`) and chance."""
    found = {
        name: F.adaptive_avg_pool2d(evidence_for_similar(e)[:, 1:], 2).flatten(1).argmax(1).cpu()
        for name, e in explanations.items()
    }
    found["oracle"] = oracle_cells(model, model.normalize(mosaics.first), model.normalize(mosaics.second))
    shares = {name: float((cells == mosaics.cell).float().mean()) for name, cells in found.items()}
    return pd.DataFrame({"finds the cell": shares | {"chance": 1 / CELLS}})
