"""What tests let die half way, in a process of its own: where there is fork, of one that has imported what takes
long."""

import multiprocessing
import os
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from samples import colour_config

from benchmarks.common import changed
from utils.images import cache
from utils.training import train
from utils.training.loop import Trainer

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
KILLED = -signal.SIGKILL if os.name == "posix" else signal.SIGTERM  # the exit code
EVENTS = {"step": (Trainer, "step"), "write": (Path, "replace")}


def exit_code(function, *arguments):
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(["utils.training.loop"])
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@contextmanager
def watched(die=None):
    """Count the events of a training run, and die at one of them, as by `kill -9`."""
    counts: Counter = Counter()

    def watch(name, function):
        def call(*args, **options):
            counts[name] += 1
            if die == (name, counts[name]):
                os.kill(os.getpid(), KILL)
            return function(*args, **options)

        return call

    patches = [patch.object(owner, name, watch(event, getattr(owner, name))) for event, (owner, name) in EVENTS.items()]
    with patches[0], patches[1]:
        yield counts


def draw_images(folder):
    rng = np.random.default_rng(0)
    for label in ("dark", "light", "red"):
        (folder / label).mkdir(parents=True)
        for k in range(14):
            pixels = rng.integers(128, size=(64, 64, 3)) + (128 if label == "light" else 0)
            pixels[..., 0] = np.where(label == "red", 255 - pixels[..., 0] // 2, pixels[..., 0])
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{k}.png")


def configurations(folder):
    """From random weights, and from given ones: the head alone first, then all of it."""
    draw_images(folder / "data")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), folder / "weights.pth")
    image = {"size": (32, 32), "RandomErasing": 0.5}
    options = {"batch_size": 8, "verbose": False, "num_workers": 0, "epochs": 4}
    shares = {"test_size": 0.2, "valid_size": 0.3}
    base = colour_config(folder / "data", folder, image=image, device="cpu", hyperparameters=options, **shares)
    given = {"backbone_model": "test_efficientnet", "weights": folder / "weights.pth", "checkpoints_path": folder / "g"}
    steps = {"hyperparameters.head_steps": 9, "hyperparameters.epochs": 2}
    return {"random weights": base, "pretrained": changed(base, given | steps)}


def difference(one, other):
    """What of the results of two runs differs, in a word; `None` if they are the same bit for bit."""
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (one, other)]
    if not histories[0].equals(histories[1]):
        return "history"
    if (one / "split.csv").read_bytes() != (other / "split.csv").read_bytes():
        return "split"
    for name in ("model.pth", "last.pth"):
        a, b = (torch.load(folder / name, weights_only=True)["state_dict"] for folder in (one, other))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return name
    return None


def training(config, event, count):
    """Killed before the `count`-th step of the optimizer, or before so many files were put in their places."""
    torch.set_num_threads(1)
    with watched((event, count)):
        train(config)


def reading(config, files):
    """Killed when all pixels are in the cache, and no table."""
    os.fsync = lambda number: os.kill(os.getpid(), KILL)
    cache.read_fingerprints(config, pd.DataFrame({"file": files}))
