"""Distances of pairs by methods that need no training, to compare the trained network with."""

from contextlib import suppress

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from utils.evaluate.scores import SplitDistances, bootstrap_intervals, calibrate_threshold, score_pairs
from utils.images.cache import StoredImages
from utils.images.pairs import Pairs
from utils.networks.backbones import make_backbone
from utils.Siamese import SiameseNetwork
from utils.system.errors import ModelError
from utils.system.machine import seeded
from utils.system.settings import Config


def colour_histograms(images: StoredImages) -> np.ndarray:
    """The share of pixels in each of 8 x 8 x 8 boxes of RGB (Swain & Ballard, 1991): uint8 (N, 3, H, W) -> (N, 512)."""
    boxes = (np.ravel_multi_index(image.flatten(1).numpy() // 32, (8, 8, 8)) for image in images)
    return np.stack([np.bincount(box, minlength=512) / len(box) for box in boxes])


@torch.no_grad()
def pooled_features(model: SiameseNetwork, backbone: nn.Module, images: StoredImages, batch_size: int) -> torch.Tensor:
    """Average the final feature map of `backbone` over positions (a transformer pools its features itself): uint8
    images, normalised as for `model`, -> float64 (N, C). Not by GeM, whose lower bound would hide the features of
    random weights, which may be tiny."""
    backbone = backbone.to(model.mean.device).eval()
    maps = (backbone(model.normalize(batch)).float() for batch in images.split(batch_size))
    return torch.cat([(part.mean((2, 3)) if part.ndim == 4 else part).cpu() for part in maps]).double()


def baseline_distances(
    images: StoredImages, pairs: Pairs, model: SiameseNetwork, config: Config
) -> dict[str, np.ndarray]:
    """Compute the distances (P,) of pairs of uint8 images (N, 3, H, W) by each training-free method: colour histogram
    (Hellinger), and pooled features of the backbone as it was before training (cosine)."""
    shares, first, second = np.sqrt(colour_histograms(images)), pairs.first, pairs.second
    distances = {"colour histogram": np.linalg.norm(shares[first] - shares[second], axis=1) / np.sqrt(2)}
    name, size = model.architecture["backbone_model"], model.image_size
    with seeded(config.seed), suppress(ModelError):  # weights that cannot be had now: one row less
        backbone = make_backbone(name, config.pretrained, config.weights, size)
        features = pooled_features(model, backbone, images, config.hyperparameters.batch_size)
        # Features of random weights may be tiny; features that are zero everywhere have a distance of 1.
        cosine = F.cosine_similarity(features[first], features[second], eps=1e-60)
        distances["backbone before training"] = 1 - cosine.numpy()
    return distances


def compare_methods(valid: SplitDistances, test: SplitDistances, model: SiameseNetwork, config: Config) -> pd.DataFrame:
    """Compare the trained network with the training-free methods on the same test pairs: a row per method, with `AUC`,
    its 95 % interval from `AUC low` to `AUC high`, `accuracy` at the threshold that is calibrated on the method's own
    distances of the validation pairs, and `average precision`."""
    calibration, distances = (
        {"trained network": split.dissimilarity, **baseline_distances(split.images, split.pairs, model, config)}
        for split in (valid, test)
    )
    columns, rows = ["AUC", "AUC low", "AUC high", "accuracy", "average precision"], {}
    for name, values in distances.items():
        threshold = calibrate_threshold(calibration[name], valid.pairs.label)
        scores = score_pairs(values, test.pairs.label, threshold)
        interval = bootstrap_intervals(values, test.pairs, threshold, config.seed)["auc"]
        rows[name] = (scores.auc, *interval, scores.accuracy, scores.average_precision)
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
