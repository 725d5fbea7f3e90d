"""Transfer learning: features of a frozen backbone for training the head, and the blocks that fine-tuning freezes.

The head is trained first, on features that are computed once. Fine-tuning then trains the last blocks, too, at fixed
batch statistics.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.Siamese import SiameseNetwork, eval_mode
from utils.system.machine import bfloat16_pays


@torch.no_grad()
def frozen_features(model: SiameseNetwork, batches: Iterable[torch.Tensor], exact: bool) -> torch.Tensor:
    """Pooled features of the backbone in eval mode, (N, C), on the CPU.

    Args:
        batches: uint8 images, (B, 3, H, W) each.
        exact: compute in float32; otherwise in bfloat16 where that is faster, which is exact enough for training.
    """
    device, features = model.mean.device, [torch.empty(0, model.head[0].in_features)]
    with eval_mode(model):
        for images in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=not exact and bfloat16_pays(device)):
                maps = model.backbone(model.normalize(images))
            features.append(model.pooling(maps).cpu())
    return torch.cat(features)


def early_blocks(model: SiameseNetwork) -> int:
    """Number of the backbone's first blocks, before its maps have a sixteenth of the image's resolution.

    These blocks find edges and textures, which all photographs share, and most of a backward pass is spent in them.
    """
    height = model.image_size[0]
    return next((i for i, shape in enumerate(model.block_shapes()) if shape[2] <= -(-height // 16)), 0)


def freeze(model: SiameseNetwork, blocks: int) -> None:
    """Freeze the first blocks of the backbone, and all its batch statistics, of a network in training mode."""
    model.backbone[:blocks].eval().requires_grad_(False)
    for module in model.backbone.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def batch_statistics(model: nn.Module) -> list[torch.Tensor]:
    """The running statistics of those batch normalisations that are in training mode."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm) and module.training)
    return [buffer for norm in norms for buffer in norm.buffers()]


def embed_late(model: SiameseNetwork, batch: torch.Tensor, blocks: int) -> torch.Tensor:
    """Embeddings (N, D) of preprocessed images (N, 3, H, W), with gradients for all but the first blocks."""
    device = batch.device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device)):
        maps = model.backbone[:blocks](batch)
    # On a CPU the backward pass of depthwise convolutions is slower in bfloat16 than in float32.
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device) and device.type != "cpu"):
        return model.embed_features(model.backbone[blocks:](maps.float() if device.type == "cpu" else maps))
