from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from planted import SIZE, SeesRed, patch_measurements, planted_images
from samples import colour_config
from sklearn.metrics import roc_auc_score

from utils.evaluate import reliance
from utils.evaluate.reliance import (
    Reliance,
    at_random_places,
    aucs,
    effects_of,
    embeddings_without,
    measure_reliance,
    reliance_of,
    shares_of,
)
from utils.images.cache import StoredImages
from utils.images.places import BOX
from utils.models import every_pair
from utils.system.errors import DataError

LABELS = np.array(["a", "a", "b", "b", "b"])
Z = torch.tensor([[0.0, 0], [1, 0], [4, 0], [5, 1], [2.2, 0.5]])


def test_a_planted_square_is_the_first_suspect_and_removing_it_costs_what_it_gave(monkeypatch):
    patch_measurements(monkeypatch)
    images, labels, corners = planted_images(80, 0.9)
    found = measure_reliance(SeesRed(), images, labels, seed=0, verbose=False)
    first = found.table.loc[1]
    planted = {i for i, corner in enumerate(corners) if corner}
    members = found.regions[found.regions.group == 1]
    assert first.suspect and first.relied and first["class"] == "b" and first.purity == 1 and first.gap > 0.5
    assert set(members.image) == planted and (members.effect > 0).all()
    assert first["AUC before"] > 0.85 and first["AUC without"] < 0.6 < first["AUC random"]
    assert "suspect: 100% of its" in first.finding and f"{first['AUC without']:.3f} without it" in first.finding
    assert not found.table.suspect[1:].any() and found.table.share.sum() <= 1
    assert found.without.shape == (len(found.table), 80, 2)
    again = measure_reliance(SeesRed(), images, labels, seed=0, verbose=False)
    pd.testing.assert_frame_equal(found.table, again.table)


def test_the_fill_itself_does_not_tell_the_class(monkeypatch):
    class SeesSmooth(SeesRed):
        """z = the share of pixels that equal their right neighbour, as in the square and its fill, but not around."""

        def embed(self, batch):
            smooth = (batch[:, 0].diff().abs() < 0.05).float().mean((1, 2))
            return torch.stack([20 * smooth, 0 * smooth], 1)

    patch_measurements(monkeypatch)
    images, labels, _ = planted_images(80, 0.9)
    first = measure_reliance(SeesSmooth(), images, labels, seed=0, verbose=False).table.loc[1]
    assert first.purity == 1 and first["AUC before"] > 0.75 and first["AUC without"] < 0.6


def test_what_the_fill_of_other_images_looks_like_is_found_by_the_second_comparison(monkeypatch):
    class SeesSmoothEdge(SeesRed):
        """z = the share of the first columns' pixels that equal the next, as in a plain edge and in what fills one."""

        def embed(self, batch):
            smooth = (batch[:, 0, :, :8].diff().abs() < 0.05).float().mean((1, 2))
            return torch.stack([20 * smooth, 0 * smooth], 1)

    images, labels, _ = planted_images(80, 0)
    plain = np.flatnonzero(labels == "b")[:36]
    images[plain, :, :, :8] = 110
    rows = pd.DataFrame([(i, 0, 0, 64, 0, 8) for i in plain], columns=["image", "group", *BOX])
    groups = SimpleNamespace(find=lambda features, size: rows, gap=[0.5], rest=0.0)
    patch_measurements(monkeypatch)
    monkeypatch.setattr(reliance, "find_groups", lambda *args: groups)
    first = measure_reliance(SeesSmoothEdge(), images, labels, seed=0, verbose=False).table.loc[1]
    assert first["AUC before"] > 0.85 and first["AUC without"] < 0.6  # all edges are plain, or look so
    assert first.suspect and first["AUC random"] > 0.8


def test_nothing_planted_is_no_suspect(monkeypatch):
    patch_measurements(monkeypatch)
    images, labels, _ = planted_images(40, 0)
    table = measure_reliance(SeesRed(), images, labels, seed=0, verbose=False).table
    assert not table.suspect.any() and table.finding.str.startswith("seen, but not relied on").any()


def test_what_was_measured_is_kept_for_the_same_network_and_images(tmp_path, monkeypatch):
    patch_measurements(monkeypatch)
    images, labels, _ = planted_images(40, 0.9)
    config, measured = colour_config(tmp_path, tmp_path, hyperparameters={"verbose": False}), []
    monkeypatch.setattr(reliance, "measure_reliance", lambda *args: measured.append(1) or measure_reliance(*args))
    stored, model = StoredImages(images.numpy(), np.arange(40), np.arange(40)), SeesRed()
    first, again = (reliance_of(config, model, stored, labels) for _ in range(2))
    assert measured == [1]
    for name in ("table", "regions"):
        pd.testing.assert_frame_equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.without, again.without) and first.numbers == again.numbers
    features = [*reliance.features_of_places(images)]
    pd.testing.assert_frame_equal(first.groups.find(features, SIZE), again.groups.find(features, SIZE))
    stored.checksums[3] = 99  # another picture
    reliance_of(config, model, stored, labels)
    model.head[2].bias.data += 1  # another network
    reliance_of(config, model, stored, labels)
    assert len(measured) == 3
    path = config.outputs_path / "search" / reliance.KEPT
    assert Reliance.load(path, model.digest(reliance.FORMAT)) and not Reliance.load(path, "of another network")
    path.write_bytes(path.read_bytes()[:-1000])
    assert Reliance.load(path, model.digest(reliance.FORMAT)) is None


@pytest.mark.parametrize("count, label", [(8, None), (20, "a")])
def test_too_little_to_say_anything_is_an_error(count, label):
    images, labels, _ = planted_images(count, 1)
    with pytest.raises(DataError, match=f"evidence: {count} test images of {1 if label else 2} class"):
        measure_reliance(SeesRed(), images, [label] * count if label else labels, seed=0, verbose=False)


def test_only_images_with_regions_are_embedded_again():
    model, (images, *_) = SeesRed(), planted_images(4, 1)
    before = torch.full((4, 2), 7.0)
    regions = pd.DataFrame([(1, 0, 64, 0, 64), (3, 0, 64, 0, 64)], columns=["image", *BOX])
    after = embeddings_without(model, images, before, regions, lambda batch, inside: batch * ~inside)
    assert torch.equal(after[::2], before[::2]) and not after[1::2].any()


def test_regions_at_random_places_have_the_same_sizes_and_lie_inside():
    regions = pd.DataFrame([(i, 0, 3 + i, 0, 10) for i in range(60)], columns=["image", *BOX])
    moved = at_random_places(regions, (64, 12), np.random.default_rng(0))
    assert (moved.bottom - moved.top == regions.bottom).all() and (moved.right - moved.left == 10).all()
    assert moved.top.min() >= 0 and moved.bottom.max() <= 64 and set(moved.left) == {0, 1, 2}
    assert moved.top.nunique() > 10 and (regions.top == 0).all()


def test_an_images_effect_is_shared_by_area():
    regions = pd.DataFrame([(1, 0, 2, 0, 3), (1, 5, 6, 0, 2), (4, 0, 9, 0, 9)], columns=["image", *BOX])
    assert shares_of(regions).tolist() == [6 / 8, 2 / 8, 1]


def test_an_effect_is_the_change_of_the_mean_squared_distances():
    after = Z + torch.tensor([[0.5, 0.2]])
    found = effects_of(Z, after, LABELS, Z, LABELS)
    for i, value in enumerate(found):
        distances = [((z - Z) ** 2).sum(1).numpy() for z in (Z[i], after[i])]
        gaps = [d[LABELS != LABELS[i]].mean() - d[LABELS == LABELS[i]].mean() for d in distances]
        assert value == pytest.approx(gaps[0] - gaps[1], abs=1e-5)


def test_the_auc_of_a_resample_is_that_of_its_repeated_images():
    drawn = np.array([[1, 1, 1, 1, 1], [2, 1, 0, 1, 1]])
    for value, times in zip(aucs(every_pair(Z, LABELS), drawn), drawn):
        i, j = np.triu_indices(5, 1)
        weights = times[i] * times[j]
        expected = roc_auc_score(LABELS[i] != LABELS[j], (Z[i] - Z[j]).norm(dim=1), sample_weight=weights)
        assert value == pytest.approx(expected)
