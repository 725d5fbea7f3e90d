"""Recurring evidence: groups of strong regions that look alike, and where else in all images that look occurs.

CRAFT (Fel et al., 2023) groups crops by a classifier's activations, SpRAy (Lapuschkin et al., 2019) whole heat maps.
Here regions of large measured effect are grouped. What a group does is measured by `utils.evaluate.reliance`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

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
from utils.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, make_backbone
from utils.Siamese import SiameseNetwork

CELLS = 6  # side of a region, in positions of a map: 0.19 of the image's side
PLACES = GRID - CELLS + 1  # of a region, along each side
STRONGEST = 8  # regions of an image of which groups are made
LOOK_SIDE, LOOK_STRIDE = 256, 16  # pixels: height of the image that is looked at; of a position of its features
DIMENSIONS = 48  # of a look
SMALLEST = 6  # regions of a dense group
LEAST_RADIUS = 0.2  # of a group of equal looks, as a share of the spread of all looks
COMMON = 6  # groups into which the rest is divided
FEWEST = 5  # images in which a group recurs
MOST = 0.8  # of all images may have a distinct look
ROUNDS = 5  # in which a look settles
GAP, GAP_OF_FEW = 1.4, 3.0  # of n images, a distinct look has a gap of GAP + GAP_OF_FEW / n
SAME = 0.7  # share of images that two looks have in common if they are one thing, such as sides and corners of a border
FULL = 0.65  # share of a region's cells that belong to the group
BATCH_SIZE = 16


@dataclass(frozen=True)
class Groups:
    """G groups, each of one look or several: the `projection` from features to looks; of C looks, the `centres`
    (C, DIMENSIONS), `radii` (C,) and groups, `owner` (C,); how many times as far the other images are from a distinct
    group's look, `gap` (G,), 1 for groups that are not distinct; and `rest`, the share of the strong regions in no
    group."""

    projection: PCA
    centres: torch.Tensor
    radii: torch.Tensor
    owner: np.ndarray
    gap: np.ndarray
    rest: float

    def find(self, features: Iterable[torch.Tensor], size: tuple[int, int]) -> pd.DataFrame:
        """Look for all groups in images of a size in pixels; `features` are of `features_of_places`.

        Returns:
            A row for each region: `image` and `group` (positions), `top`, `bottom`, `left`, `right` in pixels. They are
            the places nearest to the group; of a distinct one, the cells of which most places have its look.
        """
        rows, first, owner = [], 0, torch.from_numpy(self.owner)
        for part in features:
            distances = torch.cdist(_looks(self.projection, part), self.centres) / self.radii
            for k, gap in enumerate(self.gap):
                distance = distances[..., owner == k].amin(2)
                has = (distance <= 1) & (bool(gap > 1) | (distance == distances.amin(2)))
                chosen = disjoint(torch.where(has, -distance, -torch.inf))
                found = [(int(i), cells_at(int(chosen[i, j]))) for i, j in (chosen >= 0).nonzero()]
                if gap > 1:
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


def _looks(projection: PCA, features: torch.Tensor) -> torch.Tensor:
    """(B, PLACES^2, C) -> (B, PLACES^2, DIMENSIONS)."""
    looks = projection.transform(features.flatten(0, 1).numpy())
    return torch.from_numpy(looks).float().unflatten(0, features.shape[:2])


def find_groups(
    model: SiameseNetwork, images: StoredImages | torch.Tensor, features: torch.Tensor, verbose: bool = True
) -> Groups:
    """Measure the regions of uint8 images (N, 3, H, W), and group the strongest by their look: distinct looks, and what
    is left by k-means. `features` are those of the images' places, (N, PLACES^2, C)."""
    strong = strong_regions(model, images, features, verbose).numpy()
    projection = PCA(min(DIMENSIONS, *strong.shape), random_state=0).fit(strong)
    looks = torch.from_numpy(projection.transform(strong)).float()
    least = LEAST_RADIUS * float(looks.std(0).norm())
    found = distinct_looks(looks, _looks(projection, features), least)
    owner: list[int] = []
    for k, look in enumerate(found):
        same = [owner[j] for j in range(k) if look.shared(found[j]) >= SAME]
        owner.append(same[0] if same else len(set(owner)))
    left = torch.ones(len(looks), dtype=torch.bool)
    for look in found:
        left &= (looks - look.centre).norm(dim=1) > look.radius
    common, in_none = common_looks(looks[left], least)
    gap = [found[owner.index(k)].gap for k in sorted(set(owner))] + [1.0] * len(common)
    owner += range(len(set(owner)), len(gap))
    centres, radii = torch.stack([x.centre for x in found + common]), torch.tensor([x.radius for x in found + common])
    return Groups(projection, centres, radii, np.array(owner), np.array(gap), in_none / len(looks))


def strong_regions(
    model: SiameseNetwork, images: StoredImages | torch.Tensor, features: torch.Tensor, verbose: bool
) -> torch.Tensor:
    """The features (R, C) of the strongest regions of each image, none of which overlap."""
    strong = []
    parts = zip(images.split(BATCH_SIZE), features.split(BATCH_SIZE))
    total = -(-len(images) // BATCH_SIZE)
    for batch, part in tqdm(parts, desc="Occluding regions", total=total, disable=not verbose):
        density = region_effects(model, model.normalize(batch), verbose=False).density[..., :-1]
        sums = F.avg_pool2d(density.permute(0, 3, 1, 2).float().cpu(), CELLS, 1)
        places = disjoint(sums.norm(dim=1).flatten(1), STRONGEST)
        strong += [every[chosen[chosen >= 0]] for every, chosen in zip(part, places)]
    return torch.cat(strong)


class Look(NamedTuple):
    """A look, how far from it its places may lie, its gap (`widest_gap`), and the images that have it."""

    centre: torch.Tensor
    radius: float
    gap: float
    images: set[int]

    def shared(self, other: "Look") -> float:
        """The share of the images of both that have both."""
        return len(self.images & other.images) / len(self.images | other.images)


def distinct_looks(looks: torch.Tensor, places: torch.Tensor, least: float) -> list[Look]:
    """Find the looks that an image has or has not, the widest gap first, by dense groups (HDBSCAN, Campello et al.,
    2013) of strong regions' `looks`, (R, DIMENSIONS); `places` and `least` as in `settled`."""
    dense = HDBSCAN(SMALLEST, min_samples=SMALLEST // 2, cluster_selection_method="leaf", copy=True).fit_predict(looks)
    found = [settled(looks[dense == k].mean(0), places, least) for k in range(dense.max() + 1)]
    most = MOST * len(places)
    found = [x for x in found if x.gap >= GAP + GAP_OF_FEW / len(x.images) and len(x.images) <= most]
    return sorted(found, key=lambda look: -look.gap)


def settled(centre: torch.Tensor, places: torch.Tensor, least: float) -> Look:
    """Move a look (DIMENSIONS,) to the mean of the nearest place of each image that has it, a few times. `places` are
    the looks of all images' places, (N, PLACES^2, DIMENSIONS); distances below `least` are taken for equal."""
    for _ in range(ROUNDS):
        near, at = (places - centre).norm(dim=2).min(1)
        gap, radius = widest_gap(near.clamp(min=least).numpy())
        has = near <= radius
        look = Look(centre, radius, gap, set(has.nonzero().flatten().tolist()))
        centre = places[has, at[has]].mean(0)
    return look


def common_looks(looks: torch.Tensor, least: float) -> tuple[list[Look], int]:
    """Divide the looks of strong regions, (R, DIMENSIONS), by k-means; those nearer to another group than to their own
    (a negative silhouette) are in none, and their number is returned as well."""
    if len(looks) <= COMMON:
        return [], len(looks)
    group = KMeans(COMMON, n_init=5, random_state=0).fit_predict(looks)
    group[silhouette_samples(looks, group) < 0] = -1
    found = []
    for members in (looks[group == k] for k in np.unique(group[group >= 0])):
        centre = members.mean(0)
        radius = float(torch.quantile((members - centre).norm(dim=1), 0.95).clamp(min=least))
        found.append(Look(centre, radius, 1.0, set()))
    return found, int((group < 0).sum())


def widest_gap(distances: np.ndarray) -> tuple[float, float]:
    """Where distances (N,) fall into near and far ones, a tenth of the near ones aside: how many times as far the far
    ones are, 1 if there are too few; and where the gap is, two thirds of the way, on a logarithmic scale."""
    ordered, counts = np.sort(distances), np.arange(FEWEST, int(0.9 * len(distances)))
    if not len(counts):
        return 1.0, float(ordered[-1])
    near, far = ordered[np.floor(0.9 * counts).astype(int) - 1], ordered[np.ceil(1.1 * counts).astype(int)]
    widest = int((far / near).argmax())
    part = ordered[int(0.9 * counts[widest]) - 1 : int(np.ceil(1.1 * counts[widest])) + 1]
    jump = int((part[1:] / part[:-1]).argmax())
    return float(far[widest] / near[widest]), float(part[jump] ** (1 / 3) * part[jump + 1] ** (2 / 3))


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
    blocks = [block.eval() for block in make_backbone("EfficientNetLite0", pretrained=True)]
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
