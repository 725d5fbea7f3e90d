from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import network_images, trained_network

from utils.evaluate.agreement import agreement_table, effects_on_pairs
from utils.explain.occlusion import correlation, region_sums
from utils.explain.removal import REMOVALS, blur
from utils.Grad_CAM import explain, explain_pairs

pytestmark = pytest.mark.usefixtures("exact")


def test_a_cells_effect_on_a_pair_is_that_of_the_full_network():
    model, batch = trained_network(), torch.cat(network_images())[:2]
    blurred = blur(batch)
    found = effects_on_pairs(model, batch, [0], [1], {"blurred": blurred}, grid=4)["blurred"]
    assert found.shape == (2, 16)
    changed = batch.clone()
    changed[1, :, 6:12, 20:30] = blurred[1, :, 6:12, 20:30]  # second row, third column of 24 x 40 pixels
    with torch.no_grad():
        z, after = model.embed(batch), model.embed(changed)[1]
    expected = (after - z[0]).square().sum() - (z[1] - z[0]).square().sum()
    assert found[1, 6].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-6) and expected.abs() > 1e-5


def test_the_measured_map_agrees_best_and_a_random_one_not_at_all():
    model, batch = trained_network(), torch.cat(network_images())
    first, second = [0, 1, 2, 3, 0, 5], [4, 5, 6, 7, 1, 2]
    measured = explain_pairs(model, batch, first, second)
    random = replace(measured, raw=torch.randn(measured.raw.shape, generator=torch.Generator().manual_seed(0)))
    table = agreement_table(model, batch, first, second, {"measured": measured, "random": random})
    assert list(table.columns) == list(REMOVALS) and len(table) == 3
    assert table.loc["measured", "blurred"] > 0.6 and abs(table.loc["random", "blurred"]) < 0.25
    assert table.iloc[-1]["blurred"] == pytest.approx(1) and table.iloc[-1].iloc[1] < 1


def test_the_sign_of_the_decision_does_not_matter():
    model, batch = trained_network(), torch.cat(network_images())
    scores = []
    for threshold in (-1.0, 2.0):  # all dissimilar, all similar
        model.threshold = threshold
        explanation = explain(model, batch[:2], batch[2:4])
        scores.append(agreement_table(model, batch, [0, 1], [2, 3], {"measured": explanation}))
    assert np.allclose(scores[0], scores[1])


def test_sums_over_regions_equal_a_loop():
    maps = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([[[0, 6, 0, 8], [1, 3, 2, 7], [5, 6, 7, 8]], [[0, 1, 0, 1], [2, 2, 0, 8], [0, 6, 3, 4]]])
    found = region_sums(maps, regions, (6, 8))
    for n in range(2):
        for r, (top, bottom, left, right) in enumerate(regions[n].tolist()):
            assert float(found[n, r]) == pytest.approx(float(maps[n, top:bottom, left:right].sum()), abs=1e-5)


def test_correlation_equals_numpys():
    a, b = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.numpy(), b.numpy())]
    assert np.allclose(correlation(a, b), expected)
    assert correlation(torch.ones(1, 4), torch.randn(1, 4)).isnan()
