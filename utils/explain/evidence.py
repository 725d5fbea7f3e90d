"""From an embedding back to a feature map: what each position did to it."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from utils.explain.deeplift import from_reference
from utils.Siamese import SiameseNetwork, eval_mode

METHODS = ("contrast", "distance")
# Neighbourhood over which `contrast` averages evidence: standard deviation, as a share of the map's sides (chosen by
# measurement, docs/trials.md).
SPREAD = 0.05


def split_at(model: SiameseNetwork, method: str) -> int:
    """Number of the backbone's blocks up to the feature map that a method explains.

    Raises:
        ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {('occlusion', *METHODS)}, got {method!r}")
    return model.fine_block + 1 if method == "contrast" else len(model.backbone)


def feature_maps(model: SiameseNetwork, batch: torch.Tensor, method: str = "contrast") -> torch.Tensor:
    """The feature maps (N, C, h, w) that `method` explains; compute them once to explain many pairs of N images."""
    with eval_mode(model), torch.no_grad():
        return model.backbone[: split_at(model, method)](batch.to(model.mean.device))


def embed_feature_maps(model: SiameseNetwork, features: torch.Tensor, method: str = "contrast") -> torch.Tensor:
    """Embeddings (N, D) from the `feature_maps` (N, C, h, w) of the same method, in eval mode."""
    with eval_mode(model):
        return model.embed_features(model.backbone[split_at(model, method) :](features))


def traced(
    model: SiameseNetwork, features: torch.Tensor, method: str = "contrast"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `feature_maps` (N, C, h, w) as a leaf and their embeddings (N, D), whose gradients are those that `method`
    wants."""
    leaf = features.detach().requires_grad_()
    with torch.enable_grad():
        if method == "distance":
            return leaf, embed_feature_maps(model, leaf, method)
        reference = _blurred(model).expand_as(leaf[:1]).contiguous(memory_format=torch.channels_last)
        return leaf, from_reference(lambda maps: embed_feature_maps(model, maps), leaf, reference)


def own_evidence(model: SiameseNetwork, batch: torch.Tensor) -> torch.Tensor:
    """What takes each image (N, 3, H, W) away from the mean training embedding, read as by `contrast`: shape (N, H, W),
    >= 0."""
    leaf, z = traced(model, feature_maps(model, batch))
    raw = evidence_for(model, z, z.detach() - model.mean_embedding, leaf, "contrast")
    return F.interpolate(raw[:, None].clamp(min=0), size=tuple(batch.shape[2:]), mode="bilinear", align_corners=False)[
        :, 0
    ]


def gradient_details(model: SiameseNetwork, image: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """What in the fine feature map of one image (3, H, W) takes its embedding in each of K directions (K, D), position
    by position, as `contrast` reads it: (K, h, w)."""
    features = feature_maps(model, image[None]).expand(len(directions), -1, -1, -1)
    leaf, z = traced(model, features)
    (gradient,) = torch.autograd.grad(z, leaf, directions)
    return weighted(model, gradient, leaf.detach(), "contrast")


def evidence_for(
    model: SiameseNetwork, z: torch.Tensor, wanted: torch.Tensor, leaf: torch.Tensor, method: str
) -> torch.Tensor:
    """What in the feature maps (N, C, h, w) moved the embeddings (N, D) in the `wanted` directions: signed, (N, h,
    w)."""
    (gradient,) = torch.autograd.grad(z, leaf, wanted)
    raw = weighted(model, gradient, leaf.detach(), method)
    return local_mean(raw) if method == "contrast" else raw


def weighted(model: SiameseNetwork, gradient: torch.Tensor, features: torch.Tensor, method: str) -> torch.Tensor:
    """Feature maps (..., C, h, w) weighted by a gradient, or multipliers, of that shape and summed over their channels:
    (..., h, w).

    `contrast` takes off what blurring would leave of them on average: what remains is what a region's going takes away.
    """
    if method == "distance":
        return (gradient.mean((-2, -1), keepdim=True) * features).sum(-3)
    return (gradient * (features - _blurred(model))).sum(-3)


def _blurred(model: SiameseNetwork) -> torch.Tensor:
    """What a blurred image has on average at any position of the fine feature map, the reference of `contrast`: (C, 1,
    1)."""
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
