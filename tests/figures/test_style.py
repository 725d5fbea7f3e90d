"""Fonts for names in Chinese, Japanese and Korean."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from fontTools.ttLib import TTFont
from matplotlib.font_manager import fontManager

import utils.figures.style as style


@pytest.fixture
def only_latin(monkeypatch):
    """No font of another script is listed, nor can one be found."""
    listed = [font for font in fontManager.ttflist if font.name not in style.ASIAN_FONTS]
    monkeypatch.setattr(fontManager, "ttflist", listed)
    monkeypatch.setattr(style, "findSystemFonts", list)


def test_latin_letters_stay_as_they_are():
    assert matplotlib.rcParams["font.family"] == ["sans-serif", *style.asian_fonts()]


@pytest.mark.usefixtures("only_latin")
def test_without_such_a_font_nothing_fails():
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


def test_names_are_no_latex_whatever_the_users_settings_say(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: Agg")
    code = """
import matplotlib, utils.imshow
from PIL import Image
assert "matplotlibrc" in matplotlib.matplotlib_fname() and matplotlib.rcParamsOrig["text.usetex"]
utils.imshow.show_images([Image.new("RGB", (9, 9))], ["a_b_$5^.jpg"]).savefig("figure.png")
"""
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "figure.png").is_file()
