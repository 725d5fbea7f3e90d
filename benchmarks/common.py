"""What the benchmarks share: settings from the command line, a trained network's test images, the time of a call."""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from utils.config import load_config
from utils.dataset import load_split, prepare_folder, read_split
from utils.Siamese import SiameseNetwork
from utils.system.settings import Config


def about_computer() -> str:
    """The processor, and how many of its cores this process may use (Linux; elsewhere, what Python knows)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, cores: {cores}"


def changed(config: Config, settings: dict[str, object]) -> Config:
    """A configuration with some dotted keys changed, checked like a file's."""
    values = config.model_dump()
    for key, value in settings.items():
        *parents, last = key.split(".")
        section = values
        for name in parents:
            section = section[name]
        section[last] = value
    return Config.model_validate(values)


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """`--set image.RandomErasing=0 ...`: pairs of dotted keys and values, as `changed` takes them."""

    def parse(text: str) -> tuple[str, object]:
        key, value = text.split("=", 1)
        return key, yaml.safe_load(value)

    shown = "other settings, such as image.RandomErasing=0"
    parser.add_argument("--set", nargs="*", type=parse, default=[], metavar="KEY=VALUE", help=shown)


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """`--dataset`, `--config` and `--set`: what `chosen_config` reads."""
    parser.add_argument("--dataset", help="its block in the configuration")
    parser.add_argument("--config", default="config.yml", type=Path)
    add_set_option(parser)


def chosen_config(arguments: argparse.Namespace) -> Config:
    return changed(load_config(arguments.config, arguments.dataset), dict(arguments.set))


@contextmanager
def scratch(config: Config) -> Iterator[Config]:
    """The configuration with its results in a temporary folder, without progress bars."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"checkpoints_path": Path(folder) / "checkpoints", "outputs_path": Path(folder) / "outputs"}
        yield changed(config, places | {"hyperparameters.verbose": False})


def checkpoint_and_test(folder: Path, settings: dict[str, object]) -> tuple:
    """What training left in a folder: its configuration, with some settings changed; its network; the images of its
    test split, uint8 (N, 3, H, W), and their classes, (N,)."""
    config = changed(load_config(folder / "config.yml"), settings)
    prepare_folder(config)
    model = SiameseNetwork.load(folder / "model.pth")
    images, rows = load_split(read_split(folder / "split.csv"), "test", config, model.frame)
    return config, model, images, rows.label.to_numpy()


def seconds(action: Callable[[], object]) -> float:
    """The time of a single call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def best_seconds(action: Callable[[], object], least: float = 4.0) -> float:
    """The least time of three calls or more, for `least` seconds together, after one that is left out."""
    action()
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or spent < least:
        took = seconds(action)
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best
