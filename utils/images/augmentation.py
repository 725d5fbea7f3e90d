"""Random changes to training images."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import v2

from utils.images.frame import mean_colour
from utils.machine import seeded
from utils.settings import ImageOptions


class Augmentation:
    """The random transforms of the configuration, drawn for every image by itself, from the given seed.

    Args:
        options: probabilities of the flips; `RandomRotationDegrees` turns by up to that angle either way, the corners
            filled with the normalisation's mean colour; `RandomResizedCrop` is the smallest share of the area that a
            crop keeps, its aspect ratio at most 4 / 3 off, enlarged again (Szegedy et al., 2015); brightness, contrast,
            saturation and hue as in torchvision's ColorJitter; `RandomErasing` is the probability that a box of 2 to 33
            % of the image is filled with the mean colour (Zhong et al., 2020). All zero, and the crop 1: images come
            back as they are.
    """

    def __init__(self, options: ImageOptions, seed: int) -> None:
        steps: list[torch.nn.Module] = []
        blank = mean_colour(options.normalization.mean)
        if options.HorizontalFlip:
            steps.append(v2.RandomHorizontalFlip(options.HorizontalFlip))
        if options.VerticalFlip:
            steps.append(v2.RandomVerticalFlip(options.VerticalFlip))
        if options.RandomRotationDegrees:
            steps.append(v2.RandomRotation(options.RandomRotationDegrees, v2.InterpolationMode.BILINEAR, fill=blank))
        if options.RandomResizedCrop < 1:
            height, width = options.size
            ratio = (3 / 4 * width / height, 4 / 3 * width / height)
            steps.append(v2.RandomResizedCrop(options.size, scale=(options.RandomResizedCrop, 1), ratio=ratio))
        if options.brightness or options.contrast or options.saturation or options.hue:
            steps.append(v2.ColorJitter(options.brightness, options.contrast, options.saturation, options.hue))
        self.options = options
        self.erasing = v2.RandomErasing(options.RandomErasing, value=blank)
        if options.RandomErasing:
            steps.append(self.erasing)
        self.transform = v2.Compose(steps) if steps else None
        self.rng = np.random.default_rng(seed)

    def __call__(self, images: torch.Tensor, progress: float = 1.0) -> torch.Tensor:
        """uint8 images of shape (N, 3, H, W) -> the same, changed at random.

        Args:
            progress: share of the training that is over, in [0, 1]; boxes are erased with `progress` times their
                probability.
        """
        if self.transform is None:
            return images
        self.erasing.p = progress * self.options.RandomErasing
        with seeded(int(self.rng.integers(2**31))):
            return torch.stack([self.transform(image) for image in images])
