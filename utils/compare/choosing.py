"""Which images are compared, what they are called, and where their figures go."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from utils.dataset import prepare_folder, read_split
from utils.images.reading import is_named_as_image
from utils.system.errors import DataError
from utils.system.files import counted, hash_of_paths
from utils.system.settings import Config


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name files by their names, suffix left out; if two are then the same, by `names_with_folders`."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else names_with_folders(paths)


def names_with_folders(paths: Sequence[Path]) -> list[str]:
    """Name files by their full names; if they lie in several folders, with as many folders as make all names differ."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    depth = 1 if len({part[:-1] for part in parts}) == 1 else 2
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def pair_folder(config: Config, path1: Path, path2: Path) -> Path:
    """The folder for the figures of a pair, named after both images and their folders, with digits of both full paths
    to keep pairs apart. Long names are cut, as some systems allow 260 bytes for a path."""
    paths = [path.resolve() for path in (path1, path2)]
    names = "__".join(f"{path.parent.name[:18]}-{path.stem[:18]}" for path in paths)
    names = re.sub(r"[^\w-]", "_", names)  # Windows forbids some letters, and a name that begins as `con.1`
    return config.outputs_path / "pairs" / f"{names}__{hash_of_paths(*paths)}"


def images_to_compare(config: Config, folder: str | Path | None = None) -> list[Path]:
    """List the images of a folder, sub-folders left out: of `compare_path`, or, with fewer than two images there,
    examples of the test split, where none is given.

    Raises:
        DataError: the given folder is missing, or has fewer than two images.
    """
    inside = Path(folder or config.compare_path).glob("*")  # of nothing, where there is no folder
    found = sorted(path for path in inside if is_named_as_image(path) and path.is_file())
    if len(found) >= 2:
        return found
    if folder:
        raise DataError(
            f"compare_folder: {folder}: {counted(len(found), 'image')} there, those of its sub-folders not counted; "
            "put at least two into it, or leave it None for an example"
        )
    return example_images(config)


def example_images(config: Config) -> list[Path]:
    """List the first two test images of every class, or, while nothing is trained, of each folder; 20 at most."""
    prepare_folder(config)
    split = config.trained_path / "split.csv"
    if os.path.isfile(split):
        table = read_split(split)
        table = table[table.split == "test"].sort_values("label", kind="stable")
    else:
        files = [path.relative_to(config.data_path) for path in sorted(config.data_path.glob("*/*"))]
        files = [file for file in files if is_named_as_image(file)]
        table = pd.DataFrame({"file": files, "label": [file.parent.name for file in files]})
    return [config.data_path / file for file in table.groupby("label").head(2).file[:20]]


def choose_pair(config: Config, image1: str | Path | None, image2: str | Path | None) -> tuple[Path, Path]:
    """Choose the two images to explain; if neither is given, two test images of the first class that has two.

    Raises:
        DataError: only one is given.
    """
    if (image1 is None) != (image2 is None):
        raise DataError("image1 and image2: give both, or neither for an example")
    if image1 is not None:
        return Path(image1), Path(image2)
    examples = example_images(config)
    classes = [path.parent for path in examples]
    start = next((i for i in range(1, len(classes)) if classes[i - 1] == classes[i]), 1)
    return tuple(examples[start - 1 : start + 1])
