"""Lists a folder of images, one sub-folder per class, or per split with its classes inside, and tells what is wrong."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from utils.images.reading import is_named_as_image
from utils.system.errors import DataError

NOT_LISTED = "a folder that cannot be listed; change its access rights"
NO_IMAGE = "not named as an image; save it as JPEG or PNG if it is one"
NO_TEXT = "a name that is not valid text; rename it"  # it could not be written to split.csv
LINKED = "a link to a folder, which is not followed; put the folder itself there"
SPLITS = ("train", "valid", "test")
SPLIT_FOLDER = re.compile(r"(train|val|test)(ing|id|idation)?([ _-]?(set|data|images))?", re.IGNORECASE)


def given_splits(data_path: Path) -> dict[str, str]:
    """Find the folders of a set that is divided already, name -> split; none if there is no folder for training with
    class folders in it, or none beside it for another split."""
    found = {}
    for entry in sorted(data_path.iterdir()):
        if (named := SPLIT_FOLDER.fullmatch(entry.name)) and entry.is_dir():
            found[entry.name] = named[1].lower().replace("val", "valid")
    train = [data_path / name for name, split in found.items() if split == "train"]
    classes = sum(path.is_dir() for folder in train for path in folder.iterdir())
    return found if classes > 1 and len(set(found.values())) > 1 else {}


def scan(data_path: Path) -> tuple[pd.DataFrame, list[str]]:
    """List the image files of a folder with one sub-folder per class; opens none of them.

    Returns:
        A table, sorted: `file` (path relative to `data_path`, with forward slashes), `label` (its class folder) and, of
        a set that is divided already, `split`; and a line for skipped files of each suffix. Hidden files do not count.

    Raises:
        DataError: no such folder, or fewer than two classes with images.
    """
    if not os.path.isdir(data_path):
        advice = f"put the images into {data_path}/<class>/ or correct data_path in config.yml"
        raise DataError(f"{data_path}: no such folder; {advice}")
    rows, others = [], {}
    try:
        given = given_splits(data_path)
        entries = sorted(_entries(data_path, given), key=lambda entry: entry[0].as_posix())  # on every system
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); change its access rights") from None
    for path, reason in entries:
        name = path.relative_to(data_path)
        if reason:
            others.setdefault((name.suffix, reason), []).append(printable(name.as_posix()))
        else:
            rows.append((name.as_posix(), class_name(name.parts[bool(given)]), given.get(name.parts[0])))
    table = pd.DataFrame(rows, columns=["file", "label", "split"])
    table = table if given else table.drop(columns="split")
    skipped = [f"{first_names(names)}: {reason}" for (_, reason), names in others.items()]
    check_two_classes(table, data_path, skipped[:5])  # there may be thousands beside the class folders
    return table, skipped


def class_name(folder: str) -> str:
    """Name the class of a folder: without spaces at its ends, and with accents as parts of letters."""
    return unicodedata.normalize("NFC", folder).strip() or folder


def _entries(data_path: Path, given: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """Yield all files, and the folders that are not searched, as `_below`; `given` are the folders of the splits."""
    roots = [data_path / name for name in given] or [data_path]
    for entry in (entry for root in {data_path, *roots} for entry in _listed(root) if entry not in roots):
        if entry.is_symlink() and not entry.exists():  # a class, perhaps, on a disk that is not there
            yield entry, "a link to nowhere; delete or correct it"
        elif not entry.is_dir():
            yield entry, "not inside a class folder; move it into one if it is an image"
        elif entry.parent not in roots:
            yield entry, f"a folder beside those of the splits ({', '.join(given)}); move it into one if it is a class"
        else:
            yield from _below(entry)


def _listed(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _below(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the files of a folder and its sub-folders, without hidden ones, each with the reason why it is skipped,
    `None` for images; and folders that are links or cannot be listed."""
    denied: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=denied.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(place, name), LINKED) for name in folders if os.path.islink(Path(place, name)))
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            reason = NO_TEXT if printable(str(path)) != str(path) else None
            yield path, reason if is_named_as_image(path) else NO_IMAGE
    yield from ((Path(error.filename), NOT_LISTED) for error in denied)


def images_below(folder: Path, problems: dict[Path, str]) -> Iterator[Path]:
    """Yield the image files of a folder and its sub-folders, without hidden ones; `problems` gets what is wrong with
    each folder that cannot be listed, or is a link, and each name that is no text."""
    for path, reason in _below(folder):
        if reason is None:
            yield path
        elif reason != NO_IMAGE:
            problems[path] = reason


def printable(name: str) -> str:
    """Replace bytes of a name that are no text, or a return, which ends a row of a CSV file, by `?`."""
    return name.encode(errors="replace").decode().replace("\r", "?")


def check_two_classes(table: pd.DataFrame, data_path: Path, left_out: Sequence[str] = ()) -> None:
    """Raise a DataError if fewer than two classes have images; the lines `left_out`, about other files, are added."""
    classes = table.label.unique()
    if len(classes) >= 2:
        return
    hint = f"at least 2 are needed: {data_path}/<class>/<image>"
    if len(classes) == 1 and len(inner := sub_folders(table.file)) >= 2:
        hint += f"; if {first_names(inner)} are the classes, set data_path: {(data_path / classes[0]).as_posix()}"
    raise DataError("\n".join([f"{data_path}: {len(classes)} class folder(s) with images; {hint}", *left_out]))


def sub_folders(files: pd.Series, depth: int = 1) -> list[str]:
    """List the names of the folders with images inside the class folders of `files`; these are `depth` folders deep."""
    return sorted({parts[depth] for parts in files.str.split("/") if len(parts) > depth + 1})


def doubtful_folders(table: pd.DataFrame, data_path: Path) -> list[str]:
    """List probable mistakes in the folders of a table of readable images, a line each with what to do: empty class
    folders, classes inside a class, names that differ only in case or in what cannot be seen."""
    given = given_splits(data_path)
    parts, depth = table.file.str.split("/"), 1 + bool(given)
    entries = [entry for root in given or [""] for entry in _listed(data_path / root)]
    folders = {entry.relative_to(data_path).as_posix() for entry in entries if os.path.isdir(entry)}
    empty = sorted(folders - set(parts.str[:depth].str.join("/")))
    notes = [f"{name}: a class folder without a readable image; add images or delete it" for name in empty]
    for label, files in table.groupby("label").file:
        if inner := sub_folders(files, depth):
            advice = f"if these folders are classes, move them to {data_path.as_posix()}/"
            notes.append(f"{label}: images in its sub-folders {first_names(inner)} count as {label}; {advice}")
    classes, spelt = (pd.Series(names.unique()) for names in (table.label, parts.str[depth - 1]))
    for names, keys, text in (
        (spelt.map(repr), spelt.map(class_name), "one class, as their names look the same; put them into one folder"),
        (classes, classes.str.casefold(), "classes whose names differ only in case; rename or merge them"),
    ):
        notes += [f"{' and '.join(alike)}: {text}" for _, alike in names.groupby(keys) if len(alike) > 1]
    return notes


def first_names(names: Sequence[str], most: int = 3) -> str:
    """Write the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
