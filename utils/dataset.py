"""Divides the images of a folder into splits, and loads a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.images.cache import read_fingerprints, read_images
from utils.images.duplicates import Fingerprint, join, near_duplicate_groups
from utils.images.folder import check_two_classes, doubtful_folders, first_names, scan
from utils.images.frame import Frame
from utils.images.splitting import split_images
from utils.images.stored import StoredImages
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
        captured = table.file.str.rpartition("/")[2].str.extract(config.group_pattern, expand=False)
        positions = pd.Series(np.arange(len(table)), table.index)
        firsts = positions.groupby([table.label, captured]).transform("min")  # NaN where nothing is captured
        groups = join(groups, positions.to_numpy(), firsts.fillna(positions).to_numpy(int))
        if captured.isna().all():
            notes.append(
                f"group_pattern: {config.group_pattern!r} is in no file name, so it groups nothing; "
                "correct it in config.yml"
            )
    return groups, notes


def prepare_folder(config: Config) -> None:
    """Draw the missing images of the built-in dataset, if the configuration is for it.

    Raises:
        DataError: its folder holds another dataset.
    """
    if config.dataset == SYNTHETIC:
        if others := {path.name for path in config.data_path.glob("*") if path.is_dir()} - set(CLASSES):
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
    table, fingerprints, bad = read_fingerprints(config, found)
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


def load_split(table: pd.DataFrame, split: str, config: Config, frame: Frame) -> tuple[StoredImages, pd.DataFrame]:
    """Load the images of one split, uint8 (N, 3, H, W), and their rows of the table, in its order.

    Files that have gone or become unreadable since the folder was scanned are left out; a printed line names them.

    Raises:
        DataError: there are such files, and `on_bad_image` is `error`, or too few images are left.
    """
    prepare_folder(config)  # the network that comes with the project was trained on scenes that may not be drawn yet
    rows = table[table.split == split]
    images, problems = read_images(config, rows.file.tolist(), frame)
    if problems:
        bad = [f"{config.data_path / file}: {problem}" for file, problem in problems.items()]
        count, rows = len(rows), rows[~rows.file.isin(problems)]
        notes_on_bad_images(bad, count, config)
        check_split(rows, split, config, bad=bad)
        print(f"{split}: {len(bad)} of {count} images gone or unreadable, left out: {first_names(list(problems))}")
    return images, rows


def read_split(path: Path) -> pd.DataFrame:
    """Read the `split.csv` of a training: a table `file`, `label`, `split`."""
    if not path.is_file():
        raise DataError(f"{path}: not there yet; run 01_Train_Siamese_model.ipynb first")
    return pd.read_csv(path, dtype=str, keep_default_na=False)
