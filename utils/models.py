"""The network of a configuration: new, trained, or, before any training, that of photographs."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.distance import pdist
from torch import nn
from torch.distributions import Normal

from utils.images.folder import first_names
from utils.images.pairs import evenly_spaced
from utils.images.synthetic import SYNTHETIC
from utils.Siamese import AveragePooling, SiameseNetwork, eval_mode
from utils.system.errors import ModelError
from utils.system.machine import choose_device, keep_freed_memory, seeded
from utils.system.settings import Config, FalseMatches

# Of ImageNet features: a right angle is a similarity of 0, and half of a photograph is still similar to the other half.
PHOTOGRAPHS_THRESHOLD = 0.7
MOST_IMAGES = 5000  # which are all compared with each other
NEAREST = 5  # validation images whose mean distance says how far an image is from all that the network knows
MOST_CLASSES = 20  # named in the sentence that says which network it is


def build_model(config: Config, levels: tuple[float, float] | None = None) -> SiameseNetwork:
    """Build the untrained network that a configuration describes; random weights depend on its seed only."""
    keys = "backbone_model", "pretrained", "pooling", "embedding_dim", "weights", "margin"
    keys += "normalize_embeddings", "feature_weight"
    options, image = {key: getattr(config, key) for key in keys}, config.image
    options |= {"image_size": image.size, "fit": image.fit, "levels": levels, **dict(image.normalization)}
    if not isinstance(config.threshold, FalseMatches):  # training sets that
        options["threshold"] = config.threshold
    with seeded(config.seed):
        return SiameseNetwork(**options)


def load_trained(config: Config) -> tuple[SiameseNetwork, str]:
    """Load the network in `config.trained_path`, as `load_checkpoint` does."""
    keep_freed_memory()
    model, note = load_checkpoint(config, config.trained_path / "model.pth", config.dataset)
    if config.trained_path != config.checkpoints_path:
        note += ". You have not trained yet: this network comes with the project"
    return model, note


def load_checkpoint(config: Config, path: Path, name: str) -> tuple[SiameseNetwork, str]:
    """Load a network on the configured device and with the configured threshold, and a sentence that says on what the
    network of this `name` was trained. Raises a ConfigError or a ModelError."""
    model = SiameseNetwork.load(path, choose_device(config))
    model.threshold = threshold_for(config, model.info, model.margin)
    classes = first_names(model.info.get("classes", ["images that its file does not name"]), MOST_CLASSES)
    return model, f"{name}: trained on {classes}{about_threshold(config, model)}"


def every_pair(
    embeddings: torch.Tensor, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Compare all images (N, D) with each other, each pair once (of more than `MOST_IMAGES`, as many at even spacing):
    raw distances and pair labels (0 same class, 1 another), (P,), and the positions of first and second images."""
    used = evenly_spaced(len(labels), MOST_IMAGES)
    one, two = (used[ends] for ends in np.triu_indices(len(used), 1))
    return pdist(embeddings.cpu().numpy()[used]), (labels[one] != labels[two]).astype(int), (one, two)


def threshold_for(config: Config, info: dict[str, Any], margin: float) -> float:
    """The configured threshold of the dissimilarity. A share of false matches is looked up in all validation pairs of
    two classes, of the embeddings that training leaves in `info`; raises a ModelError if it did not."""
    if not isinstance(config.threshold, FalseMatches):
        return config.threshold
    if "valid_embeddings" not in info:
        raise ModelError(
            "threshold: false_matches is set on validation images, of which this network keeps none, as an earlier "
            "version trained it; train again, or give a number"
        )
    distance, label, _ = every_pair(info["valid_embeddings"], info["valid_labels"].cpu().numpy())
    other = np.sort(distance[label == 1])
    return min(float(other[int(config.threshold.false_matches * len(other))] / margin), 1.0)


def about_threshold(config: Config, model: SiameseNetwork, resamples: int = 1000) -> str:
    """Tell in a part of a sentence how many false matches the network's threshold lets through in validation, with the
    95 % interval from resampling the images; nothing, where the configured threshold is a number."""
    if not isinstance(config.threshold, FalseMatches):
        return ""
    labels = model.info["valid_labels"].cpu().numpy()
    distance, label, ends = every_pair(model.info["valid_embeddings"], labels)
    false = (distance / model.margin < model.threshold) & (label == 1)
    one, two = (positions[false] for positions in ends)
    count, used, rates = len(labels), evenly_spaced(len(labels), MOST_IMAGES), []
    for drawn in np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples):
        sizes = np.bincount(labels[used], drawn[used])
        rates.append(drawn[one] @ drawn[two] / max(1, (sizes.sum() ** 2 - sizes @ sizes) / 2))
    low, high = np.quantile(rates, [0.025, 0.975])
    return (
        f"; above a similarity of {1 - model.threshold:.3f}, {false.sum() / label.sum():.4f} ({low:.4f}-{high:.4f}) of "
        f"{label.sum():,} validation pairs of two classes match falsely"
    )


def familiarity(model: SiameseNetwork, batch: torch.Tensor) -> torch.Tensor:
    """The share p, (N,), of the validation images of a network's training that are as far from their nearest ones, by
    the backbone's pooled features, as each of preprocessed images (N, 3, H, W) is, itself counted in (conformal
    prediction; Vovk et al., 2005)."""
    known = model.info["valid_features"].to(batch.device).float()
    with eval_mode(model), torch.no_grad():
        new = torch.cat([F.normalize(model.pooling(model.backbone(part))) for part in batch.split(16)]).float()
    of_known = torch.cdist(known, known).fill_diagonal_(torch.inf)
    count = min(NEAREST, len(known) - 1)
    far, as_known = (d.topk(count, largest=False).values.mean(1) for d in (torch.cdist(new, known), of_known))
    return (1 + (as_known >= far[:, None]).sum(1)) / (len(known) + 1)


def strangers(model: SiameseNetwork, batch: torch.Tensor, names: Sequence[str], level: float = 0.05) -> list[str]:
    """Name preprocessed images (N, 3, H, W) that resemble nothing which the network knows, a line each: those with a
    `familiarity` of at most `level`. Of images like those of training, a share of `level` is named."""
    if "valid_features" not in model.info:
        return []
    count = len(model.info["valid_features"])
    return [
        f"{name}: resembles nothing that the network knows (p = {p:.3f}, from {count} validation images)"
        for name, p in zip(names, familiarity(model, batch).tolist())
        if p <= level
    ]


class CentredPooling(AveragePooling):
    """Mean over positions, less what it is on average over the backbone's training images: (N, C, h, w) -> (N, C).
    Features are never negative, so any two images seem alike; without their mean, unrelated ones are at a right angle.

    Args:
        norm: makes the map, followed by ReLU6, whose input is taken as normally distributed: by its shift and scale.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        mean, std = norm.bias.detach(), norm.weight.detach().abs()
        self.register_buffer("mean", expected_excess(mean, std, 0.0) - expected_excess(mean, std, 6.0))

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return super().forward(activations) - self.mean


def expected_excess(mean: torch.Tensor, std: torch.Tensor, limit: float) -> torch.Tensor:
    """The mean of `max(y - limit, 0)` for normally distributed y, of the shape of `mean`."""
    above, normal = (mean - limit) / std, Normal(0.0, 1.0)
    return std * normal.log_prob(above).exp() + (mean - limit) * normal.cdf(above)


def photographs_network(device: torch.device | str) -> SiameseNetwork:
    """Make a network that compares photographs by ImageNet features of the installed weights; nothing is trained. The
    embedding is the mean of EfficientNet-Lite0's final map, centred and scaled to one length: `d = sqrt(1 - cos)`."""
    options = {"embedding_dim": None, "threshold": PHOTOGRAPHS_THRESHOLD, "normalize_embeddings": True}
    model = SiameseNetwork("EfficientNetLite0", pretrained=True, pooling="avg", **options)
    model.pooling = CentredPooling(model.backbone[-1])
    return model.to(device).eval()


def network_for(config: Config, images: Iterable[Path]) -> tuple[SiameseNetwork, str]:
    """Load the network that compares these images, or the images in these folders: the configuration's trained one or,
    while nothing is trained, ImageNet features. That of the scenes serves these only. Also returns a sentence that says
    which one it is."""
    inside = config.data_path.resolve()
    scenes = all(path.resolve().is_relative_to(inside) for path in images)
    if os.path.isfile(config.trained_path / "model.pth") and (scenes or config.dataset != SYNTHETIC):
        return load_trained(config)
    keep_freed_memory()
    note = "compared by ImageNet features of the installed weights; train on your images for your own notion of similar"
    return photographs_network(choose_device(config)), note
