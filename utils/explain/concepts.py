"""Recurring evidence: groups of strong regions that look alike, and where else in all images that look occurs.

CRAFT (Fel et al., 2023) groups crops by a classifier's activations, SpRAy (Lapuschkin et al., 2019) whole heat maps.
Here regions of large measured effect are grouped. What a group does is measured by `utils.evaluate.reliance`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import ndimage
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
FEWEST = 5  # images in which a group recurs
DISTINCT = 2.0  # an image has the look or it has not, if those without are so many times as far from it
FULL = 0.65  # share of a region's cells that belong to the group
BATCH_SIZE = 16


@dataclass(frozen=True)
class Groups:
    """G groups of looks: the `projection` from features to looks, `centres` (G, DIMENSIONS) and `radii` (G,); the mean
    silhouette of each, `likeness` (G,), 1 if all are the same and nothing else is like them; how many times as far the
    images without it are from the look, `gap` (G,); and `rest`, the share of the strong regions in no group."""

    projection: PCA
    centres: torch.Tensor
    radii: torch.Tensor
    likeness: np.ndarray
    gap: np.ndarray
    rest: float

    def find(self, features: Iterable[torch.Tensor], size: tuple[int, int]) -> pd.DataFrame:
        """Look for all groups in images of a size in pixels; `features` are of `features_of_places`.

        Returns:
            A row for each region: `image` and `group` (positions), `top`, `bottom`, `left`, `right` in pixels. They are
            the places nearest to the group; of a distinct one, the cells of which most places have its look.
        """
        rows, first = [], 0
        for part in features:
            distance = torch.cdist(self.looks(part), self.centres) / self.radii
            distance, group = distance.min(2)
            for k in range(len(self.radii)):
                has = (group == k) & (distance <= 1)
                chosen = disjoint(torch.where(has, -distance, -torch.inf))
                found = [(int(i), cells_at(int(chosen[i, j]))) for i, j in (chosen >= 0).nonzero()]
                if self.gap[k] >= DISTINCT:
                    cells = majority(has).numpy()
                    for i, (top, bottom, left, right) in found:
                        if cells[i].sum() < CELLS**2 / 2:  # the look is that of a few places only
                            cells[i, top:bottom, left:right] = True
                    found = [(i, box) for i in np.flatnonzero(cells.any((1, 2))) for box in boxes_of(cells[i])]
                rows += [(first + i, k, *box) for i, box in found]
            first += len(part)
        found = pd.DataFrame(rows, columns=["image", "group", *BOX])
        sides = [size[0]] * 2 + [size[1]] * 2
        return found.assign(**{name: (found[name] * side / GRID).round().astype(int) for name, side in zip(BOX, sides)})

    def looks(self, features: torch.Tensor) -> torch.Tensor:
        """(B, PLACES^2, C) -> (B, PLACES^2, DIMENSIONS)."""
        looks = self.projection.transform(features.flatten(0, 1).numpy())
        return torch.from_numpy(looks).float().unflatten(0, features.shape[:2])


def find_groups(
    model: SiameseNetwork, images: StoredImages | torch.Tensor, features: torch.Tensor, verbose: bool = True
) -> Groups:
    """Measure the regions of uint8 images (N, 3, H, W), and group the strongest by their look: dense groups (HDBSCAN,
    Campello et al., 2013), and what is left by k-means. `features` are those of the images' places, (N, PLACES^2, C).
    """
    looks = []
    parts = zip(images.split(BATCH_SIZE), features.split(BATCH_SIZE))
    total = -(-len(images) // BATCH_SIZE)
    for batch, part in tqdm(parts, desc="Occluding regions", total=total, disable=not verbose):
        density = region_effects(model, model.normalize(batch), verbose=False).density[..., :-1]
        sums = F.avg_pool2d(density.permute(0, 3, 1, 2).float().cpu(), CELLS, 1)
        places = disjoint(sums.norm(dim=1).flatten(1), STRONGEST)
        looks += [every[chosen[chosen >= 0]] for every, chosen in zip(part, places)]
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
    centres = torch.stack([part.mean(0) for part in members])
    radii = [torch.quantile((part - centre).norm(dim=1), 0.95) for part, centre in zip(members, centres)]
    alike = np.array([likeness[group == k].mean() for k in np.unique(group[group >= 0])])
    rest, least = float((group < 0).mean()), LEAST_RADIUS * float(np.linalg.norm(looks.std(0)))
    groups = Groups(projection, centres, torch.stack(radii).clamp(min=least), alike, np.ones(len(alike)), rest)
    nearest = torch.cat(
        [torch.cdist(groups.looks(part), centres).amin(1) for part in features.split(BATCH_SIZE)]
    ).clamp(min=least)
    gap, edges = map(np.array, zip(*(widest_gap(distances) for distances in nearest.T.numpy())))
    radii = torch.where(torch.from_numpy(gap >= DISTINCT), torch.from_numpy(edges).float(), groups.radii)
    return replace(groups, gap=gap, radii=radii)


def widest_gap(distances: np.ndarray) -> tuple[float, float]:
    """Where distances (N,) fall into near and far ones, a tenth of the near ones aside: how many times as far the far
    ones are, 1 if there are too few; and the middle of the gap, on a logarithmic scale."""
    ordered, counts = np.sort(distances), np.arange(FEWEST, int(0.9 * len(distances)))
    if not len(counts):
        return 1.0, float(ordered[-1])
    near, far = ordered[np.floor(0.9 * counts).astype(int) - 1], ordered[np.ceil(1.1 * counts).astype(int)]
    widest = int((far / near).argmax())
    part = ordered[int(0.9 * counts[widest]) - 1 : int(np.ceil(1.1 * counts[widest])) + 1]
    jump = int((part[1:] / part[:-1]).argmax())
    return float(far[widest] / near[widest]), float(np.sqrt(part[jump] * part[jump + 1]))


def majority(places: torch.Tensor) -> torch.Tensor:
    """The cells that at least half of the places over them hold: bool (N, PLACES^2) -> bool (N, GRID, GRID)."""
    over = torch.ones(1, 1, CELLS, CELLS)
    places = places.view(-1, 1, PLACES, PLACES).float()
    return (2 * F.conv_transpose2d(places, over) >= F.conv_transpose2d(torch.ones_like(places), over))[:, 0]


def boxes_of(cells: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Draw boxes (top, bottom, left, right) around the connected parts of cells (H, W); halve what is not `FULL`."""
    parts, _ = ndimage.label(cells)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        part, top, left = parts[rows, columns] == number, rows.start, columns.start
        if part.mean() >= FULL:
            found.append((top, rows.stop, left, columns.stop))
            continue
        wide = part.shape[1] > part.shape[0]
        middle = part.shape[int(wide)] // 2
        for start, half in zip((0, middle), np.split(part, [middle], axis=int(wide))):
            down, across = (top, left + start) if wide else (top + start, left)
            found += [(a + down, b + down, c + across, d + across) for a, b, c, d in boxes_of(half)]
    return found


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


def cells_at(place: int) -> tuple[int, int, int, int]:
    """The cells of a place: top, bottom, left, right."""
    row, column = divmod(place, PLACES)
    return row, row + CELLS, column, column + CELLS


@torch.no_grad()
def features_of_places(images: StoredImages | torch.Tensor, verbose: bool = True) -> Iterator[torch.Tensor]:
    """Describe the region at each place of uint8 images (N, 3, H, W), a batch at a time: (B, PLACES^2, C).

    They are features of a middle layer of a network that knows ImageNet, whatever the network that is explained;
    averaged over four rotations, so that all sides of a border look alike, and a ruler however it lies.
    """
    blocks = [block.eval() for block in backbone_blocks("EfficientNetLite0", pretrained=True)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    parts = images.split(BATCH_SIZE)
    for batch in tqdm(parts, desc="Looking", total=-(-len(images) // BATCH_SIZE), disable=not verbose):
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
