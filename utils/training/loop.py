"""Training, from a configuration to a trained network: `train`, the loop over epochs, an epoch, a step.

python -m utils train NAME
torchrun --standalone --nproc_per_node=4 -m utils train NAME
"""

import math
import time
from contextlib import nullcontext

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm.auto import tqdm

from utils.dataset import prepare_split
from utils.early_stopping import EarlyStopping
from utils.images.cache import read_fingerprints
from utils.models import build_model
from utils.system.errors import TrainingError
from utils.system.machine import choose_device, is_out_of_memory, keep_freed_memory
from utils.system.settings import Config
from utils.training.data import ImageLoader, TrainingData
from utils.training.phases import FineTuning, HeadAlone
from utils.training.processes import Processes, together
from utils.training.results import Results, alone_in, unfinished


def train(config: Config, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Train a network and write it to `config.checkpoints_path`, with the files that `Results` names.

    A stopped run goes on after its last finished epoch, with the same result, unless settings or images changed. After
    an interrupt (Ctrl-C, the notebook's stop button), the best network so far is ready for use. If memory runs out,
    training goes on with batches of half the size. Processes that torchrun has started train one network together.

    Args:
        table: the split, as `prepare_split` made it; `None`: make it here, and print its notes.

    Returns:
        One row per epoch, with the columns `results.HISTORY`.

    Raises:
        UserError: a setting, the images or the weights cannot be used, another run trains in this folder, the loss is
            not finite, or memory is too small.
    """
    keep_freed_memory()
    device, smaller = choose_device(config), None
    cards = [device.index] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(cards),
        together(device) as processes,
        alone_in(config.checkpoints_path) if processes.first else nullcontext(),
    ):
        if table is None:
            table, notes = processes.from_first(prepare_split(config) if processes.first else None)
            for note in notes:
                print(note)
        while True:
            trainer = Trainer(config, table, processes, smaller)
            try:
                return trainer.run()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            smaller = trainer.smaller_batches()
            del trainer
            torch.cuda.empty_cache()


class Trainer:
    """One training run: data, network, phases, the loop over epochs. A `batch_size` replaces the configured one."""

    def __init__(
        self, config: Config, table: pd.DataFrame, processes: Processes | None = None, batch_size: int | None = None
    ) -> None:
        self.settings, self.processes = config.model_dump(mode="json"), processes or Processes()
        self.model = build_model(config, read_fingerprints(config, table)[3]).to(choose_device(config))
        self.data = TrainingData(config, table, self.model.frame)
        fingerprints, rank, options = self.data.fingerprints, self.processes.rank, config.hyperparameters
        if fingerprints != self.processes.from_first(fingerprints):
            raise TrainingError(f"process {rank} has other images or weights than the first; copy or share them")
        self.stopped = self.processes.from_first(unfinished(config, fingerprints) if rank == 0 else None)
        # Smaller batches make an epoch longer; the epochs stay as many.
        self.head_epochs = math.ceil(config.head_steps / self.data.steps(options.batch_size))
        self.epochs = self.head_epochs + options.epochs
        used = self.stopped["info"]["config"] if self.stopped else self.settings  # memory may have run out before
        size = min(batch_size or options.batch_size, used["hyperparameters"]["batch_size"])
        self.options, self.steps = options.model_copy(update={"batch_size": size}), self.data.steps(size)
        self.config = config = config.model_copy(update={"hyperparameters": self.options})
        self.loader = ImageLoader(self.data.images["train"], config.image, config.seed, options.num_workers)
        last = self.epochs if config.LRScheduler.name == "OneCycle" else None
        self.results = Results(config, self.data.table, self.head_epochs or 1, last)

    def run(self) -> pd.DataFrame:
        """Train for all epochs that are left; returns the history."""
        if self.stopped:
            self.results.restore(self.model, self.stopped["info"]["run"], write=self.processes.first)
            self.model.load_state_dict(self.stopped["state_dict"])
        history, total, quiet = self.results.history, self.epochs * self.steps, not self.options.verbose
        done = len(history)
        try:
            with tqdm(desc="Training", total=total, initial=done * self.steps, disable=quiet) as bar:
                for epoch in range(done + 1, self.epochs + 1):
                    if self.should_stop():
                        break
                    if epoch in (done + 1, self.head_epochs + 1):
                        self.start(epoch)
                    history.append(self.run_epoch(epoch, bar))
                    self.keep()
        except KeyboardInterrupt:
            if not history:
                raise
            if self.results.written < len(history):  # the interrupt came between the files of a finished epoch
                self.keep()
            stopped = f"stopped after epoch {len(history)} of {self.epochs}, the best network so far is ready"
            print(f"{self.results.folder}: {stopped}; train again to go on from there")
        return self.results.frame()

    def should_stop(self) -> bool:
        """Whether fine-tuning is stopped early."""
        stopping = EarlyStopping(**dict(self.config.early_stopping))
        for row in self.results.history[self.head_epochs :]:
            stopping.step(row["valid_auc"])
        return stopping.should_stop

    def start(self, epoch: int) -> None:
        """Start the phase of this epoch, or go on with it after a run was stopped."""
        parts = self.config, self.model, self.data, self.loader, self.processes
        if epoch <= self.head_epochs:
            self.phase, done = HeadAlone(*parts, self.head_epochs * self.steps), epoch - 1
        else:
            self.phase, done = FineTuning(*parts, self.options.epochs * self.steps), epoch - self.head_epochs - 1
        if self.stopped and done:
            self.phase.restore(self.stopped["info"]["run"]["phase"], done * self.steps)

    def run_epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """Train for one epoch and validate the network; returns a row of the history."""
        start, rate = time.perf_counter(), self.phase.optimizer.param_groups[0]["lr"]
        bar.set_description(f"Epoch {epoch}/{self.epochs}{self.phase.title}")
        seed = np.random.SeedSequence([self.config.seed, epoch, self.processes.rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))  # for dropout; the same after a run was stopped
        rng = np.random.default_rng([self.config.seed, epoch])
        progress = max(0, epoch - self.head_epochs - 1) / max(1, self.options.epochs - 1)
        batches, losses = self.data.batches(rng, self.options.batch_size), []
        for positions, inputs in zip(batches, self.phase.inputs(batches, epoch, progress, rng)):
            losses.append(self.step(positions, inputs, rng))
            bar.update()
        train_loss = float(np.average(losses, weights=[len(positions) for positions in batches]))
        for statistic in self.model.buffers():  # each process has those of its own images
            statistic.copy_(self.processes.sum(statistic) / self.processes.world_size)
        valid, self.calibration = self.processes.from_first(self.phase.validate())
        self.check(valid["valid_loss"])
        if not isinstance(self.phase.scheduler, OneCycleLR):
            self.phase.scheduler.step(valid["valid_auc"])
        shown = {"loss": f"{train_loss:.3f}", "valid AUC": f"{valid['valid_auc']:.3f}"}
        bar.set_postfix(shown | ({"lr": f"{rate:.1e}"} if self.config.LRScheduler.verbose else {}))
        seconds = time.perf_counter() - start
        return {"epoch": epoch, "seconds": seconds, "train_loss": train_loss, **valid, "learning_rate": rate}

    def step(self, positions: np.ndarray, inputs: torch.Tensor, rng: np.random.Generator) -> float:
        """Update the weights once, from a batch: its positions among the training images (B,), and what the phase makes
        of this process's share of it; returns the contrastive loss."""
        parameters = [p for group in self.phase.optimizer.param_groups for p in group["params"]]
        own, penalty = self.processes.attempt(lambda: self.phase.embed(inputs, len(positions), rng))
        loss = self.phase.loss(positions, self.processes.gather(own, len(positions)))
        objective = loss + penalty
        self.phase.optimizer.zero_grad()
        self.processes.attempt(lambda: objective.backward() if objective.requires_grad else None)
        self.processes.sum_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.options.max_norm)
        self.phase.optimizer.step()
        if isinstance(self.phase.scheduler, OneCycleLR):
            self.phase.scheduler.step()
        value, norm = torch.stack([loss.detach(), norm]).tolist()
        self.check(value, norm)
        return value

    def check(self, loss: float, norm: float = 0.0) -> None:
        """Raise a TrainingError if a loss, or the norm of its gradient, is not finite."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"the loss ({loss:g}), or its gradient, is not finite"
            raise TrainingError(f"epoch {len(self.results.history) + 1}: {what}; {self.phase.advice}")

    def smaller_batches(self) -> int:
        """Half the batch size, to go on with after memory ran out; a printed line tells the user."""
        size, images = self.options.batch_size, list(self.config.image.size)
        if size // 2 < (2 if self.config.training_pairs == "sampled" else 4):  # they could not hold pairs
            raise TrainingError(f"out of memory; reduce hyperparameters.batch_size ({size}) or image.size {images}")
        now = f"training goes on with {size // 2}, from the last finished epoch"
        advice = f"reduce image.size {images} for larger batches"
        print(f"out of memory with hyperparameters.batch_size {size}; {now}; {advice}")
        return size // 2

    def keep(self) -> None:
        """Write the files of a finished epoch; unless it ends the run, one of them holds what `restore` needs."""
        if self.processes.first:
            run = {"data": self.data.fingerprints, "settings": self.settings, "phase": self.phase.state()}
            ends = len(self.results.history) == self.epochs or self.should_stop()
            self.results.keep(self.model, self.calibration, None if ends else run)
