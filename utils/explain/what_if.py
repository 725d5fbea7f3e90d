"""A map put to the test: its strongest region is removed from one image, and the pair is compared again."""

from dataclasses import dataclass, field

import numpy as np
import torch

from utils.explain.removal import OTHER_REMOVALS, Interventions, strongest_region
from utils.images.frame import Box
from utils.Siamese import SiameseNetwork

MAPS = ("factual", "counterfactual")


@dataclass(frozen=True)
class WhatIf:
    """A pair before and after one region of one image is removed; arrays have shape (2, 2): image; region of the
    factual, of the counterfactual map."""

    before: float  # similarity of the untouched images, not clipped: below 0 beyond the margin
    after: np.ndarray  # likewise, with the region of one image blurred and the other image untouched
    change: np.ndarray  # of the decision's margin, by blurring; negative if the decision got weaker
    regions: torch.Tensor  # the strongest tenth of each map, bool of shape (2, 2, H, W), at the network's image size
    empty: np.ndarray  # maps without evidence, for which there is nothing to remove
    boxes: tuple[Box | None, Box | None] = (None, None)  # the part of the frame that each image fills; `None`: all
    others: dict[str, np.ndarray] = field(default_factory=dict)  # as `change`, by other removals, under their names

    def change_in_words(self, image: int, column: int) -> str:
        """The similarity before and after; where it is 0 both times, the distances, which still differ."""
        before, after = self.before, float(self.after[image, column])
        if max(before, after) <= 0:
            return f"distance / margin {_two_numbers(1 - before, 1 - after)}"
        return f"similarity {_two_numbers(max(before, 0), max(after, 0))}"

    def report(self, names: tuple[str, str]) -> str:
        """The result of each check, a line each: what the region's removal changes, and whether the map passes. With
        the factual region removed, the decision should get weaker; with the counterfactual one, stronger."""
        return "\n".join(self._line(name, image, column) for image, name in enumerate(names) for column in (0, 1))

    def _line(self, name: str, image: int, column: int) -> str:
        region, expected = f"{name}, {MAPS[column]} region", (-1, 1)[column]
        if self.empty[image, column]:
            return f"{region} has no evidence to blur"
        change = self.change[image, column]
        effect = "stronger" if change > 0 else "weaker"
        line = f"{region} blurred: {self.change_in_words(image, column)}, the decision gets {effect}, "
        if expected * change <= 0:
            return line + "so do not trust this map"
        failed = [removal for removal, changes in self.others.items() if expected * changes[image, column] <= 0]
        return line + "as it should" + (f"; but not if it is {' or '.join(failed)}" if failed else "")


def what_if(
    model: SiameseNetwork, images: torch.Tensor, maps: torch.Tensor, empty: torch.Tensor, boxes: tuple[Box, Box]
) -> WhatIf:
    """Remove the strongest tenth of each map of a pair, one at a time, in three ways, and compare the pair again.

    Args:
        images: the pair, preprocessed, shape (2, 3, H, W).
        maps: factual and counterfactual, shape (2, 2, H, W): image; map. `empty`, (2, 2), tells which are.
        boxes: the part of the network's frame that each image fills.
    """
    interventions = Interventions(model, images[:1], images[1:])
    regions, before = strongest_region(maps), interventions.margins_before.cpu()

    def margins(removal=None) -> torch.Tensor:
        """Of the decision, shape (2, 2), after removing one region of one image."""
        columns = [interventions.margins_after(regions[None, :, k], removal)[0] for k in (0, 1)]
        return torch.stack(columns, dim=1).cpu()

    blurred, others = margins(), {name: (margins(removal) - before).numpy() for name, removal in OTHER_REMOVALS.items()}
    original, after = (1 - model.threshold - interventions.sign.cpu() * values for values in (before, blurred))
    change = (blurred - before).numpy()
    return WhatIf(float(original), after.numpy(), change, regions, empty.cpu().numpy(), boxes, others)


def _two_numbers(before: float, after: float) -> str:
    """Two numbers with two decimals, or with as many, up to four, as make them differ."""
    digits = next((digits for digits in (2, 3) if f"{before:.{digits}f}" != f"{after:.{digits}f}"), 4)
    return f"{before:.{digits}f} → {after:.{digits}f}"
