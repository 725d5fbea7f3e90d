"""Gives every pytest run, notebooks included, a place of its own: the user's config.yml, data and results stay untouched."""
import os
import shutil
import tempfile
from pathlib import Path

import matplotlib
import pytest

from utils.config import SANDBOX


def pytest_configure(config):
    # In the environment, because fixtures do not reach the kernels that run the notebooks.
    folder = Path(tempfile.mkdtemp(prefix="siamese-"))
    shutil.copy(Path(__file__).parent / "tests" / "config.yml", folder)
    os.environ[SANDBOX] = str(folder)
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _no_sandbox(monkeypatch):
    """Unit tests read the configuration files that they name."""
    monkeypatch.delenv(SANDBOX)
