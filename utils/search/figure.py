"""The figure of a query: each hit beside it, what matches, and what speaks for and against the decision."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from utils.figures.drawing import draw_map, mark_matches, short, write_inside
from utils.images.reading import shrink
from utils.search.query import Found

TITLES = ("query", "hit", "query, factual", "hit, factual", "query, counterfactual", "hit, counterfactual")
MOST_ROWS = 20  # of a figure: a hundred would be 50,000 pixels high


def show_hits(found: Found) -> Figure:
    """Show a row for each of the first `MOST_ROWS` hits: query and hit with matching regions circled, and their maps.

    A hit whose file was deleted or changed is a grey panel.
    """
    query, hits = shrink(found.query, 320), found.hits[:MOST_ROWS]
    grey = Image.new("RGB", query.size, "lightgrey")
    images = [shrink(hit.pair["images"][1], 320) if hit.pair else grey for hit in hits]
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
        if hit.pair is None:
            write_inside(row[2], "not explained", 7)
            continue
        mark_matches(row[:2], (query, image), hit.matches, size=6)
        for column, map_name in ((2, "factual"), (4, "counterfactual")):
            for side, picture in enumerate((query, image)):
                axis, box = row[column + side], hit.pair["boxes"][side]
                draw_map(axis, picture, hit.pair["explanation"], side, map_name, box, size=7)
    return figure
