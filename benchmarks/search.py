"""Which store for a million embeddings, and what a search costs: time, memory, crash safety, code.

    python -m benchmarks.search            # beside LanceDB and FAISS: pip install -r benchmarks/requirements.txt
    python -m benchmarks.search explain    # ten hits explained from an index

Random embeddings. Each store runs in processes of its own: one builds, one searches, one appends and is killed at it.
Memory is the peak of the searching process above what it had after its imports, as a multiple of the embeddings.
"""

from __future__ import annotations

import argparse
import inspect
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.computer import about_computer

QUERIES = 20
APPENDED = 1000
BATCH = 10_000  # images between two commits


def embeddings(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)


class SQLite:
    """The project's: `utils.search.store`."""

    def __init__(self, folder: Path, dim: int) -> None:
        from utils.search.store import Index
        from utils.Siamese import SiameseNetwork

        model = SiameseNetwork("Conv4", image_size=(16, 16), embedding_dim=dim)
        for parameter in model.parameters():
            parameter.data.zero_()  # any network, but always the same
        self.index = Index(folder / "index.sqlite", model, folder)

    def add(self, names: Sequence[str], z: np.ndarray) -> None:
        from utils.search.store import FileState

        self.index.add([FileState(name, 1, 1) for name in names], [(1, 1)] * len(names), z)

    def nearest(self, z: np.ndarray) -> list[str]:
        return [entry.state.file for _, entry in self.index.nearest(z, 10)]

    def __len__(self) -> int:
        return len(self.index)


class LanceDB:
    def __init__(self, folder: Path, dim: int) -> None:
        import lancedb
        import pyarrow as pa

        kind = pa.list_(pa.float32(), dim)
        schema = pa.schema([("file", pa.string()), ("size", pa.int64()), ("changed", pa.int64()), ("z", kind)])
        self.table = lancedb.connect(str(folder / "lance")).create_table("images", schema=schema, exist_ok=True)

    def add(self, names: Sequence[str], z: np.ndarray) -> None:
        import pyarrow as pa

        ones = pa.array(np.ones(len(names), np.int64))
        rows = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
        self.table.add(pa.Table.from_arrays([pa.array(names), ones, ones, rows], schema=self.table.schema))

    def nearest(self, z: np.ndarray) -> list[str]:
        return self.table.search(z).limit(10).select(["file", "_distance"]).to_arrow()["file"].to_pylist()

    def __len__(self) -> int:
        return self.table.count_rows()


class FAISS:
    """An exact index in one file, what else is known in a Parquet file: each written anew, whole, by every commit."""

    def __init__(self, folder: Path, dim: int) -> None:
        import faiss
        import pyarrow.parquet as pq

        self.vectors, self.table, self.dim = folder / "index.faiss", folder / "images.parquet", dim
        self.rows = pq.read_table(self.table) if self.table.exists() else None
        self.index = faiss.read_index(str(self.vectors)) if self.table.exists() else faiss.IndexFlatL2(dim)

    def add(self, names: Sequence[str], z: np.ndarray) -> None:
        import faiss
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.index.add(z)
        new = pa.table({"file": names, "size": [1] * len(names), "changed": [1] * len(names)})
        self.rows = new if self.rows is None else pa.concat_tables([self.rows, new])
        faiss.write_index(self.index, str(self.vectors) + ".partial")
        pq.write_table(self.rows, str(self.table) + ".partial")
        os.replace(str(self.vectors) + ".partial", self.vectors)  # a kill between these two leaves them apart
        os.replace(str(self.table) + ".partial", self.table)

    def nearest(self, z: np.ndarray) -> list[str]:
        return self.rows["file"].take(self.index.search(z[None], 10)[1][0]).to_pylist()

    def __len__(self) -> int:
        return self.index.ntotal


class Memmap:
    """Embeddings appended to a file that is mapped into memory, what else is known in SQLite, committed afterwards."""

    def __init__(self, folder: Path, dim: int) -> None:
        import sqlite3

        self.file, self.dim = folder / "embeddings.f32", dim
        self.db = sqlite3.connect(folder / "images.sqlite", isolation_level=None)
        self.db.execute("CREATE TABLE IF NOT EXISTS images (id INTEGER PRIMARY KEY, file TEXT UNIQUE, size, changed)")
        self.matrix = self.squares = None

    def add(self, names: Sequence[str], z: np.ndarray) -> None:
        start = len(self)
        with open(self.file, "r+b" if self.file.exists() else "w+b") as file:
            file.seek(4 * self.dim * start)  # over what a kill has left
            file.write(z.tobytes())
            file.flush()
            os.fsync(file.fileno())
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            rows = ((start + k, name, 1, 1) for k, name in enumerate(names))
            self.db.executemany("INSERT INTO images VALUES (?, ?, ?, ?)", rows)
        self.matrix = None

    def nearest(self, z: np.ndarray) -> list[str]:
        if self.matrix is None:
            self.matrix = np.memmap(self.file, np.float32, "r", shape=(len(self), self.dim))
            self.squares = np.einsum("nd,nd->n", self.matrix, self.matrix)
        scores = self.squares - 2 * (self.matrix @ z)
        near = np.argpartition(scores, 100)[:100]
        order = near[np.argsort(np.linalg.norm(self.matrix[near] - z, axis=1))[:10]]
        return [self.db.execute("SELECT file FROM images WHERE id = ?", (int(k),)).fetchone()[0] for k in order]

    def __len__(self) -> int:
        return self.db.execute("SELECT COUNT(*) FROM images").fetchone()[0]


STORES = {store.__name__: store for store in (SQLite, LanceDB, FAISS, Memmap)}


def peak_memory() -> int:
    """Bytes, of this process so far (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def build(store, folder: Path, count: int, dim: int) -> None:
    z, opened = embeddings(count, dim), store(folder, dim)
    step = count if store is FAISS else BATCH  # which writes everything anew each time: at once
    start = time.perf_counter()
    for i in range(0, count, step):
        opened.add([f"class/{k:07d}.jpg" for k in range(i, min(i + step, count))], z[i : i + step])
    print(time.perf_counter() - start)


def query(store, folder: Path, count: int, dim: int) -> None:
    """Seconds of the first query, opening included; the median of others; memory; how many have the right hits."""
    queries = embeddings(QUERIES, dim, seed=1)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as elsewhere:
        store(Path(elsewhere), dim)  # imports
    before = peak_memory()
    start = time.perf_counter()
    opened = store(folder, dim)
    found, times = [opened.nearest(queries[0])], [time.perf_counter() - start]
    for z in queries[1:]:
        start = time.perf_counter()
        found.append(opened.nearest(z))
        times.append(time.perf_counter() - start)
    memory = (peak_memory() - before) / (4 * count * dim)
    z = embeddings(count, dim)
    right = sum(
        hits == [f"class/{k:07d}.jpg" for k in np.argsort(np.square(z - one).sum(1), kind="stable")[:10]]
        for hits, one in zip(found, queries)
    )
    print(times[0], np.median(times[1:]), memory, right)


def append(store, folder: Path, count: int, dim: int) -> None:
    """Print the seconds of the first append, then go on until killed."""
    opened = store(folder, dim)
    number = len(opened)
    while True:
        start = time.perf_counter()
        opened.add([f"new/{number}/{k}.jpg" for k in range(APPENDED)], embeddings(APPENDED, dim, seed=2))
        print(time.perf_counter() - start, flush=True)
        number += 1


def state(store, folder: Path, count: int, dim: int) -> None:
    """Whether the store opens after a kill, holds whole appends only, and answers."""
    opened = store(folder, dim)
    opened.nearest(embeddings(1, dim)[0])
    print((len(opened) - count) % APPENDED == 0)


def measure(name: str, count: int, dim: int, kills: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:

        def command(step: str) -> list[str]:
            return [sys.executable, "-m", "benchmarks.search", step, name, folder, str(count), str(dim)]

        def ask(step: str) -> list[str]:
            return subprocess.check_output(command(step), text=True).split()

        (built,) = ask("build")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 2**20
        first, later, memory, right = ask("query")
        rng, whole, seconds = np.random.default_rng(0), 0, []
        for _ in range(kills):
            with subprocess.Popen(command("append"), stdout=subprocess.PIPE, text=True) as child:
                seconds.append(float(child.stdout.readline()))
                time.sleep(rng.uniform(0, 2 * seconds[-1]))
                os.kill(child.pid, signal.SIGKILL)
            after = subprocess.run(command("state"), capture_output=True, text=True)
            whole += after.stdout.strip() == "True"
    return {
        "store": name,
        "dim": dim,
        "build s": round(float(built), 1),
        "MB": round(size),
        "first query s": round(float(first), 2),
        "query ms": round(1000 * float(later)),
        "memory": f"{float(memory):.2f}x",
        "right": f"{right}/{QUERIES}",
        "append s": round(float(np.median(seconds)), 3),
        "whole after kills": f"{whole}/{kills}",
        "lines": len(inspect.getsource(STORES[name]).splitlines()),
    }


def explain_hits() -> None:
    """Seconds to explain ten hits whose effects are in an index, the query's own being known."""
    from utils.explain.occlusion import DETAIL, DIRECTIONS, LOOKS, WINDOWS, windows
    from utils.search.query import explained, kept_effects
    from utils.search.store import Entry, FileState
    from utils.Siamese import SiameseNetwork

    regions = sum(number**2 for _, number, _ in WINDOWS) + LOOKS
    rows = []
    for dim in (16, 128):
        rng = np.random.default_rng(0)
        model = SiameseNetwork("Conv4", embedding_dim=dim, image_size=(224, 224)).eval()
        closer = windows(0.125, 15, (224, 224))[:LOOKS].numpy().astype(np.int16)

        def draw():
            z = rng.normal(size=dim).astype(np.float32)
            delta = rng.normal(size=(regions, dim)).astype(np.float16) / 10
            details = rng.normal(size=(DIRECTIONS, DETAIL, DETAIL)).astype(np.float16)
            return Entry(0, FileState("a.jpg", 1, 1), (300, 200), z, closer, delta, details)

        entries, query_effects = [draw() for _ in range(10)], kept_effects(model, draw())
        box = model.frame.box((300, 200))
        times = []
        for _ in range(10):
            start = time.perf_counter()
            for entry in entries:
                explained(model, query_effects, box, kept_effects(model, entry), box)
            times.append(time.perf_counter() - start)
        size = sum(kept.nbytes for kept in (entries[0].closer, entries[0].delta, entries[0].details))
        rows.append((dim, round(1000 * float(np.median(times))), size))
    print(
        pd.DataFrame(rows, columns=["dim", "ten hits explained, ms", "bytes of effects an image"]).to_string(
            index=False
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="*", help="`explain`; without it, the stores")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--count", type=int, default=1_000_000, help="embeddings")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    if options.step == ["explain"]:
        explain_hits()
        return
    if options.step:
        step, name, folder, count, dim = options.step
        {"build": build, "query": query, "append": append, "state": state}[step](
            STORES[name], Path(folder), int(count), int(dim)
        )
        return
    rows = [measure(name, options.count, dim, options.kills) for dim in options.dims for name in options.stores]
    print(f"{options.count:,} embeddings; {about_computer()}")
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
