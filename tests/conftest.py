"""Compared photographs, from which the page is made and with which it is used; and exact measurements."""

import pytest
from samples import photographs, small_network

from utils.compare.comparison import Comparison
from utils.explain import incremental


@pytest.fixture
def exact(monkeypatch):
    """Regions are measured in float32, also where bfloat16 is faster."""
    monkeypatch.setattr(incremental, "bfloat16_pays", lambda device: False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return Comparison(small_network(), photographs(tmp_path_factory.mktemp("photographs"), 4))


@pytest.fixture(scope="module")
def pair(compared):
    return Comparison(compared.model, compared.paths[:2])
