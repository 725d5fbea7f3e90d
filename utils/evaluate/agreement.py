"""Compares the sums of maps over cells with the effects that are measured when these cells are removed."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from utils.evaluate.faithfulness import evidence_for_similar
from utils.explain.incremental import IncrementalEmbedder, local_stages
from utils.explain.occlusion import correlation, effect_on_distance, region_sums, windows
from utils.explain.removal import OTHER_REMOVALS, blur
from utils.Grad_CAM import Explanation
from utils.images.pairs import used_images
from utils.Siamese import SiameseNetwork, eval_mode

GRID = 5  # cells along each side
REMOVALS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"blurred": blur, **OTHER_REMOVALS}


@torch.no_grad()
def effects_on_pairs(
    model: SiameseNetwork,
    batch: torch.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    removals: dict[str, torch.Tensor],
    grid: int = GRID,
) -> dict[str, torch.Tensor]:
    """Measure the effect of each of `grid` x `grid` cells of one image on the squared distance of its pair.

    Args:
        batch: preprocessed, (N, 3, H, W); `first` and `second` are positions in it, (P,).
        removals: name -> images (N, 3, H, W), whose pixels replace those of a removed cell.

    Returns:
        Name of the removal -> effects, (2P, grid^2), cells in reading order: first those of the pairs' first images,
        then of the second ones.
    """
    cells = windows(1 / grid, grid, tuple(batch.shape[2:]))
    stages, sides = local_stages(model), ((first, second), (second, first))
    changes: dict[str, list[torch.Tensor]] = {name: [] for name in removals}  # of embeddings, (grid^2, D) an image
    with eval_mode(model), tqdm(total=len(removals) * len(batch), desc="Removing cells", delay=2) as bar:
        z = torch.cat([model.embed(part) for part in batch.split(32)])
        for k, image in enumerate(batch):
            embedder = IncrementalEmbedder(model, image, stages)
            for name, replaced in removals.items():
                changes[name].append(embedder.embedding - embedder.embeddings(replaced[k], cells))
                bar.update()
    deltas = {name: torch.stack(parts) for name, parts in changes.items()}
    return {
        name: torch.cat([effect_on_distance(delta[i], z[i] - z[j]) for i, j in sides]) for name, delta in deltas.items()
    }


def mean_correlations(
    effects: dict[str, torch.Tensor],
    explanations: dict[str, Explanation],
    ceilings: dict[str, torch.Tensor],
    image_size: tuple[int, int],
    grid: int = GRID,
) -> pd.DataFrame:
    """Average the correlation between measured effects (`effects_on_pairs`) and the sums of maps over the same cells.

    Args:
        ceilings: other predictions of the same effects, name -> (2P, grid^2).
        image_size: height and width in pixels.

    Returns:
        A row per method of `explanations`, then per ceiling, and a column per removal.
    """
    cells = windows(1 / grid, grid, image_size)
    predictions = {}
    for method, explanation in explanations.items():
        maps = torch.cat(evidence_for_similar(explanation).unbind(1))
        predictions[method] = region_sums(maps, cells.expand(len(maps), -1, -1), image_size)
    predictions |= {f"ceiling: the same cells, {name}": effect for name, effect in ceilings.items()}
    return pd.DataFrame(
        {
            removal: {name: float(np.nanmean(correlation(values, effect))) for name, values in predictions.items()}
            for removal, effect in effects.items()
        }
    )


def agreement_table(
    model: SiameseNetwork,
    batch: torch.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    explanations: dict[str, Explanation],
) -> pd.DataFrame:
    """Score how well maps predict the effect of removing a cell of one image on the squared distance.

    Args:
        batch: preprocessed images (N, 3, H, W); `first` and `second` are positions in it, (P,).
        explanations: of these pairs, name of the method -> explanation.

    Returns:
        A row per method and a column per removal: the correlation over the cells, averaged over images and pairs. The
        last row is a ceiling for all maps that are made by blurring: the effects of blurring these very cells.
    """
    used, *ends = used_images(first, second)
    images = batch[used].to(model.mean.device)
    removals = {name: removal(images) for name, removal in REMOVALS.items()}
    effects = effects_on_pairs(model, images, *ends, removals)
    ceiling = {"blurred": effects["blurred"]}
    return mean_correlations(effects, explanations, ceiling, tuple(batch.shape[2:]))
