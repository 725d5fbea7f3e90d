"""Which regions of two images speak for the decision "similar" or "dissimilar", and which against it."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode

METHODS = ("contrast", "distance")

# Neighbourhood over which `contrast` sums evidence against a decision: standard deviation, as a share of the map's sides
# (chosen by measurement, benchmarks/README.md).
SPREAD = 0.1


@dataclass(frozen=True)
class Explanation:
    """Maps for N pairs, on the model's device; index 0 of the second dimension is image 1, index 1 is image 2.

    Attributes:
        distance: raw distance D, shape (N,).
        similarity: 1 - d in [0, 1], shape (N,).
        is_similar: the decision d < threshold, bool of shape (N,).
        factual: evidence for the decision, shape (N, 2, H, W) in [0, 1], the strongest point of each map 1.
        counterfactual: evidence against it, likewise.
        raw: signed evidence for the decision at the feature map's resolution, shape (N, 2, h, w), not normalised.
        empty: maps that are zero everywhere, bool of shape (N, 2, 2): image; factual, counterfactual.
    """

    distance: torch.Tensor
    similarity: torch.Tensor
    is_similar: torch.Tensor
    factual: torch.Tensor
    counterfactual: torch.Tensor
    raw: torch.Tensor
    empty: torch.Tensor


def explain(model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, method: str = "contrast") -> Explanation:
    """Explain the decisions on N pairs. One forward pass; gradients only behind the chosen feature map.

    Args:
        model: its mode, parameters and gradients are left as found.
        batch1, batch2: preprocessed images, each of shape (N, 3, H, W), on any device.
        method: `contrast` takes as the evidence that a pair is similar the gradient of `<z1 - mu, z2 - mu>` (alike compared
            with the mean training embedding mu), and as the evidence that it is dissimilar that of `D^2`; what speaks
            against a decision is the latter's opposite or, for a similar pair, the latter itself. It reads them position by
            position, `sum_c (dT/dA_c) A_c` (HiResCAM, Draelos & Carin 2020, Eq. 5), on the last feature map of twice the
            final resolution; evidence against the decision is averaged over a neighbourhood before it is cut at 0.
            `distance` is the paper's: `-D^2` or `D^2`, weighted as Grad-CAM (Selvaraju et al. 2017, Eq. 1-2),
            `sum_c mean_hw(dT/dA_c) A_c`, on the final feature map; the counterfactual is the opposite sign.

    Raises:
        ValueError: unknown method, or batches that are not two equal stacks of images.

    Example:
        >>> e = explain(model, model.preprocess(cat)[None], model.preprocess(dog)[None])
        >>> e.factual[0, 0]  # what in the cat speaks for the decision, shape (H, W)
    """
    if batch1.ndim != 4 or batch1.shape != batch2.shape or not len(batch1) or batch1.shape[1] != 3:
        raise ValueError(f"two batches of shape (N, 3, H, W) with N >= 1 are needed, got {tuple(batch1.shape)} and {tuple(batch2.shape)}")
    features = feature_maps(model, torch.cat([batch1, batch2.to(batch1.device)]), method)
    return explain_features(model, *features.chunk(2), image_size=tuple(batch1.shape[2:]), method=method)


def split_at(model: SiameseNetwork, method: str) -> int:
    """Number of the backbone's blocks up to the feature map that a method explains.

    Raises:
        ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    return model.fine_block + 1 if method == "contrast" else len(model.backbone)


def feature_maps(model: SiameseNetwork, batch: torch.Tensor, method: str = "contrast") -> torch.Tensor:
    """The feature maps (N, C, h, w) that `method` explains; compute them once to explain many pairs of N images."""
    with eval_mode(model), torch.no_grad():
        return model.backbone[: split_at(model, method)](batch.to(model.mean.device))


def explain_features(
    model: SiameseNetwork, features1: torch.Tensor, features2: torch.Tensor, image_size: tuple[int, int], method: str = "contrast"
) -> Explanation:
    """As `explain`, from the `feature_maps` of the same method; maps are drawn at `image_size` (height, width)."""
    leaf = torch.cat([features1, features2]).detach().requires_grad_()
    with eval_mode(model), torch.enable_grad():
        z1, z2 = model.embed_features(model.backbone[split_at(model, method) :](leaf)).chunk(2)
        distance = embedding_distance(z1, z2).detach()
        is_similar = model.dissimilarity(distance) < model.threshold
        apart = _evidence(_squared_distance(z1, z2), leaf, method)
        sign = torch.where(is_similar, -1.0, 1.0)[:, None, None, None]
        raw = sign * apart
        against = -raw
        if method == "contrast" and is_similar.any():
            centred1, centred2 = z1 - model.mean_embedding, z2 - model.mean_embedding
            alike = _evidence((centred1 * centred2).sum(1), leaf, method)
            raw = torch.where(is_similar[:, None, None, None], alike, apart)
    if method == "contrast":
        against = _local_sum(against)
    maps, empty = _normalised(torch.stack([raw, against], dim=2), image_size)
    return Explanation(
        distance=distance,
        similarity=1 - model.dissimilarity(distance),
        is_similar=is_similar,
        factual=maps[:, :, 0],
        counterfactual=maps[:, :, 1],
        raw=raw,
        empty=empty,
    )


def explain_pairs(
    model: SiameseNetwork, batch: torch.Tensor, first: Sequence[int], second: Sequence[int], method: str = "contrast", batch_size: int = 32
) -> Explanation:
    """Explain many pairs of N preprocessed images (N, 3, H, W), given by their positions, each of shape (P,).

    Every image passes through the network once, however many pairs it is in; gradients are taken `batch_size` pairs at a time.
    """
    features = torch.cat([feature_maps(model, part, method) for part in batch.split(batch_size)])
    size, step = tuple(batch.shape[2:]), range(0, len(first), batch_size)
    parts = [
        explain_features(model, features[first[i : i + batch_size]], features[second[i : i + batch_size]], size, method) for i in step
    ]
    return Explanation(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Explanation)})


def _evidence(target: torch.Tensor, leaf: torch.Tensor, method: str) -> torch.Tensor:
    """Signed evidence for a target (N,) in the feature maps (2N, C, h, w) of both images: (N, 2, h, w)."""
    (gradient,) = torch.autograd.grad(target.sum(), leaf, retain_graph=True)
    if method == "distance":
        gradient = gradient.mean((2, 3), keepdim=True)
    return torch.stack((gradient * leaf.detach()).sum(1).chunk(2), dim=1)


def _local_sum(raw: torch.Tensor) -> torch.Tensor:
    """Signed maps (N, 2, h, w) averaged over a Gaussian neighbourhood.

    Position by position, evidence for and against alternates within the object that carries the decision. What speaks
    against the decision is where the evidence of a whole neighbourhood does.
    """
    sides = raw.shape[:1:-1]  # torchvision wants width first
    reach = [min(math.ceil(2.5 * SPREAD * side), side - 1) for side in sides]
    return gaussian_blur(raw, [2 * r + 1 for r in reach], [SPREAD * side for side in sides])


def _squared_distance(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """D^2, constant where it is rounding error (D / |z| about 1e-6): its gradient would point along noise."""
    squared = (z1 - z2).square().sum(1)
    rounding = 1e-12 * (z1.square() + z2.square()).sum(1).detach()
    return torch.where(squared > rounding, squared, torch.zeros_like(squared))


def _normalised(raw: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive parts of signed maps (N, 2, 2, h, w) at image size, each divided by its maximum, and which are zero everywhere."""
    maps = F.interpolate(raw.clamp(min=0).flatten(0, 1), size=image_size, mode="bilinear", align_corners=False).unflatten(0, raw.shape[:2])
    peak = maps.amax((3, 4), keepdim=True)
    empty = peak < torch.finfo(maps.dtype).tiny
    return maps.div_(peak.masked_fill(empty, torch.inf)), empty[..., 0, 0]
