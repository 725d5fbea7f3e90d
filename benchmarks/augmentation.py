"""Random changes to training images, images per second: ours, for a batch at once, beside torchvision's transforms, one
image at a time, on this CPU or, with `--device cuda`, on a GPU:

    python -m benchmarks.augmentation

Either way from uint8 images in memory to a batch of float32. *as configured* is `image` in config.yml, *everything*
adds upside-down flips, turns and all four colour changes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torchvision.transforms import v2

from utils.config import load_config
from utils.images.augmentation import Augmentation
from utils.machine import keep_freed_memory
from utils.settings import ImageOptions

SIZES = ((192, 192), (224, 224), (320, 480))
BATCH = 32
MORE = {"VerticalFlip": 0.5, "RandomRotationDegrees": 20}
COLOURS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}


def torchvisions(options: ImageOptions) -> v2.Compose:
    """The transforms whose distributions ours have."""
    height, width = options.size
    blank = [round(255 * value) for value in options.normalization.mean]
    ratio = (3 / 4 * width / height, 4 / 3 * width / height)
    steps = [v2.RandomHorizontalFlip(options.HorizontalFlip), v2.RandomVerticalFlip(options.VerticalFlip)]
    if options.RandomRotationDegrees:
        steps.append(v2.RandomRotation(options.RandomRotationDegrees, v2.InterpolationMode.BILINEAR, fill=blank))
    steps.append(v2.RandomResizedCrop(options.size, (options.RandomResizedCrop, 1), ratio))
    if options.brightness:
        steps.append(v2.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue))
    return v2.Compose([*steps, v2.RandomErasing(options.RandomErasing, value=blank)])


def images_per_second(
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]], images: torch.Tensor, rounds: int
) -> dict[str, float]:
    """The best of some rounds of each, in turns, as other work on the machine comes and goes."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, change in ways.items():
            start = time.perf_counter()
            change(images)
            if images.device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: len(images) / min(some[1:]) for name, some in times.items()}


def compare(options: ImageOptions, images: torch.Tensor, rounds: int) -> dict[str, float]:
    theirs = torchvisions(options)

    def one_by_one(batch: torch.Tensor) -> torch.Tensor:
        return torch.stack([theirs(image) for image in batch]).float()

    speed = images_per_second({"ours": Augmentation(options, seed=0), "torchvision": one_by_one}, images, rounds)
    return speed | {"ratio": speed["ours"] / speed["torchvision"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    configured, rows = load_config("config.yml", "Flowers").image, []
    for size in SIZES:
        images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(BATCH, 3, *size), dtype=np.uint8))
        for name, changes in (("as configured", {}), ("everything", MORE | COLOURS)):
            options = configured.model_copy(update={"size": size} | changes)
            found = compare(options, images.to(arguments.device), arguments.rounds)
            rows.append({"pixels": "x".join(map(str, size)), "changes": name} | found)
    print(f"images per second, batches of {BATCH}, {arguments.device}, threads: {torch.get_num_threads()}")
    print(pd.DataFrame(rows).to_string(index=False, formatters={"ratio": "{:.2f}x".format}, float_format="%.0f"))


if __name__ == "__main__":
    main()
