"""Augmentation: random changes of each training image, made by worker processes while the network computes.

The random numbers of an image follow from the seed, the epoch and its place in the epoch. So they are the same for any
number of workers and of processes, and after a run was killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from utils.images.frame import mean_colour
from utils.images.stored import StoredImages
from utils.system.settings import ImageOptions

MIN_PIXELS = 20e6  # of all training images; for fewer, worker processes cost more time than they save


class Request(NamedTuple):
    """Asks for a batch of changed training images, or for a process's share of one."""

    positions: np.ndarray  # (S,) among the training images
    first: int  # place in the epoch of the first image; the others follow
    epoch: int
    progress: float = 0.0  # share of the epochs of fine-tuning that are over, in [0, 1]
    others: np.ndarray | None = None  # (S,) positions of the images that CutMix takes boxes from; None: no CutMix


def cut_mix(image: torch.Tensor, other: torch.Tensor, probability: float) -> torch.Tensor:
    """Cover a random box of an image by the same box of another image; the class stays (after Yun et al., 2019).

    Args:
        probability: of covering the image. Boxes are drawn as `v2.RandomErasing` draws them.
    """
    if torch.rand(1) >= probability:
        return image
    box = v2.RandomErasing().make_params([image])
    if box["v"] is None:  # no box was found that fits
        return image
    inside = ..., slice(box["i"], box["i"] + box["h"]), slice(box["j"], box["j"] + box["w"])
    covered = image.clone()
    covered[inside] = other[inside]
    return covered


def random_changes(options: ImageOptions, progress: float = 0.0) -> list[v2.Transform]:
    """The configured changes that need no other image: flips, rotation, crop, colours, an erased box, in this order.

    Corners of a rotated image and erased boxes are filled with the mean colour.

    Args:
        progress: a box is erased with `progress` times the configured probability.
    """
    blank, (height, width) = mean_colour(options.normalization.mean), options.size
    jitter = (options.brightness, options.contrast, options.saturation, options.hue)
    changes: list[v2.Transform] = []
    if options.HorizontalFlip:
        changes.append(v2.RandomHorizontalFlip(options.HorizontalFlip))
    if options.VerticalFlip:
        changes.append(v2.RandomVerticalFlip(options.VerticalFlip))
    if options.RandomRotationDegrees:
        bilinear = v2.InterpolationMode.BILINEAR
        changes.append(v2.RandomRotation(options.RandomRotationDegrees, interpolation=bilinear, fill=blank))
    if options.RandomResizedCrop < 1:
        ratio = (3 / 4 * width / height, 4 / 3 * width / height)
        changes.append(v2.RandomResizedCrop(options.size, (options.RandomResizedCrop, 1), ratio))
    if any(jitter):
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
    """Makes the changed images of an epoch, batch by batch; workers prepare the next batches in advance.

    Args:
        images: training images, uint8 (N, 3, H, W).
        workers: number of worker processes; 0 if there are fewer than `MIN_PIXELS`.
        pinned: put batches into page-locked memory, which is copied to a GPU faster.
    """

    def __init__(self, images: StoredImages, options: ImageOptions, seed: int, workers: int = 0, pinned: bool = False):
        self.changes_images = bool(random_changes(options))
        self.requests: list[Request] = []
        workers = workers if len(images) * options.size[0] * options.size[1] >= MIN_PIXELS else 0
        self.loader = DataLoader(
            ChangedImages(images, options, seed),
            batch_size=None,
            sampler=self.requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
            generator=torch.Generator(),  # or it would draw from the global one
        )

    def __call__(self, requests: Sequence[Request]) -> Iterator[torch.Tensor]:
        """The images of each request, in their order."""
        self.requests[:] = requests
        return iter(self.loader)
