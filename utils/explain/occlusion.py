"""What happens to an embedding when a region of the image is occluded, measured once per image, for any partner; and
which regions of a pair match by that."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from utils.explain.incremental import BATCH_SIZE, IncrementalEmbedder, local_stages
from utils.explain.removal import blur
from utils.images.frame import Box
from utils.Siamese import SiameseNetwork, eval_mode
from utils.system.machine import keep_freed_memory


class Windows(NamedTuple):
    """Windows of one size, evenly spread over an image."""

    side: float  # of a window, as a share of the image's side
    per_side: int  # how many there are along each side of the image
    noise: float  # variance with which their effects fail to add up, as a share of their prior variance


# Chosen by measurement on photographs and scenes, see docs/trials.md.
WINDOWS = (Windows(side=0.35, per_side=6, noise=2.0), Windows(side=0.18, per_side=8, noise=0.7))
GRID = 32  # positions of a map along each side
KERNEL_LENGTH = 0.05  # standard deviation of the regression's Gaussian kernel, as a share of the image's sides
MATCH_DISTANCE = 0.2  # share of a map's longer side; positions nearer to a chosen match than this belong to it
WEAKEST_MATCH = 0.3  # share of the strongest match; weaker ones are not shown
ROUNDING_ERROR = 1e-5  # share of an embedding's length; a smaller effect counts as zero


@dataclass(frozen=True)
class RegionEffects:
    """The effects of R regions of each of N images: how the image's embedding changes when a region is occluded."""

    embeddings: torch.Tensor  # z(x), (N, D)
    regions: torch.Tensor  # top, bottom, left and right in pixels, bottom and right excluded, (N, R, 4)
    delta: torch.Tensor  # z(x) - z(x with R blurred), (N, R, D)
    # (N, GRID, GRID, D + 1): summed over a region, the first D channels are about its `delta`, the last its `|delta|^2`
    density: torch.Tensor

    def of(self, images: Sequence[int]) -> "RegionEffects":
        """Select images by their positions."""
        return RegionEffects(*(values[list(images)] for values in vars(self).values()))

    def on_pairs(self, first: Sequence[int], second: Sequence[int]) -> torch.Tensor:
        """The exact effect of every region on the squared distance of P pairs, (P, 2, R); above 0, for "similar"."""
        return torch.stack([effect_on_distance(self.delta[i], d) for i, d in self._sides(first, second)], dim=1)

    def maps(self, first: Sequence[int], second: Sequence[int]) -> torch.Tensor:
        """Maps of P pairs, shape (P, 2, GRID, GRID): summed over a region, about its effect on the squared distance."""
        sides = ((self.density[i], difference) for i, difference in self._sides(first, second))
        maps = [part[..., -1] - 2 * torch.einsum("phwd,pd->phw", part[..., :-1], other) for part, other in sides]
        return torch.stack(maps, dim=1)

    def of_masks(self, first: Sequence[int], second: Sequence[int], masks: torch.Tensor) -> torch.Tensor:
        """The effect on the squared distance of P pairs, shape (P, 2), of occluding masks, bool of shape (P, 2, GRID,
        GRID), as a whole: effects on the embedding are added up, and their sum counts squared, which is more than the
        sum of `maps`."""
        changes = []
        for side, (i, difference) in enumerate(self._sides(first, second)):
            delta = torch.einsum("phw,phwd->pd", masks[:, side].to(self.density), self.density[i, ..., :-1])
            changes.append(effect_on_distance(delta[:, None], difference)[:, 0])
        return torch.stack(changes, dim=1)

    def _sides(self, first: Sequence[int], second: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For image 1 and for image 2 of P pairs: its positions (P,), and its embedding less its partner's (P, D)."""
        i, j = (torch.as_tensor(side, device=self.delta.device) for side in (first, second))
        return [(a, self.embeddings[a] - self.embeddings[b]) for a, b in ((i, j), (j, i))]

    def interaction(self, first: int, second: int) -> torch.Tensor:
        """How well each position of one image matches each position of another, shape (h, w, h, w), h = w = GRID / 2:
        occluding R in image 1 and Q in image 2 changes the squared distance by both effects, less the interaction
        `2 <delta_R, delta_Q>`. It is above 0 where both move the embeddings in one direction."""
        one, two = (F.avg_pool2d(self.density[i, ..., :-1].permute(2, 0, 1), 2).flatten(1) for i in (first, second))
        half = (GRID // 2, GRID // 2)
        return (2 * one.T @ two).unflatten(0, half).unflatten(2, half)


def in_few_dimensions(effects: RegionEffects, most: int) -> RegionEffects:
    """Write embeddings and effects with `most` numbers, where there are more, for files; `density` is left empty.

    They are coordinates in the span of the embeddings and along the directions in which most effects lie, and the
    length of what is left of an effect: so effects of single regions stay what they were, up to as many images as
    there are dimensions; those of several regions at once become estimates.
    """
    z, delta = effects.embeddings.double(), effects.delta.double()
    if z.shape[1] <= most:
        return effects
    centred = z - z.mean(0)
    weight = 1e3 * delta.norm() / centred.norm().clamp(min=1e-12)  # of embeddings, before any effect
    rows = torch.cat([weight * centred, delta.flatten(0, 1)])
    basis = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, 1 - most :]
    inside = delta @ basis
    left = (delta.square().sum(-1) - inside.square().sum(-1)).clamp(min=0).sqrt()
    z = F.pad(centred @ basis, (0, 1))
    reduced = torch.cat([inside, left[..., None]], dim=-1)
    return RegionEffects(z.float(), effects.regions, reduced.float(), effects.density[..., :0])


def effect_on_distance(delta: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """The effect of regions on the squared distance of P pairs, (P, R), exact, from that on the embedding of one image,
    `delta` (P, R, D), and its `difference` to its partner's, (P, D):
    `||z1 - delta - z2||^2 - ||z1 - z2||^2 = |delta|^2 - 2 <delta, z1 - z2>`."""
    return delta.square().sum(2) - 2 * torch.einsum("prd,pd->pr", delta, difference)


def region_effects(model: SiameseNetwork, batch: torch.Tensor, verbose: bool = True) -> RegionEffects:
    """Measure the effect of each region: embed each of the preprocessed images (N, 3, H, W), on any device, with one
    region after the other blurred; this is occlusion (Zeiler & Fergus 2014; for similarity, Dong et al. 2019). Where
    that is faster, the network computes in bfloat16. `verbose` shows a progress bar after two seconds."""
    keep_freed_memory()
    batch = batch.to(model.mean.device)
    size = tuple(batch.shape[2:])
    embeddings, (delta,) = occlude(model, batch, [blur(batch)], all_windows(size), verbose)
    beyond = delta.norm(dim=2) > ROUNDING_ERROR * embeddings.norm(dim=1, keepdim=True)
    return effects_of_regions(embeddings, torch.where(beyond[..., None], delta, 0), size)


@torch.no_grad()
def occlude(
    model: SiameseNetwork, batch: torch.Tensor, fills: Sequence[torch.Tensor], regions: torch.Tensor, verbose: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Embed preprocessed images (N, 3, H, W) -> z(x), (N, D), and with one region (R, 4) after the other replaced by
    that of other images, each of `fills` (N, 3, H, W) -> the effects z(x) - z(x with R replaced), (N, R, D)."""
    same = tuple(batch.shape[2:]) == model.image_size  # stages are found for this size
    stages, deltas = local_stages(model) if same else [], [[] for _ in fills]
    total = len(batch) * len(fills) * len(regions)
    with eval_mode(model), tqdm(total=total, desc="Occluding regions", delay=2, disable=not verbose) as bar:
        for k, image in enumerate(batch):
            embedder = IncrementalEmbedder(model, image, stages)
            for found, fill in zip(deltas, fills):
                found.append(embedder.embedding - embedder.embeddings(fill[k], regions))
                bar.update(len(regions))
        embeddings = torch.cat([model.embed(part) for part in batch.split(BATCH_SIZE)])
    return embeddings, [torch.stack(found) for found in deltas]


def effects_of_regions(embeddings: torch.Tensor, delta: torch.Tensor, image_size: tuple[int, int]) -> RegionEffects:
    """Make `RegionEffects` from the embeddings (N, D) and effects (N, R, D) of images of a size in pixels."""
    both = torch.cat([delta, delta.square().sum(2, keepdim=True)], dim=2)
    density = (regression(image_size).to(both) @ both).unflatten(1, (GRID, GRID))
    regions = all_windows(image_size).to(delta.device).expand(len(delta), -1, -1)
    return RegionEffects(embeddings, regions, delta, density)


def all_windows(image_size: tuple[int, int]) -> torch.Tensor:
    """The regions that `region_effects` occludes in every image of a size in pixels, (R, 4)."""
    return torch.cat([windows(side, count, image_size) for side, count, _ in WINDOWS])


def windows(side: float, count: int, image_size: tuple[int, int]) -> torch.Tensor:
    """Windows of one size, evenly spread over the image, `count` along each side: (count^2, 4)."""
    extents = []
    for pixels in image_size:
        length = max(1, round(side * pixels))
        start = torch.linspace(0, pixels - length, count).round().long()
        extents.append(torch.stack([start, start + length], dim=1))
    rows, columns = extents
    return torch.cat([rows.repeat_interleave(count, 0), columns.repeat(count, 1)], dim=1)


def region_sums(maps: torch.Tensor, regions: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Sums of maps (N, h, w) over regions (N, R, 4) of images of a size in pixels, shape (N, R), on the CPU."""
    large = F.interpolate(maps[:, None].cpu().double(), image_size, mode="bilinear", align_corners=False)[:, 0]
    sums = F.pad(large.cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, bottom, left, right = regions.cpu().unbind(2)
    n = torch.arange(len(maps))[:, None]
    return sums[n, bottom, right] - sums[n, top, right] - sums[n, bottom, left] + sums[n, top, left]


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson correlation between the rows of two matrices (N, R), shape (N,); NaN where a row is constant."""
    a, b = (x.cpu().double() for x in (a, b))
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def regression(image_size: tuple[int, int]) -> torch.Tensor:
    """The matrix (GRID^2, R) that turns effects (R, K) of `all_windows` into a density (GRID^2, K), whose sum over each
    window is about the window's effect; float64, on the CPU.

    It is Gaussian-process regression (Rasmussen & Williams 2006, Eq. 2.25) on sums, `k C^T (C k C^T + noise)^-1`: k is
    the covariance of two positions, C the share of each that a window covers, both products of a factor along rows and
    one along columns; the noise is for effects that do not quite add up.
    """
    centres = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    kernel = torch.exp(-(centres[:, None] - centres).square() / (2 * KERNEL_LENGTH**2))
    regions = all_windows(image_size)
    rows, columns = _cover(regions[:, :2], image_size[0]), _cover(regions[:, 2:], image_size[1])
    smooth_rows, smooth_columns = rows @ kernel, columns @ kernel
    covariance = (smooth_rows @ rows.T) * (smooth_columns @ columns.T)
    noise = torch.cat([torch.full((count**2,), share, dtype=torch.float64) for _, count, share in WINDOWS])
    covariance.diagonal().mul_(1 + noise)
    smooth = torch.einsum("rh,rw->rhw", smooth_rows, smooth_columns).flatten(1)
    return torch.linalg.solve(covariance, smooth).T.contiguous()


def _cover(extents: torch.Tensor, pixels: int) -> torch.Tensor:
    """The share of each of GRID positions, along a side in pixels, that each extent covers: (R, 2) -> (R, GRID)."""
    edges = torch.linspace(0, pixels, GRID + 1, dtype=torch.float64)
    starts, ends = extents.double().T[..., None]
    overlap = torch.minimum(ends, edges[1:]) - torch.maximum(starts, edges[:-1])
    return overlap.clamp(min=0) * GRID / pixels


class Match(NamedTuple):
    """Two regions that match: their centres, (row, column) as shares of each image's sides, and their interaction."""

    first: tuple[float, float]
    second: tuple[float, float]
    strength: float


def matching_regions(
    effects: RegionEffects, first: int, second: int, boxes: tuple[Box, Box], image_size: tuple[int, int]
) -> list[Match]:
    """Find the strongest matches between two images, by their positions in `effects`; `boxes` are the part of the
    network's frame, of `image_size` in pixels, that each image fills."""
    interaction = effects.interaction(first, second).cpu()
    filled = torch.zeros(2, *image_size)
    for frame, box in zip(filled, boxes):
        frame[box.slices] = 1
    inside = F.adaptive_max_pool2d(filled, interaction.shape[:2]) > 0
    interaction *= inside[0][:, :, None, None] & inside[1]

    def in_image(centre: tuple[float, float], box: Box) -> tuple[float, float]:
        row, column = (share * side for share, side in zip(centre, image_size))
        return min(max((row - box.top) / box.height, 0.0), 1.0), min(max((column - box.left) / box.width, 0.0), 1.0)

    matches = strongest_matches(interaction)
    return [Match(in_image(one, boxes[0]), in_image(two, boxes[1]), v) for one, two, v in matches]


def strongest_matches(interaction: torch.Tensor, count: int = 4) -> list[Match]:
    """Find at most `count` pairs of positions with the largest interaction (h, w, h, w), above 0, the strongest first.
    Positions nearer than `MATCH_DISTANCE` to a match, in its image, belong to it and start no other."""
    shape, remaining, matches = interaction.shape[:2], interaction.clone(), []
    rows, columns = torch.arange(shape[0])[:, None], torch.arange(shape[1])
    least = WEAKEST_MATCH * interaction.max().clamp(min=0)
    while len(matches) < count and remaining.max() > least:
        at = torch.stack(torch.unravel_index(remaining.argmax(), remaining.shape)).view(2, 2)
        centres = [tuple((i + 0.5) / side for i, side in zip(position, shape)) for position in at.tolist()]
        matches.append(Match(*centres, strength=float(remaining.max())))
        one, two = ((rows - y) ** 2 + (columns - x) ** 2 < (MATCH_DISTANCE * max(shape)) ** 2 for y, x in at)
        remaining[one] = 0
        remaining[:, :, two] = 0
    return matches
