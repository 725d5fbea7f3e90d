"""Compared photographs, from which the page is made and with which it is used."""

import pytest
from samples import photographs, small_network

from utils.compare.comparison import Comparison


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return Comparison(small_network(), photographs(tmp_path_factory.mktemp("photographs"), 4))


@pytest.fixture(scope="module")
def pair(compared):
    return Comparison(compared.model, compared.paths[:2])
