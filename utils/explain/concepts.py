"""Recurring evidence: groups of strong regions that look alike, and where else in all images that look occurs.

CRAFT (Fel et al., 2023) groups crops by a classifier's activations, SpRAy (Lapuschkin et al., 2019) whole heat maps.
Here regions of large measured effect are grouped. What a group does is measured by `utils.evaluate.reliance`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples
from tqdm.auto import tqdm

from utils.explain.occlusion import GRID, region_effects
from utils.images.cache import StoredImages
from utils.images.places import BOX
from utils.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, backbone_blocks
from utils.Siamese import SiameseNetwork

CELLS = 6  # side of a region, in positions of a map: 0.19 of the image's side
PLACES = GRID - CELLS + 1  # of a region, along each side
STRONGEST = 8  # regions of an image of which groups are made
LOOK_SIDE, LOOK_STRIDE = 256, 16  # pixels: height of the image that is looked at; of a position of its features
DIMENSIONS = 24  # of a look
SMALLEST = 8  # regions of a group that is denser than what is around it
LEAST_RADIUS = 0.2  # of a group of equal looks, as a share of the spread of all looks
COMMON = 4  # groups into which the rest is divided
BATCH_SIZE = 16


@dataclass(frozen=True)
class Groups:
    """G groups of looks: the `projection` from features to looks, `centres` (G, DIMENSIONS) and `radii` (G,); the mean
    silhouette of each, `likeness` (G,), 1 if all are the same and nothing else is like them; and `rest`, the share of
    the strong regions in no group."""

    projection: PCA
    centres: torch.Tensor
    radii: torch.Tensor
    likeness: np.ndarray
    rest: float

    def find(self, images: StoredImages | torch.Tensor, verbose: bool = True) -> tuple[pd.DataFrame, np.ndarray]:
        """Look for all groups in uint8 images (N, 3, H, W).

        Returns:
            A row for each region: `image` and `group` (positions), `top`, `bottom`, `left`, `right` in pixels; those of
            a group do not overlap. And how far each image's nearest look is from each group, in its radii, (N, G).
        """
        rows, nearest, first = [], [], 0
        parts, total = features_of_places(images), -(-len(images) // BATCH_SIZE)
        for features in tqdm(parts, desc="Looking for groups", total=total, disable=not verbose):
            looks = torch.from_numpy(self.projection.transform(features.flatten(0, 1).numpy())).float()
            distance = (torch.cdist(looks, self.centres) / self.radii).unflatten(0, features.shape[:2])
            nearest.append(distance.amin(1))
            distance, group = distance.min(2)
            for k in range(len(self.radii)):
                chosen = disjoint(torch.where((group == k) & (distance <= 1), -distance, -torch.inf))
                rows += [(first + int(i), k, int(chosen[i, j])) for i, j in (chosen >= 0).nonzero()]
            first += len(features)
        found = pd.DataFrame(rows, columns=["image", "group", "place"])
        boxes = boxes_at(torch.tensor(found.pop("place").to_numpy(int)), tuple(images[[0]].shape[2:]))
        return found.assign(**dict(zip(BOX, boxes.numpy().T))), torch.cat(nearest).numpy()


def find_groups(model: SiameseNetwork, images: StoredImages | torch.Tensor, verbose: bool = True) -> Groups:
    """Measure the regions of uint8 images (N, 3, H, W), and group the strongest by their look: dense groups (HDBSCAN,
    Campello et al., 2013), and what is left by k-means."""
    looks = []
    parts = zip(images.split(BATCH_SIZE), features_of_places(images))
    total = -(-len(images) // BATCH_SIZE)
    for batch, features in tqdm(parts, desc="Occluding regions", total=total, disable=not verbose):
        density = region_effects(model, model.normalize(batch), verbose=False).density[..., :-1]
        sums = F.avg_pool2d(density.permute(0, 3, 1, 2).float().cpu(), CELLS, 1)
        places = disjoint(sums.norm(dim=1).flatten(1), STRONGEST)
        looks += [part[chosen[chosen >= 0]] for part, chosen in zip(features, places)]
    looks = torch.cat(looks).numpy()
    projection = PCA(min(DIMENSIONS, *looks.shape), random_state=0)
    looks = projection.fit_transform(looks)
    group = HDBSCAN(SMALLEST, min_samples=SMALLEST // 2, copy=True).fit_predict(looks)
    sizes = np.bincount(group[group >= 0], minlength=1)
    left = np.isin(group, [-1, *np.flatnonzero(sizes > len(looks) / 2)])  # a "group" of most regions says nothing
    if left.sum() >= COMMON:
        group[left] = len(sizes) + KMeans(COMMON, n_init=5, random_state=0).fit_predict(looks[left])
    likeness = silhouette_samples(looks, group) if 1 < len(np.unique(group)) < len(looks) else np.zeros(len(looks))
    group[likeness < 0] = -1
    members = [torch.from_numpy(looks[group == k]).float() for k in np.unique(group[group >= 0])]
    centres = [part.mean(0) for part in members]
    radii = [torch.quantile((part - centre).norm(dim=1), 0.95) for part, centre in zip(members, centres)]
    alike = np.array([likeness[group == k].mean() for k in np.unique(group[group >= 0])])
    rest, least = float((group < 0).mean()), LEAST_RADIUS * float(np.linalg.norm(looks.std(0)))
    return Groups(projection, torch.stack(centres), torch.stack(radii).clamp(min=least), alike, rest)


def disjoint(score: torch.Tensor, most: int = PLACES**2) -> torch.Tensor:
    """Choose the places of highest score (N, PLACES^2), above -inf, whose regions do not overlap: (N, <= `most`), the
    best first; -1 stands for none."""
    score, at = score.clone(), torch.arange(PLACES**2)
    chosen = [torch.full((len(score),), -1)]
    while len(chosen) <= most and (score > -torch.inf).any():
        value, place = score.max(1)
        chosen.append(torch.where(value > -torch.inf, place, -1))
        down, across = at // PLACES - place[:, None] // PLACES, at % PLACES - place[:, None] % PLACES
        score[(down.abs() < CELLS) & (across.abs() < CELLS)] = -torch.inf
    return torch.stack(chosen, 1)[:, 1:]


def boxes_at(places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The regions at places, (M,) -> top, bottom, left, right, (M, 4), in images of a size in pixels."""
    down, across = ((torch.arange(GRID + 1) * side / GRID).round().long() for side in size)
    row, column = places // PLACES, places % PLACES
    return torch.stack([down[row], down[row + CELLS], across[column], across[column + CELLS]], 1)


@torch.no_grad()
def features_of_places(images: StoredImages | torch.Tensor) -> Iterator[torch.Tensor]:
    """Describe the region at each place of uint8 images (N, 3, H, W), a batch at a time: (B, PLACES^2, C).

    They are features of a middle layer of a network that knows ImageNet, whatever the network that is explained;
    averaged over four rotations, so that all sides of a border look alike, and a ruler however it lies.
    """
    blocks = [block.eval() for block in backbone_blocks("EfficientNetLite0", pretrained=True)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for batch in images.split(BATCH_SIZE):
        x = (batch.float() / 255 - mean) / std
        x = F.interpolate(x, scale_factor=LOOK_SIDE / x.shape[2], mode="bilinear", antialias=True)
        total = 0
        for turn in range(4):
            features = after = torch.rot90(x, turn, (2, 3))
            height = after.shape[2]
            for block in blocks:
                after = block(after)
                if after.shape[2] * LOOK_STRIDE < height:
                    break
                features = after
            total = total + F.interpolate(torch.rot90(features, -turn, (2, 3)), (GRID, GRID), mode="bilinear")
        yield F.normalize(F.avg_pool2d(total, CELLS, 1), dim=1).flatten(2).transpose(1, 2)
