"""The notebook's chooser, used as a front end uses it: by its buttons and its upload."""

import io
from datetime import datetime

import pytest
import torch
from PIL import Image
from samples import break_file, noise

from utils import chooser
from utils.chooser import Chooser, show_chooser
from utils.comparison import Comparison
from utils.Siamese import SiameseNetwork


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = SiameseNetwork("Conv4", embedding_dim=4, image_size=(16, 16)).eval()
    network.margin = 0.05
    return network


@pytest.fixture
def paths(tmp_path):
    for index, name in enumerate(("a", "&lt;b", "c")):
        noise(20, 30 + index, seed=index).save(tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in ("a", "&lt;b", "c")]


def shown(widget):
    return widget.layout.display != "none" and Image.open(io.BytesIO(widget.value)).size > (100, 100)


def uploaded(name, content):
    file = {"name": name, "type": "image/png", "size": len(content), "last_modified": datetime.now()}
    return file | {"content": memoryview(content)}


def png(seed):
    data = io.BytesIO()
    noise(30, 20, seed=seed).save(data, "PNG")
    return data.getvalue()


def test_two_clicks_show_score_maps_and_what_if(model, paths):
    chosen = Chooser(model, paths)
    assert not any(map(shown, chosen.figures)) and "image 1" in chosen.status.value
    chosen.buttons[paths[0]][0].click()
    assert "Now choose image 2" in chosen.status.value and not any(map(shown, chosen.figures))
    chosen.buttons[paths[1]][1].click()
    one, two = (model.preprocess(Image.open(path))[None] for path in paths[:2])
    with torch.no_grad():
        expected = 1 - float(model(one, two))
    assert f"similarity {expected:.3f}" in chosen.status.value
    assert "&amp;lt;b" in chosen.status.value and "&amp;lt;b" in chosen.checks.value
    assert all(map(shown, chosen.figures)) and chosen.checks.value.count("<li>") == 4
    styles = [[button.button_style for button in chosen.buttons[path]] for path in paths]
    assert styles == [["primary", ""], ["", "primary"], ["", ""]]


def test_each_image_is_measured_once(model, paths, monkeypatch):
    measured, effects_of = [], Comparison.effects_of

    def watched(self, *images):
        measured.extend(self.paths[i] for i in dict.fromkeys(images) if i not in self.effects)
        return effects_of(self, *images)

    monkeypatch.setattr(Comparison, "effects_of", watched)
    chosen = Chooser(model, paths)
    assert measured == []
    for path, place in ((paths[0], 0), (paths[1], 1), (paths[2], 1), (paths[1], 0), (paths[0], 1)):
        chosen.choose(path, place)
    assert measured == paths


def test_the_same_image_twice(model, paths):
    chosen = Chooser(model, paths)
    chosen.choose(paths[0], 0)
    chosen.choose(paths[0], 1)
    assert "similarity 1.000" in chosen.status.value


def test_uploads_take_the_free_places_then_that_of_image_2(model, paths):
    chosen = Chooser(model, paths)
    chosen.upload.value = (uploaded("../x:1.png", png(5)), uploaded("y.png", png(6)))
    assert [path.name for path in chosen.chosen] == [".._x_1.png", "y.png"] and all(map(shown, chosen.figures))
    chosen.upload.value = (uploaded("y.png", png(7)),)
    assert [path.name for path in chosen.chosen] == [".._x_1.png", "y.png"] and len(chosen.buttons) == 6
    assert len(chosen.tiles.children) == 6


def test_what_cannot_be_read_is_named(model, paths, tmp_path):
    break_file(tmp_path / "broken.png", 0.5)
    chosen = Chooser(model, [*paths, tmp_path / "broken.png"])
    assert len(chosen.tiles.children) == 3 and "broken.png" in chosen.status.value
    chosen.upload.value = (uploaded("<i>.png", b"none"),)
    assert "_i_.png: not a readable image" in chosen.status.value and chosen.chosen == [None, None]
    for place in (0, 1):
        chosen.choose(paths[place], place)
    paths[2].unlink()
    chosen.choose(paths[2], 1)
    assert "c.png: no such image" in chosen.status.value and not any(map(shown, chosen.figures))


def test_shown_in_words_where_there_is_no_front_end(model, paths, monkeypatch):
    bundles = []
    monkeypatch.setattr(chooser, "display", lambda bundle, raw: bundles.append(bundle))
    show_chooser(model, paths)
    assert "while the notebook is running" in bundles[0]["text/plain"]
    assert any("widget-view" in kind for kind in bundles[0])


def test_without_ipywidgets_the_notebook_goes_on(model, paths, monkeypatch, capsys):
    monkeypatch.setattr(chooser, "widgets", None)
    assert show_chooser(model, paths) is None
    assert "ipywidgets is missing" in capsys.readouterr().out
