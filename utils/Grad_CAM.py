"""Which regions of two images speak for the decision "similar" or "dissimilar", and which against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from utils.explain.occlusion import RegionEffects, region_effects
from utils.explain.removal import strongest_region
from utils.images.pairs import used_images
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode

METHODS = ("occlusion", "distance")
# Measured evidence that counts as noise: for a decision, less than this share of its image's strongest; against it,
# less than this share of the pair's (docs/trials.md).
LEAST = (0.2, 0.1)


@dataclass(frozen=True)
class Explanation:
    """Maps for N pairs, on the model's device; index 0 of the second dimension is image 1, index 1 is image 2.

    Attributes:
        distance: raw distance D, shape (N,).
        similarity: 1 - d in [0, 1], shape (N,).
        is_similar: the decision d < threshold, bool of shape (N,).
        factual: evidence for the decision, shape (N, 2, H, W) in [0, 1], the strongest point of each map 1.
        counterfactual: evidence against it, likewise.
        raw: signed evidence for the decision, shape (N, 2, h, w), not normalised.
        strength: each map's largest evidence as a share of the pair's largest, shape (N, 2, 2): image; factual,
            counterfactual.
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


def explain(
    model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, method: str = "occlusion"
) -> Explanation:
    """Explain the decisions on N pairs.

    Args:
        model: its mode, parameters and gradients are left as found.
        batch1: preprocessed images, shape (N, 3, H, W), on any device.
        batch2: their partners, likewise.
        method: `occlusion` measures: each image is embedded with one region after the other blurred, and what that does
            to the squared distance, `E_R = ||z1 - delta_R - z2||^2 - ||z1 - z2||^2`, is spread over the image
            (`utils.explain.occlusion`). Some evidence is in `raw` only: what is weaker than a fifth of its image's
            strongest; evidence against the decision that is weaker than a tenth of the pair's; and evidence against it
            of which the strongest tenth of the image, occluded as a whole, would by the same measurements not make the
            decision more confident.
            `distance` is the paper's Grad-CAM, see `grad_cam`: one forward pass, and a backward pass of the head.
            Both give one signed map: evidence for "similar", its opposite for "dissimilar".

    Raises:
        ValueError: unknown method, or batches that are not two equal stacks of images.

    Examples:
        >>> e = explain(model, model.preprocess(cat)[None], model.preprocess(dog)[None])
        >>> e.factual[0, 0]  # what in the cat speaks for the decision, shape (H, W)
    """
    if batch1.ndim != 4 or batch1.shape != batch2.shape or not len(batch1) or batch1.shape[1] != 3:
        raise ValueError(
            f"two batches of shape (N, 3, H, W) with N >= 1 are needed, got {tuple(batch1.shape)} and "
            f"{tuple(batch2.shape)}"
        )
    both, count = torch.cat([batch1, batch2.to(batch1.device)]), len(batch1)
    return explain_pairs(model, both, range(count), range(count, 2 * count), method)


def explain_pairs(
    model: SiameseNetwork,
    batch: torch.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    method: str = "occlusion",
    batch_size: int = 32,
) -> Explanation:
    """Explain many pairs of N preprocessed images (N, 3, H, W), given by their positions, each of shape (P,).

    Each image that is in a pair is measured once, however many pairs it is in.

    Raises:
        ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    used, *ends = used_images(first, second)
    batch, size = batch[used].to(model.mean.device), tuple(batch.shape[2:])
    if method == "occlusion":
        return explain_effects(model, region_effects(model, batch, batch_size), *ends, size)
    with eval_mode(model), torch.no_grad():
        activations = torch.cat([model.backbone(part) for part in batch.split(batch_size)])
    starts = range(0, len(ends[0]), batch_size)
    parts = [
        grad_cam(model, *(activations[side[start : start + batch_size]] for side in ends), size) for start in starts
    ]
    return Explanation(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Explanation)}
    )


def grad_cam(
    model: SiameseNetwork, activations1: torch.Tensor, activations2: torch.Tensor, image_size: tuple[int, int]
) -> Explanation:
    """The paper's Grad-CAM (Selvaraju et al. 2017, Eq. 1-2) of the pair's closeness `-D^2`, for each of its images.

    With A the backbone's final activations and g the gradient of `-D^2` with respect to A, evidence for "similar" is
    `sum_c mean_hw(g_c) A_c`.

    Args:
        activations1: `model.backbone` of the first images, shape (N, C, h, w).
        activations2: of their partners, likewise.
        image_size: height and width in pixels at which maps are drawn.
    """
    activations = torch.cat([activations1, activations2]).detach().requires_grad_()
    with eval_mode(model), torch.enable_grad():
        z = model.embed_features(activations)
    z1, z2 = z.detach().chunk(2)
    # Of -D^2 with respect to z1 and z2. A difference of rounding errors (1e-6 of the embeddings) has no direction.
    towards = torch.where((z1 - z2).square().sum(1) > 1e-12 * (z1.square() + z2.square()).sum(1), 2.0, 0.0)
    towards = towards[:, None] * (z2 - z1)
    (gradient,) = torch.autograd.grad(z, activations, torch.cat([towards, -towards]))
    evidence = (gradient.mean((2, 3), keepdim=True) * activations.detach()).sum(1)
    distance = embedding_distance(z1, z2)
    sign = torch.where(model.is_similar(distance), 1.0, -1.0)[:, None, None, None]
    raw = sign * torch.stack(evidence.chunk(2), dim=1)
    return _explanation(model, distance, raw, torch.stack([raw, -raw], dim=2), image_size)


def explain_effects(
    model: SiameseNetwork,
    effects: RegionEffects,
    first: Sequence[int],
    second: Sequence[int],
    image_size: tuple[int, int],
) -> Explanation:
    """As `explain` by `occlusion`, for pairs of images whose `region_effects` are known: no forward pass."""
    distance = embedding_distance(effects.embeddings[list(first)], effects.embeddings[list(second)])
    sign = torch.where(model.is_similar(distance), 1.0, -1.0)
    raw = sign[:, None, None, None] * effects.maps(first, second)
    factual, counterfactual = _above_noise(raw)
    change = effects.of_places(first, second, strongest_region(counterfactual))
    stronger = sign[:, None] * change < 0
    shown = torch.stack([factual, torch.where(stronger[:, :, None, None], counterfactual, 0)], dim=2)
    return _explanation(model, distance, raw, shown, image_size)


def _above_noise(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Measured evidence for a decision (N, 2, h, w) that is not less than a share of its image's strongest; and
    evidence against it, which is rare and claims more, that is not less than a share of the pair's."""
    of_image = raw.abs().amax((2, 3), keepdim=True)
    of_pair = of_image.amax(1, keepdim=True)
    return torch.where(raw > LEAST[0] * of_image, raw, 0), torch.where(-raw > LEAST[1] * of_pair, -raw, 0)


def _explanation(
    model: SiameseNetwork, distance: torch.Tensor, raw: torch.Tensor, shown: torch.Tensor, image_size: tuple[int, int]
) -> Explanation:
    """From distances (N,), signed evidence for the decisions (N, 2, h, w), and the parts of it that are shown for and
    against them, (N, 2, 2, h, w)."""
    maps, peaks, empty = _normalised(shown, image_size)
    strongest = peaks.amax((1, 2), keepdim=True)
    return Explanation(
        distance=distance,
        similarity=1 - model.dissimilarity(distance),
        is_similar=model.is_similar(distance),
        factual=maps[:, :, 0],
        counterfactual=maps[:, :, 1],
        raw=raw,
        strength=torch.where(empty, 0, peaks / strongest),
        empty=empty,
    )


def _normalised(raw: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positive parts of signed maps (N, 2, 2, h, w) at image size, each divided by its maximum; the maxima, and which
    maps are zero everywhere, (N, 2, 2)."""
    maps = F.interpolate(
        raw.clamp(min=0).flatten(0, 1), size=image_size, mode="bilinear", align_corners=False
    ).unflatten(0, raw.shape[:2])
    peaks = maps.amax((3, 4), keepdim=True)
    empty = peaks < torch.finfo(maps.dtype).tiny
    return maps.div_(peaks.masked_fill(empty, torch.inf)), peaks[..., 0, 0], empty[..., 0, 0]
