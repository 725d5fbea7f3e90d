"""Figures made of numbers: class counts, learning curves, how a network scores on pairs, and what it relies on."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_curve

from utils.dataset import SPLITS
from utils.evaluate.faithfulness import area_under
from utils.evaluate.scores import SplitDistances
from utils.images.pairs import PAIR_LABELS
from utils.models import every_pair

COLOURS = sns.color_palette("colorblind")
MOST_MARKERS = 60  # epochs up to which a learning curve has a marker for each


def _with_legends(figure: Figure, **options: Any) -> Figure:
    """Add a legend to each panel that has labels, and take away the frames."""
    for axis in figure.axes:
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize=9, **options)
    sns.despine(figure)
    return figure


def plot_class_counts(table: pd.DataFrame) -> Figure:
    """Plot the number of images per class and split, from a table with the columns `label` and `split`."""
    names = [*SPLITS, *(["unseen"] if "unseen" in set(table.split) else [])]
    counts = pd.crosstab(table.label, table.split).reindex(columns=names, fill_value=0)
    figure, axis = plt.subplots(figsize=(6, 0.35 * len(counts) + 1), layout="constrained")
    counts.plot.barh(stacked=True, ax=axis, color=COLOURS, width=0.75, edgecolor="white")
    for bars, hatch in zip(axis.containers, ("", "//", "..", "xx")):
        plt.setp(bars, hatch=hatch)
    axis.invert_yaxis()
    axis.set(xlabel="images", ylabel="")
    axis.xaxis.get_major_locator().set_params(integer=True)
    return _with_legends(figure, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))


def plot_learning_curves(history: pd.DataFrame, kept: int) -> Figure:
    """Plot loss and validation scores by epoch; the epoch that was kept, counted from 1, is marked."""
    best = history.iloc[kept - 1]
    size = 3 if len(history) <= MOST_MARKERS else 0  # hundreds of markers would be a bar
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    for axis, columns in ((left, ("train_loss", "valid_loss")), (right, ("valid_auc", "valid_accuracy"))):
        for column, style, colour in zip(columns, ("o-", "s--"), COLOURS if axis is left else COLOURS[2:]):
            name = column.replace("_", " ").replace("auc", "AUC")
            axis.plot(history.epoch, history[column], style, ms=size, color=colour, label=name)
        axis.axvline(best.epoch, color="grey", lw=0.8, ls=":")
        axis.set(xlabel="epoch", ylabel="contrastive loss" if axis is left else "score")
        axis.xaxis.get_major_locator().set_params(integer=True)
    right.plot(best.epoch, best.valid_auc, "*", ms=13, color="black", label=f"kept: epoch {best.epoch:.0f}")
    return _with_legends(figure)


def plot_pairs(split: SplitDistances, thresholds: dict[str, float], margin: float) -> Figure:
    """Plot how well a split's two kinds of pairs are told apart: the similarity, not clipped, of its scored pairs; and,
    of all pairs of its images, how many similar ones are found at how many false matches, on a logarithmic axis.

    Args:
        thresholds: of the dissimilarity, by name; a line on the left, a point on the right.
        margin: the network's.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
    similarity = 1 - split.dissimilarity
    bins = np.linspace(min(0.0, similarity.min()), 1, 31)
    for label, (name, look) in enumerate(zip(PAIR_LABELS, ({"color": COLOURS[0]}, {"fill": False, "hatch": "////"}))):
        edge = {"edgecolor": COLOURS[label], "label": f"{name} pairs"}
        left.hist(similarity[split.pairs.label == label], bins, histtype="stepfilled", **(look | edge))
    left.set(xlabel="similarity (below 0: farther apart than the margin)", ylabel="pairs")
    left.yaxis.get_major_locator().set_params(integer=True)
    distance, other, _ = every_pair(split.embeddings, split.labels)
    false, found, cuts = roc_curve(1 - other, -distance, drop_intermediate=False)
    least = 1 / other.sum()  # one false match; none lies at the left border, too
    right.plot(np.maximum(false, least), found, color=COLOURS[0], lw=2, label=f"all {len(other):,} pairs")
    rates = np.geomspace(least, 1, 100)
    right.plot(rates, rates, color="grey", lw=1, ls=":", label="chance")
    for (name, threshold), style, marker in zip(thresholds.items(), ("-", "--"), ("o", "s")):
        at = (-cuts < threshold * margin).sum() - 1
        left.axvline(1 - threshold, color="black", lw=1.5, ls=style, label=f"{name}: {1 - threshold:.2f}")
        right.plot(max(false[at], least), found[at], marker, mfc="none", color="black", ms=9, label=name, ls="none")
    right.set(xlabel="dissimilar pairs called similar", ylabel="similar pairs found", xscale="log", ylim=(0, 1.05))
    right.xaxis.set_major_formatter("{x:g}")
    right.minorticks_off()
    return _with_legends(figure, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # off the data


def plot_interventions(curves: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Plot deletion and insertion curves of several rankings: ranking -> {`deletion`, `insertion`} -> (steps,)."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained", sharey=True)
    for axis, curve, wanted in zip(axes, ("deletion", "insertion"), ("should fall fast", "should rise fast")):
        for (name, pair), style, colour in zip(curves.items(), ("-", "--", ":", "-."), COLOURS):
            share, area = np.linspace(0, 100, len(pair[curve])), area_under(pair[curve])
            axis.plot(share, pair[curve], style, color=colour, lw=2.5, label=f"{name}: area {area:.2f}")
        axis.axhline(0, color="grey", lw=0.8)
        verb = "blurred" if curve == "deletion" else "sharpened"
        axis.set(xlabel=f"pixels {verb}, strongest first (%)", title=f"{curve}: {wanted}")
    low, high = axes[0].get_ylim()
    axes[0].set(ylabel="margin of the decision", ylim=(low, high + 0.4 * (high - low)))  # the legends are above
    return _with_legends(figure, loc="upper right")


def show_groups(crops: Sequence[Sequence[Image.Image]], table: pd.DataFrame) -> Figure:
    """Show the strongest regions of each group, a row for each, beside what the group costs beyond random regions.

    Args:
        crops: of each group, at their own aspect ratio.
        table: of `measure_reliance`, a row for each of these groups.
    """
    columns = max(map(len, crops))
    figure = plt.figure(figsize=(columns + 3.4, 1.15 * len(crops) + 0.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(columns, 3.4))
    axes = left.subplots(len(crops), columns, squeeze=False)
    for row, members, (number, facts) in zip(axes, crops, table.iterrows()):
        for axis in row:
            axis.axis("off")
        for axis, crop in zip(row, members):
            axis.imshow(crop)
        row[0].set_title(f"group {number}{', suspect' if facts.suspect else ''}", fontsize=10, loc="left")
    axis = right.subplots()
    places = np.arange(len(table))
    hatches = ["////" if suspect else "" for suspect in table.suspect]
    axis.barh(places, table.cost, color="lightgrey", edgecolor="black", height=0.5, hatch=hatches)
    axis.hlines(places, table.low, table.high, color="black", lw=2)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(yticks=places, yticklabels=table.index, ylabel="group", xlabel="cost in AUC, beyond random regions")
    axis.invert_yaxis()
    return figure
