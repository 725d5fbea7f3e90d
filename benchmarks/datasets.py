"""What a dataset's settings reach on images that took no part in training: the rows of README's table.

    python -m benchmarks.datasets --dataset Flowers --seeds 3
    python -m benchmarks.datasets --dataset Flowers --seeds 3 --set unseen_classes=0.25 hyperparameters.epochs=0

A seed draws the split, so every seed tests other images. Seconds are those of everything: reading, training, and what
is measured after it. With classes held out, these are scored, too, and beside them ImageNet features, nothing trained.
"""

import argparse
import time

import pandas as pd
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from benchmarks.common import add_dataset_options, changed, chosen_config, scratch
from utils.dataset import prepare_split
from utils.evaluate.scores import SplitDistances, bootstrap_intervals, measure_split, score_pairs
from utils.models import photographs_network
from utils.Siamese import SiameseNetwork
from utils.system.settings import Config
from utils.training import train


def measure(config: Config) -> dict[str, float]:
    """Train, and score the kept network on the test split; accuracy at the threshold calibrated on validation pairs."""
    start = time.perf_counter()
    table = prepare_split(config)[0]
    history = train(config, table)
    took = time.perf_counter() - start
    model = SiameseNetwork.load(config.checkpoints_path / "model.pth")
    test = measure_split(model, table, "test", config)
    threshold = model.info["calibrated_threshold"]
    low, high = bootstrap_intervals(test.dissimilarity, test.pairs, threshold, config.seed)["auc"]
    others = {}
    if config.unseen_classes is not None:
        features = photographs_network(model.mean.device)
        features.info = model.info
        for name, network in (("unseen", model), ("unseen, ImageNet features", features)):
            split = measure_split(network, table, "unseen", config)
            others |= {f"{score}, {name}": value for score, value in scores_of(split).items()}
    return {
        "test images": len(test.labels),
        **scores_of(test),
        "AUC low": low,
        "AUC high": high,
        "accuracy": score_pairs(test.dissimilarity, test.pairs.label, threshold).accuracy,
        **others,
        "valid AUC": history.valid_auc.max(),
        "valid AUC, head alone": history.valid_auc[: len(history) - config.hyperparameters.epochs].max(),
        "seconds": took,
    }


def scores_of(split: SplitDistances) -> dict[str, float]:
    retrieval = split.queries[["recall@1", "MAP@R"]].mean()
    return {"AUC": roc_auc_score(split.pairs.label, split.dissimilarity), **retrieval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    add_dataset_options(parser)
    arguments = parser.parse_args()
    base = chosen_config(arguments)
    rows = []
    for seed in tqdm(range(arguments.seeds), desc=base.dataset):
        with scratch(changed(base, {"seed": seed})) as config:
            rows.append(measure(config))
    table = pd.DataFrame(rows, index=pd.Index(range(arguments.seeds), name="seed"), dtype=float)
    table.loc["mean"] = table.mean()
    print(f"{base.dataset}\n{table.T.round(3).to_string()}")


if __name__ == "__main__":
    main()
