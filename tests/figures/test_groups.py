import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from utils.figures.groups import show_groups


def test_a_row_of_crops_and_a_bar_for_each_group():
    crops = [[Image.new("RGB", (20, 10))] * 3, [Image.new("RGB", (10, 10))]]
    table = pd.DataFrame({"cost": [0.2, -0.1], "low": [0.1, -0.2], "high": [0.3, 0.0], "suspect": [True, False]})
    figure = show_groups(crops, table.set_axis([1, 2]))
    figure.draw_without_rendering()
    *panels, bars = figure.axes
    assert [len(panel.images) for panel in panels] == [1, 1, 1, 1, 0, 0]
    width, height = panels[0].bbox.width, panels[0].bbox.height
    assert abs(width / height - 2) < 0.05  # at its own aspect ratio
    assert [bar.get_width() for bar in bars.patches] == [0.2, -0.1]
    assert [panels[k].get_title(loc="left") for k in (0, 3)] == ["group 1, suspect", "group 2"]
    plt.close(figure)
