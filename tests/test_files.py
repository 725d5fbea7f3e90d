from pathlib import Path

import pytest

from utils.files import replacing
from utils.settings import UserError

resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX's")


def test_a_file_takes_the_others_place_when_it_is_whole(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("old")
    with replacing(path) as file:
        file.write_text("new")
        assert path.read_text() == "old" and file.suffix == ".png"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_in_a_line_and_leaves_the_old_checkpoint(tmp_path):
    import torch

    from utils.Siamese import SiameseNetwork

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
    assert torch.load(path, weights_only=True)["info"] == {"number": 1}


def test_a_disk_that_turns_read_only_is_said_in_a_line(tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    path.write_text("old")

    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        patch.setattr(Path, "unlink", refuse)  # Linux refuses it even where there is no such file
        message = r"cannot be written \(Read-only file system\); make room"
        with pytest.raises(UserError, match=message), replacing(path) as file:
            file.write_text("new")
    assert path.read_text() == "old"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), replacing(tmp_path / "none" / "a.csv") as file:
        file.write_text("x")
