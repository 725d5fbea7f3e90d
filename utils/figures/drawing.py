"""Draw on an image: its map, the outline of a region, matching regions, a few words."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Ellipse
from PIL import Image, ImageFilter

from utils.explain.occlusion import GRID, MATCH_DISTANCE, Match
from utils.explain.removal import MAPS, strongest_region
from utils.figures.style import COLORMAP, DRAINED, FAINT, OPACITY, WEAK
from utils.Grad_CAM import Explanation
from utils.images.frame import Box


def overlay(image: Image.Image, heatmap: torch.Tensor) -> np.ndarray:
    """Lay a map (h, w) in [0, 1] in colour over its image, which turns grey under it; where there is no evidence, the
    image is as it is. The map is stretched to the image; the result is RGB, uint8 of shape (H, W, 3)."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    small = Image.fromarray(heatmap.cpu().numpy())
    values = np.asarray(small.resize(image.size, Image.Resampling.BILINEAR)).clip(0, 1)[..., None]
    colour = 255 * COLORMAP(values[..., 0])[..., :3]
    alpha = OPACITY * values**WEAK
    drained = np.clip(values / DRAINED, 0, 1)  # colour on colour would hide both
    pixels = (1 - drained) * pixels + drained * grey
    return np.rint((1 - alpha) * pixels + alpha * colour).clip(0, 255).astype(np.uint8)


def draw_map(
    axis: Axes, image: Image.Image, explanation: Explanation, row: int, map_name: str, box: Box | None, size: int = 9
) -> None:
    """Draw the `factual` or `counterfactual` map of image 1 (row 0) or 2 of one pair over it, as strong as its evidence
    is beside the pair's strongest, with its strongest tenth outlined; or, if it is too weak to be seen, say so in
    letters of `size` points. `box` is the part of the map that the image fills, `None` for all."""
    heatmap, this = getattr(explanation, map_name)[0, row], (0, row, MAPS.index(map_name))
    axis.imshow(overlay(image, inside(heatmap, box) * explanation.strength[this]))
    if explanation.strength[this] > FAINT:
        line_around(axis, mask_of(inside(strongest_region(heatmap), box), image))  # what checks remove
    else:
        write_inside(axis, "no such evidence" if explanation.empty[this] else "hardly any", size)


def inside(heatmap: torch.Tensor, box: Box | None) -> torch.Tensor:
    """The part of a map (h, w) that its image fills."""
    return heatmap if box is None else heatmap[box.slices]


def mask_of(region: torch.Tensor, image: Image.Image) -> Image.Image:
    """Stretch a region (h, w), bool, to its image: a picture of mode "1" and of the image's size."""
    return Image.fromarray(region.cpu().numpy()).resize(image.size, Image.Resampling.NEAREST)


def line_around(axis: Axes, region: Image.Image) -> None:
    """Draw a line around a region that `mask_of` made; it cuts the corners of a map's cells."""
    sharp = region.convert("L")
    smooth = sharp.filter(ImageFilter.GaussianBlur(max(sharp.size) / GRID / 2))
    within = np.asarray(smooth if smooth.getextrema()[1] > 128 else sharp) / 255  # sharp, if smaller than a cell
    if min(within.shape) > 1 and within.min() < 0.5 < within.max():  # nothing surrounds a part of a single row
        axis.contour(within, levels=[0.5], colors="white", linewidths=1.2)


def mark_matches(axes: Sequence[Axes], images: Sequence[Image.Image], matches: Sequence[Match], size: int = 9) -> None:
    """Circle the matching regions of two images, each drawn on one of two axes; the numbers have `size` points."""
    for number, (match, colour) in enumerate(zip(matches, sns.color_palette("colorblind")), start=1):
        ends = []
        for axis, image, (row, column) in zip(axes, images, (match.first, match.second)):
            ends.append((column * image.width - 0.5, row * image.height - 0.5))
            sides = [MATCH_DISTANCE * side for side in image.size]
            axis.add_patch(Ellipse(ends[-1], *sides, fill=False, edgecolor="white", lw=4 * size / 9))
            axis.add_patch(Ellipse(ends[-1], *sides, fill=False, edgecolor=colour, lw=2.2 * size / 9))
            box = {"boxstyle": "circle,pad=0.15", "facecolor": colour, "edgecolor": "white"}
            axis.annotate(str(number), ends[-1], color="white", fontsize=size, ha="center", va="center", bbox=box)
        line = ConnectionPatch(*ends, "data", axesA=axes[0], axesB=axes[1], color=colour, lw=1.2, ls=":")
        axes[0].figure.add_artist(line)
    if not matches:
        write_inside(axes[0], "no matching regions")


def write_inside(axis: Axes, text: str, size: int = 9) -> None:
    """Write a few words in the middle of a panel."""
    box = {"boxstyle": "round", "facecolor": "white", "alpha": 0.8, "edgecolor": "none"}
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", fontsize=size, bbox=box)


def short(name: str, most: int = 26) -> str:
    """Cut a long file name to its end, which tells more than its start; a Chinese letter counts as two others."""
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name]
    if sum(widths) <= most:
        return name
    start = next(start for start in range(len(name)) if 1 + sum(widths[start:]) <= most)
    return f"…{name[start:]}"
