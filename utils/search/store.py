"""The index of a folder of images, in one SQLite file: each image's state, embedding and effects of regions.

SQLite commits whole transactions or none, whenever it is killed, and lets several processes read and write. What it
does not do, exact search, is one matrix product (measured beside LanceDB and FAISS: `python -m benchmarks.search`).
"""

import hashlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from utils.explain.occlusion import WINDOWS
from utils.Siamese import SiameseNetwork
from utils.system.errors import SearchError

FORMAT = 4  # of the tables below
WAIT = 60.0  # seconds to wait for another process to finish writing
# An id is never used again (AUTOINCREMENT), so the effects of a file's old content cannot become those of its new one.
TABLES = (
    "CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS images (
        id INTEGER PRIMARY KEY AUTOINCREMENT, file TEXT NOT NULL UNIQUE, state TEXT NOT NULL,
        width INTEGER NOT NULL, height INTEGER NOT NULL, embedding BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS effects (
        id INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE, delta BLOB NOT NULL)""",
)


class FileState(NamedTuple):
    """A file by its path relative to the indexed folder, with forward slashes, and its `file_state` (system.files)."""

    file: str
    state: str


class Entry(NamedTuple):
    """An image of an index: its width and height in pixels, its embedding, float32 (D,), and the effects of its
    regions, float16 (R, D), `None` while they are not measured."""

    id: int
    state: FileState
    image_size: tuple[int, int]
    embedding: np.ndarray
    delta: np.ndarray | None


def identity(model: SiameseNetwork) -> str:
    """A digest of all that determines embeddings, effects and the layout of the file; an index holds its network's."""
    architecture = sorted((key, value) for key, value in model.architecture.items() if key != "threshold")
    digest = hashlib.sha256(repr((FORMAT, WINDOWS, architecture)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def built_last(paths: Sequence[Path]) -> Path:
    """Of several files of indexes the one that was built last; one that cannot be read counts as the oldest."""

    return max(paths, key=lambda path: float(about(path).get("built", 0)))


def about(path: Path) -> dict[str, str]:
    """What an index says about itself: its `folder`, and when it was `built`; nothing if it cannot be read."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT key, value FROM about"))
    return {}


class Index(AbstractContextManager):
    """An open index, to be used in a `with`; each process and thread opens its own.

    Args:
        path: of the file.
        model: the network that the index belongs to.
        folder: the folder to index: a missing index is made, one of another network is `emptied`. With `None` the index
            has to exist, and the attribute `folder` is the one that was indexed.

    Raises:
        SearchError: it is missing, of another network or version, damaged, or cannot be written. All methods raise it,
            as another program may have changed the file meanwhile.
    """

    def __init__(self, path: Path, model: SiameseNetwork, folder: Path | None = None) -> None:
        self.path, self.dim, self.emptied = path, model.embedding_dim, False
        self._identity = identity(model)
        self._loaded: int | None = None  # which state of the file the arrays below are of
        self._ids = self._embeddings = self._squares = np.empty(0)
        with self._reporting():
            if folder is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            where = f"{path.resolve().as_uri()}?mode={'rw' if folder is None else 'rwc'}"
            self.db = sqlite3.connect(where, timeout=WAIT, uri=True, isolation_level=None)
            try:
                self.db.execute("PRAGMA foreign_keys = ON")
                if folder is not None:
                    self._prepare(folder)
                self.folder = self._check()
            except Exception:
                self.db.close()
                raise

    def __exit__(self, *problem: object) -> None:
        self.db.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn errors of SQLite and the system into one line that tells what to do."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:  # the last: numbers of the wrong length
            advice = "wait until the other program has written it"
            if "locked" not in str(error):
                advice = "check outputs_path, its access rights and room, or delete it and build again"
            raise SearchError(f"{self.path}: cannot be used ({getattr(error, 'strerror', error)}); {advice}") from None

    @contextmanager
    def _transaction(self, mode: str) -> Iterator[None]:
        """Do all that happens inside, or, if it fails, nothing. `DEFERRED` reads one state of the file, `IMMEDIATE`
        writes."""
        with self._reporting(), self.db:
            self.db.execute(f"BEGIN {mode}")
            self._check()
            yield

    def _prepare(self, folder: Path) -> None:
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute(TABLES[0])
            about = dict(self.db.execute("SELECT key, value FROM about"))
            self.emptied = bool(about) and about.get("network") != self._identity
            if self.emptied:
                for table in ("effects", "images"):  # of another version, they may have other columns
                    self.db.execute(f"DROP TABLE IF EXISTS {table}")
            for table in TABLES[1:]:
                self.db.execute(table)
            rows = [("network", self._identity), ("folder", str(folder.resolve())), ("built", str(time.time()))]
            self.db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    def _check(self) -> Path:
        """Return the folder that was indexed; raise a SearchError if the index belongs to another network."""
        about = dict(self.db.execute("SELECT key, value FROM about"))
        if about.get("network") != self._identity:
            again = f"run python -m utils search build {about.get('folder', 'FOLDER')} again"
            raise SearchError(f"{self.path}: of another network, or of another version of this project; {again}")
        return Path(about["folder"])

    def states(self) -> set[FileState]:
        """The files whose images are in the index."""
        with self._transaction("DEFERRED"):
            return set(map(FileState._make, self.db.execute("SELECT file, state FROM images")))

    def remove(self, states: Iterable[FileState]) -> None:
        """Remove images, all or none."""
        with self._transaction("IMMEDIATE"):
            self.db.executemany("DELETE FROM images WHERE (file, state) = (?, ?)", states)
        self._loaded = None

    def add(self, states: Sequence[FileState], image_sizes: Sequence[tuple[int, int]], embeddings: np.ndarray) -> None:
        """Add images, all or none: embeddings (N, D), and widths and heights in pixels.

        Files that another process has added meanwhile stay as they are.
        """
        blobs = (row.tobytes() for row in np.ascontiguousarray(embeddings, dtype="<f4"))
        rows = ((*state, *size, blob) for state, size, blob in zip(states, image_sizes, blobs))
        columns = "(file, state, width, height, embedding)"
        with self._transaction("IMMEDIATE"):
            self.db.executemany(f"INSERT OR IGNORE INTO images {columns} VALUES (?, ?, ?, ?, ?)", rows)
        self._loaded = None

    def add_effects(self, ids: Sequence[int], delta: torch.Tensor) -> None:
        """Write the effects of regions (N, R, D) of images, given by ids; ids that were removed are skipped."""
        rows = [(one.tobytes(), number) for number, one in zip(ids, delta.cpu().numpy().astype("<f2"))]
        with self._transaction("IMMEDIATE"):
            self.db.executemany("INSERT OR REPLACE INTO effects SELECT id, ? FROM images WHERE id = ?", rows)

    def __len__(self) -> int:
        """Number of images."""
        with self._reporting():
            return self.db.execute("SELECT COUNT(*) FROM images").fetchone()[0]

    def unexplained(self) -> dict[FileState, int]:
        """List the images whose effects are not measured: file -> id."""
        unknown = "SELECT file, state, id FROM images WHERE id NOT IN (SELECT id FROM effects) ORDER BY file"
        with self._transaction("DEFERRED"):
            return {FileState(*state): number for *state, number in self.db.execute(unknown)}

    def nearest(self, z: np.ndarray, count: int) -> list[tuple[float, Entry]]:
        """Find the `count` images nearest to an embedding (D,), with their raw distances, nearest first.

        Exact to the rounding of float32: a matrix product finds more candidates than are wanted, and their distances
        are then computed from differences. Embeddings stay in memory until the file changes.
        """
        if np.shape(z) != (self.dim,):
            raise SearchError(f"{self.path}: holds embeddings of {self.dim} numbers, and was asked for {np.shape(z)}")
        with self._transaction("DEFERRED"):
            self._load()
            scores = self._squares - 2 * (self._embeddings @ np.asarray(z, dtype=np.float32))
            most = min(len(scores), 8 * count + 64)
            near = np.argpartition(scores, most - 1)[:most] if len(scores) > most else np.arange(len(scores))
            distances = np.linalg.norm(self._embeddings[near].astype(np.float64) - z, axis=1)
            order = np.lexsort((near, distances))[:count]
            return [(float(distances[i]), self._entry(int(self._ids[near[i]]))) for i in order]

    def contents(self) -> tuple[list[str], np.ndarray]:
        """List all files, relative to the folder, and their embeddings (N, D), float32."""
        with self._transaction("DEFERRED"):
            self._load()
            return [file for (file,) in self.db.execute("SELECT file FROM images ORDER BY id")], self._embeddings

    def _load(self) -> None:
        """Read the embeddings (N, D), unless the file has not changed since they were read."""
        ((state,),) = self.db.execute("PRAGMA data_version")  # another number after a commit of another connection
        if state == self._loaded:
            return
        other = self.db.execute("SELECT file FROM images WHERE length(embedding) != ?", (4 * self.dim,)).fetchone()
        if other:
            raise ValueError(f"{other[0]}: an embedding of the wrong length")
        # One row after the other: a list of all rows wakes the garbage collector, which takes as long again.
        rows = self.db.execute("SELECT id, embedding FROM images ORDER BY id")
        table = np.fromiter(rows, [("id", np.int64), ("embedding", f"V{4 * self.dim}")], len(self))
        self._ids, blobs = table["id"].copy(), np.ascontiguousarray(table["embedding"])
        self._embeddings = blobs.view("<f4").reshape(-1, self.dim)
        self._squares = np.einsum("nd,nd->n", self._embeddings, self._embeddings)
        self._loaded = state

    def _entry(self, number: int) -> Entry:
        (row,) = self.db.execute(
            "SELECT file, state, width, height, embedding, delta FROM images LEFT JOIN effects USING (id) WHERE id = ?",
            (number,),
        )
        file, state, *image_size, embedding, delta = row
        if delta is not None:
            delta = np.frombuffer(delta, "<f2").reshape(-1, self.dim)
        return Entry(number, FileState(file, state), tuple(image_size), np.frombuffer(embedding, "<f4"), delta)
