"""What a run learns from: the images of its splits, their batches, and random changes of each training image, made by
worker processes while the network computes; and random boxes, blurred to teach the network that effects add up.

The random numbers of an image follow from the seed, the epoch and its place in the epoch. So they are the same for any
number of workers and of processes, and after a run was killed.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from utils.dataset import load_split
from utils.explain.removal import blur
from utils.images.cache import StoredImages
from utils.images.frame import Frame, mean_colour
from utils.images.pairs import evaluation_pairs, image_batches, make_pairs, pair_batches
from utils.system.settings import Config, ImageOptions
from utils.training.cover import covered

MIN_PIXELS = 20e6  # of all training images; for fewer, worker processes cost more time than they save
SIDES = (0.2, 0.7)  # smallest and largest sides of a box that is blurred, as shares of the image's sides


class TrainingData:
    """The images, classes and pairs of the training and the validation split, of a table `file`, `label`, `split`.

    Images are in the cache, so a file that is deleted later stops no epoch. Printed lines name those that are lost.
    """

    def __init__(self, config: Config, table: pd.DataFrame, frame: Frame) -> None:
        self.config = config
        loaded = {split: load_split(table, split, config, frame) for split in ("train", "valid")}
        kept = pd.concat([rows for _, rows in loaded.values()]).index
        self.table = table[table.split.isin(["test", "unseen"]) | table.index.isin(kept)]
        classes = sorted(set(self.table.label))
        self.images = {split: images for split, (images, _) in loaded.items()}
        if config.image.cover:
            self.images["train"] = covered(config, *loaded["train"], table.file, frame)
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

    def batches(self, rng: np.random.Generator, size: int) -> list[np.ndarray]:
        """Draw the batches of one epoch: positions of `size` images, all of which are compared with each other; if
        pairs are sampled, of all first images of `size` pairs, then of all second ones."""
        labels, rounds = self.labels["train"], self.config.number_of_iterations
        if self.config.training_pairs == "batch":
            return [batch for _ in range(rounds) for batch in image_batches(labels, size, rng)]
        pairs = pair_batches(make_pairs(labels, rng, rounds), size, rng)
        return [np.concatenate([batch.first, batch.second]) for batch in pairs]

    def steps(self, size: int) -> int:
        """Number of batches of one epoch."""
        return len(self.batches(np.random.default_rng(0), size))


class Request(NamedTuple):
    """Asks for a batch of changed training images, or for a process's share of one."""

    positions: np.ndarray  # (S,) among the training images
    first: int  # place in the epoch of the first image; the others follow
    epoch: int
    progress: float = 0.0  # share of the epochs of fine-tuning that are over, in [0, 1]
    others: np.ndarray | None = None  # (S,) positions of the images that CutMix takes boxes from; None: no CutMix


def cut_mix(image: torch.Tensor, other: torch.Tensor, probability: float) -> torch.Tensor:
    """Cover, with a probability, a random box of an image by the same box of another image; the class stays (after Yun
    et al., 2019). Boxes are drawn as `v2.RandomErasing` draws them."""
    if torch.rand(1) >= probability:
        return image
    box = v2.RandomErasing().make_params([image])
    if box["v"] is None:  # no box was found that fits
        return image
    box["v"] = other[..., box["i"] : box["i"] + box["h"], box["j"] : box["j"] + box["w"]]
    return v2.functional.erase(image, **box)


def random_changes(options: ImageOptions, progress: float = 0.0) -> list[v2.Transform]:
    """The configured changes that need no other image: flips, rotation, crop, colours, an erased box, in this order. A
    box is erased with `progress` times the configured probability. What is left blank has the mean colour."""
    blank, (height, width) = mean_colour(options.normalization.mean), options.size
    flips = (v2.RandomHorizontalFlip, options.HorizontalFlip), (v2.RandomVerticalFlip, options.VerticalFlip)
    changes: list[v2.Transform] = [flip(probability) for flip, probability in flips if probability]
    if options.RandomRotationDegrees:
        changes.append(v2.RandomRotation(options.RandomRotationDegrees, v2.InterpolationMode.BILINEAR, fill=blank))
    if options.RandomResizedCrop < 1:
        ratio = (3 / 4 * width / height, 4 / 3 * width / height)
        changes.append(v2.RandomResizedCrop(options.size, (options.RandomResizedCrop, 1), ratio))
    if any(jitter := (options.brightness, options.contrast, options.saturation, options.hue)):
        changes.append(v2.ColorJitter(*jitter))
    if options.RandomErasing * progress:
        changes.append(v2.RandomErasing(options.RandomErasing * progress, value=blank))
    return changes


class ChangedImages(Dataset):
    """Makes the randomly changed images of a `Request`: uint8 (S, 3, H, W)."""

    def __init__(self, images: StoredImages, options: ImageOptions, seed: int) -> None:
        self.images, self.options, self.seed = images, options, seed

    def __getitem__(self, request: Request) -> torch.Tensor:
        images, changes = self.images[request.positions], random_changes(self.options, request.progress)
        probability = 0.0 if request.others is None else self.options.CutMix
        if not changes and not probability:
            return images
        others = self.images[request.others] if probability else images
        change = v2.Compose(changes or [v2.Identity()])
        with torch.random.fork_rng(devices=[]):
            for k, (image, other) in enumerate(zip(images, others)):
                seed = np.random.SeedSequence([self.seed, request.epoch, request.first + k])
                torch.default_generator.manual_seed(int(seed.generate_state(1)[0]))
                images[k] = cut_mix(change(image), other, probability)
        return images


class ImageLoader:
    """Makes the changed images of an epoch, batch by batch; workers prepare the next ones, unless images are few."""

    def __init__(self, images: StoredImages, options: ImageOptions, seed: int, workers: int) -> None:
        self.requests: list[Request] = []
        workers = workers if len(images) * options.size[0] * options.size[1] >= MIN_PIXELS else 0
        self.loader = DataLoader(
            ChangedImages(images, options, seed),
            batch_size=None,
            sampler=self.requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),  # page-locked memory is copied to a GPU faster
            generator=torch.Generator(),  # or it would draw from the global one
        )

    def __call__(self, requests: Iterable[Request]) -> Iterator[torch.Tensor]:
        """The images of each request, in their order."""
        self.requests[:] = requests
        return iter(self.loader)


def halved_boxes(count: int, image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw a box in each of N images and cut it in two at a random place: (N, 2, 4), top, bottom, left and right in
    pixels; bottom and right are excluded."""
    length = np.maximum(2, (rng.uniform(*SIDES, (count, 2)) * image_size).round().astype(int))
    start = rng.integers(image_size - length + 1)
    box, image, axis = np.stack([start, start + length], axis=2), np.arange(count), rng.integers(2, size=count)
    halves = np.stack([box, box], axis=1)  # image; half; rows or columns; start or end
    cut = rng.integers(box[image, axis, 0] + 1, box[image, axis, 1])
    halves[image, 0, axis, 1] = halves[image, 1, axis, 0] = cut
    return halves.reshape(count, 2, 4)


def occlude_halves(batch: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Blur halves of boxes, (N, 2, 4) as of `halved_boxes`, in preprocessed images (N, 3, H, W): all images with the
    first half blurred, then with the second, then with both, (3N, 3, H, W)."""
    blurred, occluded = blur(batch), torch.stack([batch] * 3)
    for image, halves in enumerate(boxes):
        for half, (top, bottom, left, right) in enumerate(halves.tolist()):
            occluded[[half, 2], image, :, top:bottom, left:right] = blurred[image, :, top:bottom, left:right]
    return occluded.flatten(0, 1).contiguous(memory_format=torch.channels_last)
