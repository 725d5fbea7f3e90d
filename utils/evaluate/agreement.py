"""Compares the sums of maps over cells with the effects that are measured when these cells are removed."""

from collections.abc import Sequence

import pandas as pd
import torch

from utils.explain.occlusion import correlation, effect_on_distance, occlude, region_sums, windows
from utils.explain.removal import REMOVALS
from utils.Grad_CAM import Explanation
from utils.images.pairs import used_images
from utils.Siamese import SiameseNetwork

GRID = 5  # cells along each side


def effects_on_pairs(
    model: SiameseNetwork,
    batch: torch.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    removals: dict[str, torch.Tensor],
    grid: int = GRID,
) -> dict[str, torch.Tensor]:
    """Measure what removing each of `grid` x `grid` cells of one image does to the squared distance of its pair: name
    -> effects (2P, grid^2), cells in reading order; of the pairs' first images, then of the second ones.

    Args:
        batch: preprocessed images (N, 3, H, W); `first` and `second` are positions in it, (P,).
        removals: name -> images (N, 3, H, W), whose pixels replace those of a removed cell.
    """
    cells = windows(1 / grid, grid, tuple(batch.shape[2:]))
    z, deltas = occlude(model, batch, [*removals.values()], cells, verbose=True)
    ends, partners = [*first, *second], [*second, *first]
    return {name: effect_on_distance(delta[ends], z[ends] - z[partners]) for name, delta in zip(removals, deltas)}


def mean_correlations(
    effects: dict[str, torch.Tensor],
    explanations: dict[str, Explanation],
    ceilings: dict[str, torch.Tensor],
    grid: int = GRID,
) -> pd.DataFrame:
    """Average the correlation between measured effects (`effects_on_pairs`) and the sums of maps over the same cells: a
    row per method of `explanations`, then per ceiling, which is another prediction of these effects, (2P, grid^2); a
    column per removal."""
    predictions = {}
    for method, explanation in explanations.items():
        image_size, maps = tuple(explanation.factual.shape[2:]), explanation.for_similar
        cells = windows(1 / grid, grid, image_size).expand(2 * len(maps), -1, -1)
        predictions[method] = region_sums(torch.cat(maps.unbind(1)), cells, image_size)
    predictions |= {f"ceiling: the same cells, {name}": effect for name, effect in ceilings.items()}
    table = {
        removal: {name: float(correlation(values, effect).nanmean()) for name, values in predictions.items()}
        for removal, effect in effects.items()
    }
    return pd.DataFrame(table)


def agreement_table(
    model: SiameseNetwork,
    batch: torch.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    explanations: dict[str, Explanation],
) -> pd.DataFrame:
    """Score how well maps predict what removing a cell of one image does to the squared distance: the correlation over
    the cells, averaged over images and pairs, a row per method and a column per removal. The last row is a ceiling for
    all maps that are made by blurring: the effects of blurring these very cells.

    Args:
        batch: preprocessed images (N, 3, H, W); `first` and `second` are positions in it, (P,).
        explanations: of these pairs, by the name of the method.
    """
    used, *ends = used_images(first, second)
    images = batch[used].to(model.mean.device)
    effects = effects_on_pairs(model, images, *ends, {name: removal(images) for name, removal in REMOVALS.items()})
    return mean_correlations(effects, explanations, {"blurred": effects["blurred"]})
