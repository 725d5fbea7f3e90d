"""The figure of a query: each hit beside it, what matches, and what speaks for and against the decision."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from utils.figures.drawing import draw_map, mark_matches, short, write_inside
from utils.images.reading import read_image, shrink
from utils.search.query import Found

TITLES = ("query", "hit", "query, factual", "hit, factual", "query, counterfactual", "hit, counterfactual")
MOST_ROWS = 20  # of a figure: a hundred would be 50,000 pixels high


def show_hits(found: Found) -> Figure:
    """Show a row for each of the first `MOST_ROWS` hits: query and hit with matching regions circled, and their maps.

    A hit whose file was deleted or changed is a grey panel.
    """
    query, hits = shrink(read_image(found.query), 320), found.hits[:MOST_ROWS]
    pictures = (
        Image.new("RGB", hit.image_size, "lightgrey") if hit.problem else read_image(found.folder / hit.file)
        for hit in hits
    )
    images = [shrink(picture, 320) for picture in pictures]
    heights = [min(1.6, max(0.55, query.height / query.width, im.height / im.width)) for im in images]
    figure, axes = plt.subplots(
        len(images),
        len(TITLES),
        figsize=(9.2, 1.45 * sum(heights) + 0.25 * len(images) + 0.5),
        layout="constrained",
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    plt.setp(axes, xticks=[], yticks=[], anchor="N")
    sns.despine(figure, left=True, bottom=True)
    for axis, title in zip(axes[0], TITLES):
        axis.set_title(title, fontsize=8)
    for rank, (row, hit, image) in enumerate(zip(axes, hits, images), start=1):
        row[0].set_ylabel(f"{rank}. {hit.decision}, {hit.similarity:.2f}", fontsize=7)
        row[1].set_xlabel("\n".join(short(part) for part in hit.file.rsplit("/", 1)), fontsize=6)
        row[0].imshow(query)
        row[1].imshow(image)
        if hit.explanation is None:
            write_inside(row[2], "not explained", 7)
            continue
        mark_matches(row[:2], (query, image), hit.matches, size=6)
        for column, map_name in ((2, "factual"), (4, "counterfactual")):
            for side, (picture, box) in enumerate(((query, found.box), (image, hit.box))):
                draw_map(row[column + side], picture, hit.explanation, side, map_name, box, size=7)
    return figure
