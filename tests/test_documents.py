"""The documents: generated pages are up to date, and links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from docs.idea import shown_regions, triangle
from docs.make_configuration import PAGE, keys, page, values
from docs.make_figures import DOCS, FIGURES, THUMBNAILS, stored_figure
from docs.photographs import CLASSES, SHARES, add_sticker, crops, photograph
from utils import __main__ as command_line
from utils.system.settings import Config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for folder in (".", "docs", "docs/zh", "benchmarks", "Data", "checkpoints")
    for path in (ROOT / folder).glob("*.md")
]


def test_the_page_of_settings_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.make_configuration"


def test_every_key_is_described():
    assert not [key for key, field in keys(Config) if not field.description]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("seed", "whole number >= 0, < 4294967296"),
        ("pooling", "`auto`, `gem`, `avg`"),
        ("cuda", "`True`, `False`"),
        ("image.size", "2 whole numbers >= 16"),
        ("image.hue", "number >= 0, <= 0.5"),
        ("weights", "path"),
    ],
)
def test_allowed_values_are_named(key, expected):
    assert values(dict(keys(Config))[key]) == expected


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                target
            )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_exist(document, capsys):
    text = document.read_text(encoding="utf-8")
    for package, module in re.findall(r"python -m (benchmarks|docs)\.(\w+)", text):
        assert (ROOT / package / f"{module}.py").is_file(), module
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, flags=re.MULTILINE)) <= set(targets)
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    commands = re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert commands and set(re.findall(r"python -m utils ([a-z]+)", text)) <= set(commands)


def test_every_page_of_the_site_is_there():
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml, which names a function of Python, without importing it."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/object/apply:", lambda loader, suffix, node: suffix)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    pages = {path.name for path in DOCS.glob("*.md")}
    assert set(site["nav"]) == pages
    home = (DOCS / "README.md").read_text(encoding="utf-8")
    for name in pages - {"README.md"}:
        assert f"]({name})" in home and "](README.md)" in (DOCS / name).read_text(encoding="utf-8"), name


def parts(readme):
    """What both languages have in common: heading levels, commands, inline code, figures, links, tables, decimals."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    text = re.sub(r"## 国内用户须知.*?(?=\n## )", "", text, flags=re.DOTALL)  # for users in China: mirrors, fonts
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {
        "headings": re.findall(r"^#+(?= )", prose, flags=re.MULTILINE),
        "blocks": [re.sub(r" +#.*", "", block) for block in blocks],  # comments are translated
        "commands": sorted(re.findall(r"`((?:python|make|jupyter|torchrun|source|pip) [^`]*)`", prose)),
        "links": sorted(
            link for link in re.findall(r"\]\(([^)]+)\)", prose) if not link.startswith(("README", "docs/zh/"))
        ),
        "cells": [line.count("|") for line in prose.split("\n") if line.startswith("|")],
        "decimals": sorted(re.findall(r"\d+\.\d+", prose)),
    }


def test_the_readme_says_the_same_in_both_languages():
    english, chinese = parts("README.md"), parts("README.zh-CN.md")
    assert len(english["blocks"]) >= 3 and len(english["commands"]) > 10 and len(english["decimals"]) > 40
    for part, found in english.items():
        assert chinese[part] == found, part
    for readme, other in (("README.md", "README.zh-CN.md"), ("README.zh-CN.md", "README.md")):
        text = (ROOT / readme).read_text(encoding="utf-8")
        assert f"]({other})" in text and len(text.splitlines()) < (150 if readme == "README.md" else 160)


def test_thumbnails_are_the_notebooks_figures():
    for name, place in THUMBNAILS.items():
        same = (DOCS / name).read_bytes() == stored_figure(*place)
        assert same, f"{name}: run: make figures"  # without a difference of bytes, which takes minutes


def test_crops_lie_anywhere_in_their_photograph():
    down, across = np.mgrid[:100, :200]
    image = Image.fromarray(np.stack([down, across, 0 * down], 2).astype(np.uint8))
    found = crops(image, 24, np.random.default_rng(0))
    assert len(found) == 24
    for image in found:
        assert 110 <= image.width <= 200 and 55 <= image.height <= 100 and SHARES == (0.55, 1.0)
        pixels = np.asarray(image).astype(int)
        assert (np.diff(pixels[:, 0, 0]) == 1).all() and (np.diff(pixels[0, :, 1]) == 1).all()  # a part, not resized
    corners = np.array([np.asarray(image)[0, 0, :2] for image in found])
    assert (np.ptp(corners, axis=0) > (20, 40)).all()


def test_a_photograph_is_cut_to_the_part_that_is_wanted():
    flower = CLASSES["flower"]
    whole, part = photograph(flower), photograph(flower._replace(area=(300, 100, 340, 130)))
    assert whole.size == (640, 427) and part.tobytes() == whole.crop((300, 100, 340, 130)).tobytes()


def test_a_sticker_is_a_disc_on_a_copy():
    plain = Image.new("RGB", (120, 60), "white")
    pixels = np.asarray(add_sticker(plain, np.random.default_rng(0)))
    blue = (pixels == (30, 60, 200)).all(2)
    assert np.ptp(np.flatnonzero(blue.any(0))) == np.ptp(np.flatnonzero(blue.any(1))) == 10  # a sixth of 60, both ends
    assert 70 < blue.sum() < 100 and np.asarray(plain).min() == 255  # pi / 4 of 11 x 11


def test_a_drawn_embedding_keeps_both_distances():
    partner, before = np.zeros(2), np.array([2.0, 0.0])
    for to_partner, moved in ((2.2, 0.5), (1.6, 0.5), (2.0, 0.1)):
        for up in (True, False):
            after = np.array(triangle(2.0, to_partner, moved, up))
            assert np.linalg.norm(after - partner) == pytest.approx(to_partner) and (after[1] > 0) == up
            assert np.linalg.norm(after - before) == pytest.approx(moved)


def test_the_drawn_regions_move_the_distance_down_up_and_hardly_without_overlap():
    top, left = (at.flatten() for at in torch.meshgrid(*[torch.arange(0, 60, 10)] * 2, indexing="ij"))
    regions = torch.stack([top, top + 20, left, left + 20], 1)  # a region overlaps its neighbours
    effect = torch.linspace(1, 2, 36)
    effect[[14, 15, 0, 5]] = torch.tensor([9.0, -9, -1, 0.5])  # 15 is beside 14
    assert shown_regions(torch.cat([effect, torch.tensor([-99.0])]), regions) == [0, 14, 5]


def test_every_figure_is_shown():
    shown = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCS.glob("*.md")))
    for figure in [*DOCS.glob("*.jpg"), *DOCS.glob("*.png"), *DOCS.glob("*.webp")]:
        assert figure.name in shown and figure.stat().st_size < 1_000_000, figure
    assert set(FIGURES) == {"explanation", "search", "evidence", "page", "notebooks"}
