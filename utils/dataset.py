"""Images on disk -> splits, pairs and uint8 tensors.

    python -m utils.dataset download Flowers
    python -m utils.dataset audit Flowers
"""
from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import v2
from tqdm.auto import tqdm

from utils.config import Config, ImageOptions, Normalization, UserError, load_config
from utils.duplicates import join, near_duplicates
from utils.reading import DataError, read_image, to_rgb
from utils.synthetic import CLASSES, SYNTHETIC, ensure_synthetic

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"}
SPLITS = ("train", "valid", "test")
KINDS = ("similar", "dissimilar")  # of pairs; the positions are the labels


class Pairs(NamedTuple):
    """Pairs of image positions: `first`, `second` and `label` (0 similar, 1 dissimilar), each of shape (P,)."""

    first: np.ndarray
    second: np.ndarray
    label: np.ndarray


# --------------------------------------------------------------------------------------------- reading


Box = tuple[slice, slice]  # rows and columns of a frame; `maps[box]` cuts them out
WHOLE: Box = (slice(None), slice(None))


class Frame(NamedTuple):
    """What every image is fitted into before the network sees it.

    `size` is (height, width). `fit` is `stretch`, which gives up the aspect ratio, as in the paper, or `pad`, which keeps it and
    fills the rest with the colour of the normalisation's `mean`.
    """

    size: tuple[int, int]
    fit: str = "stretch"
    mean: tuple[float, float, float] = Normalization().mean

    def box(self, image_size: tuple[int, int]) -> Box:
        """The part of the frame that an image of (width, height) pixels fills: all of it, or as much as its aspect ratio allows,
        in the middle."""
        filled = self.size
        if self.fit == "pad":
            scale = min(side / own for side, own in zip(self.size, image_size[::-1]))
            filled = [max(1, round(scale * own)) for own in image_size[::-1]]
        starts = [(side - part) // 2 for side, part in zip(self.size, filled)]
        return tuple(slice(start, start + part) for start, part in zip(starts, filled))


def sides(box: Box) -> tuple[int, int]:
    """Height and width of a box."""
    return tuple(part.stop - part.start for part in box)


def mean_colour(mean: Sequence[float]) -> list[int]:
    """The mean of a normalisation as RGB in 0-255: (nearly) zero for the network."""
    return [round(255 * channel) for channel in mean]


def to_uint8(image: Image.Image, frame: Frame) -> torch.Tensor:
    """Fit an image into a frame; uint8 of shape (3, H, W)."""
    image = to_rgb(image)
    box = frame.box(image.size)
    pixels = np.empty((*frame.size, 3), dtype=np.uint8)
    pixels[:] = mean_colour(frame.mean)
    pixels[box] = image.resize(sides(box)[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def load_images(paths: Sequence[Path], frame: Frame, num_workers: int = 0, verbose: bool = True) -> torch.Tensor:
    """Decode every image once, in `num_workers` threads, and fit it into a frame: uint8 of shape (N, 3, H, W), kept in memory.

    Raises:
        DataError: images that cannot be read, a line each.
    """
    images = torch.empty(len(paths), 3, *frame.size, dtype=torch.uint8)

    def fill(position: int) -> str | None:
        try:
            images[position] = to_uint8(read_image(paths[position]), frame)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        results = tqdm(pool.map(fill, range(len(paths))), total=len(paths), desc="Reading images", disable=not verbose)
        if problems := [problem for problem in results if problem]:  # all at once, not one a run
            raise DataError("\n".join(problems))
    return images


# --------------------------------------------------------------------------------------- scan and split


def scan(data_path: Path) -> tuple[pd.DataFrame, list[str]]:
    """List the images of a folder with one sub-folder per class.

    Returns:
        A table `file` (path relative to `data_path`, with forward slashes), `label` (the class folder's name),
        sorted by file; and what was skipped, a line each with the reason.

    Raises:
        DataError: no such folder, or fewer than two classes with images.
    """
    if not data_path.is_dir():
        raise DataError(f"{data_path}: no such folder; put the images into {data_path}/<class>/ or mend data_path in config.yml")
    rows, skipped = [], []
    files = (path for entry in data_path.iterdir() for path in (entry.rglob("*") if entry.is_dir() else [entry]))  # a class may be a link
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
        raise DataError(f"{data_path}: {table.label.nunique()} class folder(s) with images; at least 2 are needed: {data_path}/<class>/<image>")
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


def split_images(table: pd.DataFrame, test_size: float, valid_size: float, seed: int, groups: np.ndarray | None = None) -> pd.DataFrame:
    """Add the column `split`: in every class, `test_size` of the images are for testing and `valid_size` of the
    rest for validation (as in the paper), rounded; a class too small for a share of its own trains only.

    Args:
        groups: for every image the number of its group, shape (N,); a group is never parted, so the shares are met
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
    for name, counts in missing.items():  # where no group fitted, the larger ones that come at least as near to the share

        def gain(group: int) -> int:
            return sum(abs(counts[label]) - abs(counts[label] - size) for label, size in members[group].items())

        while candidates := [
            group for group, size in members.items()
            if size.total() > 1 and place[group] == "train" and gain(group) >= 0 and not size.keys() & none_wanted[name]
            and all(training[label] > size[label] for label in size)  # some of every class are left for training
        ]:
            best = max(candidates, key=gain)
            place[best] = name
            counts.subtract(members[best])
            training.subtract(members[best])
    return table.assign(split=[place[group] for group in groups])


def images_that_belong_together(table: pd.DataFrame, config: Config) -> tuple[np.ndarray, list[str]]:
    """The groups that no split parts: near duplicates, whatever their classes, and files of a class that agree in
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
            notes.append(f"{len(twins)} group{'s' * (len(twins) > 1)} of near-duplicate images ({twins.sum()} files): each stays in one split; "
                         f"python -m utils.dataset audit {config.dataset} lists them")
    if config.group_pattern is not None:
        found = [re.search(config.group_pattern, file.rsplit("/", 1)[-1]) for file in table.file]
        firsts: dict[tuple, int] = {}
        keys = ((label, match[1]) if match and match[1] is not None else i for i, (label, match) in enumerate(zip(table.label, found)))
        named = np.array([firsts.setdefault(key, i) for i, key in enumerate(keys)])
        groups = join(groups, np.arange(len(table)), named)
        if not any(found):
            notes.append(f"group_pattern: {config.group_pattern!r} is in no file name, so it groups nothing; mend it in config.yml")
    return groups, notes


def prepare_folder(config: Config) -> None:
    """Draw the built-in synthetic images, if they are asked for and missing."""
    if config.dataset == SYNTHETIC:
        if config.data_path.is_dir() and (others := {p.name for p in config.data_path.iterdir() if p.is_dir()} - set(CLASSES)):
            raise DataError(f"{config.data_path}: holds {', '.join(sorted(others))}, not the built-in scenes; name your dataset under dataset: in config.yml")
        ensure_synthetic(config.data_path, config.hyperparameters.verbose)


def prepare_split(config: Config) -> tuple[pd.DataFrame, list[str]]:
    """Scan the data (made first, if they are the built-in synthetic ones) and split them, images that belong together in one split.

    Returns:
        Table `file`, `label`, `split`; and the notes a user should read: skipped files, near duplicates, classes too small to test.
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
            alike = f" ({largest} of {len(table)} belong together, as near duplicates or by group_pattern)" if largest > 1 else ""
            raise DataError(f"{config.data_path}: too few images for the {name} split{alike}; add images or change test_size and valid_size")
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


# ----------------------------------------------------------------------------------------------- pairs


def make_pairs(labels: Sequence, rng: np.random.Generator, rounds: int = 1) -> Pairs:
    """The paper's rule: every image gets one partner of its own class (never itself) and one of another.

    Args:
        labels: class of each image, shape (N,).
        rng: source of the partners.
        rounds: how often the rule is applied, with new partners.

    Returns:
        2 x `rounds` pairs per image; an image alone in its class starts none, but may be a dissimilar partner.

    Raises:
        DataError: fewer than two classes, or no class with two images.
    """
    classes, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.max() < 2:
        raise DataError("pairs need two classes, one of them with two images; add images or change the split")
    order = np.argsort(codes, kind="stable")  # the images of a class stand together, from `start`
    start = (np.cumsum(counts) - counts)[codes]
    size = counts[codes]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    anchors = np.tile(np.flatnonzero(size >= 2), rounds)
    start, size, place = start[anchors], size[anchors], place[anchors]
    step = rng.integers(1, size)  # 1 ... size - 1 places onwards, around the class: never the image itself
    similar = order[start + (place - start + step) % size]
    other = rng.integers(0, len(order) - size)  # a place among those outside the class
    dissimilar = order[np.where(other < start, other, other + size)]
    label = np.concatenate([np.zeros(len(anchors), int), np.ones(len(anchors), int)])
    return Pairs(np.concatenate([anchors, anchors]), np.concatenate([similar, dissimilar]), label)


def evaluation_pairs(labels: Sequence, seed: int) -> Pairs:
    """The fixed pairs on which a split is always judged."""
    return make_pairs(labels, np.random.default_rng(seed))


# --------------------------------------------------------------------------------------------- batches


def image_batches(labels: Sequence, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One epoch of image positions in random batches, every image once.

    Images are drawn as couples of one class, so that even small batches hold a similar pair. An image left over
    joins the last batch: alone it would make no pair.
    """
    labels = np.asarray(labels)
    couples, singles = [], []
    for name in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == name))
        even = len(members) // 2 * 2
        couples.append(members[:even].reshape(-1, 2))
        singles.append(members[even:])
    couples = rng.permutation(np.concatenate(couples))
    order = np.concatenate([couples.ravel(), *singles])
    return np.split(order, range(batch_size, len(order) - 1, batch_size))


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` positions, evenly from all."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def pair_batches(pairs: Pairs, batch_size: int, rng: np.random.Generator) -> list[Pairs]:
    """One epoch of pairs in random batches."""
    order = rng.permutation(len(pairs.label))
    return [Pairs(*(column[part] for column in pairs)) for part in np.split(order, range(batch_size, len(order), batch_size))]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's global CPU generator, from which torchvision and fresh layers draw, seeded inside and as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it reseeds the GPUs too
        yield


class Augmentation:
    """The random transforms of the configuration, drawn anew for every image from the given seed.

    Args:
        options: probabilities of the flips; `RandomRotationDegrees` turns by up to that angle either way, the corners filled with the
            normalisation's mean colour; `RandomResizedCrop` is the smallest share of the area that a crop keeps, its aspect ratio
            at most 4 / 3 off, enlarged again (Szegedy et al., 2015); brightness, contrast, saturation and hue as in torchvision's
            ColorJitter; `RandomErasing` is the probability that a box of 2 to 33 % of the image is filled with the mean colour
            (Zhong et al., 2020). All zero, and the crop 1: images come back as they are.
    """

    def __init__(self, options: ImageOptions, seed: int) -> None:
        steps: list[torch.nn.Module] = []
        blank = mean_colour(options.normalization.mean)
        if options.HorizontalFlip:
            steps.append(v2.RandomHorizontalFlip(options.HorizontalFlip))
        if options.VerticalFlip:
            steps.append(v2.RandomVerticalFlip(options.VerticalFlip))
        if options.RandomRotationDegrees:
            steps.append(v2.RandomRotation(options.RandomRotationDegrees, v2.InterpolationMode.BILINEAR, fill=blank))
        if options.RandomResizedCrop < 1:
            height, width = options.size
            ratio = (3 / 4 * width / height, 4 / 3 * width / height)
            steps.append(v2.RandomResizedCrop(options.size, scale=(options.RandomResizedCrop, 1), ratio=ratio))
        if options.brightness or options.contrast or options.saturation or options.hue:
            steps.append(v2.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue))
        self.options = options
        self.erasing = v2.RandomErasing(options.RandomErasing, value=blank)
        if options.RandomErasing:
            steps.append(self.erasing)
        self.transform = v2.Compose(steps) if steps else None
        self.rng = np.random.default_rng(seed)

    def __call__(self, images: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        """uint8 images of shape (N, 3, H, W) -> the same, changed at random.

        Args:
            progress: share of the training that is over, in [0, 1]; boxes are erased with `progress` times their probability.
        """
        if self.transform is None:
            return images
        self.erasing.p = progress * self.options.RandomErasing
        with seeded(int(self.rng.integers(2**31))):
            return torch.stack([self.transform(image) for image in images])


def main(arguments: Sequence[str] | None = None) -> None:
    from utils.audit import audit, report
    from utils.download import PUBLIC_SETS, download_public

    parser = argparse.ArgumentParser(prog="python -m utils.dataset", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    download = commands.add_parser("download", help="fetch one of the paper's public image sets into Data/")
    download.add_argument("name", choices=sorted(PUBLIC_SETS))
    check = commands.add_parser("audit", help="list duplicates, conflicting labels, unreadable files and tiny classes of a dataset")
    check.add_argument("name", help="name under `datasets:` of the configuration")
    check.add_argument("--config", default="config.yml", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "download":
            download_public(options.name)
        else:
            print(report(audit(load_config(options.config, options.name))))
    except UserError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
