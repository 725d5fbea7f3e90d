"""Training: one loop, from a configuration to checkpoints and a history table.

python -m utils train NAME
torchrun --standalone --nproc_per_node=4 -m utils train NAME
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from tqdm.auto import tqdm

from utils.dataset import load_for_training, prepare_split
from utils.early_stopping import EarlyStopping
from utils.evaluate.calibration import calibrate_threshold
from utils.evaluate.scores import embed_images, pair_distances, score_pairs
from utils.explain.additivity import SHARE, halved_boxes, left_over, surplus, without_halves
from utils.gradient_caching import EmbedPart, GradientCache, batch_statistics
from utils.images.augmentation import Augmentation
from utils.images.pairs import Pairs, evaluation_pairs, image_batches, make_pairs, pair_batches
from utils.machine import TrainingError, bfloat16_pays, choose_device, keep_freed_memory, memory_advice
from utils.models import build_model
from utils.optimization import make_optimizer, make_scheduler
from utils.processes import Processes, together
from utils.results import Results
from utils.resuming import fingerprints, put_back, state_of, unfinished
from utils.settings import Config
from utils.Siamese import ContrastiveLoss, SiameseNetwork, all_pairs, embedding_distance
from utils.transfer import HEAD_RATE, early_blocks, embed_late, freeze, frozen_features


def train(config: Config, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Train a network and leave `model.pth` (best epoch), `last.pth`, `history.csv`, `config.yml` and `split.csv`
    under `config.checkpoints_path`.

    The best epoch is the last one under `OneCycle`, whose rate has come down by then; under `ReduceLROnPlateau`, and as
    long as training is not over, it has the highest validation AUC, and among equals the lowest loss. Epochs of the
    head alone count as one, the last.

    Nothing is written before the first epoch ends. A run that was killed goes on after its last finished epoch, and
    ends as if nothing had happened; it starts anew if its settings or images changed. An interrupt (Ctrl-C, the
    notebook's stop button) leaves the best network so far, ready for use; the next run goes on, too.

    Processes that torchrun has started, on one machine or several, train one network together, each on its share of
    every batch. The first one writes and prints. All need the same images at `config.data_path`.

    Args:
        table: a split that `prepare_split` made of the same data before; `None`: it is made here, and its notes are
            printed.

    Returns:
        One row per epoch: the columns `results.HISTORY`.

    Raises:
        ConfigError, DataError, ModelError, TrainingError: each says what to fix.
    """
    keep_freed_memory()
    device = choose_device(config)
    cards = [device.index] if device.type == "cuda" else []
    # Stochastic depth and dropout draw from the global generators.
    with memory_advice(config), torch.random.fork_rng(cards), together(device) as processes:
        torch.manual_seed(config.seed)
        if not processes.first:  # one progress bar
            options = config.hyperparameters.model_copy(update={"verbose": False})
            config = config.model_copy(update={"hyperparameters": options})
        if table is None:
            table, notes = processes.from_first(prepare_split(config) if processes.first else None)
            say(notes)
        return Trainer(config, table, processes).run()


def say(notes: Sequence[str]) -> None:
    """Print what a user should know about the data, a line each."""
    for note in notes:
        print(note)


class Trainer:
    """Everything of one training run: data, network, optimizer, and the loop over epochs."""

    def __init__(self, config: Config, table: pd.DataFrame, processes: Processes | None = None) -> None:
        self.config, self.options = config, config.hyperparameters
        self.processes = processes or Processes()
        self.device = choose_device(config)
        self.model = build_model(config).to(self.device)
        # In memory or the cache from here on: what happens to the files cannot stop a later epoch.
        self.table, loaded, notes = load_for_training(table, config, self.model.frame)
        say(notes)
        self.classes = sorted(set(self.table.label))
        self.images = {split: images for split, (images, _) in loaded.items()}
        self.labels = {
            split: torch.from_numpy(np.searchsorted(self.classes, names)) for split, (_, names) in loaded.items()
        }
        self.valid_pairs = evaluation_pairs(self.labels["valid"], config.seed)
        self.augment = Augmentation(config.image, config.seed)
        self.progress = 0.0
        self.loss = ContrastiveLoss(config.margin)
        self.cache = GradientCache(self.model, self.device, self.processes)
        self.stopping = EarlyStopping(config.early_stopping.patience, config.early_stopping.min_delta, mode="max")
        self.rng = np.random.default_rng(config.seed)
        self.steps_per_epoch = len(self.epoch_batches())
        self.head_epochs = math.ceil(config.head_steps / self.steps_per_epoch)
        self.epochs = self.head_epochs + self.options.epochs
        last = self.epochs if config.LRScheduler.name == "OneCycle" else None
        self.results = Results(config, self.table, self.head_epochs or 1, last)
        self.features: dict[str, torch.Tensor] = {}  # of the frozen backbone, while only the head is trained
        self.frozen = 0  # first blocks of the backbone that stay as they are
        self.data = fingerprints(self.table, self.images)
        self.processes.check_same_images(zlib.crc32(repr(self.data).encode()))
        settings, first = config.model_dump(mode="json"), self.processes.first
        stopped = unfinished(config.checkpoints_path / "last.pth", settings, self.data) if first else None
        stopped = self.processes.from_first(stopped)
        finished = len(stopped["info"]["run"]["history"]) if stopped else 0
        if finished < self.head_epochs:
            self.start_head()
        elif finished < self.epochs:  # otherwise the run was stopped when all that was left was to finish
            self.start_all()
        if stopped:
            put_back(self, stopped)

    def start_head(self) -> None:
        """Epochs of the head alone."""
        verbose = self.options.verbose
        for split, images in self.images.items():
            share = self.processes.share(len(images))

            def compute(size: int) -> torch.Tensor:
                augment = Augmentation(self.config.image, self.config.seed) if split == "train" else None
                return frozen_features(self.model, images, augment, size, verbose, share)

            views = self.cache.fit(compute, self.options.batch_size)
            self.features[split] = torch.stack([self.processes.gather(view, len(images)) for view in views])
        self.optimizer = make_optimizer(self.model.head, self.config, HEAD_RATE)
        steps = self.head_epochs * self.steps_per_epoch
        self.scheduler = OneCycleLR(self.optimizer, HEAD_RATE, total_steps=steps, cycle_momentum=False)

    def start_all(self) -> None:
        """Epochs of the whole network or, where it starts from pretrained weights, of all but its first blocks."""
        self.features = {}
        if self.config.transfer:
            self.frozen = early_blocks(self.model)
            freeze(self.model, self.frozen)
        self.optimizer = make_optimizer(self.model, self.config)
        self.scheduler = make_scheduler(self.optimizer, self.config, self.steps_per_epoch)

    def run(self) -> pd.DataFrame:
        steps, done, interrupted = self.epochs * self.steps_per_epoch, len(self.history), False
        initial = done * self.steps_per_epoch
        bar = tqdm(total=steps, initial=initial, desc="Training", disable=not self.options.verbose)
        with bar, self.processes.interrupts_together():
            try:
                for epoch in range(done + 1, self.epochs + 1):
                    if self.stopping.should_stop:
                        break
                    if epoch == self.head_epochs + 1 and self.features:
                        self.start_all()
                    row = self.run_epoch(epoch, bar)
                    if not self.features:  # the head's few steps are never stopped early
                        self.stopping.step(row["valid_auc"])
                    self.history.append(row)
                    self.keep()
            except KeyboardInterrupt:
                if not self.history:
                    raise
                if self.results.written < len(self.history):  # it came between the files of a finished epoch
                    self.keep()
                interrupted = True
        if interrupted and self.processes.first:
            done = f"{self.results.folder}: stopped after epoch {len(self.history)} of {self.epochs}"
            print(f"{done}, the best network so far is ready; train again to go on from there")
        elif self.processes.first:
            self.results.close()
        return self.results.frame()

    @property
    def history(self) -> list[dict[str, float]]:
        """A row per finished epoch."""
        return self.results.history

    def run_epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        start = time.perf_counter()
        rate = self.optimizer.param_groups[0]["lr"]
        bar.set_description(f"Epoch {epoch}/{self.epochs}{', head alone' if self.features else ''}")
        self.model.train()
        if self.config.transfer:
            freeze(self.model, self.frozen)
        if self.processes.count > 1:  # each drops out what it will; a run that goes on with this epoch draws the same
            torch.manual_seed((self.config.seed * 10**6 + epoch) * self.processes.count + self.processes.number)
        self.progress = max(0, epoch - self.head_epochs - 1) / max(1, self.options.epochs - 1)
        losses, weights = [], []
        for batch in self.epoch_batches():
            loss, embeddings = self.step(batch)
            losses.append(loss)
            weights.append(len(embeddings))
            bar.update()
        train_loss = float(np.average(losses, weights=weights))
        self.processes.average(batch_statistics(self.model))
        valid = self.processes.from_first(self.validate())
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(valid["valid_auc"])
        shown = {"loss": f"{train_loss:.3f}", "valid AUC": f"{valid['valid_auc']:.3f}"}
        bar.set_postfix(shown | ({"lr": f"{rate:.1e}"} if self.config.LRScheduler.verbose else {}))
        return {
            "epoch": epoch,
            "seconds": time.perf_counter() - start,
            "train_loss": train_loss,
            **valid,
            "learning_rate": rate,
        }

    def epoch_batches(self) -> list[np.ndarray] | list[Pairs]:
        """The batches of one epoch: of images, all pairs inside each to be used, or of the paper's sampled pairs."""
        rounds, size = self.config.number_of_iterations, self.options.batch_size
        if self.config.training_pairs == "sampled":
            return pair_batches(make_pairs(self.labels["train"], self.rng, rounds), size, self.rng)
        return [batch for _ in range(rounds) for batch in image_batches(self.labels["train"], size, self.rng)]

    def step(self, batch: np.ndarray | Pairs) -> tuple[float, torch.Tensor]:
        """One update of the weights; returns the contrastive loss and the batch's embeddings."""
        loss, embeddings = self.gradients(batch)
        self.processes.sum_gradients([p for group in self.optimizer.param_groups for p in group["params"]])
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.max_norm)
        self.optimizer.step()
        if isinstance(self.scheduler, OneCycleLR):
            self.scheduler.step()
        loss, norm = torch.stack([loss, norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.refuse(batch, loss, embeddings)
        return loss, embeddings

    def refuse(self, batch: np.ndarray | Pairs, loss: float, embeddings: torch.Tensor) -> NoReturn:
        """A batch whose loss or gradient is not finite: say which images to look at, those whose embeddings are not
        finite or else all."""
        files = self.table.file[self.table.split == "train"].to_numpy()[every_image(batch)]
        spoilt = ~embeddings.isfinite().all(1).cpu().numpy()
        files = list(dict.fromkeys(files[spoilt] if spoilt.any() else files))
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        key = "head_steps" if self.features else "learning_rate"
        raise TrainingError(
            f"epoch {len(self.history) + 1}: the loss of a batch ({loss:g}), or its gradient, is not finite; "
            f"lower hyperparameters.{key} ({getattr(self.options, key):g}), "
            f"or look at its images: {', '.join(files[:3])}{more}"
        )

    def gradients(self, batch: np.ndarray | Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """Set the gradients of what is trained in this epoch; returns the contrastive loss and the embeddings (B, D) of
        the batch's images."""
        positions = every_image(batch)
        some, embed = self.draw(positions)

        def objective(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            embeddings, left = rows.split([len(positions), len(some)])
            if isinstance(batch, Pairs):
                label = torch.from_numpy(batch.label).to(self.device)
                loss = self.loss(embedding_distance(*embeddings.chunk(2)), label)
            else:
                loss = self.loss(*all_pairs(embeddings, self.labels["train"][batch].to(self.device)), balanced=True)
            return loss + (self.options.additivity * surplus(left) if len(some) else 0.0), loss

        shape = (len(positions) + len(some), self.config.embedding_dim)
        loss, rows = self.cache.backward(embed, len(positions), shape, objective)
        return loss, rows[: len(positions)]

    def draw(self, positions: np.ndarray) -> tuple[np.ndarray, EmbedPart]:
        """All that is drawn at random for a batch of training images.

        Returns:
            Which of them are also looked at without boxes; and a function that embeds a part of the batch: a row for
            each of its images, and further ones with what effects leave over in those.
        """
        nothing = np.empty(0, int)
        if self.features:
            views = self.rng.integers(len(self.features["train"]), size=len(positions))
            features = self.features["train"][views, positions].to(self.device)
            return nothing, lambda start, stop: (
                np.arange(start, stop),
                self.model.embed_pooled(features[start:stop]),
            )
        images, first = self.training_images(positions), self.processes.share(len(positions)).start
        if not self.options.additivity:
            return nothing, lambda start, stop: (
                np.arange(start, stop),
                self.embed_batch(self.model.normalize(images[start - first : stop - first])),
            )
        some = self.rng.choice(len(positions), -(-len(positions) // SHARE), replace=False)
        boxes = halved_boxes(len(some), self.model.image_size, self.rng)

        def embed(start: int, stop: int) -> tuple[np.ndarray, torch.Tensor]:
            part = self.model.normalize(images[start - first : stop - first])
            here = np.flatnonzero((some >= start) & (some < stop))
            if not len(here):
                return np.arange(start, stop), self.embed_batch(part)
            own = some[here] - start
            embeddings = self.embed_batch(torch.cat([part, without_halves(part[own], boxes[here])]))
            embeddings, changed = embeddings.split([len(part), 3 * len(own)])
            places = np.concatenate([np.arange(start, stop), len(positions) + here])
            return places, torch.cat([embeddings, left_over(embeddings[own], changed)])

        return some, embed

    def training_images(self, positions: np.ndarray) -> torch.Tensor:
        """This process's share of a batch, augmented on the device, on a scale of 0 to 255, (N, 3, H, W)."""
        share = self.processes.share(len(positions))

        def own(positions: np.ndarray) -> torch.Tensor:
            return self.images["train"][positions[share.start : share.stop]].to(self.device, non_blocking=True)

        others = [own(np.roll(positions, 1))] if self.augment.covers else []  # each image is covered by the one before
        self.augment.skip(share.start)
        images = self.augment(own(positions), self.progress, *others)
        self.augment.skip(len(positions) - share.stop)
        return images

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16_pays(self.device))

    def embed_batch(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, D) of preprocessed images, with gradients."""
        if self.frozen:
            return embed_late(self.model, images, self.frozen).float()
        with self.autocast():
            return self.model.embed(images).float()

    def validate(self) -> dict[str, float]:
        if self.features:
            with torch.no_grad():
                embeddings = self.model.embed_pooled(self.features["valid"][0].to(self.device)).cpu()
        else:
            share = self.processes.share(len(self.images["valid"]))
            images, wanted = self.images["valid"][share.start : share.stop], self.options.batch_size
            embeddings = torch.empty(0, self.config.embedding_dim)
            if share:
                embeddings = self.cache.fit(lambda size: embed_images(self.model, images, size), wanted)
            embeddings = self.processes.gather(embeddings, len(self.images["valid"]))
        distance = pair_distances(embeddings, self.valid_pairs)
        loss = self.loss(distance, torch.from_numpy(self.valid_pairs.label))
        dissimilarity = (distance / self.config.margin).numpy()
        scores = score_pairs(dissimilarity, self.valid_pairs.label, self.config.threshold)
        self.calibrated_threshold = calibrate_threshold(dissimilarity, self.valid_pairs.label)
        return {"valid_loss": loss.item(), "valid_accuracy": scores.accuracy, "valid_auc": scores.auc}

    def keep(self) -> None:
        if self.processes.first:
            self.results.keep(self.model, self.calibrated_threshold, state_of(self))


def every_image(batch: np.ndarray | Pairs) -> np.ndarray:
    """The positions of a batch's images, of pairs first all the first ones."""
    return np.concatenate([batch.first, batch.second]) if isinstance(batch, Pairs) else batch


def train_and_report(config: Config) -> None:
    """Train as the command line does: print what a user should know about the data, and in the end what was reached."""
    history = train(config)
    if os.environ.get("RANK", "0") != "0":  # the first of several processes reports
        return
    path = config.checkpoints_path / "model.pth"
    kept = SiameseNetwork.load(path).info["epoch"]
    print(f"kept epoch {kept} of {len(history)}: validation AUC {history.valid_auc[kept - 1]:.3f}; {path}")
