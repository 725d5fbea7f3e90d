"""Backbones: the feature extractor of a classifier as a sequence of blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import nn

from utils.settings import UserError

ALIASES = {"MobileNet": "mobilenet_v2", "ResNet50": "resnet50"}
INCEPTIONS = ("googlenet", "inception_v3")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ModelError(UserError):
    """A backbone, weights file or checkpoint cannot be used."""


def brief(error: Exception) -> str:
    """An error's first line, to be quoted in a message of ours."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def backbone_blocks(name: str, pretrained: bool = False, weights: str | Path | None = None) -> list[nn.Module]:
    """The feature extractor of a classifier as blocks that run one after the other, (N, 3, H, W) -> (N, C, h, w)."""
    if name == "Conv4":
        if pretrained:
            raise ModelError("pretrained: there are no ImageNet weights for Conv4; set pretrained: False")
        model = conv4()
    else:
        model = _classifier(ALIASES.get(name, name), pretrained and weights is None)
    blocks = list(_in_sequence([model.features] if hasattr(model, "features") else model.children()))
    if weights is not None:
        _load_weights(model, blocks, Path(weights))
    if name.startswith("densenet"):
        blocks.append(nn.ReLU())  # torchvision applies it outside of `features`
    if name in INCEPTIONS:
        blocks.insert(0, InceptionInput())
    return blocks


class InceptionInput(nn.Module):
    """Images normalised as ImageNet -> values in [-1, 1], (N, 3, H, W): what GoogLeNet's and Inception's weights expect
    (torchvision's `transform_input`)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", 2 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", 2 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1) - 1, persistent=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch * self.scale + self.shift


def conv4(width: int = 64) -> nn.Sequential:
    """Four blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 maximum (Vinyals et al., 2016).

    The last maximum is left to the pooling that follows, so the final feature map has stride 8.
    """
    layers: list[nn.Module] = []
    for channels in (3, width, width, width):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers[:-1])


def _classifier(name: str, pretrained: bool) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known or name.startswith(("vit", "swin", "maxvit")):
        raise ModelError(
            f"backbone_model: no convolutional network '{name}'; "
            "use Conv4, MobileNet, ResNet50 or a torchvision name such as resnet18"
        )
    options = {"aux_logits": False, "init_weights": False} if name in INCEPTIONS and not pretrained else {}
    try:
        return torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except (URLError, OSError, RuntimeError, HTTPException) as error:
        raise ModelError(
            f"pretrained: the weights of {name} could not be downloaded ({brief(error)}); "
            "check the network and run again, "
            "or give a local file as `weights: path`, or set `pretrained: False`"
        ) from None


def _load_weights(model: nn.Module, blocks: list[nn.Module], path: Path) -> None:
    """Fill the backbone from a file of the whole classifier's weights; the classifier itself is not needed.

    torchvision's DenseNet files name their layers `norm.1`, the modules are called `norm1`.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name): tensor for name, tensor in state.items()
        }
        backbone = {id(tensor) for block in blocks for tensor in (*block.parameters(), *block.buffers())}
        own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in backbone}
        unmatched = [
            name
            for name, tensor in own.items()
            if tensor.ndim and getattr(state.get(name), "shape", None) != tensor.shape
        ]
    except Exception as error:
        raise ModelError(
            f"weights: {path} is not a file of weights ({brief(error)}); use one that torchvision publishes"
        ) from None
    if unmatched:
        raise ModelError(
            f"weights: {path} is for another backbone ({len(unmatched)} tensors differ, {unmatched[0]} "
            "first); change backbone_model"
        )
    complete = model.state_dict()  # with the metadata that MNASNet insists on
    complete.update({name: state[name] for name in own if name in state})
    model.load_state_dict(complete)


def _in_sequence(modules: Iterable[nn.Module | None]) -> Iterable[nn.Module]:
    """The blocks of nested Sequentials up to the classifier's pooling, leaving out auxiliary classifiers."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _in_sequence(module)
        elif isinstance(module, (nn.AdaptiveAvgPool2d, nn.Linear, nn.Dropout)):
            return
        elif module is not None and "Aux" not in type(module).__name__:
            yield module
