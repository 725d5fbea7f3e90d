"""The network of a configuration: a new one, or the trained one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from utils.backbones import ModelError
from utils.dataset import prepare_folder
from utils.machine import choose_device, keep_freed_memory, seeded
from utils.settings import Config
from utils.Siamese import SiameseNetwork


def build_model(config: Config) -> SiameseNetwork:
    """The untrained network of a configuration; random weights depend on its seed only."""
    with seeded(config.seed):
        return SiameseNetwork(
            config.backbone_model,
            config.pretrained,
            config.pooling,
            config.embedding_dim,
            config.image.size,
            config.weights,
            config.margin,
            config.threshold,
            config.image.normalization.mean,
            config.image.normalization.std,
            config.image.fit,
            config.normalize_embeddings,
        )


def starting_point(config: Config) -> str:
    """What the network knows before it is trained, in a sentence."""
    if config.weights is not None:
        return f"the weights in {config.weights}"
    if config.pretrained:
        return "ImageNet weights, which tell 1,000 kinds of things on photographs apart"
    return "random weights, which know nothing: all is learnt from your images"


def load_trained(config: Config, paths: Sequence[Path] | None = None) -> tuple[SiameseNetwork, str]:
    """The network in `config.trained_path`, on the configured device and deciding at the configured threshold. The
    built-in scenes are drawn, if they are missing.

    Args:
        paths: images and folders that it is to look at; scenes are drawn only if one of these lies among them.

    Returns:
        The network, and a sentence that says which one it is.

    Raises:
        ConfigError, DataError, ModelError: each says what to fix.
    """
    keep_freed_memory()
    path = config.trained_path / "model.pth"
    model = SiameseNetwork.load(path, choose_device(config))
    if missing := [name for name in ("classes", "config", "calibrated_threshold") if name not in model.info]:
        raise ModelError(f"{path}: lacks what training leaves beside a network ({', '.join(missing)}); train again")
    model.threshold = config.threshold
    data = Path(os.path.abspath(config.data_path))
    if paths is None or any(Path(os.path.abspath(path)).is_relative_to(data) for path in paths):
        prepare_folder(config)
    note = f"{config.dataset}: trained on {', '.join(model.info['classes'])}"
    if config.trained_path != config.checkpoints_path:
        note += ". You have not trained yet: this network comes with the project"
    return model, note
