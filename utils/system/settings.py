"""The settings of a run: their names, defaults and allowed values.

The key names are those of the paper's public implementation, so that its users' files load unchanged.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "shipped"  # trained networks that come with the project

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _existing(path: Path) -> Path:
    path = Path(os.path.expanduser(path))
    if not os.path.exists(path):
        raise ValueError("should be a path that exists, but there is nothing")
    return path


def _captures_once(pattern: re.Pattern) -> re.Pattern:
    if pattern.groups != 1:
        raise ValueError("should have one pair of brackets ( ) around the part of the path that a group shares")
    return pattern


def _else(expected: str) -> WrapValidator:
    """For a key that takes several kinds of values: a line in place of pydantic's line for each kind."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"should be {expected}") from None

    return WrapValidator(check)


Existing = Annotated[Path, AfterValidator(_existing)]
NAME = r'^[^. \\/:*?"<>|\x00-\x1f][^\\/:*?"<>|\x00-\x1f]*\Z'  # of a folder, also on Windows


class Section(BaseModel):
    # A string below a key describes it: docs/configuration.md is made of these.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, regex_engine="python-re", allow_inf_nan=False
    )


class FalseMatches(Section):
    false_matches: Fraction
    """share of the validation pairs of two classes that may be called similar"""


class Normalization(Section):
    mean: tuple[Probability, Probability, Probability] = (0.485, 0.456, 0.406)
    """mean of each colour channel, from 0 to 1; with the default, every backbone sees what its weights expect"""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """standard deviation of each colour channel; likewise"""


class ImageOptions(Section):
    """How an image is prepared for the network; `size` is (height, width) in pixels."""

    size: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] = (224, 224)
    """[height, width] in pixels; images are resized to it"""
    fit: Literal["stretch", "pad"] = "stretch"
    """`stretch`: every image fills `image.size`; `pad`: it keeps its aspect ratio, on a ground of the mean colour"""
    normalization: Normalization = Normalization()
    Channels: Annotated[int, Field(ge=3, le=3)] = 3
    """red, green, blue"""
    HorizontalFlip: Probability = 0.5
    """probability, in training"""
    VerticalFlip: Probability = 0.0
    """probability, in training"""
    RandomRotationDegrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """largest angle of a random rotation in training, either way"""
    RandomResizedCrop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """smallest share of an image's area that a random crop keeps in training; 1: no crops"""
    RandomErasing: Probability = 0.0
    """probability, in the last epoch (it rises to this), that a box of an image is blanked out; keeps evidence local"""
    CutMix: Probability = 0.0
    """probability, in fine-tuning, that a box of an image is covered by the same box of another image; its class stays.
    Maps then agree better with what happens; much more than 0.2 costs accuracy"""
    cover: Existing | None = None
    """regions that training does not see, filled from what surrounds them: the `evidence.csv` of
    `python -m utils evidence`, or a folder of masks as `Data/<name>_masks`"""
    brightness: NotNegative = 0.0
    """strength of random changes in training, as in torchvision's ColorJitter"""
    contrast: NotNegative = 0.0
    """as `brightness`"""
    saturation: NotNegative = 0.0
    """as `brightness`"""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """as `brightness`"""


class Hyperparameters(Section):
    head_steps: Annotated[int, Field(ge=0)] = 300
    """with pretrained weights: steps in which the head is first trained alone, on features that are computed once"""
    epochs: Annotated[int, Field(ge=0)] = 30
    """epochs of the whole network; with pretrained weights, of its later blocks, at fixed batch statistics; 0, which is
    then allowed, trains the head alone"""
    additivity: NotNegative = 0.0
    """weight, in these epochs, of a loss that teaches the network to add up effects: blurring a region then does what
    blurring its parts does, and maps are right; takes a third more time"""
    verbose: bool = True
    """progress bars"""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """images (`training_pairs: batch`) or pairs (`sampled`)"""
    num_workers: Annotated[int, Field(ge=0)] = 2
    """threads that read images; processes that change them at random in training, none if images are few and small"""
    optimizer: Literal["Adam", "AdamW", "SGD"] = "AdamW"
    """the optimizer, of PyTorch"""
    learning_rate: Positive = 1e-3
    """learning rate of `epochs` (its peak under `OneCycle`); the head alone is trained at 1e-3"""
    weight_decay: NotNegative = 0.01
    """weight decay of the optimizer"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """for `SGD`"""
    nesterov: bool = False
    """for `SGD`"""
    max_norm: Positive = 1.0
    """gradients are clipped to this norm"""


class EarlyStoppingOptions(Section):
    patience: Count = 25
    """epochs without a better validation AUC, after which training stops"""
    min_delta: NotNegative = 0.0
    """by how much an AUC must be higher to be better"""


class LRSchedulerOptions(Section):
    name: Literal["ReduceLROnPlateau", "OneCycle"] = "ReduceLROnPlateau"
    """`ReduceLROnPlateau` (of the validation AUC) or `OneCycle`"""
    patience: Annotated[int, Field(ge=0)] = 15
    """for `ReduceLROnPlateau`: epochs without a better AUC"""
    min_lr: NotNegative = 0.0
    """for `ReduceLROnPlateau`: the lowest learning rate"""
    factor: Fraction = 0.5
    """for `ReduceLROnPlateau`: what the learning rate is multiplied by"""
    verbose: bool = False
    """show the learning rate in the progress bar"""


class Config(Section):
    """All settings of a run on one dataset; `load_config` makes it; read-only."""

    dataset: str = Field(pattern=NAME)
    """name of the data; the block under `datasets:` whose settings override the general ones; if not given, the last
    part of `data_path`"""
    data_path: Path
    """folder with a folder of images per class; set it inside a dataset's block, or all datasets share it. If not
    given, `Data/<dataset>`"""
    checkpoints_path: Path
    """folder of the trained network; if not given, `checkpoints/<dataset>`"""
    outputs_path: Path
    """folder of figures and tables; if not given, `outputs/<dataset>`"""
    compare_path: Path = Path("Data/data_for_compare")
    """the folder of images that 02 compares"""
    backbone_model: str = "MobileNet"
    """`EfficientNetLite0` (photographs), `Conv4` (small images, random weights), `MobileNet`, `ResNet50`, or a network
    of [timm](https://huggingface.co/docs/timm) by its name there"""
    pretrained: bool = False
    """start from ImageNet weights; those of `EfficientNetLite0` are installed, others are downloaded once"""
    weights: Existing | None = None
    """file with other weights for the backbone, as its library publishes them"""
    pooling: Literal["auto", "gem", "avg"] = "auto"
    """of feature maps: `gem` (generalised mean) or `avg` (the paper's); `auto`: `gem`, or a transformer's own"""
    embedding_dim: Annotated[int, Field(ge=2)] = 16
    """numbers per embedding"""
    normalize_embeddings: bool = False
    """scale embeddings to one length, so that those at a right angle are a margin apart"""
    feature_weight: NotNegative = 0.0
    """weight of the backbone's own features, which are appended to an embedding: 0.5 tells apart classes better that
    training has not seen, and loses nothing on others; embeddings then have some thousand numbers more"""
    margin: Positive = 2.0
    """distance from which on a dissimilar pair adds nothing to the loss"""
    threshold: Annotated[
        Fraction | FalseMatches, _else("a number between 0 and 1, such as 0.5, or {false_matches: 0.01}")
    ] = 0.5
    """of the dissimilarity: a pair is similar if its similarity lies above one minus this. Or `{false_matches: 0.01}`:
    set so that this share of all validation pairs of two classes is called similar"""
    training_pairs: Literal["batch", "sampled"] = "batch"
    """`batch`: all pairs inside a batch; `sampled`: two pairs per image, redrawn in every epoch"""
    number_of_iterations: Count = 1
    """rounds through the training images in an epoch"""
    test_size: Fraction = 0.1
    """share of every class's images for testing"""
    valid_size: Fraction = 0.1
    """share of the rest for validation"""
    unseen_classes: Annotated[
        Fraction | tuple[str, ...] | None, _else("a share of the classes such as 0.25, or a list of their names")
    ] = None
    """classes that are held out as a whole, so that 03 can measure how the network does on new ones: a share, drawn by
    the seed, or a list of names. Where classes are too small to be divided, whole ones are for validation and testing,
    too"""
    group_pattern: Annotated[re.Pattern, AfterValidator(_captures_once)] | None = None
    """regular expression with one `( )` group, searched in the path below the class folder, or else in the file name:
    files that agree in it, such as images of one patient, stay in one split, also across classes"""
    on_bad_image: Literal["skip", "error"] = "skip"
    """images that cannot be read are named, with the reason: `skip` trains without them, `error` stops before"""
    image: ImageOptions = ImageOptions()
    hyperparameters: Hyperparameters = Hyperparameters()
    early_stopping: EarlyStoppingOptions = EarlyStoppingOptions()
    LRScheduler: LRSchedulerOptions = LRSchedulerOptions()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """same seed, same machine: same result"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto` takes CUDA, then Apple's MPS, then the CPU"""
    cuda: bool = True
    """whether `auto` may take a GPU"""
    gpu: Annotated[int, Field(ge=0)] = 0
    """which one, numbered as in nvidia-smi"""

    @property
    def transfer(self) -> bool:
        """Whether the backbone starts from trained weights."""
        return self.pretrained or self.weights is not None

    @property
    def head_steps(self) -> int:
        """Steps in which the head is trained alone; 0 for a backbone of random weights, whose features are useless."""
        return self.hyperparameters.head_steps if self.transfer else 0

    @model_validator(mode="after")
    def _can_be_trained(self):
        if self.hyperparameters.epochs == 0 and self.head_steps == 0:
            instead = "use 1 or more, or pretrained: True with hyperparameters.head_steps above 0"
            raise ValueError(f"hyperparameters.epochs: 0 trains nothing here; {instead}")
        if self.training_pairs == "batch" and self.hyperparameters.batch_size < 4:
            why = "below 4 no dissimilar pair fits beside a similar one"
            raise ValueError(f"hyperparameters.batch_size: {why}; use 4 or more, or training_pairs: sampled")
        return self

    @property
    def trained_path(self) -> Path:
        """The folder of the trained network: `checkpoints_path`, or, while that holds none, the network that comes with
        the project, if there is one."""
        shipped = SHIPPED / self.dataset
        trained_here = os.path.isfile(self.checkpoints_path / "model.pth")
        return shipped if os.path.isdir(shipped) and not trained_here else self.checkpoints_path

    def save(self, path: Path) -> None:
        """Write the resolved settings as YAML that `load_config` reads back."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
