"""What happens to an embedding when the network does not see a region: measured once per image, for any partner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from utils.explain.evidence import gradient_details
from utils.explain.removal import blur
from utils.explain.without import Without, local_stages
from utils.machine import keep_freed_memory
from utils.Siamese import SiameseNetwork, eval_mode

# Chosen by measurement on photographs and scenes, see docs/trials.md.
# Windows: their side as a share of the image's; how many fit along each side; and the variance with which their effects
# fail to add up, as a share of their own: with less for the largest, more of what only a large part does is found, but
# small objects are smeared.
WINDOWS = ((0.55, 3, 4.0), (0.35, 6, 0.5), (0.21, 9, 1.0))
CLOSER = (0.125, 15, 1.0)  # the same for a closer look,
LOOKS = 40  # of which so many are taken, where the windows before found most
GRID = 32  # positions of a map along each side
REACH = 0.05  # over which effects are taken to be alike, as a share of the sides
# What a gradient sees beside: in how many directions of an embedding, at how many positions along each side, and how
# much of the variance of effects it is expected to explain, as a share of that of smooth ones.
DIRECTIONS, DETAIL, FROM_DETAILS = 4, 16, 0.1
ROUNDING = 1e-5  # of an embedding's length


@dataclass(frozen=True)
class RegionEffects:
    """What R regions of each of N images do to their embeddings.

    Attributes:
        embeddings: z(x), shape (N, D).
        regions: top, bottom, left and right in pixels, the second and fourth excluded, shape (N, R, 4).
        delta: `z(x) - z(x without R)`, shape (N, R, D).
        details: where a gradient expects them, shape (N, DIRECTIONS, DETAIL, DETAIL); see `spread`.
        density: delta, and behind it `|delta|^2`, spread over the image: shape (N, GRID, GRID, D + 1), so that its sum
            over a region is about what the region does.
    """

    embeddings: torch.Tensor
    regions: torch.Tensor
    delta: torch.Tensor
    details: torch.Tensor
    density: torch.Tensor

    def of(self, images: Sequence[int]) -> RegionEffects:
        """Those of some of the images, by position."""
        chosen = list(images)
        return RegionEffects(**{field.name: getattr(self, field.name)[chosen] for field in fields(RegionEffects)})

    @property
    def closer(self) -> torch.Tensor:
        """The regions that differ from image to image, shape (N, LOOKS, 4)."""
        return self.regions[:, -LOOKS:]

    def on_pairs(self, first: Sequence[int], second: Sequence[int]) -> torch.Tensor:
        """What every region does to the squared distance of P pairs if it goes, shape (P, 2, R), exactly:
        `E_R = ||z1 - delta_R - z2||^2 - ||z1 - z2||^2 = |delta_R|^2 - 2 <delta_R, z1 - z2>`. Above 0, the region speaks
        for "similar"."""
        ends = self._ends(first, second)
        return torch.stack([effect_on_distance(self.delta[i], away) for i, away in ends], dim=1)

    def maps(self, first: Sequence[int], second: Sequence[int]) -> torch.Tensor:
        """The same, spread over the images: shape (P, 2, GRID, GRID)."""
        parts = [(self.density[i], away) for i, away in self._ends(first, second)]
        return torch.stack([d[..., -1] - 2 * torch.einsum("phwd,pd->phw", d[..., :-1], v) for d, v in parts], dim=1)

    def if_gone(self, first: Sequence[int], second: Sequence[int], regions: torch.Tensor) -> torch.Tensor:
        """What taking positions (P, 2, GRID, GRID), bool, of each image away all at once does to the squared distance
        of P pairs, (P, 2), if only effects on embeddings add up: `|sum delta|^2`, which grows with the square of a
        region, is more than the sum over `maps` holds."""
        changes = []
        for side, (i, away) in enumerate(self._ends(first, second)):
            gone = regions[:, side].to(self.density)
            delta = torch.einsum("phw,phwd->pd", gone, self.density[i, ..., :-1])
            changes.append(effect_on_distance(delta[:, None], away)[:, 0])
        return torch.stack(changes, dim=1)

    def _ends(self, first: Sequence[int], second: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For image 1 and image 2 of P pairs: its positions (P,), and its embedding less its partner's (P, D)."""
        i, j = (torch.as_tensor(side, device=self.delta.device) for side in (first, second))
        return [(a, self.embeddings[a] - self.embeddings[b]) for a, b in ((i, j), (j, i))]

    def interaction(self, first: int, second: int) -> torch.Tensor:
        """What two positions of a pair have in common, shape (h, w, h, w), half of GRID.

        Removing R from image 1 and Q from image 2 changes the squared distance by both effects, less `2 <delta_R,
        delta_Q>`: above 0 where the two take the embeddings in one direction, that is, match.
        """
        one, two = (F.avg_pool2d(self.density[i, ..., :-1].permute(2, 0, 1), 2).flatten(1) for i in (first, second))
        return (2 * one.T @ two).unflatten(0, (GRID // 2, GRID // 2)).unflatten(2, (GRID // 2, GRID // 2))


def joined(parts: Sequence[RegionEffects]) -> RegionEffects:
    """The effects of several images as those of one sequence."""
    return RegionEffects(
        **{field.name: torch.cat([getattr(one, field.name) for one in parts]) for field in fields(RegionEffects)}
    )


def effect_on_distance(delta: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """What effects on embeddings (P, R, D) do to the squared distance of pairs whose embeddings are `away` (P, D) from
    each other: `|delta|^2 - 2 <delta, away>`, (P, R)."""
    return delta.square().sum(2) - 2 * torch.einsum("prd,pd->pr", delta, away)


@torch.no_grad()
def region_effects(
    model: SiameseNetwork, batch: torch.Tensor, batch_size: int = 32, verbose: bool = True
) -> RegionEffects:
    """Look at each image without one region after the other (occlusion, Zeiler & Fergus 2014; for similarity, Dong et
    al. 2019). A region is taken away by blurring it.

    First come windows all over the image, then smaller ones where these did most. On a CPU that gains from it, the
    network computes in bfloat16.

    Args:
        batch: preprocessed images (N, 3, H, W), on any device.
        batch_size: images that pass through the network at once.
        verbose: show a progress bar, if it takes longer than two seconds.
    """
    keep_freed_memory()
    batch = batch.to(model.mean.device)
    size = tuple(batch.shape[2:])
    coarse, fine, scatter = _coarse(size), windows(*CLOSER[:2], size), scatters()
    total = len(batch) * (1 + len(coarse) + LOOKS)
    found, stages = [], local_stages(model)
    with eval_mode(model), tqdm(total=total, desc="Looking without regions", delay=2, disable=not verbose) as bar:
        for image, blurred in zip(batch, blur(batch)):
            look = Without(model, image, stages, batch_size)
            whole = look.embedding
            delta = _beyond_rounding(whole - look.embeddings(blurred, coarse), whole)
            bar.update(1 + len(coarse))
            chosen = fine[_most_effect(fine, spread(coarse, delta, size, scatter[: len(coarse)]), size)]
            closer = whole - look.embeddings(blurred, chosen)
            delta = torch.cat([delta, _beyond_rounding(closer, whole)])
            bar.update(LOOKS)
            found.append((chosen, delta, _details(model, image, delta)))
        embeddings = torch.cat([model.embed(part) for part in batch.split(batch_size)])
    closer, delta, details = (torch.stack(parts) for parts in zip(*found))
    return effects_of_regions(embeddings, closer, delta, details, size)


def effects_of_regions(
    embeddings: torch.Tensor,
    closer: torch.Tensor,
    delta: torch.Tensor,
    details: torch.Tensor,
    image_size: tuple[int, int],
) -> RegionEffects:
    """`RegionEffects` from what has to be known of them: of N images the embeddings (N, D), the regions of their closer
    looks (N, LOOKS, 4), the effects of all regions (N, R, D) and the details (N, DIRECTIONS, DETAIL, DETAIL); the
    others follow from the size in pixels."""
    coarse, scatter = _coarse(image_size), scatters()
    regions = torch.cat([coarse.expand(len(closer), -1, -1), closer.cpu()], dim=1)
    both = torch.cat([delta, delta.square().sum(2, keepdim=True)], dim=2)
    density = [spread(*image, image_size, scatter, seen) for *image, seen in zip(regions, both, details)]
    return RegionEffects(embeddings, regions.to(delta.device), delta, details, torch.stack(density))


def _details(model: SiameseNetwork, image: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Where a gradient sees what moves an image's embedding in the directions in which its regions' effects (R, D) move
    it most: (DIRECTIONS, DETAIL, DETAIL), their mean square 1; 0 where there are no effects, or fewer directions."""
    directions = torch.linalg.svd(delta.cpu().double(), full_matrices=False).Vh[:DIRECTIONS].to(delta)
    maps = gradient_details(model, image, directions)
    maps = F.interpolate(maps[None], (DETAIL, DETAIL), mode="bilinear", antialias=True, align_corners=False)[0]
    maps = F.pad(maps, (0, 0, 0, 0, 0, DIRECTIONS - len(maps)))
    return maps / maps.square().sum(0).mean().sqrt().clamp(min=1e-12) if delta.any() else torch.zeros_like(maps)


def _coarse(image_size: tuple[int, int]) -> torch.Tensor:
    """The regions with which every image of a size begins."""
    return torch.cat([windows(side, count, image_size) for side, count, _ in WINDOWS])


def scatters() -> torch.Tensor:
    """The `scatter` of each of the R regions that `region_effects` takes away, in their order: shape (R,)."""
    coarse = [torch.full((count**2,), share) for _, count, share in WINDOWS]
    return torch.cat([*coarse, torch.full((LOOKS,), CLOSER[2])])


def windows(side: float, count: int, image_size: tuple[int, int]) -> torch.Tensor:
    """Windows evenly spread over the image, `count` along each side: (count^2, 4), as `RegionEffects.regions`."""
    extents = []
    for pixels in image_size:
        length = max(1, round(side * pixels))
        start = torch.linspace(0, pixels - length, count).round().long()
        extents.append(torch.stack([start, start + length], dim=1))
    rows, columns = extents
    return torch.cat([rows.repeat_interleave(count, 0), columns.repeat(count, 1)], dim=1)


def region_sums(maps: torch.Tensor, regions: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """What maps (N, h, w) hold in regions (N, R, 4) of images of a size in pixels, shape (N, R), on the CPU."""
    large = F.interpolate(maps[:, None].cpu().double(), image_size, mode="bilinear", align_corners=False)[:, 0]
    sums = F.pad(large.cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, bottom, left, right = regions.cpu().unbind(2)
    n = torch.arange(len(maps))[:, None]
    return sums[n, bottom, right] - sums[n, top, right] - sums[n, bottom, left] + sums[n, top, left]


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's, of each row of two matrices (N, R), shape (N,); NaN for a row without variation."""
    a, b = (x.cpu().double() for x in (a, b))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def _beyond_rounding(delta: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Effects (R, D) without those that are no more than the rounding of an embedding (D,)."""
    return torch.where(delta.norm(dim=1, keepdim=True) > ROUNDING * whole.norm(), delta, 0)


def spread(
    regions: torch.Tensor,
    effects: torch.Tensor,
    image_size: tuple[int, int],
    scatter: torch.Tensor,
    details: torch.Tensor | None = None,
) -> torch.Tensor:
    """The most likely density (GRID, GRID, K) of which the effects (R, K) of regions (R, 4) are sums, but for a
    `scatter` (R,).

    Gaussian-process regression (Rasmussen & Williams 2006, Eq. 2.25) on sums: with C the share of each position that a
    region covers, and k the covariance of two positions, `density = k C^T (C k C^T + scatter)^-1 effects`. Effects
    of regions do not quite add up; that is the scatter, in proportion to a region's own prior variance. A density is
    expected to be smooth, by a Gaussian kernel of length `REACH`, and in part to be a sum of some `details` F
    (DIRECTIONS, DETAIL, DETAIL) with unknown weights (ibid., section 2.7): `k = gaussian + FROM_DETAILS F^T F`. So what
    was measured says how much, and details say where, within what no region resolves. The Gaussian kernel and the cover
    are products of those along rows and columns.
    """
    # On the CPU, whatever the device: it takes double precision, which Apple's GPUs lack, and next to no time.
    kernel = _kernel()
    rows, columns = _covers(regions, image_size)
    smooth_rows, smooth_columns = rows @ kernel, columns @ kernel
    covariance = (smooth_rows @ rows.T) * (smooth_columns @ columns.T)
    if details is not None:
        seen = FROM_DETAILS**0.5 * _enlarged(details)
        seen_in_regions = torch.einsum("rh,rw,dhw->rd", rows, columns, seen)
        covariance += seen_in_regions @ seen_in_regions.T
    covariance.diagonal().mul_(1 + scatter.double())
    weights = torch.linalg.solve(covariance, effects.cpu().double())
    density = torch.einsum("rh,rw,rk->hwk", smooth_rows, smooth_columns, weights)
    if details is not None:
        density += torch.einsum("dhw,dk->hwk", seen, seen_in_regions.T @ weights)
    return density.to(effects)


def _enlarged(details: torch.Tensor) -> torch.Tensor:
    """Maps (DIRECTIONS, DETAIL, DETAIL) at the resolution of a density."""
    return F.interpolate(details[None].cpu().double(), (GRID, GRID), mode="bilinear", align_corners=False)[0]


def _kernel() -> torch.Tensor:
    centres = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    return torch.exp(-(centres[:, None] - centres).square() / (2 * REACH**2))


def _covers(regions: torch.Tensor, image_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """`_cover` of regions (R, 4) along rows and along columns."""
    return _cover(regions[:, :2], image_size[0]), _cover(regions[:, 2:], image_size[1])


def _cover(extents: torch.Tensor, pixels: int) -> torch.Tensor:
    """Share of each of GRID positions along a side of so many pixels that extents (R, 2) cover, (R, GRID)."""
    edges = torch.linspace(0, pixels, GRID + 1, dtype=torch.float64)
    starts, ends = extents.cpu().double().T[..., None]
    overlap = torch.minimum(ends, edges[1:]) - torch.maximum(starts, edges[:-1])
    return overlap.clamp(min=0) * GRID / pixels


def _most_effect(regions: torch.Tensor, density: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """The `LOOKS` regions (R, 4) over which a density (GRID, GRID, D) sums to most, positions in reading order."""
    rows, columns = (cover.to(density) for cover in _covers(regions, image_size))
    size = torch.einsum("rh,rw,hwk->rk", rows, columns, density).norm(dim=1)
    return size.topk(LOOKS).indices.sort().values.cpu()
