"""Which regions of two images speak for the decision "similar" or "dissimilar", and which against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from utils.explain.evidence import evidence_for, feature_maps, traced
from utils.explain.occlusion import RegionEffects, region_effects
from utils.explain.removal import strongest_region
from utils.images.pairs import used_in
from utils.Siamese import SiameseNetwork, embedding_distance

MAPS = ("factual", "counterfactual")  # in the order of `strength` and `empty`
# Of what is measured, weaker evidence is not told from none: for a decision, than this share of its image's strongest;
# against it, than this of the pair's (docs/trials.md).
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
        raw: signed evidence for the decision at the feature map's resolution, shape (N, 2, h, w), not normalised.
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
        method: `occlusion` measures: the network looks at each image without one region after the other, and what that
            does to the squared distance, `E_R = ||z1 - delta_R - z2||^2 - ||z1 - z2||^2`, is spread over the image
            (`utils.explain.occlusion`); within what windows resolve, as DeepLIFT's multipliers see it. Evidence weaker
            than a fifth of its image's strongest, and evidence against the decision that is weaker than a tenth of the
            pair's, is in no map, only in `raw`; nor is evidence against it of which the strongest tenth of the image,
            gone as a whole, would by the same measurements not make the decision surer. It takes some 170 looks at
            each image.
            `contrast` predicts less of what is measured, for one forward pass and a half. It asks what keeps the pair
            together, or apart, if a region goes. A region's going takes z1 a share r of the way to the mean training
            embedding mu (`model.removable`, measured after training). The derivative of `-D^2` with respect to z1,
            averaged over that way (integrated gradients, Sundararajan et al. 2017, Eq. 1; exact, as D^2 is quadratic),
            is `2 (z2 - mu) - (2 - r) (z1 - mu)`; for z2 likewise. DeepLIFT's rescale rule (`utils.explain.deeplift`)
            carries it back to the fine feature map A as multipliers g, its reference b what a blurred image has there
            on average; they are read position by position, `sum_c g_c (A_c - b_c)`, as a mean over a Gaussian
            neighbourhood.
            `distance` is the paper's: the derivative of `-D^2` (r = 0), weighted as Grad-CAM (Selvaraju et al. 2017,
            Eq. 1-2), `sum_c mean_hw(g_c) A_c`, on the final feature map.
            All give one signed map: evidence for "similar", its opposite for "dissimilar".

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


def explain_features(
    model: SiameseNetwork,
    features1: torch.Tensor,
    features2: torch.Tensor,
    image_size: tuple[int, int],
    method: str = "distance",
) -> Explanation:
    """As `explain` by `contrast` or `distance`, from the `feature_maps` of that method; maps are drawn at `image_size`
    (height, width)."""
    leaf, z = traced(model, torch.cat([features1, features2]), method)
    z1, z2 = z.detach().chunk(2)
    distance = embedding_distance(z1, z2)
    sign = torch.where(model.is_similar(distance), 1.0, -1.0)[:, None]
    wanted = sign * _towards_similar(model, z1, z2, method)
    raw = torch.stack(evidence_for(model, z, wanted.flatten(0, 1), leaf, method).chunk(2), dim=1)
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
    factual, counterfactual = _enough(raw)
    change = effects.if_gone(first, second, strongest_region(counterfactual))
    surer = sign[:, None] * change < 0
    shown = torch.stack([factual, torch.where(surer[:, :, None, None], counterfactual, 0)], dim=2)
    return _explanation(model, distance, raw, shown, image_size)


def _enough(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of measured evidence for a decision (N, 2, h, w), what is not less than a share of its image's strongest; of
    evidence against it, which is rare and claims more, of the pair's."""
    of_image = raw.abs().amax((2, 3), keepdim=True)
    of_pair = of_image.amax(1, keepdim=True)
    return torch.where(raw > LEAST[0] * of_image, raw, 0), torch.where(-raw > LEAST[1] * of_pair, -raw, 0)


def _explanation(
    model: SiameseNetwork, distance: torch.Tensor, raw: torch.Tensor, shown: torch.Tensor, image_size: tuple[int, int]
) -> Explanation:
    """From distances (N,), signed evidence for the decisions (N, 2, h, w), and what of it is shown for and against
    them, (N, 2, 2, h, w)."""
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


def explain_pairs(
    model: SiameseNetwork,
    batch: torch.Tensor,
    first: Sequence[int],
    second: Sequence[int],
    method: str = "occlusion",
    batch_size: int = 32,
) -> Explanation:
    """Explain many pairs of N preprocessed images (N, 3, H, W), given by their positions, each of shape (P,).

    What the network has to see of an image it sees once, however many pairs it is in; `occlusion` leaves out images
    that are in none.
    """
    if method == "occlusion":
        used, *ends = used_in(first, second)
        return explain_effects(model, region_effects(model, batch[used], batch_size), *ends, tuple(batch.shape[2:]))
    features = torch.cat([feature_maps(model, part, method) for part in batch.split(batch_size)])
    size, step = tuple(batch.shape[2:]), range(0, len(first), batch_size)
    parts = [
        explain_features(model, features[first[i : i + batch_size]], features[second[i : i + batch_size]], size, method)
        for i in step
    ]
    return Explanation(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Explanation)}
    )


def _towards_similar(model: SiameseNetwork, z1: torch.Tensor, z2: torch.Tensor, method: str) -> torch.Tensor:
    """Directions (2, N, D) in which either embedding (N, D) makes the pair more similar while its partner stays."""
    kept = 2 - (model.removable if method == "contrast" else 0)
    # A difference of rounding errors (1e-6 of the embeddings) has no direction but noise.
    rounding = 4e-12 * (z1.square() + z2.square()).sum(1, keepdim=True)
    z1, z2 = z1 - model.mean_embedding, z2 - model.mean_embedding
    wanted = torch.stack([2 * z2 - kept * z1, 2 * z1 - kept * z2])
    return torch.where(wanted.square().sum(2, keepdim=True) > rounding, wanted, 0)


def _normalised(raw: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positive parts of signed maps (N, 2, 2, h, w) at image size, each divided by its maximum; the maxima, and which
    maps are zero everywhere, (N, 2, 2)."""
    maps = F.interpolate(
        raw.clamp(min=0).flatten(0, 1), size=image_size, mode="bilinear", align_corners=False
    ).unflatten(0, raw.shape[:2])
    peaks = maps.amax((3, 4), keepdim=True)
    empty = peaks < torch.finfo(maps.dtype).tiny
    return maps.div_(peaks.masked_fill(empty, torch.inf)), peaks[..., 0, 0], empty[..., 0, 0]
