"""Checks a folder of images before training: unreadable files, duplicates, conflicting labels, small classes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.dataset import groups_across, prepare_folder
from utils.images.cache import read_fingerprints
from utils.images.fingerprints import copy_groups, near_duplicate_groups, notes_on_looks
from utils.images.folder import doubtful_folders, first_names, scan
from utils.images.frame import Frame
from utils.images.splitting import split_sizes
from utils.system.errors import DataError
from utils.system.settings import Config

MAX_STRETCH = 1.5  # ratio of aspect ratios; fitting an image into `image.size` then changes shapes visibly
Groups = tuple[tuple[str, ...], ...]  # of files


@dataclass(frozen=True)
class Audit:
    """The findings about one dataset: lines that say what is wrong and what to do, and groups of files."""

    unreadable: list[str]
    skipped: list[str]  # other files than images, a line for each suffix and reason
    doubtful: list[str]  # folders and names
    looks: list[str]  # what can hardly be seen, and images of more than 8 bits
    copies: Groups
    groups: Groups  # near duplicates, copies included; those with conflicting labels first, then the largest
    conflicting: Groups  # those of several classes
    parted: Groups  # those in several splits, of a set that is divided already
    small: list[str]  # classes too small for two validation and two test images
    sizes: np.ndarray  # width and height of the readable images in pixels, int (N, 2)
    frame: Frame  # how the configuration fits them into the network's input

    def table(self) -> pd.DataFrame:
        """Sum up: a row for each check, with `finding`, `number` and `what to do`."""
        sizes, fitted = self.sizes, np.array([(box.width, box.height) for box in map(self.frame.box, self.sizes)])
        ratios, shorter = sizes[:, 0] / sizes[:, 1], sizes.min(axis=1)
        stretch = ratios / (fitted[:, 0] / fitted[:, 1])
        enlarged = f"images smaller than image.size (shorter sides {shorter.min()} to {shorter.max()} pixels)"
        spread = f"width / height {ratios.min():.2f} to {ratios.max():.2f}"
        stretched = f"images stretched more than {MAX_STRETCH} times ({spread})"
        are_enlarged, are_stretched = (sizes < fitted).any(axis=1), np.maximum(stretch, 1 / stretch) > MAX_STRETCH
        rows = [
            ("unreadable images", self.unreadable, "delete or replace them"),
            ("kinds of other files that are skipped", self.skipped, "move images into a class folder, as JPEG or PNG"),
            ("findings about what can be seen in images", self.looks, "see below"),
            ("groups of identical files", self.copies, "keep one of each"),
            ("groups of near duplicates, identical files included", self.groups, "delete what you do not need"),
            ("of these, groups with conflicting labels", self.conflicting, "keep the image in its right class"),
            ("of these, groups in several of the given splits", self.parted, "delete them from train"),
            ("classes too small to validate and test", self.small, f"add images: {first_names(self.small)}"),
            (enlarged, sizes[are_enlarged], "reduce image.size if they are many"),
            (stretched, sizes[are_stretched], "give image.size the ratio of most images, or set image.fit: pad"),
        ]
        rows = [(finding, len(found), advice if len(found) else "nothing") for finding, found, advice in rows]
        return pd.DataFrame(rows, columns=["finding", "number", "what to do"])


def audit(config: Config) -> Audit:
    """Check every file of the configured dataset. Raises a DataError if there is no such folder, there are fewer than
    two classes with images, or none that can be read."""
    prepare_folder(config)
    table, skipped = scan(config.data_path)
    readable, known, unreadable, levels = read_fingerprints(config, table)
    if known.empty:
        raise DataError(f"{config.data_path}: none of its {len(table)} images can be read; copy them again")
    counts, given = readable.label.value_counts(sort=False), "split" in readable
    whole = given or config.unseen_classes is not None  # small classes are not divided
    splits = {label: split_sizes(count, config.test_size, config.valid_size) for label, count in counts.items()}
    groups = near_duplicate_groups(known, config.hyperparameters.verbose)
    return Audit(
        unreadable=unreadable,
        skipped=skipped,
        doubtful=doubtful_folders(readable, config.data_path),
        looks=notes_on_looks(known.looks, levels),
        copies=_named(copy_groups(known), readable),
        groups=_named(groups, readable),
        conflicting=groups_across(readable, groups, "label"),
        parted=groups_across(readable, groups, "split") if given else (),
        small=[label for label, sizes in splits.items() if min(sizes.values()) < 2 and not whole],
        sizes=known[["width", "height"]].to_numpy(),
        frame=Frame(config.image.size, config.image.fit),
    )


def _named(groups: np.ndarray, table: pd.DataFrame) -> Groups:
    """List the files of groups of two and more images; first those of several classes, then the largest."""
    several = np.bincount(groups)[groups] > 1
    found = [(rows.label.nunique(), len(rows), (*rows.file,)) for _, rows in table[several].groupby(groups[several])]
    return tuple(files for _, _, files in sorted(found, key=lambda group: (group[0] < 2, -group[1], group[2])))


def report(found: Audit) -> str:
    """Write the table, and the files behind it, as plain text."""
    table = found.table()
    width = table.finding.str.len().max()
    lines = [f"{finding:{width}}  {number:6}  {advice}" for finding, number, advice in table.itertuples(index=False)]
    repeated = {*found.conflicting, *found.parted}
    lists = {
        "Unreadable": found.unreadable,
        "Skipped": found.skipped,
        "Doubtful folders and names": found.doubtful,
        "Findings about what can be seen": found.looks,
        "Identical files": found.copies,
        "Conflicting labels": found.conflicting,
        "In several of the given splits": found.parted,
        "Near duplicates": [group for group in found.groups if group not in repeated],
    }
    parts = ["\n".join(lines)]
    for title, entries in lists.items():
        if entries:
            rows = (entry if isinstance(entry, str) else "  ".join(entry) for entry in entries)
            parts.append(f"{title}:" + "".join(f"\n  {row}" for row in rows))
    return "\n\n".join(parts)
