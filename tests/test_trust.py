import numpy as np
import pytest
import torch
from PIL import Image

from utils.dataset import Frame, Pairs
from utils.faithfulness import Interventions
from utils.Grad_CAM import explain
from utils.Siamese import SiameseNetwork
from utils.trust import check_table, compare_rankings, load_masks, localisation_table, some_pairs, telling_pairs


@pytest.fixture
def masks(tmp_path):
    """Two images of 20 x 10 pixels with a mask on the right half, one without a mask."""
    folder = tmp_path / "Shapes_masks" / "a"
    folder.mkdir(parents=True)
    half = np.zeros((10, 20), dtype=np.uint8)
    half[:, 10:] = 255
    for name in ("1.png", "2.png", "2_intruder.png"):
        Image.fromarray(half[:, ::-1] if "intruder" in name else half).save(folder / name)
    return tmp_path / "Shapes"


def test_masks_come_at_the_networks_size_and_are_empty_where_there_is_none(masks):
    found = load_masks(masks, ["a/1.jpg", "a/3.jpg", "a/2.jpg"], Frame((4, 6)))
    right = torch.tensor([False] * 3 + [True] * 3).expand(4, 6)
    assert torch.equal(found, torch.stack([right, torch.zeros(4, 6, dtype=torch.bool), right]))
    assert torch.equal(load_masks(masks, ["a/1.jpg", "a/2.jpg"], Frame((4, 6)), "_intruder")[1], ~right)
    assert load_masks(masks, ["a/3.jpg"], Frame((4, 6))) is None and load_masks(masks.parent / "Other", ["a/1.jpg"], Frame((4, 6))) is None


def test_masks_are_padded_as_their_images_are(masks):
    found = load_masks(masks, ["a/1.jpg"], Frame((8, 8), "pad"))  # 20 x 10 pixels: rows 2 to 5
    expected = torch.zeros(1, 8, 8, dtype=torch.bool)
    expected[0, 2:6, 4:] = True
    assert torch.equal(found, expected)


def test_localisation_counts_both_images_of_rightly_decided_pairs_only():
    masks = torch.zeros(3, 12, 12, dtype=torch.bool)
    masks[:, :, 6:] = True
    pairs = Pairs(np.array([0, 1, 0, 1]), np.array([1, 2, 2, 0]), np.array([0, 0, 1, 1]))
    maps = torch.zeros(4, 2, 12, 12)
    maps[..., 0] = 1  # the wrong edge
    maps[0, 0] = masks[0].float()
    maps[2] = masks[:2].float()
    table = localisation_table({"ours": maps}, masks, pairs, np.array([True, True, True, False])).set_index(["maps", "pairs"])
    assert table.loc[("ours", "similar"), ["pointing", "energy", "IoU", "number"]].tolist() == [0.25, 0.5, 0.25, 4]
    assert table.loc[("ours", "dissimilar"), ["pointing", "energy", "IoU", "number"]].tolist() == [1, 2, 1, 2]
    assert table.loc[("random", "similar"), "energy"] == pytest.approx(1, abs=0.1)
    assert set(table.index.get_level_values(0)) == {"ours", "centred Gaussian", "random"}


def test_the_surest_decisions_and_the_worst_mistakes():
    dissimilarity = np.array([0.1, 0.4, 0.9, 0.0, 0.5, 1.7, 0.45, 0.55, 2.0, 0.2])
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
    assert {title: list(found) for title, found in telling_pairs(dissimilarity, label, threshold=0.5, count=2).items()} == {
        "rightly called similar": [3, 0], "rightly called dissimilar": [5, 7], "wrongly called similar": [9, 6], "wrongly called dissimilar": [8, 2],
    }
    assert not len(telling_pairs(dissimilarity[:4], label[:4], 0.5)["wrongly called similar"])


def test_some_pairs_are_evenly_chosen_and_few_pairs_are_kept():
    pairs = Pairs(np.arange(200), np.arange(200) + 1, np.repeat([0, 1], 100))
    chosen = some_pairs(pairs, 60)
    assert len(chosen.label) == 60 and (chosen.label == 0).sum() == 30
    assert (chosen.second == chosen.first + 1).all() and np.diff(chosen.first).max() <= 4
    assert all(np.array_equal(a, b) for a, b in zip(some_pairs(Pairs(*(column[:5] for column in pairs))), (column[:5] for column in pairs)))


@pytest.fixture
def judged():
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", embedding_dim=4, image_size=(16, 24)).eval()
    batch1, batch2 = torch.randn(2, 6, 3, 16, 24)
    distance = explain(model, batch1, batch2).distance
    model.margin = 2 * float(distance.median() * 1.0001)  # half of the pairs are similar
    return explain(model, batch1, batch2), Interventions.on(model, batch1, batch2)


def test_the_check_table_counts_moves_in_the_right_direction(judged, monkeypatch):
    explanation, interventions = judged
    similar = explanation.is_similar[:, None].expand(-1, 2)
    changes = {"factual": torch.where(similar, -1.0, 1.0), "counterfactual": torch.where(similar, -1.0, 1.0)}
    changes["factual"][explanation.is_similar.nonzero()[0]] = torch.nan  # a pair without evidence
    result = type("Result", (), {})
    monkeypatch.setattr("utils.trust.check", lambda i, e, kind, rng: (setattr(result, "effect", changes[kind]), setattr(result, "random", -changes[kind]), result)[2])
    table = check_table(interventions, explanation, seed=0).set_index(["maps", "decision"])
    assert table.right.to_dict() == {("factual", "similar"): 1, ("factual", "dissimilar"): 0, ("counterfactual", "similar"): 0, ("counterfactual", "dissimilar"): 1}
    assert table["random"].tolist() == (1 - table.right).tolist() and table.change.tolist() == [-1, 1, -1, 1]
    assert table.number.tolist() == [2 * int(explanation.is_similar.sum()) - 2, *[2 * int(n) for n in ((~explanation.is_similar).sum(), explanation.is_similar.sum(), (~explanation.is_similar).sum())]]


def test_rankings_are_compared_from_the_untouched_to_the_wholly_blurred_image(judged):
    explanation, interventions = judged
    rankings = compare_rankings(interventions, explanation)
    assert list(rankings) == ["factual map", "centred Gaussian", "random"]
    everything = torch.ones(6, 2, 16, 24, dtype=torch.bool)
    ends = [interventions.before.mean().item(), interventions.without(everything).mean().item()]
    for curves in rankings.values():
        assert curves["deletion"][[0, -1]].tolist() == pytest.approx(ends, abs=1e-5)
        assert curves["insertion"][[-1, 0]].tolist() == pytest.approx(ends, abs=1e-5)
    assert len({tuple(curves["deletion"].round(6)) for curves in rankings.values()}) == 3
