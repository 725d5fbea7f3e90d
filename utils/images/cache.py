"""A cache on disk of decoded images and their fingerprints, so that each file is decoded once.

For each frame there is a file of pixels, to which new images are only ever added, and a table that names each image's
slot in it. So images in use never change, and a run that is killed leaves at most pixels that no table names.
"""

import csv
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

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
from utils.system.files import counted, file_state, replacing
from utils.system.settings import Config

FOLDER = ".cache"  # in `outputs_path`; hidden, so that no folder of images takes it for a class
VERSION = f"5, Pillow {PIL.__version__}"  # of the table's contents
# Of the table, beside the file: name -> type.
COLUMNS = {"state": str, "slot": int, "checksum": int, "content": str, "bits": str, "width": int, "height": int}
COLUMNS |= {"looks": str, "values": str}
# All pixels, uint8 (M, 3, H, W); the table of the files; and unreadable files, file -> what is wrong.
Found = tuple[np.ndarray, pd.DataFrame, dict[str, str]]


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
    _, rows, problems = ImageCache(config, frame).find(table.file)
    values = " ".join(rows["values"].loc[[*{*table.file} - {*problems}]].unique()).split()
    levels = range_of(min(map(float, values)), max(map(float, values))) if values else None
    if levels:
        _, rows, problems = ImageCache(config, frame._replace(levels=levels)).find(table.file)
    readable = table[~table.file.isin(problems)].reset_index(drop=True)
    known = rows.loc[readable.file]
    return readable, known, [f"{file}: {problem}" for file, problem in problems.items()], levels


def read_images(config: Config, files: Sequence[str], frame: Frame) -> tuple[StoredImages, dict[str, str]]:
    """Read images, fitted into a frame, as a view of the cache on disk: those that can be read, in their order; and the
    other files, file -> what is wrong."""
    pixels, rows, problems = ImageCache(config, frame).find(files)
    rows = rows.loc[[file for file in files if file not in problems]]
    return StoredImages(pixels, rows.slot.to_numpy(), rows.checksum.to_numpy()), problems


class ImageCache:
    """The cache of a configuration's images in one frame."""

    def __init__(self, config: Config, frame: Frame) -> None:
        self.config, self.frame, self.shape = config, frame, (3, *frame.size)
        filled = mean_colour(frame.mean) if frame.fit == "pad" else None
        made_of = config.data_path.as_posix(), filled, *(frame.levels or ())
        digits = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
        self.folder = config.outputs_path / FOLDER
        self.pixels = self.folder / f"{frame.size[0]}x{frame.size[1]}-{frame.fit}-{digits}.pixels"
        self.table = self.pixels.with_suffix(".csv")

    def find(self, files: Sequence[str]) -> Found:
        """Add the files that the cache lacks or that have changed, and return its contents.

        Raises:
            UserError: there is no room, or the cache cannot be written.
        """
        states = {file: self._state(file) for file in files}
        pixels, rows, missing = self._read(states)
        if not missing:
            return pixels, rows, {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.pixels.with_suffix(".lock")):
                _, rows, missing = self._read(states)  # another run may have added some meanwhile
                problems = self._add(missing, rows)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be used ({error.strerror or error}); make room, check the access rights, or "
                "set outputs_path to another disk"
            ) from None
        return *self._read(states)[:2], problems

    def _state(self, file: str) -> str:
        """Compute the `file_state` of a file for this decoder; "" if there is no such file."""
        with suppress(OSError):  # reading it will tell what is wrong
            return file_state(self.config.data_path / file, VERSION)
        return ""

    def _read(self, states: dict[str, str]) -> tuple[np.ndarray, pd.DataFrame, dict[str, str]]:
        """Map the pixels and read the table, both empty where they are not there, or not whole; and select the files
        that these lack."""
        pixels, rows = np.empty((0, *self.shape), np.uint8), pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
        with suppress(OSError, ValueError, KeyError):
            table = pd.read_csv(self.table, index_col=0, dtype=COLUMNS, keep_default_na=False)[list(COLUMNS)]
            pixels = np.memmap(self.pixels, np.uint8, "r", shape=(table.slot.max() + 1, *self.shape))
            rows = table
        known = dict(zip(rows.index, rows.state))
        return pixels, rows, {file: state for file, state in states.items() if not state or known.get(file) != state}

    def _add(self, missing: dict[str, str], rows: pd.DataFrame) -> dict[str, str]:
        """Decode files, and write their pixels behind the others, then the table; returns those that cannot be read,
        file -> what is wrong."""
        size, used = int(np.prod(self.shape)), rows.slot.max() + 1 if len(rows) else 0
        needed, free = len(missing) * size, shutil.disk_usage(self.folder).free
        if needed > free:
            what = f"no room for {counted(len(missing), 'image')} of {self.shape[1]} x {self.shape[2]} pixels"
            raise OSError(errno.ENOSPC, f"{what}: {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB free")
        new, problems, options = [], {}, self.config.hyperparameters
        verbose = options.verbose and self.config.dataset != SYNTHETIC  # its small scenes are read in a second
        paths = [self.config.data_path / file for file in missing]
        with self.pixels.open("r+b" if self.pixels.exists() else "w+b") as out:
            out.seek(used * size)
            for file, found in zip(missing, decode(paths, self.frame, fingerprint_of, options.num_workers, verbose)):
                if isinstance(found, str):
                    problems[file] = found
                    continue
                image, known = found
                out.write(image)
                place = {"slot": used + len(new), "checksum": zlib.crc32(image)}
                new.append({"file": file, "state": missing[file]} | place | known)
            out.flush()
            os.fsync(out.fileno())
        if new:
            added = pd.DataFrame(new).set_index("file")
            gone = rows.index.isin(added.index) | rows.index.isin(problems)
            with replacing(self.table) as file:
                pd.concat([rows[~gone], added]).to_csv(file, quoting=csv.QUOTE_NONNUMERIC)
        return problems
