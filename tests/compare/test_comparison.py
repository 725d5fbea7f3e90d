from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from samples import config_in, make_files, noise, small_network

from utils.compare import comparison
from utils.compare.comparison import (
    Comparison,
    choose_pair,
    describe,
    distinct_names,
    example_images,
    explained_pairs,
    images_to_compare,
    names_with_folders,
    pair_folder,
)
from utils.explain import occlusion
from utils.explain.occlusion import WINDOWS, RegionEffects, region_effects
from utils.explain.removal import REMOVALS, what_if
from utils.Grad_CAM import Explanation, explain
from utils.images.frame import Frame
from utils.images.pairs import Pairs
from utils.system.errors import DataError


@pytest.fixture
def model():
    return small_network(size=(16, 24), margin=0.05)


@pytest.fixture
def paths(tmp_path):
    for i in range(5):
        noise(10 + i, 30, seed=i).save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(5)]


def test_each_image_is_measured_once_when_it_is_first_explained(model, paths, monkeypatch):
    monkeypatch.setattr(occlusion, "local_stages", lambda model: [])  # so that all passes are of whole images
    passes, regions = [], sum(count**2 for _, count, _ in WINDOWS)
    model.backbone[0].register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    compared = Comparison(model, paths)
    assert compared.similarity.shape == (5, 5) and sum(passes) == 5
    for i, j in [(0, 1), (1, 2), (2, 0), (1, 1)]:
        compared.explain(i, j)
        compared.matches(i, j)
    assert sum(passes) == 5 + 3 * (regions + 2)


def test_a_pair_is_explained_as_explain_does(model, paths):
    compared = Comparison(model, paths)
    batch = torch.stack([model.preprocess(Image.open(path)) for path in paths])
    for i, j in [(0, 3), (4, 1), (2, 2)]:
        expected, found = explain(model, batch[[i]], batch[[j]]), compared.explain(i, j)
        for name in Explanation.__dataclass_fields__:
            one, other = getattr(found, name).float(), getattr(expected, name).float()
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4), name
        assert compared.similarity[i, j] == pytest.approx(expected.similarity.item(), abs=1e-4)


def test_originals_are_kept_and_extremes_are_pairs_of_different_images(model, paths):
    compared = Comparison(model, paths)
    assert [image.size for image in compared.images] == [(30, 10 + i) for i in range(5)]
    compared.embeddings = torch.tensor([[0.0, 0], [30, 0], [31, 0], [90, 0], [0, 60]])  # nearly all beyond the margin
    compared.similarity = np.eye(5)
    assert compared.extremes() == ((1, 2), (3, 4))


@pytest.fixture
def padding(model, tmp_path):
    """A network of 16 x 24 pixels that pads, a wide image (rows 5 to 10 of the frame) and a tall one (columns 11 and
    12)."""
    model.frame = Frame(model.image_size, "pad")
    noise(10, 40).save(tmp_path / "wide.png")
    noise(40, 5).save(tmp_path / "tall.png")
    return Comparison(model, [tmp_path / "wide.png", tmp_path / "tall.png"])


def test_a_padded_pair_knows_the_part_of_the_frame_that_each_image_fills(padding):
    boxes = ((5, 11, 0, 24), (0, 16, 11, 13))  # top, bottom, left, right
    assert padding.pair(0, 1)["boxes"] == padding.what_if(0, 1).boxes == boxes
    assert padding.pair(1, 0)["boxes"] == boxes[::-1]
    assert padding.explain(0, 1).factual.shape == (1, 2, 16, 24)


def test_matches_of_padded_images_lie_on_the_images(padding, monkeypatch):
    """A feature map of 4 x 6 positions, 4 pixels each: the wide image shows in rows 1 and 2, the tall one in columns 2
    and 3."""
    similarity = torch.zeros(4, 6, 4, 6)
    similarity[0, 3, 1, 0] = 9  # blank with blank
    similarity[1, 0, 3, 5] = 8  # image with blank
    similarity[1, 0, 3, 2] = 3
    similarity[2, 5, 0, 3] = 2
    monkeypatch.setattr(RegionEffects, "interaction", lambda *arguments: similarity)
    (*first, strongest), (*second, next_one) = padding.matches(0, 1)
    # centres at row 6 of 5 to 11 and column 2 of 0 to 24; row 14 of 0 to 16 and column 10, just left of 11 to 13
    assert strongest == 3 and np.allclose(first, [(1 / 6, 2 / 24), (14 / 16, 0)])
    assert next_one == 2 and np.allclose(second, [(5 / 6, 22 / 24), (2 / 16, 1)])


@pytest.mark.parametrize("similar", [True, False])
def test_what_if_blurs_the_strongest_tenth_of_one_image_at_a_time(model, paths, similar):
    compared = Comparison(model, paths)
    model.threshold = 1 - 1e-6 if similar else 1e-6
    result, explanation = compared.what_if(0, 1), compared.explain(0, 1)
    assert explanation.is_similar.item() == similar
    assert result.before == pytest.approx(explanation.similarity.item(), abs=1e-5)
    tenth = round(0.1 * model.image_size[0] * model.image_size[1])
    for image, column in np.ndindex(2, 2):
        values = (explanation.factual, explanation.counterfactual)[column][0, image]
        region = result.regions[image, column]
        assert region.sum() == min(tenth, (values > 0).sum())
        assert values[region].sum().item() == pytest.approx(values.flatten().topk(tenth).values.sum().item())
        for name, removal in REMOVALS.items():
            pair = [compared.batch[[0]], compared.batch[[1]]]
            pair[image] = torch.where(region, removal(pair[image]), pair[image])
            with torch.no_grad():
                after = 1 - float(model(*pair))
            stronger = after - result.before if similar else result.before - after
            assert result.changes[name][image, column] == pytest.approx(stronger, abs=1e-4)
            if name == "blurred":
                assert result.after[image, column] == pytest.approx(after, abs=1e-5)


def test_a_decision_flips_if_the_similarity_crosses_the_threshold(model, paths):
    compared, maps = Comparison(model, paths), torch.rand(2, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    pair = model, compared.batch[:2], maps, torch.zeros(2, 2, dtype=torch.bool), (None, None)
    result = what_if(*pair)
    low, high = sorted([result.before, result.after[0, 0]])
    for similarity, flips in (((low + high) / 2, True), (low - 0.1, False), (high + 0.1, False)):
        model.threshold = 1 - similarity
        assert what_if(*pair).flips[0, 0] == flips


def test_a_pair_beyond_the_margin_is_told_by_its_distance(model, paths):
    model.margin = 1e-3  # far below the distances of an untrained network
    compared = Comparison(model, paths)
    result = compared.what_if(0, 1)
    distance = float((compared.embeddings[0] - compared.embeddings[1]).norm()) / model.margin
    assert 1 - result.before == pytest.approx(distance) and distance > 1
    assert result.change_in_words(0, 0).startswith("distance / margin ")


@pytest.mark.parametrize(
    "similarity, said", [(0.75, "similar: similarity 0.750, above"), (0.5, "dissimilar: similarity 0.500, not above")]
)
def test_the_decision_in_a_sentence(similarity, said):
    value = torch.tensor([similarity])
    explanation = Explanation(value, value, value > 0.6, *[torch.zeros(1, 2, 2, 2)] * 5)
    assert describe(explanation, ("a", "b"), 0.4) == f"a and b are {said} the threshold of 0.6."


@pytest.mark.parametrize("levels, white", [(None, 255), ((0, 4095), 64)])
def test_deep_images_are_shown_over_the_networks_range_or_their_own_which_is_said(model, paths, capsys, levels, white):
    Image.fromarray(np.full((16, 24), 1023, np.uint16)).save(paths[0])
    model.frame = model.frame._replace(levels=levels)
    compared = Comparison(model, paths)
    assert np.asarray(compared.images[0]).max() == white
    assert torch.equal(compared.batch[0], model.normalize(torch.full((3, 16, 24), white, dtype=torch.uint8)))
    assert capsys.readouterr().out.startswith("images of more than 8 bits: each is shown over its own") == (not levels)


def test_all_images_that_cannot_be_read_are_named_at_once(model, paths):
    paths[1].write_text("no image")
    paths[2].unlink()
    with pytest.raises(DataError, match=f"{paths[1]}: not a readable image.*\n{paths[2]}: no such image"):
        Comparison(model, paths)


def test_the_papers_maps_come_with_how_well_they_predict_the_measured_effects(model, paths):
    compared = Comparison(model, paths)
    effects = region_effects(model, compared.batch[[2, 4]])
    for sign, model.threshold in ((1, 1 - 1e-6), (-1, 1e-6)):  # similar, dissimilar
        pair, score = compared.grad_cam(2, 4)
        expected = explain(model, compared.batch[[2]], compared.batch[[4]], "distance")
        assert torch.allclose(pair["explanation"].factual, expected.factual) and -1 <= score <= 1
        scores = []
        for image in (0, 1):
            large = torch.nn.functional.interpolate(expected.raw[:, [image]], (16, 24), mode="bilinear")[0, 0] * sign
            sums = [float(large[a:b, c:d].sum()) for a, b, c, d in effects.regions[image].tolist()]
            scores.append(np.corrcoef(sums, effects.on_pairs([0], [1])[0, image])[0, 1])
        assert score == pytest.approx(np.mean(scores), abs=1e-3)
        assert expected.is_similar.item() == (sign > 0) and abs(score) > 0.1


def test_of_chosen_pairs_only_their_own_images_are_read_each_once(model, paths, monkeypatch):
    opened, read = [], comparison.read_image
    monkeypatch.setattr(comparison, "read_image", lambda path, levels: opened.append(path) or read(path))
    pairs = Pairs(np.array([4, 0, 2, 1]), np.array([2, 3, 1, 3]), np.array([0, 1, 0, 1]))
    found = explained_pairs(model, paths, pairs, [2, 0])
    assert opened == [paths[i] for i in (1, 2, 4)]
    folder = paths[0].parent.name
    assert [pair["names"] for pair in found] == [(f"{folder}\n{i}", f"{folder}\n{j}") for i, j in ((2, 1), (4, 2))]
    expected = Comparison(model, paths)
    for pair, (i, j) in zip(found, [(2, 1), (4, 2)]):
        torch.testing.assert_close(pair["explanation"].raw, expected.explain(i, j).raw)


@pytest.fixture
def config(tmp_path):
    """A trained dataset of three classes with 1, 3 and 2 test images."""
    settings = config_in(tmp_path, compare_path=tmp_path / "Data" / "data_for_compare")
    test = ["b/1.png", "a/0.png", "b/2.png", "c/9.png", "b/3.png", "c/sub/8.png"]
    rows = [("a/train.png", "a", "train"), *((file, file[0], "test") for file in test)]
    pd.DataFrame(rows, columns=["file", "label", "split"]).to_csv(settings.checkpoints_path / "split.csv", index=False)
    return settings


def names(paths):
    return [path.name for path in paths]


def test_examples_are_the_first_test_images_of_every_class(config):
    assert names(example_images(config)) == ["0.png", "1.png", "2.png", "9.png", "8.png"]
    assert example_images(config)[0] == config.data_path / "a" / "0.png"


def test_examples_before_training_are_the_first_images_of_every_folder(config):
    (config.checkpoints_path / "split.csv").unlink()
    make_files(config.data_path, ["b/3.png", "b/1.png", "b/2.png", "a/x.jpg", "a/notes.txt", "loose.png"])
    assert example_images(config) == [config.data_path / file for file in ("a/x.jpg", "b/1.png", "b/2.png")]


def test_the_pair_is_the_one_given_or_of_one_class(config):
    assert choose_pair(config, "0.png", Path("3.png")) == (Path("0.png"), Path("3.png"))
    assert choose_pair(config, None, None) == (config.data_path / "b" / "1.png", config.data_path / "b" / "2.png")
    with pytest.raises(DataError, match="give both, or neither"):
        choose_pair(config, None, "0.png")


def test_images_of_the_usual_or_a_given_folder_in_order(config, tmp_path):
    files = ["c.png", "B.JPG", "a.webp", "._a.png", ".gitkeep", "README.txt", "sub/d.png", "folder.png/e.png"]
    for folder in (config.compare_path, tmp_path / "mine"):
        make_files(folder, files)
    for found in (images_to_compare(config), images_to_compare(config, tmp_path / "mine")):
        assert names(found) == ["B.JPG", "a.webp", "c.png"]
    assert found[0].parent == tmp_path / "mine"


def test_a_given_folder_must_hold_two_images_and_for_the_usual_one_test_images_stand_in(config, tmp_path):
    for folder in (tmp_path / "mine", config.compare_path):
        make_files(folder, ["alone.png"])
    assert images_to_compare(config) == example_images(config)
    with pytest.raises(DataError, match="compare_folder: .*mine: 1 image there"):
        images_to_compare(config, tmp_path / "mine")


def test_every_pair_has_a_folder_of_its_own_with_a_name_that_windows_allows(config):
    pairs = [
        ("d1/rose/1.jpg", "d1/rose/2.jpg"),
        ("d1/rose/2.jpg", "d1/rose/1.jpg"),
        ("d2/rose/1.jpg", "d1/rose/2.jpg"),
        ("d1/rose/1.png", "d1/rose/2.jpg"),
        *((f"d/{'x' * 200}{k}.jpg", "d/y.jpg") for k in (1, 2)),
    ]
    folders = [pair_folder(config, Path(one), Path(other)) for one, other in pairs]
    assert len(set(folders)) == len(pairs) and folders[0].name.startswith("rose-1__rose-2__")
    assert folders[0] == pair_folder(config, Path(pairs[0][0]).resolve(), Path(pairs[0][1]))
    folders[-1].mkdir(parents=True)  # a long name still makes a folder
    for name in ('a"b', "a:b", "a<b>", "a|b", "a?", "a*", "a\\b", "a\nb", "a\udce9b", "con.1", "x.", "x "):
        folder = pair_folder(config, Path("d") / name / f"{name}.jpg", Path(name) / "1.jpg").name
        assert not set(folder) & set('<>:"/\\|?*.\n') and folder.encode() and folder[-1] in "0123456789abcdef"


def test_names_that_two_images_share_come_with_their_folders():
    paths = [Path("rose/IMG_1.jpg"), Path("rose/IMG_2.jpg"), Path("tulip/IMG_1.png")]
    assert distinct_names(paths[:2]) == ["IMG_1", "IMG_2"]
    assert distinct_names(paths) == ["rose/IMG_1.jpg", "rose/IMG_2.jpg", "tulip/IMG_1.png"]
    assert distinct_names([Path("1.jpg"), Path("1.png")]) == ["1.jpg", "1.png"]
    assert names_with_folders([Path("a/rose/1.jpg"), Path("b/../b/rose/1.jpg")]) == ["a/rose/1.jpg", "b/rose/1.jpg"]
    assert names_with_folders([Path("rose/1.jpg"), Path("rose/2.jpg")]) == ["1.jpg", "2.jpg"]
    assert names_with_folders([Path("rose/1.jpg")] * 2) == ["1.jpg", "1.jpg"]
