"""What a search among a million embeddings costs, beside other stores, and finding near duplicates.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.search                         # stores; --stores SQLite: the project's alone
    python -m benchmarks.search duplicates --count 100000

Embeddings and hashes are random. Of hashes, one in a thousand gets a twin, which differs in as many bits as a twin may.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import about_computer, seconds
from utils.images.fingerprints import MAX_BITS, near_duplicate_groups

QUERIES = 20
BATCH = 10_000  # images between two commits
BITS = 256  # of a hash


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
        self.index.add([(name, "0123456789abcdef") for name in names], z)

    def nearest(self, z: np.ndarray) -> list[str]:
        return [entry.file for _, entry in self.index.nearest(z, 10)]


class LanceDB:
    def __init__(self, folder: Path, dim: int) -> None:
        import lancedb
        import pyarrow as pa

        schema = pa.schema([("file", pa.string()), ("z", pa.list_(pa.float32(), dim))])
        self.table = lancedb.connect(str(folder / "lance")).create_table("images", schema=schema, exist_ok=True)

    def add(self, names: Sequence[str], z: np.ndarray) -> None:
        import pyarrow as pa

        rows = pa.FixedSizeListArray.from_arrays(pa.array(z.ravel()), z.shape[1])
        self.table.add(pa.Table.from_arrays([pa.array(names), rows], schema=self.table.schema))

    def nearest(self, z: np.ndarray) -> list[str]:
        return self.table.search(z).limit(10).select(["file", "_distance"]).to_arrow()["file"].to_pylist()


class FAISS:
    """An exact index in one file, names in a Parquet file: each is written whole by every commit."""

    def __init__(self, folder: Path, dim: int) -> None:
        import faiss
        import pyarrow.parquet as pq

        self.vectors, self.table = folder / "index.faiss", folder / "images.parquet"
        self.rows = pq.read_table(self.table) if self.table.exists() else None
        self.index = faiss.read_index(str(self.vectors)) if self.table.exists() else faiss.IndexFlatL2(dim)

    def add(self, names: Sequence[str], z: np.ndarray) -> None:
        import faiss
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.index.add(z)
        new = pa.table({"file": names})
        self.rows = new if self.rows is None else pa.concat_tables([self.rows, new])
        faiss.write_index(self.index, str(self.vectors) + ".partial")
        pq.write_table(self.rows, str(self.table) + ".partial")
        os.replace(str(self.vectors) + ".partial", self.vectors)
        os.replace(str(self.table) + ".partial", self.table)

    def nearest(self, z: np.ndarray) -> list[str]:
        return self.rows["file"].take(self.index.search(z[None], 10)[1][0]).to_pylist()


STORES = {store.__name__: store for store in (SQLite, LanceDB, FAISS)}


def measure(name: str, count: int, dim: int) -> dict[str, object]:
    """Build, open, and search for the ten nearest; they are compared with those of a loop over the queries."""
    z, queries = embeddings(count, dim), embeddings(QUERIES, dim, seed=1)
    step = count if name == "FAISS" else BATCH  # which writes everything each time: at once
    files = [f"class/{k:07d}.jpg" for k in range(count)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        store = STORES[name](folder, dim)
        parts = [slice(start, start + step) for start in range(0, count, step)]
        built = seconds(lambda: [store.add(files[part], z[part]) for part in parts])
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
        times, found = [], []
        start = time.perf_counter()  # of the first query, opening included
        store = STORES[name](folder, dim)
        for query in queries:
            found.append(store.nearest(query))
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
    expected = [[files[k] for k in np.argsort(np.square(z - query).sum(1), kind="stable")[:10]] for query in queries]
    return {
        "store": name,
        "numbers": dim,
        "build s": round(built, 1),
        "MB": round(size),
        "first query s": round(times[0], 2),
        "query ms": round(1000 * float(np.median(times[1:]))),
        "right": f"{sum(one == other for one, other in zip(found, expected))}/{QUERIES}",
    }


def planted(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes, bool (N, 256), and the positions of the twins, int (2, N / 1000)."""
    bits = rng.integers(0, 2, (count, BITS), dtype=np.uint8).view(bool)
    places = rng.choice(count, (2, count // 1000), replace=False)
    for first, second in places.T:
        bits[second] = bits[first]
        bits[second, rng.choice(BITS, MAX_BITS, replace=False)] ^= True
    return bits, places


def near_duplicates(count: int) -> str:
    bits, (first, second) = planted(count, np.random.default_rng(0))
    twice = [2 * np.packbits(row).tobytes().hex() for row in bits]  # as it lies, and in its pose
    prints = pd.DataFrame({"content": map(str, range(count)), "bits": twice})
    start = time.perf_counter()
    groups = near_duplicate_groups(prints)
    took = time.perf_counter() - start
    found = int((groups[first] == groups[second]).sum())
    others = count - len(np.unique(groups)) - found
    return f"{count:,} images: {took:.1f} s; {found}/{len(first)} twins, {others} others"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("stores", "duplicates"), default="stores")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--count", type=int, help="of embeddings (default: 1,000,000) or hashes (100,000)")
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 128], help="numbers of an embedding")
    options = parser.parse_args()
    print(about_computer())
    if options.what == "duplicates":
        print(near_duplicates(options.count or 100_000))
        return
    count = options.count or 1_000_000
    rows = [measure(name, count, dim) for dim in options.dims for name in options.stores]
    print(f"{count:,} embeddings\n{pd.DataFrame(rows).to_string(index=False)}")


if __name__ == "__main__":
    main()
