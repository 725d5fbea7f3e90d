import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.machine import choose_device
from utils.settings import Config, ConfigError


@pytest.fixture
def config(tmp_path):
    return lambda **settings: Config(
        dataset="Any", data_path=tmp_path, checkpoints_path=tmp_path, outputs_path=tmp_path, **settings
    )


@pytest.mark.parametrize(
    "cards, mps, settings, expected",
    [
        (2, False, {}, "cuda:0"),
        (2, False, {"gpu": 1}, "cuda:1"),
        (2, False, {"device": "cuda"}, "cuda:0"),
        (2, False, {"cuda": False}, "cpu"),
        (2, False, {"device": "cpu"}, "cpu"),
        (0, False, {"gpu": 3}, "cpu"),
        (0, True, {}, "mps"),
        (0, True, {"device": "mps"}, "mps"),
        (0, True, {"cuda": False}, "cpu"),
    ],
)
def test_device(config, monkeypatch, cards, mps, settings, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(choose_device(config(**{"device": "auto"} | settings))) == expected


@pytest.mark.parametrize(
    "cards, settings, message",
    [
        (0, {"device": "cuda"}, "sees no CUDA card"),
        (1, {"device": "cuda", "cuda": False}, "cuda: False forbids it"),
        (2, {"gpu": 2}, "no card 2; PyTorch sees 2"),
        (1, {"device": "mps"}, "no Apple GPU"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(config, monkeypatch, cards, settings, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        choose_device(config(**{"device": "auto"} | settings))


def test_cards_are_numbered_as_in_nvidia_smi():
    code = "import os, utils; print(os.environ['CUDA_DEVICE_ORDER'])"
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parents[1]).strip()
        == "PCI_BUS_ID"
    )
