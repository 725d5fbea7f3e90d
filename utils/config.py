"""Reads `config.yml`, checks it and resolves it for one dataset."""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from utils.system.errors import ConfigError
from utils.system.settings import Config

__all__ = ["ConfigError", "load_config"]

# An environment variable that `pytest --nbval` sets to a folder of its own (see conftest.py). Then the config.yml there
# is read, whatever the notebook asks for, and relative paths lie in it, so that no test run touches the user's files.
SANDBOX = "SIAMESE_SANDBOX"


def load_config(path: str | Path = "config.yml", dataset: str | None = None) -> Config:
    """Read a configuration file and return the settings of one dataset.

    Args:
        path: YAML file; relative paths inside it start at the current folder.
        dataset: name under `datasets:` whose block overrides the general settings; `None` takes the file's `dataset:`
            or, if there is none, the last part of `data_path`.

    Raises:
        ConfigError: the file cannot be read, a key or the dataset is unknown, or a value is wrong; a line per problem.

    Examples:
        >>> load_config("config.yml", dataset="Flowers").image.size
        (224, 224)
    """
    root = Path()
    if sandbox := os.environ.get(SANDBOX):
        root, path, dataset = Path(sandbox), Path(sandbox) / "config.yml", None
    settings = _resolve(_read_yaml(Path(path)), dataset, path)
    for key in ("data_path", "checkpoints_path", "outputs_path", "compare_path"):
        if isinstance(settings[key], str):
            settings[key] = root / os.path.expanduser(settings[key])
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, path) for problem in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """Reads YAML with three differences: values are text, of which pydantic makes numbers, as YAML reads a name such as
    0625 as 405, and No as False, and null only as no value, not as a name; a key written twice is an error, where YAML
    drops the first one; and so is an escape in double quotes, which turns a part of a Windows path into a line end."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, value in node.value:
            for name in [key, value] if key.value == "dataset" else [key]:
                if name.tag.endswith(":null") and name.value:
                    name.tag = "tag:yaml.org,2002:str"
            if str(key.value) in seen:
                raise yaml.composer.ComposerError(problem=f"{key.value}: written twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node

    def compose_scalar_node(self, anchor: str | None) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.style == '"' and re.search(r"[\x00-\x1f\x85\xa0]", node.value):  # of "D:\new\_train"
            raise yaml.composer.ComposerError(problem="an escape such as \\n or \\t", problem_mark=node.start_mark)
        return node


def _read_yaml(path: Path) -> dict[str, Any]:
    text = ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = yaml.load(text, _Loader)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; start Jupyter, or the command, in the repository's folder, or give another file "
            "as `config_path` or --config"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file as `config_path` or --config"
        ) from None
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise ConfigError(f"{path}: not UTF-8 text; save it again with the encoding UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        written = enumerate((row.split("#")[0] for row in text.splitlines()), start=1)  # without comments
        quoted = "; use single quotes, or /, for a path" if "escape" in str(error) or '\\"' in text else ""
        hints = (f"; in line {number}, {hint}" for number, row in written if (hint := _full_width(row)))
        raise ConfigError(
            f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}); correct that line or the one above"
            f"{quoted}{next(hints, '')}"
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `key: value` lines")
    return raw


# Chinese punctuation -> what YAML knows instead; it is easily mistaken for it.
HALF_WIDTH = dict(zip("：，、【】［］", ":,,[][]"))


def _full_width(text: str) -> str:
    """Advise what to write instead of the first Chinese punctuation mark in a text; "" if there is none."""
    if not (found := re.search(f"[{''.join(HALF_WIDTH)}]", text)):
        return ""
    instead = HALF_WIDTH[found[0]]
    return f"write {instead}{' and a space' if instead in ':,' else ''} instead of {found[0]}"


def _resolve(raw: dict[str, Any], dataset: str | None, path: str | Path) -> dict[str, Any]:
    """Overlay the general settings by the block of the chosen dataset, and fill in paths from its name."""
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
    for key, (harmless, _) in REMOVED_KEYS.items():
        if str(settings.get(key)).lower() == harmless:
            del settings[key]
    return settings


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged


# pydantic's types of error whose own message would puzzle a user -> a plainer one.
PLAIN_MESSAGES = {
    "model_type": "should be a block of settings, indented below the key; fill it or delete the key",
    "path_type": "should be a path",
    "int_parsing": "should be a whole number",
    "float_parsing": "should be a number",
    "bool_parsing": "should be True or False",
    "string_pattern_mismatch": "should be a plain name, without / or \\, without a dot or space at an end, and "
    "no device of Windows",
}

# Keys of earlier versions -> the value that changes nothing, as old files may hold it, and what to do about others.
REMOVED_KEYS = {
    "cache": ("true", "no key any more; delete it"),
    "num_processes": (
        "1",
        "no key any more; delete it, and start several processes by "
        "torchrun --nproc_per_node=N -m utils train NAME (docs/commands.md)",
    ),
}


def _explain(problem: dict[str, Any], path: str | Path) -> str:
    """Write a pydantic error as one line: file, key, what was expected, what was found."""
    *parents, last = problem["loc"] or [""]
    if problem["type"] == "extra_forbidden" and last in REMOVED_KEYS:
        message = REMOVED_KEYS[last][1]
    elif problem["type"] == "extra_forbidden":
        known = list(_fields_of(parents))
        near = difflib.get_close_matches(str(last), known, n=1)
        message = "unknown key; " + (f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}")
    elif problem["type"] in ("tuple_type", "too_long", "missing"):
        if problem["type"] == "missing":  # an item of a list, as every key has a default
            *parents, last = parents
        message = f"should be a list such as {list(_fields_of(parents)[last].default)}, got {problem['input']!r}"
    else:
        message = PLAIN_MESSAGES.get(
            problem["type"], problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        )
        if not isinstance(problem["input"], dict):
            message += f", got {problem['input']!r}"
    if hint := _full_width(f"{last} {problem['input']}"):
        message += f"; {hint}"
    return ": ".join(filter(None, (str(path), ".".join(map(str, [*parents, last])), message)))


def _fields_of(parents: list[Any]) -> dict[str, FieldInfo]:
    section: type[BaseModel] = Config
    for name in parents:
        section = section.model_fields[name].annotation
    return section.model_fields
