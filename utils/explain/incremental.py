"""Embeddings of an image with regions occluded. In a backbone's earlier blocks only what changes is computed again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from utils.Siamese import SiameseNetwork, eval_mode
from utils.system.machine import bfloat16_pays

MAX_STRIDE = 8  # image pixels between two positions of a map; of coarser maps a region changes almost everything
BATCH_SIZE = 32  # images that pass through the network at once
PROBE_SIDE = 96  # pixels; side of the images that show how far blocks carry a change


@dataclass(frozen=True)
class Stage:
    """A block of a backbone, and how far it carries a change: along either side, position i of the output map depends
    on positions `stride * i - before` to `stride * i + after` of the input map."""

    block: nn.Module
    stride: int
    before: int
    after: int

    def changed(self, extents: torch.Tensor, side: int) -> torch.Tensor:
        """Output positions (start, end), shape (R, 2), that depend on input extents (start, end), shape (R, 2), of an
        input map with `side` positions."""
        first = (extents[:, 0] - self.after + self.stride - 1) // self.stride
        last = (extents[:, 1] - 1 + self.before) // self.stride
        return torch.stack([first.clamp(min=0), last.clamp(max=side // self.stride - 1) + 1], dim=1)

    def needed(self, positions: torch.Tensor, side: int) -> tuple[torch.Tensor, int]:
        """The parts of an input map with `side` positions on which output positions (start, end), shape (R, 2), depend:
        where each starts, shape (R,), and the length of them all; both are multiples of the stride."""
        starts = (positions[:, 0] * self.stride - self.before).clamp(min=0) // self.stride
        ends = (((positions[:, 1] - 1) * self.stride + self.after) // self.stride + 1).clamp(max=side // self.stride)
        length = int((ends - starts).max())
        return starts.clamp(max=side // self.stride - length) * self.stride, length * self.stride


@torch.no_grad()
def local_stages(model: SiameseNetwork) -> list[Stage]:
    """Find the earlier blocks of a backbone that carry a change of a pixel only so far. Convolutions do;
    squeeze-and-excitation, with which the list ends, carries it everywhere. On a GPU there are none, as many small
    copies cost more there than they save."""
    given, stages = model.mean.new_zeros(1, 3, PROBE_SIDE, PROBE_SIDE), []
    with eval_mode(model):
        for block in model.backbone if model.mean.device.type == "cpu" else ():
            try:
                found = block(given)
                side = found.shape[2]
            except Exception:  # made for the network's own image size, or no map
                break
            uneven = PROBE_SIDE % side or any(pixels * side % PROBE_SIDE for pixels in model.image_size)
            if uneven or side * MAX_STRIDE < PROBE_SIDE or not (stage := _stage(block, given, given.shape[2] // side)):
                break
            stages.append(stage)
            given = found
    return stages


def _stage(block: nn.Module, given: torch.Tensor, stride: int) -> Stage | None:
    """Find out how far a block carries a change of its input map (1, C, h, h); None if it may reach every position. NaN
    makes every position NaN that depends on it, whatever the weights are."""
    places = torch.arange(stride) + given.shape[2] // 2 // stride * stride
    probes = given.repeat(stride, 1, 1, 1)
    probes[torch.arange(stride), :, places, places] = torch.nan
    reached = block(probes).isnan().any(1)  # (stride, h / stride, h / stride)
    reached = reached.any(1) | reached.any(2)
    if reached[:, 0].any() or reached[:, -1].any():
        return None
    probe, position = reached.nonzero().T
    distances = places[probe] - stride * position
    return Stage(block, stride, -int(distances.min()), int(distances.max()))


class IncrementalEmbedder:
    """Embeds one preprocessed image (3, H, W) with regions occluded, by a network in eval mode and its `local_stages`;
    `embedding`, (D,), is that of the untouched image."""

    def __init__(self, model: SiameseNetwork, image: torch.Tensor, stages: Sequence[Stage]) -> None:
        self.model, self.stages = model, stages
        self.rest = model.backbone[len(stages) :]
        self.whole = [image[None]]  # the input of each stage and of the rest, for the untouched image
        for stage in stages:
            self.whole.append(self._run(stage.block, self.whole[-1]))
        self.embedding = self._embed(self.whole[-1])[0]

    def embeddings(self, fill: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """Embeddings (R, D) of the image with one region after the other (R, 4), top, bottom, left and right in pixels,
        replaced by `fill`, an image (3, H, W) such as the blurred one."""
        result = self.embedding.new_empty(len(regions), len(self.embedding))
        sizes = regions[:, 1::2] - regions[:, ::2]
        for size in sizes.unique(dim=0):  # what goes through a stage at once is of one size
            for chosen in (sizes == size).all(1).nonzero()[:, 0].split(BATCH_SIZE):
                result[chosen.to(result.device)] = self._occluded(fill, regions[chosen])
        return result

    def _occluded(self, fill: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """As `embeddings`, of regions of one size at once."""
        parts = [fill[:, top:bottom, left:right] for top, bottom, left, right in regions.tolist()]
        # Before each stage: `parts` are what has changed of its input map, `regions` where they lie in it.
        for stage, whole in zip(self.stages, self.whole):
            height, width = whole.shape[2:]
            rows, columns = stage.changed(regions[:, :2], height), stage.changed(regions[:, 2:], width)
            tops, down = stage.needed(rows, height)
            lefts, across = stage.needed(columns, width)
            corners = torch.stack([tops, tops, lefts, lefts], dim=1)
            crops = [whole[0, :, y : y + down, x : x + across] for y, _, x, _ in corners.tolist()]
            crops = _pasted(torch.stack(crops), parts, regions - corners)
            regions = torch.cat([rows, columns], dim=1)
            inside = (regions - corners // stage.stride).tolist()
            parts = [part[:, y0:y1, x0:x1] for part, (y0, y1, x0, x1) in zip(self._run(stage.block, crops), inside)]
        return self._embed(_pasted(self.whole[-1].expand(len(regions), -1, -1, -1), parts, regions))

    def _embed(self, maps: torch.Tensor) -> torch.Tensor:
        return self.model.embed_features(self._run(self.rest, maps).float())

    @staticmethod
    def _run(blocks: nn.Module, maps: torch.Tensor) -> torch.Tensor:
        with torch.autocast(maps.device.type, torch.bfloat16, enabled=bfloat16_pays(maps.device)):
            return blocks(maps)


def _pasted(maps: torch.Tensor, parts: Sequence[torch.Tensor], regions: torch.Tensor) -> torch.Tensor:
    """Copy maps (R, C, h, w) and replace one region (R, 4) of each by one of the parts."""
    copies = maps.clone(memory_format=torch.channels_last)
    for copy, part, (top, bottom, left, right) in zip(copies, parts, regions.tolist()):
        copy[:, top:bottom, left:right] = part
    return copies
