"""The two phases of training, each with its inputs, optimizer and schedule.

The head is trained first, on features of the frozen backbone that are computed once. Fine-tuning then trains the last
blocks, too, at fixed batch statistics.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from tqdm.auto import tqdm

from utils.evaluate.scores import calibrate_threshold, pair_distances, score_pairs
from utils.images.pairs import evenly_spaced
from utils.models import threshold_for
from utils.networks.backbones import TimmNetwork
from utils.Siamese import ContrastiveLoss, SiameseNetwork, all_pairs, embedding_distance, eval_mode
from utils.system.machine import bfloat16_pays
from utils.system.settings import Config
from utils.training.data import ImageLoader, Request, TrainingData, halved_boxes, occlude_halves, random_changes
from utils.training.processes import Processes

HEAD_RATE = 1e-3  # peak learning rate of the head alone
CHOSEN = 1 / 8  # share of a batch's images in which a box is blurred, so that the effects of its halves add up
MOST_FEATURES = 1000  # validation images whose pooled features are kept
VIEWS = 4  # features of each training image: of the image itself, and of three random changes of it


@torch.no_grad()
def frozen_features(model: SiameseNetwork, batches: Iterable[Tensor], exact: bool) -> Tensor:
    """Pooled features of the backbone in eval mode, (N, C), on the CPU, of batches of uint8 images, (B, 3, H, W) each;
    in bfloat16 where that is faster and `exact` does not forbid it: it is exact enough for training."""
    device, features = model.mean.device, [torch.empty(0, model.head[0].in_features)]
    with eval_mode(model):
        for images in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=not exact and bfloat16_pays(device)):
                maps = model.backbone(model.normalize(images))
            features.append(model.pooling(maps).float().cpu())
    return torch.cat(features)


def early_blocks(model: SiameseNetwork) -> int:
    """Number of the backbone's first blocks, before its maps have a sixteenth of the image's resolution. They find
    edges and textures, which all photographs share, and most of a backward pass is spent in them."""
    height = model.image_size[0]
    return next((i for i, shape in enumerate(model.block_shapes()) if shape[2] <= -(-height // 16)), 0)


@dataclass
class Phase:
    """What both phases share: the optimizer, the loss, validation, and what a stopped run has to restore."""

    config: Config
    model: SiameseNetwork
    data: TrainingData
    loader: ImageLoader  # makes randomly changed training images
    processes: Processes
    steps: int  # of all its epochs

    def __post_init__(self) -> None:
        self.options, self.device = self.config.hyperparameters, self.model.mean.device
        self.contrastive = ContrastiveLoss(self.config.margin)
        trained, rate = self.begin()
        options, plan, momentum = self.options, self.config.LRScheduler, {}
        if options.optimizer == "SGD":
            momentum = {"momentum": options.momentum, "nesterov": options.nesterov}
        parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        make = getattr(torch.optim, options.optimizer)
        self.optimizer = make(parameters, rate, weight_decay=options.weight_decay, **momentum)
        if isinstance(self, HeadAlone) or plan.name == "OneCycle":
            self.scheduler = OneCycleLR(self.optimizer, rate, total_steps=self.steps, cycle_momentum=False)
        else:
            self.scheduler = ReduceLROnPlateau(self.optimizer, "max", plan.factor, plan.patience, min_lr=plan.min_lr)

    def features_of(self, split: str, views: int = 1, verbose: bool = False) -> Tensor:
        """Pooled features (views, N, C) of a split: of the images and, for training, of random changes of them."""
        images, size = self.data.images[split], self.options.batch_size
        count, own = len(images), self.processes.share(len(images))
        batches = [np.arange(start, min(start + size, own.stop)) for start in range(own.start, own.stop, size)]
        requests = [Request(batch, view * count + batch[0], epoch=0) for view in range(1, views) for batch in batches]
        inputs = chain((images[batch] for batch in batches), self.loader(requests) if requests else ())
        with tqdm(inputs, desc="Computing features", total=views * len(batches), disable=not verbose) as bar:
            features = self.processes.attempt(lambda: frozen_features(self.model, bar, exact=split == "valid"))
        features = features.view(views, own.stop - own.start, features.shape[1])
        return torch.stack([self.processes.gather(view, count) for view in features])

    def loss(self, positions: np.ndarray, embeddings: Tensor) -> Tensor:
        """The contrastive loss of a batch, given by the positions of its images (B,), with embeddings (B, D)."""
        labels = self.data.labels["train"][positions].to(self.device)
        if self.config.training_pairs == "batch":
            return self.contrastive(*all_pairs(embeddings, labels), balanced=True)
        first, second = labels.chunk(2)
        return self.contrastive(embedding_distance(*embeddings.chunk(2)), (first != second).long())

    def validate(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Score the network on the validation pairs; also returns what thresholds are set on: that calibrated on these
        pairs, and of the images the embeddings, classes and, of some, the backbone's pooled features."""
        pairs, labels, pooled = self.data.valid_pairs, self.data.labels["valid"], self.valid_features()
        own = pooled[self.processes.share(len(labels))].split(self.options.batch_size)
        with torch.no_grad(), eval_mode(self.model):
            embeddings = torch.cat([self.model.embed_pooled(part.to(self.device)).cpu() for part in own])
        embeddings = self.processes.gather(embeddings, len(labels))
        distance = pair_distances(embeddings, pairs)
        loss, dissimilarity = self.contrastive(distance, torch.from_numpy(pairs.label)), distance / self.config.margin
        if not loss.isfinite():  # it has no scores
            return {"valid_loss": loss.item()}, {}
        features = F.normalize(pooled[evenly_spaced(len(labels), MOST_FEATURES)]).half()
        kept = {"valid_embeddings": embeddings, "valid_labels": labels, "valid_features": features}
        threshold = threshold_for(self.config, kept, self.config.margin)
        scores = score_pairs(dissimilarity.numpy(), pairs.label, threshold)
        valid = {"valid_loss": loss.item(), "valid_accuracy": scores.accuracy, "valid_auc": scores.auc}
        return valid, {"calibrated_threshold": calibrate_threshold(dissimilarity.numpy(), pairs.label)} | kept

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as plain values and tensors."""
        scheduler = self.scheduler.state_dict() if isinstance(self.scheduler, ReduceLROnPlateau) else None
        return {"optimizer": self.optimizer.state_dict(), "plateau": scheduler}

    def restore(self, state: dict[str, Any], steps: int) -> None:
        """Continue after so many steps of this phase, counted in batches of today's size."""
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.scheduler, OneCycleLR):
            self.scheduler.last_epoch = steps
        else:
            self.scheduler.load_state_dict(state["plateau"])


class HeadAlone(Phase):
    """Trains the head on features of the frozen backbone, which are computed once."""

    title, advice = ", head alone", "use other weights, or lower margin"

    def begin(self) -> tuple[nn.Module, float]:
        """Prepare the phase; returns what is trained, and its peak learning rate."""
        views = VIEWS if random_changes(self.config.image) else 1
        self.features = self.features_of("train", views, self.options.verbose)
        self.of_valid = self.features_of("valid", verbose=self.options.verbose)[0]
        return self.model.head, HEAD_RATE

    def inputs(self, batches: list[np.ndarray], epoch: int, progress: float, rng: Generator) -> Iterator[Tensor]:
        """Features (S, C) of this process's share of each batch; the view is drawn for each image."""
        for positions in batches:
            views, own = rng.integers(len(self.features), size=len(positions)), self.processes.share(len(positions))
            yield self.features[views[own], positions[own]].to(self.device)

    def embed(self, features: Tensor, count: int, rng: Generator) -> tuple[Tensor, float]:
        return self.model.embed_pooled(features), 0.0

    def valid_features(self) -> Tensor:
        return self.of_valid


class FineTuning(Phase):
    """Trains the network on randomly changed images; of a pretrained one, all but the first blocks."""

    title = ""

    def begin(self) -> tuple[nn.Module, float]:
        self.model.train()
        self.frozen, self.advice = 0, f"lower hyperparameters.learning_rate ({self.options.learning_rate:g})"
        if self.config.transfer:
            if isinstance(self.model.backbone[-1], TimmNetwork):
                self.model.backbone[-1].freeze_early()
            else:
                self.frozen = early_blocks(self.model)
                self.model.backbone[: self.frozen].eval().requires_grad_(False)
            for module in self.model.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self.model, self.options.learning_rate

    def inputs(self, batches: list[np.ndarray], epoch: int, progress: float, rng: Generator) -> Iterator[Tensor]:
        """The changed images of this process's share of each batch, uint8 (S, 3, H, W)."""
        shares = [self.processes.share(len(positions)) for positions in batches]
        firsts = accumulate(map(len, batches), initial=0)  # each image may be covered by the one before
        return self.loader(
            Request(positions[own], first + own.start, epoch, progress, others=np.roll(positions, 1)[own])
            for positions, own, first in zip(batches, shares, firsts)
        )

    def embed(self, images: Tensor, count: int, rng: Generator) -> tuple[Tensor, Tensor | float]:
        """Embeddings (S, D) of this process's share of a batch of `count` images, and its part of the penalty:
        `additivity` times the mean of `||delta_AB - delta_A - delta_B||^2` over some images of the whole batch."""
        number, own = math.ceil(CHOSEN * count) if self.options.additivity else 0, self.processes.share(count)
        chosen = rng.choice(count, number, replace=False)
        boxes = halved_boxes(number, self.model.image_size, rng)
        here = (chosen >= own.start) & (chosen < own.stop)
        chosen, boxes = chosen[here] - own.start, boxes[here]
        if not len(images):
            return torch.zeros(0, self.config.embedding_dim, device=self.device), 0.0
        batch = self.model.normalize(images)
        if not len(chosen):
            return self.embed_batch(batch), 0.0
        rows = self.embed_batch(torch.cat([batch, occlude_halves(batch[chosen], boxes)]))
        embeddings, first, second, both = rows.split([len(batch), *[len(chosen)] * 3])
        interaction = embeddings[chosen] - first - second + both  # delta_AB - delta_A - delta_B
        return embeddings, self.options.additivity * interaction.square().sum() / number

    def embed_batch(self, batch: Tensor) -> Tensor:
        """Preprocessed images (N, 3, H, W) -> embeddings (N, D), with gradients for all but the frozen blocks."""
        blocks, device, fast = self.model.backbone, self.device.type, bfloat16_pays(self.device)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=fast):
            maps = blocks[: self.frozen](batch)
        if self.frozen and device == "cpu":  # there the backward pass of depthwise convolutions is slower in bfloat16
            maps, fast = maps.float(), False
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            return self.model.embed_features(blocks[self.frozen :](maps)).float()

    def valid_features(self) -> Tensor:
        return self.features_of("valid")[0]
