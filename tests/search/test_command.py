"""`python -m utils search build|query|export`, through the command line's own `main`."""

import re

import pytest
import torch
from samples import make_files, noise
from toy import trained_network

from utils import __main__ as command_line

INFO = {"classes": ["a", "b"], "config": {}, "calibrated_threshold": 0.5}  # what training leaves


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in: a trained network, seven images, and one to look for."""
    (tmp_path / "checkpoints" / "Mine").mkdir(parents=True)
    trained_network(size=(16, 24)).save(tmp_path / "checkpoints" / "Mine" / "model.pth", **INFO)
    make_files(tmp_path / "photos", [f"{i // 3}/{i}.png" for i in range(7)])
    noise(seed=50).save(tmp_path / "query.png")
    (tmp_path / "config.yml").write_text(
        "dataset: Mine\ndevice: cpu\ndatasets: {Mine: {hyperparameters: {verbose: False}}, Other: {}}", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(*arguments):
    command_line.main(["search", *arguments])


def test_a_folder_is_built_and_an_image_found_in_it(place, capsys):
    search("build", "photos", "--explain")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Mine: trained on a, b", "photos: 7 images in the index; new or changed: 7, gone: 0"]
    search("query", "query.png", "--hits", "3")
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(1) == f"searched: {place / 'photos'}, which was indexed last; --folder chooses another"
    assert lines[0] == "Mine: trained on a, b" and lines[1].split() == ["rank", "similarity", "decision", "file"]
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
    files = [line.split()[3] for line in lines[2:5]]
    assert len(set(files)) == 3 and all((place / "photos" / file).is_file() for file in files)
    similarity = [float(line.split()[1]) for line in lines[2:5]]
    assert similarity == sorted(similarity, reverse=True)
    (figure,) = (place / "outputs" / "Mine" / "search").glob("query-*.png")
    assert lines[5:] == [f"which regions decide: {figure.relative_to(place)}"]


def test_an_image_that_resembles_nothing_is_named_above_the_table(place, capsys):
    model = trained_network(size=(16, 24))
    far = torch.full((40, model.head[0].in_features), -1.0) + 0.1 * torch.rand(40, 1)
    far[:, 0] += torch.linspace(0, 1, 40)
    features = torch.nn.functional.normalize(far).half()
    model.save(place / "checkpoints" / "Mine" / "model.pth", **INFO, valid_features=features)
    search("build", "photos")
    capsys.readouterr()
    search("query", "query.png", "--hits", "1")
    said = "resembles nothing that the network knows (p = 0.024, from 40 validation images)"
    assert capsys.readouterr().out.splitlines()[2] == f"query: {said}"


def test_a_hit_that_has_gone_is_named_under_the_table(place, capsys):
    search("build", "photos")
    (place / "photos" / "0" / "0.png").unlink()
    search("query", "query.png", "--folder", "photos")
    out = capsys.readouterr().out
    assert out.splitlines()[11].split()[0] == "7" and "\n    8 " not in out  # ten are wanted, and seven there
    assert "0/0.png: gone or changed; run python -m utils search build" in out


def test_an_index_is_exported(place, capsys):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for folder in ("photos", "more"):
        make_files(place / folder, ["new.png"])
        search("build", folder)
    capsys.readouterr()
    search("export", "out/index.parquet", "--folder", "more")
    assert capsys.readouterr().out.endswith(f"index.parquet: 1 image of {place / 'more'} with path and embedding\n")
    assert parquet.read_table("out/index.parquet").column_names == ["path", "embedding"]


def test_of_several_indexes_the_one_that_was_built_last_is_searched(place, capsys):
    for folder, name in (("photos", "old.png"), ("more", "other.png"), ("photos", "new.png")):
        make_files(place / folder, [name])
        search("build", folder)
    (place / "outputs" / "Mine" / "search" / "broken.sqlite").write_text("no index")
    capsys.readouterr()
    search("query", "query.png", "--folder", "more")  # writes to its index, too
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[2:-1]] == ["other.png"]
    search("query", "query.png", "--hits", "1")
    assert f"searched: {place / 'photos'}, which was indexed last" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "required: STEP"),
        (["export", "photos.parquet", "--folder", "more"], "more: not indexed; run python -m utils search build more"),
        (["query", "query.png", "--hits", "many"], "--hits: .*1 or more"),
        (["query", "query.png", "--hits", "-2"], "--hits: .*1 or more"),
        (["build", "query.png"], "query.png: no such folder"),
        (["build", "empty"], "empty: no image in it"),
        (["build", "photos", "--dataset", "Third"], "no block named 'Third'"),
        (["query", "query.png", "--folder", "more"], "more: not indexed; run python -m utils search build more"),
        (["query", "query.png", "--folder", "x" * 5000], "not indexed"),  # longer than a file's name may be
        (["query", "config.yml"], "config.yml: not a readable image"),
        (["query", "photos"], "photos: a folder; name an image"),
        (["query", "only/one.png", "--folder", "only"], "no other image; add some"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(place, capsys, arguments, words):
    (place / "empty").mkdir()
    make_files(place / "only", ["one.png"])
    search("build", "only")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        search(*arguments)
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert caught.value.code == 2 and re.search(words, line)
