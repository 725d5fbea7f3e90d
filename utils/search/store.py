"""The index of a folder of images, in one SQLite file: each image's state, embedding and effects of regions.

SQLite commits whole transactions or none, whenever it is killed, and lets several processes read and write. What it
does not do, exact search, is one matrix product (measured beside LanceDB and FAISS: `python -m benchmarks.search`).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.explain import occlusion
from utils.settings import UserError
from utils.Siamese import SiameseNetwork

FORMAT = 3  # of the tables below
WAIT = 60.0  # seconds, for another process to finish writing
# An id is never used again (AUTOINCREMENT), so the effects of a file's old content cannot become those of its new one.
TABLES = (
    "CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS images (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        file TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, changed INTEGER NOT NULL,
        width INTEGER NOT NULL, height INTEGER NOT NULL, embedding BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS effects (
        id INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE,
        delta BLOB NOT NULL)""",
)


class SearchError(UserError):
    """An index is missing, damaged or of another network; the message says what to do."""


class FileState(NamedTuple):
    """A file by its path relative to the indexed folder, with forward slashes; its bytes, and when it changed, in
    nanoseconds."""

    file: str
    size: int
    changed: int


class Entry(NamedTuple):
    """An image of an index.

    `image_size`: width and height in pixels; `embedding`: float32 (D,); `delta`: float16 (R, D), as of `RegionEffects`,
    None while it is not known.
    """

    id: int
    state: FileState
    image_size: tuple[int, int]
    embedding: np.ndarray
    delta: np.ndarray | None


def identity(model: SiameseNetwork) -> dict[str, str]:
    """What an index must agree in with a network to be its own: digests of all that makes embeddings and their effects,
    and the layout of the file."""
    weights = hashlib.sha256(repr(sorted((k, v) for k, v in model.architecture.items() if k != "threshold")).encode())
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    regions = repr((FORMAT, occlusion.WINDOWS))
    return {"network": weights.hexdigest(), "version": hashlib.sha256(regions.encode()).hexdigest()}


class Index:
    """An open index. Close it, or use it in a `with`; each process and thread opens its own.

    Args:
        path: of the file.
        model: the network that it belongs to.
        folder: given where the index is to be written: one that is missing is made, one of another network or version
            is emptied. `None`: it has to be there.

    Attributes:
        folder: the folder that was indexed.
        emptied: why it was emptied, None if it was not.

    Raises:
        SearchError: it is missing, of another network, of another version, damaged, or cannot be written.
    """

    def __init__(self, path: Path, model: SiameseNetwork, folder: Path | None = None) -> None:
        self.path, self.dim, self.emptied = path, model.architecture["embedding_dim"], None
        if folder is None and not path.is_file():
            raise SearchError(f"{path}: no such index; run python -m utils search build FOLDER first")
        with self._reporting():
            if folder is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            where = f"{path.resolve().as_uri()}?mode={'rw' if folder is None else 'rwc'}"
            self.db = sqlite3.connect(where, timeout=WAIT, uri=True, isolation_level=None)
            try:
                self.db.execute("PRAGMA foreign_keys = ON")
                if folder is not None:
                    self._prepare(identity(model), folder)
                self.folder = self._check(identity(model))
            except Exception:
                self.db.close()
                raise
        self._seen: int | None = None  # which state of the file the arrays below are of
        self._ids = self._embeddings = self._squares = np.empty(0)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *problem: object) -> None:
        self.db.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """SQLite's errors in a line that says what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise SearchError(f"{self.path}: another program is writing it; wait until it has finished") from None
            raise SearchError(
                f"{self.path}: cannot be used ({error}); make room, check the access rights, or delete it and run "
                "python -m utils search build FOLDER again"
            ) from None
        except (sqlite3.DatabaseError, ValueError) as error:  # the latter: numbers of the wrong length
            raise SearchError(
                f"{self.path}: damaged, or not an index ({error}); delete it and run python -m utils search build "
                "FOLDER again"
            ) from None
        except OSError as error:
            raise SearchError(
                f"{self.path}: cannot be made ({error.strerror}); set outputs_path to a folder that can be written to"
            ) from None

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        """All that happens inside, or, if it fails, none of it. `DEFERRED` reads one state of the file, `IMMEDIATE`
        writes."""
        with self._reporting(), self.db:
            self.db.execute(f"BEGIN {kind}")
            yield

    def _prepare(self, wanted: dict[str, str], folder: Path) -> None:
        with self._transaction("IMMEDIATE"):
            self.db.execute(TABLES[0])
            about = dict(self.db.execute("SELECT key, value FROM about"))
            self.emptied = _difference(about, wanted) if about else None
            if self.emptied:
                self.db.execute("DELETE FROM images")  # not dropped: the next ids are to be new ones
                self.db.execute("DROP TABLE effects")  # of another version, it may have other columns
            for table in TABLES[1:]:
                self.db.execute(table)
            rows = {**wanted, "folder": str(folder.resolve())}.items()
            self.db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    def _check(self, wanted: dict[str, str]) -> Path:
        """The folder that was indexed; a SearchError where the index is not `wanted`."""
        about = dict(self.db.execute("SELECT key, value FROM about"))
        if reason := _difference(about, wanted):
            folder = about.get("folder", "FOLDER")
            raise SearchError(f"{self.path}: {reason}; run python -m utils search build {folder} again")
        return Path(about["folder"])

    # ------------------------------------------------------------------------------------------- writing

    def keep_only(self, found: Iterable[FileState]) -> tuple[list[str], int]:
        """Forget images whose files have gone or changed.

        Args:
            found: all image files that are there now.

        Returns:
            The files that the index lacks now, sorted; and how many had gone.
        """
        with self._transaction("DEFERRED"):  # which locks nobody out, however long it takes to list the files
            self.db.execute("CREATE TEMP TABLE found (file TEXT, size, changed, PRIMARY KEY (file, size, changed))")
            self.db.executemany("INSERT INTO found VALUES (?, ?, ?)", found)
        with self._transaction("IMMEDIATE"):
            ((gone,),) = self.db.execute("SELECT COUNT(*) FROM images WHERE file NOT IN (SELECT file FROM found)")
            self.db.execute("DELETE FROM images WHERE (file, size, changed) NOT IN found")
            missing = self.db.execute("SELECT file FROM found WHERE file NOT IN (SELECT file FROM images) ORDER BY 1")
            files = [file for (file,) in missing]
            self.db.execute("DROP TABLE found")
        self._seen = None
        return files, gone

    def add(self, states: Sequence[FileState], image_sizes: Sequence[tuple[int, int]], embeddings: np.ndarray) -> None:
        """Add images, all or none: embeddings (N, D), and widths and heights in pixels. Files that another process has
        added meanwhile stay as they are."""
        rows = (
            (*state, *size, row.tobytes())
            for state, size, row in zip(states, image_sizes, np.ascontiguousarray(embeddings, dtype="<f4"))
        )
        with self._transaction("IMMEDIATE"):
            self.db.executemany(
                "INSERT OR IGNORE INTO images (file, size, changed, width, height, embedding) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
        self._seen = None

    def add_effects(self, ids: Sequence[int], effects: occlusion.RegionEffects) -> None:
        """Keep the effects of regions of images, by their ids; images that have gone meanwhile are left out."""
        rows = [(number, one.tobytes()) for number, one in zip(ids, effects.delta.cpu().numpy().astype("<f2"))]
        with self._transaction("IMMEDIATE"):
            self.db.executemany(
                "INSERT OR REPLACE INTO effects SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM images WHERE id = ?1)",
                rows,
            )

    # ------------------------------------------------------------------------------------------- reading

    def __len__(self) -> int:
        """Number of images."""
        with self._reporting():
            return self.db.execute("SELECT COUNT(*) FROM images").fetchone()[0]

    def unexplained(self) -> list[tuple[int, FileState]]:
        """The images whose effects are not known, with their ids, by file."""
        with self._reporting():
            rows = self.db.execute(
                "SELECT id, file, size, changed FROM images WHERE id NOT IN (SELECT id FROM effects) ORDER BY file"
            )
            return [(number, FileState(*state)) for number, *state in rows]

    def nearest(self, z: np.ndarray, count: int) -> list[tuple[float, Entry]]:
        """The `count` images nearest to an embedding (D,), with their raw distances, nearest first.

        Exact to the rounding of float32: a matrix product finds more than are wanted, whose distances are then computed
        from differences. All is read from one state of the file, that of now. Embeddings are kept in memory until the
        file changes.
        """
        with self._transaction("DEFERRED"):
            self._load()
            scores = self._embeddings @ np.asarray(z, dtype=np.float32)
            scores *= -2
            scores += self._squares
            some = min(len(scores), 8 * count + 64)
            near = np.argpartition(scores, some - 1)[:some] if len(scores) > some else np.arange(len(scores))
            distances = np.linalg.norm(self._embeddings[near].astype(np.float64) - z, axis=1)
            order = np.lexsort((near, distances))[:count]
            return [(float(distances[i]), self._entry(int(self._ids[near[i]]))) for i in order]

    def _load(self) -> None:
        """Embeddings (N, D) and their squared lengths, unless they are those of now."""
        ((state,),) = self.db.execute("PRAGMA data_version")  # another number after a commit of another connection
        if state == self._seen:
            return
        count = len(self)
        self._ids = np.empty(count, dtype=np.int64)
        self._embeddings = np.empty((count, self.dim), dtype=np.float32)
        rows, start = self.db.execute("SELECT id, embedding FROM images ORDER BY id"), 0
        while some := rows.fetchmany(512):  # more at a time wake the garbage collector, which takes as long again
            ids, blobs = zip(*some)
            part = slice(start, start := start + len(some))
            self._ids[part] = ids
            self._embeddings[part] = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(some), self.dim)
        self._squares = np.einsum("nd,nd->n", self._embeddings, self._embeddings)
        self._seen = state

    def _entry(self, number: int) -> Entry:
        (row,) = self.db.execute(
            "SELECT file, size, changed, width, height, embedding, delta "
            "FROM images LEFT JOIN effects USING (id) WHERE id = ?",
            (number,),
        )
        *state, width, height, embedding, delta = row
        if delta is not None:
            delta = np.frombuffer(delta, "<f2").reshape(-1, self.dim)
        embedding = np.frombuffer(embedding, "<f4")
        return Entry(number, FileState(*state), (width, height), embedding, delta)


def _difference(about: dict[str, str], wanted: dict[str, str]) -> str | None:
    """In a few words, what keeps an index from being a network's own."""
    words = {"version": "written by another version of this project", "network": "of another network, or trained anew"}
    return next((text for key, text in words.items() if about.get(key) != wanted[key]), None)
