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
    """largest share of the validation pairs of two classes that may be called similar"""


class Normalization(Section):
    mean: tuple[Probability, Probability, Probability] = (0.485, 0.456, 0.406)
    """mean of each colour channel, from 0 to 1; the default suits the weights of every backbone"""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """standard deviation of each colour channel; the default suits the weights of every backbone"""


class ImageOptions(Section):
    """How an image is prepared for the network; `size` is (height, width) in pixels."""

    size: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] = (224, 224)
    """[height, width] in pixels, to which every image is resized"""
    fit: Literal["stretch", "pad"] = "stretch"
    """`stretch`: an image fills `image.size`; `pad`: it keeps its aspect ratio, and the mean colour fills the rest"""
    normalization: Normalization = Normalization()
    Channels: Annotated[int, Field(ge=3, le=3)] = 3
    """always 3: red, green, blue"""
    HorizontalFlip: Probability = 0.5
    """probability that a training image is mirrored, left to right"""
    VerticalFlip: Probability = 0.0
    """probability that a training image is mirrored, top to bottom"""
    RandomRotationDegrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """largest angle by which a training image is rotated at random, in either direction"""
    RandomResizedCrop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """smallest share of a training image's area that a random crop keeps; 1: no crops"""
    RandomErasing: Probability = 0.0
    """probability that a box of a training image is erased; it rises with the epochs, from 0 to this value"""
    CutMix: Probability = 0.0
    """probability, in fine-tuning, that a box of an image is covered by the same box of another image; the class stays.
    Maps then predict effects better; much more than 0.2 costs accuracy"""
    cover: Existing | None = None
    """regions of training images that are filled from their surroundings, so that the network does not see them: the
    `evidence.csv` of `python -m utils evidence`, or a folder of masks like `Data/<name>_masks`"""
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
    """from pretrained weights: steps in which the head is first trained alone, on features that are computed once"""
    epochs: Annotated[int, Field(ge=0)] = 30
    """epochs, after `head_steps`. From pretrained weights, they fine-tune the head and the later blocks, at fixed batch
    statistics, and 0 trains the head alone. From random weights, they train the whole network"""
    additivity: NotNegative = 0.0
    """weight, in `epochs`, of a loss that makes effects add up: the effect of a region comes near to the sum of the
    effects of its parts, so maps predict effects better. It takes a third of the training time"""
    verbose: bool = True
    """show progress bars"""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """images in a batch (`training_pairs: batch`), or pairs (`sampled`)"""
    num_workers: Annotated[int, Field(ge=0)] = 2
    """threads that read images, and processes that change them at random in training; small sets start no processes"""
    optimizer: Literal["Adam", "AdamW", "SGD"] = "AdamW"
    """optimizer, of PyTorch"""
    learning_rate: Positive = 1e-3
    """learning rate in `epochs`; under `OneCycle`, its peak. For the head alone, the peak is 1e-3"""
    weight_decay: NotNegative = 0.01
    """weight decay of the optimizer"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """momentum of `SGD`"""
    nesterov: bool = False
    """use Nesterov momentum in `SGD`"""
    max_norm: Positive = 1.0
    """largest norm of the gradient; a larger one is clipped"""


class EarlyStoppingOptions(Section):
    patience: Count = 25
    """fine-tuning stops after so many epochs without a better validation AUC"""
    min_delta: NotNegative = 0.0
    """how much higher an AUC must be to count as better"""


class LRSchedulerOptions(Section):
    name: Literal["ReduceLROnPlateau", "OneCycle"] = "ReduceLROnPlateau"
    """schedule of the learning rate: `OneCycle`, or `ReduceLROnPlateau`, which follows the validation AUC"""
    patience: Annotated[int, Field(ge=0)] = 15
    """for `ReduceLROnPlateau`: epochs without a better AUC, after which the learning rate is reduced"""
    min_lr: NotNegative = 0.0
    """for `ReduceLROnPlateau`: lowest learning rate"""
    factor: Fraction = 0.5
    """for `ReduceLROnPlateau`: factor by which the learning rate is multiplied"""
    verbose: bool = False
    """show the learning rate in the progress bar"""


class Config(Section):
    """All settings of a run on one dataset; `load_config` makes it; read-only."""

    dataset: str = Field(pattern=NAME)
    """name of the dataset, and of the block under `datasets:` whose settings override the general ones; if not given,
    the last part of `data_path`"""
    data_path: Path
    """folder of the images, with a sub-folder for each class; if not given, `Data/<dataset>`. Set it in a dataset's
    block: above the blocks, it holds for all datasets"""
    checkpoints_path: Path
    """folder of the trained network; if not given, `checkpoints/<dataset>`"""
    outputs_path: Path
    """folder of figures and tables; if not given, `outputs/<dataset>`"""
    compare_path: Path = Path("Data/data_for_compare")
    """folder of the images that 02 compares with each other"""
    backbone_model: str = "MobileNet"
    """`EfficientNetLite0` (for photographs), `Conv4` (for small images; it has no pretrained weights), `MobileNet`,
    `ResNet50`, or the name of a network in [timm](https://huggingface.co/docs/timm)"""
    pretrained: bool = False
    """start from ImageNet weights; those of `EfficientNetLite0` are installed, others are downloaded once"""
    weights: Existing | None = None
    """file with other weights for the backbone, such as timm or torchvision publishes"""
    pooling: Literal["auto", "gem", "avg"] = "auto"
    """pooling: `gem` (generalised mean), `avg` (mean, the paper's), or `auto` (`gem`, but a transformer's own)"""
    embedding_dim: Annotated[int, Field(ge=2)] = 16
    """how many numbers an embedding has"""
    normalize_embeddings: bool = False
    """scale all embeddings to the same length, so that two at a right angle are a margin apart"""
    feature_weight: NotNegative = 0.0
    """weight of the backbone's features, which are appended to an embedding; 0 appends none. 0.5 finds classes better
    that training has not seen. Embeddings then have about a thousand numbers more"""
    margin: Positive = 2.0
    """distance from which two images count as completely dissimilar, and a dissimilar pair adds nothing to the loss"""
    threshold: Annotated[
        Fraction | FalseMatches, _else("a number between 0 and 1, such as 0.5, or {false_matches: 0.01}")
    ] = 0.5
    """threshold of the dissimilarity: a pair is similar if its similarity lies above one minus this number. With
    `{false_matches: 0.01}`, it is chosen so that at most 1 % of validation pairs of two classes are called similar"""
    training_pairs: Literal["batch", "sampled"] = "batch"
    """`batch`: all pairs inside a batch; `sampled`: two pairs per image, redrawn in every epoch"""
    number_of_iterations: Count = 1
    """passes through the training images in an epoch"""
    test_size: Fraction = 0.1
    """share of each class's images for testing"""
    valid_size: Fraction = 0.1
    """share of the remaining images for validation"""
    unseen_classes: Annotated[
        Fraction | tuple[str, ...] | None, _else("a share of the classes such as 0.25, or a list of their names")
    ] = None
    """classes that are held out as a whole, so that 03 can score the network on new classes: a share of all classes,
    drawn by the seed, or a list of names. If classes are too small to be divided, validation and testing get whole
    classes, too"""
    group_pattern: Annotated[re.Pattern, AfterValidator(_captures_once)] | None = None
    """regular expression with one `( )` group. Files in which it captures the same text, such as images of one patient,
    stay in one split, whatever their classes. It is searched in the path below the class folder, then in the name"""
    on_bad_image: Literal["skip", "error"] = "skip"
    """`skip` trains without images that cannot be read, `error` stops before training; both name them"""
    image: ImageOptions = ImageOptions()
    hyperparameters: Hyperparameters = Hyperparameters()
    early_stopping: EarlyStoppingOptions = EarlyStoppingOptions()
    LRScheduler: LRSchedulerOptions = LRSchedulerOptions()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """seed of all random numbers; on the CPU of one machine, the same seed gives the same result"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto` takes CUDA if it is there, else Apple's MPS, else the CPU"""
    cuda: bool = True
    """`False` forbids a GPU under `device: auto`"""
    gpu: Annotated[int, Field(ge=0)] = 0
    """number of the CUDA card, from 0, as in nvidia-smi"""

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
        """`checkpoints_path` or, while it holds no network, the folder of the one that the project brings, if any."""
        shipped = SHIPPED / self.dataset
        trained_here = os.path.isfile(self.checkpoints_path / "model.pth")
        return shipped if os.path.isdir(shipped) and not trained_here else self.checkpoints_path

    def save(self, path: Path) -> None:
        """Write the resolved settings as YAML that `load_config` reads back."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
