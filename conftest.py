"""Gives every pytest run, notebooks included, a place of its own: the user's config.yml, data and results stay
untouched."""

import os
import shutil
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from utils.config import SANDBOX

FOLDER = pytest.StashKey[Path]()


def pytest_configure(config):
    # In the environment, because fixtures do not reach the kernels that run the notebooks.
    folder = Path(tempfile.mkdtemp(prefix="siamese-"))
    shutil.copy(Path(__file__).parent / "tests" / "config.yml", folder)
    os.environ[SANDBOX] = str(folder)
    config.stash[FOLDER] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _no_sandbox(monkeypatch):
    """Unit tests read the configuration files that they name."""
    monkeypatch.delenv(SANDBOX)


@pytest.fixture
def sandbox(pytestconfig):
    """The folder in which the notebooks run under --nbval."""
    return pytestconfig.stash[FOLDER]


@pytest.fixture
def notebook_results(pytestconfig, sandbox):
    """The folder in which `pytest --nbval` has run the notebooks."""
    if not pytestconfig.option.nbval:
        pytest.skip("the notebooks run with `pytest --nbval` only")
    return sandbox


@pytest.fixture
def colour_folder(tmp_path):
    """Ten red and ten blue images of 20 x 20 pixels, each with noise of its own: Data/Colours/<red|blue>/<0-9>.png."""
    rng = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        folder = tmp_path / "Data" / "Colours" / name
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 100, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "Data" / "Colours"
