"""A cache on disk of decoded images and their fingerprints, so that each file is decoded once.

For each frame there is a file of pixels, to which new images are only ever added, and a table that names each image's
slot in it. So images in use never change, and a run that is killed leaves at most pixels that no table names.
"""

import csv
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import torch
from filelock import FileLock

from utils.images.fingerprints import fingerprint_of
from utils.images.frame import Frame, decode, mean_colour
from utils.images.reading import range_of
from utils.images.synthetic import SYNTHETIC
from utils.system.errors import UserError
from utils.system.files import replacing, state_if_there
from utils.system.settings import Config

FOLDER = ".cache"  # in `outputs_path`; hidden, so that no folder of images takes it for a class
VERSION = f"6, Pillow {PIL.__version__}"  # of what is stored
# Of the table, beside the file: name -> type.
COLUMNS = dict.fromkeys(("state", "content", "bits", "looks", "values"), str)
COLUMNS |= dict.fromkeys(("slot", "checksum", "width", "height"), int)


class StoredImages:
    """N images on disk that are used like a uint8 tensor (N, 3, H, W): by length, slices and positions."""

    def __init__(self, pixels: np.ndarray, slots: np.ndarray, checksums: np.ndarray) -> None:
        """Image i is `pixels[slots[i]]` with CRC-32 `checksums[i]`; `pixels`, (M, 3, H, W), is mapped into memory."""
        self.pixels, self.slots, self.checksums = pixels, slots, checksums

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, positions: int | slice | Sequence[int] | np.ndarray) -> "StoredImages | torch.Tensor":
        """Take a slice, which stays on disk, or read the images at positions into a tensor."""
        if isinstance(positions, slice):
            return StoredImages(self.pixels, self.slots[positions], self.checksums[positions])
        return torch.from_numpy(np.take(self.pixels, self.slots[positions], axis=0))

    def __reduce__(self) -> tuple:
        """Pickle the path, not the pixels: another process, such as a worker of a DataLoader, maps the file itself."""
        return _mapped, (self.pixels.filename, self.pixels.shape, self.slots, self.checksums)

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Yield all images, at most `size` at a time; of none, as of a tensor, one empty part."""
        starts = range(0, max(1, len(self)), size)
        return (self[np.arange(start, min(start + size, len(self)))] for start in starts)


def _mapped(path: str, shape: tuple[int, ...], slots: np.ndarray, checksums: np.ndarray) -> StoredImages:
    return StoredImages(np.memmap(path, np.uint8, "r", shape=shape), slots, checksums)


def read_fingerprints(
    config: Config, table: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[str], tuple[float, float] | None]:
    """Read the fingerprints of the files of a table, `file` relative to `data_path`, from the cache if they are there.

    Returns:
        The rows of the files that can be read; their fingerprints; a line for each other file; and the `range_of` the
        values of all images of more than 8 bits, so that their brightness compares, or `None`.
    """
    frame = Frame(config.image.size, config.image.fit, config.image.normalization.mean)
    _, rows, problems = look_up(config, frame, table.file)
    values = " ".join(rows["values"].loc[[*{*table.file} - {*problems}]].unique()).split()
    levels = range_of(min(map(float, values)), max(map(float, values))) if values else None
    if levels:
        _, rows, problems = look_up(config, frame._replace(levels=levels), table.file)
    readable = table[~table.file.isin(problems)].reset_index(drop=True)
    return readable, rows.loc[readable.file], [f"{file}: {problem}" for file, problem in problems.items()], levels


def read_images(config: Config, files: Sequence[str], frame: Frame) -> tuple[StoredImages, dict[str, str]]:
    """Read images, fitted into a frame, as a view of the cache on disk: those that can be read, in their order; and the
    other files, file -> what is wrong."""
    pixels, rows, problems = look_up(config, frame, files)
    rows = rows.loc[[file for file in files if file not in problems]]
    return StoredImages(pixels, rows.slot.to_numpy(), rows.checksum.to_numpy()), problems


def look_up(config: Config, frame: Frame, files: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame, dict[str, str]]:
    """Add the files that a frame's cache lacks or that have changed, and return its contents: all pixels, uint8
    (M, 3, H, W); the table of the files, `COLUMNS`; and unreadable files, file -> what is wrong. Raises a UserError if
    the cache cannot be written."""
    made_of = VERSION, config.data_path.as_posix(), frame.fit, mean_colour(frame.mean), *(frame.levels or ())
    digits = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
    folder, size = config.outputs_path / FOLDER, tuple(frame.size)
    path = folder / f"{size[0]}x{size[1]}-{digits}.pixels"
    states = {file: state_if_there(config.data_path / file) for file in files}
    pixels, rows, missing = _read(path, size, states)
    if not missing:
        return pixels, rows, {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            _, rows, missing = _read(path, size, states)  # another run may have added some meanwhile
            problems = _add(config, frame, path, rows, missing)
    except OSError as error:
        advice = "make room, check the access rights, or set outputs_path to another disk"
        raise UserError(f"{folder}: cannot be used ({error.strerror or error}); {advice}") from None
    return *_read(path, size, states)[:2], problems


def _read(path: Path, size: tuple[int, int], states: dict[str, str]) -> tuple[np.ndarray, pd.DataFrame, dict[str, str]]:
    """Map the pixels and read the table, both empty if either is not whole; and select the `states` that they lack."""
    pixels, rows = np.empty((0, 3, *size), np.uint8), pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
    with suppress(OSError, ValueError, KeyError):
        table = pd.read_csv(path.with_suffix(".csv"), index_col=0, dtype=COLUMNS, keep_default_na=False)[[*COLUMNS]]
        pixels = np.memmap(path, np.uint8, "r", shape=(table.slot.max() + 1, 3, *size))
        rows = table
    known = dict(zip(rows.index, rows.state))
    return pixels, rows, {file: state for file, state in states.items() if not state or known.get(file) != state}


def _add(config: Config, frame: Frame, path: Path, rows: pd.DataFrame, missing: dict[str, str]) -> dict[str, str]:
    """Decode files; write their pixels behind the others, then the table; returns unreadable ones -> what is wrong."""
    new, problems, options = [], {}, config.hyperparameters
    verbose = options.verbose and config.dataset != SYNTHETIC  # its small scenes are read in a second
    first = rows.slot.max() + 1 if len(rows) else 0
    images = decode([config.data_path / file for file in missing], frame, fingerprint_of, options.num_workers, verbose)
    path.touch()
    with path.open("r+b") as out:
        out.seek(first * 3 * frame.size[0] * frame.size[1])
        for found, file in zip(images, missing):  # in this order, the bar comes to its end
            if isinstance(found, str):
                problems[file] = found
                continue
            image, known = found
            out.write(image)
            place = {"file": file, "state": missing[file], "slot": first + len(new), "checksum": zlib.crc32(image)}
            new.append(place | known)
        out.flush()
        os.fsync(out.fileno())
    if new:
        kept = rows.drop([*missing], errors="ignore")
        with replacing(path.with_suffix(".csv")) as file:
            pd.concat([kept, pd.DataFrame(new).set_index("file")]).to_csv(file, quoting=csv.QUOTE_NONNUMERIC)
    return problems
