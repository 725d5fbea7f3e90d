"""Recurring evidence: what strong regions of many images have in common in their look, and where else it occurs.

CRAFT (Fel et al., 2023) groups crops by a classifier's activations, SpRAy (Lapuschkin et al., 2019) whole heat maps.
Here, regions with a large measured effect are grouped, and each group is then looked for in every image, by its look
alone. What a group does is a question for `utils.evaluate.reliance`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples
from torch import nn

from utils.explain.occlusion import GRID, region_effects
from utils.images.stored import StoredImages
from utils.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, backbone_blocks
from utils.Siamese import SiameseNetwork

CELLS = 6  # side of a region, in positions of a map: 0.19 of the image's side
PLACES = GRID - CELLS + 1  # of a region, along each side
STRONGEST = 8  # regions of an image that groups are made of
LOOK_SIDE, LOOK_STRIDE = 256, 16  # pixels: height of the image that is looked at, and of one position of its features
DIMENSIONS = 24  # of a look
SMALLEST = 8  # regions of a group that is denser than what is around it
COMMON = 4  # groups of what lies less dense
BATCH_SIZE = 16

# Two places along each side whose regions overlap.
_rows, _columns = (np.arange(PLACES**2) // PLACES, np.arange(PLACES**2) % PLACES)
OVERLAP = torch.from_numpy(
    (abs(_rows[:, None] - _rows) < CELLS) & (abs(_columns[:, None] - _columns) < CELLS)
)  # fmt: skip


@dataclass(frozen=True)
class Groups:
    """Groups of looks.

    Attributes:
        projection: from features to looks.
        centres, radii: of G groups of looks, (G, DIMENSIONS) and (G,).
        likeness: mean silhouette of the looks of each group, (G,); 1: all are the same, and nothing else is like them.
        rest: share of the strong regions that are in no group.
    """

    projection: PCA
    centres: torch.Tensor
    radii: torch.Tensor
    likeness: np.ndarray
    rest: float

    def find(self, images: StoredImages | torch.Tensor) -> tuple[pd.DataFrame, np.ndarray]:
        """Look for all groups in uint8 images (N, 3, H, W).

        Returns:
            A row for each region: `image` and `group` (positions), and `top`, `bottom`, `left`, `right` in pixels of
            the frame; those of a group do not overlap. And the distance of each image's nearest look from each group,
            in radii of the group, (N, G).
        """
        rows, nearest, first = [], [], 0
        for features in feature_maps(images):
            looks = torch.from_numpy(self.projection.transform(features.flatten(0, 1).numpy())).float()
            distance = (torch.cdist(looks, self.centres) / self.radii).unflatten(0, features.shape[:2])
            nearest.append(distance.amin(1))
            distance, group = distance.min(2)
            for k in range(len(self.radii)):
                for chosen in disjoint(torch.where((group == k) & (distance <= 1), -distance, -torch.inf)).T:
                    rows += [(first + i, k, int(place)) for i, place in enumerate(chosen) if place >= 0]
            first += len(features)
        found = pd.DataFrame(rows, columns=["image", "group", "place"]).sort_values(["image", "group", "place"])
        boxes = boxes_at(torch.tensor(found.pop("place").to_numpy()), tuple(images[[0]].shape[2:]))
        found[["top", "bottom", "left", "right"]] = boxes.numpy()
        return found.reset_index(drop=True), torch.cat(nearest).numpy()


def find_groups(model: SiameseNetwork, images: StoredImages | torch.Tensor, verbose: bool = True) -> Groups:
    """Measure the effects of regions of uint8 images (N, 3, H, W), and group the strongest by their look.

    Dense groups come first (HDBSCAN, Campello et al., 2013); what is left is divided by k-means.
    """
    looks = []
    for batch, features in zip(images.split(BATCH_SIZE), feature_maps(images)):
        density = region_effects(model, model.normalize(batch), verbose).density[..., :-1]
        sums = F.avg_pool2d(density.permute(0, 3, 1, 2).float().cpu(), CELLS, 1)
        places = disjoint(sums.norm(dim=1).flatten(1), STRONGEST)
        looks += [part[chosen[chosen >= 0]] for part, chosen in zip(features, places)]
    looks = torch.cat(looks).numpy()
    projection = PCA(min(DIMENSIONS, *looks.shape), random_state=0).fit(looks)
    looks = projection.transform(looks)
    group, likeness = _grouped(looks)
    members = [torch.from_numpy(looks[group == k]).float() for k in range(group.max() + 1)]
    centres = torch.stack([part.mean(0) for part in members])
    radii = [torch.quantile((part - centre).norm(dim=1), 0.95) for part, centre in zip(members, centres)]
    mean_likeness = np.array([likeness[group == k].mean() for k in range(len(members))])
    return Groups(projection, centres, torch.stack(radii).clamp(min=1e-6), mean_likeness, float((group < 0).mean()))


def _grouped(looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of each look, -1 for none, and its silhouette, each (M,)."""
    group = HDBSCAN(SMALLEST, min_samples=SMALLEST // 2, copy=True).fit_predict(looks)
    sizes = np.bincount(group[group >= 0], minlength=1)
    left = np.isin(group, [-1, *np.flatnonzero(sizes > len(looks) / 2)])  # a "group" of most regions says nothing
    if left.sum() >= COMMON:
        group[left] = sizes.size + KMeans(COMMON, n_init=5, random_state=0).fit_predict(looks[left])
    likeness = silhouette_samples(looks, group) if len(np.unique(group)) > 1 else np.zeros(len(looks))
    group[likeness < 0] = -1
    kept = group >= 0
    group[kept] = np.unique(group[kept], return_inverse=True)[1]  # 0, 1, ... without gaps
    return group, likeness


def disjoint(score: torch.Tensor, most: int = PLACES**2) -> torch.Tensor:
    """Choose the places of highest score (N, PLACES^2), above -inf, whose regions do not overlap: (N, <= `most`), the
    best first; -1 stands for none."""
    score, chosen = score.clone(), []
    while len(chosen) < most:
        value, place = score.max(1)
        if (value == -torch.inf).all():
            break
        chosen.append(torch.where(value > -torch.inf, place, -1))
        score[OVERLAP[place]] = -torch.inf
    return torch.stack(chosen, 1) if chosen else torch.full((len(score), 0), -1)


def boxes_at(places: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The regions at places, (M,) -> top, bottom, left, right, (M, 4), in images of a size in pixels."""
    down, across = ((torch.arange(GRID + 1) * side / GRID).round().long() for side in size)
    row, column = places // PLACES, places % PLACES
    return torch.stack([down[row], down[row + CELLS], across[column], across[column + CELLS]], 1)


@torch.no_grad()
def feature_maps(images: StoredImages | torch.Tensor) -> Iterator[torch.Tensor]:
    """Describe the region at each place of uint8 images (N, 3, H, W), a batch at a time: (B, PLACES^2, C).

    Features of a middle layer of a network that knows ImageNet, averaged over the region and over four rotations of the
    image: so all sides of a border look alike, and a ruler looks the same whichever way it lies.
    """
    blocks = nn.Sequential(*backbone_blocks("EfficientNetLite0", pretrained=True)).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for batch in images.split(BATCH_SIZE):
        x = (batch.float() / 255 - mean) / std
        x = F.interpolate(x, scale_factor=LOOK_SIDE / x.shape[2], mode="bilinear", antialias=True)
        total = torch.zeros(())
        for turn in range(4):
            turned = torch.rot90(x, turn, (2, 3))
            for block in blocks:
                after = block(turned)
                if after.shape[2] * LOOK_STRIDE < torch.rot90(x, turn, (2, 3)).shape[2]:
                    break
                turned = after
            features = torch.rot90(turned, -turn, (2, 3))
            total = total + F.interpolate(features, (GRID, GRID), mode="bilinear")
        yield F.normalize(F.avg_pool2d(total, CELLS, 1), dim=1).flatten(2).transpose(1, 2)
