"""Random changes to training images: torchvision's, image by image, made in other processes while the network computes.

What is drawn for an image follows from the seed, the epoch and its place in the epoch. So it is the same for any number
of workers and of processes, and after a run was killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from utils.images.frame import mean_colour
from utils.images.stored import Images
from utils.system.settings import ImageOptions

ENOUGH = 20e6  # pixels of an epoch from which on worker processes are worth their start


class Request(NamedTuple):
    """A batch of training images, or a process's share of it, to be changed."""

    positions: np.ndarray  # (S,) among the training images
    first: int  # place of the first of them in the epoch; the others follow
    epoch: int
    progress: float = 0.0  # share of the fine-tuning that is over, in [0, 1]
    others: np.ndarray | None = None  # (S,) positions of the images that cover boxes of them; None: nothing is covered


class CutMix:
    """Covers a box of an image, with a probability, by what another image has there; the class stays what it was (after
    Yun et al., 2019). Boxes are drawn as those of `v2.RandomErasing`."""

    def __init__(self, probability: float) -> None:
        self.probability, self.boxes = probability, v2.RandomErasing()

    def __call__(self, image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if torch.rand(1) >= self.probability:
            return image
        box = self.boxes.make_params([image])
        if box["v"] is None:  # none was found that fits
            return image
        inside = ..., slice(box["i"], box["i"] + box["h"]), slice(box["j"], box["j"] + box["w"])
        covered = image.clone()
        covered[inside] = other[inside]
        return covered


def random_changes(options: ImageOptions, progress: float = 0.0) -> list[v2.Transform]:
    """What the configuration asks for that needs no other image, in this order: flips, rotation, crop, colours, a box
    erased with `progress` times its probability. Outside a rotated image, and in an erased box, is the mean colour."""
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
    """Training images, changed at random: uint8 (S, 3, H, W) for a `Request`."""

    def __init__(self, images: Images, options: ImageOptions, seed: int) -> None:
        self.images, self.options, self.seed = images, options, seed

    def __getitem__(self, request: Request) -> torch.Tensor:
        images, changes = self.images[request.positions], random_changes(self.options, request.progress)
        covers = request.others is not None and self.options.CutMix > 0
        if not changes and not covers:
            return images
        others = self.images[request.others] if covers else images
        change, cover = v2.Compose(changes or [v2.Identity()]), CutMix(self.options.CutMix if covers else 0)
        with torch.random.fork_rng(devices=[]):
            for k, (image, other) in enumerate(zip(images, others)):
                seed = np.random.SeedSequence([self.seed, request.epoch, request.first + k])
                torch.default_generator.manual_seed(int(seed.generate_state(1)[0]))
                images[k] = cover(change(image), other)
        return images


class ImageLoader:
    """Makes the changed images of an epoch, a batch at a time and some ahead.

    Args:
        images: for training, uint8 (N, 3, H, W).
        workers: processes that make them; none for so few or so small images that these would cost more than they save.
        pinned: whether batches come in memory that is copied to a GPU faster.
    """

    def __init__(self, images: Images, options: ImageOptions, seed: int, workers: int = 0, pinned: bool = False):
        self.changes_images = bool(random_changes(options))
        self.requests: list[Request] = []
        workers = workers if len(images) * options.size[0] * options.size[1] >= ENOUGH else 0
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
