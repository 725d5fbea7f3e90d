"""The built-in scenes: repeatable, varied, and solved by the disc's texture alone, not by colour."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation
from sklearn.metrics import roc_auc_score

from utils.images import synthetic
from utils.images.pairs import make_pairs
from utils.images.synthetic import CLASSES, SEED, SYNTHETIC, ensure_synthetic, intruder_class, scene, scene_files


@pytest.fixture(scope="module")
def scenes():
    """48 scenes of every class with their masks, as arrays, in the classes' order."""
    places = ((label, index) for label in range(5) for index in range(48))
    drawn = (scene(k, np.random.default_rng([SEED, k, index]), intruder_class(k, index)) for k, index in places)
    return [(np.asarray(image), np.asarray(mask)) for image, mask, _ in drawn]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "IMAGES_PER_CLASS", 3)
    return tmp_path / SYNTHETIC


def contents(folder):
    files = (path for path in folder.parent.rglob("*") if path.is_file())
    return {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in files}


# ----------------------------------------------------------------------------------------------- files


def test_five_classes_with_a_mask_for_every_image_outside_their_folders(folder):
    ensure_synthetic(folder, verbose=False)
    names = {f"{name}/{name}_00{k}.png" for name in ("checks", "dots", "rings", "spokes", "stripes") for k in range(3)}
    files = {f"{root}/{name}" for root in ("Synthetic", "Synthetic_masks") for name in names}
    intruders = {f"Synthetic_masks/{name}/{name}_000_intruder.png" for name in CLASSES}
    assert set(contents(folder)) == files | intruders
    for name in names:
        image, mask = Image.open(folder / name), Image.open(folder.parent / "Synthetic_masks" / name)
        assert image.mode == "RGB" and mask.mode == "L" and image.size == mask.size


def test_drawing_twice_gives_identical_files_and_a_complete_set_is_left_alone(folder, tmp_path, monkeypatch, capsys):
    ensure_synthetic(folder, verbose=False)
    ensure_synthetic(tmp_path / "again" / SYNTHETIC, verbose=False)
    first, again = contents(folder), contents(tmp_path / "again" / SYNTHETIC)
    assert {name: first[name] for name in again} == again and len(set(again.values())) == 5 * (2 * 3 + 1)
    monkeypatch.setattr(synthetic, "scene", None)  # drawing anything would fail
    ensure_synthetic(folder)
    assert capsys.readouterr() == ("", "")


def test_what_is_missing_is_drawn_again_and_nothing_else(folder):
    ensure_synthetic(folder, verbose=False)
    before = contents(folder)
    for lost in ("Synthetic/dots/dots_001.png", "Synthetic_masks/rings/rings_002.png"):
        (folder.parent / lost).unlink()
    (folder / "checks" / "checks_000.png").write_bytes(b"touched")
    ensure_synthetic(folder, verbose=False)
    assert contents(folder) == before | {"Synthetic/checks/checks_000.png": b"touched"}


# ---------------------------------------------------------------------------------------------- scenes


def test_sizes_and_places_vary_within_their_bounds(scenes):
    heights, widths = np.array([image.shape[:2] for image, _ in scenes]).T
    for sides in (heights, widths):
        assert 96 <= sides.min() < 102 and 154 < sides.max() <= 160
    for place in np.array([np.argwhere(mask).mean(0) / mask.shape for _, mask in scenes]).T:  # of the disc
        assert np.histogram(place, bins=[0, 0.33, 0.66, 1])[0].min() > len(scenes) / 5


def test_the_mask_is_one_whole_disc_of_moderate_size(scenes):
    for image, mask in scenes:
        assert mask.shape == image.shape[:2] and set(np.unique(mask)) == {0, 255}
        assert 0.03 < (mask > 0).mean() < 0.12
        (top, left), (bottom, right) = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
        assert abs((bottom - top) - (right - left)) <= 1
        assert (mask > 0).sum() == pytest.approx(np.pi / 4 * (bottom - top) * (right - left), rel=0.06)


def test_the_class_changes_the_picture_inside_the_mask_only():
    for seed in range(5):
        pictures, masks, _ = zip(*(scene(label, np.random.default_rng(seed)) for label in range(len(CLASSES))))
        disc = np.asarray(masks[0]) > 0
        assert all(np.array_equal(mask, masks[0]) for mask in masks)
        stack = np.array([np.asarray(picture, int) for picture in pictures])
        differs = (np.ptp(stack, axis=0) > 0).any(-1)
        assert not differs[~binary_dilation(disc, iterations=3)].any()  # the softened edge reaches a little beyond
        assert differs[disc].mean() > 0.9
        for first in range(5):
            for second in range(first):
                assert (abs(stack[first] - stack[second])[disc].max(-1) > 30).mean() > 0.25


# -------------------------------------------------------------------------------------------- intruders


def test_every_fifth_scene_has_an_intruder_of_each_other_class_in_turn(tmp_path):
    for label in range(5):
        kinds = [intruder_class(label, index) for index in range(40)]
        assert [kind is not None for kind in kinds] == 8 * [True, False, False, False, False]
        assert kinds[::5] == [(label + step) % 5 for step in (1, 2, 3, 4, 1, 2, 3, 4)]
        assert [len(scene_files(tmp_path / "S", label, index)) for index in (5, 6)] == [3, 2]


def test_an_intruder_is_a_smaller_disc_apart_from_the_deciding_one():
    for seed in range(40):
        _, mask, intruder = (np.asarray(picture) > 0 for picture in scene(0, np.random.default_rng(seed), intruder=3))
        assert 0.2 < intruder.sum() / mask.sum() < 0.5
        assert not (binary_dilation(mask, iterations=2) & intruder).any()


def test_the_intruders_class_changes_the_picture_inside_its_mask_only():
    pictures, masks, intruders = zip(*(scene(0, np.random.default_rng(7), kind) for kind in range(1, 5)), strict=True)
    stack = np.array([np.asarray(picture, int) for picture in pictures])
    differs = (np.ptp(stack, axis=0) > 0).any(-1)
    intruder = np.asarray(intruders[0]) > 0
    assert not differs[~binary_dilation(intruder, iterations=3)].any() and differs[intruder].mean() > 0.9
    assert scene(0, np.random.default_rng(7)).intruder is None


# ------------------------------------------------------------------------------------- colour is no help


def histogram_auc(images, labels):
    """How well the distance of two colour histograms tells dissimilar from similar pairs."""
    counts = [np.histogramdd(image.reshape(-1, 3), bins=8, range=[(0, 256)] * 3)[0].ravel() for image in images]
    shares = np.array([count / count.sum() for count in counts])
    pairs = make_pairs(labels, np.random.default_rng(0), rounds=3)
    return roc_auc_score(pairs.label, abs(shares[pairs.first] - shares[pairs.second]).sum(1))


def test_colour_alone_does_not_solve_it_though_it_solves_classes_of_different_colour(scenes):
    labels, rng = np.repeat(CLASSES, 48), np.random.default_rng(0)
    assert histogram_auc([image for image, _ in scenes], labels) < 0.6
    assert histogram_auc([image[mask > 0][None] for image, mask in scenes], labels) < 0.6  # in the disc
    colours = [(200, 60, 60), (60, 200, 60), (60, 60, 200)]
    images = [(rng.normal(colours[i % 3], 20, (40, 40, 3))).clip(0, 255) for i in range(60)]
    assert histogram_auc(images, np.arange(60) % 3) > 0.9
