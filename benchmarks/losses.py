"""Would another loss learn more from the same features? Heads on the frozen backbone, trained with each.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.losses --dataset Flowers --seeds 3

Every head is the product's, with normalised embeddings; batches, views, optimizer, schedule and steps are the same.
The other losses are pytorch-metric-learning's, as it sets them by default.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss, ProxyAnchorLoss, SupConLoss, TripletMarginLoss
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from benchmarks.questions import add_set_option, changed
from utils.config import load_config
from utils.dataset import prepare_split
from utils.evaluate.retrieval import retrieval_scores
from utils.evaluate.scores import pair_distances, score_pairs
from utils.images.augmentation import Augmentation
from utils.images.frame import load_what_opens
from utils.images.pairs import evaluation_pairs, image_batches
from utils.models import build_model
from utils.optimization import make_optimizer
from utils.settings import Config
from utils.Siamese import ContrastiveLoss, SiameseNetwork, all_pairs
from utils.transfer import HEAD_RATE, frozen_features

PLAIN = "the same, embeddings not normalised"
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def contrastive(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Ours, on all pairs of the batch."""
    return ContrastiveLoss()(*all_pairs(embeddings, labels), balanced=True)


def losses(classes: int, dimensions: int) -> dict[str, Loss]:
    return {
        "contrastive, all pairs (ours)": contrastive,
        PLAIN: contrastive,
        "MultiSimilarity": MultiSimilarityLoss(),
        "ProxyAnchor": ProxyAnchorLoss(classes, dimensions),
        "SupCon": SupConLoss(),
        # As in open-metric-learning's examples; that library (4.0) wants numpy < 2 and does not install beside us.
        "all triplets, margin 0.1": TripletMarginLoss(margin=0.1),
    }


def train_head(model: SiameseNetwork, features: torch.Tensor, labels: np.ndarray, loss: Loss, config: Config) -> None:
    """Steps of the head alone on features (V, N, C), as in training; proxies of a loss are trained at the same rate."""
    rng, size = np.random.default_rng(config.seed), config.hyperparameters.batch_size
    trained = nn.ModuleList([model.head, *([loss] if isinstance(loss, nn.Module) else [])])
    optimizer = make_optimizer(trained, config, HEAD_RATE)
    epochs = math.ceil(config.head_steps / len(image_batches(labels, size, rng)))
    steps = epochs * len(image_batches(labels, size, rng))
    scheduler = OneCycleLR(optimizer, HEAD_RATE, total_steps=steps, cycle_momentum=False)
    for _ in range(epochs):
        for batch in image_batches(labels, size, rng):
            views = rng.integers(len(features), size=len(batch))
            value = loss(model.embed_pooled(features[views, batch]), torch.from_numpy(labels[batch]))
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), config.hyperparameters.max_norm)
            optimizer.step()
            scheduler.step()


def compare(base: Config, seeds: int) -> pd.DataFrame:
    """Test AUC and recall@1 for every loss and seed; features are computed once."""
    rows = []
    model, features = build_model(base), None
    for seed in tqdm(range(seeds), desc=base.dataset):
        config = changed(base, {"seed": seed})
        table = prepare_split(config)[0]
        if features is None:
            paths = [config.data_path / file for file in table.file]
            images, _ = load_what_opens(paths, model.frame, config.hyperparameters.num_workers)
            features = frozen_features(model, images, Augmentation(config.image, 0), verbose=True)
        labels = np.unique(table.label, return_inverse=True)[1]
        parts = {split: np.flatnonzero(table.split == split) for split in ("train", "test")}
        names = table.label.to_numpy()[parts["test"]]
        pairs = evaluation_pairs(names, seed)
        for name in losses(len(set(labels)), base.embedding_dim):
            torch.manual_seed(seed)
            head = build_model(changed(config, {"normalize_embeddings": name != PLAIN}))
            torch.manual_seed(seed)
            loss = losses(len(set(labels)), base.embedding_dim)[name]
            train_head(head, features[:, parts["train"]], labels[parts["train"]], loss, config)
            with torch.no_grad():
                embeddings = head.embed_pooled(features[0, parts["test"]])
            scores = score_pairs(pair_distances(embeddings, pairs).numpy(), pairs.label, base.margin / 2)
            recall = retrieval_scores(embeddings, names)["recall@1"].iloc[-1]
            rows.append({"loss": name, "AUC": scores.auc, "recall@1": recall})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="Flowers")
    parser.add_argument("--config", default="config.yml", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    add_set_option(parser)
    arguments = parser.parse_args()
    base = changed(load_config(arguments.config, arguments.dataset), dict(arguments.set))
    table = compare(base, arguments.seeds).groupby("loss", sort=False).agg(["mean", "min", "max"])
    print(f"{base.dataset}, test split, {arguments.seeds} seeds\n{table.round(3).to_string()}")


if __name__ == "__main__":
    main()
