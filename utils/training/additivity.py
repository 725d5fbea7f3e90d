"""Training in which effects of regions add up, so that a map, which is a sum over regions, can be right about them.

For a network as it comes, blurring a region may do something else than blurring its parts one at a time. Then no map is
right for regions of all sizes (docs/trials.md). Here a box of an image is cut in two, and the network is taught
that blurring both halves does what blurring the one and blurring the other do together.
"""

from __future__ import annotations

import numpy as np
import torch

from utils.explain.removal import blur

SHARE = 8  # one image in so many of a batch is looked at without boxes
SIDES = (0.2, 0.7)  # of a box, as shares of the image's


def halved_boxes(count: int, image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random box in each of N images, cut in two at a random place: top, bottom, left and right in pixels, the second
    and fourth excluded, shape (N, 2, 4)."""
    boxes = []
    for _ in range(count):
        length = [max(2, round(rng.uniform(*SIDES) * side)) for side in image_size]
        start = [int(rng.integers(side - part + 1)) for side, part in zip(image_size, length)]
        box = [start[0], start[0] + length[0], start[1], start[1] + length[1]]
        axis = 2 * int(rng.integers(2))
        cut = int(rng.integers(box[axis] + 1, box[axis + 1]))
        one, two = list(box), list(box)
        one[axis + 1] = two[axis] = cut
        boxes.append([one, two])
    return np.array(boxes)


def without_halves(batch: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Preprocessed images (N, 3, H, W), blurred in the first half of their box (N, 2, 4), in the second, and in both:
    (3N, 3, H, W)."""
    blurred = blur(batch)
    changed = torch.stack([batch] * 3)
    for image, halves in enumerate(boxes):
        for half, (top, bottom, left, right) in enumerate(halves.tolist()):
            changed[[half, 2], image, :, top:bottom, left:right] = blurred[image, :, top:bottom, left:right]
    return changed.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def left_over(whole: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    """`delta_AB - delta_A - delta_B` of N images, (N, D), from their embeddings (N, D) and those of `without_halves`
    (3N, D); 0 where effects add up."""
    first, second, both = changed.chunk(3)
    return whole - first - second + both
