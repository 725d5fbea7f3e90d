"""Figures made of numbers: class counts, learning curves, how a network scores on pairs, and what it relies on."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.decomposition import PCA
from sklearn.metrics import ConfusionMatrixDisplay, precision_recall_curve, roc_curve

from utils.dataset import SPLITS
from utils.evaluate.calibration import brier_scores
from utils.evaluate.faithfulness import area_under
from utils.evaluate.scores import PairScores, SplitDistances, score_pairs
from utils.figures.style import HEATMAP, NUMBERS
from utils.images.pairs import PAIR_LABELS
from utils.models import every_pair

COLOURS = sns.color_palette("colorblind")
MOST_MARKERS = 60  # epochs up to which a learning curve has a marker for each
FULL_BIN = 20  # pairs, fewer of which show little but chance
ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1)}  # a legend off the data


def _with_legends(figure: Figure, **options: Any) -> Figure:
    """Add a legend to each panel that has labels, and take away the frames."""
    for axis in figure.axes:
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize=8, **options)
    sns.despine(figure)
    return figure


def plot_class_counts(table: pd.DataFrame) -> Figure:
    """Plot the number of images per class and split, from a table with the columns `label` and `split`."""
    names = [*SPLITS, *(["unseen"] if "unseen" in set(table.split) else [])]
    counts = pd.crosstab(table.label, table.split).reindex(columns=names, fill_value=0)
    figure, axis = plt.subplots(figsize=(6, 0.35 * len(counts) + 1), layout="constrained")
    counts.plot.barh(stacked=True, ax=axis, color=COLOURS, width=0.75)
    axis.invert_yaxis()
    axis.set(xlabel="images", ylabel="")
    axis.xaxis.get_major_locator().set_params(integer=True)
    return _with_legends(figure, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))


def plot_learning_curves(history: pd.DataFrame, kept: int) -> Figure:
    """Plot loss and validation scores by epoch; the epoch that was kept, counted from 1, is marked."""
    best = history.iloc[kept - 1]
    size = 3 if len(history) <= MOST_MARKERS else 0  # hundreds of markers would be a bar
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for axis, columns in ((left, ("train_loss", "valid_loss")), (right, ("valid_auc", "valid_accuracy"))):
        for column, style, colour in zip(columns, ("o-", "s--"), COLOURS if axis is left else COLOURS[2:]):
            name = column.replace("_", " ").replace("auc", "AUC")
            axis.plot(history.epoch, history[column], style, ms=size, color=colour, label=name)
        axis.axvline(best.epoch, color="grey", lw=0.8, ls=":")
        axis.set(xlabel="epoch", ylabel="contrastive loss" if axis is left else "score")
        axis.xaxis.get_major_locator().set_params(integer=True)
    right.plot(best.epoch, best.valid_auc, "*", ms=13, color="black", label=f"kept: epoch {best.epoch:.0f}")
    return _with_legends(figure)


def plot_confusion(score: PairScores) -> Figure:
    """Plot the confusion matrix of pairs."""
    figure, axis = plt.subplots(figsize=(3.2, 2.9), layout="constrained")
    ConfusionMatrixDisplay(score.confusion, display_labels=PAIR_LABELS).plot(ax=axis, cmap="Blues", colorbar=False)
    axis.set(xlabel="decision", ylabel="truth", title=f"accuracy {score.accuracy:.3f}")
    axis.set_yticklabels(PAIR_LABELS, rotation=90, va="center")
    return figure


def plot_distances(dissimilarity: np.ndarray, label: np.ndarray, thresholds: dict[str, float]) -> Figure:
    """Plot histograms of the similarity, not clipped, of similar (0) and dissimilar (1) pairs; thresholds by name."""
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    similarity = 1 - dissimilarity
    bins = np.linspace(min(0.0, similarity.min()), 1, 41)
    for value, name in enumerate(PAIR_LABELS):
        axis.hist(similarity[label == value], bins, alpha=0.6, color=COLOURS[value], label=f"{name} pairs")
    for (name, value), style in zip(thresholds.items(), ("-", "--")):
        axis.axvline(1 - value, color="black", lw=1, ls=style, label=f"{name}: {1 - value:.2f}")
    axis.set(xlabel="similarity (below 0: farther apart than the margin)", ylabel="pairs")
    axis.yaxis.get_major_locator().set_params(integer=True)
    return _with_legends(figure, **ABOVE, ncols=2)


def plot_curves(split: SplitDistances) -> Figure:
    """Plot the ROC and precision-recall curves of "dissimilar" on a split's pairs, with chance level; and, of all pairs
    of its images, how many similar ones are found at how many false matches, on a logarithmic axis."""
    dissimilarity, label = split.dissimilarity, split.pairs.label
    score = score_pairs(dissimilarity, label, threshold=0.5)
    false_alarms, hits, _ = roc_curve(label, dissimilarity)
    precision, recall, _ = precision_recall_curve(label, dissimilarity)
    figure, (left, right, log) = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
    left.plot(false_alarms, hits, color=COLOURS[0], lw=2, label=f"AUC {score.auc:.3f}")
    left.plot([0, 1], [0, 1], color="grey", lw=1, ls=":", label="chance")
    left.set(xlabel="similar pairs called dissimilar", ylabel="dissimilar pairs found", title="ROC")
    right.plot(recall, precision, color=COLOURS[0], lw=2, label=f"average precision {score.average_precision:.3f}")
    right.axhline(label.mean(), color="grey", lw=1, ls=":", label="chance")
    right.set(xlabel="dissimilar pairs found (recall)", ylabel="precision", ylim=(0, 1.03), title="precision-recall")
    distance, other, _ = every_pair(split.embeddings, split.labels)
    matches, found, _ = roc_curve(1 - other, -distance)
    rates = np.geomspace(1 / other.sum(), 1, 200)
    log.plot(rates, np.interp(rates, matches, found), color=COLOURS[0], lw=2, label=f"{len(other):,} pairs")
    log.plot(rates, rates, color="grey", lw=1, ls=":", label="chance")
    log.set(xlabel="dissimilar pairs called similar", ylabel="similar pairs found", xscale="log", ylim=(0, 1.03))
    log.set_title("false matches, all pairs")
    log.xaxis.set_major_formatter("{x:g}")
    log.minorticks_off()
    return _with_legends(figure)


def plot_reliability(estimates: dict[str, np.ndarray], label: np.ndarray) -> Figure:
    """Plot a reliability diagram: the share of pairs of one class among those with about the same estimate of "same
    class" (P,), in [0, 1], in up to ten bins of equally many pairs; a reliable one follows the diagonal. Below it is
    the number of pairs."""
    shape = {"figsize": (4.2, 4.4), "height_ratios": (3, 1)}
    figure, (upper, lower) = plt.subplots(2, 1, layout="constrained", sharex=True, **shape)
    upper.plot([0, 1], [0, 1], color="grey", lw=1, ls=":")
    brier, bins = brier_scores(estimates, label), int(np.clip(len(label) // FULL_BIN, 2, 10))
    for (name, values), style, colour in zip(estimates.items(), ("o-", "s--"), COLOURS):
        share, mean = calibration_curve(label == 0, values, n_bins=bins, strategy="quantile")
        upper.plot(mean, share, style, ms=4, color=colour, label=f"{name}: Brier {brier[name]:.3f}")
        lower.hist(values, np.linspace(0, 1, 11), histtype="step", lw=1.5, ls=style[1:], color=colour)
    upper.set(ylabel="pairs of one class (share)")
    lower.set(xlabel='estimate of "same class"', ylabel="pairs")
    lower.yaxis.get_major_locator().set_params(integer=True)
    return _with_legends(figure, **ABOVE)


def plot_interventions(curves: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Plot deletion and insertion curves of several rankings: ranking -> {`deletion`, `insertion`} -> (steps,)."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
    for axis, curve, wanted in zip(axes, ("deletion", "insertion"), ("should fall fast", "should rise fast")):
        for (name, pair), style, colour in zip(curves.items(), ("-", "--", ":", "-."), COLOURS):
            share, area = np.linspace(0, 100, len(pair[curve])), area_under(pair[curve])
            axis.plot(share, pair[curve], style, color=colour, lw=2, label=f"{name}: area {area:.2f}")
        axis.axhline(0, color="grey", lw=0.8)
        verb = "blurred" if curve == "deletion" else "sharpened"
        axis.set(xlabel=f"pixels {verb}, strongest first (%)", title=f"{curve}: {wanted}")
    low, high = axes[0].get_ylim()
    axes[0].set(ylabel="margin of the decision", ylim=(low, high + 0.4 * (high - low)))  # the legends are above
    return _with_legends(figure, loc="upper right")


def plot_class_similarity(similarity: pd.DataFrame) -> Figure:
    """Plot the mean similarity between classes as a heatmap."""
    side = 0.5 * len(similarity)
    figure, axis = plt.subplots(figsize=(side + 2.6, side + 1.4), layout="constrained")
    sns.heatmap(similarity, ax=axis, cbar_kws={"label": "mean similarity"}, **HEATMAP, **NUMBERS)
    axis.tick_params(labelsize=8)
    return figure


def plot_embedding(embeddings: torch.Tensor, labels: Sequence[str]) -> Figure:
    """Plot embeddings on their two principal axes, coloured by class; distances are to scale."""
    pca = PCA(2)
    x, y = pca.fit_transform(embeddings.numpy()).T
    figure, axis = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    labels, few = np.asarray(labels), len(set(labels)) <= 10
    palette = "colorblind" if few else "husl"
    sns.scatterplot(x=x, y=y, hue=labels, style=labels if few else None, palette=palette, s=28, ax=axis)
    first, second = 100 * pca.explained_variance_ratio_
    axis.set_aspect("equal")
    axis.set(xlabel=f"principal axis 1 ({first:.0f} % of variance)", ylabel=f"principal axis 2 ({second:.0f} %)")
    return _with_legends(figure, bbox_to_anchor=(1, 1), loc="upper left")


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
