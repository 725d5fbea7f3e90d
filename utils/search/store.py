"""The index of a folder of images, in one SQLite file: each image's state, embedding and effects of regions.

SQLite commits whole transactions or none, whenever it is killed, and lets several processes read and write. What it
does not do, exact search, is one matrix product (measured beside LanceDB and FAISS: `python -m benchmarks.search`).
"""

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

FORMAT = 5  # of the tables below
# An id is never used again (AUTOINCREMENT), so the effects of a file's old content cannot become those of its new one.
TABLES = {
    "effects": "id INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE, delta BLOB NOT NULL",
    "images": "id INTEGER PRIMARY KEY AUTOINCREMENT, file TEXT UNIQUE, state TEXT NOT NULL, embedding BLOB NOT NULL",
}


class Entry(NamedTuple):
    """An image of an index."""

    id: int
    file: str  # its path in the indexed folder, with forward slashes
    state: str  # its `file_state` (system.files) before it was read
    embedding: np.ndarray  # (D,), float32
    delta: np.ndarray | None  # effects of its regions, (R, D), float16; `None` while they are not measured


def about(path: Path) -> dict[str, str]:
    """What an index says of itself: its `folder`, when it was `built`, its `network`; nothing if it is unreadable."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT key, value FROM about"))
    return {}


class Index(AbstractContextManager):
    """An open index, to be used in a `with`; each process and thread opens its own.

    Where a `folder` to index is given, a missing index is made, and one of another network is `emptied`; else it has to
    exist. All methods raise a SearchError if the file is damaged or cannot be used.
    """

    def __init__(self, path: Path, model: SiameseNetwork, folder: Path | None = None) -> None:
        self.path, self.dim, self.emptied, network = path, model.embedding_dim, False, model.digest(FORMAT, WINDOWS)
        self._loaded: tuple[int, int] | None = None  # the state of the file of which embeddings are in memory
        with self._reporting():
            if folder is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(path, timeout=60)  # seconds, while another process writes
            self.db.execute("PRAGMA foreign_keys = ON")
            if folder is not None:
                self._prepare(network, folder)
            about = dict(self.db.execute("SELECT key, value FROM about"))
        if about.get("network") != network:
            self.db.close()
            again = f"run python -m utils search build {about.get('folder', 'FOLDER')} again"
            raise SearchError(f"{self.path}: of another network, or of another version of this project; {again}")
        self.folder = Path(about["folder"])

    def __exit__(self, *problem: object) -> None:
        self.db.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Turn errors of SQLite and the system into one line that tells what to do."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            advice = "wait if another program writes it, check access rights and disk, or delete it and build again"
            raise SearchError(f"{self.path}: cannot be used ({getattr(error, 'strerror', error)}); {advice}") from None

    def _prepare(self, network: str, folder: Path) -> None:
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            about = dict(self.db.execute("SELECT key, value FROM about"))
            self.emptied = bool(about) and about.get("network") != network
            for name, columns in TABLES.items():
                if self.emptied:  # of another version, it may have other columns
                    self.db.execute(f"DROP TABLE IF EXISTS {name}")
                self.db.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
            rows = [("network", network), ("folder", str(folder.resolve())), ("built", str(time.time()))]
            self.db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    def files(self, unexplained: bool = False) -> dict[tuple[str, str], int]:
        """The images in the index, or those whose effects are not measured: file and state -> id."""
        which = "WHERE id NOT IN (SELECT id FROM effects)" if unexplained else ""
        with self._reporting():
            rows = self.db.execute(f"SELECT file, state, id FROM images {which}")
            return {(file, state): number for file, state, number in rows}

    def remove(self, states: Iterable[tuple[str, str]]) -> None:
        """Remove images, given by files and states, all or none."""
        with self._reporting(), self.db:
            self.db.executemany("DELETE FROM images WHERE (file, state) = (?, ?)", states)

    def add(self, states: Sequence[tuple[str, str]], embeddings: np.ndarray) -> None:
        """Add images, all or none, by files, states and embeddings (N, D); not what another process has added."""
        rows = [(*state, z.tobytes()) for state, z in zip(states, embeddings.astype("<f4"))]
        with self._reporting(), self.db:
            self.db.executemany("INSERT OR IGNORE INTO images (file, state, embedding) VALUES (?, ?, ?)", rows)

    def add_effects(self, ids: Sequence[int], delta: torch.Tensor) -> None:
        """Write the effects of regions (N, R, D) of images, given by ids; ids that were removed are skipped."""
        rows = [(one.tobytes(), number) for number, one in zip(ids, delta.cpu().numpy().astype("<f2"))]
        with self._reporting(), self.db:
            self.db.executemany("INSERT OR REPLACE INTO effects SELECT id, ? FROM images WHERE id = ?", rows)

    def nearest(self, z: np.ndarray, count: int) -> list[tuple[float, Entry]]:
        """Find the `count` images nearest to an embedding (D,), with their raw distances, nearest first.

        Exact to the rounding of float32: a matrix product finds more candidates than are wanted, and their distances
        are then computed from differences. Embeddings stay in memory until the file changes.
        """
        with self._reporting(), self.db:
            self.db.execute("BEGIN")  # all that is read is of one state of the file
            self._load()
            scores = self._squares - 2 * (self._embeddings @ np.asarray(z, dtype=np.float32))
            most = min(len(scores), 8 * count + 64)
            near = np.argpartition(scores, most - 1)[:most] if len(scores) > most else np.arange(len(scores))
            distances = np.linalg.norm(self._embeddings[near].astype(np.float64) - z, axis=1)
            order = np.lexsort((near, distances))[:count]
            return [(float(distances[i]), self._entry(int(self._ids[near[i]]))) for i in order]

    def contents(self) -> tuple[list[str], np.ndarray]:
        """List all files, relative to the folder, and their embeddings (N, D), float32."""
        with self._reporting(), self.db:
            self.db.execute("BEGIN")
            self._load()
            return [file for (file,) in self.db.execute("SELECT file FROM images ORDER BY id")], self._embeddings

    def _load(self) -> None:
        """Read the embeddings (N, D), unless the file has not changed since they were read."""
        ((version,),) = self.db.execute("PRAGMA data_version")  # another number after a commit of another connection
        if self._loaded == (version, self.db.total_changes):
            return
        ((count,),) = self.db.execute("SELECT COUNT(*) FROM images")
        # One row after the other: a list of all rows wakes the garbage collector, which takes as long again.
        rows = self.db.execute("SELECT id, embedding FROM images ORDER BY id")
        table = np.fromiter(rows, [("id", np.int64), ("embedding", f"V{4 * self.dim}")], count)
        self._ids = table["id"].copy()
        self._embeddings = np.ascontiguousarray(table["embedding"]).view("<f4").reshape(-1, self.dim)
        self._squares = np.einsum("nd,nd->n", self._embeddings, self._embeddings)
        self._loaded = version, self.db.total_changes

    def _entry(self, number: int) -> Entry:
        images = "SELECT file, state, embedding, delta FROM images LEFT JOIN effects USING (id) WHERE id = ?"
        ((file, state, embedding, delta),) = self.db.execute(images, (number,))
        delta = None if delta is None else np.frombuffer(delta, "<f2").reshape(-1, self.dim)
        return Entry(number, file, state, np.frombuffer(embedding, "<f4"), delta)
