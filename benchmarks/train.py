"""How fast training is, beside the public implementation's protocol from the same weights, in one run:

    python -m benchmarks.train --dataset Skin_cancer --set image.size=[96,96]

That protocol, written anew after its code and `config.yml`: two sampled pairs per image, drawn once; every file is
decoded whenever it is needed; two forward passes in float32; average pooling, 2 numbers per embedding, the distance
clipped at 1 under a margin of 2; Adam at 5e-6, batches of 4 pairs, nothing frozen, no augmentation. Both are judged on
the same validation pairs, ours after every epoch, the other every `--every` seconds; judging is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from benchmarks.computer import about_computer
from benchmarks.questions import add_set_option, changed, scratch
from utils import training, transfer
from utils.config import load_config
from utils.dataset import load_split, prepare_split
from utils.evaluate.scores import embed_images, pair_distances, score_pairs
from utils.images.frame import to_uint8
from utils.images.pairs import Pairs, evaluation_pairs, make_pairs, pair_batches
from utils.images.reading import read_image
from utils.machine import keep_freed_memory
from utils.settings import Config
from utils.Siamese import SiameseNetwork, embedding_distance
from utils.training import Trainer


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

    def batches(self) -> list[Pairs]:
        """One epoch."""
        return pair_batches(self.pairs, 4, self.rng)

    def step(self, batch: Pairs) -> None:
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

    def run(
        self, wanted: float, most: float, every: float, auc: Callable[[SiameseNetwork], float]
    ) -> tuple[float, float]:
        """Train for `most` seconds or to the `wanted` AUC: the seconds taken, and the highest AUC seen."""
        spent, judged, best = 0.0, 0.0, 0.0
        while True:
            for batch in self.batches():
                self.model.train()
                start = time.perf_counter()
                self.step(batch)
                spent += time.perf_counter() - start
                if spent - judged >= every or spent >= most:
                    judged, best = spent, max(best, auc(self.model))
                    if best >= wanted or spent >= most:
                        return spent, best


def run_ours(config: Config, table: pd.DataFrame, wanted: float) -> tuple[float, float]:
    """Train to the `wanted` AUC or the end: the seconds taken, reading and features among them, and the highest AUC."""
    start, best = time.perf_counter(), 0.0
    torch.manual_seed(config.seed)
    trainer = Trainer(config, table)
    for epoch in range(1, trainer.epochs + 1):
        if epoch == trainer.head_epochs + 1 and trainer.features:
            trainer.start_all()
        best = max(best, trainer.run_epoch(epoch, tqdm(disable=True))["valid_auc"])
        if best >= wanted:
            break
    return time.perf_counter() - start, best


@contextmanager
def plain_layout(trainer: Trainer) -> Iterator[None]:
    """Channels first instead of last."""
    model, normalize = trainer.model, trainer.model.normalize
    model.to(memory_format=torch.contiguous_format)
    with patch.object(model, "normalize", lambda images: normalize(images).contiguous()):
        yield
    model.to(memory_format=torch.channels_last)


@contextmanager
def float32(trainer: Trainer) -> Iterator[None]:
    """No bfloat16 anywhere."""
    no = {"bfloat16_pays": lambda device: False}
    with patch.multiple(training, **no), patch.multiple(transfer, **no):
        yield


@contextmanager
def fused(trainer: Trainer) -> Iterator[None]:
    """The optimizer's step in one kernel."""
    groups, before = (
        [dict(group, fused=True, foreach=False) for group in trainer.optimizer.param_groups],
        trainer.optimizer,
    )
    trainer.optimizer = type(before)(groups)
    yield
    trainer.optimizer = before


@contextmanager
def without_additivity(trainer: Trainer) -> Iterator[None]:
    """The paper's loss alone."""
    with patch.object(trainer, "options", trainer.options.model_copy(update={"additivity": 0.0})):
        yield


@contextmanager
def compiled(trainer: Trainer) -> Iterator[None]:
    """`torch.compile`; on a CPU it needs a C++ compiler."""
    model, embed = trainer.model, torch.compile(trainer.model.embed)
    with patch.object(training, "embed_late", torch.compile(transfer.embed_late)), patch.object(model, "embed", embed):
        yield


@contextmanager
def as_it_is(trainer: Trainer) -> Iterator[None]:
    yield


VARIANTS = {
    "as it is": as_it_is,
    "without additivity": without_additivity,
    "channels first": plain_layout,
    "float32": float32,
    "fused optimizer": fused,
}


def step_seconds(step: Callable, batch: Pairs | np.ndarray, steps: int) -> float:
    """Least time of some steps, the first left out."""
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step(batch)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def rates(
    public: PublicProtocol, config: Config, table: pd.DataFrame, steps: int, variants: dict[str, Callable]
) -> pd.DataFrame:
    """Images and pairs per second of training steps: the public protocol's, and ours of fine-tuning."""
    rows = []

    def row(name: str, seconds: float, images: int, pairs: int) -> None:
        rows.append({"step": name, "ms": 1000 * seconds, "images/s": images / seconds, "pairs/s": pairs / seconds})

    row("public protocol", step_seconds(public.step, public.batches()[0], 4 * steps), 8, 4)
    # The head's features take a while, and these steps do not need them.
    trainer = Trainer(changed(config, {"hyperparameters.head_steps": 0}), table)
    batch = trainer.epoch_batches()[0]
    for _ in range(2):  # in turns, as other work on the machine comes and goes
        for name, variant in variants.items():
            trainer.model.train()
            if config.transfer:
                transfer.freeze(trainer.model, trainer.frozen)
            trainer.scheduler.step = lambda *a: None  # more steps than were planned
            with variant(trainer):
                row(name, step_seconds(trainer.step, batch, steps), len(batch), len(batch) * (len(batch) - 1) // 2)
    return pd.DataFrame(rows).groupby("step", sort=False).agg({"ms": "min", "images/s": "max", "pairs/s": "max"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset")
    parser.add_argument("--config", default="config.yml", type=Path)
    parser.add_argument("--auc", type=float, default=0.75)
    parser.add_argument("--most", type=float, default=100, help="seconds after which the public protocol is stopped")
    parser.add_argument("--every", type=float, default=25, help="seconds between two looks at it")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too; it takes minutes")
    add_set_option(parser)
    arguments = parser.parse_args()
    keep_freed_memory()  # for both
    base = changed(load_config(arguments.config, arguments.dataset), dict(arguments.set))
    with scratch(base) as config:
        table = prepare_split(config)[0]
        public = PublicProtocol(config, table)
        images, rows = load_split(table, "valid", config, public.model.frame)
        pairs = evaluation_pairs(rows.label, config.seed)

        def auc(model: SiameseNetwork) -> float:
            distance = pair_distances(embed_images(model, images, 64), pairs).numpy()
            return score_pairs(distance, pairs.label, 1.0).auc

        size, threads = "x".join(map(str, config.image.size)), torch.get_num_threads()
        print(f"{config.dataset}, {config.backbone_model}, {size} pixels, threads: {threads}; {about_computer()}")
        variants = VARIANTS | ({"compiled": compiled} if arguments.compile else {})
        found = rates(PublicProtocol(config, table), config, table, arguments.steps, variants)
        print(found.round(1).to_string(), flush=True)
        ours, reached = run_ours(config, table, arguments.auc)
        print(f"ours: validation AUC {reached:.3f} after {ours:.1f} s", flush=True)
        theirs, best = public.run(arguments.auc, arguments.most, arguments.every, auc)
        enough = "" if best >= arguments.auc else f", stopped: more than {theirs / ours:.1f}x ours"
        print(f"public protocol: validation AUC {best:.3f} after {theirs:.1f} s{enough}")


if __name__ == "__main__":
    main()
