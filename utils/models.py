"""The network of a configuration: new, trained, or, before any training, that of photographs."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torch.distributions import Normal

from utils.images.folder import first_names
from utils.images.synthetic import SYNTHETIC
from utils.Siamese import AveragePooling, SiameseNetwork
from utils.system.errors import ModelError
from utils.system.machine import choose_device, keep_freed_memory, seeded
from utils.system.settings import Config

# Of ImageNet features: a right angle is a similarity of 0, and half of a photograph is still similar to the other half.
PHOTOGRAPHS_THRESHOLD = 0.7
MOST_CLASSES = 20  # named in the sentence that says which network it is


def build_model(config: Config, levels: tuple[float, float] | None = None) -> SiameseNetwork:
    """Build the untrained network that a configuration describes; random weights depend on its seed only."""
    image = config.image
    options = {"image_size": image.size, "fit": image.fit, "levels": levels, **dict(image.normalization)}
    keys = "backbone_model", "pretrained", "pooling", "embedding_dim", "weights", "margin", "threshold"
    options |= {key: getattr(config, key) for key in (*keys, "normalize_embeddings")}
    with seeded(config.seed):
        return SiameseNetwork(**options)


def starting_point(config: Config) -> str:
    """Describe the weights with which training starts, as a part of a sentence."""
    if config.weights is not None:
        return f"the weights in {config.weights}"
    if config.pretrained:
        return "ImageNet weights, which tell 1,000 kinds of things on photographs apart"
    return "random weights, which know nothing: all is learnt from your images"


def load_trained(config: Config) -> tuple[SiameseNetwork, str]:
    """Load the network in `config.trained_path`, on the configured device and with the configured threshold; also
    returns a sentence that says which one it is. Raises a ConfigError or a ModelError."""
    keep_freed_memory()
    path = config.trained_path / "model.pth"
    model = SiameseNetwork.load(path, choose_device(config))
    if missing := [name for name in ("classes", "config", "calibrated_threshold") if name not in model.info]:
        raise ModelError(f"{path}: lacks what training leaves beside a network ({', '.join(missing)}); train again")
    model.threshold = config.threshold
    note = f"{config.dataset}: trained on {first_names(model.info['classes'], MOST_CLASSES)}"
    if config.trained_path != config.checkpoints_path:
        note += ". You have not trained yet: this network comes with the project"
    return model, note


class CentredPooling(AveragePooling):
    """Mean over positions, less what it is on average over a network's training images: (N, C, h, w) -> (N, C).

    Features are never negative, so any two images seem alike; without their mean, unrelated images are at a right
    angle. `norm` is the batch normalisation, followed by ReLU6, that makes the map: its shift and scale are the mean
    and standard deviation of what ReLU6 gets, taken as normally distributed.
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


def photographs_network(device: torch.device) -> SiameseNetwork:
    """Make a network that compares photographs by ImageNet features of the installed weights; nothing is trained.

    The embedding is the mean of EfficientNet-Lite0's final map, centred and scaled to one length, so that
    `d = sqrt(1 - cos)`.
    """
    options = {"embedding_dim": None, "threshold": PHOTOGRAPHS_THRESHOLD, "normalize_embeddings": True}
    model = SiameseNetwork("EfficientNetLite0", pretrained=True, pooling="avg", **options)
    model.pooling = CentredPooling(model.backbone[-1])
    return model.to(device).eval()


def network_for(config: Config, images: Iterable[Path]) -> tuple[SiameseNetwork, str]:
    """Load the network that compares these images, or the images in these folders: the configuration's trained network.
    While nothing is trained, ImageNet features compare. The network of the built-in scenes serves these scenes only.
    Also returns a sentence that says which one it is."""
    inside = config.data_path.resolve()
    scenes = all(path.resolve().is_relative_to(inside) for path in images)
    if os.path.isfile(config.trained_path / "model.pth") and (scenes or config.dataset != SYNTHETIC):
        return load_trained(config)
    keep_freed_memory()
    return photographs_network(choose_device(config)), (
        "compared by ImageNet features of the installed weights; train on your images for your own notion of similar"
    )
