import ast
import hashlib
import json
import os
import select
from pathlib import Path

import pytest

from utils.files import counted, digits_of, replacing, write_whole
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


def test_a_drive_that_stalls_leaves_the_old_checkpoint(tmp_path):
    """A pipe that is read no further: whoever writes to it waits, as for a network drive that has gone."""
    from dying import KILLED, saving, started

    from utils.Siamese import SiameseNetwork

    path, stalled = tmp_path / "model.pth", tmp_path / ".model.partial.pth"
    SiameseNetwork("Conv4", embedding_dim=4, image_size=(16, 16)).save(path, number=1)
    os.mkfifo(stalled)
    process = started(saving, path)
    drive = os.open(stalled, os.O_RDONLY | os.O_NONBLOCK)
    assert select.select([drive], [], [], 120)[0], "nothing was written under another name"
    assert os.read(drive, 2) == b"PK" and SiameseNetwork.load(path).info["number"] == 1  # more than a pipe holds
    process.kill()
    process.join()
    os.close(drive)
    assert process.exitcode == KILLED and SiameseNetwork.load(path).info["number"] == 1
    stalled.unlink()  # the drive is back
    saving(path)
    assert SiameseNetwork.load(path).info["number"] == 2 and list(tmp_path.iterdir()) == [path]


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
    monkeypatch.setattr(Path, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        write_whole(path, "new")
    assert path.read_bytes() == b"\xc3\xa4\r\n" and list(path.parent.iterdir()) == [path]


ROOT = Path(__file__).parents[1]
WRITES = {"to_csv", "to_json", "write_text", "write_bytes", "savefig", "save", "dump", "open"}


def writes(source):
    """Calls in a piece of Python that write a file in its final place: (line, call)."""
    tree = ast.parse(source)
    inside = {
        call
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any("replacing(" in ast.unparse(item.context_expr) for item in node.items)
        for call in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node not in inside:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            target = any(not isinstance(argument, ast.Starred) for argument in node.args)
            reads = name == "open" and not any(mode in ast.unparse(node) for mode in ("'w", "'a", "'x"))
            if name in WRITES and target and not reads and not (name == "dump" and "yaml" in ast.unparse(node)):
                yield node.lineno, ast.unparse(node)


def test_outputs_are_written_whole_or_not_at_all():
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("utils/**/*.py")
    }
    for path in ROOT.glob("0*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = {(name, call.split("(")[0]) for name, source in sources.items() for _, call in writes(source)}
    assert found == {
        ("utils/Siamese.py", "torch.save"),  # into memory
        ("utils/figures/report.py", "image.save"),  # into memory
        ("utils/chooser.py", "image.save"),  # into memory
        ("utils/chooser.py", "figure.savefig"),  # into memory
        ("utils/settings.py", "path.write_text"),  # Config.save, under the name that it is given
        ("utils/results.py", "self.save"),  # SiameseNetwork.save, which is careful itself
        ("utils/results.py", "model.save"),
        ("utils/results.py", "last.save"),
        ("utils/images/download.py", "open"),  # into a folder that is renamed when it is complete
    }
    assert [call for _, call in writes("with open(p, 'w') as f:\n    json.dump(x, f)")] == [
        "open(p, 'w')",
        "json.dump(x, f)",
    ]
    assert not list(writes("with replacing(p) as f:\n    table.to_csv(f)\nopen(p).read()\ntable.to_csv()"))


def test_one_thing_is_singular():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_digits_are_of_the_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = digits_of(Path("a.png"), Path("b.png"))
    full = f"{(tmp_path / 'a.png').resolve()}\n{(tmp_path / 'b.png').resolve()}"
    assert digits == hashlib.sha256(full.encode()).hexdigest()[:8]
    assert (
        len({digits, digits_of(Path("b.png"), Path("a.png")), digits_of(Path("a.png")), digits_of(Path("\udce9"))}) == 4
    )
