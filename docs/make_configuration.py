"""Writes docs/configuration.md from `utils/system/settings.py` and the `config.yml` that comes with the project.

python -m docs.make_configuration
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types as at
import yaml
from pydantic.fields import FieldInfo

from utils.system.settings import Config, FalseMatches, Section

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

[All pages](README.md)

`config.yml` holds general settings, and under `datasets:` a block for each dataset with what differs. `dataset:` names
the block that is used. A file of the paper's implementation loads unchanged. An unknown key or a wrong value is an
error that names it.

*Default* is the value of a key that your file does not have. Where the project's `config.yml` sets another one, that
follows. This page is made from the code: `python -m docs.make_configuration`.
"""
TABLE = """
## {title}

| key | meaning, and allowed values | default |
|---|---|---|
"""
SYMBOLS = {at.Ge: ("ge", ">="), at.Gt: ("gt", ">"), at.Le: ("le", "<="), at.Lt: ("lt", "<")}


def keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with a value, as `image.size`."""
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):  # a section
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def values(field: FieldInfo) -> str:
    """What a key may be: the words, or the kind and its range."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    if annotation is bool:
        return "`True`, `False`"
    kinds = {int: "whole number", float: "number", str: "text", re.Pattern: "text", Path: "path"}
    kinds |= {tuple[str, ...]: "list of names", FalseMatches: "`{false_matches: number}`"}
    parts = get_args(annotation) or (annotation,)
    if get_origin(annotation) is tuple:
        kind, metadata = f"{len(parts)} {kinds[_plain(parts[0])]}s", getattr(parts[0], "__metadata__", ())
    else:
        named = [(kinds[_plain(part)], getattr(part, "__metadata__", ())) for part in parts if part is not type(None)]
        kind, metadata = " or ".join(f"{kind} {_limits(limits)}".strip() for kind, limits in named), field.metadata
    return f"{kind} {_limits(metadata)}".strip()


def _limits(metadata: Any) -> str:
    return ", ".join(f"{sign} {getattr(limit, name)}" for limit in _flat(metadata) for name, sign in _bounds(limit))


def _plain(annotation: Any) -> type:
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def _flat(metadata: Any) -> Iterator[Any]:
    for item in metadata:
        yield from _flat(item.metadata) if isinstance(item, FieldInfo) else [item]


def _bounds(limit: Any) -> list[tuple[str, str]]:
    return [SYMBOLS[kind] for kind in SYMBOLS if isinstance(limit, kind)]


def written(value: Any) -> str:
    if value is None or value == "":
        return ""
    value = list(value) if isinstance(value, tuple) else value
    return f"`{value.as_posix() if isinstance(value, Path) else value}`"


def lookup(settings: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part, {})
    return "" if settings == {} else settings


def page() -> str:
    """The whole of docs/configuration.md: a table of general keys, and one of each section's."""
    shipped, tables = yaml.safe_load((ROOT / "config.yml").read_text(encoding="utf-8")), {}
    for key, field in keys(Config):
        section, _, name = key.partition(".") if "." in key else ("", "", key)
        default, here = "" if field.is_required() else written(field.default), written(lookup(shipped, key))
        if here and here != default and lookup(shipped, key) != field.default:  # 0 is 0.0
            default = f"{default}; `config.yml`: {here}".removeprefix("; ")
        text = " ".join(field.description.split())
        cells = [f"`{name}`", f"{text}.<br>*Values*: {values(field)}", default]
        tables.setdefault(section, []).append("| " + " | ".join(cells) + " |\n")
    titles = {section: f"Under `{section}:`" if section else "General" for section in tables}
    return HEAD + "".join(TABLE.format(title=titles[section]) + "".join(rows) for section, rows in tables.items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
