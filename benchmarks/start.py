"""How long a short command takes to start: seconds until the help is there, and until the shipped network is loaded and
has embedded an image; beside those of Python and of PyTorch alone.

    python -m benchmarks.start
    python -m benchmarks.start . ../before      # of other checkouts, too: git worktree add ../before COMMIT

Each time is the least of some runs, each in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from benchmarks.computer import about_computer

EMBED = """
from PIL import Image
from utils.Siamese import SiameseNetwork
model = SiameseNetwork.load("checkpoints/shipped/Synthetic/model.pth")
model.embed(model.preprocess(Image.new("RGB", (64, 64)))[None])
"""
STARTS = {
    "python": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "python -m utils --help": ["-m", "utils", "--help"],
    "load a network, embed an image": ["-c", EMBED],
}


def least_seconds(arguments: list[str], checkout: Path, runs: int) -> float:
    """Of some runs of Python in a checkout; one before them, which fills the system's file cache, does not count."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=checkout, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path()], help="folders (default: this one)")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    rows = {
        name: {str(place): least_seconds(arguments, place, options.runs) for place in options.checkouts}
        for name, arguments in STARTS.items()
    }
    print(f"seconds, the least of {options.runs} runs; {about_computer()}")
    print(pd.DataFrame(rows).T.round(2).to_string())


if __name__ == "__main__":
    main()
