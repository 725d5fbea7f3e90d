"""The images of a folder -> their splits, and uint8 tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.images.cache import read_fingerprints, read_images
from utils.images.duplicates import Fingerprint, join, twin_groups
from utils.images.folder import check_two_classes, leave_out_unreadable, odd_classes, scan
from utils.images.frame import Frame
from utils.images.splitting import split_images
from utils.images.stored import Images
from utils.images.synthetic import CLASSES, SYNTHETIC, ensure_synthetic
from utils.system.errors import DataError
from utils.system.settings import Config

SPLITS = ("train", "valid", "test")


def images_that_belong_together(
    table: pd.DataFrame, prints: Sequence[Fingerprint], config: Config
) -> tuple[np.ndarray, list[str]]:
    """The groups that stay in one split: near duplicates, whatever their classes, and files of a class that agree in
    the part of their names that `group_pattern` captures.

    Args:
        prints: the fingerprint of every file.

    Returns:
        The number of its group for every image, shape (N,); and notes for the user.
    """
    notes = []
    groups = np.arange(len(table))
    if config.dataset != SYNTHETIC:  # the built-in scenes are drawn one by one: there are no twins
        groups = twin_groups(prints, config.hyperparameters.verbose)
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
    """Scan the data (made first, if they are the built-in synthetic ones), read every file that the cache lacks, and
    split those that can be read, images that belong together in one split.

    Returns:
        Table `file`, `label`, `split`; and the notes a user should read, a line each: unreadable images, skipped files,
        doubtful folders, near duplicates, classes too small to test.

    Raises:
        DataError: too few images, or, under `on_bad_image: error`, images that cannot be read, a line each.
    """
    prepare_folder(config)
    found, skipped = scan(config.data_path)
    shown = config.hyperparameters.verbose and config.dataset != SYNTHETIC  # whose small scenes are read in a second
    table, prints, bad = leave_out_unreadable(found, read_fingerprints(config, found.file, shown))
    notes = notes_on_bad_images(bad, len(found), config) + skipped
    check_two_classes(table, config.data_path, bad)
    notes += odd_classes(table, config.data_path)
    groups, grouped = images_that_belong_together(table, prints, config)
    notes += grouped + classes_of_one_group(table, groups)
    table = split_images(table, config.test_size, config.valid_size, config.seed, groups)
    largest = np.bincount(groups).max()
    alike = f"{largest} of {len(table)} images belong together, as near duplicates or by group_pattern"
    for name in SPLITS:
        notes += check_split(table, name, config, alike if largest > 1 else "", bad)
    return table, notes


def notes_on_bad_images(bad: list[str], count: int, config: Config) -> list[str]:
    """The unreadable ones of `count` images, under a line that sums them up; none, no notes.

    Raises:
        DataError: there are some, and `on_bad_image` is `error`.
    """
    if not bad:
        return []
    number = f"{len(bad)} of {count} images cannot be read"
    if config.on_bad_image == "error":
        advice = "mend or delete them, or set on_bad_image: skip to go on without them"
        raise DataError("\n".join([f"{config.data_path}: {number}; {advice}", *bad]))
    return [f"{number}: left out (on_bad_image: skip)", *bad]


def classes_of_one_group(table: pd.DataFrame, groups: np.ndarray) -> list[str]:
    """A line for each class of which more than half, and more than two images, belong together: they cannot be parted,
    so its shares cannot be met."""
    notes = []
    for label, members in pd.Series(groups, table.index).groupby(table.label):
        largest = members.value_counts().max()
        if largest > max(2, len(members) / 2):
            notes.append(
                f"{label}: {largest} of its {len(members)} images belong together, as near duplicates or by "
                "group_pattern, and stay in one split; add images that differ, or this class is hardly tested"
            )
    return notes


def check_split(table: pd.DataFrame, name: str, config: Config, alike: str = "", bad: Sequence[str] = ()) -> list[str]:
    """Whether pairs can be made in a split.

    Args:
        alike: which images cannot be parted, for the error.
        bad: the images that cannot be read, a line each, for the error.

    Returns:
        A note, if some classes start no pairs.

    Raises:
        DataError: no pairs at all.
    """
    counts = table.label[table.split == name].value_counts().reindex(table.label.unique(), fill_value=0)
    if (counts >= 2).sum() == 0 or (counts >= 1).sum() < 2:
        advice = f"add images{' that differ' if alike else ''} or change test_size and valid_size"
        problem = (
            f"{config.data_path}: too few images for the {name} split, which needs two classes, one of them with two "
            f"images{f' ({alike})' if alike else ''}; {advice}"
        )
        raise DataError("\n".join([problem, *bad]))
    if lonely := counts[counts < 2].index.tolist():
        return [f"{name}: fewer than 2 images of {', '.join(lonely)}, so no pairs start from them; add images of them"]
    return []


def load_split(table: pd.DataFrame, split: str, config: Config, frame: Frame) -> tuple[Images, pd.DataFrame]:
    """The images of one split, uint8 (N, 3, H, W), and their rows, in the table's order; files that have gone or broken
    since the folder was scanned are left out, in a line.

    Raises:
        DataError: there are such files, and `on_bad_image` is `error`, or too few are left.
    """
    prepare_folder(config)  # what comes with the project was trained on scenes that may not be drawn yet
    images, rows, lost = _open_split(table, split, config, frame)
    if lost:
        count, files = len(rows) + len(lost), table.file[list(lost)].tolist()
        notes_on_bad_images(list(lost.values()), count, config)
        check_split(rows, split, config, bad=list(lost.values()))
        some = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        print(f"{split}: {len(lost)} of {count} images gone or unreadable, left out: {some}")
    return images, rows


def load_for_training(
    table: pd.DataFrame, config: Config, frame: Frame
) -> tuple[pd.DataFrame, dict[str, tuple[Images, np.ndarray]], list[str]]:
    """The training and the validation split, without images that have gone or broken since the folder was scanned.

    Returns:
        The table without these images; the images of both splits with their class names, (N,), in the table's order;
        notes, as of `prepare_split`.

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
    """The images of one split that can be read, their rows, and what is wrong with the others, by their index."""
    rows = table[table.split == split]
    images, problems = read_images(config, rows.file.tolist(), frame)
    lost = {rows.index[position]: problem for position, problem in problems.items()}
    return images, rows.drop(index=list(lost)), lost


def read_split(path: Path) -> pd.DataFrame:
    """The `split.csv` that training left: `file`, `label`, `split`."""
    if not path.is_file():
        raise DataError(f"{path}: not there yet; run 01_Train_Siamese_model.ipynb first")
    return pd.read_csv(path, dtype=str, keep_default_na=False)
