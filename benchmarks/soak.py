"""Does memory stay flat? Many explanations and queries in one process, on a tiny network; printed is the memory that
the process holds (resident set size) after every tenth of them. Linux only.

    python -m benchmarks.soak

Every explanation is of a pair of fresh images, by one method after the other; every query embeds one image and ranks
1,000 others by it.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

from utils.Grad_CAM import explain
from utils.Siamese import SiameseNetwork, embedding_distance

METHODS = ("occlusion", "contrast", "distance")


def soak(rounds: int, parts: int = 10) -> list[float]:
    """`rounds` explanations and as many queries -> MiB held after each of `parts` equal parts of them."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", embedding_dim=8, image_size=(16, 16)).eval()
    known = torch.randn(1000, 8, generator=random)
    held = []
    for done in range(1, rounds + 1):
        one, two = torch.randn(2, 1, 3, 16, 16, generator=random)
        explain(model, one, two, METHODS[done % len(METHODS)])
        with torch.no_grad():
            embedding_distance(model.embed(one), known).topk(10, largest=False)
        if done % max(1, rounds // parts) == 0:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            held.append(pages * os.sysconf("SC_PAGESIZE") / 2**20)
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    rounds = parser.parse_args().rounds
    start = time.perf_counter()
    held = soak(rounds)
    print(f"{rounds:,} explanations and {rounds:,} queries in {time.perf_counter() - start:.0f} s")
    print("MiB held after each tenth:", " ".join(f"{mebibytes:.0f}" for mebibytes in held))
    print(f"from the second tenth to the last: {held[-1] - held[1]:+.1f} MiB")


if __name__ == "__main__":
    main()
