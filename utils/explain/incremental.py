"""Embeddings of an image with regions occluded: of a backbone's earlier blocks, only what changes is computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from utils.Siamese import SiameseNetwork, eval_mode
from utils.system.machine import bfloat16_pays

COARSEST = 8  # pixels from one position of a map to the next; behind coarser ones a region changes almost all of it
PROBE = 96  # side, in pixels, of the images that tell how far blocks carry a change


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks of a backbone. Position i of the map that they make depends on the positions from `stride * i
    - before` to `stride * i + after` of the one they are given, along either side."""

    blocks: nn.Sequential
    stride: int
    before: int
    after: int

    def changed(self, extents: torch.Tensor, side: int) -> torch.Tensor:
        """The positions that depend on anything of extents (R, 2) of a side of so many: start and end, (R, 2)."""
        first = (extents[:, 0] - self.after + self.stride - 1) // self.stride
        last = (extents[:, 1] - 1 + self.before) // self.stride
        return torch.stack([first.clamp(min=0), last.clamp(max=side // self.stride - 1) + 1], dim=1)

    def needed(self, positions: torch.Tensor, side: int) -> tuple[torch.Tensor, int]:
        """Parts of a side that hold what positions (R, 2) depend on: where each starts (R,), and their common length,
        multiples of the stride."""
        starts = (positions[:, 0] * self.stride - self.before).clamp(min=0) // self.stride
        ends = (((positions[:, 1] - 1) * self.stride + self.after) // self.stride + 1).clamp(max=side // self.stride)
        length = int((ends - starts).max())
        return starts.clamp(max=side // self.stride - length) * self.stride, length * self.stride


@torch.no_grad()
def local_stages(model: SiameseNetwork) -> list[Stage]:
    """The earlier blocks of a backbone, a stage for each resolution, as long as they carry a change of the image only
    so far: convolutions do, squeeze-and-excitation carries it everywhere. None on a GPU, to which many small copies
    cost more than they save."""
    if model.mean.device.type != "cpu":
        return []
    given, stages, start = [torch.zeros(1, 3, PROBE, PROBE)], [], 0
    with eval_mode(model):
        for block in model.backbone:
            if given[-1].shape[2] * COARSEST < PROBE:
                break
            given.append(block(given[-1]))
        for side, blocks in groupby(range(len(given) - 1), lambda k: given[k + 1].shape[2]):
            end = start + len(list(blocks))
            uneven = PROBE % side or any(pixels * side % PROBE for pixels in model.image_size)
            if uneven or side * COARSEST < PROBE:
                break
            stage = _stage(model.backbone[start:end], given[start], given[start].shape[2] // side)
            if stage is None:
                break
            stages.append(stage)
            start = end
    return stages


def _stage(blocks: nn.Sequential, given: torch.Tensor, stride: int) -> Stage | None:
    """What is to be known of blocks of a stride that are given maps like this (1, C, h, h); None if a change may go
    everywhere.

    Not-a-number in a position of the given map makes that of every position which depends on it, whatever the weights.
    """
    side = given.shape[2]
    places = torch.arange(stride) + side // 2 // stride * stride
    probes = given.repeat(stride, 1, 1, 1)
    probes[torch.arange(stride), :, places, places] = torch.nan
    reached = blocks(probes).isnan().any(1)  # (stride, h / stride, h / stride)
    reached = reached.any(1) | reached.any(2)
    if reached[:, 0].any() or reached[:, -1].any():
        return None
    probe, position = reached.nonzero().T
    distances = places[probe] - stride * position
    return Stage(blocks, stride, -int(distances.min()), int(distances.max()))


class IncrementalEmbedder:
    """Embeds one preprocessed image (3, H, W) with regions occluded, by a network in eval mode.

    Args:
        stages: the network's `local_stages`; with none, every pass is of the whole image.
        batch_size: images that pass through the network at once.

    Attributes:
        embedding: of the whole image, (D,).
    """

    def __init__(
        self, model: SiameseNetwork, image: torch.Tensor, stages: Sequence[Stage], batch_size: int = 32
    ) -> None:
        self.model, self.stages, self.batch_size = model, stages, batch_size
        self.rest = model.backbone[sum(len(stage.blocks) for stage in stages) :]
        self.whole = [image[None]]  # what each stage is given, and the rest
        for stage in stages:
            self.whole.append(self._run(stage.blocks, self.whole[-1]))
        self.embedding = self._embed(self.whole[-1])[0]

    def embeddings(self, instead: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """Embeddings (R, D) of the image that shows another one, such as itself blurred, in one of the regions (R, 4)
        at a time."""
        found = torch.empty(len(regions), len(self.embedding), device=self.embedding.device)
        sizes = regions[:, 1::2] - regions[:, ::2]
        for size in sizes.unique(dim=0):  # what goes through a stage at once is of one size
            for chosen in (sizes == size).all(1).nonzero()[:, 0].split(self.batch_size):
                found[chosen.to(found.device)] = self._occluded(instead, regions[chosen])
        return found

    def _occluded(self, instead: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        parts = [instead[:, top:bottom, left:right] for top, bottom, left, right in regions.tolist()]
        for stage, whole in zip(self.stages, self.whole):  # parts of the stage's map, and where they lie
            height, width = whole.shape[2:]
            rows, columns = stage.changed(regions[:, :2], height), stage.changed(regions[:, 2:], width)
            tops, down = stage.needed(rows, height)
            lefts, across = stage.needed(columns, width)
            corners = torch.stack([tops, tops, lefts, lefts], dim=1)
            crops = [whole[0, :, y : y + down, x : x + across] for y, _, x, _ in corners.tolist()]
            crops = _pasted(torch.stack(crops), parts, regions - corners)
            regions = torch.cat([rows, columns], dim=1)
            inside = (regions - corners // stage.stride).tolist()
            parts = [part[:, y0:y1, x0:x1] for part, (y0, y1, x0, x1) in zip(self._run(stage.blocks, crops), inside)]
        return self._embed(_pasted(self.whole[-1].expand(len(regions), -1, -1, -1), parts, regions))

    def _embed(self, maps: torch.Tensor) -> torch.Tensor:
        return self.model.embed_features(self._run(self.rest, maps).float())

    @staticmethod
    def _run(blocks: nn.Sequential, maps: torch.Tensor) -> torch.Tensor:
        device = maps.device
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device)):
            return blocks(maps)


def _pasted(maps: torch.Tensor, parts: Sequence[torch.Tensor], regions: torch.Tensor) -> torch.Tensor:
    """A copy of maps (R, C, h, w) that show one of the parts in one of the regions (R, 4) each."""
    copies = maps.clone(memory_format=torch.channels_last)
    for copy, part, (top, bottom, left, right) in zip(copies, parts, regions.tolist()):
        copy[:, top:bottom, left:right] = part
    return copies
