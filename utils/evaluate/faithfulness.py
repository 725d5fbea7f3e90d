"""Tests whether maps are true of the network: by blurring, deletion and insertion curves, and random weights."""

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from sklearn.metrics import auc
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from utils.evaluate.localisation import baseline_maps
from utils.explain.occlusion import correlation
from utils.explain.removal import MAPS, Interventions, pixel_ranks, randomly_moved, strongest_region
from utils.Grad_CAM import Explanation, explain
from utils.images.pairs import PAIR_LABELS
from utils.Siamese import SiameseNetwork, eval_mode
from utils.system.machine import seeded

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


def randomisation_check(model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor) -> dict[str, float]:
    """Correlate the ranks of signed maps before and after weights are replaced by random ones (Adebayo et al., 2018): a
    map that hardly changes does not explain what the network has learnt. Afterwards the network is as before. Returns
    the mean Spearman correlation for a random `head`, and for a random `head and backbone`; that of `none` is 1."""
    batch = torch.cat([batch1, batch2]).to(model.mean.device)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before, result = evidence_for_similar(explain(model, batch1, batch2)), {"none": 1.0}
    try:
        # The head first: in the network's own order, training's seed would give the weights it started from.
        for name, parts in (("head", (model.head,)), ("head and backbone", (model.head, model.backbone))):
            with seeded(0):
                for module in (module for part in parts for module in part.cpu().modules()):  # the same on all devices
                    if hasattr(module, "reset_parameters"):
                        module.reset_parameters()
            with eval_mode(model.to(batch.device)):
                for part in parts:  # with the batch statistics of other weights, activations vanish in a deep backbone
                    update_bn([batch], part)
            result[name] = rank_correlation(before, evidence_for_similar(explain(model, batch1, batch2)))
    finally:
        model.load_state_dict(state)
    return result


def rank_correlation(maps1: torch.Tensor, maps2: torch.Tensor) -> float:
    """Average the Spearman correlation of corresponding maps (N, 2, h, w), without pairs of which one is constant."""
    ranks = (rankdata(maps.cpu().flatten(0, 1).flatten(1), axis=1) for maps in (maps1, maps2))
    return float(correlation(*map(torch.from_numpy, ranks)).nanmean())  # NaN if none is left


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


def evidence_for_similar(explanation: Explanation) -> torch.Tensor:
    """The signed evidence for "similar", (N, 2, h, w), whatever the decisions."""
    return torch.where(explanation.is_similar, 1, -1)[:, None, None, None] * explanation.raw


def compare_rankings(
    interventions: Interventions, explanation: Explanation, verbose: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Compute the deletion and insertion curves of the maps, of a centred Gaussian and of a random ranking."""
    evidence = signed_evidence(explanation)
    rankings = {"map": evidence} | baseline_maps(evidence.shape)
    return {name: curves(interventions, maps.to(evidence.device), verbose) for name, maps in rankings.items()}
