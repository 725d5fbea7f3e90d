"""Figures made of images: samples, pairs, explanations on the original images, and who resembles whom."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image, ImageFilter

from utils.evaluate.audit import Audit
from utils.explain.occlusion import Match
from utils.explain.removal import BLUR_SIGMA, MAPS, WhatIf
from utils.figures.drawing import draw_map, inside, line_around, mark_matches, mask_of, short
from utils.figures.style import COLORMAP, SIMILARITY
from utils.Grad_CAM import Explanation
from utils.images.frame import Box
from utils.images.reading import read_image, shrink
from utils.system.files import replacing
from utils.system.settings import Config

MOST_DUPLICATES = 5  # images shown of a group of near duplicates
MOST_THUMBNAILS = 40  # images up to which a similarity matrix shows them along its edges


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure at 200 dpi with tight margins."""
    with replacing(path) as file:
        figure.savefig(file, dpi=200, bbox_inches="tight")


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Make empty panels without axes, (rows, columns), of so many inches each."""
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def show_images(images: Sequence[Image.Image], titles: Sequence[str], columns: int = 5) -> Figure:
    """Show images in a grid of at most so many columns, each under its title."""
    columns = min(columns, len(images))
    figure, axes = _panels(-(-len(images) // columns), columns, 1.8, 1.9)
    for axis, image, title in zip(axes.flat, images, titles):
        axis.imshow(shrink(image, 256))
        axis.set_title(title, fontsize=10)
    return figure


def show_near_duplicates(audit: Audit, config: Config, most: int = 6) -> Figure | None:
    """Show the first `most` groups of near duplicates, a row each, with at most five images of a group; `None` if there
    are none. Titles of a group with conflicting labels are red and say so."""
    groups = audit.groups[:most]
    if not groups:
        return None
    figure, axes = _panels(len(groups), min(MOST_DUPLICATES, max(map(len, groups))), 2.4, 2.2)
    for row, group in zip(axes, groups):
        note, colour = (" (conflicting)", "firebrick") if group in audit.conflicting else ("", "black")
        for axis, file in zip(row, group):
            label, _, name = file.rpartition("/")
            axis.imshow(shrink(read_image(config.data_path / file), 256))
            axis.set_title(f"{label}{note}\n{short(name)}", fontsize=8, color=colour)
    return figure


def show_explanation(
    images: tuple[Image.Image, Image.Image],
    explanation: Explanation,
    names: tuple[str, str] = ("image 1", "image 2"),
    boxes: tuple[Box | None, Box | None] = (None, None),
) -> Figure:
    """Show the paper's six panels: each image of a pair, and its factual and counterfactual map over it; `boxes` are
    the parts of the maps that the images fill, `model.frame.box(image.size)`."""
    similar = bool(explanation.is_similar[0])
    decision, other = ("similar", "dissimilar") if similar else ("dissimilar", "similar")
    images = tuple(shrink(image) for image in images)
    figure, axes = rows_of_panels(images, names, columns=3, width=8.0, titles=0.8, height=2.2)
    for row, image in enumerate(images):
        axes[row, 0].imshow(image)
        for column, map_name in enumerate(MAPS):
            draw_map(axes[row, column + 1], image, explanation, row, map_name, boxes[row])
    for axis, title in zip(axes[0], ("image", f"factual: for “{decision}”", f"counterfactual: for “{other}”")):
        axis.set_title(title, fontsize=11)
    figure.suptitle(f"{decision.capitalize()}: similarity {explanation.similarity[0]:.2f}", fontsize=14)
    bar = figure.colorbar(ScalarMappable(cmap=COLORMAP), ax=axes, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("evidence, as a share of the pair's strongest", fontsize=10)
    bar.ax.tick_params(labelsize=10)
    return figure


def show_gallery(pairs: Sequence[dict], title: str) -> Figure:
    """Show pairs, each as `Comparison.pair` gives it, side by side under the title that they have in common: the images
    of each pair, one above the other, and their factual maps."""
    figure, axes = _panels(2, 2 * len(pairs), 2.2, 2.4)
    for block, pair in enumerate(pairs):
        explanation = pair["explanation"]
        for row, (image, name, box) in enumerate(zip(pair["images"], pair["names"], pair["boxes"])):
            plain, explained = axes[row, 2 * block : 2 * block + 2]
            plain.imshow(image)
            draw_map(explained, image, explanation, row, "factual", box)
            plain.set_title("\n".join(short(line, 22) for line in name.split("\n")), fontsize=10)
        axes[0, 2 * block + 1].set_title(f"similarity {explanation.similarity[0]:.2f}", fontsize=10)
    figure.suptitle(title, fontsize=13)
    return figure


def rows_of_panels(
    images: Sequence[Image.Image], names: Sequence[str], columns: int, width: float, titles: float, height: float = 2.1
) -> tuple[Figure, np.ndarray]:
    """Make empty panels, a named row for each image, whose height follows its aspect ratio; sizes in inches."""
    heights = [min(1.6, max(0.55, image.height / image.width)) for image in images]
    options = {"layout": "constrained", "squeeze": False, "gridspec_kw": {"height_ratios": heights}}
    figure, axes = plt.subplots(len(images), columns, figsize=(width, height * sum(heights) + titles), **options)
    for row, name, share in zip(axes, names, heights):
        row[0].set_ylabel(short(name, min(26, round(26 * share))), fontsize=10)  # along the side of a low image, too
    plt.setp(axes, xticks=[], yticks=[], anchor="N")
    sns.despine(figure, left=True, bottom=True)
    return figure, axes


def show_what_if(
    images: tuple[Image.Image, Image.Image], what_if: WhatIf, names: tuple[str, str] = ("image 1", "image 2")
) -> Figure:
    """Show each image with its factual and with its counterfactual region blurred, and how the similarity changes."""
    images = tuple(shrink(image) for image in images)
    figure, axes = rows_of_panels(images, names, columns=2, width=6.4, titles=1.1, height=2.6)
    for row, image in enumerate(images):
        blurred = image.filter(ImageFilter.GaussianBlur(BLUR_SIGMA * max(image.size)))
        for column, map_name in enumerate(MAPS):
            axis = axes[row, column]
            region = mask_of(inside(what_if.regions[row, column], what_if.boxes[row]), image)
            axis.imshow(Image.composite(blurred, image, region))
            line_around(axis, region)
            nothing = f"no {map_name} evidence\nnothing to blur"
            shown = f"{map_name} region blurred\n{what_if.change_in_words(row, column)}"
            shown += "\nthe decision flips" if what_if.flips[row, column] else ""
            axis.set_title(nothing if what_if.empty[row, column] else shown, fontsize=11)
    return figure


def show_matches(
    images: tuple[Image.Image, Image.Image], matches: Sequence[Match], names: tuple[str, str] = ("image 1", "image 2")
) -> Figure:
    """Show two images side by side, their matching regions circled in the same colour, the strongest match first."""
    images = tuple(shrink(image) for image in images)
    figure, axes = _panels(1, 2, 4.2, 4.3)
    for axis, image, name in zip(axes[0], images, names):
        axis.imshow(image)
        axis.set_title(name, fontsize=11)
    mark_matches(axes[0], images, matches, size=11)
    return figure


def show_similarity_matrix(similarity: np.ndarray, images: Sequence[Image.Image], names: Sequence[str]) -> Figure:
    """Show the similarity (N, N), in [0, 1], of all images to all others as a heatmap, with up to `MOST_THUMBNAILS`
    images and their names along both edges."""
    count = len(images)
    side = min(max(5.0, 0.62 * count), 16.0)  # inches
    figure, axis = plt.subplots(figsize=(side + 2.4, side + 1.6), layout="constrained")
    look = {"vmin": 0, "vmax": 1, "cmap": SIMILARITY, "square": True, "linewidths": 0.5}
    look |= {"annot": count <= 16, "fmt": ".2f", "cbar_kws": {"label": "similarity", "shrink": 0.6}}
    sns.heatmap(similarity, ax=axis, **look)
    axis.set(xticks=[], yticks=[])
    if count > MOST_THUMBNAILS:
        return figure
    points = 0.5 * 72 * axis.figure.get_figwidth() / (count + 4)
    for position, (image, name) in enumerate(zip(images, names)):
        small = shrink(image, 96)
        for edge, direction, text in (
            ((0, position + 0.5), (-1, 0), {"va": "center"}),
            ((position + 0.5, count), (0, -1), {"va": "top", "rotation": 45}),
        ):
            picture, at = OffsetImage(small, zoom=points / max(small.size) * 1.5), np.multiply(points, direction)
            axis.add_artist(AnnotationBbox(picture, edge, xybox=at, boxcoords="offset points", frameon=False))
            axis.annotate(name, edge, xytext=2 * at, textcoords="offset points", ha="right", fontsize=10, **text)
    return figure
