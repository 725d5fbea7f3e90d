"""What images cost before a network sees them: generated photographs, decoded every time, by torchvision's ImageFolder
and a DataLoader, and from the cache.

    python -m benchmarks.data            # time to the first batch, images per second, shares of a training epoch
    python -m benchmarks.data memory     # of a process that goes through 1,000 and 20,000 images (Linux)

All files are in the system's file cache, so disks play no part. ImageFolder opens no file before it is asked for, and
knows of no broken ones and no near duplicates; what is ours looks at every file for these first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm.auto import tqdm

from benchmarks.computer import about_computer
from utils.dataset import load_for_training, prepare_split
from utils.images.cache import Images, read_images
from utils.images.frame import Frame, load_what_opens, to_uint8
from utils.images.reading import read_image
from utils.settings import Config
from utils.training import Trainer

SIZE = (1440, 960)  # width, height
FRAME = Frame((224, 224))
BATCH = 64
NETWORKS = {
    "Conv4": {"backbone_model": "Conv4"},
    "EfficientNetLite0": {"backbone_model": "EfficientNetLite0", "pretrained": True, "normalize_embeddings": True},
}
SMALL = Frame((64, 64))  # where memory is measured
IN_MEMORY = 100_000  # so many small images are also measured without the cache; a million of them are 12 GB


def photographs(folder: Path, count: int, size: tuple[int, int] = SIZE) -> None:
    """JPEG files of two classes: coarse colours with fine detail."""
    rng = np.random.default_rng(0)
    for index in tqdm(range(count), desc="Generating photographs"):
        few = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        detail = rng.integers(-20, 21, (size[1], size[0], 1), dtype=np.int16)
        pixels = np.asarray(few.resize(size, Image.Resampling.BICUBIC)) + detail
        path = folder / "ab"[index % 2] / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def configuration(folder: Path, threads: int, **settings: object) -> Config:
    return Config(
        dataset="Photographs",
        data_path=folder / "images",
        checkpoints_path=folder / "checkpoints",
        outputs_path=folder / "outputs",
        image={"size": FRAME.size, "fit": FRAME.fit, "RandomResizedCrop": 0.5},
        hyperparameters={"num_workers": threads, "batch_size": BATCH, "verbose": False, "epochs": 1, "head_steps": 0},
        **settings,
    )


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def first_batch(config: Config) -> Images:
    """All that is done before a training's first step, but for the network."""
    table, loaded, _ = load_for_training(prepare_split(config)[0], config, FRAME)
    images = loaded["train"][0]
    images[np.arange(BATCH)]
    return images


def torchvision_loader(folder: Path, threads: int) -> DataLoader:
    change = v2.Compose([v2.PILToTensor(), v2.Resize(FRAME.size, antialias=True)])
    images = ImageFolder(str(folder), change)
    return DataLoader(images, BATCH, shuffle=True, num_workers=threads, persistent_workers=threads > 0)


def draft(path: Path) -> torch.Tensor:
    """As `to_uint8(read_image(path))`, but the JPEG decoder makes a smaller image in the first place."""
    with Image.open(path) as image:
        image.draft("RGB", FRAME.size[::-1])
        return to_uint8(image, FRAME)


def times(folder: Path, threads: int) -> tuple[pd.DataFrame, str]:
    """Seconds to the first batch, and images per second in later epochs, by each way; and what draft mode does."""
    paths = sorted((folder / "images").rglob("*.jpg"))
    rows = {}

    def epoch(batch: Callable[[np.ndarray], object], count: int) -> float:
        order = np.random.default_rng(0).permutation(count)
        return count / seconds(lambda: [batch(part) for part in np.split(order, range(BATCH, count, BATCH))])

    def decode(positions: Sequence[int]) -> None:
        load_what_opens([paths[position] for position in positions], FRAME, threads, verbose=False)

    rows["decoding every time"] = (seconds(lambda: decode(range(BATCH))), epoch(decode, len(paths)))
    loader = torchvision_loader(folder / "images", threads)
    rows["ImageFolder, DataLoader"] = (
        seconds(lambda: next(iter(loader))),
        len(paths) / seconds(lambda: [None for _ in loader]),  # its workers have started
    )
    config = configuration(folder, threads)
    without = seconds(lambda: first_batch(config.model_copy(update={"cache": False})))
    cold, images = seconds(lambda: first_batch(config)), first_batch(config)
    rows["ours, cache: False"] = (without, float("nan"))  # later epochs are in memory
    rows["ours, first time"] = (cold, float("nan"))
    rows["ours, from the cache"] = (
        seconds(lambda: first_batch(config)),
        epoch(images.__getitem__, len(images)),
    )
    some = paths[:BATCH]
    full, fast = ([make(path) for path in some] for make in (lambda path: to_uint8(read_image(path), FRAME), draft))
    slow = seconds(lambda: [to_uint8(read_image(path), FRAME) for path in some])
    ratio = slow / seconds(lambda: [draft(path) for path in some])
    apart = (torch.stack(full).short() - torch.stack(fast).short()).abs().float()
    differ = f"pixels differ by {apart.mean():.2f} of 255 in the mean, by {apart.max():.0f} at most"
    table = pd.DataFrame(rows, index=["first batch after, s", "later, images/s"]).T
    table["as a multiple of decoding"] = table["later, images/s"] / table["later, images/s"].iloc[0]
    return table.round(2), f"JPEG draft mode is {ratio:.1f}x as fast; {differ}"


def shares(folder: Path, threads: int) -> pd.DataFrame:
    """Of an epoch of training from the cache: the shares of time that go into reading images and into changing them at
    random."""
    rows = {}
    for name, settings in NETWORKS.items():
        config = configuration(folder, threads, device="cpu", **settings)
        trainer = Trainer(config, prepare_split(config)[0])
        spent = dict.fromkeys(("reading", "random changes"), 0.0)

        def timed(what: str, action: Callable, *arguments: object) -> object:
            start = time.perf_counter()
            result = action(*arguments)
            spent[what] += time.perf_counter() - start
            return result

        class Timed:
            """Training images that count the time of reading them."""

            def __init__(self, images: Images) -> None:
                self.images = images

            def __getitem__(self, positions: np.ndarray) -> torch.Tensor:
                return timed("reading", self.images.__getitem__, positions)

        trainer.images["train"] = Timed(trainer.images["train"])
        augment = trainer.augment
        trainer.augment = partial(timed, "random changes", augment)
        trainer.augment.skip, trainer.augment.covers = augment.skip, augment.covers
        trainer.model.train()
        batches = trainer.epoch_batches()[:6]
        trainer.step(batches[0])
        spent.update(dict.fromkeys(spent, 0.0))
        trainer.scheduler.step = lambda *a: None
        total = seconds(lambda: [trainer.step(batch) for batch in batches[1:]])
        images = sum(map(len, batches[1:]))
        rows[name] = {"images/s": images / total, **{f"{key}, %": 100 * value / total for key, value in spent.items()}}
    return pd.DataFrame(rows).T.round(2)


def held() -> tuple[float, float]:
    """MiB that this process holds: its own, and of mapped files, which the system takes back when it needs to."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":") for line in lines)
    own, mapped = (int(found[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile"))
    return own, mapped


def hold(folder: Path, cached: bool) -> None:
    """Read all images of a folder, go through them as an epoch does, and print what that has added to the memory."""
    config = configuration(folder, 1, cache=cached)
    files = sorted(path.relative_to(config.data_path).as_posix() for path in config.data_path.rglob("*.jpg"))
    before = held()
    images, _ = read_images(config, files, SMALL)
    for batch in images.split(BATCH):
        batch.max()
    print(*(now - then for now, then in zip(held(), before)))


def memory(counts: Sequence[int]) -> pd.DataFrame:
    """What images add to the memory of a process of its own, MiB."""
    rows = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            photographs(Path(folder) / "images", count, SMALL.size)
            cached = ("making the cache", "from the cache")
            for how in cached if count > IN_MEMORY else ("cache: False", *cached):
                command = [sys.executable, "-m", "benchmarks.data", "hold", folder, *["--cached"] * ("the" in how)]
                rows[count, how] = map(float, subprocess.check_output(command, text=True).split())
    return pd.DataFrame(rows, index=["its own", "mapped files"]).T.round(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("times", "memory", "hold"), default="times")
    parser.add_argument("folder", nargs="?", type=Path, help="for `hold`, which `memory` starts")
    parser.add_argument("--cached", action="store_true", help="for `hold`")
    parser.add_argument("--count", type=int, nargs="*", help="of images; default: 256, or 1000 20000 for memory")
    parser.add_argument("--threads", type=int, default=2, help="that read images")
    arguments = parser.parse_args()
    if arguments.what == "hold":
        hold(arguments.folder, arguments.cached)
    elif arguments.what == "memory":
        print(f"{SMALL.size[0]} x {SMALL.size[1]} pixels, MiB beyond what the process held before")
        print(memory(arguments.count or (1_000, 20_000)).to_string())
    else:
        count = (arguments.count or [256])[0]
        with tempfile.TemporaryDirectory() as name:
            photographs(Path(name) / "images", count)
            bytes_each = np.mean([path.stat().st_size for path in Path(name).rglob("*.jpg")])
            print(about_computer())
            print(f"{count} JPEG files of {SIZE[0]} x {SIZE[1]} pixels, {bytes_each / 1000:.0f} kB in the mean")
            print(f"fitted into {FRAME.size}; threads: {arguments.threads} read, {torch.get_num_threads()} compute")
            table, note = times(Path(name), arguments.threads)
            print(table.to_string(), note, sep="\n")
            print(shares(Path(name), arguments.threads).to_string())


if __name__ == "__main__":
    main()
