"""Questions that users left open, each answered by training with one setting changed.

    python -m benchmarks.questions pairs --dataset Skin_cancer --set hyperparameters.epochs=16 --figure docs/pairs.png

The seed gives the split, the first weights and the order of the images, so the settings of a question meet the same
ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import yaml
from tqdm.auto import tqdm

from utils.config import load_config
from utils.dataset import load_split, prepare_folder, prepare_split, read_split, split_images
from utils.evaluate.scores import measure_split, score_pairs
from utils.figures.plots import COLOURS
from utils.images.cache import Images
from utils.images.folder import scan
from utils.imshow import save_figure
from utils.settings import Config
from utils.Siamese import SiameseNetwork
from utils.training import train

QUESTIONS = ("fit", "pairs", "embedding", "backbone", "augmentation", "schedule", "leak")
NAIVE = "every image for itself"


def answers(question: str, config: Config) -> dict[str, dict[str, object]]:
    """The settings that a question compares: name -> dotted keys and their values."""
    epochs = config.hyperparameters.epochs
    backbones = [("Conv4", 64), ("Conv4", 96), ("MobileNet", 96), ("resnet18", 64)]
    return {
        "fit": {fit: {"image.fit": fit} for fit in ("stretch", "pad")},
        # A sampled epoch passes four images through the network for each image of the data: the same work in a quarter
        # of the epochs.
        "pairs": {
            "batch": {"training_pairs": "batch"},
            "sampled": {"training_pairs": "sampled", "hyperparameters.epochs": max(1, epochs // 4)},
        },
        "embedding": {f"{size} numbers": {"embedding_dim": size} for size in (2, 16, 128)},
        "backbone": {
            f"{name}, {side} px": {"backbone_model": name, "image.size": [side, side]} for name, side in backbones
        },
        "augmentation": {
            "flips": {"image.RandomErasing": 0, "image.RandomResizedCrop": 1},
            "flips, erasing": {"image.RandomErasing": 0.5, "image.RandomResizedCrop": 1},
            "flips, crops": {"image.RandomErasing": 0, "image.RandomResizedCrop": 0.4},
            "flips, crops, colours": {
                "image.RandomErasing": 0,
                "image.RandomResizedCrop": 0.4,
                "image.brightness": 0.3,
                "image.contrast": 0.3,
                "image.saturation": 0.3,
            },
        },
        "schedule": {
            "OneCycle, 1e-3": {"LRScheduler.name": "OneCycle", "hyperparameters.learning_rate": 1e-3},
            "OneCycle, 3e-3": {"LRScheduler.name": "OneCycle", "hyperparameters.learning_rate": 3e-3},
            "ReduceLROnPlateau, 3e-4": {
                "LRScheduler.name": "ReduceLROnPlateau",
                "LRScheduler.patience": 3,
                "hyperparameters.learning_rate": 3e-4,
            },
        },
        "leak": {"groups kept together": {}, NAIVE: {}},
    }[question]


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

    parser.add_argument(
        "--set",
        nargs="*",
        type=parse,
        default=[],
        metavar="KEY=VALUE",
        help="train with other settings, such as image.RandomErasing=0",
    )


def split_of(config: Config, naive: bool) -> pd.DataFrame:
    """The split of a configuration; `naive`: as if no two images belonged together."""
    if not naive:
        return prepare_split(config)[0]
    prepare_folder(config)
    return split_images(scan(config.data_path)[0], config.test_size, config.valid_size, config.seed)


def measure(config: Config, table: pd.DataFrame) -> tuple[dict[str, float], pd.DataFrame]:
    """Train; scores of the best epoch's network on the test pairs, and the history."""
    history = train(config, table)
    model = SiameseNetwork.load(config.checkpoints_path / "model.pth")
    test = measure_split(model, table, "test", config)
    scores = score_pairs(test.dissimilarity, test.pairs.label, model.info["calibrated_threshold"])
    return {
        "AUC": scores.auc,
        "accuracy": scores.accuracy,
        "valid AUC": history.valid_auc.max(),
        "seconds": history.seconds.sum(),
    }, history


def checkpoint_and_test(folder: Path, settings: dict[str, object]) -> tuple[Config, SiameseNetwork, Images, np.ndarray]:
    """What training left in a folder: its configuration, with some settings changed, its network, and the images of its
    test split, uint8 (N, 3, H, W), with their classes (N,)."""
    config = changed(load_config(folder / "config.yml"), settings)
    model = SiameseNetwork.load(folder / "model.pth")
    images, rows = load_split(read_split(folder / "split.csv"), "test", config, model.frame)
    return config, model, images, rows.label.to_numpy()


@contextmanager
def scratch(config: Config) -> Iterator[Config]:
    """The configuration with its results in a temporary folder, without progress bars."""
    with tempfile.TemporaryDirectory() as folder:
        yield changed(
            config, {"checkpoints_path": Path(folder), "outputs_path": Path(folder), "hyperparameters.verbose": False}
        )


def plot_training(histories: dict[str, list[pd.DataFrame]]) -> plt.Figure:
    """Validation AUC against training time: a line per seed, a colour per setting."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for (name, runs), colour in zip(histories.items(), COLOURS):
        for number, history in enumerate(runs):
            axis.plot(
                history.seconds.cumsum(),
                history.valid_auc,
                "o-",
                ms=2.5,
                lw=1,
                color=colour,
                label=None if number else name,
            )
    axis.set(xlabel="seconds of training", ylabel="validation AUC")
    axis.legend(frameon=False, fontsize=8)
    sns.despine(ax=axis)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--config", default="config.yml", type=Path)
    parser.add_argument("--dataset")
    parser.add_argument("--seeds", type=int, default=3)
    add_set_option(parser)
    parser.add_argument("--figure", type=Path, help="where to draw the validation AUC against training time")
    arguments = parser.parse_args()
    base = changed(load_config(arguments.config, arguments.dataset), dict(arguments.set))
    settings = answers(arguments.question, base)
    rows, histories = [], {name: [] for name in settings}
    with tqdm(total=arguments.seeds * len(settings), desc=arguments.question) as bar:
        for seed in range(arguments.seeds):
            for name, keys in settings.items():
                with scratch(changed(base, keys | {"seed": seed})) as config:
                    scores, history = measure(config, split_of(config, naive=name == NAIVE))
                rows.append({"setting": name, **scores})
                histories[name].append(history)
                bar.update()
    table = pd.DataFrame(rows).groupby("setting", sort=False)
    spread = table.AUC.agg(lambda values: f"{np.min(values):.3f}-{np.max(values):.3f}").rename("AUC, least to most")
    print(f"{base.dataset}, means of {arguments.seeds} seeds\n{table.mean().round(3).join(spread).to_string()}")
    if arguments.figure:
        save_figure(plot_training(histories), arguments.figure)


if __name__ == "__main__":
    main()
