import sys
import time

import pandas as pd
import pytest
import torch
from samples import colour_config

from utils import launching
from utils.launching import run_together, starts_processes
from utils.machine import TrainingError
from utils.settings import ConfigError
from utils.Siamese import SiameseNetwork
from utils.training import train


def test_the_first_process_returns_and_what_it_prints_is_passed_on(capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    rows = [[0, 0], [1, 10], [2, 20], [3, 30], [4, 40]]  # two of the first process, three of the second
    assert run_together(2, "children:add_up", 20) == (20 + 0 + 20 + 1, rows, "3")
    printed = capfd.readouterr()
    out = [line for line in printed.out.splitlines() if not line.startswith("[Gloo]")]  # torch 2.8's own
    assert out == ["process 0 sieht grün"] and printed.err == ""


@pytest.mark.parametrize(
    "kind, count, error, message",
    [
        ("user", 2, ConfigError, "^a: wrong; delete it$"),
        ("bug", 1, RuntimeError, "(?s)1 of 1 processes failed.*process 0: .*ValueError: a bug"),
        ("killed", 1, TrainingError, "process 0 of 1 was ended from outside"),
    ],
)
def test_an_error_of_one_process_ends_all_and_is_raised_here(kind, count, error, message, capfd):
    with pytest.raises(error, match=message):
        run_together(count, "children:fail_alone", kind)
    assert capfd.readouterr().err == ""


def test_what_the_first_process_returns_does_not_wait_for_one_that_hangs(monkeypatch):
    monkeypatch.setattr(launching, "GRACE", 1)
    start = time.monotonic()
    assert run_together(2, "children:hang_alone") == "done" and time.monotonic() - start < 60


@pytest.fixture
def config(colour_folder, tmp_path):
    return colour_config(
        colour_folder,
        tmp_path,
        device="cpu",
        hyperparameters={"epochs": 2000},
        early_stopping={"patience": 2000},
        num_processes=2,
    )


class Interrupting:
    """A stream: an interrupt comes as soon as some words are shown."""

    encoding = "utf-8"

    def __init__(self, words):
        self.words, self.seen = words, ""

    def write(self, text):
        self.seen += text
        if self.words in self.seen:
            self.words = "never again"
            raise KeyboardInterrupt

    def flush(self):
        pass


def test_an_interrupt_keeps_what_the_processes_have_finished(config, monkeypatch):
    start = time.monotonic()
    monkeypatch.setattr(sys, "stderr", Interrupting("Epoch 3/"))
    history = train(config)
    assert time.monotonic() - start < 60  # 2,000 epochs would take longer
    assert 2 <= len(history) < 2000 and history.epoch.tolist() == list(range(1, len(history) + 1))
    there = pd.read_csv(config.checkpoints_path / "history.csv")
    pd.testing.assert_frame_equal(history, there)
    assert "Preparing explanations: 100%" in sys.stderr.seen
    assert SiameseNetwork.load(config.checkpoints_path / "model.pth").removable > 0


def test_an_interrupt_before_there_is_anything_to_keep_is_one(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Interrupting("waiting"))
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_together(1, "children:wait")
    assert time.monotonic() - start < 30  # it would wait for a minute


def test_processes_are_started_once(config, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert starts_processes(config) and not starts_processes(config.model_copy(update={"num_processes": 1}))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not starts_processes(config)
    with pytest.raises(TrainingError, match="num_processes: 3, but torchrun has started 2 on this machine; delete"):
        starts_processes(config.model_copy(update={"num_processes": 3}))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(TrainingError, match="OMPI_COMM_WORLD_SIZE=4"):
        starts_processes(config)
