import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from utils.evaluate.scores import SplitDistances
from utils.figures.plots import plot_class_counts, plot_interventions, plot_learning_curves, plot_pairs, show_groups
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
    assert len({bars[0].get_hatch() for bars in axis.containers}) == 3  # legible in grey


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


def pairs_on_a_line():
    """Five images of three classes on a line: of all 10 pairs, the two of one class are the nearest."""
    z, labels = torch.tensor([[0.0], [1.0], [5.0], [7.0], [10.0]]), np.array([*"aabbc"])
    return SplitDistances(None, z, labels, Pairs(None, None, LABEL), DISSIMILARITY, None)


def test_histograms_count_every_pair_also_beyond_the_margin():
    left, _ = plot_pairs(pairs_on_a_line(), {"configured": 0.3}, margin=10).axes
    for steps, similarity in zip(left.patches, ([0.9, 0.7, 0.3], [0.6, 0.1, -0.4])):
        (x, y), width = steps.get_xy().T, 1.4 / 30  # of a bin
        assert abs(np.trapezoid(y, x)) == pytest.approx(3 * width)  # three pairs, one in a bin
        assert [min(x[y > 0]), max(x[y > 0])] == pytest.approx([min(similarity), max(similarity)], abs=width)
    assert left.patches[1].get_hatch() and not left.patches[0].get_hatch()  # legible in grey


def test_a_threshold_is_a_line_and_the_point_of_its_false_matches():
    left, right = plot_pairs(pairs_on_a_line(), {"configured": 0.3, "strict": 0.15}, margin=10).axes
    assert [line.get_xdata()[0] for line in left.lines] == pytest.approx([0.7, 0.85])  # of the similarity
    assert "configured: 0.70" in legend(left)
    curve, chance, configured, strict = right.lines
    # 8 pairs of two classes. Below a distance of 3 lie both of one class, below 1.5 one of these.
    assert curve.get_xdata()[0] == 1 / 8 and right.get_xscale() == "log" and legend(right)[0] == "all 10 pairs"
    assert (configured.get_xdata()[0], configured.get_ydata()[0]) == (1 / 8, 1)
    assert (strict.get_xdata()[0], strict.get_ydata()[0]) == (1 / 8, 0.5)
    assert curve.get_ydata()[-1] == 1 and chance.get_xdata().tolist() == chance.get_ydata().tolist()


def test_legends_cover_no_data_and_pairs_are_not_halved():
    pairs = plot_pairs(pairs_on_a_line(), {"configured": 0.5, "calibrated": 0.4}, 10)
    pairs.canvas.draw()
    for axis in pairs.axes:
        assert axis.get_legend().get_window_extent().y0 >= axis.get_window_extent().y1
    assert all(tick == round(tick) for tick in pairs.axes[0].get_yticks())


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


def test_a_row_of_crops_and_a_bar_for_each_group():
    crops = [[Image.new("RGB", (20, 10))] * 3, [Image.new("RGB", (10, 10))]]
    table = pd.DataFrame({"cost": [0.2, -0.1], "low": [0.1, -0.2], "high": [0.3, 0.0], "suspect": [True, False]})
    figure = show_groups(crops, table.set_axis([1, 2]))
    *panels, bars = figure.axes
    assert [len(panel.images) for panel in panels] == [1, 1, 1, 1, 0, 0]
    assert [bar.get_width() for bar in bars.patches] == [0.2, -0.1]
    assert [panels[k].get_title(loc="left") for k in (0, 3)] == ["group 1, suspect", "group 2"]
