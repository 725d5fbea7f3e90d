import os
import re
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from samples import NEEDS_EMOJI, make_files, near_duplicates_in, noise

from utils import __main__ as command_line
from utils.images import download
from utils.system.errors import DataError


def test_audit_by_name(tmp_path, monkeypatch, capsys):
    near_duplicates_in(tmp_path / "Data" / "Mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text("datasets: {Mine: {hyperparameters: {verbose: False}}}")
    command_line.main(["audit", "Mine", "--config", "mine.yml"])
    printed = capsys.readouterr().out
    assert "Conflicting labels:\n  a/x_5_a.png  b/x_5_b.png\n" in printed
    assert "Near duplicates:\n  a/x_0_a.png  a/x_13_a.png  a/x_7_a.png\n" in printed


@NEEDS_EMOJI
def test_names_that_a_terminal_lacks_letters_for_are_printed_by_their_numbers(tmp_path, monkeypatch):
    """As on a Windows whose language is Chinese, into a file or a pipe."""
    make_files(tmp_path / "Data" / "Mine", [f"{label}/{i}.png" for label in "ab" for i in range(2)])
    for name in ("a/\N{BLOSSOM}.jfif", "b/\N{CJK UNIFIED IDEOGRAPH-82B1}.jpg"):
        noise(seed=9).save(tmp_path / "Data" / "Mine" / name, format="PNG")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text("datasets: {Mine: {hyperparameters: {verbose: False}}}")
    printed = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(printed, encoding="gbk", write_through=True))
    command_line.main(["audit", "Mine"])
    assert "Conflicting labels:\n  a/\\U0001f33c.jfif  b/\u82b1.jpg\n" in printed.getvalue().decode("gbk")


@pytest.mark.parametrize(
    "command, words",
    [
        ("audit Mine", "no such folder"),
        ("audit Cars", "no block named 'Cars'"),
        ("download Cars", "'Cars'; choose one of Flowers, Skin_cancer, AirBnB"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(tmp_path, monkeypatch, capsys, command, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text("datasets: {Mine: {}}")
    with pytest.raises(SystemExit) as caught:
        command_line.main(command.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and re.search(words, line)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end in another way there")
def test_a_reader_that_has_enough_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    monkeypatch.setattr(command_line, "_download", lambda *_: print("a line"))
    with pytest.raises(SystemExit) as caught:
        command_line.main(["download", "Flowers"])
    assert caught.value.code == 141
    sys.stdout.close()


@pytest.mark.parametrize(
    "problem, code, told",
    [
        (DataError("Flowers: HTTP 429; wait and try again"), 2, "Flowers: HTTP 429; wait and try again\n"),
        (KeyboardInterrupt, 130, "stopped\n"),
    ],
)
def test_a_failed_or_interrupted_download_is_one_line_and_an_exit_code(monkeypatch, capsys, problem, code, told):
    def fail(name):
        asked.append(name)
        raise problem

    asked = []
    monkeypatch.setattr(download, "download_public", fail)
    with pytest.raises(SystemExit) as caught:
        command_line.main(["download", "Flowers"])
    assert (caught.value.code, capsys.readouterr().err, asked) == (code, told, ["Flowers"])


def test_train_by_name_without_a_name_and_with_another_configuration(tmp_path, colour_folder, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(command_line, "_train", lambda options, config: trained.append(config))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text("dataset: First\ndatasets: {First: {}, Colours: {}}")
    (tmp_path / "mine.yml").write_text("dataset: Mine\nseed: 7")
    for arguments in (["train"], ["train", "Colours"], ["train", "--config", "mine.yml"]):
        command_line.main(arguments)
    assert [(config.dataset, config.seed) for config in trained] == [("First", 42), ("Colours", 42), ("Mine", 7)]


@pytest.mark.parametrize(
    "command",
    ["report none.png --output a", "report . --checkpoint none.png", "search build none.png", "search query none.png"],
)
def test_a_path_that_does_not_exist_is_said_before_anything_is_loaded(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "utils.config", None)  # so that importing it fails
    with pytest.raises(SystemExit):
        command_line.main(command.split())
    assert "none.png: no such file or folder; " in capsys.readouterr().err


def test_help_waits_for_no_heavy_package():
    run = [sys.executable, "-X", "importtime", "-m", "utils", "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in loaded and not {"torch", "pandas", "numpy", "pydantic"} & loaded and "audit" in done.stdout
