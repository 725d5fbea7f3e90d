"""Which regions of two images speak for the decision "similar" or "dissimilar", and which against it."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from utils.deeplift import from_reference
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode

METHODS = ("contrast", "distance")

# Neighbourhood over which `contrast` averages evidence: standard deviation, as a share of the map's sides (chosen by
# measurement, benchmarks/README.md).
SPREAD = 0.05


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
        strength: each map's largest evidence as a share of the pair's largest, shape (N, 2, 2): image; factual, counterfactual.
        empty: maps that are zero everywhere, bool of shape (N, 2, 2).
    """

    distance: torch.Tensor
    similarity: torch.Tensor
    is_similar: torch.Tensor
    factual: torch.Tensor
    counterfactual: torch.Tensor
    raw: torch.Tensor
    strength: torch.Tensor
    empty: torch.Tensor


def explain(model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, method: str = "contrast") -> Explanation:
    """Explain the decisions on N pairs. One forward pass; gradients only behind the chosen feature map.

    Args:
        model: its mode, parameters and gradients are left as found.
        batch1, batch2: preprocessed images, each of shape (N, 3, H, W), on any device.
        method: `contrast` asks what keeps the pair together, or apart, if a region goes. A region's going takes z1 a share r of
            the way to the mean training embedding mu (`model.removable`, measured after training). The derivative of `-D^2` with
            respect to z1, averaged over that way (integrated gradients, Sundararajan et al. 2017, Eq. 1; exact, as D^2 is
            quadratic, is `2 (z2 - mu) - (2 - r) (z1 - mu)`; for z2 likewise. DeepLIFT's rescale rule (`utils.deeplift`) carries it
            back to the fine feature map A as multipliers g, its reference b what a blurred image has there on average; they are
            read position by position, `sum_c g_c (A_c - b_c)`, as a mean over a Gaussian neighbourhood. `distance` is the
            paper's: the derivative of `-D^2` (r = 0), weighted as Grad-CAM (Selvaraju et al. 2017, Eq. 1-2),
            `sum_c mean_hw(g_c) A_c`, on the final feature map.
            Both give one signed map: evidence for "similar", its opposite for "dissimilar".

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


def embed_feature_maps(model: SiameseNetwork, features: torch.Tensor, method: str = "contrast") -> torch.Tensor:
    """Embeddings (N, D) from the `feature_maps` (N, C, h, w) of the same method, in eval mode."""
    with eval_mode(model):
        return model.embed_features(model.backbone[split_at(model, method) :](features))


def traced(model: SiameseNetwork, features: torch.Tensor, method: str = "contrast") -> tuple[torch.Tensor, torch.Tensor]:
    """The `feature_maps` (N, C, h, w) as a leaf and their embeddings (N, D), whose gradients are those that `method` wants."""
    leaf = features.detach().requires_grad_()
    with torch.enable_grad():
        if method == "distance":
            return leaf, embed_feature_maps(model, leaf, method)
        reference = _blurred(model).expand_as(leaf[:1]).contiguous(memory_format=torch.channels_last)
        return leaf, from_reference(lambda maps: embed_feature_maps(model, maps), leaf, reference)


def explain_features(
    model: SiameseNetwork, features1: torch.Tensor, features2: torch.Tensor, image_size: tuple[int, int], method: str = "contrast"
) -> Explanation:
    """As `explain`, from the `feature_maps` of the same method; maps are drawn at `image_size` (height, width)."""
    leaf, z = traced(model, torch.cat([features1, features2]), method)
    z1, z2 = z.detach().chunk(2)
    distance = embedding_distance(z1, z2)
    is_similar = model.dissimilarity(distance) < model.threshold
    sign = torch.where(is_similar, 1.0, -1.0)[:, None]
    wanted = sign * _towards_similar(model, z1, z2, method)
    raw = torch.stack(_evidence(model, z, wanted.flatten(0, 1), leaf, method).chunk(2), dim=1)
    maps, peaks, empty = _normalised(torch.stack([raw, -raw], dim=2), image_size)
    strongest = peaks.amax((1, 2), keepdim=True)
    return Explanation(
        distance=distance,
        similarity=1 - model.dissimilarity(distance),
        is_similar=is_similar,
        factual=maps[:, :, 0],
        counterfactual=maps[:, :, 1],
        raw=raw,
        strength=torch.where(empty, 0, peaks / strongest),
        empty=empty,
    )


def own_evidence(model: SiameseNetwork, batch: torch.Tensor) -> torch.Tensor:
    """What takes each image (N, 3, H, W) away from the mean training embedding, read as by `contrast`: shape (N, H, W), >= 0."""
    leaf, z = traced(model, feature_maps(model, batch))
    raw = _evidence(model, z, z.detach() - model.mean_embedding, leaf, "contrast")
    return F.interpolate(raw[:, None].clamp(min=0), size=tuple(batch.shape[2:]), mode="bilinear", align_corners=False)[:, 0]


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


def _towards_similar(model: SiameseNetwork, z1: torch.Tensor, z2: torch.Tensor, method: str) -> torch.Tensor:
    """Directions (2, N, D) in which either embedding (N, D) makes the pair more similar while its partner stays."""
    kept = 2 - (model.removable if method == "contrast" else 0)
    # A difference of rounding errors (1e-6 of the embeddings) has no direction but noise.
    rounding = 4e-12 * (z1.square() + z2.square()).sum(1, keepdim=True)
    z1, z2 = z1 - model.mean_embedding, z2 - model.mean_embedding
    wanted = torch.stack([2 * z2 - kept * z1, 2 * z1 - kept * z2])
    return torch.where(wanted.square().sum(2, keepdim=True) > rounding, wanted, 0)


def _evidence(model: SiameseNetwork, z: torch.Tensor, wanted: torch.Tensor, leaf: torch.Tensor, method: str) -> torch.Tensor:
    """What in the feature maps (N, C, h, w) moved the embeddings (N, D) in the `wanted` directions: signed, (N, h, w)."""
    (gradient,) = torch.autograd.grad(z, leaf, wanted)
    raw = weighted(model, gradient, leaf.detach(), method)
    return local_mean(raw) if method == "contrast" else raw


def weighted(model: SiameseNetwork, gradient: torch.Tensor, features: torch.Tensor, method: str) -> torch.Tensor:
    """Feature maps (..., C, h, w) weighted by a gradient, or multipliers, of that shape and summed over their channels: (..., h, w).

    `contrast` takes off what blurring would leave of them on average: what remains is what a region's going takes away.
    """
    if method == "distance":
        return (gradient.mean((-2, -1), keepdim=True) * features).sum(-3)
    return (gradient * (features - _blurred(model))).sum(-3)


def _blurred(model: SiameseNetwork) -> torch.Tensor:
    """What a blurred image has on average at any position of the fine feature map, the reference of `contrast`: (C, 1, 1)."""
    return model.blurred_features[:, None, None]


def local_mean(maps: torch.Tensor, spread: float = SPREAD) -> torch.Tensor:
    """Maps (..., h, w) averaged over a Gaussian neighbourhood, `spread` times the sides; borders are mirrored.

    Position by position, evidence for and against alternates within one object; what counts is a neighbourhood's.
    """
    rows, columns = (_neighbourhood(side, spread).to(maps) for side in maps.shape[-2:])
    return rows @ maps @ columns.T


@lru_cache
@torch.inference_mode(False)
def _neighbourhood(side: int, spread: float) -> torch.Tensor:
    """The Gaussian mean along one side as a matrix (side, side): faster on small maps than a convolution."""
    reach = min(math.ceil(2.5 * spread * side), side - 1)
    return gaussian_blur(torch.eye(side)[None], [1, 2 * reach + 1], [spread * side] * 2)[0]


def _normalised(raw: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positive parts of signed maps (N, 2, 2, h, w) at image size, each divided by its maximum; the maxima, and which maps are
    zero everywhere, (N, 2, 2)."""
    maps = F.interpolate(raw.clamp(min=0).flatten(0, 1), size=image_size, mode="bilinear", align_corners=False).unflatten(0, raw.shape[:2])
    peaks = maps.amax((3, 4), keepdim=True)
    empty = peaks < torch.finfo(maps.dtype).tiny
    return maps.div_(peaks.masked_fill(empty, torch.inf)), peaks[..., 0, 0], empty[..., 0, 0]
