import contextlib
import io
import re

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from planted import SeesRed, covered_square, patch_measurements, planted_images
from samples import colour_config

from utils import __main__ as command_line
from utils.compare import evidence
from utils.system.errors import ModelError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The command on 60 test and 20 training images of 64 x 64 pixels, written twice as wide."""
    tmp_path, told = tmp_path_factory.mktemp("written"), io.StringIO()
    images, labels, corners = planted_images(80, 0.9)
    files = [f"{label}/{i}.png" for i, label in enumerate(labels)]
    for file, image in zip(files, images):
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.resize((128, 64), Image.Resampling.NEAREST).save(tmp_path / "data" / file)
    config = colour_config(tmp_path / "data", tmp_path, image={"size": (64, 64)}, hyperparameters={"verbose": False})
    config.checkpoints_path.mkdir()
    table = pd.DataFrame({"file": files, "label": labels, "split": ["test"] * 60 + ["train"] * 20})
    table.to_csv(config.checkpoints_path / "split.csv", index=False)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch_measurements(patch)
        patch.setattr(evidence, "load_trained", lambda config: (SeesRed(), "a network of red"))
        command_line._evidence(None, config)
    planted = {file: corner for file, corner in zip(files, corners) if corner}
    return config.outputs_path, planted, told.getvalue()


def test_the_csv_has_the_planted_squares_of_all_splits_first(written):
    folder, planted, told = written
    table = pd.read_csv(folder / "evidence.csv")
    assert [*table] == ["group", "file", "top", "bottom", "left", "right", "effect", "suspect"]
    first = table[table.group == 1]
    assert set(first.file) == set(planted) and first.suspect.all() and (first.effect > 0).all()
    for file, boxes in first.groupby("file"):  # in pixels of the original, which is twice as wide
        inside, area = covered_square(boxes.assign(left=boxes.left / 2, right=boxes.right / 2), planted[file])
        assert inside > 0.75 and area <= 6 * 12**2
    assert table[~table.suspect].file.str.extract(r"(\d+)")[0].astype(int).max() < 60  # of the test images alone
    assert told.startswith("group 1: suspect: 100% of its") and told.endswith(f"{folder / 'evidence_masks'}\n")


def test_the_masks_are_white_on_the_suspects(written):
    folder, planted, _ = written
    table = pd.read_csv(folder / "evidence.csv")
    paths = {path.relative_to(folder / "evidence_masks").as_posix(): path for path in folder.glob("*_masks/*/*.png")}
    assert set(paths) == set(table.file[table.suspect]) == set(planted)
    for file, boxes in table[table.suspect].groupby("file"):
        expected = np.zeros((64, 128), bool)
        for row in boxes.itertuples():
            expected[row.top : row.bottom, row.left : row.right] = True
        assert (np.array(Image.open(paths[file])) == 255 * expected).all()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_on_the_page_a_click_takes_a_group_away(written):
    folder, planted, _ = written
    with Browser() as browser:
        browser.send("Page.navigate", url=(folder / "evidence.html").resolve().as_uri())
        browser.wait('document.readyState === "complete" && document.querySelector("#auc").textContent !== ""')
        before = browser.text("#auc")
        assert before.startswith("With all groups: AUC 0.9") and browser.text("#groups h2").startswith("Group 1:")
        crops = "[...document.querySelector('#groups h2 ~ div').querySelectorAll('img')]"
        shapes = browser.ask(f"{crops}.map((crop) => crop.naturalWidth / crop.naturalHeight)")
        table = pd.read_csv(folder / "evidence.csv")
        in_tests = table.file.str.extract(r"(\d+)")[0].astype(int) < 60
        first = table[(table.group == 1) & in_tests]
        ratios = ((first.right - first.left) / (first.bottom - first.top)).to_numpy()
        assert len(shapes) == 12 and all(np.abs(ratios / shape - 1).min() < 0.1 for shape in shapes)  # not stretched
        # A table that scrolls on a phone can be reached by keys (axe: scrollable-region-focusable).
        assert browser.count("main table") > 1 and browser.count('table:not([tabindex="0"])') == 0
        assert browser.count("#images i.lit") == 0
        browser.mouse("#groups button", click=True)
        assert browser.count("#images i.lit") == len(first)
        browser.mouse("#groups button:nth-of-type(2)", click=True)
        measured = float(re.search(r"(0\.\d+) without it", browser.text("#groups p"))[1])
        assert measured < 0.6 and float(browser.text("#auc").split()[-1]) == pytest.approx(measured, abs=0.01)
        browser.mouse("#groups button:nth-of-type(2)", click=True)
        assert browser.text("#auc") == before and not browser.problems


def test_a_network_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="model.pth"):
        evidence.write_evidence(colour_config(tmp_path, tmp_path))
