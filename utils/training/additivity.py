"""Additivity: training makes the effects of regions add up, as a map, which is a sum over regions, supposes.

The effect of a region may differ from the sum of its parts' effects. Then no map is right for regions of all sizes
(docs/trials.md). Here a random box of an image is cut in two halves A and B, and the network learns that the effect of
both is the sum of their effects: `delta_AB = delta_A + delta_B`.
"""

from __future__ import annotations

import numpy as np
import torch

from utils.explain.removal import blur

CHOSEN = 1 / 8  # share of a batch's images in which a box is occluded
SIDES = (0.2, 0.7)  # smallest and largest sides of a box, as shares of the image's sides


def halved_boxes(count: int, image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw a box in each of N images and cut it in two at a random place: (N, 2, 4).

    Boxes are top, bottom, left and right in pixels; bottom and right are excluded.
    """
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


def occlude_halves(batch: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Blur the first half of each image's box, the second half, and both.

    Args:
        batch: preprocessed images (N, 3, H, W).
        boxes: from `halved_boxes`, (N, 2, 4).

    Returns:
        (3N, 3, H, W): all images with the first half blurred, then with the second, then with both.
    """
    blurred = blur(batch)
    occluded = torch.stack([batch] * 3)
    for image, halves in enumerate(boxes):
        for half, (top, bottom, left, right) in enumerate(halves.tolist()):
            occluded[[half, 2], image, :, top:bottom, left:right] = blurred[image, :, top:bottom, left:right]
    return occluded.flatten(0, 1).contiguous(memory_format=torch.channels_last)
