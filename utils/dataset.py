"""A folder of images, one sub-folder per class -> a table of files, their splits, and uint8 tensors."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError

from utils.images.duplicates import join, near_duplicates
from utils.images.frame import Frame, load_images
from utils.images.reading import SUFFIXES, DataError
from utils.images.synthetic import CLASSES, SYNTHETIC, ensure_synthetic
from utils.settings import Config

SPLITS = ("train", "valid", "test")


def scan(data_path: Path) -> tuple[pd.DataFrame, list[str]]:
    """List the images of a folder with one sub-folder per class.

    Returns:
        A table `file` (path relative to `data_path`, with forward slashes), `label` (the class folder's name),
        sorted by file; and what was skipped, a line each with the reason.

    Raises:
        DataError: no such folder, or fewer than two classes with images.
    """
    if not data_path.is_dir():
        raise DataError(
            f"{data_path}: no such folder; put the images into {data_path}/<class>/ or correct data_path in config.yml"
        )
    rows, skipped = [], []
    # A class may be a link.
    files = (path for entry in data_path.iterdir() for path in (entry.rglob("*") if entry.is_dir() else [entry]))
    for path in sorted((path for path in files if path.is_file()), key=Path.as_posix):  # the same order on every system
        name = path.relative_to(data_path)
        if any(part.startswith(".") for part in name.parts):
            continue
        if len(name.parts) == 1:
            skipped.append(f"{name}: not inside a class folder")
        elif path.suffix.lower() not in SUFFIXES:
            skipped.append(f"{name.as_posix()}: not an image")
        elif not _opens(path):
            skipped.append(f"{name.as_posix()}: not readable, damaged or over 179 megapixels")
        else:
            rows.append((name.as_posix(), name.parts[0]))
    table = pd.DataFrame(rows, columns=["file", "label"])
    if table.label.nunique() < 2:
        raise DataError(
            f"{data_path}: {table.label.nunique()} class folder(s) with images; "
            f"at least 2 are needed: {data_path}/<class>/<image>"
        )
    return table, skipped


def _opens(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def split_sizes(count: int, test_size: float, valid_size: float) -> dict[str, int]:
    """How many images of a class of `count` are for testing and for validation, the rest being for training."""
    test = round(count * test_size)
    return {"test": test, "valid": round((count - test) * valid_size)}


def split_images(
    table: pd.DataFrame, test_size: float, valid_size: float, seed: int, groups: np.ndarray | None = None
) -> pd.DataFrame:
    """Add the column `split`: in every class, `test_size` of the images are for testing and `valid_size` of the
    rest for validation (as in the paper), rounded; a class too small for a share of its own trains only.

    Args:
        groups: for every image the number of its group, shape (N,); a group is never split up, so the shares are met
            as nearly as whole groups allow. `None`: every image stands alone.
    """
    rng = np.random.default_rng(seed)
    groups = np.arange(len(table)) if groups is None else groups
    members: dict[int, Counter] = {}  # how many images of each class
    for group, label in zip(groups, table.label):
        members.setdefault(group, Counter())[label] += 1
    missing, order = {"test": Counter(), "valid": Counter()}, []
    for label, rows in table.groupby("label", sort=True).groups.items():
        order.extend(groups[table.index.get_indexer(rng.permutation(rows.to_numpy()))])
        for name, count in split_sizes(len(rows), test_size, valid_size).items():
            missing[name][label] = count
    none_wanted = {name: {label for label, count in counts.items() if count == 0} for name, counts in missing.items()}

    place: dict[int, str] = {}
    for group in dict.fromkeys(order):  # the first that fit are for testing, the next for validation
        place[group] = next((name for name, counts in missing.items() if members[group] <= counts), "train")
        if place[group] != "train":
            missing[place[group]].subtract(members[group])
    training: Counter = Counter()
    for group, name in place.items():
        if name == "train":
            training.update(members[group])
    # Where no group fitted, the larger ones that come at least as near to the share.
    for name, counts in missing.items():

        def gain(group: int) -> int:
            return sum(abs(counts[label]) - abs(counts[label] - size) for label, size in members[group].items())

        while candidates := [
            group
            for group, size in members.items()
            if size.total() > 1
            and place[group] == "train"
            and gain(group) >= 0
            and not size.keys() & none_wanted[name]
            and all(training[label] > size[label] for label in size)  # some of every class are left for training
        ]:
            best = max(candidates, key=gain)
            place[best] = name
            counts.subtract(members[best])
            training.subtract(members[best])
    return table.assign(split=[place[group] for group in groups])


def images_that_belong_together(table: pd.DataFrame, config: Config) -> tuple[np.ndarray, list[str]]:
    """The groups that stay in one split: near duplicates, whatever their classes, and files of a class that agree in
    the part of their names that `group_pattern` captures.

    Returns:
        The number of its group for every image, shape (N,); and notes for the user.
    """
    notes = []
    groups = np.arange(len(table))
    if config.dataset != SYNTHETIC:  # the built-in scenes are drawn one by one: there are no twins
        options = config.hyperparameters
        groups = near_duplicates([config.data_path / file for file in table.file], options.num_workers, options.verbose)
        sizes = np.bincount(groups)
        if (twins := sizes[sizes > 1]).size:
            notes.append(
                f"{len(twins)} group{'s' * (len(twins) > 1)} of near-duplicate images ({twins.sum()} "
                "files): each stays in one split; "
                f"python -m utils audit {config.dataset} lists them"
            )
    if config.group_pattern is not None:
        found = [re.search(config.group_pattern, file.rsplit("/", 1)[-1]) for file in table.file]
        firsts: dict[tuple, int] = {}
        keys = (
            (label, match[1]) if match and match[1] is not None else i
            for i, (label, match) in enumerate(zip(table.label, found))
        )
        named = np.array([firsts.setdefault(key, i) for i, key in enumerate(keys)])
        groups = join(groups, np.arange(len(table)), named)
        if not any(found):
            notes.append(
                f"group_pattern: {config.group_pattern!r} is in no file name, so it groups nothing; "
                "correct it in config.yml"
            )
    return groups, notes


def prepare_folder(config: Config) -> None:
    """Draw the built-in synthetic images, if they are asked for and missing."""
    if config.dataset == SYNTHETIC:
        if config.data_path.is_dir() and (
            others := {p.name for p in config.data_path.iterdir() if p.is_dir()} - set(CLASSES)
        ):
            raise DataError(
                f"{config.data_path}: holds {', '.join(sorted(others))}, not the built-in scenes; "
                "name your dataset under dataset: in config.yml"
            )
        ensure_synthetic(config.data_path, config.hyperparameters.verbose)


def prepare_split(config: Config) -> tuple[pd.DataFrame, list[str]]:
    """Scan the data (made first, if they are the built-in synthetic ones) and split them, images that belong together
    in one split.

    Returns:
        Table `file`, `label`, `split`; and the notes a user should read: skipped files, near duplicates, classes too
        small to test.
    """
    prepare_folder(config)
    table, notes = scan(config.data_path)
    groups, grouped = images_that_belong_together(table, config)
    notes += grouped
    table = split_images(table, config.test_size, config.valid_size, config.seed, groups)
    for name in SPLITS:
        counts = table.label[table.split == name].value_counts().reindex(table.label.unique(), fill_value=0)
        if (counts >= 2).sum() == 0 or (counts >= 1).sum() < 2:
            largest = np.bincount(groups).max()
            alike = (
                f" ({largest} of {len(table)} belong together, as near duplicates or by group_pattern)"
                if largest > 1
                else ""
            )
            raise DataError(
                f"{config.data_path}: too few images for the {name} split{alike}; "
                "add images or change test_size and valid_size"
            )
        if lonely := counts[counts < 2].index.tolist():
            notes.append(f"{name}: fewer than 2 images of {', '.join(lonely)}; no pairs start from them")
    return table, notes


def load_split(table: pd.DataFrame, split: str, config: Config, frame: Frame) -> tuple[torch.Tensor, np.ndarray]:
    """Images of one split, uint8 (N, 3, H, W), and their class names, (N,), in the table's order."""
    rows = table[table.split == split]
    options = config.hyperparameters
    images = load_images([config.data_path / file for file in rows.file], frame, options.num_workers, options.verbose)
    return images, rows.label.to_numpy()


def read_split(path: Path) -> pd.DataFrame:
    """The `split.csv` that training left: `file`, `label`, `split`."""
    if not path.is_file():
        raise DataError(f"{path}: not there yet; run 01_Train_Siamese_model.ipynb first")
    return pd.read_csv(path, dtype=str, keep_default_na=False)
