"""Interventions: remove a region of one image, by blurring or otherwise, and compare the pair again; "what if", which
puts a map to the test by its strongest region. The other image stays as it is: without the shared object, two similar
images would be alike again, and hide the effect.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from utils.images.frame import Box
from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode

BLUR_SIGMA = 1 / 8  # standard deviation of the blur that removes a region, as a share of the image's longer side
MAPS = ("factual", "counterfactual")
REGION_SHARE = 0.1  # of the image's area: what a check removes


class Interventions:
    """N pairs of preprocessed images, two batches (N, 3, H, W), compared before and after a change of one image.

    Results are margins of the decision, `margins_before` (N,) those of the untouched pairs: how far the raw distance
    lies on the decision's side of the threshold, in units of the contrastive margin; above 0 before the change.
    """

    def __init__(self, model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, batch_size: int = 64) -> None:
        self.model, self.batch_size = model, batch_size
        self.images = batch1.to(model.mean.device), batch2.to(model.mean.device)
        self.blurred = tuple(blur(batch) for batch in self.images)
        self.embeddings = tuple(embed_in_parts(model, batch, batch_size) for batch in self.images)
        distance = embedding_distance(*self.embeddings)
        self.sign = 1 - 2 * model.is_similar(distance).to(distance)
        self.margins_before = self._margins(*self.embeddings)

    def margins_after(
        self, regions: torch.Tensor, removal: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Margins (N, 2) after removing a region of image 1, and after removing one of image 2; `regions` are bool (N,
        2, H, W), `removal` makes of images (N, 3, H, W) what is shown inside: `None` blurs them."""
        margins = []
        for side, batch in enumerate(self.images):
            shown = self.blurred[side] if removal is None else removal(batch)
            changed = torch.where(regions[:, side, None], shown, batch)
            z = embed_in_parts(self.model, changed, self.batch_size)
            margins.append(self._margins(z, self.embeddings[1 - side]))
        return torch.stack(margins, dim=1)

    def _margins(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        return self.sign * (embedding_distance(z1, z2) / self.model.margin - self.model.threshold)


@torch.no_grad()
def embed_in_parts(model: SiameseNetwork, batch: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Embeddings (N, D) of preprocessed images (N, 3, H, W), computed `batch_size` at a time in eval mode."""
    with eval_mode(model):
        return torch.cat([model.embed(part) for part in batch.split(batch_size)])


def blur(batch: torch.Tensor) -> torch.Tensor:
    """Blur images (N, 3, H, W) so strongly that a shape a tenth of the image wide keeps an eighth of its contrast."""
    height, width = batch.shape[2:]
    sigma = BLUR_SIGMA * max(height, width)
    # Kernel sizes; the mirrored border must fit into the image.
    down, across = (2 * min(int(2 * sigma), side - 1) + 1 for side in (height, width))
    # Along one side after the other: 40 times faster.
    return gaussian_blur(gaussian_blur(batch, [across, 1], [sigma] * 2), [1, down], [sigma] * 2)


def filled(batch: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Fill regions, bool (N, 1, H, W), of images (N, 3, H, W) from their surroundings, at the finest scale that reaches
    (pull-push; Gortler et al., The lumigraph, 1996). Nothing of a region's colour stays, as it does after blurring."""
    if min(batch.shape[2:]) == 1 or not inside.any():
        return batch
    weight = F.avg_pool2d((~inside).float(), 2, ceil_mode=True)
    mean = F.avg_pool2d(batch * ~inside, 2, ceil_mode=True) / weight.clamp(min=1e-6)
    coarse = filled(mean, weight == 0)
    return torch.where(inside, F.interpolate(coarse, batch.shape[2:], mode="bilinear"), batch)


def equal_shares(labels: np.ndarray, marked: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose further images to fill at the places of `marked` ones, bool (N,), until in each class, labels (N,), as
    large a share is filled as in that with most marked images: or the fill would tell the class in place of what it
    hides.

    Returns:
        Positions of the further images, (M,), and of the marked ones whose places they get, (M,).
    """
    members, more = [labels == label for label in sorted(set(labels))], []
    share = marked[max(members, key=lambda own: (own & marked).sum())].mean()
    for own in members:
        missing = max(0, round(share * own.sum()) - (marked & own).sum())
        more.append(rng.choice(np.flatnonzero(own & ~marked), missing, replace=False))
    more = np.concatenate(more)
    return more, rng.choice(np.flatnonzero(marked), len(more))


# What is shown inside a removed region: nothing (twice), or something else.
REMOVALS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "blurred": blur,
    "filled with the mean colour": lambda batch: batch.mean((2, 3), keepdim=True).expand_as(batch),
    "covered by another part of the image": lambda batch: batch.roll([side // 2 for side in batch.shape[2:]], (2, 3)),
}


def strongest_region(maps: torch.Tensor) -> torch.Tensor:
    """The region of each map (..., H, W) that a check removes: the pixels with evidence among its strongest tenth."""
    return (pixel_ranks(maps) < round(REGION_SHARE * maps.shape[-2:].numel())) & (maps > 0)


def pixel_ranks(maps: torch.Tensor) -> torch.Tensor:
    """The rank of each pixel in its map (..., H, W), 0 for the strongest; among equals in reading order."""
    return maps.flatten(-2).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).view(maps.shape)


def randomly_moved(regions: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Move each region (N, 2, H, W) to a random place; what leaves at one border comes in at the opposite one."""
    height, width = regions.shape[2:]
    flat = regions.flatten(0, 1)
    shifts = zip(rng.integers(height, size=len(flat)).tolist(), rng.integers(width, size=len(flat)).tolist())
    return torch.stack([region.roll(shift, (0, 1)) for region, shift in zip(flat, shifts)]).view(regions.shape)


@dataclass(frozen=True)
class WhatIf:
    """A pair before and after one region of one image is removed; arrays have shape (2, 2): image; region of the
    factual, of the counterfactual map."""

    before: float  # similarity of the untouched images, not clipped: below 0 beyond the margin
    after: np.ndarray  # likewise, with the region of one image blurred and the other image untouched
    changes: dict[str, np.ndarray]  # of the decision's margin, by each of `REMOVALS`; below 0 if it got weaker
    regions: torch.Tensor  # the strongest tenth of each map, bool of shape (2, 2, H, W), at the network's image size
    empty: np.ndarray  # maps without evidence, for which there is nothing to remove
    flips: np.ndarray  # whether blurring turns the decision into the other one
    boxes: tuple[Box | None, Box | None]  # the part of the frame that each image fills; `None`: all

    def change_in_words(self, image: int, column: int) -> str:
        """The similarity before and after; where it is 0 both times, the distances, which still differ. It has two
        decimals, or as many, up to four, as show a difference."""
        words, values = "similarity", (self.before, float(self.after[image, column]))
        if max(values) <= 0:
            words, values = "distance / margin", tuple(1 - value for value in values)
        for digits in (2, 3, 4):
            before, after = (f"{max(value, 0):.{digits}f}" for value in values)
            if before != after:
                break
        return f"{words} {before} → {after}"

    def report(self, names: tuple[str, str]) -> str:
        """The result of each check, a line each: what the region's removal changes, and whether the map passes. With
        the factual region removed, the decision should get weaker; with the counterfactual one, stronger."""
        return "\n".join(self._line(name, image, column) for image, name in enumerate(names) for column in (0, 1))

    def _line(self, name: str, image: int, column: int) -> str:
        region, expected = f"{name}, {MAPS[column]} region", (-1, 1)[column]
        if self.empty[image, column]:
            return f"{region} has no evidence to blur"
        changes = {removal: change[image, column] for removal, change in self.changes.items()}
        effect = "gets stronger" if changes["blurred"] > 0 else "gets weaker"
        effect = "flips" if self.flips[image, column] else effect
        line = f"{region} blurred: {self.change_in_words(image, column)}, the decision {effect}, "
        failed = [removal for removal, change in changes.items() if expected * change <= 0]
        passed = [removal for removal in changes if removal not in failed and removal != "blurred"]
        if "blurred" in failed:
            return line + "so do not trust this map"
        line += "as it should" + (f", also if it is {' or '.join(passed)}" if passed else "")
        return line + (f"; but not if it is {' or '.join(failed)}" if failed else "")


def what_if(
    model: SiameseNetwork, images: torch.Tensor, maps: torch.Tensor, empty: torch.Tensor, boxes: tuple[Box, Box]
) -> WhatIf:
    """Remove the strongest tenth of each map of a pair, one at a time and in three ways, and compare the pair again.

    Args:
        images: the pair, preprocessed, shape (2, 3, H, W); `boxes` are the part of the frame that each fills.
        maps: factual and counterfactual, shape (2, 2, H, W): image; map. `empty`, (2, 2), tells which are.
    """
    regions = strongest_region(maps)
    interventions = Interventions(model, images[[0, 0]], images[[1, 1]])  # the pair once for each map
    changes = {
        name: (interventions.margins_after(regions.transpose(0, 1), removal) - interventions.margins_before[:, None]).T
        for name, removal in REMOVALS.items()
    }
    before = 1 - float(embedding_distance(*interventions.embeddings)[0]) / model.margin
    after = before - (interventions.sign * changes["blurred"]).cpu().numpy()
    flips = (interventions.margins_before[0] + changes["blurred"] < 0).cpu().numpy()
    changes = {name: change.cpu().numpy() for name, change in changes.items()}
    return WhatIf(before, after, changes, regions, empty.cpu().numpy(), flips, boxes)
