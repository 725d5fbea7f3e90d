"""A map put to the test: its strongest region is removed from one image, and the pair is compared again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from utils.explain.removal import OTHERS, Interventions, strongest_region
from utils.images.frame import Box
from utils.Siamese import SiameseNetwork

MAPS = ("factual", "counterfactual")


def what_if(
    model: SiameseNetwork, images: torch.Tensor, maps: torch.Tensor, empty: torch.Tensor, boxes: tuple[Box, Box]
) -> WhatIf:
    """Remove the strongest tenth of each map of a pair, one at a time, in three ways, and compare again.

    Args:
        images: the pair, preprocessed, shape (2, 3, H, W).
        maps: factual and counterfactual, shape (2, 2, H, W): image; map.
        empty: maps without evidence, bool of shape (2, 2).
        boxes: the part of the network's frame that each image fills.
    """
    interventions = Interventions.on(model, images[:1], images[1:])
    regions, before = strongest_region(maps), interventions.before

    def margins(removal=None) -> torch.Tensor:
        """Of the decision, shape (2, 2), with a region of one image removed."""
        return torch.stack([interventions.without(regions[None, :, k], removal)[0] for k in (0, 1)], dim=1)

    blurred = margins()
    similarity = (1 - model.threshold - interventions.sign * values for values in (before, blurred))
    original, after = (values.cpu() for values in similarity)
    return WhatIf(
        float(original),
        after.numpy(),
        (blurred - before).cpu().numpy(),
        regions,
        empty.cpu().numpy(),
        boxes,
        {name: (margins(removal) - before).cpu().numpy() for name, removal in OTHERS.items()},
    )


@dataclass(frozen=True)
class WhatIf:
    """A pair before and after blurring a region; arrays of shape (2, 2): image; factual, counterfactual region.

    Attributes:
        before: similarity of the untouched images, below 0 beyond the margin.
        after: the same with the region of one image blurred, the other image untouched.
        change: of the decision's margin; negative if the decision got weaker.
        regions: the strongest tenth of each map, bool of shape (2, 2, H, W), at the network's image size.
        empty: maps without evidence, for which there is nothing to blur.
        boxes: the part of the network's frame that each image fills; `None` for all of it.
        others: as `change`, by other removals, by their names.
    """

    before: float
    after: np.ndarray
    change: np.ndarray
    regions: torch.Tensor
    empty: np.ndarray
    boxes: tuple[Box | None, Box | None] = (None, None)
    others: dict[str, np.ndarray] = field(default_factory=dict)

    def change_in_words(self, image: int, kind: int) -> str:
        """The similarity before and after; where it is 0 both times, the distances, which still differ."""
        before, after = self.before, float(self.after[image, kind])
        if max(before, after) <= 0:
            return f"distance / margin {_different(1 - before, 1 - after)}"
        return f"similarity {_different(max(before, 0), max(after, 0))}"

    def report(self, names: tuple[str, str]) -> str:
        """What each map's strongest region does to the pair, and whether the map passes its own check: without
        the factual region the decision should get weaker, without the counterfactual one stronger, however it is taken
        away."""
        lines = []
        for image, name in enumerate(names):
            for kind, (word, sign) in enumerate(zip(MAPS, (-1, 1))):
                effect = ("weaker", "stronger")[int(self.change[image, kind] > 0)]
                passed = "as it should" if sign * self.change[image, kind] > 0 else "so do not trust this map"
                if self.empty[image, kind]:
                    lines.append(f"{name}, {word} region has no evidence to blur")
                    continue
                change = self.change_in_words(image, kind)
                line = f"{name}, {word} region blurred: {change}, the decision gets {effect}, {passed}"
                differ = [other for other, moved in self.others.items() if sign * moved[image, kind] <= 0]
                if differ and passed == "as it should":
                    line += f"; but not if it is {' or '.join(differ)}"
                lines.append(line)
        return "\n".join(lines)


def _different(before: float, after: float) -> str:
    """Two numbers by two decimals, or, up to four, as many as tell them apart."""
    digits = next((digits for digits in (2, 3) if f"{before:.{digits}f}" != f"{after:.{digits}f}"), 4)
    return f"{before:.{digits}f} → {after:.{digits}f}"
