"""Decoded images and their fingerprints, kept on disk, so that a file is decoded once, whoever needs it next.

For each size that images are fitted into there is a file with their pixels, one image after the other, and an SQLite
table that says which file each one is of. Pixels are only appended: what another run has mapped into memory stays as it
is, and Windows, which replaces no mapped file, lets it grow. The table follows, in one transaction: a run that is
killed leaves pixels behind that nobody knows, and the next one writes over them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import imagehash
import numpy as np
import PIL
import torch
from tqdm.auto import tqdm

from utils.files import counted
from utils.images.duplicates import Fingerprint, fingerprint_of, fingerprints
from utils.images.frame import Frame, load_what_opens, mean_colour, to_uint8
from utils.images.reading import DataError, read_image
from utils.settings import Config, UserError

FOLDER = ".cache"  # in `outputs_path`; hidden, so that it is no class, whatever lies around it
VERSION = f"1, Pillow {PIL.__version__}, imagehash {imagehash.__version__}"  # of what is made of a file
FORMAT = 1  # of the two files
CHUNK = 32 * 2**20  # bytes of pixels between two commits, which are what a killed run may lose
SPARE = 64  # images, whose pixels may lie there without a file
WAIT = 60.0  # seconds, for another process to finish writing
TABLES = (
    "CREATE TABLE IF NOT EXISTS pixels (name TEXT NOT NULL)",  # of the file
    """CREATE TABLE IF NOT EXISTS images (
        file TEXT PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL, version TEXT NOT NULL,
        slot INTEGER NOT NULL, checksum INTEGER NOT NULL,
        content BLOB NOT NULL, bits BLOB, width INTEGER NOT NULL, height INTEGER NOT NULL)""",
)
State = tuple[int, int]  # of a file: its bytes, and when it changed, in nanoseconds


class StoredImages:
    """Images that stay on disk until they are asked for: of a uint8 tensor (N, 3, H, W) what training needs."""

    def __init__(self, pixels: np.ndarray, slots: np.ndarray, checksums: np.ndarray) -> None:
        """Image i is `pixels[slots[i]]`, and `checksums[i]` its CRC-32; `pixels` is mapped into memory."""
        self.pixels, self.slots, self.checksums = pixels, slots, checksums

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, positions: int | slice | Sequence[int] | np.ndarray) -> StoredImages | torch.Tensor:
        """A slice stays on disk, as a slice of a tensor is no copy; what is at positions is read, into a tensor."""
        if isinstance(positions, slice):
            return StoredImages(self.pixels, self.slots[positions], self.checksums[positions])
        return torch.from_numpy(np.take(self.pixels, self.slots[positions], axis=0))

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """All images, at most `size` at a time; of none, as of a tensor, one empty part."""
        starts = range(0, max(1, len(self)), size)
        return (self[np.arange(start, min(start + size, len(self)))] for start in starts)


Images: TypeAlias = torch.Tensor | StoredImages


def checksums(images: Images) -> list[int]:
    """The CRC-32 of each image's pixels."""
    if isinstance(images, StoredImages):
        return images.checksums.tolist()
    return [zlib.crc32(image.numpy().tobytes()) for image in images]


def read_fingerprints(config: Config, files: Sequence[str], verbose: bool = True) -> list[Fingerprint | str]:
    """The fingerprint of every file or, where it cannot be read as an image, what is wrong and what to do.

    Args:
        files: relative to `data_path`; those that are in the cache are not opened.
    """
    frame = Frame(config.image.size, config.image.fit, config.image.normalization.mean)
    if not config.cache:
        return fingerprints([config.data_path / file for file in files], config.hyperparameters.num_workers, verbose)
    _, rows = ImageCache(config, frame).find(files, "content, bits, width, height", verbose)
    return [row if isinstance(row, str) else _fingerprint(*row) for row in rows]


def read_images(config: Config, files: Sequence[str], frame: Frame) -> tuple[Images, dict[int, str]]:
    """The images of files, fitted into a frame.

    Args:
        files: relative to `data_path`; those that are in the cache are not opened.

    Returns:
        Those that can be read, in their order; and, by their positions in `files`, what is wrong with the others.
    """
    paths, options = [config.data_path / file for file in files], config.hyperparameters
    if not config.cache:
        return load_what_opens(paths, frame, options.num_workers, options.verbose)
    pixels, rows = ImageCache(config, frame).find(files, "slot, checksum", options.verbose)
    known = np.array([row for row in rows if not isinstance(row, str)], int).reshape(-1, 2)
    problems = {i: f"{paths[i]}: {reason}" for i, reason in enumerate(rows) if isinstance(reason, str)}
    return StoredImages(pixels, *known.T), problems


def _fingerprint(content: bytes, bits: bytes | None, width: int, height: int) -> Fingerprint:
    unpacked = None if bits is None else np.unpackbits(np.frombuffer(bits, np.uint8)).view(bool)
    return Fingerprint(content, unpacked, (width, height))


class ImageCache:
    """The cache of a configuration's images in one frame."""

    def __init__(self, config: Config, frame: Frame) -> None:
        self.data_path, self.frame, self.shape = config.data_path, frame, (3, *frame.size)
        self.limit, self.num_workers = config.cache_gigabytes, config.hyperparameters.num_workers
        self.folder, self.bytes = config.outputs_path / FOLDER, 3 * frame.size[0] * frame.size[1]
        filled = mean_colour(frame.mean) if frame.fit == "pad" else None
        digits = hashlib.sha256(repr((FORMAT, self.data_path.as_posix(), filled)).encode()).hexdigest()[:8]
        self.name = f"{frame.size[0]}x{frame.size[1]}-{frame.fit}-{digits}"

    def find(self, files: Sequence[str], columns: str, verbose: bool) -> tuple[np.ndarray, list[tuple | str]]:
        """Some columns of the rows of files; those that the cache lacks are decoded first.

        Returns:
            All pixels, uint8 (M, 3, H, W), of which `slot` counts; and of every file its row or, where it cannot be
            read as an image, what is wrong and what to do.

        Raises:
            UserError: there is no room, or the cache cannot be used; the message says what to set.
        """
        states = {file: self._state(file) for file in files}
        problems: dict[str, str] = {}
        while True:  # a third time only if another run has replaced what was just decoded
            pixels, rows = self._look_up(set(files), columns)
            missing = [f for f, state in states.items() if f not in problems and rows.get(f, ())[:2] != state]
            if not missing:
                return pixels, [problems.get(file) or rows[file][2:] for file in files]
            self._decode_all(missing, states, problems, verbose)

    def _state(self, file: str) -> State | None:
        with suppress(OSError):  # reading it finds out what is wrong
            found = (self.data_path / file).stat()
            return found.st_size, found.st_mtime_ns
        return None

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        """All that happens inside, or none of it. `DEFERRED` reads one state of the table, `IMMEDIATE` writes."""
        path = self.folder / f"{self.name}.sqlite"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=WAIT, isolation_level=None)) as db, db:
                for table in TABLES:
                    db.execute(table)
                db.execute(f"BEGIN {kind}")
                yield db
        except (sqlite3.OperationalError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{path}: cannot be used ({reason}); make room, check the access rights, or set cache: False"
            ) from None
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: damaged ({error}); delete {self.folder}, or set cache: False") from None

    def _pixels(self, db: sqlite3.Connection) -> tuple[Path | None, int]:
        """The file with the pixels, None unless it holds all that the table knows; and where the next ones go."""
        (end,) = db.execute("SELECT ifnull(max(slot) + 1, 0) FROM images").fetchone()
        for (name,) in db.execute("SELECT name FROM pixels").fetchall():
            with suppress(OSError):
                if (self.folder / name).stat().st_size >= end * self.bytes:
                    return self.folder / name, end
        return None, 0

    def _look_up(self, files: set[str], columns: str) -> tuple[np.ndarray, dict[str, tuple]]:
        """The pixels, and the rows of those of the files that have one: their states, then the columns."""
        with self._transaction("DEFERRED") as db:  # while it lasts, nobody takes the file with the pixels away
            path, count = self._pixels(db)
            if not count:
                return np.empty((0, *self.shape), np.uint8), {}
            found = db.execute(f"SELECT file, size, changed, {columns} FROM images WHERE version = ?", (VERSION,))
            rows = {row[0]: row[1:] for row in found if row[0] in files}
            return np.memmap(path, np.uint8, "r", shape=(count, *self.shape)), rows

    def _decode_all(
        self, files: list[str], states: dict[str, State | None], problems: dict[str, str], verbose: bool
    ) -> None:
        """Decode files into the cache; their `states` become those in which they were read, and `problems` gets what is
        wrong with those that cannot be read."""
        self._check_room(len(files))
        size = max(1, CHUNK // self.bytes)
        with (
            ThreadPoolExecutor(max(1, self.num_workers)) as pool,
            tqdm(total=len(files), desc="Reading images", disable=not verbose) as bar,
        ):
            for start in range(0, len(files), size):
                rows, pixels = [], np.empty((min(size, len(files) - start), *self.shape), np.uint8)
                for file, result in zip(
                    files[start : start + size], pool.map(self._decode, files[start : start + size])
                ):
                    bar.update()
                    if isinstance(result, str):
                        problems[file] = result
                        continue
                    states[file], about, pixels[len(rows)] = result
                    rows.append((file, *states[file], VERSION, *about))
                self._append(rows, pixels)

    def _check_room(self, count: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        used = sum(path.stat().st_size for path in self.folder.glob(f"{self.name}-*.pixels"))
        room = min(self.limit - used / 1e9, shutil.disk_usage(self.folder).free / 1e9)
        if count * self.bytes / 1e9 > room:
            raise UserError(
                f"{self.folder}: {counted(count, 'image')} of {self.shape[1]} x {self.shape[2]} pixels "
                f"{'needs' if count == 1 else 'need'} {count * self.bytes / 1e9:.3g} GB, and the disk or "
                f"cache_gigabytes: {self.limit:g} leaves {max(0.0, room):.3g}; make room, raise cache_gigabytes, or "
                "set cache: False"
            )

    def _decode(self, file: str) -> tuple[State, tuple, np.ndarray] | str:
        """The state of a file before it was read, the rest of its row but for the slot, and its pixels (3, H, W); or
        what is wrong with it."""
        path, state = self.data_path / file, self._state(file)
        try:
            image = read_image(path)
            if state is None:
                raise DataError(f"{path}: was not there when it was looked for; run again")
            content, bits, size = fingerprint_of(path, image)
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")
        pixels = to_uint8(image, self.frame).numpy()
        packed = None if bits is None else np.packbits(bits).tobytes()
        return state, (zlib.crc32(pixels), content, packed, *size), pixels

    def _append(self, rows: list[tuple], pixels: np.ndarray) -> None:
        """Add images to the cache: first their pixels, of which the first ones are those of `rows`."""
        old: list[Path] = []
        with self._transaction("IMMEDIATE") as db:
            path, end = self._pixels(db)
            (count,) = db.execute("SELECT count(*) FROM images").fetchone()
            if path is None or end > 2 * count + SPARE:  # lost, or most of them are of files that have changed since
                old = list(self.folder.glob(f"{self.name}-*.pixels"))
                path, end = self.folder / f"{self.name}-{uuid4().hex[:8]}.pixels", 0
                db.execute("DELETE FROM images")
                db.execute("DELETE FROM pixels")
                db.execute("INSERT INTO pixels VALUES (?)", (path.name,))
                path.touch()
            known = "SELECT 1 FROM images WHERE file = ? AND size = ? AND changed = ? AND version = ?"
            new = [k for k, row in enumerate(rows) if not db.execute(known, row[:4]).fetchone()]  # to other runs
            with path.open("r+b") as file:
                file.seek(end * self.bytes)
                file.write(pixels[new])
                file.flush()
                os.fsync(file.fileno())
            added = [(*rows[k][:4], slot, *rows[k][4:]) for slot, k in enumerate(new, start=end)]
            db.executemany("REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", added)
        for path in old:
            with suppress(OSError):  # on Windows, while another run has it mapped
                path.unlink()
