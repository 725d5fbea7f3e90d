"""The images that a run trains and is scored on, and its batches."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
import torch

from utils.dataset import load_for_training
from utils.images.frame import Frame
from utils.images.pairs import Pairs, evaluation_pairs, image_batches, make_pairs, pair_batches
from utils.system.errors import TrainingError
from utils.system.settings import Config
from utils.training.processes import Processes
from utils.training.resuming import fingerprints

Batch = np.ndarray | Pairs  # positions of images, of which all pairs count; or of pairs


class TrainingData:
    """The training and the validation split, in memory or in the cache: what happens to the files cannot stop a later
    epoch. What a user should know about them is printed."""

    def __init__(self, config: Config, table: pd.DataFrame, frame: Frame) -> None:
        self.table, loaded, notes = load_for_training(table, config, frame)
        for note in notes:
            print(note)
        classes = sorted(set(self.table.label))
        self.images = {split: images for split, (images, _) in loaded.items()}
        self.labels = {split: torch.from_numpy(np.searchsorted(classes, names)) for split, (_, names) in loaded.items()}
        self.valid_pairs = evaluation_pairs(self.labels["valid"], config.seed)
        self.fingerprints = fingerprints(self.table, self.images)

    def check_same(self, processes: Processes) -> None:
        """
        Raises:
            TrainingError: this process has other images than the first.
        """
        checksum = zlib.crc32(repr(self.fingerprints).encode())
        if checksum != processes.from_first(checksum):
            raise TrainingError(
                f"process {processes.number} has other images than the first; "
                "copy the data to every machine, or share them"
            )

    def batches(self, config: Config, rng: np.random.Generator) -> list[Batch]:
        """Those of one epoch."""
        labels, rounds, size = self.labels["train"], config.number_of_iterations, config.hyperparameters.batch_size
        if config.training_pairs == "sampled":
            return pair_batches(make_pairs(labels, rng, rounds), size, rng)
        return [batch for _ in range(rounds) for batch in image_batches(labels, size, rng)]


def images_of(batch: Batch) -> np.ndarray:
    """The positions of a batch's images, of pairs first all the first ones."""
    return np.concatenate([batch.first, batch.second]) if isinstance(batch, Pairs) else batch
