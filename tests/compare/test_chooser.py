"""The notebook's chooser, used as a front end uses it: by its buttons and its upload."""

import io
import re
from base64 import b64decode
from datetime import datetime

import pytest
import torch
from IPython.core.pylabtools import print_figure
from PIL import Image
from samples import break_file, noise, small_network

from utils.compare import chooser
from utils.compare.chooser import Chooser, show_chooser
from utils.compare.comparison import Comparison


@pytest.fixture
def model():
    return small_network(size=(16, 16), margin=0.05)


@pytest.fixture(autouse=True)
def not_drawn(monkeypatch):
    """Figures take their time, and most tests only count them."""
    monkeypatch.setattr(chooser, "print_figure", lambda figure: png(0))


@pytest.fixture
def paths(tmp_path):
    for index, name in enumerate(("a", "&lt;b", "c")):
        noise(20, 30 + index, seed=index).save(tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in ("a", "&lt;b", "c")]


def figures(chosen):
    """Maps and "what if", as far as they are shown."""
    data = re.findall("base64,(.*?)'", chosen.result.value)
    return [Image.open(io.BytesIO(b64decode(one))) for one in data]


def uploaded(name, content):
    file = {"name": name, "type": "image/png", "size": len(content), "last_modified": datetime.now()}
    return file | {"content": memoryview(content)}


def png(seed):
    data = io.BytesIO()
    noise(30, 20, seed=seed).save(data, "PNG")
    return data.getvalue()


def click(chosen, position):
    """Click on a thumbnail."""
    chosen.tiles.children[position].children[1].click()


def test_two_images_are_chosen_and_show_score_maps_and_what_if(model, paths, monkeypatch):
    monkeypatch.setattr(chooser, "print_figure", print_figure)
    chosen = Chooser(model, paths, "by <these> features")
    assert len(chosen.tiles.children) == 3 and "by &lt;these&gt; features" in chosen.result.value
    one, two = (model.preprocess(Image.open(path))[None] for path in paths[:2])
    with torch.no_grad():
        expected = 1 - float(model(one, two))
    said, _, checks = chosen.result.value.partition("<ul>")
    assert f"similarity {expected:.3f}" in said and "&amp;lt;b" in said and "&amp;lt;b" in checks
    assert checks.count("<li>") == 4 and [figure.size > (100, 100) for figure in figures(chosen)] == [True, True]
    styles = [[button.button_style for button in chosen.buttons[path]] for path in paths]
    assert styles == [["primary", ""], ["", "primary"], ["", ""]]


def test_clicks_on_thumbnails_choose_in_turn_and_buttons_choose_a_place(model, paths):
    chosen = Chooser(model, paths)
    for position, expected in ((2, [2, 1]), (0, [2, 0]), (1, [1, 0])):
        click(chosen, position)
        assert chosen.chosen == [paths[k] for k in expected]
    chosen.buttons[paths[2]][1].click()
    assert chosen.chosen == [paths[1], paths[2]] and len(figures(chosen)) == 2
    alone = Chooser(model, paths[:1])
    assert "Choose image 1 and image 2" in alone.result.value
    click(alone, 0)
    assert "Now choose image 2" in alone.result.value and not figures(alone)


def test_each_image_is_measured_once(model, paths, monkeypatch):
    measured, effects_of = [], Comparison.effects_of

    def watched(self, *images):
        measured.extend(self.paths[i] for i in dict.fromkeys(images) if i not in self.effects)
        return effects_of(self, *images)

    monkeypatch.setattr(Comparison, "effects_of", watched)
    chosen = Chooser(model, paths)
    assert measured == paths[:2]
    for path, place in ((paths[0], 1), (paths[1], 0)):
        chosen.choose(path, place)
    assert measured == paths[:2]
    chosen.choose(paths[0], 0)
    assert measured == paths[:2] and "similarity 1.000" in chosen.result.value


def test_uploads_become_image_1_and_image_2_in_turn(model, paths):
    chosen = Chooser(model, paths)
    chosen.upload.value = (uploaded("../x:1.png", png(5)), uploaded("y.png", png(6)))
    assert [path.name for path in chosen.chosen] == [".._x_1.png", "y.png"] and figures(chosen)
    chosen.upload.value = (uploaded("y.png", png(7)),)
    assert [path.name for path in chosen.chosen] == ["y.png", "y.png"] and len(chosen.buttons) == 6
    assert len(chosen.tiles.children) == 6


def test_what_cannot_be_read_is_named(model, paths, tmp_path):
    break_file(tmp_path / "broken.png", 0.5)
    chosen = Chooser(model, [*paths, tmp_path / "broken.png"])
    assert len(chosen.tiles.children) == 3 and "broken.png" in chosen.result.value
    chosen.upload.value = (uploaded("<i>.png", b"none"),)
    assert "_i_.png: not a readable image" in chosen.result.value and chosen.chosen == [None, None]
    for place in (0, 1):
        chosen.choose(paths[place], place)
    paths[2].unlink()
    chosen.choose(paths[2], 1)
    assert "c.png: no such image" in chosen.result.value and not figures(chosen)


def test_shown_in_words_where_there_is_no_front_end(model, paths, monkeypatch):
    bundles = []
    monkeypatch.setattr(chooser, "display", lambda bundle, raw: bundles.append(bundle))
    show_chooser(model, paths)
    assert "while the notebook is running" in bundles[0]["text/plain"]
    assert any("widget-view" in kind for kind in bundles[0])
