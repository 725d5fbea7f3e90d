"""What a dataset's settings reach on images that took no part in training: the rows of README's table.

    python -m benchmarks.datasets --dataset Flowers --seeds 3
    python -m benchmarks.datasets --dataset Flowers --seeds 3 --set unseen_classes=0.25 hyperparameters.epochs=0

A seed draws the split, so every seed tests other images. Seconds are those of everything: reading, training, and what
is measured after it. With classes held out, these are scored, too, and beside them ImageNet features, nothing trained.
"familiar or not": how well `familiarity` tells test images from those of held-out classes, or of `--others`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from benchmarks.common import add_dataset_options, changed, chosen_config, scratch
from utils.compare import Comparison
from utils.dataset import prepare_split
from utils.evaluate.scores import SplitDistances, bootstrap_intervals, measure_split, score_pairs
from utils.models import familiarity, photographs_network
from utils.Siamese import SiameseNetwork
from utils.system.settings import Config
from utils.training import train


def measure(config: Config, folders: Sequence[Path] = ()) -> dict[str, float]:
    """Train, and score the kept network on the test split; accuracy at the threshold calibrated on validation pairs."""
    start = time.perf_counter()
    table = prepare_split(config)[0]
    train(config, table)
    took = time.perf_counter() - start
    model = SiameseNetwork.load(config.checkpoints_path / "model.pth")
    test = measure_split(model, table, "test", config)
    threshold = model.info["calibrated_threshold"]
    low, high = bootstrap_intervals(test.dissimilarity, test.pairs, threshold, config.seed)["auc"]
    others = {}
    strange = {path.name: Comparison(model, sorted(path.glob("*/*.jpg"))[::10]).batch.split(64) for path in folders}
    if config.unseen_classes is not None:
        features = photographs_network(model.mean.device)
        features.info = model.info
        for name, network in (("unseen", model), ("unseen, ImageNet features", features)):
            split = measure_split(network, table, "unseen", config)
            others |= {f"{score}, {name}": value for score, value in scores_of(split).items()}
        strange["unseen classes"] = map(model.normalize, split.images.split(64))
    known = torch.cat([familiarity(model, model.normalize(part)) for part in test.images.split(64)])
    for name, parts in strange.items():
        p = torch.cat([known, *(familiarity(model, part) for part in parts)])
        others[f"familiar or not, AUROC: {name}"] = roc_auc_score(np.arange(len(p)) < len(known), p)
    accuracy = score_pairs(test.dissimilarity, test.pairs.label, threshold).accuracy
    found = {"test images": len(test.labels), **scores_of(test), "AUC low": low, "AUC high": high, "accuracy": accuracy}
    return found | others | {"seconds": took}


def scores_of(split: SplitDistances) -> dict[str, float]:
    retrieval = split.queries[["recall@1", "MAP@R"]].mean()
    return {"AUC": roc_auc_score(split.pairs.label, split.dissimilarity), **retrieval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--others", nargs="*", type=Path, default=[], help="folders of other photographs, class folders inside"
    )
    add_dataset_options(parser)
    arguments = parser.parse_args()
    base = chosen_config(arguments)
    rows = []
    for seed in tqdm(range(arguments.seeds), desc=base.dataset):
        with scratch(changed(base, {"seed": seed})) as config:
            rows.append(measure(config, arguments.others))
    table = pd.DataFrame(rows, index=pd.Index(range(arguments.seeds), name="seed"), dtype=float)
    table.loc["mean"] = table.mean()
    print(f"{base.dataset}\n{table.T.round(3).to_string()}")


if __name__ == "__main__":
    main()
