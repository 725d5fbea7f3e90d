"""The Siamese network and its contrastive loss."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from utils.images.frame import Frame, to_uint8
from utils.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, Encoder, brief, eval_mode, make_backbone, suiting
from utils.system.errors import ModelError
from utils.system.files import replacing

ENCODER = "an encoder of one's own"
FITS = ("stretch", "pad")
SAVED = ("backbone_model", "pooling", "embedding_dim", "image_size", "margin", "threshold", "mean", "std", "fit")
SAVED += ("normalize_embeddings", "levels", "feature_weight")
FORMER_TENSORS = ("mean_embedding", "blurred_features", "removable")  # in files of earlier versions


class GeM(nn.Module):
    """Generalised-mean pooling `(mean_hw A^3)^(1/3)` (Radenovic et al., 2018, Eq. 3): (N, C, h, w) -> (N, C)."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.float().clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


class AveragePooling(nn.Module):
    """Mean over positions, the paper's pooling: (N, C, h, w) -> (N, C)."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.float().mean((2, 3))


POOLINGS = {"auto": GeM, "gem": GeM, "avg": AveragePooling}  # of feature maps


class ContrastiveLoss(nn.Module):
    """`L = 1/2 [ (1 - y) D^2 + y max(0, m - D)^2 ]`, averaged (Hadsell et al., 2006; the paper's Eq. 1). `margin`: m,
    the distance beyond which a dissimilar pair costs nothing.

    Examples:
        >>> ContrastiveLoss(margin=2.0)(torch.tensor([1.0, 0.5]), torch.tensor([0, 1]))
        tensor(0.8125)
    """

    def __init__(self, margin: float = 2.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, distance: torch.Tensor, label: torch.Tensor, balanced: bool = False) -> torch.Tensor:
        """Mean loss of pairs, of their raw distances D >= 0, (P,), and labels, 0 similar, 1 dissimilar, (P,). If
        `balanced`, similar and dissimilar pairs weigh the same in total, however many there are of each."""
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
        pooling: `gem` or `avg` (the paper's) for feature maps; `auto`: `gem`, or a transformer's own pooling.
        embedding_dim: D, the length of an embedding; `None` leaves out the head: pooled features are the embedding.
        weights: local file of weights for the backbone, instead of a download.
        margin: distance at which two images count as completely dissimilar.
        threshold: a pair is similar iff its dissimilarity lies below, so its similarity above `1 - threshold`.
        image_size, fit, mean, levels: how `preprocess` fits an image, see `utils.images.frame.Frame`.
        mean, std: of each colour channel, for normalisation, on a scale of 0 to 1.
        normalize_embeddings: whether embeddings are scaled to one length.
        feature_weight: w; above 0, an embedding in eval mode is `(z, w f) / sqrt(1 + w^2)`, with the backbone's pooled
            features f, scaled to the length of a normalised z: they tell classes apart that training has not seen.

    Raises:
        ModelError: unknown backbone, weights that cannot be downloaded or do not fit, unsuitable image size.
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
        feature_weight: float = 0.0,
    ) -> None:
        image_size, mean, std = tuple(image_size), tuple(mean), tuple(std)
        arguments = dict(locals())
        super().__init__()
        if pooling not in POOLINGS or fit not in FITS:
            raise ValueError(f"pooling must be one of {(*POOLINGS,)} and fit one of {FITS}, got {pooling!r}, {fit!r}")
        self.architecture = {key: arguments[key] for key in SAVED}  # makes the network again
        self.normalize_embeddings, self.feature_weight = normalize_embeddings, feature_weight
        self.image_size, self.margin, self.threshold = image_size, margin, threshold
        self.frame = Frame(image_size, fit, mean, levels)
        if isinstance(backbone_model, nn.Module):
            self.backbone, self.architecture["backbone_model"] = Encoder(backbone_model), ENCODER
        else:
            self.backbone = make_backbone(backbone_model, pretrained, weights, image_size)
        features = self.block_shapes()[-1]
        if len(features) == 2 and pooling != "auto":
            name = self.architecture["backbone_model"]
            raise ModelError(f"pooling: {pooling}: {name} pools its features itself; use pooling: auto")
        self.pooling = nn.Identity() if len(features) == 2 else POOLINGS[pooling]()
        self.head = nn.Identity()
        if embedding_dim is not None:
            self.head = nn.Sequential(nn.Linear(features[1], 256), nn.ReLU(), nn.Linear(256, embedding_dim))
        self.embedding_dim = (embedding_dim or features[1]) + (features[1] if feature_weight else 0)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.info: dict[str, Any] = {}
        self.to(memory_format=torch.channels_last)

    @classmethod
    def around(cls, encoder: nn.Module, image_size: tuple[int, int], **options: Any) -> SiameseNetwork:
        """Make a network of an encoder of one's own: any module, (N, 3, H, W) -> (N, D), whose output, normalised to
        one length, is the embedding. It compares, searches and explains by `occlusion`, and cannot be trained or saved.
        The encoder stays in eval mode.

        Args:
            image_size: (height, width) in pixels of its input.
            options: arguments of the class: `mean` and `std` with which its input is normalised, `margin`, ...

        Raises:
            ModelError: it fails on such images, or changes them, or its output is not float32 (N, D), or not finite.
        """
        images = torch.rand(2, 3, *image_size, generator=torch.Generator().manual_seed(0))
        for count in (2, 1):
            try:
                device = next((tensor.device for tensor in encoder.parameters()), torch.device("cpu"))
                given = images[:count].to(device, copy=True)
                with eval_mode(encoder), torch.no_grad():
                    z = encoder(given)
                made, fits = f"{z.dtype} {tuple(z.shape)}", z.shape == (count, z.shape[-1]) and z.dtype == torch.float32
            except Exception as error:
                made, fits = f"an error ({brief(error)})", False
            if not fits:
                wanted = f"should be a module that makes torch.float32 ({count}, D) of images {(count, 3, *image_size)}"
                raise ModelError(f"encoder: {wanted}, but it makes {made}")
            if not torch.equal(given.cpu(), images[:count]):
                raise ModelError("encoder: it changes the images that it is given; begin with images = images.clone()")
        options = {"normalize_embeddings": True, "embedding_dim": None, "image_size": image_size} | options
        model = cls(encoder.cpu(), **options).to(device).eval()
        z = model.backbone(images[:1].to(device))  # which raises an error if it is not finite
        # For `digest`: what computes may be no tensor of the module, as in a session of ONNX Runtime.
        model.architecture["outputs"] = [f"{number:.2g}" for number in z[0, :8].tolist()] + [z.shape[1]]
        return model

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
        z, length, w = self.head(pooled), self.margin / 2**0.5, self.feature_weight
        z = length * F.normalize(z) if self.normalize_embeddings else z
        if self.training or not w:
            return z
        return torch.cat([z, w * length * F.normalize(pooled)], dim=1) / (1 + w**2) ** 0.5

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

    def digest(self, *more: Any) -> str:
        """Hash all that determines embeddings, weights and architecture, and `more` plain values."""
        architecture = sorted((key, value) for key, value in self.architecture.items() if key != "threshold")
        digest = hashlib.sha256(repr((*more, architecture)).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path, **info: Any) -> None:
        """Write weights, architecture, preprocessing and `info` (plain values only) to one file; raises a UserError if
        it cannot be written, or if the network was made `around` an encoder."""
        if isinstance(self.backbone, Encoder):
            raise ModelError(f"{path}: {ENCODER} cannot be saved here; keep its own file, and make it again")
        state = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        whole = io.BytesIO()  # torch's own writer reports a full disk as an error of its own
        architecture = self.architecture | {"threshold": self.threshold}
        torch.save({"state_dict": state, "architecture": architecture, "info": info}, whole)
        with replacing(path) as file:
            file.write_bytes(whole.getbuffer())

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> SiameseNetwork:
        """Load a network that `save` wrote, from its file or the folder of its training, in eval mode; what was saved
        beside it is in `model.info`. The file holds plain tensors and values, and cannot run code. Raises a ModelError
        if it is not there, or no checkpoint."""
        path = Path(path, "model.pth") if os.path.isdir(path) else path
        if not os.path.isfile(path):  # Path.is_file raises where a name is too long
            raise ModelError(f"{path}: not there yet; run 01_Train_Siamese_model.ipynb first")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            model, state = cls(**checkpoint["architecture"]), checkpoint["state_dict"]
            model.load_state_dict({name: tensor for name, tensor in state.items() if name not in FORMER_TENSORS})
            model.info = dict(checkpoint["info"])
            if not all(tensor.isfinite().all() for tensor in state.values()):
                raise ValueError("NaN or infinity in its weights")
        except Exception as error:
            # Torch's own words advise to switch its protection off.
            reason = "no file of plain tensors" if "weights_only" in str(error) else brief(error)
            raise ModelError(f"{path}: not a checkpoint of this project ({reason}); train again") from None
        return model.to(device).eval()


def embedding_distance(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """Raw distance `D = ||z1 - z2||` along the last dimension; its gradient at D = 0 is 0, not NaN."""
    return (z1 - z2).square().sum(-1).add(1e-12).sqrt()


def all_pairs(embeddings: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare all images of a batch, each pair once: embeddings (B, D) and classes (B,) -> raw distances and pair
    labels (0 same class, 1 another), each of shape (B (B - 1) / 2,)."""
    i, j = torch.triu_indices(len(labels), len(labels), offset=1).to(embeddings.device)
    return embedding_distance(embeddings[i], embeddings[j]), (labels[i] != labels[j]).long()


def similarity_matrix(model: SiameseNetwork, embeddings: torch.Tensor) -> np.ndarray:
    """Similarity 1 - d of all images against all, shape (N, N), 1 on the diagonal."""
    distance = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    return (1 - model.dissimilarity(distance)).cpu().numpy()
