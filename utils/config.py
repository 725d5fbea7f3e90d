"""Configuration: `config.yml` read, checked and resolved for one dataset.

The key names are those of the paper's public implementation, so that its users' files load unchanged.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

# `pytest --nbval` points this at a folder of its own (see conftest.py): its config.yml is read, whatever
# the notebook asks for, and relative paths lie under it, so that no test run touches the user's files.
SANDBOX = "SIAMESE_SANDBOX"
SHIPPED = Path(__file__).parents[1] / "checkpoints" / "shipped"  # trained networks that come with the project

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class UserError(Exception):
    """Something the user can mend; the message says what and how, in a line."""

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
    epochs: Count = 30
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
    margin: Positive = 2.0
    threshold: Fraction = 0.5
    training_pairs: Literal["batch", "sampled"] = "batch"
    number_of_iterations: Count = 1
    test_size: Fraction = 0.1
    valid_size: Fraction = 0.1
    group_pattern: str | None = None
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


def load_config(path: str | Path = "config.yml", dataset: str | None = None) -> Config:
    """Read a configuration file and resolve it for one dataset.

    Args:
        path: YAML file; relative paths inside it start at the current folder.
        dataset: name under `datasets:` whose block overrides the general settings; `None` takes the
            file's own `dataset:`, or, without one, the last part of `data_path`.

    Raises:
        ConfigError: unreadable file, unknown key or dataset, or a value of the wrong kind. One line per problem.

    Example:
        >>> load_config("config.yml", dataset="Flowers").image.size
        (224, 224)
    """
    root = Path()
    if sandbox := os.environ.get(SANDBOX):
        root, path, dataset = Path(sandbox), Path(sandbox) / "config.yml", None
    settings = _resolve(_read_yaml(Path(path)), dataset, path)
    for key in ("data_path", "checkpoints_path", "outputs_path", "compare_path"):
        if isinstance(settings[key], str):
            settings[key] = root / Path(settings[key]).expanduser()
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, path) for problem in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, where YAML itself drops the first, say after copying a dataset's block."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.composer.ComposerError(problem=f"{key.value}: written twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; start Jupyter in the repository's folder or give `config_path`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); `config_path` must be a YAML file") from None
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise ConfigError(f"{path}: not UTF-8 text; save it again with the encoding UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise ConfigError(
            f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}); mend that line or the one above"
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `key: value` lines")
    return raw


def _resolve(raw: dict[str, Any], dataset: str | None, path: str | Path) -> dict[str, Any]:
    """General settings overlaid by the block of the chosen dataset; paths filled in from its name."""
    blocks = raw.pop("datasets", None) or {}
    if not isinstance(blocks, dict) or not all(isinstance(block, (dict, type(None))) for block in blocks.values()):
        raise ConfigError(f"{path}: datasets: expected a block of settings under each dataset's name")
    blocks = {str(name): block for name, block in blocks.items()}
    own = str(raw.get("dataset") or Path(str(raw.get("data_path") or "")).name)
    name = str(dataset or own)
    if not name:
        raise ConfigError(f"{path}: dataset: missing; name one of {', '.join(blocks) or 'your folders under Data/'}")
    if blocks and name not in blocks:
        raise ConfigError(
            f"{path}: dataset: no block named '{name}' under datasets: (there are {', '.join(blocks)}); add one"
        )
    if not blocks and own and name != own:
        raise ConfigError(
            f"{path}: dataset: '{name}' was asked for, but the file is for '{own}'; "
            f"add a block '{name}' under datasets:"
        )
    settings = _merge(raw, blocks.get(name) or {})
    settings["dataset"] = name
    for key, folder in (("data_path", "Data"), ("checkpoints_path", "checkpoints"), ("outputs_path", "outputs")):
        settings.setdefault(key, f"{folder}/{name}")
    settings.setdefault("compare_path", "Data/data_for_compare")
    return settings


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged


# Where pydantic's own words would puzzle a user: by its type of error.
PLAIN = {
    "model_type": "should be a block of settings, indented below the key; fill it or delete the key",
    "path_type": "should be a path",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "bool_parsing": "should be True or False",
    "string_pattern_mismatch": "should be a plain name, without / or \\",
}


def _explain(problem: dict[str, Any], path: str | Path) -> str:
    """A pydantic error as one line: file, key, what was expected, what was found."""
    *parents, last = problem["loc"] or [""]
    if problem["type"] == "extra_forbidden":
        known = list(_fields_of(parents))
        near = difflib.get_close_matches(str(last), known, n=1)
        message = "unknown key; " + (f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}")
    elif problem["type"] in (
        "tuple_type",
        "too_long",
        "missing",
    ):  # every key has a default, so only a list lacks something
        if problem["type"] == "missing":
            *parents, last = parents
        message = f"should be a list such as {list(_fields_of(parents)[last].default)}, got {problem['input']!r}"
    else:
        message = PLAIN.get(problem["type"], problem["msg"].removeprefix("Value error, ").removeprefix("Input "))
        if not isinstance(problem["input"], dict):
            message += f", got {problem['input']!r}"
    return ": ".join(filter(None, (str(path), ".".join(map(str, [*parents, last])), message)))


def _fields_of(parents: list[Any]) -> dict[str, FieldInfo]:
    section: type[BaseModel] = Config
    for name in parents:
        section = section.model_fields[name].annotation
    return section.model_fields
