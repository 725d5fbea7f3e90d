"""The two phases of training: each makes its inputs, embeds them, and has an optimizer and a schedule of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from tqdm.auto import tqdm

from utils.evaluate.calibration import calibrate_threshold
from utils.evaluate.scores import embed_images, pair_distances, score_pairs
from utils.images.pairs import Pairs
from utils.Siamese import ContrastiveLoss, SiameseNetwork, all_pairs, embedding_distance
from utils.system.errors import TrainingError
from utils.system.machine import bfloat16_pays
from utils.system.settings import Config
from utils.training.additivity import SHARE, halved_boxes, left_over, without_halves
from utils.training.augmentation import ImageLoader, Request
from utils.training.data import Batch, TrainingData, images_of
from utils.training.optimization import make_optimizer, make_scheduler
from utils.training.processes import Processes
from utils.training.transfer import early_blocks, embed_late, freeze, frozen_features

HEAD_RATE = 1e-3  # peak learning rate of the head alone
VIEWS = 4  # of a training image: as it is, and three times changed at random
Penalty = torch.Tensor | float


class Phase:
    """What both have in common.

    Args:
        loader: of changed training images.
        steps: of an epoch.
        head_epochs: epochs of the head alone.
    """

    def __init__(
        self,
        config: Config,
        model: SiameseNetwork,
        data: TrainingData,
        loader: ImageLoader,
        processes: Processes,
        steps: int,
        head_epochs: int,
    ) -> None:
        self.config, self.options, self.model, self.data = config, config.hyperparameters, model, data
        self.loader, self.processes, self.device = loader, processes, model.mean.device
        self.contrastive = ContrastiveLoss(config.margin)
        self.optimizer, self.scheduler = self.begin(steps, head_epochs)

    def loss(self, batch: Batch, embeddings: torch.Tensor) -> torch.Tensor:
        """The contrastive loss of a batch, from the embeddings of its images (`images_of`), (B, D)."""
        if isinstance(batch, Pairs):
            label = torch.from_numpy(batch.label).to(self.device)
            return self.contrastive(embedding_distance(*embeddings.chunk(2)), label)
        labels = self.data.labels["train"][batch].to(self.device)
        return self.contrastive(*all_pairs(embeddings, labels), balanced=True)

    def validate(self) -> tuple[dict[str, float], float]:
        """The network's scores on the validation pairs, and the dissimilarity that divides these best."""
        pairs, count = self.data.valid_pairs, len(self.data.images["valid"])
        own = self.processes.attempt(lambda: self.embed_valid(self.processes.share(count)))
        distance = pair_distances(self.processes.gather(own, count), pairs)
        loss = self.contrastive(distance, torch.from_numpy(pairs.label)).item()
        dissimilarity = (distance / self.config.margin).numpy()
        scores = score_pairs(dissimilarity, pairs.label, self.config.threshold)
        valid = {"valid_loss": loss, "valid_accuracy": scores.accuracy, "valid_auc": scores.auc}
        return valid, calibrate_threshold(dissimilarity, pairs.label)

    def not_finite(self, epoch: int, batch: Batch, loss: float, embeddings: torch.Tensor) -> TrainingError:
        """The error that names up to three images: of those whose embeddings are not finite, or else of all."""
        table = self.data.table
        files = table.file[table.split == "train"].to_numpy()[images_of(batch)]
        spoilt = ~embeddings.isfinite().all(1).cpu().numpy()
        files = list(dict.fromkeys(files[spoilt] if spoilt.any() else files))
        named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        return TrainingError(
            f"epoch {epoch}: the loss of a batch ({loss:g}), or its gradient, is not finite; lower hyperparameters."
            f"{self.key} ({getattr(self.options, self.key):g}), or look at its images: {named}"
        )

    def state(self) -> dict[str, Any]:
        plateau = None if isinstance(self.scheduler, OneCycleLR) else self.scheduler.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "plateau": plateau}

    def restore(self, state: dict[str, Any], steps: int) -> None:
        """Go on after so many steps, of batches as they are now."""
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.scheduler, OneCycleLR):
            self.scheduler.last_epoch = steps
        else:
            self.scheduler.load_state_dict(state["plateau"])


class HeadAlone(Phase):
    """The head, on features of the frozen backbone that are computed once."""

    title, key = ", head alone", "head_steps"

    def begin(self, steps: int, head_epochs: int) -> tuple[Optimizer, OneCycleLR]:
        self.features = {split: self.features_of(split) for split in ("train", "valid")}
        optimizer = make_optimizer(self.model.head, self.config, HEAD_RATE)
        return optimizer, OneCycleLR(optimizer, HEAD_RATE, total_steps=head_epochs * steps, cycle_momentum=False)

    def features_of(self, split: str) -> torch.Tensor:
        """(V, N, C): of the images as they are and, for training, of further views, changed at random."""
        images, size = self.data.images[split], self.options.batch_size
        share, count = self.processes.share(len(images)), len(images)
        views = VIEWS if split == "train" and self.loader.changes_images else 1
        parts = [np.arange(start, min(start + size, share.stop)) for start in range(share.start, share.stop, size)]
        requests = [Request(part, view * count + part[0], epoch=0) for view in range(1, views) for part in parts]
        batches = chain((images[part] for part in parts), self.loader(requests))
        shown = dict(total=views * len(parts), desc="Computing features", disable=not self.options.verbose)
        with tqdm(batches, **shown) as bar:
            found = self.processes.attempt(lambda: frozen_features(self.model, bar, exact=split == "valid"))
        own = found.view(views, share.stop - share.start, -1 if len(found) else found.shape[1])
        return torch.stack([self.processes.gather(view, count) for view in own])

    def inputs(
        self, batches: Sequence[np.ndarray], epoch: int, progress: float, rng: np.random.Generator
    ) -> Iterator[torch.Tensor]:
        """Features (S, C) of this process's share of each batch, each image in a view of its own."""
        features = self.features["train"]
        for positions in batches:
            views, own = rng.integers(len(features), size=len(positions)), self.processes.share(len(positions))
            yield features[views[own], positions[own]].to(self.device)

    def embed(self, features: torch.Tensor) -> tuple[torch.Tensor, Penalty]:
        return self.model.embed_pooled(features), 0.0

    def embed_valid(self, own: slice) -> torch.Tensor:
        with torch.no_grad():
            return self.model.embed_pooled(self.features["valid"][0, own].to(self.device)).cpu()


class FineTuning(Phase):
    """The whole network or, where it starts from pretrained weights, all but its first blocks, on changed images."""

    title, key = "", "learning_rate"

    def begin(self, steps: int, head_epochs: int) -> tuple[Optimizer, OneCycleLR | ReduceLROnPlateau]:
        self.model.train()
        self.frozen = early_blocks(self.model) if self.config.transfer else 0
        if self.config.transfer:
            freeze(self.model, self.frozen)
        optimizer = make_optimizer(self.model, self.config)
        return optimizer, make_scheduler(optimizer, self.config, steps)

    def inputs(
        self, batches: Sequence[np.ndarray], epoch: int, progress: float, rng: np.random.Generator
    ) -> Iterator[tuple[torch.Tensor, np.ndarray, np.ndarray, int]]:
        """Of each batch: uint8 images (S, 3, H, W) of this process's share; which of them are also looked at blurred in
        two halves of a box, and these, (B, 2, 4); how many of the whole batch are."""
        requests, first = [], 0
        for positions in batches:
            own = self.processes.share(len(positions))
            others = np.roll(positions, 1)[own]  # each image is covered by the one before
            requests.append(Request(positions[own], first + own.start, epoch, progress, others))
            first += len(positions)
        for positions, images in zip(batches, self.loader(requests)):
            own = self.processes.share(len(positions))
            chosen, boxes = np.empty(0, int), np.empty((0, 2, 4), int)
            if self.options.additivity:
                chosen = rng.choice(len(positions), -(-len(positions) // SHARE), replace=False)
                boxes = halved_boxes(len(chosen), self.model.image_size, rng)
            here = (chosen >= own.start) & (chosen < own.stop)
            yield images, chosen[here] - own.start, boxes[here], len(chosen)

    def embed(self, inputs: tuple[torch.Tensor, np.ndarray, np.ndarray, int]) -> tuple[torch.Tensor, Penalty]:
        """Embeddings (S, D), and this process's part of what `additivity` costs: the mean over the chosen images of
        `||delta_AB - delta_A - delta_B||^2`, weighted."""
        images, chosen, boxes, count = inputs
        if not len(images):
            return torch.zeros(0, self.config.embedding_dim, device=self.device), 0.0
        batch = self.model.normalize(images)
        if not len(chosen):
            return self.embed_batch(batch), 0.0
        rows = self.embed_batch(torch.cat([batch, without_halves(batch[chosen], boxes)]))
        embeddings, changed = rows.split([len(batch), 3 * len(chosen)])
        left = left_over(embeddings[chosen], changed)
        return embeddings, self.options.additivity * left.square().sum() / count

    def embed_batch(self, batch: torch.Tensor) -> torch.Tensor:
        """Preprocessed images (N, 3, H, W) -> embeddings (N, D), with gradients."""
        if self.frozen:
            return embed_late(self.model, batch, self.frozen).float()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16_pays(self.device)):
            return self.model.embed(batch).float()

    def embed_valid(self, own: slice) -> torch.Tensor:
        if own.start == own.stop:
            return torch.zeros(0, self.config.embedding_dim)
        return embed_images(self.model, self.data.images["valid"][own], self.options.batch_size)
