"""Tests whether maps are true of the network: by blurring, and by deletion and insertion curves."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import auc
from tqdm.auto import tqdm

from utils.evaluate.localisation import baseline_maps
from utils.explain.removal import MAPS, Interventions, pixel_ranks, randomly_moved, strongest_region
from utils.Grad_CAM import Explanation
from utils.images.pairs import PAIR_LABELS

STEPS = 10  # of a deletion or insertion curve, each a tenth of the pixels


def check(
    interventions: Interventions, explanation: Explanation, name: str, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blur the `strongest_region` of the `factual` maps (the margin should fall) or of the `counterfactual` maps (it
    should rise): how the margins change, (N, 2), NaN where the map is empty, by this region, and by one of the same
    shape at a random place."""
    regions, empty = strongest_region(getattr(explanation, name)), explanation.empty[:, :, MAPS.index(name)]
    after = (interventions.margins_after(chosen) for chosen in (regions, randomly_moved(regions, rng)))
    effect, random = (torch.where(empty, torch.nan, m - interventions.margins_before[:, None]) for m in after)
    return effect, random


def curves(interventions: Interventions, maps: torch.Tensor, verbose: bool = False) -> dict[str, np.ndarray]:
    """Compute deletion and insertion curves (Petsiuk et al., 2018), (STEPS + 1,), from maps (N, 2, H, W) that rank the
    pixels: the mean margin of the decision after the strongest 0, 10, ... 100 % of one image's pixels are blurred (with
    a good map it falls fast), and after all others are blurred (it rises fast)."""
    ranks, margins = pixel_ranks(maps), {"deletion": [], "insertion": []}
    for share in tqdm(np.linspace(0, 1, STEPS + 1), desc="Deleting and inserting", disable=not verbose):
        region = ranks < round(share * maps.shape[-2:].numel())
        for curve, blurred in zip(margins.values(), (region, ~region)):
            curve.append(interventions.margins_after(blurred).mean().item())
    return {name: np.array(curve) for name, curve in margins.items()}


def area_under(curve: np.ndarray) -> float:
    """Compute the area under a curve over the share of pixels, from 0 to 1 (trapezoids)."""
    return float(auc(np.linspace(0, 1, len(curve)), curve))


def check_table(interventions: Interventions, explanation: Explanation, seed: int) -> pd.DataFrame:
    """Tabulate how often blurring a map's strongest tenth moves the decision's margin as it should: down for factual
    maps, up for counterfactual ones. Empty maps are left out.

    Returns:
        One row for factual and counterfactual maps of each decision: `right` and `random`, the shares of images in
        which the map's region, and the same region at a random place, moved the margin so; the mean `change` and
        `random change` of the margin; and the `number` of maps.
    """
    rng, similar, rows = np.random.default_rng(seed), explanation.is_similar.cpu(), []
    for name, wanted in zip(MAPS, (-1, 1)):
        changes = check(interventions, explanation, name, rng)
        for decision, chosen in zip(PAIR_LABELS, (similar, ~similar)):
            effect, random = (change.cpu()[chosen] for change in changes)
            effect, random = effect[~effect.isnan()], random[~effect.isnan()]
            shares = (float((wanted * change > 0).float().mean()) for change in (effect, random))
            rows.append((name, decision, *shares, float(effect.mean()), float(random.mean()), len(effect)))
    return pd.DataFrame(rows, columns=["maps", "decision", "right", "random", "change", "random change", "number"])


def signed_evidence(explanation: Explanation) -> torch.Tensor:
    """Resize the signed evidence to the images' size, (N, 2, H, W): unlike a factual map, it ranks all pixels."""
    return F.interpolate(explanation.raw, explanation.factual.shape[2:], mode="bilinear", align_corners=False)


def compare_rankings(
    interventions: Interventions, explanation: Explanation, verbose: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Compute the deletion and insertion curves of the maps, of a centred Gaussian and of a random ranking."""
    evidence = signed_evidence(explanation)
    rankings = {"map": evidence} | baseline_maps(evidence.shape)
    return {name: curves(interventions, maps.to(evidence.device), verbose) for name, maps in rankings.items()}
