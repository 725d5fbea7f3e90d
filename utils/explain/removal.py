"""What happens without a region: images blurred, regions chosen, decisions taken again.

An intervention changes one image of a pair and leaves the other as it is: taking the shared object out of both images
of a similar pair leaves two images that are alike again, which would hide the effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from utils.Siamese import SiameseNetwork, embedding_distance, eval_mode

BLUR = 1 / 8  # standard deviation of the blur that takes a region's content away, as a share of the image's longer side
REGION = 0.1  # share of the image's area that is blurred in a check


@dataclass(frozen=True)
class Interventions:
    """N pairs, each with the margin of its decision, ready for changes to one image at a time.

    The *margin* is how far the raw distance lies on the decision's side of the threshold, in units of the contrastive
    margin: positive for the decision as made, larger when the decision gets stronger.
    """

    model: SiameseNetwork
    images: tuple[torch.Tensor, torch.Tensor]
    blurred: tuple[torch.Tensor, torch.Tensor]
    embeddings: tuple[torch.Tensor, torch.Tensor]
    sign: torch.Tensor
    batch_size: int = 64

    @classmethod
    def on(
        cls, model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor, batch_size: int = 64
    ) -> Interventions:
        """Prepare pairs of preprocessed images, two batches of shape (N, 3, H, W)."""
        images = batch1.to(model.mean.device), batch2.to(model.mean.device)
        embeddings = tuple(embed_in_parts(model, batch, batch_size) for batch in images)
        similar = model.is_similar(embedding_distance(*embeddings))
        return cls(
            model,
            images,
            tuple(blur(batch) for batch in images),
            embeddings,
            torch.where(similar, -1.0, 1.0),
            batch_size,
        )

    def margin(self, changed: torch.Tensor, side: int) -> torch.Tensor:
        """Margins (N,) with the images of one side (0 or 1) replaced by `changed`, (N, 3, H, W)."""
        return self._margin(embed_in_parts(self.model, changed, self.batch_size), self.embeddings[1 - side])

    @property
    def before(self) -> torch.Tensor:
        """Margins (N,) of the untouched pairs."""
        return self._margin(*self.embeddings)

    def _margin(self, z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        return self.sign * (embedding_distance(z1, z2) / self.model.margin - self.model.threshold)

    def without(
        self, regions: torch.Tensor, removal: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Margins (N, 2) after taking a region (N, 2, H, W) of each image away, the partner untouched: by blurring, or
        by what another removal makes of the images (N, 3, H, W)."""
        instead = self.blurred if removal is None else tuple(removal(batch) for batch in self.images)
        return torch.stack(
            [
                self.margin(torch.where(regions[:, side, None], instead[side], self.images[side]), side)
                for side in (0, 1)
            ],
            dim=1,
        )


@torch.no_grad()
def embed_in_parts(model: SiameseNetwork, batch: torch.Tensor, batch_size: int) -> torch.Tensor:
    with eval_mode(model):
        return torch.cat([model.embed(part) for part in batch.split(batch_size)])


def blur(batch: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) out of focus: of the contrast of a shape an eighth of the image wide, an eighth is left."""
    height, width = batch.shape[2:]
    sigma = BLUR * max(height, width)
    # The mirrored border must fit into the image.
    down, across = (2 * min(int(2 * sigma), side - 1) + 1 for side in (height, width))
    # One after the other: 40 times faster.
    return gaussian_blur(gaussian_blur(batch, [across, 1], [sigma] * 2), [1, down], [sigma] * 2)


def mean_colour(batch: torch.Tensor) -> torch.Tensor:
    """Each image (N, 3, H, W) all in its mean colour."""
    return batch.mean((2, 3), keepdim=True).expand_as(batch)


def elsewhere(batch: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) moved by half their sides, going on at the opposite border: another part of the image."""
    return batch.roll((batch.shape[2] // 2, batch.shape[3] // 2), (2, 3))


# Two other ways for a region to go than by blurring: the first asks again what its absence does, the second what
# something else in its place does.
OTHERS = {"filled with the mean colour": mean_colour, "covered by another part of the image": elsewhere}


def top_region(maps: torch.Tensor, share: float) -> torch.Tensor:
    """The strongest `share` of the pixels of each map (..., H, W), bool; among equals the first in reading order."""
    pixels = maps.flatten(-2)
    strongest = pixels.argsort(dim=-1, descending=True, stable=True)[..., : round(share * pixels.shape[-1])]
    return torch.zeros_like(pixels, dtype=torch.bool).scatter(-1, strongest, True).view(maps.shape)


def strongest_region(maps: torch.Tensor) -> torch.Tensor:
    """The region of each map (..., H, W) that a check blurs: its strongest tenth, and only pixels with evidence,
    bool."""
    return top_region(maps, REGION) & (maps > 0)


def pixel_ranks(maps: torch.Tensor) -> torch.Tensor:
    """Rank of each pixel in its map (..., H, W), 0 the strongest; among equals in reading order."""
    return maps.flatten(-2).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).view(maps.shape)


def moved(regions: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The same regions (N, 2, H, W) at random places, going on at the opposite border."""
    height, width = regions.shape[2:]
    flat = regions.flatten(0, 1)
    shifts = zip(rng.integers(height, size=len(flat)).tolist(), rng.integers(width, size=len(flat)).tolist())
    return torch.stack([region.roll(shift, (0, 1)) for region, shift in zip(flat, shifts)]).view(regions.shape)
