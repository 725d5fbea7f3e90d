"""Installing: conda and pip install the same packages, everywhere; nothing of the user is in git."""

from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from docs.make_environment import PAGE, page

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()


def test_the_environment_is_up_to_date():
    assert PAGE.read_text(encoding="ascii") == page(), "run: python -m docs.make_environment"
    *conda, pip = yaml.safe_load(page())["dependencies"]
    assert conda == ["python=3.12", "pip"] and pip == {"pip": LINES}


@pytest.mark.parametrize("name", ["environment.yml", "requirements.txt", "requirements-dev.txt", "config.yml"])
def test_files_of_the_set_up_are_plain_ascii_with_unix_line_ends(name):
    content = (ROOT / name).read_bytes()  # ASCII reads the same in every locale, 'gbk' included
    assert content.isascii() and b"\r" not in content and content.endswith(b"\n")


def test_this_environment_meets_the_requirements():
    required = [Requirement(line) for line in LINES]
    assert [str(one) for one in required if not one.specifier.contains(version(one.name), prereleases=True)] == []
