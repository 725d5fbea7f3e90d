import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from samples import config_in

from utils.system import machine
from utils.system.errors import ConfigError
from utils.system.machine import bfloat16_pays, choose_device, keep_freed_memory


def choose(monkeypatch, tmp_path, cards, mps, settings):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    return choose_device(config_in(tmp_path, **{"device": "auto"} | settings))


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
def test_device(monkeypatch, tmp_path, cards, mps, settings, expected):
    assert str(choose(monkeypatch, tmp_path, cards, mps, settings)) == expected


@pytest.mark.parametrize(
    "cards, settings, message",
    [
        (0, {"device": "cuda"}, "sees no CUDA card"),
        (1, {"device": "cuda", "cuda": False}, "cuda: False forbids it"),
        (2, {"gpu": 2}, "no card 2; PyTorch sees 2"),
        (1, {"device": "mps"}, "needs an Apple GPU"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(monkeypatch, tmp_path, cards, settings, message):
    with pytest.raises(ConfigError, match=message):
        choose(monkeypatch, tmp_path, cards, False, settings)


def test_cards_are_numbered_as_in_nvidia_smi():
    code = "import os, utils; print(os.environ['CUDA_DEVICE_ORDER'])"
    root = Path(__file__).parents[2]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).strip() == "PCI_BUS_ID"


@pytest.mark.parametrize(
    "cards, settings, expected",
    [
        (3, {"gpu": 1}, "cuda:2"),
        (3, {"device": "cuda"}, "cuda:2"),
        (3, {"device": "cpu"}, "cpu"),
        (0, {}, "cpu"),  # though there is an Apple GPU
        (2, {}, "no card 2; PyTorch sees 2, each process needs its own"),
        (0, {"device": "mps"}, "'mps' needs an Apple GPU, and trains in one process"),
    ],
)
def test_each_of_several_processes_takes_a_card_of_its_own(monkeypatch, tmp_path, cards, settings, expected):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "as torchrun sets it")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    if expected.startswith(("cuda", "cpu")):
        assert str(choose(monkeypatch, tmp_path, cards, True, settings)) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            choose(monkeypatch, tmp_path, cards, True, settings)


@pytest.mark.parametrize("left", [{"LOCAL_WORLD_SIZE": ""}, {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": ""}])
def test_what_another_launcher_left_behind_chooses_no_card(monkeypatch, tmp_path, left):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert str(choose(monkeypatch, tmp_path, 2, False, {"gpu": 1})) == "cuda:1"


def test_bfloat16_pays_where_the_hardware_computes_in_it(monkeypatch):
    capability = {0: (7, 5), 1: (8, 0), 2: (9, 0)}  # Turing; Ampere; Hopper
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[device.index])
    assert [bfloat16_pays(torch.device("cuda", card)) for card in capability] == [False, True, True]
    for found, pays in (({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", found.copy, raising=False)
        assert bfloat16_pays(torch.device("cpu")) is pays
    assert not bfloat16_pays(torch.device("mps"))


@pytest.mark.parametrize("platform, has_it", [("linux", True), ("linux", False), ("win32", None)])
def test_freed_memory_is_kept_by_glibc_alone(monkeypatch, platform, has_it):
    asked = []
    functions = {"mallopt": lambda *arguments: asked.append(arguments)} if has_it else {}  # musl has none
    monkeypatch.setattr(machine.sys, "platform", platform)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: SimpleNamespace(**functions))
    keep_freed_memory()
    assert asked == ([(-4, 0), (-1, 2**31 - 1)] if has_it else [])  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
