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
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_samples
from tqdm.auto import tqdm

from utils.explain.occlusion import GRID, region_effects
from utils.images.cache import StoredImages
from utils.images.places import BOX
from utils.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, make_backbone
from utils.Siamese import SiameseNetwork

CELLS = 6  # side of a region, in positions of a map: 0.19 of the image's side
PLACES = GRID - CELLS + 1  # of a region, along each side
STRONGEST = 8  # regions of an image, each of which may begin a group
LOOK_SIDE, LOOK_STRIDE = 256, 16  # pixels: height of the image that is looked at; of a position of its features
SHRINKAGE = 0.2  # of the features' correlations
FEWEST = 5  # images in which a group recurs
MOST = 0.8  # of all images may have a distinct look
ASIDE = 0.1  # of the images with a look, and as many of the others, are left out of its gap
ROUNDS = 3  # in which a look settles
GAP, GAP_OF_FEW = 0.15, 0.4  # of n images, a distinct look has a gap of GAP + GAP_OF_FEW / n
EXCLUSIVE = 0.85  # share of all images that have one of two looks alone, if one look is the lack of the other
SAME = 0.7  # share of images that two looks have in common if they are one thing, such as sides and corners of a border
COMMON = 6  # groups into which the rest is divided
HELD = 0.6  # share of the places over a cell that hold it, if it belongs to a group
FULL = 0.65  # share of a region's cells that belong to the group
BATCH_SIZE = 16


@dataclass(frozen=True)
class Groups:
    """G groups, each of one look or several: `mean` and `axes` as of `whitening_of`; of L looks, the `centres` (L, C),
    the least nearness to them of a place that shows the look, `edges` (L,), and of those around it, `floors` (L,), and
    groups, `owner` (L,); each group's `gap`, G numbers, 0 for groups that are not distinct; and `rest`, the share of
    the strong regions in no group."""

    mean: torch.Tensor
    axes: torch.Tensor
    centres: torch.Tensor
    edges: torch.Tensor
    floors: torch.Tensor
    owner: torch.Tensor
    gap: list[float]
    rest: float

    def find(self, features: Iterable[torch.Tensor], size: tuple[int, int]) -> pd.DataFrame:
        """Look for all groups in images of a size in pixels; `features` are of `features_of_places`.

        Returns:
            A row for each region: `image` and `group` (positions), `top`, `bottom`, `left`, `right` in pixels. They are
            the places nearest to the group; of a distinct one, the cells of which most places have its look.
        """
        rows, first = [], 0
        for part in features:
            nearness = looks_of(part, self.mean, self.axes) @ self.centres.T
            above = nearness - self.edges
            for k, gap in enumerate(self.gap):
                near = above[..., self.owner == k].amax(2)
                has = (near >= 0) & (bool(gap) | (near == above.amax(2)))
                chosen = disjoint(torch.where(has, near, -torch.inf))
                places = ((i, *divmod(int(chosen[i, j]), PLACES)) for i, j in (chosen >= 0).nonzero().tolist())
                found = [(i, (row, row + CELLS, column, column + CELLS)) for i, row, column in places]
                if gap:
                    around = held_cells((nearness >= self.floors)[..., self.owner == k].any(2)).numpy()
                    sure = np.zeros_like(around)
                    for i, (top, bottom, left, right) in found:
                        sure[i, top:bottom, left:right] = True
                        if around[i].sum() < CELLS**2:  # the look is that of a few places only
                            around[i, top:bottom, left:right] = True
                    shapes = map(ndimage.binary_propagation, sure & around, [None] * len(sure), around)
                    found = [(i, box) for i, shape in enumerate(shapes) for box in boxes_of(shape)]
                rows += [(first + i, k, *box) for i, box in found]
            first += len(part)
        found = pd.DataFrame(rows, columns=["image", "group", *BOX])
        sides = [size[0]] * 2 + [size[1]] * 2
        return found.assign(**{name: (found[name] * side / GRID).round().astype(int) for name, side in zip(BOX, sides)})


def whitening_of(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean (C,) and the axes (C, C) by which features (N, C) of places become looks, in which what most places
    differ in counts no more than what few have (Hariharan et al., Discriminative decorrelation for clustering and
    classification, 2012)."""
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    standard = (features - mean) / scale
    variance, axes = torch.linalg.eigh(standard.T @ standard / len(features))
    return mean, axes / scale[:, None] / (variance + SHRINKAGE).sqrt()


def looks_of(features: torch.Tensor, mean: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Turn features (..., C) into looks (..., C) of length 1, by what `whitening_of` found."""
    return F.normalize((features - mean) @ axes, dim=-1)


def find_groups(strong: torch.Tensor, features: torch.Tensor) -> Groups:
    """Group `strong_regions`, (R, C), by their look: distinct looks among all images' places, of `features`
    (N, PLACES^2, C), and what is left by k-means."""
    whitening = whitening_of(features.flatten(0, 1))
    looks = looks_of(strong, *whitening)
    found = distinct_looks(looks, looks_of(features, *whitening))
    owner: list[int] = []
    for k, look in enumerate(found):
        same = [owner[j] for j in range(k) if look.shared(found[j]) >= SAME]
        owner.append(same[0] if same else len(set(owner)))
    left = torch.ones(len(looks), dtype=torch.bool)
    for look in found:
        left &= looks @ look.centre < look.edge
    common, in_none = common_looks(looks[left])
    gap = [found[owner.index(k)].gap for k in sorted(set(owner))] + [0.0] * len(common)
    owner += range(len(set(owner)), len(gap))
    centres, edges, floors = (torch.from_numpy(np.array(x, np.float32)) for x in [*zip(*(found + common))][:3])
    return Groups(*whitening, centres, edges, floors, torch.tensor(owner), gap, in_none / len(looks))


def strong_regions(
    model: SiameseNetwork, images: StoredImages | torch.Tensor, features: torch.Tensor, verbose: bool
) -> torch.Tensor:
    """The features (R, C) of the strongest regions of each of uint8 images (N, 3, H, W), none of which overlap;
    `features` are those of the images' places, (N, PLACES^2, C)."""
    strong = []
    parts = tqdm(features.split(BATCH_SIZE), desc="Occluding regions", disable=not verbose)
    for part, batch in zip(parts, images.split(BATCH_SIZE)):  # in this order, the bar comes to its end
        density = region_effects(model, model.normalize(batch), verbose=False).density[..., :-1]
        sums = F.avg_pool2d(density.permute(0, 3, 1, 2).float().cpu(), CELLS, 1)
        places = disjoint(sums.norm(dim=1).flatten(1), STRONGEST)
        strong += [every[chosen[chosen >= 0]] for every, chosen in zip(part, places)]
    return torch.cat(strong)


class Look(NamedTuple):
    """A look (C,), how near to it an image that has it comes at least, how near the others come at most, the gap
    between both, and the nearest place of each image that has it."""

    centre: torch.Tensor
    edge: float
    floor: float
    gap: float
    places: dict[int, int]

    def shared(self, other: "Look") -> float:
        """The share of the images of both that have both."""
        return len(self.places.keys() & other.places.keys()) / len(self.places.keys() | other.places.keys())

    def is_part_of(self, other: "Look") -> bool:
        """Whether it is the same look, or that of fewer images at the same places."""
        if self.shared(other) >= SAME:
            return bool(self.centre @ other.centre >= other.edge)
        both = self.places.keys() & other.places.keys()
        apart = [np.subtract(divmod(self.places[i], PLACES), divmod(other.places[i], PLACES)) for i in both]
        return sum(np.abs(steps).max() < CELLS for steps in apart) >= len(self.places) / 2

    def is_lack_of(self, other: "Look", count: int) -> bool:
        """Whether it is the look of all of `count` images that the other has not, as plain sides beside frames."""
        return len(self.places.keys() ^ other.places.keys()) >= EXCLUSIVE * count


def distinct_looks(looks: torch.Tensor, places: torch.Tensor) -> list[Look]:
    """Find the looks that an image has or has not, the widest gap first.

    Each look of a strong region (R, C) begins one. All images are ordered by how near they come to it, by the
    looks of their `places`, (N, PLACES^2, C); and it moves to the mean of those before the widest gap.
    """
    for _ in range(ROUNDS):
        nearest = [(looks @ image.T).max(1) for image in places]
        near, at = torch.stack([x.values for x in nearest], 1), torch.stack([x.indices for x in nearest], 1)
        has, members = near >= widest_gap(near)[:, None], places[torch.arange(len(places)), at]  # (R, N), (R, N, C)
        total = (members * has[..., None]).sum(1)
        looks = F.normalize(total, dim=1)
    # How near each member is to the others: to a mean of few it is near anyway, as it is a part of it.
    own = (F.normalize(total[:, None] - members, dim=2) * members).sum(2)
    aside = (ASIDE * has.sum(1, keepdim=True)).ceil().long()
    last = own.masked_fill(~has, 1).sort(1).values.gather(1, aside - 1)
    others = near.masked_fill(has, -1).sort(1, descending=True).values.gather(1, aside - 1)
    gap, edge, found = (last - others)[:, 0], (last + others)[:, 0] / 2, []
    for k in gap.argsort(descending=True, stable=True).tolist():
        images = has[k].nonzero().flatten().tolist()
        if not FEWEST <= len(images) <= MOST * len(places) or gap[k] < GAP + GAP_OF_FEW / len(images):
            continue
        nearest = dict(zip(images, at[k, images].tolist()))
        look = Look(looks[k], float(edge[k]), float(others[k, 0]), float(gap[k]), nearest)
        if not any(look.is_part_of(other) or look.is_lack_of(other, len(places)) for other in found):
            found.append(look)
    return found


def widest_gap(near: torch.Tensor) -> torch.Tensor:
    """The middle of the widest gap, (R,), between images with a look and the others, of N >= 10, by `near`, (R, N)."""
    ordered = near.sort(1, descending=True).values
    count = torch.arange(FEWEST, int(MOST * near.shape[1]))
    last = ordered[:, ((1 - ASIDE) * count).floor().long() - 1]
    others = ordered[:, ((1 + ASIDE) * count).ceil().long()]
    widest = (last - others).argmax(1, keepdim=True)
    return (last.gather(1, widest) + others.gather(1, widest))[:, 0] / 2


def common_looks(looks: torch.Tensor) -> tuple[list[Look], int]:
    """Divide the looks of strong regions, (R, C), by k-means; those nearer to another group than to their own
    (a negative silhouette) are in none, and their number is returned as well."""
    if len(looks) <= COMMON:
        return [], len(looks)
    group = KMeans(COMMON, n_init=5, random_state=0).fit_predict(looks)
    group[silhouette_samples(looks, group) < 0] = -1
    found = []
    for members in (looks[group == k] for k in np.unique(group[group >= 0])):
        centre = F.normalize(members.mean(0), dim=0)
        edge = float(torch.quantile(members @ centre, 0.05))
        found.append(Look(centre, edge, edge, 0.0, {}))
    return found, int((group < 0).sum())


def held_cells(places: torch.Tensor) -> torch.Tensor:
    """The cells that most (`HELD`) of the places over them hold: bool (N, PLACES^2) -> bool (N, GRID, GRID)."""
    over = torch.ones(1, 1, CELLS, CELLS)
    places = places.view(-1, 1, PLACES, PLACES).float()
    return (F.conv_transpose2d(places, over) >= HELD * F.conv_transpose2d(torch.ones_like(places), over))[:, 0]


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


@torch.no_grad()
def features_of_places(images: StoredImages | torch.Tensor, verbose: bool = True) -> Iterator[torch.Tensor]:
    """Describe the region at each place of uint8 images (N, 3, H, W), a batch at a time: (B, PLACES^2, C).

    They are features of a middle layer of a network that knows ImageNet, whatever the network that is explained;
    averaged over four rotations, so that all sides of a border look alike, and a ruler however it lies.
    """
    fast = {"memory_format": torch.channels_last}  # nearly twice as fast on CPUs
    blocks = [block.eval().to(**fast) for block in make_backbone("EfficientNetLite0", pretrained=True)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for batch in tqdm(images.split(BATCH_SIZE), "Looking", -(-len(images) // BATCH_SIZE), disable=not verbose):
        x = (batch.float() / 255 - mean) / std
        x = F.interpolate(x, scale_factor=LOOK_SIDE / x.shape[2], mode="bilinear", antialias=True)
        total = 0
        for turn in range(4):
            features = after = torch.rot90(x, turn, (2, 3)).contiguous(**fast)
            height = after.shape[2]
            for block in blocks:
                after = block(after)
                if after.shape[2] * LOOK_STRIDE < height:
                    break
                features = after
            total = total + F.interpolate(torch.rot90(features, -turn, (2, 3)), (GRID, GRID), mode="bilinear")
        yield F.normalize(F.avg_pool2d(total, CELLS, 1), dim=1).flatten(2).transpose(1, 2)
