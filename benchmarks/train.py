"""How fast training is, beside the public implementation's protocol from the same weights, and how fast images come:

    python -m benchmarks.train --dataset Skin_cancer --set image.size=[96,96]
    python -m benchmarks.train reading       # photographs: decoded every time, and from the cache

That protocol, written after its code and `config.yml`: two sampled pairs per image, drawn once; every file is decoded
whenever it is needed; two forward passes in float32; average pooling, 2 numbers per embedding, the distance clipped at
1 under a margin of 2; Adam at 5e-6, batches of 4 pairs, nothing frozen, no augmentation. Both are judged on the same
pairs, the other every `--every` seconds, which is not counted.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data.dataloader import _BaseDataLoaderIter

from benchmarks.common import about_computer, add_dataset_options, best_seconds, changed, chosen_config, scratch
from utils.dataset import load_split, prepare_split
from utils.evaluate.scores import embed_images, pair_distances, score_pairs
from utils.images.frame import Frame, to_uint8
from utils.images.pairs import Pairs, evaluation_pairs, make_pairs, pair_batches
from utils.images.reading import read_image
from utils.Siamese import SiameseNetwork, embedding_distance
from utils.system.machine import keep_freed_memory
from utils.system.settings import Config
from utils.training import train
from utils.training.data import ImageLoader, Request

PHOTOGRAPH = (1440, 960)  # width, height
BATCH = 64


class PublicProtocol:
    """Training as the public implementation does it."""

    def __init__(self, config: Config, table: pd.DataFrame) -> None:
        torch.manual_seed(config.seed)
        weights = (config.backbone_model, config.pretrained)
        self.model = SiameseNetwork(*weights, pooling="avg", embedding_dim=2, image_size=config.image.size)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-6)
        rows = table[table.split == "train"]
        self.paths = [config.data_path / file for file in rows.file]
        self.rng = np.random.default_rng(config.seed)
        self.pairs = make_pairs(rows.label.to_numpy(), self.rng)
        self.seconds: list[float] = []  # of each step

    def batches(self) -> list[Pairs]:
        """One epoch."""
        return pair_batches(self.pairs, 4, self.rng)

    def step(self, batch: Pairs) -> None:
        start = time.perf_counter()
        self.model.train()
        ends = []
        for positions in (batch.first, batch.second):
            images = [to_uint8(read_image(self.paths[position]), self.model.frame) for position in positions]
            ends.append(self.model.embed(self.model.normalize(torch.stack(images)).contiguous()))
        distance, label = embedding_distance(*ends).clamp(max=1), torch.from_numpy(batch.label)
        loss = ((1 - label) * distance.square() + label * (2 - distance).square()).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)

    def run(self, wanted: float, most: float, every: float, auc: Callable[[SiameseNetwork], float]) -> tuple:
        """Train for `most` seconds or to the `wanted` AUC: the seconds taken, and the highest AUC seen."""
        judged, best = 0.0, 0.0
        while True:
            for batch in self.batches():
                self.step(batch)
                spent = sum(self.seconds)
                if spent - judged >= every or spent >= most:
                    judged, best = spent, max(best, auc(self.model))
                    if best >= wanted or spent >= most:
                        return spent, best


@contextmanager
def watched() -> Iterator[tuple[list[float], list[tuple[float, float]]]]:
    """Lists that fill while training runs: the moments of the optimizer's steps; when a batch came, and for how many
    seconds it had been waited for."""
    steps, waits, following = [], [], _BaseDataLoaderIter.__next__

    def wait(self) -> object:
        start = time.perf_counter()
        try:
            return following(self)
        finally:
            now = time.perf_counter()
            waits.append((now, now - start))

    hook = register_optimizer_step_post_hook(lambda *_: steps.append(time.perf_counter()))
    with patch.object(_BaseDataLoaderIter, "__next__", wait):
        yield steps, waits
    hook.remove()


def rate_of_ours(config: Config, table: pd.DataFrame) -> tuple[float, float]:
    """An epoch of fine-tuning: images per second, and the share of the time that is spent waiting for data."""
    with watched() as (steps, waits):
        train(changed(config, {"hyperparameters.head_steps": 0, "hyperparameters.epochs": 1}), table)
    images = (table.split == "train").sum() / len(steps)  # of a step
    waited = sum(seconds for moment, seconds in waits if steps[0] < moment <= steps[-1])
    return images / float(np.median(np.diff(steps))), waited / (steps[-1] - steps[0])


def run_ours(config: Config, table: pd.DataFrame, wanted: float) -> tuple[float, float]:
    """Train to the end, with pretrained weights the head alone, which comes first anyway: the seconds until the
    `wanted` AUC, all that is not an epoch counted in, and the AUC reached by then."""
    start = time.perf_counter()
    history = train(changed(config, {"hyperparameters.epochs": 0}) if config.transfer else config, table)
    rest = time.perf_counter() - start - history.seconds.sum()
    enough = np.flatnonzero(history.valid_auc >= wanted)
    until = history[: enough[0] + 1 if len(enough) else None]
    return rest + until.seconds.sum(), until.valid_auc.max()


def photographs(folder: Path, count: int) -> None:
    """JPEG files of two classes: coarse colours with fine detail."""
    rng = np.random.default_rng(0)
    for index in range(count):
        few = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        detail = rng.integers(-20, 21, (*PHOTOGRAPH[::-1], 1), dtype=np.int16)
        pixels = np.asarray(few.resize(PHOTOGRAPH, Image.Resampling.BICUBIC)) + detail
        path = folder / "ab"[index % 2] / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def reading(config: Config, count: int) -> dict[str, float]:
    """Images per second of generated photographs: by decoding every file, from the cache, and as training gets them,
    changed at random as configured; all files are in the system's file cache."""
    photographs(config.data_path, count)
    frame = Frame(config.image.size)
    table = prepare_split(config)[0]  # fills the cache
    files = table.file[table.split == "train"]
    order = np.random.default_rng(0).permutation(len(files))

    def decode() -> None:
        for file in files[:BATCH]:
            to_uint8(read_image(config.data_path / file), frame)

    def read() -> None:
        """An epoch, with what comes first: whether the files are those that the cache knows."""
        images, _ = load_split(table, "train", config, frame)
        for start in starts:
            images[order[start : start + BATCH]]

    def change() -> None:
        """An epoch of fine-tuning, without the network."""
        for _ in loader([Request(order[s : s + BATCH], s, 1, 1.0, others[s : s + BATCH]) for s in starts]):
            pass

    starts, others = range(0, len(order), BATCH), np.roll(order, 1)
    images, workers = load_split(table, "train", config, frame)[0], config.hyperparameters.num_workers
    loader = ImageLoader(images, config.image, config.seed, workers)
    decoding = min(len(files), BATCH) / best_seconds(decode)
    cached, ready = (len(files) / best_seconds(epoch) for epoch in (read, change))
    rates = {"decoding, images/s": decoding, "from the cache": cached, "times as fast": cached / decoding}
    return rates | {"and changed at random, images/s": ready}


def compare(config: Config, options: argparse.Namespace) -> None:
    """Print both protocols' images per second, and how long they take to an AUC."""
    table = prepare_split(config)[0]
    public = PublicProtocol(config, table)
    images, rows = load_split(table, "valid", config, public.model.frame)
    pairs = evaluation_pairs(rows.label, config.seed)

    def auc(model: SiameseNetwork) -> float:
        distance = pair_distances(embed_images(model, images, BATCH), pairs).numpy()
        return score_pairs(distance, pairs.label, 1.0).auc

    print(f"{config.dataset}, {config.backbone_model}, {'x'.join(map(str, config.image.size))} pixels")
    rate, waiting = rate_of_ours(config, table)
    ours, reached = run_ours(config, table, options.auc)
    print(f"ours: {rate:.0f} images/s, {100 * waiting:.1f} % of it waiting for data", flush=True)
    print(f"ours: validation AUC {reached:.3f} after {ours:.1f} s", flush=True)
    theirs, best = public.run(options.auc, options.most, options.every, auc)
    enough = "" if best >= options.auc else f", stopped: more than {theirs / ours:.1f}x ours"
    print(f"public protocol: {8 / np.median(public.seconds):.0f} images/s")
    print(f"public protocol: validation AUC {best:.3f} after {theirs:.1f} s{enough}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("compare", "reading"), default="compare")
    parser.add_argument("--auc", type=float, default=0.75)
    parser.add_argument("--most", type=float, default=100, help="seconds after which the public protocol is stopped")
    parser.add_argument("--every", type=float, default=25, help="seconds between two scores of it")
    parser.add_argument("--count", type=int, default=512, help="photographs to read")
    add_dataset_options(parser)
    options = parser.parse_args()
    if options.what == "reading":
        options.dataset = options.dataset or "Flowers"
    keep_freed_memory()  # for both
    print(f"{about_computer()}; threads: {torch.get_num_threads()}")
    with scratch(chosen_config(options)) as config:
        if options.what == "compare":
            compare(config, options)
            return
        with tempfile.TemporaryDirectory() as folder:
            settings = {"dataset": "Photographs", "data_path": Path(folder)}
            found = reading(changed(config, settings), options.count)
    print(", ".join(f"{what}: {value:.0f}" for what, value in found.items()))


if __name__ == "__main__":
    main()
