"""Which regions of two images speak for the decision "similar" or "dissimilar", and which against it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.explain.incremental import BATCH_SIZE
from utils.explain.occlusion import RegionEffects, region_effects
from utils.explain.removal import strongest_region
from utils.images.pairs import used_images
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode
from utils.system.errors import ModelError

METHODS = ("occlusion", "distance")
# Weaker evidence counts as noise (docs/trials.md).
MIN_FACTUAL = 0.2  # share of the image's strongest evidence
MIN_COUNTERFACTUAL = 0.1  # share of the pair's strongest evidence


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
        strength: each map's largest evidence as a share of the pair's, (N, 2, 2): image; factual, counterfactual.
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

    @property
    def for_similar(self) -> torch.Tensor:
        """The signed evidence for "similar", whatever the decisions, of the shape of `raw`."""
        return torch.where(self.is_similar, 1, -1)[:, None, None, None] * self.raw


def explain(
    model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, method: str = "occlusion"
) -> Explanation:
    """Explain the decisions on N pairs; the model's mode, parameters and gradients are left as found.

    Args:
        batch1, batch2: preprocessed images and their partners, shape (N, 3, H, W) each, on any device.
        method: `occlusion` blurs one region after the other of each image, and measures the effect on the squared
            distance, see `explain_effects`. `distance` is the paper's Grad-CAM, see `grad_cam`. Both give one signed
            map: evidence for "similar", its opposite for "dissimilar".

    Raises:
        ValueError: unknown method, or batches that are not two equal stacks of images.
        ModelError: a network in another precision than float32.
    """
    if batch1.ndim != 4 or batch1.shape != batch2.shape or not len(batch1) or batch1.shape[1] != 3:
        shapes = f"{tuple(batch1.shape)} and {tuple(batch2.shape)}"
        raise ValueError(f"two batches of shape (N, 3, H, W) with N >= 1 are needed, got {shapes}")
    both, count = torch.cat([batch1, batch2.to(batch1.device)]), len(batch1)
    return explain_pairs(model, both, range(count), range(count, 2 * count), method)


@torch.inference_mode(False)
def explain_pairs(
    model: SiameseNetwork, batch: torch.Tensor, first: Sequence[int], second: Sequence[int], method: str = "occlusion"
) -> Explanation:
    """Explain P pairs of N images as `explain` does; each image is measured once, however many pairs it is in.

    Args:
        batch: preprocessed images, shape (N, 3, H, W), on any device.
        first, second: positions in `batch` of the images of each pair, P of each.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    model = getattr(model, "module", model)  # that of a DataParallel
    if other := {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        raise ModelError(f"explain: the network is in {other.pop()}; use model.float()")
    if not batch.is_floating_point():
        raise ValueError(f"images of {batch.dtype}; prepare them by model.preprocess or model.normalize")
    if not batch.isfinite().all():
        raise ValueError("images hold NaN or infinity; prepare them by model.preprocess, or leave these out")
    used, first, second = used_images(first, second)
    batch, size = batch[used].to(model.mean), tuple(batch.shape[2:])
    with torch.autocast(batch.device.type, enabled=False):  # the caller's would round the effects of regions
        if method == "occlusion":
            return explain_effects(model, region_effects(model, batch), first, second, size)
        with eval_mode(model), torch.no_grad():
            activations = torch.cat([model.backbone.activations(part) for part in batch.split(BATCH_SIZE)])
        return grad_cam(model, activations[first], activations[second], size)


def grad_cam(
    model: SiameseNetwork, activations1: torch.Tensor, activations2: torch.Tensor, image_size: tuple[int, int]
) -> Explanation:
    """Explain pairs by the paper's Grad-CAM (Selvaraju et al. 2017, Eq. 1-2) of the closeness `-D^2`.

    With A the `activations` of the first images and of their partners, (N, C, h, w) of a convolutional network,
    and g the gradient of `-D^2` with respect to A, evidence for "similar" is `sum_c mean_hw(g_c) A_c`. Maps are drawn
    at `image_size`, height and width in pixels.
    """
    activations = torch.cat([activations1, activations2]).detach().requires_grad_()
    with eval_mode(model), torch.enable_grad():
        z1, z2 = model.embed_features(model.backbone.finish(activations)).chunk(2)
        # A difference by rounding errors only (1e-6 of the embeddings' length) has no direction, and counts as none.
        none = (z1 - z2).square().sum(1, keepdim=True) <= 1e-12 * (z1.square() + z2.square()).sum(1, keepdim=True)
        closeness = -(z1 - z2).masked_fill(none, 0).square().sum()
        (gradient,) = torch.autograd.grad(closeness, activations)
    gradient, activations = (model.backbone.as_map(values) for values in (gradient, activations.detach()))
    evidence = (gradient.mean((2, 3), keepdim=True) * activations).sum(1)
    distance = embedding_distance(z1, z2).detach()
    sign = 2 * model.is_similar(distance).to(distance) - 1
    raw = sign[:, None, None, None] * torch.stack(evidence.chunk(2), dim=1)
    return _explanation(model, distance, raw, torch.stack([raw, -raw], dim=2), image_size)


def explain_effects(
    model: SiameseNetwork, effects: RegionEffects, first: Sequence[int], second: Sequence[int], image_size: tuple
) -> Explanation:
    """Explain P pairs of images, by their positions in known `region_effects`, without a forward pass; `image_size` is
    the height and width in pixels at which maps are drawn.

    Noise is in no map and stays in `raw`: evidence weaker than a fifth of its image's strongest; evidence against the
    decision weaker than a tenth of the pair's strongest, or whose strongest tenth of the image, occluded as a whole,
    would by the same measurements not make the decision stronger.
    """
    distance = embedding_distance(effects.embeddings[list(first)], effects.embeddings[list(second)])
    sign = 2 * model.is_similar(distance).to(distance) - 1
    raw = sign[:, None, None, None] * effects.maps(first, second)
    of_image = raw.abs().amax((2, 3), keepdim=True)
    of_pair = of_image.amax(1, keepdim=True)  # for evidence against the decision, which is rare and claims more
    factual = torch.where(raw > MIN_FACTUAL * of_image, raw, 0)
    counterfactual = torch.where(-raw > MIN_COUNTERFACTUAL * of_pair, -raw, 0)
    change = effects.of_masks(first, second, strongest_region(counterfactual))
    strengthens = sign[:, None] * change < 0  # the decision, as evidence against it should
    shown = torch.stack([factual, torch.where(strengthens[:, :, None, None], counterfactual, 0)], dim=2)
    return _explanation(model, distance, raw, shown, image_size)


def _explanation(
    model: SiameseNetwork, distance: torch.Tensor, raw: torch.Tensor, shown: torch.Tensor, image_size: tuple[int, int]
) -> Explanation:
    """Make an `Explanation` from distances (N,), signed evidence for the decisions (N, 2, h, w), and what of it is
    shown for and against them, (N, 2, 2, h, w). Maps have the image's size, and each is divided by its maximum."""
    maps = F.interpolate(shown.clamp(min=0).flatten(0, 1), image_size, mode="bilinear", align_corners=False)
    maps = maps.unflatten(0, shown.shape[:2])
    peaks = maps.amax((3, 4))
    empty = peaks < torch.finfo(maps.dtype).tiny
    maps.div_(peaks.masked_fill(empty, torch.inf)[..., None, None])
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
