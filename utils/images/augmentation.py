"""Random changes to training images: drawn for every image by itself, made for many at once."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from utils.images import colours
from utils.images.draws import COLOURS, NUMBERS, Changes, draw_changes
from utils.images.frame import mean_colour
from utils.settings import ImageOptions

PIECE = 4  # images that are changed together on a CPU, whose cache does not hold many


class Augmentation:
    """The random changes of the configuration, drawn for every image by itself, from the given seed.

    Args:
        options: probabilities of the flips; `RandomRotationDegrees` turns by up to that angle either way, the corners
            filled with the normalisation's mean colour; `RandomResizedCrop` is the smallest share of the area that a
            crop keeps, its aspect ratio at most 4 / 3 off, enlarged again (Szegedy et al., 2015); brightness, contrast,
            saturation and hue as in torchvision's ColorJitter; `RandomErasing` is the probability that a box of 2 to 33
            % of the image is filled with the mean colour (Zhong et al., 2020). All zero, and the crop 1: images come
            back as they are.
    """

    def __init__(self, options: ImageOptions, seed: int) -> None:
        self.options = options
        self.blank = torch.tensor(mean_colour(options.normalization.mean), dtype=torch.float32).view(3, 1, 1)
        self.rng = np.random.default_rng(seed)

    @property
    def changes_images(self) -> bool:
        """Whether anything is switched on."""
        options = self.options
        keys = ("HorizontalFlip", "VerticalFlip", "RandomRotationDegrees", "RandomErasing", *COLOURS)
        return options.RandomResizedCrop < 1 or any(getattr(options, key) for key in keys)

    def __call__(self, images: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        """uint8 images of shape (N, 3, H, W) -> the same, changed at random on the device they are on: float32 on the
        scale of 0 to 255, not rounded. An image's changes depend on how many images came before it, and not on the
        batches they came in.

        Args:
            progress: share of the training that is over, in [0, 1]; boxes are erased with `progress` times their
                probability.
        """
        if not self.changes_images:
            return images
        changes = draw_changes(self.options, self.rng, len(images), tuple(images.shape[2:]), progress)
        blank = self.blank.to(images.device)
        changed = torch.empty(images.shape, device=images.device)
        piece = PIECE if images.device.type == "cpu" else len(images)
        for start in range(0, len(images), piece):
            part = slice(start, start + piece)
            changed[part] = changed_images(images[part].float(), changes.of(part), blank)
        return changed

    def skip(self, count: int) -> None:
        """Leave out so many images: those that follow are changed as if these had been, too."""
        self.rng.bit_generator.advance(count * NUMBERS)


def changed_images(images: torch.Tensor, changes: Changes, blank: torch.Tensor) -> torch.Tensor:
    """Float images (N, 3, H, W) on the scale of 0 to 255, changed; what is outside of them and what is erased has the
    colour `blank`, (3, 1, 1). The images themselves may be overwritten."""
    if changes.angles is not None or changes.crops is not None:
        images = resample(images, changes, blank)
    elif changes.flips is not None:
        for axis, flipped in zip((2, 1), changes.flips.T):
            for position in np.flatnonzero(flipped):
                images[position] = images[position].flip(axis)
    if changes.order is not None:
        images = adjust_colours(images, changes.order, changes.factors)
    if changes.holes is not None:
        for image, (top, left, height, width) in zip(images, changes.holes.tolist()):
            image[:, top : top + height, left : left + width] = blank
    return images


def resample(images: torch.Tensor, changes: Changes, blank: torch.Tensor) -> torch.Tensor:
    """Flips, turns and crops in one bilinear interpolation.

    A crop is never larger than the image it is enlarged to, so there is nothing to smooth away first. Within the crop,
    pixels beyond its edge count as those on it, as where a crop is cut out and enlarged.
    """
    count, _, height, width = images.shape
    top, left, tall, wide = np.broadcast_to(
        (0, 0, height, width) if changes.crops is None else changes.crops, (count, 4)
    ).T
    y, x = (_places(*axis) for axis in ((top, tall, height), (left, wide, width)))
    angles = np.radians(np.zeros(count) if changes.angles is None else changes.angles)[:, None]
    # Where a pixel comes from, from the centre, in halves of the sides: the sum of what its row and its column say.
    sides = np.array([[width, height]]) / 2 * (1 if changes.flips is None else 1 - 2 * changes.flips)
    columns = np.stack([x * np.cos(angles), x * np.sin(angles)], axis=1) / sides[:, :, None]
    rows = np.stack([-y * np.sin(angles), y * np.cos(angles)], axis=1) / sides[:, :, None]
    columns, rows = (torch.from_numpy(part).float().to(images.device) for part in (columns, rows))
    grid = (rows[:, :, :, None] + columns[:, :, None, :]).permute(0, 2, 3, 1)
    if changes.angles is None:
        return F.grid_sample(images, grid, align_corners=False)
    return F.grid_sample(images.sub_(blank), grid, align_corners=False).add_(blank)  # beyond the image there are zeros


def _places(start: np.ndarray, length: np.ndarray, side: int) -> np.ndarray:
    """For `side` pixels that show `length` pixels from `start`: where they lie, from the image's centre, (N, side)."""
    start, length = start[:, None], length[:, None]
    within = ((np.arange(side) + 0.5) * length / side - 0.5).clip(0, length - 1)
    return start + within + 0.5 - side / 2


def one_by_one(images: torch.Tensor) -> bool:
    return images.device.type == "cpu" and len(images) > 1


def adjust_colours(images: torch.Tensor, order: np.ndarray, factors: np.ndarray) -> torch.Tensor:
    """Changes of colour, for every image in an order of its own, see `Changes`; images that are due for the same change
    are changed at once, on a CPU one by one, whose planes then stay in the cache."""
    if one_by_one(images):
        for position in range(len(images)):
            one = slice(position, position + 1)
            images[one] = adjust_colours(images[one], order[one], factors[one])
        return images
    factors = torch.from_numpy(factors).float().to(images.device)[:, :, None, None, None]
    for kinds in order.T:
        for kind in np.unique(kinds):
            change, due = getattr(colours, COLOURS[kind]), np.flatnonzero(kinds == kind)
            if len(due) == len(images):
                images = change(images, factors[:, kind])
            else:
                due = torch.from_numpy(due).to(images.device)
                images = images.index_copy(0, due, change(images[due], factors[due, kind]))
    return images
