"""Images in which a red square tells the class, for a network that sees nothing but red."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from utils.compare import evidence
from utils.evaluate import reliance
from utils.explain import concepts
from utils.Siamese import SiameseNetwork

SIZE = (64, 64)


class SeesRed(SiameseNetwork):
    """z = the share of clearly red pixels times 20, and 0."""

    def __init__(self):
        super().__init__("Conv4", embedding_dim=2, image_size=SIZE)

    def embed(self, batch):
        red = (batch[:, 0] - batch[:, 1] > 2).float().mean((1, 2))  # not a blurred square
        return torch.stack([20 * red, 0 * red], 1)


def planted_images(count, share, seed=0):
    """Half of the images are of class b, `share` of which have a red square: uint8 images, classes, corners or None."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(90, 130, (count, 1, *SIZE), dtype=np.uint8)).repeat(1, 3, 1, 1)
    labels, corners = np.array(["a", "b"] * (count // 2)), []
    for image, label in zip(images, labels):
        top, left = 4 * rng.integers(0, 14, 2)  # where a place begins
        corners.append((int(top), int(left)) if label == "b" and rng.random() < share else None)
        if corners[-1]:
            image[:, top : top + 12, left : left + 12] = torch.tensor([250, 10, 10])[:, None, None]
    return images, labels, corners


def covered_square(boxes, corner):
    """The share of the square at `corner` that lies in boxes, in pixels of the images, and the area of all boxes."""
    inside = np.zeros(SIZE, bool)
    for box in boxes.itertuples():
        inside[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
    return inside[corner[0] : corner[0] + 12, corner[1] : corner[1] + 12].mean(), inside.sum()


def patch_measurements(monkeypatch):
    """Replaces the two slow parts: an effect is red, and a look is the colour, contrast and edges of a place."""

    def effects(model, batch, verbose):
        red = F.interpolate((batch[:, :1] - batch[:, 1:2]).clamp(min=0), (concepts.GRID, concepts.GRID), mode="area")
        return SimpleNamespace(density=torch.cat([red, red, red], 1).permute(0, 2, 3, 1))

    def features(images, verbose=True):
        for batch in images.split(concepts.BATCH_SIZE):
            x = F.interpolate(batch.float() / 255, (concepts.GRID, concepts.GRID), mode="area")
            edges = [(x - F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)).abs() for side in (3, 5)]
            pooled = F.avg_pool2d(torch.cat([x, x.square(), *edges], 1), concepts.CELLS, 1)
            yield F.normalize(pooled, dim=1).flatten(2).transpose(1, 2)

    monkeypatch.setattr(concepts, "region_effects", effects)
    for module in (concepts, reliance, evidence):
        monkeypatch.setattr(module, "features_of_places", features)
