"""Divides the images of a folder into splits, and loads a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.images.cache import read_fingerprints, read_images
from utils.images.duplicates import Fingerprint, join, near_duplicate_groups
from utils.images.folder import check_two_classes, doubtful_folders, first_names, scan, separate_unreadable
from utils.images.frame import Frame
from utils.images.splitting import split_images
from utils.images.stored import Images
from utils.images.synthetic import CLASSES, SYNTHETIC, ensure_synthetic
from utils.system.errors import DataError
from utils.system.files import counted
from utils.system.settings import Config

SPLITS = ("train", "valid", "test")


def group_images(
    table: pd.DataFrame, fingerprints: Sequence[Fingerprint], config: Config
) -> tuple[np.ndarray, list[str]]:
    """Group the images that must stay in one split: near duplicates, whatever their classes, and files of a class that
    agree in the part of their names that `group_pattern` captures.

    Args:
        table: N rows with `file` and `label`.
        fingerprints: of these files.

    Returns:
        The number of its group for every image, shape (N,); and notes for the user.
    """
    notes = []
    groups = np.arange(len(table))
    if config.dataset != SYNTHETIC:  # the built-in scenes are drawn one by one: none is a duplicate
        groups = near_duplicate_groups(fingerprints, config.hyperparameters.verbose)
        sizes = np.bincount(groups)
        if (duplicates := sizes[sizes > 1]).size:
            notes.append(
                f"{counted(len(duplicates), 'group')} of near-duplicate images ({duplicates.sum()} files): each stays "
                f"in one split; python -m utils audit {config.dataset} lists them"
            )
    if config.group_pattern is not None:
        named = _groups_by_name(table, config.group_pattern)
        groups = join(groups, np.arange(len(table)), named)
        if not any(re.search(config.group_pattern, Path(file).name) for file in table.file):
            notes.append(
                f"group_pattern: {config.group_pattern!r} is in no file name, so it groups nothing; "
                "correct it in config.yml"
            )
    return groups, notes


def _groups_by_name(table: pd.DataFrame, pattern: str) -> np.ndarray:
    """Group files of a class in whose names a pattern captures the same text, numbered by their first, shape (N,)."""
    firsts: dict[tuple, int] = {}
    groups = []
    for i, (file, label) in enumerate(zip(table.file, table.label)):
        match = re.search(pattern, Path(file).name)
        key = (label, match[1]) if match and match[1] is not None else i
        groups.append(firsts.setdefault(key, i))
    return np.array(groups)


def prepare_folder(config: Config) -> None:
    """Draw the missing images of the built-in dataset, if the configuration is for it.

    Raises:
        DataError: its folder holds another dataset.
    """
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
    """Divide the images that can be read into training, validation and test; groups of images stay in one split.

    Files that the cache lacks are read, and the built-in dataset is drawn first.

    Returns:
        Table `file`, `label`, `split`; and notes for the user, a line each: unreadable images, skipped files, doubtful
        folders, near duplicates, classes too small to test.

    Raises:
        DataError: too few images or, under `on_bad_image: error`, images that cannot be read, a line each.
    """
    prepare_folder(config)
    found, skipped = scan(config.data_path)
    shown = config.hyperparameters.verbose and config.dataset != SYNTHETIC  # its small scenes are read in a second
    table, fingerprints, bad = separate_unreadable(found, read_fingerprints(config, found.file, shown))
    notes = notes_on_bad_images(bad, len(found), config) + skipped
    check_two_classes(table, config.data_path, bad)
    notes += doubtful_folders(table, config.data_path)
    groups, grouped = group_images(table, fingerprints, config)
    notes += grouped + notes_on_large_groups(table, groups)
    table = split_images(table, config.test_size, config.valid_size, config.seed, groups)
    largest = np.bincount(groups).max()
    together = f"{largest} of {len(table)} images belong together, as near duplicates or by group_pattern"
    for name in SPLITS:
        notes += check_split(table, name, config, together if largest > 1 else "", bad)
    return table, notes


def notes_on_bad_images(bad: list[str], count: int, config: Config) -> list[str]:
    """List the unreadable ones of `count` images under a line with their number; an empty list if there are none.

    Raises:
        DataError: there are unreadable images, and `on_bad_image` is `error`.
    """
    if not bad:
        return []
    number = f"{len(bad)} of {count} images cannot be read"
    if config.on_bad_image == "error":
        advice = "mend or delete them, or set on_bad_image: skip to go on without them"
        raise DataError("\n".join([f"{config.data_path}: {number}; {advice}", *bad]))
    return [f"{number}: left out (on_bad_image: skip)", *bad]


def notes_on_large_groups(table: pd.DataFrame, groups: np.ndarray) -> list[str]:
    """Write a line for each class in which one group has more than half of the images, and more than two: as a group
    stays in one split, the class's shares cannot be met."""
    notes = []
    for label, members in pd.Series(groups, table.index).groupby(table.label):
        largest = members.value_counts().max()
        if largest > max(2, len(members) / 2):
            notes.append(
                f"{label}: {largest} of its {len(members)} images belong together, as near duplicates or by "
                "group_pattern, and stay in one split; add images that differ, or this class is hardly tested"
            )
    return notes


def check_split(
    table: pd.DataFrame, name: str, config: Config, together: str = "", bad: Sequence[str] = ()
) -> list[str]:
    """Check that pairs can be made in a split.

    Args:
        together: which images stay in one split, for the error's text.
        bad: the images that cannot be read, a line each, for the error's text.

    Returns:
        A note, if classes with a single image have no anchors.

    Raises:
        DataError: there can be no similar or no dissimilar pair.
    """
    counts = table.label[table.split == name].value_counts().reindex(table.label.unique(), fill_value=0)
    if (counts >= 2).sum() == 0 or (counts >= 1).sum() < 2:
        advice = f"add images{' that differ' if together else ''} or change test_size and valid_size"
        problem = (
            f"{config.data_path}: too few images for the {name} split, which needs two classes, one of them with two "
            f"images{f' ({together})' if together else ''}; {advice}"
        )
        raise DataError("\n".join([problem, *bad]))
    if small := counts[counts < 2].index.tolist():
        return [f"{name}: fewer than 2 images of {', '.join(small)}, so no pairs start from them; add images of them"]
    return []


def load_split(table: pd.DataFrame, split: str, config: Config, frame: Frame) -> tuple[Images, pd.DataFrame]:
    """Load the images of one split, uint8 (N, 3, H, W), and their rows of the table, in its order.

    Files that have gone or become unreadable since the folder was scanned are left out; a printed line names them.

    Raises:
        DataError: there are such files, and `on_bad_image` is `error`, or too few images are left.
    """
    prepare_folder(config)  # the network that comes with the project was trained on scenes that may not be drawn yet
    images, rows, lost = _open_split(table, split, config, frame)
    if lost:
        count, files = len(rows) + len(lost), table.file[list(lost)].tolist()
        notes_on_bad_images(list(lost.values()), count, config)
        check_split(rows, split, config, bad=list(lost.values()))
        print(f"{split}: {len(lost)} of {count} images gone or unreadable, left out: {first_names(files)}")
    return images, rows


def load_for_training(
    table: pd.DataFrame, config: Config, frame: Frame
) -> tuple[pd.DataFrame, dict[str, tuple[Images, np.ndarray]], list[str]]:
    """Load the training and the validation split; images that have become unreadable since the scan are left out.

    Returns:
        The table, reduced to the images that can be read; split -> its images, uint8 (N, 3, H, W), and their class
        names, (N,), in the table's order; and notes, as of `prepare_split`.

    Raises:
        DataError: there are such images, and `on_bad_image` is `error`, or too few are left.
    """
    loaded, lost = {}, {}
    for split in ("train", "valid"):
        images, rows, problems = _open_split(table, split, config, frame)
        loaded[split] = images, rows.label.to_numpy()
        lost |= problems
    notes = notes_on_bad_images(list(lost.values()), len(table), config)
    table = table.drop(index=list(lost))
    if lost:
        for split in loaded:
            notes += check_split(table, split, config, bad=list(lost.values()))
    return table, loaded, notes


def _open_split(
    table: pd.DataFrame, split: str, config: Config, frame: Frame
) -> tuple[Images, pd.DataFrame, dict[int, str]]:
    """Open the images of one split: those that can be read; their rows; and index of the others -> what is wrong."""
    rows = table[table.split == split]
    images, problems = read_images(config, rows.file.tolist(), frame)
    lost = {rows.index[position]: problem for position, problem in problems.items()}
    return images, rows.drop(index=list(lost)), lost


def read_split(path: Path) -> pd.DataFrame:
    """Read the `split.csv` of a training: a table `file`, `label`, `split`."""
    if not path.is_file():
        raise DataError(f"{path}: not there yet; run 01_Train_Siamese_model.ipynb first")
    return pd.read_csv(path, dtype=str, keep_default_na=False)
