"""Transfer learning: what a pretrained backbone already knows is kept, and used before anything of it is changed.

First the head alone is trained, on features of the frozen backbone that are computed once. Fine-tuning then changes the
last blocks only, at fixed batch statistics.
"""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from utils.images.augmentation import Augmentation
from utils.images.cache import Images
from utils.machine import bfloat16_pays
from utils.Siamese import SiameseNetwork, eval_mode

HEAD_RATE = 1e-3  # peak learning rate of the head alone
VIEWS = 4  # of a training image: as it is, and three times augmented


@torch.no_grad()
def frozen_features(
    model: SiameseNetwork,
    images: Images,
    augment: Augmentation | None = None,
    batch_size: int = 64,
    verbose: bool = False,
    share: range | None = None,
) -> torch.Tensor:
    """What the backbone makes of uint8 images (N, 3, H, W), pooled, in eval mode: float (V, N, C) on the CPU, or
    (V, S, C) of a `share` of them alone.

    V is 1, or `VIEWS` where `augment` changes images: the first view is the images as they are, the others are
    augmented. Features for training may be computed in bfloat16.
    """
    share, count = range(len(images)) if share is None else share, len(images)
    images = images[share.start : share.stop]
    device, rounds = model.mean.device, VIEWS if augment is not None and augment.changes_images else 1
    features: list[list[torch.Tensor]] = [[] for _ in range(rounds)]
    with eval_mode(model), tqdm(total=rounds * len(images), desc="Computing features", disable=not verbose) as bar:
        for view in range(rounds):
            if view:
                augment.skip(share.start)
            for part in images.split(batch_size):
                batch = model.normalize(augment(part, progress=0.0) if view else part)
                with torch.autocast(device.type, torch.bfloat16, enabled=augment is not None and bfloat16_pays(device)):
                    maps = model.backbone(batch)
                features[view].append(model.pooling(maps).cpu())
                bar.update(len(part))
            if view:
                augment.skip(count - share.stop)
    return torch.stack([torch.cat(parts) for parts in features])


def early_blocks(model: SiameseNetwork) -> int:
    """Number of the first blocks of the backbone, up to where its maps have a sixteenth of the image's resolution: they
    find edges and textures, which any photographs share, and cost most of a backward pass."""
    height = model.image_size[0]
    return next((i for i, shape in enumerate(model.block_shapes()) if shape[2] <= -(-height // 16)), 0)


def freeze(model: SiameseNetwork, blocks: int) -> None:
    """Keep the first blocks of the backbone, and all its batch statistics, as they are in a network in training
    mode."""
    model.backbone[:blocks].eval().requires_grad_(False)
    for module in model.backbone.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def embed_late(model: SiameseNetwork, batch: torch.Tensor, blocks: int) -> torch.Tensor:
    """Embeddings (N, D) of preprocessed images (N, 3, H, W), for a backward pass that ends behind the first blocks."""
    device = batch.device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device)):
        maps = model.backbone[:blocks](batch)
    # On a CPU the backward pass of depthwise convolutions is slower in bfloat16 than in float32.
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device) and device.type != "cpu"):
        return model.embed_features(model.backbone[blocks:](maps.float() if device.type == "cpu" else maps))
