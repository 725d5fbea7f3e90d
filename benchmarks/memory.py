"""What `utils.machine.keep_freed_memory` is worth: time of training steps, and of the forward passes that measure
regions, without it and with it, on this CPU (Linux).

    python -m benchmarks.memory
"""

import subprocess
import sys
import time

import torch

from utils.machine import keep_freed_memory
from utils.Siamese import SiameseNetwork

# Backbone, pixels, images at once, and whether a step is one of training.
SETTINGS = (
    ("Conv4", 64, 32, True),
    ("Conv4", 96, 64, True),
    ("MobileNet", 96, 64, True),
    ("resnet18", 96, 32, True),
    ("Conv4", 64, 32, False),
    ("EfficientNetLite0", 224, 32, False),
    ("ResNet50", 224, 32, False),
)


def milliseconds_per_image(backbone: str, size: int, batch: int, training: bool, steps: int = 4) -> float:
    """A forward pass of one batch, in training a backward pass, too; the first left out."""
    torch.manual_seed(0)
    model = SiameseNetwork(backbone, image_size=(size, size)).train(training)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(training):
        for step in range(steps + 1):
            if step == 1:
                start = time.perf_counter()
            embeddings = model.embed(images)
            if training:
                embeddings.square().sum().backward()
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
        f"{'backbone':<17} {'pixels':>6} {'batch':>5} {'step':<8} {'without':>8} {'with':>8} {'ratio':>6}   (ms per "
        f"image, {torch.get_num_threads()} threads)"
    )
    for (backbone, size, batch, training), slow, fast in zip(SETTINGS, times["without"], times["with"]):
        step = "training" if training else "forward"
        print(f"{backbone:<17} {size:>6} {batch:>5} {step:<8} {slow:>8.2f} {fast:>8.2f} {slow / fast:>6.2f}")


if __name__ == "__main__":
    main()
