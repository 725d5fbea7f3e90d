"""The settings of a run: their names, defaults and allowed values.

The key names are those of the paper's public implementation, so that its users' files load unchanged.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "shipped"  # trained networks that come with the project

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class UserError(Exception):
    """Something the user can fix; the message says what and how, in a line."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: a notebook shows the message instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError):
    """A key, value or file of the configuration is wrong."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError("should be a number")
        return value


class Normalization(Section):
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


class ImageOptions(Section):
    """What happens to an image before the network; `size` is (height, width) in pixels."""

    size: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] = (224, 224)
    fit: Literal["stretch", "pad"] = "stretch"
    normalization: Normalization = Normalization()
    Channels: Literal[3] = 3
    HorizontalFlip: Probability = 0.5
    VerticalFlip: Probability = 0.0
    RandomRotationDegrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    RandomResizedCrop: Annotated[float, Field(gt=0, le=1)] = 1.0
    RandomErasing: Probability = 0.0
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Hyperparameters(Section):
    head_steps: Annotated[int, Field(ge=0)] = 300
    epochs: Annotated[int, Field(ge=0)] = 30
    additivity: NotNegative = 0.0
    verbose: bool = True
    batch_size: Annotated[int, Field(ge=2)] = 64
    num_workers: Annotated[int, Field(ge=0)] = 2
    optimizer: Literal["Adam", "AdamW", "SGD"] = "AdamW"
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    max_norm: Positive = 1.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self):
        if self.nesterov and self.optimizer == "SGD" and self.momentum == 0:
            raise ValueError("nesterov: True needs a momentum above 0")
        return self


class EarlyStoppingOptions(Section):
    patience: Count = 25
    min_delta: NotNegative = 0.0


class LRSchedulerOptions(Section):
    name: Literal["ReduceLROnPlateau", "OneCycle"] = "ReduceLROnPlateau"
    patience: Annotated[int, Field(ge=0)] = 15
    min_lr: NotNegative = 0.0
    factor: Fraction = 0.5
    verbose: bool = False


class Config(Section):
    """All settings of one dataset's run. Made by `load_config`; read-only."""

    dataset: str = Field(pattern=r"^[^.\\/:*?\"<>|][^\\/:*?\"<>|]*$")
    data_path: Path
    checkpoints_path: Path
    outputs_path: Path
    compare_path: Path = Path("Data/data_for_compare")
    backbone_model: str = "MobileNet"
    pretrained: bool = False
    weights: Path | None = None
    pooling: Literal["gem", "avg"] = "gem"
    embedding_dim: Annotated[int, Field(ge=2)] = 16
    normalize_embeddings: bool = False
    margin: Positive = 2.0
    threshold: Fraction = 0.5
    training_pairs: Literal["batch", "sampled"] = "batch"
    number_of_iterations: Count = 1
    test_size: Fraction = 0.1
    valid_size: Fraction = 0.1
    group_pattern: str | None = None
    on_bad_image: Literal["skip", "error"] = "skip"
    image: ImageOptions = ImageOptions()
    hyperparameters: Hyperparameters = Hyperparameters()
    early_stopping: EarlyStoppingOptions = EarlyStoppingOptions()
    LRScheduler: LRSchedulerOptions = LRSchedulerOptions()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    cuda: bool = True
    gpu: Annotated[int, Field(ge=0)] = 0

    @field_validator("weights")
    @classmethod
    def _weights_exist(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError("no such file")
        return path

    @field_validator("group_pattern")
    @classmethod
    def _pattern_captures(cls, pattern: str | None) -> str | None:
        try:
            captures = pattern is None or re.compile(pattern).groups == 1
        except re.error as error:
            raise ValueError(f"not a valid regular expression ({error})") from None
        if not captures:
            raise ValueError(
                "should have one pair of brackets ( ) around the part of the file name that images of one group share"
            )
        return pattern

    @property
    def transfer(self) -> bool:
        """Whether the backbone starts from weights that others have trained."""
        return self.pretrained or self.weights is not None

    @property
    def head_steps(self) -> int:
        """Steps in which the head alone is trained; 0 for a backbone of random weights, whose features say nothing."""
        return self.hyperparameters.head_steps if self.transfer else 0

    @model_validator(mode="after")
    def _something_is_trained(self):
        if self.hyperparameters.epochs == 0 and self.head_steps == 0:
            raise ValueError(
                "hyperparameters.epochs: 0 trains nothing here; use 1 or more, "
                "or pretrained: True with hyperparameters.head_steps above 0"
            )
        return self

    @model_validator(mode="after")
    def _batches_hold_both_kinds(self):
        if self.training_pairs == "batch" and self.hyperparameters.batch_size < 4:
            raise ValueError(
                "hyperparameters.batch_size: below 4 no dissimilar pair fits beside a similar one; "
                "use 4 or more, or training_pairs: sampled"
            )
        return self

    @property
    def trained_path(self) -> Path:
        """Where the trained network is: in `checkpoints_path`, or, while there is none and one comes with the project,
        there."""
        shipped = SHIPPED / self.dataset
        trained_here = (self.checkpoints_path / "model.pth").is_file()
        return shipped if shipped.is_dir() and not trained_here else self.checkpoints_path

    def save(self, path: Path) -> None:
        """Write the resolved settings as YAML that `load_config` reads back."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
