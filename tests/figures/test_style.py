"""Fonts for names in Chinese, Japanese and Korean."""

import importlib

import matplotlib
import pytest
from fontTools.ttLib import TTFont
from matplotlib.font_manager import fontManager
from PIL import Image

import utils.figures.style as style
from utils.imshow import show_images


@pytest.fixture
def only_latin(monkeypatch):
    """No font of another script is listed, nor can one be found."""
    listed = [font for font in fontManager.ttflist if font.name not in style.ASIAN_FONTS]
    monkeypatch.setattr(fontManager, "ttflist", listed)
    monkeypatch.setattr(style, "findSystemFonts", list)


def test_latin_letters_stay_as_they_are_and_without_other_fonts_nothing_fails(request):
    assert matplotlib.rcParams["font.family"] == ["sans-serif", *style.asian_fonts()]
    request.getfixturevalue("only_latin")
    assert style.asian_fonts() == []


@pytest.mark.usefixtures("only_latin")
def test_a_font_that_was_installed_after_matplotlib_made_its_list_is_found(tmp_path, monkeypatch):
    font = TTFont(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf")
    for record in font["name"].names:
        if record.nameID in (1, 16):  # the family's name
            record.string = "SimHei"
    font.save(tmp_path / "simhei.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    files = [str(tmp_path / name) for name in ("broken.ttf", "simhei.ttf")]
    monkeypatch.setattr(style, "findSystemFonts", lambda: files)
    assert style.asian_fonts() == ["SimHei"]


def test_names_are_no_latex_whatever_the_users_settings_say():
    with matplotlib.rc_context({"text.usetex": True, "text.parse_math": True}):
        importlib.reload(style)
        figure = show_images([Image.new("RGB", (9, 9))], ["a_b_$5^.jpg"])
        figure.draw_without_rendering()
        assert not figure.axes[0].title.get_usetex() and not figure.axes[0].title.get_parse_math()
