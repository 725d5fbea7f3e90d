"""The Siamese network and its contrastive loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from utils.images.frame import Frame, to_uint8
from utils.networks.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    WholeNetwork,
    backbone_blocks,
    brief,
    eval_mode,
    suiting,
)
from utils.networks.checkpoints import checkpoint_of, write_checkpoint
from utils.networks.pooling import AveragePooling, GeM
from utils.system.errors import ModelError

ENCODER = "an encoder of one's own"


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


class SiameseNetwork(nn.Module):
    """One network that embeds both images of a pair; the distance of the embeddings tells how alike the images are.

    backbone `A = f(x)` -> pooling `p` -> head (256, ReLU, `embedding_dim`) -> embedding z. Raw distance
    `D = ||z1 - z2||`, dissimilarity `d = min(D / margin, 1)`. Normalised embeddings have the length
    `||z|| = margin / sqrt(2)`, so those at a right angle, as of unrelated images, are a margin apart.

    Args:
        backbone_model: `EfficientNetLite0`, `MobileNet`, `ResNet50`, `Conv4`, or any network of timm by its name there
            (`resnet18`, `convnext_atto`, `vit_small_patch14_dinov2`, ...); or an encoder, see `around`.
        pretrained: start from ImageNet weights; those of EfficientNetLite0 are installed, others are downloaded once.
        pooling: `gem` or `avg` (the paper's) for feature maps; `auto` takes `gem` for these, and for a transformer its
            own pooling.
        embedding_dim: D, the length of an embedding; `None` leaves out the head: pooled features are the embedding.
        image_size: (height, width) in pixels that `preprocess` makes.
        weights: local file of weights for the backbone, as its library publishes them; instead of a download.
        margin: distance at which two images count as completely dissimilar.
        threshold: a pair is similar iff its dissimilarity lies below.
        mean: of the colour channels, for normalisation, on a scale of 0 to 1.
        std: their standard deviations, likewise.
        fit: how `preprocess` makes `image_size`, `stretch` or `pad`, see `utils.images.frame.Frame`.
        normalize_embeddings: whether embeddings are scaled to one length.
        levels: the values that become black and white in images of more than 8 bits; `None`: those of each image.

    Raises:
        ModelError: unknown backbone, weights that cannot be downloaded, read or matched, an image size that the
            backbone does not take.
    """

    def __init__(
        self,
        backbone_model: str | nn.Module = "MobileNet",
        pretrained: bool = False,
        pooling: str = "auto",
        embedding_dim: int | None = 16,
        image_size: tuple[int, int] = (224, 224),
        weights: str | Path | None = None,
        margin: float = 2.0,
        threshold: float = 0.5,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        fit: str = "stretch",
        normalize_embeddings: bool = False,
        levels: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("auto", "gem", "avg"):
            raise ValueError(f"pooling must be 'auto', 'gem' or 'avg', got {pooling!r}")
        if fit not in ("stretch", "pad"):
            raise ValueError(f"fit must be 'stretch' or 'pad', got {fit!r}")
        self.normalize_embeddings = normalize_embeddings
        self.image_size, self.margin, self.threshold = tuple(image_size), margin, threshold
        self.frame = Frame(self.image_size, fit, tuple(mean), levels)
        if isinstance(backbone_model, nn.Module):
            self.backbone, backbone_model = nn.Sequential(WholeNetwork(backbone_model)), ENCODER
        else:
            self.backbone = nn.Sequential(*backbone_blocks(backbone_model, pretrained, weights, self.image_size))
        features = self.block_shapes()[-1]
        if len(features) == 2 and pooling != "auto":
            raise ModelError(f"pooling: {pooling}: {backbone_model} pools its features itself; use pooling: auto")
        self.pooling = nn.Identity() if len(features) == 2 else AveragePooling() if pooling == "avg" else GeM()
        self.head = nn.Identity()
        if embedding_dim is not None:
            self.head = nn.Sequential(nn.Linear(features[1], 256), nn.ReLU(), nn.Linear(256, embedding_dim))
        self.embedding_dim = embedding_dim or features[1]
        self.architecture = dict(
            backbone_model=backbone_model,
            pooling=pooling,
            embedding_dim=embedding_dim,
            image_size=self.image_size,
            margin=margin,
            threshold=threshold,
            mean=tuple(mean),
            std=tuple(std),
            fit=fit,
            normalize_embeddings=normalize_embeddings,
            levels=levels,
        )
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.info: dict[str, Any] = {}
        self.to(memory_format=torch.channels_last)

    @classmethod
    def around(
        cls,
        encoder: nn.Module,
        image_size: tuple[int, int],
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        **options: Any,
    ) -> SiameseNetwork:
        """Make a network of an encoder of one's own: any module, (N, 3, H, W) -> (N, D), in eval mode.

        It embeds, compares, searches and explains by `occlusion`. It can neither be trained nor saved here.

        Args:
            encoder: its output is the embedding, normalised to one length.
            image_size: (height, width) in pixels of its input.
            mean, std: with which its input is normalised, on a scale of 0 to 1.
            options: `margin`, `threshold`, `fit` and `normalize_embeddings`, as of the class.

        Raises:
            ModelError: the output is not (N, D), or not finite.

        Examples:
            >>> encoder = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
            >>> SiameseNetwork.around(encoder, (32, 48)).embed(torch.ones(5, 3, 32, 48)).shape
            torch.Size([5, 12])
        """
        device = next((tensor.device for tensor in encoder.parameters()), torch.device("cpu"))
        images = torch.rand(2, 3, *image_size, generator=torch.Generator().manual_seed(0))
        try:
            with eval_mode(encoder), torch.no_grad():
                z = encoder(images.to(device))
            found = f"shape {tuple(z.shape)}" if z.isfinite().all() else "values that are not finite"
        except Exception as error:
            raise ModelError(f"encoder: it fails on images {tuple(images.shape)} ({brief(error)})") from None
        if z.ndim != 2 or len(z) != 2 or not z.isfinite().all():
            raise ModelError(f"encoder: of 2 images it should make numbers of shape (2, D), but made {found}")
        options = {"normalize_embeddings": True, "image_size": image_size, "mean": mean, "std": std} | options
        return cls(encoder.cpu(), embedding_dim=None, **options).to(device).eval()

    def block_shapes(self) -> list[torch.Size]:
        """Output shapes of the backbone's blocks for one image; modes and statistics stay as they are."""
        x, shapes = torch.zeros(1, 3, *self.image_size), []
        with eval_mode(self.backbone), torch.no_grad(), suiting(self.image_size):
            for block in self.backbone:
                x = block(x)
                shapes.append(x.shape)
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

    def activations(self, batch: torch.Tensor) -> torch.Tensor:
        """What Grad-CAM is computed at: the final map (N, C, h, w), or what a transformer's last stage is given. Behind
        that stage a class token no longer depends on the other tokens.

        Raises:
            ModelError: the inside of `an encoder of one's own` is unknown.
        """
        last = self.backbone[-1]
        if self.architecture["backbone_model"] == ENCODER:
            raise ModelError(f"method: 'distance' looks inside the network, which {ENCODER} hides; use 'occlusion'")
        if isinstance(self.pooling, nn.Identity):
            return last.before_last_stage(self.backbone[:-1](batch))
        return self.backbone(batch)

    def embed_activations(self, activations: torch.Tensor) -> torch.Tensor:
        """Embed images from their `activations` -> (N, D)."""
        if isinstance(self.pooling, nn.Identity):
            images = torch.zeros(len(activations), 3, *self.image_size, device=activations.device)
            activations = self.backbone[-1].after_last_stage(activations, images)
        return self.embed_features(activations)

    def as_map(self, values: torch.Tensor) -> torch.Tensor:
        """Arrange `activations`, or their gradient, as a map (N, C, h, w)."""
        return self.backbone[-1].as_map(values, self.image_size) if isinstance(self.pooling, nn.Identity) else values

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
        """Write weights, architecture, preprocessing and `info` (plain values only) to one file.

        Raises:
            ModelError: the network was made `around` an encoder, which only its own code can make again.
        """
        if self.architecture["backbone_model"] == ENCODER:
            raise ModelError(f"{path}: {ENCODER} cannot be saved here; keep its own file, and make it again")
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
