from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image
from samples import config_in, noise

from utils.evaluate.audit import audit
from utils.explain.occlusion import Match
from utils.explain.removal import WhatIf
from utils.figures.drawing import overlay, short
from utils.figures.style import COLORMAP, OPACITY
from utils.Grad_CAM import Explanation
from utils.images.frame import Box
from utils.imshow import (
    show_explanation,
    show_gallery,
    show_images,
    show_matches,
    show_near_duplicates,
    show_similarity_matrix,
    show_what_if,
)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture
def wide():
    return noise(30, 90)


def explanation(similar=True, empty=False):
    maps = torch.zeros(1, 2, 8, 8)
    maps[..., 2, 5] = 1
    return Explanation(
        distance=torch.tensor([0.5]),
        similarity=torch.tensor([0.75]),
        is_similar=torch.tensor([similar]),
        factual=maps,
        counterfactual=torch.zeros(1, 2, 8, 8) if empty else maps,
        raw=torch.zeros(1, 2, 4, 4),
        strength=torch.tensor([[[1.0, 0.0 if empty else 0.25]] * 2]),
        empty=torch.tensor([[[False, empty]] * 2]),
    )


def outlines(region):
    """The lines around a map that is 1 in a region, bool (H, W), in points (x, y) of the image."""
    image, found = Image.new("RGB", region.shape[::-1]), explanation()
    maps = torch.from_numpy(region).float().expand(1, 2, -1, -1)
    axis = show_explanation((image, image), replace(found, factual=maps)).axes[1]
    return [points for lines in axis.collections for points in lines.get_paths()[0].to_polygons(closed_only=False)]


def test_the_outline_of_a_region_in_steps_cuts_the_corners():
    """Four steps of a map's cells (8 of 256 pixels): 64 pixels along the steps, 45 along the diagonal."""
    region = np.zeros((256, 256), bool)
    for step in range(4):
        region[100 + 8 * step : 108 + 8 * step, 100 : 108 + 8 * step] = True
    (line,) = outlines(region)
    length = np.hypot(*np.diff(line, axis=0).T).sum()
    assert 94 < length < 114  # of 128, or 109
    assert np.all(line > 99) and np.all(line < 132)


def test_an_image_of_a_single_row_or_column_has_no_outline_and_is_shown():
    for shape in ((1, 256), (256, 1)):
        region = np.zeros(shape, bool)
        region[:20, :20] = True
        assert outlines(region) == []


def test_a_region_smaller_than_a_cell_is_outlined_too():
    region = np.zeros((256, 256), bool)
    region[100:102, 50:52] = True
    (line,) = outlines(region)
    assert line.min(axis=0) == pytest.approx([49.5, 99.5]) and line.max(axis=0) == pytest.approx([51.5, 101.5])


def test_full_evidence_is_the_colormaps_top_at_full_opacity_on_grey_and_without_any_the_image_shows_plainly(wide):
    top = 255 * np.array(COLORMAP(1.0)[:3])
    expected = (1 - OPACITY) * np.asarray(wide.convert("L"), dtype=float)[..., None] + OPACITY * top
    assert np.abs(overlay(wide, torch.ones(7, 7)) - expected).max() <= 0.5
    assert top[0] > top[2]  # yellow, not blue
    assert np.array_equal(overlay(wide, torch.zeros(7, 7)), np.asarray(wide))


def test_the_map_lies_where_the_evidence_is_at_the_images_own_aspect_ratio(wide):
    heatmap = torch.zeros(8, 8)
    heatmap[1, 6] = 1
    changed = np.abs(overlay(wide, heatmap).astype(int) - np.asarray(wide)).sum(2)
    y, x = np.nonzero(changed)
    assert changed.shape == (30, 90)
    assert y.mean() == pytest.approx(1.5 / 8 * 30, abs=2) and x.mean() == pytest.approx(6.5 / 8 * 90, abs=4)


@pytest.mark.parametrize("similar, words", [(True, ["similar", "dissimilar"]), (False, ["dissimilar", "similar"])])
def test_six_panels_named_by_the_decision(wide, similar, words):
    figure = show_explanation((wide, wide.rotate(90, expand=True)), explanation(similar), ("a.png", "b.png"))
    panels = figure.axes[:6]
    assert [axis.images[0].get_array().shape[:2] for axis in panels] == [(30, 90)] * 3 + [(90, 30)] * 3
    assert [axis.get_title() for axis in panels[1:3]] == [
        f"factual: for “{words[0]}”",
        f"counterfactual: for “{words[1]}”",
    ]
    assert figure.get_suptitle() == f"{words[0].capitalize()}: similarity 0.75"
    assert [panels[0].get_ylabel(), panels[3].get_ylabel()] == ["a.png", "b.png"]


PADDED = (Box(2, 6, 0, 8), Box(0, 8, 3, 5))  # a wide and a tall image in a frame of 8 x 8


def hot_spot(first, second):
    """An explanation with one hot position in the frame of each image."""
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0][first] = maps[0, 1][second] = 1
    return replace(explanation(), factual=maps, counterfactual=maps)


def changed(picture, original):
    return (np.asarray(picture) != np.asarray(original)).any(2)


def test_maps_of_padded_images_lie_on_the_images(wide):
    wide = wide.resize((80, 40))  # ten of its pixels for one of the frame
    tall = wide.transpose(Image.Transpose.ROTATE_90).resize((20, 80))
    pair = {"images": (wide, tall), "explanation": hot_spot((3, 6), (5, 4)), "names": ("a", "b"), "boxes": PADDED}
    panels = show_explanation(**pair).axes[:6], show_gallery([pair], "title").axes[:4]
    for drawn in ((panels[0][1], panels[0][4]), (panels[1][1], panels[1][3])):
        for axis, image, centre in zip(drawn, (wide, tall), ((14.5, 64.5), (54.5, 14.5))):  # pixels (row, column)
            there = np.array(np.nonzero(changed(axis.images[0].get_array(), image)))
            # The neighbours' centres, if they are on the image.
            first, last = (np.array(centre) - 10, np.array(centre) + 10)
            assert np.abs(there.min(1) - np.maximum(first, 0)).max() <= 1
            assert np.abs(there.max(1) - np.minimum(last, np.array(image.size[::-1]) - 1)).max() <= 1
    outside = show_explanation((wide, tall), hot_spot((1, 6), (5, 2)), boxes=PADDED).axes
    for axis, image in ((outside[1], wide), (outside[4], tall)):
        assert not changed(axis.images[0].get_array(), image).any()


def test_what_if_blurs_the_region_of_the_original_and_says_the_change(wide):
    wide = wide.resize((80, 40))
    regions = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    regions[:, 0, 1:4, 6:] = True
    regions[:, 1, 6:] = True
    after, empty = np.array([[0.25, 0.8], [0.8, 0.9]]), np.zeros((2, 2), dtype=bool)
    figure = show_what_if((wide, wide), WhatIf(0.8, after, {}, regions, empty, after < 0.5, (PADDED[0], None)))
    blurred = [np.argwhere(changed(axis.images[0].get_array(), wide)) for axis in figure.axes]
    # Of the frame's 8 rows, image 1 fills 2 to 5, image 2 all: ten of its rows for one, or five.
    assert [part.min(0).tolist() for part in (blurred[0], *blurred[2:])] == [[0, 60], [5, 60], [30, 0]]
    assert [part.max(0).tolist() for part in (blurred[0], *blurred[2:])] == [[19, 79], [19, 79], [39, 79]]
    assert len(blurred[0]) > 0.95 * 20 * 20 and not len(blurred[1])
    assert figure.axes[0].get_title() == "factual region blurred\nsimilarity 0.80 → 0.25\nthe decision flips"
    assert figure.axes[3].get_title() == "counterfactual region blurred\nsimilarity 0.80 → 0.90"


def test_weak_evidence_is_drawn_weaker_than_the_pairs_strongest(wide):
    panels = [axis.images[0].get_array() for axis in show_explanation((wide, wide), explanation()).axes[:6]]
    maps = torch.zeros(8, 8)
    maps[2, 5] = 1
    for row in (0, 3):
        assert np.array_equal(panels[row + 1], overlay(wide, maps))
        assert np.array_equal(panels[row + 2], overlay(wide, maps / 4))


def test_matching_regions_are_circled_where_they_lie(wide):
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    matches = [Match((0.5, 0.25), (0.1, 0.5), 2.0), Match((0.9, 0.9), (0.9, 0.1), 1.0)]
    left, right = show_matches((wide, tall), matches, ("a", "b")).axes
    for axis, name, centre in ((left, "a", (0.25 * 90 - 0.5, 0.5 * 30 - 0.5)), (right, "b", (14.5, 8.5))):
        assert [text.get_text() for text in axis.texts] == ["1", "2"] and axis.get_title() == name
        assert np.allclose(axis.patches[0].center, centre)
    assert all(left.patches[k].get_edgecolor() == right.patches[k].get_edgecolor() for k in (1, 3))
    assert left.patches[1].get_edgecolor() != left.patches[3].get_edgecolor()
    assert show_matches((wide, tall), []).axes[0].texts[0].get_text() == "no matching regions"


@pytest.mark.parametrize("empty, strength, words", [(True, 0.0, "no such evidence"), (False, 0.1, "hardly any")])
def test_an_empty_map_and_one_too_weak_to_be_seen_say_so(wide, empty, strength, words):
    weak = replace(explanation(empty=empty), strength=torch.tensor([[[1.0, strength]] * 2]))
    said = [[text.get_text() for text in axis.texts] for axis in show_explanation((wide, wide), weak).axes[:6]]
    assert said == [[], [], [words]] * 2


def test_similarity_matrix_shows_every_image_along_both_edges_as_long_as_they_fit(wide):
    axis = show_similarity_matrix(np.eye(3), [wide] * 3, ["a", "b", "c"]).axes[0]
    assert sum(isinstance(artist, AnnotationBbox) for artist in axis.artists) == 6
    assert [text.get_text() for text in axis.texts[:9]] == [f"{number:.2f}" for number in np.eye(3).ravel()]
    figure = show_similarity_matrix(np.eye(41), [wide] * 41, ["a"] * 41)
    assert max(figure.get_size_inches()) < 20 and not figure.axes[0].artists


def test_grids_hold_all_images_under_their_titles(wide):
    figure = show_images([wide] * 7, list("abcdefg"))
    assert [axis.get_title() for axis in figure.axes if axis.images] == list("abcdefg")
    assert all(axis.images for axis in show_images([wide] * 3, list("abc")).axes)  # no empty columns
    assert len(show_images([wide] * 4, list("abcd"), columns=2).axes) == 4


def test_near_duplicates_stand_in_a_row_with_their_conflicts(colour_folder):
    for source, copy in (("red/0", "red/1"), ("red/0", "red/2"), ("red/5", "blue/5")):
        (colour_folder / f"{copy}.png").write_bytes((colour_folder / f"{source}.png").read_bytes())
    config = config_in(colour_folder)
    found = audit(config)
    axes = show_near_duplicates(found, config).axes
    titles = [axis.get_title().replace("\n", " ") for axis in axes]
    assert titles[:3] == ["blue (conflicting) 5.png", "red (conflicting) 5.png", ""]
    assert titles[3:] == ["red 0.png", "red 1.png", "red 2.png"]
    assert np.array_equal(axes[3].get_images()[0].get_array(), Image.open(colour_folder / "red/0.png"))
    assert len(show_near_duplicates(found, config, most=1).axes) == 2
    assert show_near_duplicates(replace(found, groups=()), config) is None


def test_long_names_are_shortened_beside_their_panels():
    image = Image.new("RGB", (8, 8))
    figure = show_explanation((image, image), explanation(), names=("a" * 30 + "b" * 10, "short"))
    assert [figure.axes[k].get_ylabel() for k in (0, 3)] == ["…" + "a" * 15 + "b" * 10, "short"]
    assert short("0123456789", 6) == "…56789" and short("0123456789", 10) == "0123456789"
    wide = "\N{CJK UNIFIED IDEOGRAPH-82B1}"  # two letters wide
    assert short(wide * 3, 6) == wide * 3 and short("ab" + wide * 3, 6) == "…" + wide * 2
    low = Image.new("RGB", (600, 330))
    figure = show_explanation((low, low), explanation(), names=("14014595475_5892fcda51_n", "a" * 40))
    labels = [axis.yaxis.label for axis in figure.axes]
    labels[0].figure.draw_without_rendering()
    upper, lower = (labels[k].get_window_extent() for k in (0, 3))
    assert upper.y0 > lower.y1, "they run into each other"
