from dataclasses import replace

import numpy as np
import pytest
import torch
from samples import small_network
from toy import IMAGES1, IMAGES2, MARGINS_AFTER, MARGINS_BEFORE, SIZE, H, Toy, W, explanation_of, maps_of, naive_margins

from utils.evaluate import faithfulness
from utils.evaluate.faithfulness import area_under, check, check_table, compare_rankings, curves, signed_evidence
from utils.explain import removal
from utils.explain.removal import Interventions, pixel_ranks, randomly_moved
from utils.Grad_CAM import explain
from utils.Siamese import embedding_distance


@pytest.fixture
def to_black(monkeypatch):
    monkeypatch.setattr(removal, "blur", torch.zeros_like)


def effect_by_hand(patch):
    return torch.tensor(MARGINS_AFTER[patch]) - torch.tensor(MARGINS_BEFORE)[:, None]


def checked(factual, counterfactual, name="factual"):
    explanation = explanation_of(factual, counterfactual)
    return check(Interventions(Toy(), IMAGES1, IMAGES2), explanation, name, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "patch", "sign"), [("factual", "A", -1), ("counterfactual", "B", 1), ("counterfactual", "A", -1)]
)
def test_check_by_hand(to_black, name, patch, sign):
    maps = {"factual": maps_of("elsewhere"), "counterfactual": maps_of("elsewhere")} | {name: maps_of(patch)}
    effect, random = checked(**maps, name=name)
    assert torch.allclose(effect, effect_by_hand(patch), atol=1e-5) and (effect.sign() == sign).all()
    regions = randomly_moved(maps_of(patch).bool(), np.random.default_rng(0))
    expected = Interventions(Toy(), IMAGES1, IMAGES2).margins_after(regions) - torch.tensor(MARGINS_BEFORE)[:, None]
    assert torch.allclose(random, expected, atol=1e-5) and random.abs().mean() < 0.5 * effect.abs().mean()


@pytest.mark.parametrize("name", ["factual", "counterfactual"])
def test_a_map_beside_the_evidence_has_no_effect(to_black, name):
    """64 of 960 pixels speak: none is blurred beyond them, above all not B, the first in reading order."""
    maps = maps_of("elsewhere")
    assert torch.equal(checked(maps, maps, name)[0], torch.zeros(3, 2))


def test_check_blurs_a_tenth_of_the_image(to_black):
    # Rows 0, 1 and 16 pixels of row 2: B down to there.
    maps = torch.linspace(1, 0.001, H * W).view(SIZE).expand(3, 2, *SIZE)
    effect, _ = checked(maps, maps)
    # Lost; B is nearer to the partner's z than nothing is.
    b1, b2 = torch.tensor([[0.2, -1, -1], [-0.2, 0.5, 1]]) * 12 / 16
    expected = torch.stack([b1 * torch.tensor([1, -1, -1]), b2 * torch.tensor([-1, 1, 1])], 1) / 2
    assert torch.allclose(effect, expected, atol=1e-5)


def test_empty_maps_have_no_effect_to_speak_of(to_black):
    maps = maps_of("A").clone()
    maps[1, 0] = 0
    for values in checked(maps, maps_of("B")):
        assert values.isnan().tolist() == [[False, False], [True, False], [False, False]]


def test_curves_equal_a_naive_loop():
    maps = torch.randint(5, (3, 2, *SIZE), generator=torch.Generator().manual_seed(0)).float()
    result = curves(Interventions(Toy(), IMAGES1, IMAGES2), maps)
    for step in range(11):
        region = np.zeros((6, H * W), dtype=bool)
        for row, values in zip(region, maps.view(6, -1).tolist()):
            row[sorted(range(H * W), key=lambda i: (-values[i], i))[: 96 * step]] = True
        region = region.reshape(3, 2, *SIZE)
        assert result["deletion"][step] == pytest.approx(naive_margins(region).mean(), abs=1e-5)
        assert result["insertion"][step] == pytest.approx(naive_margins(~region).mean(), abs=1e-5)


@pytest.mark.parametrize(("curve", "area"), [([3, 3, 3], 3), ([1, 0], 0.5), ([1, 0, 0, 0, 0], 0.125), ([0, -1, 2], 0)])
def test_area_under_by_hand(curve, area):
    assert area_under(np.array(curve)) == pytest.approx(area)


@pytest.fixture(scope="module")
def judged():
    model = small_network(size=(16, 24))
    batch1, batch2 = torch.randn(2, 6, 3, 16, 24)
    with torch.no_grad():
        distance = embedding_distance(model.embed(batch1), model.embed(batch2))
    model.margin = 2 * float(distance.median() * 1.0001)  # half of the pairs are similar
    return explain(model, batch1, batch2), Interventions(model, batch1, batch2)


def test_the_check_table_counts_moves_in_the_right_direction(judged, monkeypatch):
    explanation, interventions = judged
    similar = explanation.is_similar[:, None].expand(-1, 2)
    changes = {"factual": torch.where(similar, -1.0, 1.0), "counterfactual": torch.where(similar, -1.0, 1.0)}
    changes["factual"][explanation.is_similar.nonzero()[0]] = torch.nan  # a pair without evidence
    monkeypatch.setattr(faithfulness, "check", lambda i, e, name, rng: (changes[name], -changes[name]))
    table = check_table(interventions, explanation, seed=0).set_index(["maps", "decision"])
    assert [*table.index] == [(maps, pairs) for maps in changes for pairs in ("similar", "dissimilar")]
    assert table.right.tolist() == [1, 0, 0, 1]
    assert table["random"].tolist() == (1 - table.right).tolist() and table.change.tolist() == [-1, 1, -1, 1]
    similar, dissimilar = (2 * int(chosen.sum()) for chosen in (explanation.is_similar, ~explanation.is_similar))
    assert table.number.tolist() == [similar - 2, dissimilar, similar, dissimilar]


def test_rankings_are_compared_from_the_untouched_to_the_fully_blurred_image(judged):
    explanation, interventions = judged
    rankings = compare_rankings(interventions, explanation)
    assert list(rankings) == ["map", "centred Gaussian", "random"]
    everything = torch.ones(6, 2, 16, 24, dtype=torch.bool)
    ends = [interventions.margins_before.mean().item(), interventions.margins_after(everything).mean().item()]
    for drawn in rankings.values():
        assert drawn["deletion"][[0, -1]].tolist() == pytest.approx(ends, abs=1e-5)
        assert drawn["insertion"][[-1, 0]].tolist() == pytest.approx(ends, abs=1e-5)
    assert len({tuple(drawn["deletion"].round(6)) for drawn in rankings.values()}) == 3


def test_pixels_are_ranked_from_what_speaks_for_the_decision_to_what_speaks_against_it(judged):
    explanation, _ = judged
    raw = torch.tensor([2.0, 1, -1, -1]).expand(6, 2, 4, 4)  # left for, right against
    evidence = signed_evidence(replace(explanation, raw=raw))
    ranks = pixel_ranks(evidence)[0, 0]
    assert evidence.shape == explanation.factual.shape
    assert ranks[:, 0].max() < ranks[:, 11].min() < ranks[:, 11].max() < ranks[:, -1].min()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_batch_size_bounds_what_is_embedded_at_once_and_changes_nothing(to_black, batch_size):
    toy, times = Toy(), 3
    interventions = Interventions(toy, IMAGES1.repeat(times, 1, 1, 1), IMAGES2.repeat(times, 1, 1, 1), batch_size)
    maps = maps_of("A", 3 * times)
    effect, _ = check(interventions, explanation_of(maps, maps), "factual", np.random.default_rng(0))
    curve = curves(interventions, maps + maps_of("B", 3 * times))["deletion"]
    expected = torch.tensor(MARGINS_AFTER["A"])
    assert torch.allclose(effect, (expected - torch.tensor(MARGINS_BEFORE)[:, None]).repeat(times, 1), atol=1e-5)
    assert curve[1] == pytest.approx(np.mean(MARGINS_AFTER["all"]), abs=1e-5)
    assert max(toy.seen) == min(batch_size, 9) and sum(toy.seen) == 9 * 2 * (1 + 2 + 2 * faithfulness.STEPS + 2)
