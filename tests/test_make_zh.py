"""The notebooks in Chinese: their code is that of the notebooks, and no text has changed since it was translated."""

import json
import re

import pytest

from docs.make_zh import MARK, NOTEBOOKS, page, page_of


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_is_translated_as_it_is_today(notebook):
    stored = page_of(notebook).read_text(encoding="utf-8")
    same = page(notebook, stored) == stored
    assert same, "run: python -m docs.make_zh, and translate what it names"
    texts = MARK.split(stored)[4::4]
    assert not [mark for *_, mark in MARK.findall(stored) if mark] and len(texts) > 10
    assert all(re.search(r"[\u4e00-\u9fff]", text.partition("```")[0]) for text in texts)


def test_code_is_copied_and_changed_prose_waits_for_its_translation(tmp_path):
    def written(prose, code):
        cells = [
            {"cell_type": "markdown", "id": "a", "source": ["# One\n", prose]},
            {"cell_type": "code", "id": "b", "source": [code]},
            {"cell_type": "markdown", "id": "c", "source": ["End"]},
        ]
        path = tmp_path / "01.ipynb"
        path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
        return path

    new = page(written("two", "x = 1"), "")
    assert [(cell, mark) for cell, _, mark in MARK.findall(new)] == [("a", " untranslated"), ("c", " untranslated")]
    assert "# One\ntwo\n\n```python\nx = 1\n```\n\n<!-- c" in new
    translated = new.replace(" untranslated", "").replace("# One\ntwo", "# 一\n二").replace("End", "完")
    assert page(written("two", "x = 1"), translated) == translated
    assert page(written("two", "x = 2"), translated) == translated.replace("x = 1", "x = 2")
    changed = page(written("three", "x = 1"), translated)
    assert [mark for *_, mark in MARK.findall(changed)] == [" untranslated", ""]
    assert "-->\n# One\nthree\n\n# 一\n二\n\n```python" in changed
    assert page(written("three", "x = 1"), changed) == changed
