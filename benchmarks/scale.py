"""A hundred thousand images from end to end: seconds and peak memory of each step.

    python -m benchmarks.scale                                       # in a temporary folder
    python -m benchmarks.scale --images 2000
    python -m benchmarks.scale --folder FOLDER --steps draw scan     # a part of it; the folder stays for the next

Built-in scenes, shrunk to 64 x 64 pixels: drawn, scanned (every file decoded, near duplicates, split), trained on for
an epoch (Conv4, from random weights), indexed without effects of regions, and searched with ten of them, of which every
hit is explained. Each step runs in a process of its own, whose peak memory it is, all imports included (Linux).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.computer import about_computer
from benchmarks.questions import changed
from benchmarks.search import peak_memory
from utils.config import load_config
from utils.dataset import prepare_split, read_split
from utils.images.synthetic import CLASSES, intruder_class, scene
from utils.models import load_trained
from utils.search.build import INDEX, build_index, place_of
from utils.search.query import search
from utils.search.store import Index
from utils.settings import Config
from utils.training import train

SIDE = 64
QUERIES = 10


def configuration(folder: Path) -> Config:
    """That of the built-in scenes, for a dataset in a folder, and one epoch."""
    return changed(
        load_config("config.yml", "Synthetic"),
        {
            "dataset": "Scenes",
            "data_path": folder / "Scenes",
            "checkpoints_path": folder / "checkpoints",
            "outputs_path": folder / "outputs",
            "image.size": [SIDE, SIDE],
            "hyperparameters.epochs": 1,
        },
    )


def draw(config: Config, count: int) -> str:
    for number in tqdm(range(count), desc="Drawing", miniters=count // 20):
        label = number % len(CLASSES)
        path = config.data_path / CLASSES[label] / f"{number:06d}.png"
        if path.is_file():  # from a run that was stopped
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = scene(label, np.random.default_rng([7, number]), intruder_class(label, number // len(CLASSES))).image
        picture.resize((SIDE, SIDE), Image.Resampling.BOX).save(path)
    return f"{count} images of {SIDE} x {SIDE} pixels"


def scan(config: Config, count: int) -> str:
    table, notes = prepare_split(config)
    table.to_csv(config.data_path.parent / "split.csv", index=False)
    sizes = table.split.value_counts()
    return ", ".join(f"{size} {split}" for split, size in sizes.items()) + "".join(f"; {note}" for note in notes)


def fit(config: Config, count: int) -> str:
    history = train(config, read_split(config.data_path.parent / "split.csv"))
    return f"epoch of {history.seconds[0]:.0f} s, validation AUC {history.valid_auc[0]:.3f}"


def index(config: Config, count: int) -> str:
    model, _ = load_trained(config)
    report = build_index(model, config.data_path, place_of(config, config.data_path, INDEX), effects=False)
    return f"{report.images} images, {report.unexplained} to be measured when they are found"


def query(config: Config, count: int) -> str:
    model, _ = load_trained(config)
    table = read_split(config.data_path.parent / "split.csv")
    asked = table[table.split == "test"].groupby("label").head(QUERIES // len(CLASSES))
    times, right, explained = [], [], 0
    with Index(place_of(config, config.data_path, INDEX), model) as opened:
        for row in asked.itertuples():
            start = time.perf_counter()
            hits = search(model, opened, config.data_path / row.file).hits
            times.append(time.perf_counter() - start)
            right += [hit.path.parent.name == row.label for hit in hits]
            explained += sum(hit.explanation is not None for hit in hits)
    return (
        f"{len(asked)} queries, {times[0]:.1f} s the first, {np.median(times[1:]):.1f} s others; {explained} of "
        f"{len(right)} hits explained, {sum(right)} of the query's class"
    )


STEPS = {"draw": draw, "scan": scan, "train": fit, "index": index, "query": query}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to work; without it, a temporary folder")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--here", action="store_true", help="take one step in this process")
    arguments = parser.parse_args()
    if arguments.here:
        start = time.perf_counter()
        result = STEPS[arguments.steps[0]](configuration(arguments.folder), arguments.images)
        seconds = time.perf_counter() - start
        print(f"{seconds:.1f}\t{peak_memory() / 2**20:.0f} MiB\t{result}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        rows = []
        for step in arguments.steps:
            command = [sys.executable, "-m", "benchmarks.scale", "--here", "--steps", step]
            command += ["--images", str(arguments.images), "--folder", str(arguments.folder or temporary)]
            *_, last = subprocess.check_output(command, text=True).strip().splitlines()
            rows.append([step, *last.split("\t")])
    print(f"{arguments.images:,} images, threads: {torch.get_num_threads()}; {about_computer()}")
    print(pd.DataFrame(rows, columns=["step", "seconds", "peak memory", "result"]).to_string(index=False))


if __name__ == "__main__":
    main()
