"""Figures of what a network relies on."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image


def show_groups(crops: Sequence[Sequence[Image.Image]], table: pd.DataFrame) -> Figure:
    """Show the strongest regions of each group, a row for each, beside what the group costs beyond random regions.

    Args:
        crops: of each group, at their own aspect ratio.
        table: of `measure_reliance`.
    """
    columns = max(map(len, crops))
    figure = plt.figure(figsize=(columns * 0.75 + 3.2, 0.85 * len(crops) + 0.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(columns * 0.75, 3.2))
    axes = left.subplots(len(crops), columns, squeeze=False)
    for row, members, (number, facts) in zip(axes, crops, table.iterrows()):
        for axis in row:
            axis.axis("off")
        for axis, crop in zip(row, members):
            axis.imshow(crop)
        row[0].set_title(f"group {number}{', suspect' if facts.suspect else ''}", fontsize=8, loc="left")
    axis = right.subplots()
    places, cost = np.arange(len(table)), table.cost.to_numpy()
    colours = ["firebrick" if suspect else "grey" for suspect in table.suspect]
    axis.barh(places, cost, color=colours, height=0.5)
    axis.hlines(places, table.low, table.high, color="black", lw=1)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(yticks=places, yticklabels=table.index, ylabel="group", xlabel="cost in AUC, beyond random regions")
    axis.invert_yaxis()
    return figure
