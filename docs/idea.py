"""The drawing in docs/how-it-works.md: regions are blurred, the embedding moves, and with it the distance."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from utils.compare.comparison import Comparison
from utils.explain.occlusion import WINDOWS, RegionEffects
from utils.explain.removal import MAPS, blur
from utils.figures.drawing import draw_map

COLOURS = {"A": "#d55e00", "B": "#0072b2", "C": "#555555"}  # apart for colour-blind readers, too
LARGE = WINDOWS[0].per_side ** 2  # windows of the first size
Area = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def shown_regions(effect: torch.Tensor, regions: torch.Tensor) -> list[int]:
    """Of the large windows, without overlap: that with the smallest effect (R,), with the largest, and with the one
    nearest to 0; `regions` (R, 4) are their top, bottom, left and right."""
    free, chosen = torch.arange(LARGE), []
    for score in (effect, -effect, -effect.abs()):
        k = int(free[score[free].argmax()])
        first, last = regions[free][:, ::2], regions[free][:, 1::2]
        free = free[((first >= regions[k, 1::2]) | (last <= regions[k, ::2])).any(1)]
        chosen.append(k)
    largest, smallest, hardly = chosen
    return [smallest, largest, hardly]


def triangle(distance: float, to_partner: float, moved: float, up: bool) -> tuple[float, float]:
    """Where an embedding lies after it moved, if its partner is at (0, 0) and it was at (distance, 0): both distances
    are true."""
    x = (distance**2 + to_partner**2 - moved**2) / (2 * distance)
    return x, (1 if up else -1) * max(0.0, to_partner**2 - x**2) ** 0.5


def show_idea(compared: Comparison) -> Figure:
    """Draw what blurring three regions of the first image does to its distance from the second."""
    effects, image = compared.effects_of(0, 1), compared.images[0]
    chosen = shown_regions(effects.on_pairs([0], [1])[0, 0], effects.regions[0])
    scale = np.array([image.width, image.height] * 2) / np.array(compared.model.image_size[::-1] * 2)
    areas = [tuple(map(round, effects.regions[0, k, [2, 0, 3, 1]].numpy() * scale)) for k in chosen]
    figure = plt.figure(figsize=(10, 3.4), layout="constrained")
    whole, small, plane, maps = figure.subfigures(1, 4, width_ratios=(2.9, 1.15, 3.2, 1.6), wspace=0.03)
    axis = whole.subplots()
    axis.set_title("1  An image, and regions of it", fontsize=10)
    axis.imshow(image)
    panels = [axis, *small.subplots(3, 1), *maps.subplots(2, 1)]
    panels[1].set_title("2  Blur each", fontsize=10)
    for panel, area, (letter, colour) in zip(panels[1:], areas, COLOURS.items()):
        panel.imshow(with_blurred(image, area))
        panel.set_ylabel(letter, rotation=0, color=colour, fontweight="bold", va="center", labelpad=9)
        left, top, right, bottom = area
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, lw=2.5, color=colour))
        box = {"color": colour, "pad": 2}
        axis.text(left + 8, top + 8, letter, color="white", va="top", fontsize=9, fontweight="bold", bbox=box)
    _draw_embeddings(plane.subplots(), effects, chosen, compared.images[1])
    panels[4].set_title("4  100 effects: maps", fontsize=10)
    for panel, map_name in zip(panels[4:], MAPS):
        draw_map(panel, image, compared.explain(0, 1), 0, map_name, None)
        panel.set_xlabel(map_name, fontsize=9)
    plt.setp(panels, xticks=[], yticks=[])
    return figure


def _draw_embeddings(axis: Axes, effects: RegionEffects, chosen: list[int], partner: Image.Image) -> None:
    z, other = effects.embeddings
    distance, moved = float((z - other).norm()), effects.delta[0, chosen].norm(dim=1).tolist()
    side = 1.25 * max(moved)
    axis.set_title("3  Embedding and distance change", fontsize=10)
    axis.add_patch(Circle((0, 0), distance, fill=False, linestyle=":", color="grey"))
    axis.plot(distance, 0, "o", color="black", zorder=3)
    for k, length, (letter, colour) in zip(chosen, moved, COLOURS.items()):
        to_partner = float((z - effects.delta[0, k] - other).norm())
        x, y = triangle(distance, to_partner, length, up=letter != "B")
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 2, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (x, y), (distance, 0), arrowprops=arrow)
        above, aside = y > 0, letter == "C"
        where = {"xytext": (9, 0) if aside else (0, 6 if above else -6), "textcoords": "offset points"}
        where |= {"ha": "left", "va": "center"} if aside else {"ha": "center", "va": "bottom" if above else "top"}
        axis.annotate(f"{letter} blurred: {to_partner:.2f}", (x, y), color=colour, fontsize=9, **where)
    where = {"xytext": (-9, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    axis.annotate(f"as it is: {distance:.2f}", (distance, 0), fontsize=9, **where)
    axis.set(xlim=(distance - side, distance + side), ylim=(-side, side), xticks=[], yticks=[], aspect="equal")
    axis.set_xlabel("closer to the other image  ←      →  further away", fontsize=9)
    height = 0.24 * partner.height / partner.width
    inset = axis.inset_axes((0.02, 0.02, 0.24, height))
    inset.imshow(partner)
    inset.set(xticks=[], yticks=[])
    arrow = {"arrowstyle": "->", "lw": 1.2}
    axis.annotate("", (0.02, height + 0.06), (0.26, height + 0.06), xycoords="axes fraction", arrowprops=arrow)


def with_blurred(image: Image.Image, area: Area) -> Image.Image:
    """A copy with an area blurred as explanations blur it."""
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()
    blurred = Image.fromarray(blur(pixels)[0].permute(1, 2, 0).byte().numpy())
    shown = image.copy()
    shown.paste(blurred.crop(area), area[:2])
    return shown
