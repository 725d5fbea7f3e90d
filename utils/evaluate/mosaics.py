"""Ground truth that every dataset has: mosaics, of which only one cell can be what makes two of them alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import resize

from utils.explain.removal import Interventions
from utils.Grad_CAM import Explanation
from utils.images.stored import Images
from utils.Siamese import SiameseNetwork

CELLS = 4  # of a mosaic, 2 x 2


@dataclass(frozen=True)
class Mosaics:
    """Pairs of mosaics (Boehle et al., 2021): four images of one class, and one of that class among three of others.

    Attributes:
        first: uint8 of shape (M, 3, H, W): four images of one class.
        second: likewise, one image of that class and three of others.
        cell: where in `second` that class is, 0 to 3 in reading order, shape (M,).
    """

    first: torch.Tensor
    second: torch.Tensor
    cell: torch.Tensor


def make_mosaics(images: Images, labels: np.ndarray, count: int, seed: int) -> Mosaics | None:
    """`count` random pairs of mosaics; the classes take turns, no image is in a pair twice.

    Args:
        images: uint8 of shape (N, 3, H, W), H and W at least 2.
        labels: class of each, shape (N,).

    Returns:
        `None` where no class has five images, or fewer than three images are of another class.
    """
    rng = np.random.default_rng(seed)
    known = [name for name in np.unique(labels) if (labels == name).sum() > CELLS and (labels != name).sum() >= 3]
    if not known:
        return None
    firsts, seconds, cells = [], [], []
    for k in range(count):
        inside = labels == known[k % len(known)]
        *four, one = rng.choice(np.flatnonzero(inside), CELLS + 1, replace=False)
        others = rng.choice(np.flatnonzero(~inside), CELLS - 1, replace=False)
        cells.append(int(rng.integers(CELLS)))
        firsts.append(_mosaic(images[four]))
        seconds.append(_mosaic(images[np.insert(others, cells[-1], one)]))
    return Mosaics(torch.stack(firsts), torch.stack(seconds), torch.tensor(cells))


def _mosaic(images: torch.Tensor) -> torch.Tensor:
    """Four images (4, 3, H, W), shrunk, in one of the same size (3, H, W)."""
    height, width = images.shape[2:]
    mosaic = torch.empty_like(images[0])
    for part, image in zip(cell_slices((height, width)), images):
        mosaic[(slice(None), *part)] = resize(image, [side.stop - side.start for side in part], antialias=True)
    return mosaic


def cell_slices(size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Rows and columns of the four cells, in reading order."""
    rows, columns = ((slice(0, side // 2), slice(side // 2, side)) for side in size)
    return [(row, column) for row in rows for column in columns]


def found_cells(maps: torch.Tensor) -> torch.Tensor:
    """The cell in which a signed map (M, h, w) of evidence for "similar" has its largest sum, shape (M,)."""
    return F.adaptive_avg_pool2d(maps[:, None], 2).flatten(1).argmax(1).cpu()


def oracle_cells(model: SiameseNetwork, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The cell of each second mosaic whose blurring takes the pair farthest apart, shape (M,): what the network itself
    sees.

    Args:
        first, second: preprocessed, two batches of shape (M, 3, H, W).
    """
    interventions = Interventions.on(model, first, second)
    distances = []
    for part in cell_slices(tuple(second.shape[2:])):
        changed = interventions.images[1].clone()
        changed[(..., *part)] = interventions.blurred[1][(..., *part)]
        distances.append(interventions.sign * interventions.margin(changed, side=1))
    return torch.stack(distances, dim=1).argmax(1).cpu()


def mosaic_scores(model: SiameseNetwork, mosaics: Mosaics, explanations: dict[str, Explanation]) -> pd.DataFrame:
    """The share of mosaics in which maps of evidence for "similar" find the class's cell.

    Args:
        explanations: of `mosaics.first` and `mosaics.second`, by the names of the methods.

    Returns:
        A row per method, then the oracle, which is what the network itself sees, and chance.
    """
    found = {
        name: found_cells(torch.where(e.is_similar, 1, -1)[:, None, None] * e.raw[:, 1])
        for name, e in explanations.items()
    }
    found["oracle"] = oracle_cells(model, model.normalize(mosaics.first), model.normalize(mosaics.second))
    shares = {name: float((cells == mosaics.cell).float().mean()) for name, cells in found.items()}
    return pd.DataFrame({"finds the cell": shares | {"chance": 1 / CELLS}})
