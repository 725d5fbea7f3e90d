"""Configuration: `config.yml` read, checked and resolved for one dataset.

The key names are those of the paper's public implementation, so that its users' files load unchanged.
"""
from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

# `pytest --nbval` points this at a folder of its own (see conftest.py): its config.yml is read, whatever
# the notebook asks for, and relative paths lie under it, so that no test run touches the user's files.
SANDBOX = "SIAMESE_SANDBOX"

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


class Normalization(Section):
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


class ImageOptions(Section):
    """What happens to an image before the network; `size` is (height, width) in pixels."""

    size: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] = (224, 224)
    normalization: Normalization = Normalization()
    Channels: Literal[3] = 3
    HorizontalFlip: Probability = 0.5
    VerticalFlip: Probability = 0.0
    RandomRotationDegrees: Annotated[float, Field(ge=0, le=180)] = 0.0
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

    dataset: str = Field(pattern=r"^[^\\/:*?\"<>|]+$")
    data_path: Path
    checkpoints_path: Path
    outputs_path: Path
    backbone_model: str = "MobileNet"
    pretrained: bool = False
    weights: Path | None = None
    pooling: Literal["gem", "avg"] = "gem"
    embedding_dim: Count = 16
    margin: Positive = 2.0
    threshold: Fraction = 0.5
    training_pairs: Literal["batch", "sampled"] = "batch"
    number_of_iterations: Count = 1
    test_size: Fraction = 0.1
    valid_size: Fraction = 0.1
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
        (128, 128)
    """
    root = Path()
    if sandbox := os.environ.get(SANDBOX):
        root, path, dataset = Path(sandbox), Path(sandbox) / "config.yml", None
    settings = _resolve(_read_yaml(Path(path)), dataset, path)
    for key in ("data_path", "checkpoints_path", "outputs_path"):
        if isinstance(settings[key], str):
            settings[key] = root / settings[key]
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, path) for problem in error.errors())) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; start Jupyter in the repository's folder or give `config_path`") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; save it again with the encoding UTF-8") from None
    except yaml.YAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}); mend the indentation or quotes") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `key: value` lines")
    return raw


def _resolve(raw: dict[str, Any], dataset: str | None, path: str | Path) -> dict[str, Any]:
    """General settings overlaid by the block of the chosen dataset; paths filled in from its name."""
    blocks = raw.pop("datasets", None) or {}
    if not isinstance(blocks, dict) or not all(isinstance(block, (dict, type(None))) for block in blocks.values()):
        raise ConfigError(f"{path}: datasets: expected a block of settings under each dataset's name")
    name = dataset or raw.get("dataset") or Path(str(raw.get("data_path", ""))).name
    if not name:
        raise ConfigError(f"{path}: dataset: missing; name one of {', '.join(blocks) or 'your folders under Data/'}")
    if blocks and name not in blocks:
        raise ConfigError(f"{path}: dataset: no block named '{name}' under datasets: (there are {', '.join(blocks)}); add one")
    if not blocks and dataset and dataset != raw.get("dataset", dataset):
        raise ConfigError(f"{path}: dataset: '{dataset}' was asked for, but the file is for '{raw['dataset']}' and has no datasets:")
    settings = _merge(raw, blocks.get(name) or {})
    settings["dataset"] = name
    for key, folder in (("data_path", "Data"), ("checkpoints_path", "checkpoints"), ("outputs_path", "outputs")):
        settings.setdefault(key, f"{folder}/{name}")
    return settings


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged


def _explain(problem: dict[str, Any], path: str | Path) -> str:
    """A pydantic error as one line: file, key, what was expected, what was found."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        *parents, last = problem["loc"]
        known = _keys_at(parents)
        near = difflib.get_close_matches(str(last), known, n=1)
        return f"{path}: {key}: unknown key; " + (f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}")
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{path}: {key + ': ' if key else ''}{message}, got {problem['input']!r}" if key else f"{path}: {message}"


def _keys_at(parents: list[Any]) -> list[str]:
    section: type[BaseModel] = Config
    for name in parents:
        section = section.model_fields[name].annotation
    return list(section.model_fields)
