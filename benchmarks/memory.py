"""What `utils.training.keep_freed_memory` is worth: time of a training step without it and with it, on this CPU
(Linux).

python -m benchmarks.memory
"""

import subprocess
import sys
import time

import torch

from utils.machine import keep_freed_memory
from utils.Siamese import SiameseNetwork

SETTINGS = (("Conv4", 64, 32), ("Conv4", 96, 64), ("MobileNet", 96, 64), ("resnet18", 96, 32))


def milliseconds_per_image(backbone: str, size: int, batch: int, steps: int = 4) -> float:
    """Forward and backward pass of one batch, the first left out."""
    torch.manual_seed(0)
    model = SiameseNetwork(backbone, image_size=(size, size)).train()
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    for step in range(steps + 1):
        if step == 1:
            start = time.perf_counter()
        model.embed(images).square().sum().backward()
    return 1000 * (time.perf_counter() - start) / steps / batch


def main() -> None:
    if len(sys.argv) > 1:
        if sys.argv[1] == "with":
            keep_freed_memory()
        print(*(milliseconds_per_image(*setting) for setting in SETTINGS))
        return
    times = {  # each in a process of its own: an allocator does not forget
        how: [
            float(t)
            for t in subprocess.check_output([sys.executable, "-m", "benchmarks.memory", how], text=True).split()
        ]
        for how in ("without", "with")
    }
    print(
        f"{'backbone':<10} {'pixels':>6} {'batch':>5} {'without':>10} {'with':>10} {'ratio':>6}   (ms per "
        f"image, {torch.get_num_threads()} threads)"
    )
    for (backbone, size, batch), slow, fast in zip(SETTINGS, times["without"], times["with"]):
        print(f"{backbone:<10} {size:>6} {batch:>5} {slow:>10.2f} {fast:>10.2f} {slow / fast:>6.2f}")


if __name__ == "__main__":
    main()
