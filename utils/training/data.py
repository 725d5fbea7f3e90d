"""The images that a run learns from and is validated on, and its batches."""

from zlib import crc32

import numpy as np
import pandas as pd
import torch

from utils.dataset import load_split
from utils.images.frame import Frame
from utils.images.pairs import Pairs, evaluation_pairs, image_batches, make_pairs, pair_batches
from utils.system.settings import Config
from utils.training.cover import covered

Batch = np.ndarray | Pairs  # positions of images, all of which are compared with each other; or pairs of positions


class TrainingData:
    """The images, classes and pairs of the training and the validation split, of a table `file`, `label`, `split`.

    Images are in the cache, so a file that is deleted later stops no epoch. Printed lines name those that are lost.
    """

    def __init__(self, config: Config, table: pd.DataFrame, frame: Frame) -> None:
        loaded = {split: load_split(table, split, config, frame) for split in ("train", "valid")}
        kept = pd.concat([rows for _, rows in loaded.values()]).index
        self.table = table[(table.split == "test") | table.index.isin(kept)]
        classes = sorted(set(self.table.label))
        self.images = {split: images for split, (images, _) in loaded.items()}
        if config.image.cover:
            files = loaded["train"][1].file.tolist()
            self.images["train"] = covered(config, self.images["train"], files, table.file, frame)
        self.labels = {split: torch.tensor(np.searchsorted(classes, rows.label)) for split, (_, rows) in loaded.items()}
        self.valid_pairs = evaluation_pairs(self.labels["valid"], config.seed)
        sums = {}  # of the pixels of each file; test images have none
        for split, images in self.images.items():
            sums |= zip(self.table.file[self.table.split == split], images.checksums.tolist())
        self.fingerprints = {row.file: [row.label, row.split, sums.get(row.file)] for row in self.table.itertuples()}
        if config.weights:
            self.fingerprints["weights"] = [crc32(config.weights.read_bytes())]
        if config.image.cover:
            self.fingerprints["image.cover"] = [crc32(self.images["train"].bits)]

    def steps(self, config: Config) -> int:
        """Steps of an epoch."""
        return len(self.batches(config, np.random.default_rng(0)))

    def batches(self, config: Config, rng: np.random.Generator) -> list[Batch]:
        """Draw the batches of one epoch, of images or of pairs as `training_pairs` says."""
        labels, rounds, size = self.labels["train"], config.number_of_iterations, config.hyperparameters.batch_size
        if config.training_pairs == "sampled":
            return pair_batches(make_pairs(labels, rng, rounds), size, rng)
        return [batch for _ in range(rounds) for batch in image_batches(labels, size, rng)]


def images_of(batch: Batch) -> np.ndarray:
    """The positions of a batch's images among the training images; of pairs, all first images, then all second ones."""
    return np.concatenate([batch.first, batch.second]) if isinstance(batch, Pairs) else batch
