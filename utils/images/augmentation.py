"""Random changes to training images: drawn for every image by itself, made for many at once."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from utils.images import colours
from utils.images.draws import COLOURS, NUMBERS, Changes, draw_changes
from utils.images.frame import mean_colour
from utils.settings import ImageOptions


class Augmentation:
    """The random changes of the configuration, drawn for every image by itself, from the given seed.

    Args:
        options: probabilities of the flips; `RandomRotationDegrees` turns by up to that angle either way, the corners
            filled with the normalisation's mean colour; `RandomResizedCrop` is the smallest share of the area that a
            crop keeps, its aspect ratio at most 4 / 3 off, enlarged again (Szegedy et al., 2015); brightness, contrast,
            saturation and hue as in torchvision's ColorJitter; `RandomErasing` is the probability that a box of 2 to 33
            % of the image is filled with the mean colour (Zhong et al., 2020), `CutMix` that it is covered by that of
            another image, the class staying what it was (after Yun et al., 2019). All zero, and the crop 1: images
            come back as they are.
    """

    def __init__(self, options: ImageOptions, seed: int) -> None:
        self.options = options
        self.blank = torch.tensor(mean_colour(options.normalization.mean), dtype=torch.float32).view(3, 1, 1)
        self.rng = np.random.default_rng(seed)

    @property
    def changes_images(self) -> bool:
        """Whether anything is switched on that needs no other images."""
        options = self.options
        keys = ("HorizontalFlip", "VerticalFlip", "RandomRotationDegrees", "RandomErasing", *COLOURS)
        return options.RandomResizedCrop < 1 or any(getattr(options, key) for key in keys)

    @property
    def covers(self) -> bool:
        """Whether boxes are to be covered by other images."""
        return self.options.CutMix > 0

    def __call__(self, images: torch.Tensor, progress: float = 1.0, others: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 images of shape (N, 3, H, W) -> the same, changed at random on the device they are on: float32 on the
        scale of 0 to 255, not rounded. An image's changes depend on how many images came before it, and not on the
        batches they came in.

        Args:
            progress: share of the training that is over, in [0, 1]; boxes are erased with `progress` times their
                probability.
            others: as many images to cover boxes with, likewise; without them, nothing is covered.
        """
        if not (self.changes_images or self.covers and others is not None):
            return images
        changes = draw_changes(self.options, self.rng, len(images), tuple(images.shape[2:]), progress)
        return changed_images(images, changes, self.blank.to(images.device), others)

    def skip(self, count: int) -> None:
        """Leave out so many images: those that follow are changed as if these had been, too."""
        self.rng.bit_generator.advance(count * NUMBERS)


def changed_images(
    images: torch.Tensor, changes: Changes, blank: torch.Tensor, others: torch.Tensor | None = None
) -> torch.Tensor:
    """Images (N, 3, H, W) on the scale of 0 to 255, changed, float32; what is outside of them and what is erased has
    the colour `blank`, (3, 1, 1), and what is covered shows what the `others` (N, 3, H, W) have there."""
    changed = torch.empty(images.shape, device=images.device)
    piece, single = at_once(images)
    lines = (
        source_lines(changes, tuple(images.shape)) if changes.angles is not None or changes.crops is not None else None
    )
    for start in range(0, len(images), piece):
        part = slice(start, start + piece)
        some, what = changed[part].copy_(images[part]), changes.of(part)
        if lines:
            places = (line[part].to(images.device) for line in lines)
            some.copy_(resample(some, *places, blank, what.angles is not None))
        elif what.flips is not None:
            for axis, flipped in zip((2, 1), what.flips.T):
                for position in np.flatnonzero(flipped):
                    some[position] = some[position].flip(axis)
        if what.order is not None:
            for first in range(0, len(some), single):
                few = slice(first, first + single)
                some[few] = adjust_colours(some[few], what.order[few], what.factors[few])
        if what.holes is not None:
            for image, (top, left, height, width) in zip(some, what.holes.tolist()):
                image[:, top : top + height, left : left + width] = blank
        if what.covers is not None and others is not None:
            for image, other, (top, left, height, width) in zip(some, others[part], what.covers.tolist()):
                box = slice(None), slice(top, top + height), slice(left, left + width)
                image[box] = other[box].to(image)
    return changed


def at_once(images: torch.Tensor) -> tuple[int, int]:
    """How many images are resampled at once, and of how many the colours are changed: on a GPU all of them, on a CPU as
    many as there are threads, and one, as its cache does not hold many."""
    return (torch.get_num_threads(), 1) if images.device.type == "cpu" else (len(images), len(images))


def source_lines(changes: Changes, shape: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the pixels of images of a shape (N, 3, H, W) come from under flips, turns and crops, from the centre, in
    halves of the sides: x and y, the sum of what a pixel's row and its column say, (N, 2, H, 1) and (N, 2, 1, W).

    Within a crop, pixels beyond its edge count as those on it, as where it is cut out and enlarged.
    """
    count, _, height, width = shape
    crops = (0, 0, height, width) if changes.crops is None else changes.crops
    top, left, tall, wide = np.broadcast_to(crops, (count, 4)).T
    y, x = (_places(*axis) for axis in ((top, tall, height), (left, wide, width)))
    angles = np.radians(np.zeros(count) if changes.angles is None else changes.angles)[:, None]
    sides = np.array([[width, height]]) / 2 * (1 if changes.flips is None else 1 - 2 * changes.flips)
    columns = np.stack([x * np.cos(angles), x * np.sin(angles)], axis=1) / sides[:, :, None]
    rows = np.stack([-y * np.sin(angles), y * np.cos(angles)], axis=1) / sides[:, :, None]
    return torch.from_numpy(rows).float()[:, :, :, None], torch.from_numpy(columns).float()[:, :, None, :]


def resample(
    images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, blank: torch.Tensor, turned: bool
) -> torch.Tensor:
    """Flips, turns and crops in one bilinear interpolation; the images are overwritten.

    A crop is never larger than the image it is enlarged to, so there is nothing to smooth away first.

    Args:
        turned: whether pixels may come from beyond the image, where everything is `blank`.
    """
    grid = (rows + columns).permute(0, 2, 3, 1)
    if not turned:
        return F.grid_sample(images, grid, align_corners=False)
    return F.grid_sample(images.sub_(blank), grid, align_corners=False).add_(blank)  # beyond the image there are zeros


def _places(start: np.ndarray, length: np.ndarray, side: int) -> np.ndarray:
    """For `side` pixels that show `length` pixels from `start`: where they lie, from the image's centre, (N, side)."""
    start, length = start[:, None], length[:, None]
    within = ((np.arange(side) + 0.5) * length / side - 0.5).clip(0, length - 1)
    return start + within + 0.5 - side / 2


def adjust_colours(images: torch.Tensor, order: np.ndarray, factors: np.ndarray) -> torch.Tensor:
    """Changes of colour, for every image in an order of its own, see `Changes`; images that are due for the same change
    are changed at once."""
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
