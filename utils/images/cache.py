"""A cache on disk of decoded images and their fingerprints, so that each file is decoded once.

For each frame there is a file of pixels and a table that names the file of each image. Where files are new or have
changed, both are written under another name, and the table replaces the old one. So neither a kill nor two runs at once
leave half a cache, and a pixel file that is mapped into memory never changes.
"""

import csv
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import pandas as pd
import PIL
import torch

from utils.images.duplicates import HASH_SIDE, Fingerprint, fingerprint_of
from utils.images.frame import Frame, decode, mean_colour
from utils.images.reading import range_of
from utils.images.synthetic import SYNTHETIC
from utils.system.errors import UserError
from utils.system.files import counted, file_state
from utils.system.settings import Config

FOLDER = ".cache"  # in `outputs_path`; hidden, so that no folder of images takes it for a class
VERSION = f"4, Pillow {PIL.__version__}"  # of the table's contents
# Of the table: name -> type.
COLUMNS = {"state": str, "checksum": int, "content": str, "bits": str, "width": int, "height": int}
COLUMNS |= {"looks": str, "values": str}
# All pixels, uint8 (M, 3, H, W); the table of their files, M rows; and unreadable files, file -> what is wrong.
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
) -> tuple[pd.DataFrame, list[Fingerprint], list[str], tuple[float, float] | None]:
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
    known = []
    for _, _, content, bits, width, height, *rest in rows.loc[readable.file].itertuples(index=False):
        hashes = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)).view(bool).reshape(-1, HASH_SIDE**2)
        known.append(Fingerprint(bytes.fromhex(content), hashes, (width, height), *rest))
    return readable, known, [f"{file}: {problem}" for file, problem in problems.items()], levels


def read_images(config: Config, files: Sequence[str], frame: Frame) -> tuple[StoredImages, dict[str, str]]:
    """Read images, fitted into a frame, as a view of the cache on disk: those that can be read, in their order; and the
    other files, file -> what is wrong."""
    pixels, rows, problems = ImageCache(config, frame).find(files)
    slots = rows.index.get_indexer([file for file in files if file not in problems])
    return StoredImages(pixels, slots, rows.checksum.to_numpy()[slots]), problems


class ImageCache:
    """The cache of a configuration's images in one frame."""

    def __init__(self, config: Config, frame: Frame) -> None:
        self.config, self.frame = config, frame
        self.folder, self.shape = config.outputs_path / FOLDER, (3, *frame.size)
        filled = mean_colour(frame.mean) if frame.fit == "pad" else None
        made_of = config.data_path.as_posix(), filled, *(frame.levels or ())
        digits = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
        self.name = f"{frame.size[0]}x{frame.size[1]}-{frame.fit}-{digits}"
        self.table = self.folder / f"{self.name}.csv"

    def find(self, files: Sequence[str]) -> Found:
        """Add the files that the cache lacks or that have changed, and return its contents.

        Raises:
            UserError: there is no room, or the cache cannot be written.
        """
        rows, pixels = pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS), np.empty((0, *self.shape), np.uint8)
        with suppress(OSError, ValueError, KeyError):  # not there, or not whole
            table = pd.read_csv(self.table, index_col=0, dtype=COLUMNS, keep_default_na=False)[list(COLUMNS)]
            # Mapped once: it stays valid where another run deletes the file.
            pixels = np.memmap(self.folder / table.index.name, np.uint8, "r", shape=(len(table), *self.shape))
            rows = table
        known, states = dict(zip(rows.index, rows.state)), {file: self._state(file) for file in files}
        missing = [file for file, state in states.items() if not state or known.get(file) != state]
        try:
            return self._add(missing, states, rows, pixels) if missing else (pixels, rows, {})
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be used ({error.strerror or error}); make room, check the access rights, or "
                "set outputs_path to another disk"
            ) from None

    def _state(self, file: str) -> str:
        """Compute the `file_state` of a file for this decoder; "" if there is no such file."""
        with suppress(OSError):  # reading it will tell what is wrong
            return file_state(self.config.data_path / file, VERSION)
        return ""

    def _add(self, files: list[str], states: dict[str, str], rows: pd.DataFrame, pixels: np.ndarray) -> Found:
        """Write a new cache with the missing `files`, unless none of them can be read; returns as `find`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unchanged = np.flatnonzero(rows.state == [states.get(file) or self._state(file) for file in rows.index])
        self._check_room(len(files), len(unchanged))
        path = self.folder / f"{self.name}-{uuid4().hex[:8]}.pixels"
        new_table = path.with_suffix(".csv")
        to_delete = {path, new_table}
        try:
            with path.open("w+b") as out:
                new, problems = self._decode_into(out, files, states)
                if new.empty:
                    return pixels, rows, problems
                for slot in unchanged:
                    out.write(pixels[slot])
                out.flush()
                os.fsync(out.fileno())
                rows = pd.concat([new, rows.iloc[unchanged]]).rename_axis(path.name)
                pixels = np.memmap(out, np.uint8, "r", shape=(len(rows), *self.shape))
            rows.to_csv(new_table, quoting=csv.QUOTE_NONNUMERIC)
            # Another run, which was ready first, may have deleted both as an older cache, also between these two lines.
            with suppress(FileNotFoundError):
                path.stat()
                new_table.replace(self.table)
                to_delete = set(self.folder.glob(f"{self.name}-*")) - {path}
            return pixels, rows, problems
        finally:
            for file in to_delete:
                with suppress(OSError):  # on Windows, while another run has it mapped
                    file.unlink()

    def _decode_into(
        self, out: BinaryIO, files: list[str], states: dict[str, str]
    ) -> tuple[pd.DataFrame, dict[str, str]]:
        """Write the pixels of files; return their table, and the unreadable files, file -> what is wrong."""
        rows, problems, options = [], {}, self.config.hyperparameters
        verbose = options.verbose and self.config.dataset != SYNTHETIC  # its small scenes are read in a second
        paths = [self.config.data_path / file for file in files]
        for file, found in zip(files, decode(paths, self.frame, fingerprint_of, options.num_workers, verbose)):
            if isinstance(found, str):
                problems[file] = found
                continue
            image, (content, bits, size, looks, values) = found
            out.write(image)
            packed = np.packbits(bits).tobytes().hex()
            rows.append((file, states[file], zlib.crc32(image), content.hex(), packed, *size, looks, values))
        return pd.DataFrame(rows, columns=["file", *COLUMNS]).set_index("file"), problems

    def _check_room(self, new: int, copied: int) -> None:
        _, height, width = self.shape
        needed, free = 3 * height * width * (new + copied), shutil.disk_usage(self.folder).free
        if needed > free:
            what = f"no room for {counted(new + copied, 'image')} of {height} x {width} pixels"
            raise OSError(errno.ENOSPC, f"{what}: {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB free")
