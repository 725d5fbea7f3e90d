"""Are the explanations right? Localisation on ground-truth masks, and interventions: blur a region, decide again.

An intervention changes one image of a pair and leaves the other as it is: taking the shared object out of both images of a
similar pair leaves two images that are alike again, which would hide the effect.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import auc
from torch import nn
from torch.optim.swa_utils import update_bn
from torchvision.transforms.v2.functional import gaussian_blur
from tqdm.auto import tqdm

from utils.dataset import seeded
from utils.Grad_CAM import Explanation, explain, feature_maps, own_evidence
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode

BLUR = 1 / 8  # standard deviation of the blur that takes a region's content away, as a share of the image's longer side
REGION = 0.1  # share of the image's area that is blurred in a check
STEPS = 10  # of a deletion or insertion curve


# ---------------------------------------------------------------------------------------------- localisation


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
    away = (y[None, :, None] - (peak // width)[:, None, None]) ** 2 + (x[None, None] - (peak % width)[:, None, None]) ** 2
    near = away <= (tolerance * max(height, width)) ** 2
    return (near & masks).flatten(1).any(1) & (maps.flatten(1).amax(1) > 0)


def energy_ratio(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of each map's sum inside the object over the object's share of the image, shape (N,); 1 is chance, NaN an empty map."""
    maps, masks = maps.flatten(1).double(), masks.flatten(1).double()
    return (maps * masks).sum(1) / maps.sum(1) / masks.mean(1)


def iou_at_half(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Intersection over union of the object and the region above half of each map's maximum, shape (N,); 0 for an empty map."""
    maps, masks = maps.flatten(1), masks.flatten(1)
    peak = maps.amax(1, keepdim=True)
    above = (maps >= peak / 2) & (peak > 0)
    return (above & masks).sum(1) / (above | masks).sum(1)


def centred_gaussian(count: int, image_size: tuple[int, int]) -> torch.Tensor:
    """The baseline that looks at the middle: a Gaussian of a quarter of each side, shape (count, H, W)."""
    y, x = (torch.exp(-(torch.linspace(-0.5, 0.5, side) ** 2) / (2 * 0.25**2)) for side in image_size)
    return (y[:, None] * x).expand(count, -1, -1)


# --------------------------------------------------------------------------------------------- interventions


@dataclass(frozen=True)
class Interventions:
    """N pairs, each with the margin of its decision, ready for changes to one image at a time.

    The *margin* is how far the raw distance lies on the decision's side of the threshold, in units of the contrastive margin:
    positive for the decision as made, larger when the decision gets surer.
    """

    model: SiameseNetwork
    images: tuple[torch.Tensor, torch.Tensor]
    blurred: tuple[torch.Tensor, torch.Tensor]
    embeddings: tuple[torch.Tensor, torch.Tensor]
    sign: torch.Tensor
    batch_size: int = 64

    @classmethod
    def on(cls, model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, batch_size: int = 64) -> Interventions:
        """Prepare pairs of preprocessed images, two batches of shape (N, 3, H, W)."""
        images = batch1.to(model.mean.device), batch2.to(model.mean.device)
        embeddings = tuple(_embed(model, batch, batch_size) for batch in images)
        similar = model.dissimilarity(embedding_distance(*embeddings)) < model.threshold
        return cls(model, images, tuple(blur(batch) for batch in images), embeddings, torch.where(similar, -1.0, 1.0), batch_size)

    def margin(self, changed: torch.Tensor, side: int) -> torch.Tensor:
        """Margins (N,) with the images of one side (0 or 1) replaced by `changed`, (N, 3, H, W)."""
        return self._margin(_embed(self.model, changed, self.batch_size), self.embeddings[1 - side])

    @property
    def before(self) -> torch.Tensor:
        """Margins (N,) of the untouched pairs."""
        return self._margin(*self.embeddings)

    def _margin(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        return self.sign * (embedding_distance(z1, z2) / self.model.margin - self.model.threshold)

    def without(self, regions: torch.Tensor) -> torch.Tensor:
        """Margins (N, 2) after blurring a region (N, 2, H, W) of each image, the partner untouched."""
        return torch.stack(
            [self.margin(torch.where(regions[:, side, None], self.blurred[side], self.images[side]), side) for side in (0, 1)], dim=1
        )


@torch.no_grad()
def _embed(model: SiameseNetwork, batch: torch.Tensor, batch_size: int) -> torch.Tensor:
    with eval_mode(model):
        return torch.cat([model.embed(part) for part in batch.split(batch_size)])


def blur(batch: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) out of focus: of the contrast of a shape an eighth of the image wide, an eighth is left."""
    height, width = batch.shape[2:]
    sigma = BLUR * max(height, width)
    down, across = (2 * min(int(2 * sigma), side - 1) + 1 for side in (height, width))  # the mirrored border must fit into the image
    return gaussian_blur(gaussian_blur(batch, [across, 1], [sigma] * 2), [1, down], [sigma] * 2)  # one after the other: 40 times faster


def top_region(maps: torch.Tensor, share: float) -> torch.Tensor:
    """The strongest `share` of the pixels of each map (..., H, W), bool; among equals the first in reading order."""
    return _places(maps) < round(share * maps.shape[-2:].numel())


def strongest_region(maps: torch.Tensor) -> torch.Tensor:
    """The region of each map (..., H, W) that a check blurs: its strongest tenth, and only pixels with evidence, bool."""
    return top_region(maps, REGION) & (maps > 0)


def _places(maps: torch.Tensor) -> torch.Tensor:
    """Place of each pixel in the order of its map (..., H, W), 0 the strongest; among equals in reading order."""
    return maps.flatten(-2).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).view(maps.shape)


def moved(regions: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The same regions (N, 2, H, W) at random places, going on at the opposite border."""
    height, width = regions.shape[2:]
    flat = regions.flatten(0, 1)
    shifts = zip(rng.integers(height, size=len(flat)).tolist(), rng.integers(width, size=len(flat)).tolist())
    return torch.stack([region.roll(shift, (0, 1)) for region, shift in zip(flat, shifts)]).view(regions.shape)


@torch.no_grad()
def blurred_features(model: SiameseNetwork, batch: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """Mean activation of each channel of the fine feature map when preprocessed images (N, 3, H, W) are blurred: shape (C,)."""
    parts = [feature_maps(model, blur(part)).mean((2, 3)) for part in batch.split(batch_size)]
    return torch.cat(parts).mean(0)


@torch.no_grad()
def removable_share(model: SiameseNetwork, images: torch.Tensor, batch_size: int = 64) -> float:
    """How far an embedding goes towards the mean training embedding mu when the strongest tenth of its image is blurred.

    Near 1 where one object decides, near 0 where the whole image does: then a region's going is a small step.

    Args:
        images: uint8, shape (N, 3, H, W).

    Returns:
        Median of `1 - <z_blurred - mu, z - mu> / |z - mu|^2`, within [0, 1].
    """
    shares = []
    for part in images.split(batch_size):
        batch = model.normalize(part)
        region = strongest_region(own_evidence(model, batch))
        whole, rest = (_embed(model, x, batch_size) - model.mean_embedding for x in (batch, torch.where(region[:, None], blur(batch), batch)))
        shares.append(1 - (rest * whole).sum(1) / whole.square().sum(1))
    return float(torch.cat(shares).cpu().nanmedian().clamp(0, 1).nan_to_num(1.0))


@dataclass(frozen=True)
class Check:
    """Change of the decision's margin by blurring a region in each image of N pairs, shape (N, 2), NaN where the map is empty.

    `effect`: the map's strongest region; `random`: a region of the same shape at a random place, which may overlap the former.
    """

    effect: torch.Tensor
    random: torch.Tensor


def check(interventions: Interventions, explanation: Explanation, kind: str, rng: np.random.Generator) -> Check:
    """Blur the top tenth of the `factual` maps (the margin should fall) or the `counterfactual` maps (it should rise).

    Only where there is evidence: of a map with less than a tenth of positive pixels, these.

    Example:
        >>> result = check(interventions, explanation, "factual", rng)
        >>> share_right = (result.effect < 0).float().mean()  # an empty map's NaN counts as wrong
    """
    maps = getattr(explanation, kind)
    regions = strongest_region(maps)
    before = interventions.before[:, None]
    empty = explanation.empty[:, :, ("factual", "counterfactual").index(kind)]
    changes = (interventions.without(chosen) - before for chosen in (regions, moved(regions, rng)))
    return Check(*(torch.where(empty, torch.nan, change) for change in changes))


def curves(interventions: Interventions, maps: torch.Tensor, verbose: bool = False) -> dict[str, np.ndarray]:
    """Deletion and insertion curves (Petsiuk et al., 2018) of the decision's margin.

    Args:
        maps: what ranks the pixels, shape (N, 2, H, W); ties in reading order.

    Returns:
        `deletion`: mean margin after blurring the strongest 0, 10, ... 100 % of one image's pixels (a good map falls fast);
        `insertion`: after sharpening them in the blurred image (rises fast). Each of shape (STEPS + 1,).
    """
    shares = np.linspace(0, 1, STEPS + 1)
    rows = []
    places = _places(maps)
    for share in tqdm(shares, desc="Deleting and inserting", disable=not verbose):
        region = places < round(share * maps.shape[-2:].numel())
        rows.append([interventions.without(chosen).mean().item() for chosen in (region, ~region)])
    return dict(zip(("deletion", "insertion"), np.array(rows).T))


def area_under(curve: np.ndarray) -> float:
    """Area under a curve over the share of pixels, from 0 to 1 (trapezoids)."""
    return float(auc(np.linspace(0, 1, len(curve)), curve))


# ---------------------------------------------------------------------------------------------- randomisation


def randomisation_check(
    model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, method: str = "contrast", seed: int = 0
) -> dict[str, float]:
    """Rank correlation of signed maps before and after weights are replaced by random ones (Adebayo et al., 2018).

    A map that hardly changes when the network forgets what it learnt does not explain the network. The maps compared show
    the evidence for the decisions of the trained network: a random one decides otherwise, and a mere change of sign would
    look like forgetting. Batch statistics, the mean embedding and the activations of blurred images are taken anew from the
    images: with those of other weights, activations vanish within a deep backbone. The network is left as found.

    Returns:
        Mean Spearman correlation for a random `head`, and for a random `head and backbone`; `none` is 1 by definition.
    """
    batch, threshold = torch.cat([batch1, batch2]).to(model.mean.device), model.threshold
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    similar = explain(model, batch1, batch2, method).is_similar
    result = {"none": 1.0}
    try:
        before = _evidence_for(similar, model, batch1, batch2, method)
        for name, parts in (("head", (model.head,)), ("head and backbone", (model.head, model.backbone))):
            _reset(parts, seed)
            with eval_mode(model):
                for part in parts:
                    update_bn([batch], part)
            model.mean_embedding.copy_(_embed(model, batch, 64).mean(0))
            model.blurred_features.copy_(blurred_features(model, batch))
            result[name] = rank_correlation(before, _evidence_for(similar, model, batch1, batch2, method))
    finally:
        model.threshold = threshold
        model.load_state_dict(state)
    return result


def _evidence_for(similar: torch.Tensor, model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, method: str) -> torch.Tensor:
    """Signed maps (N, 2, h, w) for given decisions, bool of shape (N,); leaves another threshold in the model."""
    raw = []
    for model.threshold in (math.inf, -math.inf):
        raw.append(explain(model, batch1, batch2, method).raw)
    return torch.where(similar[:, None, None, None], *raw)


def _reset(parts: Iterable[nn.Module], seed: int) -> None:
    """Random weights, drawn on the CPU, so that they are the same for every device."""
    with seeded(seed):
        for part in parts:  # the head first: in the network's own order, training's seed would give the weights it started from
            device = next(part.parameters()).device
            for module in part.cpu().modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            part.to(device)


def rank_correlation(maps1: torch.Tensor, maps2: torch.Tensor) -> float:
    """Mean Spearman correlation of corresponding maps (N, 2, h, w); pairs of maps of which one is constant are left out."""
    ranks1, ranks2 = (_centred_ranks(maps.cpu().flatten(0, 1).flatten(1)) for maps in (maps1, maps2))
    vary = ranks1.any(1) & ranks2.any(1)
    return float(F.cosine_similarity(ranks1[vary], ranks2[vary], dim=1).mean())  # NaN if none is left


def _centred_ranks(rows: torch.Tensor) -> torch.Tensor:
    """Ranks within each row (N, P) about their mean; equals share theirs (in half steps, which are exact)."""
    ordered = rows.contiguous().sort(dim=1).values
    ranks = torch.searchsorted(ordered, rows.contiguous()) + torch.searchsorted(ordered, rows.contiguous(), right=True)
    return (ranks - rows.shape[1]).double()
