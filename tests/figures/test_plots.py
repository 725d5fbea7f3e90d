import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from utils.evaluate.scores import SplitDistances, score_pairs
from utils.figures.plots import (
    plot_class_counts,
    plot_class_similarity,
    plot_confusion,
    plot_curves,
    plot_distances,
    plot_embedding,
    plot_interventions,
    plot_learning_curves,
    plot_reliability,
    show_groups,
)
from utils.images.pairs import Pairs

DISSIMILARITY, LABEL = np.array([0.1, 0.3, 0.7, 0.4, 0.9, 1.4]), np.array([0, 0, 0, 1, 1, 1])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_class_counts_are_the_lengths_of_the_bars():
    table = pd.DataFrame(
        {"label": ["a"] * 6 + ["b"] * 4, "split": ["train", "train", "train", "valid", "test", "test"] + ["train"] * 4}
    )
    axis = plot_class_counts(table).axes[0]
    lengths = {name: [bar.get_width() for bar in bars] for name, bars in zip(legend(axis), axis.containers)}
    assert lengths == {"train": [3, 4], "valid": [1, 0], "test": [2, 0]}


def test_there_are_no_half_images_and_a_split_without_any_still_has_its_colour():
    axis = plot_class_counts(pd.DataFrame({"label": ["a"] * 21, "split": ["train"] * 20 + ["test"]})).axes[0]
    assert all(tick == round(tick) for tick in axis.get_xticks()) and legend(axis) == ["train", "valid", "test"]


def test_learning_curves_mark_the_epoch_that_was_kept_and_hundreds_are_drawn_as_lines():
    history = pd.DataFrame({"epoch": range(1, 301)})
    history[["train_loss", "valid_loss", "valid_accuracy", "valid_auc"]] = 0.5
    history.loc[1, "valid_auc"] = 0.8
    for count, shown in ((300, 0), (20, 3)):
        left, right = plot_learning_curves(history.head(count), kept=2).axes
        for axis in (left, right):  # legible in grey
            assert len({line.get_linestyle() for line in axis.lines[:2]}) == 2
            assert [line.get_markersize() for line in axis.lines[:2]] == [shown, shown]
        star = next(line for line in right.lines if line.get_marker() == "*")
        assert (star.get_xdata()[0], star.get_ydata()[0]) == (2, 0.8) and "kept: epoch 2" in legend(right)


def test_confusion_shows_the_counts_truth_by_decision():
    (axis,) = plot_confusion(score_pairs(DISSIMILARITY, LABEL, 0.35)).axes
    assert [text.get_text() for text in axis.texts] == ["2", "1", "0", "3"]
    assert axis.get_title() == "accuracy 0.833"


def test_histogram_counts_every_pair_also_beyond_the_margin():
    axis = plot_distances(DISSIMILARITY, LABEL, {"configured": 0.3}).axes[0]
    assert [sum(bar.get_height() for bar in bars) for bars in axis.containers] == [3, 3]
    assert "configured: 0.70" in legend(axis) and axis.lines[0].get_xdata()[0] == 0.7  # above it, pairs are similar
    ends = [[bar.get_x() for bar in bars if bar.get_height()] for bars in axis.containers]
    assert min(ends[0]) > min(ends[1]) and max(ends[0]) > max(ends[1])


def test_legends_cover_no_data_and_pairs_are_not_halved():
    estimates = {"similarity": np.array([0, 0.2, 0.9, 1, 0.1, 0.3])}
    for figure in (plot_distances(DISSIMILARITY, LABEL, {"configured": 0.5}), plot_reliability(estimates, LABEL)):
        figure.canvas.draw()
        axis = figure.axes[0]
        assert axis.get_legend().get_window_extent().y0 >= axis.get_window_extent().y1
        assert all(tick == round(tick) for tick in figure.axes[-1].get_yticks())


def test_curves_name_the_area_that_a_loop_over_pairs_gives():
    similar, dissimilar = DISSIMILARITY[LABEL == 0], DISSIMILARITY[LABEL == 1]
    auc = np.mean([b > a for a in similar for b in dissimilar])
    z, classes = torch.tensor([[0.0], [1.0], [5.0], [7.0], [10.0]]), np.array(["a", "a", "b", "b", "c"])
    split = SplitDistances(None, z, classes, Pairs(None, None, LABEL), DISSIMILARITY, None)
    left, right, log = plot_curves(split).axes
    assert legend(left)[0] == f"AUC {auc:.3f}"
    assert right.lines[1].get_ydata()[0] == 0.5  # chance: the share of dissimilar pairs
    # Of 8 pairs of two classes, 7 to 10 and 1 to 5 are the nearest, behind both pairs of one class, 0 to 1 and 5 to 7.
    rates, found = log.lines[0].get_data()
    assert (rates[0], rates[-1]) == pytest.approx((1 / 8, 1)) and set(found) == {1.0} and log.get_xscale() == "log"
    assert legend(log)[0] == "10 pairs"


def test_reliability_shows_the_share_of_one_class_among_pairs_of_like_estimate():
    estimates = {
        "similarity": np.array([0.11, 0.13, 0.16, 0.72, 0.78, 1.0]),
        "probability": np.array([0.0, 0.51, 0.52, 0.54, 0.55, 0.58]),
    }
    upper, lower = plot_reliability(estimates, np.array([1, 1, 0, 0, 1, 0])).axes
    _, similarity, probability = upper.lines
    assert similarity.get_xdata() == pytest.approx([0.4 / 3, 2.5 / 3])  # two bins of three
    assert probability.get_xdata() == pytest.approx([1.03 / 3, 1.67 / 3])
    assert all(line.get_ydata() == pytest.approx([1 / 3, 2 / 3]) for line in (similarity, probability))
    brier = (0.11**2 + 0.13**2 + 0.84**2 + 0.28**2 + 0.78**2 + 0) / 6
    assert legend(upper)[0] == f"similarity: Brier {brier:.3f}" and len(legend(upper)) == 2
    assert max(lower.patches[0].get_xy()[:, 1]) == 3 and max(lower.patches[1].get_xy()[:, 1]) == 5


@pytest.mark.parametrize("pairs, bins", [(60, 3), (1000, 10)])
def test_bins_of_reliability_hold_equally_many_pairs(pairs, bins):
    values = np.random.default_rng(0).beta(0.1, 0.1, pairs)  # nearly all near 0 and 1
    line = plot_reliability({"similarity": values}, np.arange(pairs) % 2).axes[0].lines[1]
    expected = [part.mean() for part in np.split(np.sort(values), bins)]
    assert line.get_xdata() == pytest.approx(np.array(expected))


def test_interventions_show_each_ranking_with_its_area():
    rankings = {
        "map": {"deletion": np.array([1.0, 0, 0]), "insertion": np.array([0.0, 1, 1])},
        "random": {"deletion": np.array([1, 0.5, 0]), "insertion": np.array([0, 0.5, 1])},
    }
    figure = plot_interventions(rankings)
    deletion, insertion = figure.axes
    figure.canvas.draw()
    for axis in figure.axes:  # no legend reaches down to a curve
        assert axis.transData.inverted().transform(axis.get_legend().get_window_extent())[0, 1] > 1
    assert legend(deletion) == ["map: area 0.25", "random: area 0.50"]
    assert legend(insertion) == ["map: area 0.75", "random: area 0.50"]
    assert deletion.lines[0].get_xdata().tolist() == [0, 50, 100]


def test_class_similarity_and_embedding_show_every_class():
    names = [f"class {k}" for k in range(13)]
    axis = plot_class_similarity(pd.DataFrame(np.eye(13), names, names)).axes[0]
    assert len(axis.texts) == 13 * 13
    embeddings = torch.randn(26, 4, generator=torch.Generator().manual_seed(0))
    assert legend(plot_embedding(embeddings, names * 2).axes[0]) == names


def test_a_row_of_crops_and_a_bar_for_each_group():
    crops = [[Image.new("RGB", (20, 10))] * 3, [Image.new("RGB", (10, 10))]]
    table = pd.DataFrame({"cost": [0.2, -0.1], "low": [0.1, -0.2], "high": [0.3, 0.0], "suspect": [True, False]})
    figure = show_groups(crops, table.set_axis([1, 2]))
    *panels, bars = figure.axes
    assert [len(panel.images) for panel in panels] == [1, 1, 1, 1, 0, 0]
    assert [bar.get_width() for bar in bars.patches] == [0.2, -0.1]
    assert [panels[k].get_title(loc="left") for k in (0, 3)] == ["group 1, suspect", "group 2"]
