import hashlib
import os
from pathlib import Path

import pytest

from utils.Siamese import SiameseNetwork
from utils.system.errors import UserError
from utils.system.files import counted, file_state, hash_of_paths, replacing, state_if_there, write_whole

resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX's")


def test_a_file_takes_the_others_place_when_it_is_whole(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    with replacing(path) as file:
        file.write_text("new")
        assert path.read_text() == "old" and file.suffix == ".png"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "model.pth"
    model = SiameseNetwork("Conv4", embedding_dim=4, image_size=(16, 16))
    model.save(path, number=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as little as if the disk were full
    try:
        with pytest.raises(UserError, match=r"model\.pth: cannot be written \(.*\); make room"):
            model.save(path, number=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert SiameseNetwork.load(path).info["number"] == 1 and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_made_and_one_that_cannot_be_is_named(tmp_path):
    with replacing(tmp_path / "new" / "inner" / "a.csv") as file:
        file.write_text("x")
    assert (tmp_path / "new" / "inner" / "a.csv").read_text() == "x"
    for folder in (tmp_path / "new" / "inner" / "a.csv", tmp_path / ("x" * 5000)):
        with pytest.raises(UserError, match="b.csv: cannot be written"), replacing(folder / "b.csv") as file:
            pytest.fail("not reached")


def test_text_is_written_whole_as_it_is_into_a_new_folder(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.csv"
    write_whole(path, "ä\r\n")
    assert path.read_bytes() == b"\xc3\xa4\r\n"
    monkeypatch.setattr(Path, "replace", None)  # fails
    with pytest.raises(TypeError):
        write_whole(path, "new")
    assert path.read_bytes() == b"\xc3\xa4\r\n" and list(path.parent.iterdir()) == [path]


def test_one_thing_is_singular():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_the_hash_is_of_the_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = hash_of_paths(Path("a.png"), Path("b.png"))
    full = f"{(tmp_path / 'a.png').resolve()}\n{(tmp_path / 'b.png').resolve()}"
    assert digits == hashlib.sha256(full.encode()).hexdigest()[:8]
    others = (Path("b.png"), Path("a.png")), (Path("a.png"),), (Path("\udce9"),)
    assert len({digits, *(hash_of_paths(*paths) for paths in others)}) == 4


def test_the_state_changes_with_a_file_of_the_same_size_and_time(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    before, times = file_state(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    assert before == file_state(path) == state_if_there(path) and state_if_there(tmp_path / "gone") == ""
    (tmp_path / "b").write_text("new")
    os.utime(tmp_path / "b", ns=times)
    (tmp_path / "b").replace(path)
    assert file_state(path) != before and path.stat().st_mtime_ns == times[1]
