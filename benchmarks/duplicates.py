"""Near duplicates among many images, and pairs of them: seconds and memory.

    python -m benchmarks.duplicates                     # 100,000 and 1,000,000 images
    python -m benchmarks.duplicates --counts 100000
    python -m benchmarks.duplicates --folders FOLDER    # of photographs: the same groups as by comparing all pairs?

Hashes are random, which photographs' are not quite: theirs agree in more bits, and more of them have to be compared. In
one of a thousand a twin is planted, which differs in as many bits as a twin may. Each row is measured in a process of
its own; memory is its peak above what it held before, its input included (Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from benchmarks.computer import about_computer
from benchmarks.search import peak_memory
from utils.images import hashes
from utils.images.duplicates import MOST_BITS, Fingerprint, fingerprints, twin_groups
from utils.images.folder import images_below
from utils.images.pairs import make_pairs

BITS = 256
CLASSES = 1000


def planted(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes, bool (N, 256), and the positions of the planted twins, int (2, N / 1000)."""
    bits = rng.integers(0, 2, (count, BITS), dtype=np.uint8).view(bool)
    places = rng.choice(count, (2, count // 1000), replace=False)
    for first, second in places.T:
        bits[second] = bits[first]
        bits[second, rng.choice(BITS, MOST_BITS, replace=False)] ^= True
    return bits, places


def twins(count: int) -> dict[str, object]:
    bits, places = planted(count, np.random.default_rng(0))
    start = time.perf_counter()
    groups = twin_groups([Fingerprint(k.to_bytes(8, "big"), row, (1, 1)) for k, row in enumerate(bits)])
    seconds = time.perf_counter() - start
    found = int((groups[places[0]] == groups[places[1]]).sum())
    others = count - len(np.unique(groups)) - found
    return {"seconds": seconds, "result": f"{found}/{places.shape[1]} planted twins, {others} others"}


def pairs(count: int) -> dict[str, object]:
    labels = np.random.default_rng(0).integers(CLASSES, size=count)
    start = time.perf_counter()
    made = make_pairs(labels, np.random.default_rng(1))
    seconds = time.perf_counter() - start
    right = (labels[made.first] != labels[made.second]) == made.label
    return {"seconds": seconds, "result": f"{len(right)} pairs, {CLASSES} classes, {right.sum()} labelled rightly"}


def photographs(folder: Path) -> dict[str, object]:
    """Near duplicates in a folder by parts of hashes, and by comparing all pairs, as is done with few images."""
    prints = fingerprints(sorted(images_below(folder, [])), 2)
    compared, candidates, groups, seconds = [], hashes._candidates, [], []

    def counted(*arguments: object) -> Iterator[np.ndarray]:
        for pairs in candidates(*arguments):
            compared.append(pairs.shape[1])
            yield pairs

    for few in (0, len(prints)):
        with patch.multiple(hashes, FEW=few, _candidates=counted):
            start = time.perf_counter()
            groups.append(twin_groups(prints))
            seconds.append(time.perf_counter() - start)
    return {
        "folder": folder.name,
        "images": len(prints),
        "groups": int((np.bincount(groups[0]) > 1).sum()),
        "same by all pairs": bool((groups[0] == groups[1]).all()),
        "pairs compared": f"{sum(compared) / (len(prints) * (len(prints) - 1) / 2):.1%}",
        "seconds": f"{seconds[0]:.2f}",
        "by all pairs": f"{seconds[1]:.2f}",
    }


STEPS = {"near duplicates": twins, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", nargs="+", type=int, default=[100_000, 1_000_000], help="images")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--folders", nargs="+", type=Path, help="of photographs, instead of random hashes")
    parser.add_argument("--here", action="store_true", help="measure one row in this process")
    arguments = parser.parse_args()
    if arguments.here:
        before = peak_memory()
        row = STEPS[arguments.steps[0]](arguments.counts[0])
        print(row["seconds"], peak_memory() - before, row["result"], sep="\t")
        return
    rows = [photographs(folder) for folder in arguments.folders or ()]
    for step in arguments.steps if not rows else ():
        for count in arguments.counts:
            command = [sys.executable, "-m", "benchmarks.duplicates", "--here", "--steps", step, "--counts", str(count)]
            seconds, memory, result = subprocess.check_output(command, text=True).strip().split("\t")
            size = f"{int(memory) / 2**20:.0f} MiB"
            rows.append(
                {
                    "step": step,
                    "images": f"{count:,}",
                    "seconds": f"{float(seconds):.2f}",
                    "memory": size,
                    "found": result,
                }
            )
    print(about_computer())
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
