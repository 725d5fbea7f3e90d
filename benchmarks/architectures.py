"""Is the siamese network the right one of the three classical networks for comparing images (Zagoruyko & Komodakis,
2015)?

    python -m benchmarks.architectures --dataset Synthetic --seeds 3

The other two stay out of `utils`: there an image is embedded once, however many pairs it is in. A pseudo-siamese
network embeds it once per side of a pair, and a 2-channel network has no embedding, so every pair is a pass of its own.
All three train from random weights on the same images with the same settings, and on the same budget: epochs x images x
passes per image and epoch through a backbone (siamese 1; pseudo-siamese 2; 2-channel 2, as two pairs start from every
image).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from benchmarks.questions import changed
from utils.config import load_config
from utils.dataset import load_split, prepare_split, read_split
from utils.evaluate.calibration import calibrate_threshold
from utils.evaluate.localisation import load_masks, localisation_table
from utils.evaluate.scores import embed_images, score_pairs
from utils.explain.evidence import embed_feature_maps, feature_maps, local_mean
from utils.Grad_CAM import explain_pairs
from utils.images.pairs import Pairs, evaluation_pairs, some_pairs
from utils.machine import keep_freed_memory
from utils.optimization import make_optimizer, make_scheduler
from utils.settings import Config
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode
from utils.training import Trainer, train

COMPARED = 60  # images that are compared with each other against the clock


# ------------------------------------------------------------------------------------------------ networks


class Siamese(SiameseNetwork):
    """One backbone for both images of a pair."""

    passes = 1  # through a backbone, per training image and epoch

    @property
    def branches(self) -> tuple[SiameseNetwork, ...]:
        """The network of image 1 and that of image 2."""
        return self, self

    def scores(self, images: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """How dissimilar pairs of uint8 images (N, 3, H, W) are, in margins, shape (P,)."""
        embeddings = {branch: embed_images(branch, images) for branch in dict.fromkeys(self.branches)}
        first, second = (embeddings[branch] for branch in self.branches)
        return embedding_distance(first[pairs.first], second[pairs.second]) / self.margin

    def evidence(self, batch1: torch.Tensor, batch2: torch.Tensor) -> torch.Tensor:
        """Signed evidence for "dissimilar" from the derivative of D^2, shape (P, 2, h, w)."""
        leaves = [
            feature_maps(branch, batch).requires_grad_() for branch, batch in zip(self.branches, (batch1, batch2))
        ]
        z1, z2 = (embed_feature_maps(branch, leaf) for branch, leaf in zip(self.branches, leaves))
        return position_by_position((z1 - z2).square().sum(), leaves)


class PseudoSiamese(Siamese):
    """A backbone and a head for image 1, others for image 2."""

    passes = 2

    def __init__(self, **architecture) -> None:
        super().__init__(**architecture)
        self.other = SiameseNetwork(**architecture)

    @property
    def branches(self) -> tuple[SiameseNetwork, ...]:
        return self, self.other


class TwoChannel(Siamese):
    """Both images as the six channels of one input; the "embedding" is one number, how dissimilar they are."""

    passes = 2

    def __init__(self, **architecture) -> None:
        super().__init__(**architecture | {"embedding_dim": 1})
        first = self.backbone[0]
        self.backbone[0] = nn.Conv2d(
            6, first.out_channels, first.kernel_size, first.stride, first.padding, bias=first.bias is not None
        ).to(memory_format=torch.channels_last)

    @property
    def branches(self) -> tuple[SiameseNetwork, ...]:
        return (self,)

    @torch.no_grad()
    def scores(self, images: torch.Tensor, pairs: Pairs, batch_size: int = 64) -> torch.Tensor:
        batch = self.normalize(images)
        with eval_mode(self):
            parts = zip(*(torch.from_numpy(column).split(batch_size) for column in pairs[:2]))
            return (
                torch.cat([self.embed(torch.cat([batch[i], batch[j]], dim=1)) for i, j in parts])[:, 0].cpu()
                / self.margin
            )

    def evidence(self, batch1: torch.Tensor, batch2: torch.Tensor) -> torch.Tensor:
        """The one map of each stacked pair, for either image."""
        leaf = feature_maps(self, torch.cat([batch1, batch2], dim=1)).requires_grad_()
        return position_by_position(embed_feature_maps(self, leaf).sum(), [leaf]).expand(-1, 2, -1, -1)


def position_by_position(target: torch.Tensor, leaves: list[torch.Tensor]) -> torch.Tensor:
    """`sum_c g_c A_c` of each of K feature maps (P, C, h, w), as means over a neighbourhood: (P, K, h, w)."""
    gradients = torch.autograd.grad(target, leaves)
    return local_mean(
        torch.stack([(gradient * leaf.detach()).sum(1) for gradient, leaf in zip(gradients, leaves)], dim=1)
    )


# ------------------------------------------------------------------------------------------------ training


def ordered_pairs(z1: torch.Tensor, z2: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw distances `||z1_i - z2_j||` and labels (0 same class, 1 another) of all i != j in a batch, each (B (B -
    1),)."""
    i, j = (~torch.eye(len(labels), dtype=torch.bool, device=z1.device)).nonzero().T
    return embedding_distance(z1[i], z2[j]), (labels[i] != labels[j]).long()


def hinge_loss(scores: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean of `max(0, 1 - y s)`, y = 1 for dissimilar (label 1) and -1 for similar pairs (the 2015 paper's Eq. 1)."""
    return (1 - (2 * label - 1) * scores).clamp(min=0).mean()


class PseudoSiameseTrainer(Trainer):
    """As ours, with all ordered pairs inside a batch."""

    network: type[Siamese] = PseudoSiamese

    def __init__(self, config: Config, table: pd.DataFrame) -> None:
        super().__init__(config, table)
        self.model = self.network(**self.model.architecture).to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.scheduler = make_scheduler(self.optimizer, config, self.steps_per_epoch)

    def gradients(self, batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.model.normalize(self.training_images(batch))
        with self.autocast():
            z1, z2 = (branch.embed(images) for branch in self.model.branches)
        distance, label = ordered_pairs(z1.float(), z2.float(), self.labels["train"][batch].to(self.device))
        return self.descend(self.loss(distance, label, balanced=True)), z1.detach().float()

    def descend(self, loss: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    def validate(self) -> dict[str, float]:
        images, label = self.images["valid"], self.valid_pairs.label
        scores = self.model.scores(images[range(len(images))], self.valid_pairs)  # read into memory
        self.calibrated_threshold = calibrate_threshold(scores.numpy(), label)
        result = score_pairs(scores.numpy(), label, self.calibrated_threshold)
        loss = self.loss(scores * self.config.margin, torch.from_numpy(label)).item()
        return {"valid_loss": loss, "valid_accuracy": result.accuracy, "valid_auc": result.auc}

    def finish(self, interrupted: bool = False) -> None:
        """Nothing more is needed: only `contrast` asks for what ours measures after training."""


class TwoChannelTrainer(PseudoSiameseTrainer):
    """A pass for every pair of `make_pairs`, redrawn in every epoch."""

    network = TwoChannel

    def __init__(self, config: Config, table: pd.DataFrame) -> None:
        super().__init__(config.model_copy(update={"embedding_dim": 1, "training_pairs": "sampled"}), table)
        self.loss = hinge_loss

    def gradients(self, batch: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.model.normalize(self.training_images(np.concatenate([batch.first, batch.second])))
        with self.autocast():
            scores = self.model.embed(torch.cat(images.chunk(2), dim=1))
        label = torch.from_numpy(batch.label).to(self.device)
        return self.descend(self.loss(scores[:, 0].float(), label)), scores.detach().float()


NETWORKS = {"siamese": Siamese, "pseudo-siamese": PseudoSiamese, "2-channel": TwoChannel}


def trained(network: type[Siamese], base: Config, seed: int, folder: Path) -> tuple[Config, Siamese, float]:
    """The best epoch's network, deciding at its calibrated threshold, and the seconds that its epochs took."""
    epochs = max(1, round(base.hyperparameters.epochs / network.passes))
    config = changed(
        base,
        {
            "seed": seed,
            "checkpoints_path": folder,
            "outputs_path": folder,
            "pretrained": False,
            "weights": None,
            "training_pairs": "batch",
            "number_of_iterations": 1,
            "hyperparameters.epochs": epochs,
            "hyperparameters.verbose": False,
        },
    )
    keep_freed_memory()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainers = {PseudoSiamese: PseudoSiameseTrainer, TwoChannel: TwoChannelTrainer}
        table = prepare_split(config)[0]
        history = trainers[network](config, table).run() if network in trainers else train(config, table)
    model = network.load(folder / "model.pth")
    model.threshold = model.info["calibrated_threshold"]
    return config, model, history.seconds.sum()


# ------------------------------------------------------------------------------------------------- scoring


def compare_all(model: Siamese, images: torch.Tensor) -> tuple[int, float]:
    """Backbone passes and seconds that it takes to compare all images with each other."""
    passes: list[int] = []
    hooks = [
        branch.backbone.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
        for branch in {*model.branches}
    ]
    i, j = np.indices((len(images), len(images))).reshape(2, -1)
    start = time.perf_counter()
    model.scores(images, Pairs(i, j, i * 0))
    seconds = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return sum(passes), seconds


def locate(
    name: str, model: Siamese, batch: torch.Tensor, pairs: Pairs, masks: torch.Tensor, right: np.ndarray
) -> pd.DataFrame:
    """Do the factual maps of rightly decided pairs find the deciding objects?"""
    sign = torch.from_numpy(2 * pairs.label - 1).view(-1, 1, 1, 1)  # of a right decision
    raw = sign * model.evidence(batch[pairs.first], batch[pairs.second])
    maps = F.interpolate(raw, size=tuple(batch.shape[2:]), mode="bilinear").clamp(min=0)  # as in benchmarks.variants
    methods = ("contrast", "distance") if type(model) is Siamese else ()
    offered = {
        f"{name}, {method}": explain_pairs(model, batch, pairs.first, pairs.second, method).factual
        for method in methods
    }
    table = localisation_table({f"{name}, derivative": maps} | offered, masks, pairs, right)
    if type(model) is TwoChannel:  # one map, two objects: does it find one of them?
        objects, same = masks[pairs.first] | masks[pairs.second], np.arange(len(right))
        either = localisation_table({f"{name}, on either object": maps}, objects, Pairs(same, same, pairs.label), right)
        table = pd.concat([table, either])
    return table[table.maps.str.startswith(name)]  # not the baselines


def score(name: str, base: Config, seed: int, folder: Path) -> tuple[dict, pd.DataFrame | None]:
    config, model, seconds = trained(NETWORKS[name], base, seed, folder)
    table = read_split(folder / "split.csv")
    images, rows = load_split(table, "test", config, model.frame)
    images = images[range(len(images))]  # read into memory
    pairs = evaluation_pairs(rows.label, seed)
    scores = model.scores(images, pairs).numpy()
    result = score_pairs(scores, pairs.label, model.threshold)
    passes, comparing = compare_all(model, images[:COMPARED])
    row = {
        "network": name,
        "AUC": result.auc,
        "accuracy": result.accuracy,
        "training s": seconds,
        "images": min(COMPARED, len(images)),
        "passes": passes,
        "comparing s": comparing,
    }
    masks = load_masks(config.data_path, table.file[table.split == "test"], model.frame)
    if masks is None:
        return row, None
    some = some_pairs(pairs, 100)
    right = (model.scores(images, some).numpy() >= model.threshold) == some.label
    return row, locate(name, model, model.normalize(images), some, masks, right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="Synthetic")
    parser.add_argument("--config", type=Path, default="config.yml")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    base = load_config(arguments.config, arguments.dataset)
    rows, located = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in tqdm(range(arguments.seeds), desc="seeds"):
            for name in NETWORKS:
                row, table = score(name, base, seed, Path(scratch) / f"{name}_{seed}")
                rows.append(row)
                located.append(table)
    groups = pd.DataFrame(rows).groupby("network", sort=False)
    means = groups.mean()
    means.insert(1, "lowest AUC", groups.AUC.min())
    means.insert(2, "highest AUC", groups.AUC.max())
    print(f"{arguments.dataset}, {arguments.seeds} seeds, means\n{means.round(3).to_string()}")
    if located[0] is not None:
        print(f"\n{pd.concat(located).groupby(['maps', 'pairs'], sort=False).mean().round(3).to_string()}")


if __name__ == "__main__":
    main()
