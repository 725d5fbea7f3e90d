"""Checks a folder of images before training: unreadable files, duplicates, conflicting labels, small classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.dataset import prepare_folder
from utils.images.cache import read_fingerprints
from utils.images.duplicates import copy_groups, near_duplicate_groups
from utils.images.folder import doubtful_folders, scan
from utils.images.frame import Frame
from utils.images.splitting import split_sizes
from utils.system.errors import DataError
from utils.system.settings import Config

MAX_STRETCH = 1.5  # ratio of aspect ratios; fitting an image into `image.size` then changes shapes visibly


@dataclass(frozen=True)
class Audit:
    """The findings about one dataset; files are relative to its folder, so each begins with its class.

    Attributes:
        unreadable: image files that cannot be read, a line each with the reason and what to do.
        skipped: other files that are left out, likewise.
        doubtful: probable mistakes in the class folders, likewise.
        copies: groups of files of the same content.
        groups: groups of near duplicates, including copies; those with conflicting labels first, then the largest.
        small: classes too small for two validation and two test images.
        sizes: width and height of the readable images in pixels, int (N, 2).
        frame: how the configuration fits them into the network's input.
    """

    unreadable: tuple[str, ...]
    skipped: tuple[str, ...]
    doubtful: tuple[str, ...]
    copies: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, ...], ...]
    small: tuple[str, ...]
    sizes: np.ndarray
    frame: Frame

    @property
    def conflicting(self) -> tuple[tuple[str, ...], ...]:
        """The groups whose images are in different classes."""
        return tuple(group for group in self.groups if is_conflicting(group))

    def table(self) -> pd.DataFrame:
        """Sum up: a row for each check, with `finding`, `number` and `what to do`."""
        fitted = np.array([(box.width, box.height) for box in map(self.frame.box, self.sizes)])
        ratios = self.sizes[:, 0] / self.sizes[:, 1]
        stretch = ratios / (fitted[:, 0] / fitted[:, 1])
        shorter, spread = self.sizes.min(axis=1), f"{ratios.min():.2f} to {ratios.max():.2f}"
        enlarged = f"images smaller than image.size (shorter sides {shorter.min()} to {shorter.max()} pixels)"
        stretched = f"images stretched more than {MAX_STRETCH} times (width / height {spread})"
        numbers = {
            "unreadable images": len(self.unreadable),
            "other files that are skipped": len(self.skipped),
            "groups of identical files": len(self.copies),
            "groups of near duplicates, identical files included": len(self.groups),
            "of these, groups with conflicting labels": len(self.conflicting),
            "classes too small to validate and test": len(self.small),
            enlarged: int((self.sizes < fitted).any(axis=1).sum()),
            stretched: int((np.maximum(stretch, 1 / stretch) > MAX_STRETCH).sum()),
        }
        advice = (
            "delete or replace them",
            "images among them: into a class folder, as JPEG or PNG",
            "keep one of each",
            "delete what you do not need; each stays in one split",
            "look at them; keep the image in its right class",
            f"add images: {', '.join(self.small)}",
            "reduce image.size if they are many",
            "give image.size the ratio of most images, or set image.fit: pad",
        )
        to_do = [what if number else "nothing" for number, what in zip(numbers.values(), advice)]
        return pd.DataFrame({"finding": list(numbers), "number": list(numbers.values()), "what to do": to_do})


def is_conflicting(group: tuple[str, ...]) -> bool:
    """Tell whether the files of a group are in different class folders."""
    return len({file.split("/")[0] for file in group}) > 1


def audit(config: Config) -> Audit:
    """Check every file of the configured dataset.

    Raises:
        DataError: no such folder, fewer than two classes with images, or none that can be read.
    """
    prepare_folder(config)
    table, skipped = scan(config.data_path)
    readable, known, unreadable = read_fingerprints(config, table)
    if not known:
        raise DataError(f"{config.data_path}: none of its {len(table)} images can be read; copy them again")
    counts = readable.label.value_counts(sort=False)
    splits = {label: split_sizes(count, config.test_size, config.valid_size) for label, count in counts.items()}
    return Audit(
        unreadable=tuple(unreadable),
        skipped=tuple(skipped),
        doubtful=tuple(doubtful_folders(readable, config.data_path)),
        copies=_named(copy_groups(known), readable.file),
        groups=_named(near_duplicate_groups(known, config.hyperparameters.verbose), readable.file),
        small=tuple(label for label, sizes in splits.items() if min(sizes.values()) < 2),
        sizes=np.array([fingerprint.size for fingerprint in known]),
        frame=Frame(config.image.size, config.image.fit),
    )


def _named(groups: np.ndarray, files: pd.Series) -> tuple[tuple[str, ...], ...]:
    """List the groups of two and more images by their file names."""
    members = [tuple(part) for _, part in files.groupby(groups) if len(part) > 1]
    return tuple(sorted(members, key=lambda group: (not is_conflicting(group), -len(group), group)))


def report(found: Audit) -> str:
    """Write the table, and the files behind it, as plain text."""
    table = found.table()
    width = table.finding.str.len().max()
    lines = [f"{finding:{width}}  {number:6}  {advice}" for finding, number, advice in table.itertuples(index=False)]
    parts = ["\n".join(lines)]
    lists = {
        "Unreadable": [(note,) for note in found.unreadable],
        "Skipped": [(note,) for note in found.skipped],
        "Doubtful folders and names": [(note,) for note in found.doubtful],
        "Identical files": found.copies,
        "Conflicting labels": found.conflicting,
        "Near duplicates": [group for group in found.groups if not is_conflicting(group)],
    }
    for title, groups in lists.items():
        if groups:
            parts.append(f"{title}:\n" + "\n".join("  " + "  ".join(group) for group in groups))
    return "\n\n".join(parts)
