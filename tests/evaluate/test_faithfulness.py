import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from toy import (
    IMAGES1,
    IMAGES2,
    MARGINS_AFTER,
    MARGINS_BEFORE,
    PAIRS,
    SIZE,
    H,
    Toy,
    W,
    explanation_of,
    maps_of,
    naive_margins,
    network_images,
    trained_network,
)

from utils.evaluate import faithfulness
from utils.evaluate.faithfulness import (
    area_under,
    check,
    check_table,
    compare_rankings,
    curves,
    randomisation_check,
    rank_correlation,
    signed_evidence,
)
from utils.explain import removal
from utils.explain.removal import Interventions, pixel_ranks, randomly_moved
from utils.Grad_CAM import explain
from utils.Siamese import SiameseNetwork


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


@pytest.mark.parametrize("values", [1000, 2])
def test_rank_correlation_equals_scipys_without_constant_maps(values):
    """Of whole numbers below `values`: few ties, and many."""
    generator = torch.Generator().manual_seed(0)
    maps1 = (values * torch.rand(4, 2, 3, 5, generator=generator)).floor()
    maps2 = maps1 + torch.randn(maps1.shape, generator=generator).mul(0.7).round() ** 3
    maps1[1, 0], maps2[2, 1] = 0.1, -7.3
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(maps1.flatten(0, 1), maps2.flatten(0, 1))]
    expected = [spearmanr(a, b).statistic for a, b in pairs if len(a.unique()) > 1 < len(b.unique())]
    assert len(expected) == 6 and rank_correlation(maps1, maps2) == pytest.approx(np.mean(expected))
    assert math.isnan(rank_correlation(maps1, torch.full_like(maps1, 0.1)))


@pytest.mark.parametrize(("name", "size"), [("Conv4", SIZE), ("MobileNet", (32, 64))])
def test_maps_forget_with_the_network(name, size):
    """For a deep backbone too, whose activations would vanish with batch statistics of other weights: all maps
    constant, NaN."""
    model = trained_network(name, size)
    result = randomisation_check(model, *network_images(size))
    assert list(result) == ["none", "head", "head and backbone"] and result["none"] == 1
    assert all(-0.7 < result[part] < 0.7 for part in ("head", "head and backbone"))
    assert randomisation_check(model, *network_images(size)) == result


def test_maps_that_ignore_the_network_are_found_out(monkeypatch):
    """Though their sign is that of the decision, which changes."""
    usual, every, decisions = faithfulness.explain, torch.randn(PAIRS, 2, 6, 10), []

    def edges(model, *args):
        similar = usual(model, *args).is_similar
        decisions.append(similar.tolist())
        return SimpleNamespace(is_similar=similar, raw=every * torch.where(similar, 1, -1)[:, None, None, None])

    monkeypatch.setattr(faithfulness, "explain", edges)
    found = randomisation_check(trained_network(), *network_images())
    assert found == pytest.approx({"none": 1, "head": 1, "head and backbone": 1})
    assert decisions[0] != decisions[2]


@pytest.mark.parametrize("fails_at", [None, 1, 3])
def test_what_is_randomised_and_that_it_is_restored(monkeypatch, fails_at):
    model = trained_network()
    model.train().backbone[0].eval()
    model.backbone[4].weight.requires_grad_(False)
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    draws, usual, seen = torch.get_rng_state(), faithfulness.explain, []

    def watched(*args):
        now = {name: torch.allclose(value.float(), state[name].float()) for name, value in model.state_dict().items()}
        seen.append({name.split(".")[0] for name, same in now.items() if not same})
        assert [module.training for module in model.modules()] == modes
        assert len(seen) == 1 or not now["head.0.weight"]
        if len(seen) == fails_at:
            raise KeyError("broken")
        return usual(*args)

    monkeypatch.setattr(faithfulness, "explain", watched)
    if fails_at:
        with pytest.raises(KeyError, match="broken"):
            randomisation_check(model, *network_images())
    else:
        randomisation_check(model, *network_images())  # draws with the seed the network was made with
        assert seen == [set(), {"head"}, {"head", "backbone"}]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), draws)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["backbone.4.weight"] and all(parameter.grad is None for parameter in model.parameters())
    assert all(module.momentum == 0.1 for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.fixture
def judged():
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", embedding_dim=4, image_size=(16, 24)).eval()
    batch1, batch2 = torch.randn(2, 6, 3, 16, 24)
    distance = explain(model, batch1, batch2).distance
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
