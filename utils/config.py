"""Reads `config.yml`, checks it and resolves it for one dataset."""

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

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
    folders = {"data_path": "Data", "checkpoints_path": "checkpoints", "outputs_path": "outputs"}
    places = {key: f"{folder}/{settings['dataset']}" for key, folder in folders.items()}
    for key, place in (places | {"compare_path": "Data/data_for_compare"}).items():
        if isinstance(given := settings.get(key, place), str):
            settings[key] = root / os.path.expanduser(given)
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, path) for problem in error.errors())) from None


class _Loader(yaml.SafeLoader):
    """Reads values as text, of which pydantic makes numbers, as YAML reads a name such as 0625 as 405, and No as False;
    null is no value, but may be a name. Errors are a key written twice, of which YAML drops the first one, and an
    escape in double quotes, which turns a part of a Windows path into a line end."""

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
    except OSError as error:
        advice = "start in the repository's folder, or give another file as `config_path` or --config"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise ConfigError(f"{path}: not UTF-8 text; save it again with the encoding UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        problem = f"not valid YAML ({getattr(error, 'problem', error)}); correct that line or the one above"
        quoted = "; use single quotes, or /, for a path" if "escape" in str(error) or '\\"' in text else ""
        raise ConfigError(f"{path}{line}: {problem}{quoted}{_full_width(re.sub('#.*', '', text))}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected `key: value` lines")
    return raw


# Chinese punctuation -> what YAML knows instead; it is easily mistaken for it.
HALF_WIDTH = dict(zip("：，、【】［］", ":,,[][]"))


def _full_width(text: str) -> str:
    """Advise what to write instead of the first Chinese punctuation mark in a text, if there is one."""
    if not (found := re.search(f"[{''.join(HALF_WIDTH)}]", text)):
        return ""
    instead = HALF_WIDTH[found[0]]
    return f"; write {instead}{' and a space' if instead in ':,' else ''} instead of {found[0]}"


def _resolve(raw: dict[str, Any], dataset: str | None, path: str | Path) -> dict[str, Any]:
    """Overlay the general settings by the block of the chosen dataset."""
    blocks = raw.pop("datasets", None) or {}
    if not isinstance(blocks, dict) or not all(isinstance(block, (dict, type(None))) for block in blocks.values()):
        raise ConfigError(f"{path}: datasets: expected a block of settings under each dataset's name")
    blocks = {str(name): block for name, block in blocks.items()}
    own = str(raw.get("dataset") or Path(str(raw.get("data_path") or "")).name)
    name = str(dataset or own)
    if not name:
        raise ConfigError(f"{path}: dataset: missing; name one of {', '.join(blocks) or 'your folders under Data/'}")
    if name not in (known := list(blocks) or [own or name]):
        problem = f"no block named '{name}' under datasets: (the file is for {', '.join(known)})"
        raise ConfigError(f"{path}: dataset: {problem}; add one")
    return _merge(raw, blocks.get(name) or {}) | {"dataset": name}


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
    "tuple_type": "should be a list such as [224, 224]",
    "missing": "a number is missing",  # of a list, as every key has a default
    "bool_parsing": "should be True or False",
    "string_pattern_mismatch": "should be a plain name, without / or \\, and not begin with a dot or space",
}


def _explain(problem: dict[str, Any], path: str | Path) -> str:
    """Write a pydantic error as one line: file, key, what was expected, what was found."""
    *parents, last = problem["loc"] or [""]
    if problem["type"] == "extra_forbidden":
        section: type[BaseModel] = Config
        for name in parents:
            section = section.model_fields[name].annotation
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(last), known, n=1)
        message = "unknown key; " + (f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}")
    else:
        plain = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = PLAIN_MESSAGES.get(problem["type"], plain)
        if not isinstance(problem["input"], dict):
            message += f", got {problem['input']!r}"
    message += _full_width(f"{last} {problem['input']}")
    return ": ".join(filter(None, (str(path), ".".join(map(str, [*parents, last])), message)))
