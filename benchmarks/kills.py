"""Is training that was killed, at any moment, and started again the same as training that was left alone?

    python -m benchmarks.kills --points 20

Small networks on small images, one from random weights and one from pretrained ones; killed (SIGKILL) before a step of
the optimizer or before a finished file takes its place, at points drawn at random; then started again. In the end one
of two processes that torchrun has started is killed, and both are started again. Compared are the history, but for its
seconds, and every number of both checkpoints, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.questions import changed
from utils.config import load_config
from utils.settings import Config
from utils.training import Trainer, train

EVENTS = {"step": (Trainer, "step"), "write": (Path, "replace")}


@contextmanager
def watched(die: tuple[str, int] | None = None) -> Iterator[Counter]:
    """Count the events of a training run, and die at one of them, as by `kill -9`."""
    counts: Counter = Counter()

    def watch(name, function):
        def call(*args, **options):
            counts[name] += 1
            if die == (name, counts[name]):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    patches = [patch.object(owner, name, watch(event, getattr(owner, name))) for event, (owner, name) in EVENTS.items()]
    with patches[0], patches[1]:
        yield counts


def start(config: Config, processes: int, *command: str) -> subprocess.CompletedProcess:
    """Run a module that takes a configuration, in a process of its own, or in several by torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        config.save(Path(folder) / "config.yml")
        run = [sys.executable, *(torchrun if processes > 1 else []), "-m", *command]
        return subprocess.run(
            [*run, "--config", str(Path(folder) / "config.yml")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )


def train_killed(config: Config, event: str, count: int, processes: int = 1) -> None:
    """Train in a process of its own, or in several, of which the last is killed at the event's `count`-th time.

    Raises:
        RuntimeError: it ended otherwise.
    """
    child = start(config, processes, "benchmarks.kills", "--die", event, str(count))
    killed = "SIGKILL" in child.stderr if processes > 1 else child.returncode == -signal.SIGKILL
    if not killed:
        raise RuntimeError(f"not killed at {event} {count}, but ended with {child.returncode}: {child.stderr[-500:]}")


def kill_one_of_two(config: Config, count: int) -> str | None:
    """What differs between two processes that were left alone and two of which one was killed at a step, and that were
    started again."""
    alone, again = (
        changed(config, {"checkpoints_path": config.checkpoints_path.parent / name}) for name in ("two", "one of two")
    )
    train_killed(again, "step", count, processes=2)
    for run in (alone, again):
        child = start(run, 2, "utils", "train")
        child.check_returncode()
    if "training goes on from there" not in child.stdout:
        return "started anew"
    return difference(alone.checkpoints_path, again.checkpoints_path)


def difference(one: Path, other: Path) -> str | None:
    """What of the results of two runs differs, in a word; `None` if they are the same bit for bit."""
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (one, other)]
    if not histories[0].equals(histories[1]):
        return "history"
    for name in ("split.csv", "model.pth", "last.pth"):
        if name.endswith("csv"):
            same = (one / name).read_bytes() == (other / name).read_bytes()
        else:
            a, b = (torch.load(folder / name, weights_only=True)["state_dict"] for folder in (one, other))
            same = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        if not same:
            return name
    return None


def draw_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("dark", "light", "red"):
        (folder / label).mkdir(parents=True)
        for k in range(14):
            pixels = rng.integers(128, size=(64, 64, 3)) + (128 if label == "light" else 0)
            pixels[..., 0] = np.where(label == "red", 255 - pixels[..., 0] // 2, pixels[..., 0])
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{k}.png")


def configurations(folder: Path) -> dict[str, Config]:
    """From random weights, and from pretrained ones: the head alone first, then all of it."""
    draw_images(folder / "data")
    options = {"batch_size": 8, "verbose": False, "num_workers": 0}
    base = Config(
        dataset="kills",
        data_path=folder / "data",
        checkpoints_path=folder / "alone",
        outputs_path=folder / "outputs",
        image={"size": (64, 64), "RandomErasing": 0.5},
        test_size=0.2,
        valid_size=0.3,
        device="cpu",
        hyperparameters=options | {"epochs": 4},
    )
    return {
        "random weights": changed(base, {"backbone_model": "Conv4", "pretrained": False}),
        "pretrained": changed(
            base,
            {
                "backbone_model": "EfficientNetLite0",
                "pretrained": True,
                "hyperparameters.head_steps": 9,
                "hyperparameters.epochs": 2,
            },
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20, help="to kill at, in all")
    parser.add_argument("--die", nargs=2, metavar=("EVENT", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.die:
        last = int(os.environ.get("RANK", 0)) + 1 == int(os.environ.get("WORLD_SIZE", 1))
        with watched((arguments.die[0], int(arguments.die[1])) if last else None):
            train(load_config(arguments.config))
        return
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as place, tqdm(total=arguments.points, desc="Killing") as bar:
        networks = configurations(Path(place))
        for k, (network, config) in enumerate(networks.items()):
            config = changed(config, {"checkpoints_path": Path(place) / network / "alone"})
            with watched() as counts:
                train(config)
            points = [(event, n + 1) for event in EVENTS for n in range(counts[event])]
            number = arguments.points // 2 + (k == 0) * (arguments.points % 2)
            for point in sorted(rng.choice(len(points), number, replace=False)):
                event, count = points[point]
                again = changed(config, {"checkpoints_path": Path(place) / network / f"{event}{count}"})
                train_killed(again, event, count)
                train(again)
                differs = difference(config.checkpoints_path, again.checkpoints_path)
                rows.append((network, f"{event} {count} of {counts[event]}", differs or "the same"))
                bar.update()
        differs = kill_one_of_two(networks["random weights"], 9)
        rows.append(("random weights, two processes", "step 9, one of them", differs or "the same"))
    print(pd.DataFrame(rows, columns=["network", "killed before", "result"]).to_string(index=False))


if __name__ == "__main__":
    main()
