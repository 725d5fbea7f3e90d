"""How far the explanations of a dataset can be trusted, in tables: interventions on some pairs, and ground-truth masks."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from utils.dataset import KINDS, Frame, Pairs, evenly, sides
from utils.faithfulness import Interventions, centred_gaussian, check, curves, energy_ratio, iou_at_half, pointing_game
from utils.Grad_CAM import Explanation


def some_pairs(pairs: Pairs, most: int = 60) -> Pairs:
    """At most `most` pairs, evenly from all, so that interventions take seconds."""
    chosen = evenly(len(pairs.label), most)
    return Pairs(*(column[chosen] for column in pairs))


def telling_pairs(dissimilarity: np.ndarray, label: np.ndarray, threshold: float, count: int = 3) -> dict[str, np.ndarray]:
    """The surest right decisions and the worst mistakes of both kinds: title -> at most `count` positions, worst or surest first.

    Args:
        dissimilarity: D / margin, not clipped, shape (P,); the farther from the threshold, the surer.
        label: 0 similar, 1 dissimilar, shape (P,).
    """
    galleries = {}
    for title, decision, truth in (
        ("rightly called similar", 0, 0), ("rightly called dissimilar", 1, 1),
        ("wrongly called similar", 0, 1), ("wrongly called dissimilar", 1, 0),
    ):
        found = np.flatnonzero(((dissimilarity >= threshold) == decision) & (label == truth))
        sureness = np.abs(dissimilarity[found] - threshold)
        galleries[title] = found[np.argsort(-sureness, kind="stable")[:count]]
    return galleries


def check_table(interventions: Interventions, explanation: Explanation, seed: int) -> pd.DataFrame:
    """Whether blurring a map's strongest tenth moves the decision's margin as it should: down for factual, up for counterfactual.

    Returns:
        One row per kind of map and decision: `right` and `random`, the shares of interventions that moved it so with the map's
        region and with the same region at a random place, `change` and `random change` of the margin, and the `number` of maps.
        Maps without evidence are left out.
    """
    rng = np.random.default_rng(seed)
    similar = explanation.is_similar.cpu()
    rows = []
    for kind, wanted in (("factual", -1), ("counterfactual", 1)):
        result = check(interventions, explanation, kind, rng)
        for decision, chosen in zip(KINDS, (similar, ~similar)):
            effect, random = (change.cpu()[chosen] for change in (result.effect, result.random))
            effect, random = effect[~effect.isnan()], random[~effect.isnan()]
            shares = (float((wanted * change > 0).float().mean()) for change in (effect, random))
            rows.append((kind, decision, *shares, float(effect.mean()), float(random.mean()), len(effect)))
    return pd.DataFrame(rows, columns=["maps", "decision", "right", "random", "change", "random change", "number"])


def compare_rankings(interventions: Interventions, explanation: Explanation, verbose: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Deletion and insertion curves of the factual maps beside a centred Gaussian and a random ranking."""
    factual = explanation.factual
    random = torch.rand(factual.shape, generator=torch.Generator().manual_seed(0)).to(factual.device)
    centre = centred_gaussian(1, tuple(factual.shape[2:])).expand(factual.shape).to(factual.device)
    rankings = {"factual map": factual, "centred Gaussian": centre, "random": random}
    return {name: curves(interventions, maps, verbose) for name, maps in rankings.items()}


def load_masks(data_path: Path, files: Sequence[str], frame: Frame, ending: str = "") -> torch.Tensor | None:
    """Masks of images, white on the object, fitted into the network's frame as the images are.

    Args:
        files: as in `split.csv`, relative to `data_path`.
        ending: of the mask's stem; `_intruder` for the synthetic scenes' second object.

    Returns:
        bool of shape (N, H, W), false beside an image and everywhere for one without a mask; `None` if no image has one.
    """
    folder = data_path.with_name(f"{data_path.name}_masks")
    paths = [(folder / file).with_name(f"{Path(file).stem}{ending}.png") for file in files]
    masks = torch.zeros(len(paths), *frame.size, dtype=torch.bool)
    for mask, path in zip(masks, paths):
        if path.is_file():
            with Image.open(path) as image:
                box = frame.box(image.size)
                fitted = image.convert("L").resize(sides(box)[::-1], Image.Resampling.NEAREST)
                mask[box] = torch.from_numpy(np.array(fitted) > 127)
    return masks if masks.any() else None


def localisation_table(maps: dict[str, torch.Tensor], masks: torch.Tensor, pairs: Pairs, decided_right: np.ndarray) -> pd.DataFrame:
    """How well factual maps find the deciding object, for similar and dissimilar pairs that were decided rightly.

    Args:
        maps: method -> maps of shape (P, 2, H, W); beside them the table has a centred Gaussian and random maps.
        masks: of the images, bool of shape (N, H, W); `pairs` holds positions in it.
        decided_right: bool of shape (P,).

    Returns:
        One row per method and kind of pair: `pointing` (share of hits), `energy` (share of the map on the object over the
        object's share of the image; 1 is chance), `IoU` at half maximum, means over both images, and the `number` of maps.
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
            rows.append((name, kind, *(float(score.nanmean()) for score in scores), len(found)))
    return pd.DataFrame(rows, columns=["maps", "pairs", "pointing", "energy", "IoU", "number"])
