"""Decoded images and their fingerprints, kept on disk, so that a file is decoded once, whoever needs it next.

For each frame there is a file of pixels, one image after the other, and a table that says which file each is of. Where
files are new or have changed, both are made again under other names, what has not changed is copied, and the table is
put in place when it is whole. So neither a kill nor two runs at once leave half a cache, and what is mapped stays.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO
from uuid import uuid4

import imagehash
import numpy as np
import pandas as pd
import PIL

from utils.images.decoding import decode, load
from utils.images.duplicates import Fingerprint
from utils.images.frame import Frame, mean_colour
from utils.images.stored import Images, StoredImages
from utils.system.errors import UserError
from utils.system.files import counted, file_state
from utils.system.settings import Config

FOLDER = ".cache"  # in `outputs_path`; hidden, so that it is no class, whatever lies around it
VERSION = f"2, Pillow {PIL.__version__}, imagehash {imagehash.__version__}"  # of what is made of a file
COPIED = 16  # images at a time
COLUMNS = {"state": str, "checksum": int, "content": str, "bits": str, "width": int, "height": int}  # of the table
# All pixels, uint8 (M, 3, H, W); the table of their files, M rows; and what is wrong with files that cannot be read.
Found = tuple[np.ndarray, pd.DataFrame, dict[str, str]]


def read_fingerprints(config: Config, files: Sequence[str], verbose: bool = True) -> list[Fingerprint | str]:
    """The fingerprint of every file or, where it cannot be read as an image, what is wrong and what to do.

    Args:
        files: relative to `data_path`; those that are in the cache are not opened.
    """
    frame = Frame(config.image.size, config.image.fit, config.image.normalization.mean)
    if not config.cache:
        paths = [config.data_path / file for file in files]
        decoded = decode(paths, frame, config.hyperparameters.num_workers, verbose)
        return [found if isinstance(found, str) else found[1] for found in decoded]
    _, rows, problems = ImageCache(config, frame, verbose).find(files)
    known = rows.loc[[file for file in files if file not in problems]].itertuples(index=False)
    return [problems[file] if file in problems else _fingerprint(*next(known)[2:]) for file in files]


def _fingerprint(content: str, bits: str, width: int, height: int) -> Fingerprint:
    unpacked = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)).view(bool) if bits else None
    return Fingerprint(bytes.fromhex(content), unpacked, (width, height))


def read_images(config: Config, files: Sequence[str], frame: Frame) -> tuple[Images, dict[int, str]]:
    """The images of files, fitted into a frame: on disk or, under `cache: False`, a tensor in memory.

    Args:
        files: relative to `data_path`; those that are in the cache are not opened.

    Returns:
        Those that can be read, in their order; and, by their positions in `files`, what is wrong with the others.
    """
    paths, options = [config.data_path / file for file in files], config.hyperparameters
    if not config.cache:
        return load(paths, frame, options.num_workers, options.verbose)
    pixels, rows, problems = ImageCache(config, frame, options.verbose).find(files)
    slots = rows.index.get_indexer([file for file in files if file not in problems])
    images = StoredImages(pixels, slots, rows.checksum.to_numpy()[slots])
    return images, {i: f"{paths[i]}: {problems[file]}" for i, file in enumerate(files) if file in problems}


class ImageCache:
    """The cache of a configuration's images in one frame."""

    def __init__(self, config: Config, frame: Frame, verbose: bool) -> None:
        self.config, self.frame, self.verbose = config, frame, verbose
        self.folder, self.shape = config.outputs_path / FOLDER, (3, *frame.size)
        filled = mean_colour(frame.mean) if frame.fit == "pad" else None
        digits = hashlib.sha256(repr((config.data_path.as_posix(), filled)).encode()).hexdigest()[:8]
        self.name = f"{frame.size[0]}x{frame.size[1]}-{frame.fit}-{digits}"
        self.table = self.folder / f"{self.name}.csv"

    def find(self, files: Sequence[str]) -> Found:
        """The cache, in which those of `files` that it lacked, or that have changed, are now.

        Raises:
            UserError: there is no room, or the cache cannot be written; the message says what to set.
        """
        rows = pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
        with suppress(OSError, ValueError, KeyError):  # not there, or not whole
            table = pd.read_csv(self.table, index_col=0, dtype=COLUMNS, keep_default_na=False)[list(COLUMNS)]
            self._pixels(table)
            rows = table
        known, states = dict(zip(rows.index, rows.state)), {file: self._state(file) for file in files}
        missing = [file for file, state in states.items() if not state or known.get(file) != state]
        try:
            return self._add(missing, states, rows) if missing else (self._pixels(rows), rows, {})
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be used ({error.strerror or error}); make room, check the access rights, raise "
                "cache_gigabytes, or set cache: False"
            ) from None

    def _state(self, file: str) -> str:
        """Digits that change with the file, or when another one takes its place, and with what decodes it; "" where
        none is found."""
        with suppress(OSError):  # reading it finds out what is wrong
            return file_state(self.config.data_path / file, VERSION)
        return ""

    def _pixels(self, rows: pd.DataFrame) -> np.ndarray:
        """The pixels that a table is of, mapped into memory."""
        if rows.empty:
            return np.empty((0, *self.shape), np.uint8)
        return np.memmap(self.folder / rows.index.name, np.uint8, "r", shape=(len(rows), *self.shape))

    def _add(self, files: list[str], states: dict[str, str], rows: pd.DataFrame) -> Found:
        """`find`, where `files` are missing: unless none of them can be read, a new cache is put in place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unchanged = np.flatnonzero(rows.state == [states.get(file) or self._state(file) for file in rows.index])
        self._check_room(len(files), len(unchanged))
        path = self.folder / f"{self.name}-{uuid4().hex[:8]}.pixels"
        part = path.with_suffix(".csv")
        done = {path, part}
        try:
            with path.open("w+b") as out:
                new, problems = self._decode_into(out, files, states)
                pixels = self._pixels(rows)
                if new.empty:
                    return pixels, rows, problems
                for start in range(0, len(unchanged), COPIED):
                    out.write(pixels[unchanged[start : start + COPIED]])
                out.flush()
                os.fsync(out.fileno())
                rows = pd.concat([new, rows.iloc[unchanged]]).rename_axis(path.name)
                pixels = np.memmap(out, np.uint8, "r", shape=(len(rows), *self.shape))
            rows.to_csv(part, quoting=csv.QUOTE_NONNUMERIC)
            if path.exists():  # else a run that was ready first has deleted it, as below
                part.replace(self.table)
                done = set(self.folder.glob(f"{self.name}-*")) - {path}
            return pixels, rows, problems
        finally:
            for file in done:
                with suppress(OSError):  # on Windows, while a run has it mapped
                    file.unlink()

    def _decode_into(
        self, out: BinaryIO, files: list[str], states: dict[str, str]
    ) -> tuple[pd.DataFrame, dict[str, str]]:
        """Write the pixels of files; their table, and what is wrong with those that cannot be read."""
        rows, problems, paths = [], {}, [self.config.data_path / file for file in files]
        for file, found in zip(files, decode(paths, self.frame, self.config.hyperparameters.num_workers, self.verbose)):
            if isinstance(found, str):
                problems[file] = found
                continue
            image, (content, bits, size) = found
            out.write(image)
            packed = "" if bits is None else np.packbits(bits).tobytes().hex()
            rows.append((file, states[file], zlib.crc32(image), content.hex(), packed, *size))
        return pd.DataFrame(rows, columns=["file", *COLUMNS]).set_index("file"), problems

    def _check_room(self, new: int, copied: int) -> None:
        size, limit = self.shape[1] * self.shape[2] * 3 / 1e9, self.config.cache_gigabytes
        room = min(limit - copied * size, shutil.disk_usage(self.folder).free / 1e9)
        if new * size > room:
            images = f"{counted(new, 'image')} of {self.shape[1]} x {self.shape[2]} pixels"
            need = f"need{'s' * (new == 1)} {new * size:.3g} GB, and the disk or"
            left = f"cache_gigabytes: {limit:g} leaves {max(0.0, room):.3g}"
            raise OSError(errno.ENOSPC, f"{images} {need} {left}")
