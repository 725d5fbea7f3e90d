"""The Siamese network and its contrastive loss; the network of a configuration, new or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from utils.images.frame import Frame, to_uint8
from utils.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, backbone_blocks, brief, eval_mode
from utils.networks.checkpoints import checkpoint_of, write_checkpoint
from utils.system.errors import ModelError
from utils.system.machine import choose_device, keep_freed_memory, seeded
from utils.system.settings import Config


class ContrastiveLoss(nn.Module):
    """`L = 1/2 [ (1 - y) D^2 + y max(0, m - D)^2 ]`, averaged (Hadsell et al., 2006; the paper's Eq. 1).

    Args:
        margin: m, the distance beyond which a dissimilar pair costs nothing.

    Examples:
        >>> ContrastiveLoss(margin=2.0)(torch.tensor([1.0, 0.5]), torch.tensor([0, 1]))
        tensor(0.8125)
    """

    def __init__(self, margin: float = 2.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, distance: torch.Tensor, label: torch.Tensor, balanced: bool = False) -> torch.Tensor:
        """Mean loss of pairs.

        Args:
            distance: raw distances D >= 0, shape (P,), not clipped.
            label: 0 similar, 1 dissimilar, shape (P,).
            balanced: similar and dissimilar pairs weigh the same in total, however many there are of each.
        """
        label = label.to(distance.dtype)
        loss = 0.5 * ((1 - label) * distance.square() + label * (self.margin - distance).clamp(min=0).square())
        if not balanced:
            return loss.mean()
        same_label = torch.where(label > 0, label.sum(), (1 - label).sum())  # for each pair: pairs with its label
        labels = (label.any() & ~label.all()) + 1  # different ones, 1 or 2
        return (loss / same_label).sum() / labels


class GeM(nn.Module):
    """Generalised-mean pooling `(mean_hw A^p)^(1/p)` (Radenovic et al., 2018, Eq. 3): (N, C, h, w) -> (N, C)."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps = p, eps

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.float().clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)


class AveragePooling(nn.Module):
    """Mean over positions, the paper's pooling: (N, C, h, w) -> (N, C)."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.float().mean((2, 3))


class SiameseNetwork(nn.Module):
    """One network that embeds both images of a pair; the distance of the embeddings tells how alike the images are.

    backbone `A = f(x)` -> pooling `p` -> head (256, ReLU, `embedding_dim`) -> embedding z. Raw distance
    `D = ||z1 - z2||`, dissimilarity `d = min(D / margin, 1)`. Normalised embeddings have the length
    `||z|| = margin / sqrt(2)`, so those at a right angle, as of unrelated images, are a margin apart.

    Args:
        backbone_model: `EfficientNetLite0`, `MobileNet`, `ResNet50`, `Conv4`, or any convolutional network of
            torchvision or timm by its name there (`resnet18`, `convnext_atto`, ...).
        pretrained: start from ImageNet weights; those of EfficientNetLite0 are installed, others are downloaded once.
        pooling: `gem` or `avg` (the paper's).
        embedding_dim: D, the length of an embedding.
        image_size: (height, width) in pixels that `preprocess` makes.
        weights: local file of weights for the backbone, as its library publishes them; instead of a download.
        margin: distance at which two images count as completely dissimilar.
        threshold: a pair is similar iff its dissimilarity lies below.
        mean: of the colour channels, for normalisation, on a scale of 0 to 1.
        std: their standard deviations, likewise.
        fit: how `preprocess` makes `image_size`, `stretch` or `pad`, see `utils.images.frame.Frame`.
        normalize_embeddings: whether embeddings are scaled to one length.

    Raises:
        ModelError: unknown backbone, weights that cannot be downloaded, read or matched.
    """

    def __init__(
        self,
        backbone_model: str = "MobileNet",
        pretrained: bool = False,
        pooling: str = "gem",
        embedding_dim: int = 16,
        image_size: tuple[int, int] = (224, 224),
        weights: str | Path | None = None,
        margin: float = 2.0,
        threshold: float = 0.5,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        fit: str = "stretch",
        normalize_embeddings: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("gem", "avg"):
            raise ValueError(f"pooling must be 'gem' or 'avg', got {pooling!r}")
        if fit not in ("stretch", "pad"):
            raise ValueError(f"fit must be 'stretch' or 'pad', got {fit!r}")
        self.architecture = dict(
            backbone_model=backbone_model,
            pooling=pooling,
            embedding_dim=embedding_dim,
            image_size=tuple(image_size),
            margin=margin,
            threshold=threshold,
            mean=tuple(mean),
            std=tuple(std),
            fit=fit,
            normalize_embeddings=normalize_embeddings,
        )
        self.normalize_embeddings = normalize_embeddings
        self.image_size, self.margin, self.threshold = tuple(image_size), margin, threshold
        self.frame = Frame(self.image_size, fit, tuple(mean))
        self.backbone = nn.Sequential(*backbone_blocks(backbone_model, pretrained, weights))
        self.pooling = GeM() if pooling == "gem" else AveragePooling()
        self.head = nn.Sequential(nn.Linear(self.block_shapes()[-1][1], 256), nn.ReLU(), nn.Linear(256, embedding_dim))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.info: dict[str, Any] = {}
        self.to(memory_format=torch.channels_last)

    def block_shapes(self) -> list[torch.Size]:
        """Output shapes (1, C, h, w) of the backbone's blocks for one image; modes and statistics stay as they are."""
        shapes, x = [], torch.zeros(1, 3, *self.image_size)
        try:
            with eval_mode(self.backbone), torch.no_grad():
                for block in self.backbone:
                    x = block(x)
                    shapes.append(x.shape)
        except RuntimeError as error:
            raise ModelError(
                f"image.size: {list(self.image_size)} is too small for this backbone ({brief(error)}); enlarge it"
            ) from None
        return shapes

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise the colours of uint8 images (N, 3, H, W) on any device -> float batch on the model's device."""
        images = images.to(self.mean.device, non_blocking=True)
        batch = (images.float() / 255 - self.mean) / self.std
        return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Prepare a PIL image of any size and mode for the network -> normalised float tensor (3, *image_size)."""
        return self.normalize(to_uint8(image, self.frame))

    def embed(self, batch: torch.Tensor) -> torch.Tensor:
        """Embed preprocessed images: (N, 3, H, W) -> (N, `embedding_dim`)."""
        return self.embed_features(self.backbone(batch))

    def embed_features(self, activations: torch.Tensor) -> torch.Tensor:
        """Embed images from their final feature maps: (N, C, h, w) -> (N, `embedding_dim`)."""
        return self.embed_pooled(self.pooling(activations))

    def embed_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """Embed images from their pooled features: (N, C) -> (N, `embedding_dim`)."""
        z = self.head(pooled)
        if not self.normalize_embeddings:
            return z
        return self.margin / 2**0.5 * F.normalize(z)

    def forward(self, batch1: torch.Tensor, batch2: torch.Tensor) -> torch.Tensor:
        """Dissimilarity in [0, 1] of each image of `batch1` and its partner in `batch2`: 2 x (N, 3, H, W) -> (N,)."""
        z1, z2 = self.embed(torch.cat([batch1, batch2])).chunk(2)
        return self.dissimilarity(embedding_distance(z1, z2))

    def dissimilarity(self, distance: torch.Tensor) -> torch.Tensor:
        """Convert raw distances D to dissimilarities `min(D / margin, 1)`, of the same shape."""
        return (distance / self.margin).clamp(max=1)

    def is_similar(self, distance: torch.Tensor) -> torch.Tensor:
        """Decide on pairs from their raw distances: similar if d lies below the threshold; bool of the same shape."""
        return self.dissimilarity(distance) < self.threshold

    def save(self, path: str | Path, **info: Any) -> None:
        """Write weights, architecture, preprocessing and `info` (plain values only) to one file."""
        write_checkpoint(path, self.state_dict(), self.architecture, info)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> SiameseNetwork:
        """Load a network that `save` wrote, in eval mode; what was saved beside it is in `model.info`.

        Raises:
            ModelError: no such file, or not a checkpoint of this project.
            RuntimeError: this machine has no such device.
        """
        with checkpoint_of(path) as checkpoint:
            # All weights are in this file: loading neither downloads nor opens another one.
            model = cls(**checkpoint["architecture"] | {"pretrained": False, "weights": None})
            model.load_state_dict(checkpoint["state_dict"])
            model.info = dict(checkpoint["info"])
        return model.to(device).eval()


def embedding_distance(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """Raw distance `D = ||z1 - z2||` along the last dimension; its gradient at D = 0 is 0, not NaN."""
    return (z1 - z2).square().sum(-1).add(1e-12).sqrt()


def all_pairs(embeddings: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare all images of a batch with each other, each pair once.

    Args:
        embeddings: shape (B, D).
        labels: class of each image, shape (B,).

    Returns:
        Raw distances and pair labels (0 same class, 1 another), each of shape (B (B - 1) / 2,).
    """
    i, j = torch.triu_indices(len(labels), len(labels), offset=1).to(embeddings.device)
    return embedding_distance(embeddings[i], embeddings[j]), (labels[i] != labels[j]).long()


def similarity_matrix(model: SiameseNetwork, embeddings: torch.Tensor) -> np.ndarray:
    """Similarity 1 - d of all images against all, shape (N, N), 1 on the diagonal."""
    distance = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    return (1 - model.dissimilarity(distance)).cpu().numpy()


def build_model(config: Config) -> SiameseNetwork:
    """Build the untrained network that a configuration describes; random weights depend on its seed only."""
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
    """Describe the weights with which training starts, as a part of a sentence."""
    if config.weights is not None:
        return f"the weights in {config.weights}"
    if config.pretrained:
        return "ImageNet weights, which tell 1,000 kinds of things on photographs apart"
    return "random weights, which know nothing: all is learnt from your images"


def load_trained(config: Config) -> tuple[SiameseNetwork, str]:
    """Load the network in `config.trained_path`, on the configured device and with the configured threshold.

    Returns:
        The network, and a sentence that says which one it is.

    Raises:
        ConfigError, ModelError: each says what to fix.
    """
    keep_freed_memory()
    path = config.trained_path / "model.pth"
    model = SiameseNetwork.load(path, choose_device(config))
    if missing := [name for name in ("classes", "config", "calibrated_threshold") if name not in model.info]:
        raise ModelError(f"{path}: lacks what training leaves beside a network ({', '.join(missing)}); train again")
    model.threshold = config.threshold
    note = f"{config.dataset}: trained on {', '.join(model.info['classes'])}"
    if config.trained_path != config.checkpoints_path:
        note += ". You have not trained yet: this network comes with the project"
    return model, note
