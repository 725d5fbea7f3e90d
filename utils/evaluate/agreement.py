"""Do maps predict what happens? Their sums over cells against what really happens when a cell is taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from utils.explain.incremental import IncrementalEmbedder, local_stages
from utils.explain.occlusion import correlation, effect_on_distance, region_sums, windows
from utils.explain.removal import OTHERS, blur
from utils.Grad_CAM import Explanation
from utils.images.pairs import used_images
from utils.Siamese import SiameseNetwork, eval_mode

GRID = 5  # cells along each side
REMOVALS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"blurred": blur, **OTHERS}


@torch.no_grad()
def cell_effects(
    model: SiameseNetwork, batch: torch.Tensor, removals: dict[str, torch.Tensor], grid: int = GRID
) -> dict[str, torch.Tensor]:
    """What taking each of `grid` x `grid` cells of N images away does to their embeddings.

    Args:
        batch: preprocessed, (N, 3, H, W).
        removals: by their names, what stands in a cell when it is gone: images of the same shape.

    Returns:
        By the same names, `z(x) - z(x without the cell)`, shape (N, grid^2, D), cells in reading order.
    """
    cells = windows(1 / grid, grid, tuple(batch.shape[2:]))
    stages = local_stages(model)
    effects: dict[str, list[torch.Tensor]] = {name: [] for name in removals}
    with eval_mode(model), tqdm(total=len(removals) * len(batch), desc="Taking cells away", delay=2) as bar:
        for k, image in enumerate(batch):
            embedder = IncrementalEmbedder(model, image, stages)
            for name, instead in removals.items():
                effects[name].append(embedder.embedding - embedder.embeddings(instead[k], cells))
                bar.update()
    return {name: torch.stack(parts) for name, parts in effects.items()}


@torch.no_grad()
def effects_on_pairs(
    model: SiameseNetwork,
    batch: torch.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    removals: dict[str, torch.Tensor],
    grid: int = GRID,
) -> dict[str, torch.Tensor]:
    """What taking cells of one image of a pair away does to the squared distance: by each of the `removals` of
    `cell_effects`, (2P, grid^2), those of images 1 first."""
    with eval_mode(model):
        z = torch.cat([model.embed(part) for part in batch.split(32)])
    sides = ((first, second), (second, first))
    return {
        name: torch.cat([effect_on_distance(delta[i], z[i] - z[j]) for i, j in sides])
        for name, delta in cell_effects(model, batch, removals, grid).items()
    }


def mean_correlations(
    effects: dict[str, torch.Tensor],
    explanations: dict[str, Explanation],
    ceilings: dict[str, torch.Tensor],
    image_size: tuple[int, int],
    grid: int = GRID,
) -> pd.DataFrame:
    """The mean correlation of maps' sums over cells, and of `ceilings` (2P, grid^2), with `effects_on_pairs`: a row per
    method, then per ceiling, and a column per removal."""
    cells = windows(1 / grid, grid, image_size)
    found = {}
    for method, explanation in explanations.items():
        towards = torch.where(explanation.is_similar, 1, -1)[:, None, None, None] * explanation.raw
        maps = torch.cat([towards[:, 0], towards[:, 1]])
        found[method] = region_sums(maps, cells.expand(len(maps), -1, -1), image_size)
    found |= {f"ceiling: the same cells, {name}": effect for name, effect in ceilings.items()}
    return pd.DataFrame(
        {name: {m: float(np.nanmean(correlation(f, e))) for m, f in found.items()} for name, e in effects.items()}
    )


def agreement_table(
    model: SiameseNetwork,
    batch: torch.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    explanations: dict[str, Explanation],
    grid: int = GRID,
) -> pd.DataFrame:
    """How well maps predict what taking a cell of one image away does to the squared distance.

    Args:
        batch: preprocessed images (N, 3, H, W); `first` and `second` are positions in it, (P,).
        explanations: of these pairs, by the names of the methods.

    Returns:
        A row per method and a column per removal: the mean over images and pairs of the correlation over the cells. The
        last row is what knowing the effects of blurring the very same cells would reach, a ceiling for all maps that
        are made by blurring.
    """
    used, *ends = used_images(first, second)
    images = batch[used].to(model.mean.device)
    removals = {name: removal(images) for name, removal in REMOVALS.items()}
    effects = effects_on_pairs(model, images, *ends, removals, grid)
    ceiling = {"blurred": effects["blurred"]}
    return mean_correlations(effects, explanations, ceiling, tuple(batch.shape[2:]), grid)
