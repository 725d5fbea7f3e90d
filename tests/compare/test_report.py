import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from samples import HOSTILE, break_file, photographs, small_network

from utils import __main__ as command_line
from utils.compare.comparison import Comparison
from utils.compare.report import MOST, page
from utils.explain.occlusion import GRID, regression
from utils.Siamese import SiameseNetwork


def contents(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def unpacked(text, dtype, *shape):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


# ------------------------------------------------------------------------------------------ what is in the file


def test_the_page_holds_the_measured_effects_of_regions(compared):
    held, effects = contents(page(compared)), compared.effects_of(*range(4))
    regions = effects.regions.shape[1]
    for i, image in enumerate(held["images"]):
        assert np.array_equal(unpacked(image["embedding"], "<f4", 4), effects.embeddings[i].numpy())
        assert held["regions"] == effects.regions[i].tolist()
        values = unpacked(image["delta"]["values"], "<i2", regions, 4) * image["delta"]["step"]
        assert np.abs(values - effects.delta[i].numpy()).max() < 1e-4 * effects.delta[i].abs().max() and values.any()
    matrix = unpacked(held["regression"]["values"], "<i2", GRID**2, regions) * held["regression"]["step"]
    expected = regression((32, 48)).numpy()
    assert np.abs(matrix - expected).max() < 1e-4 * np.abs(expected).max()
    assert [image["name"] for image in held["images"]] == ["00.jpg", "01.jpg", "02.jpg", "03.jpg"]
    (nearest, _), order = compared.extremes(), held["likeness"]
    assert sorted(order) == [0, 1, 2, 3] and np.abs(np.subtract(*map(order.index, nearest))) == 1


def test_a_name_cannot_end_the_data_and_of_two_alike_the_folder_is_shown(pair, monkeypatch):
    name = HOSTILE.replace("/", "")
    monkeypatch.setattr(pair, "paths", [Path("one", name), Path("two", name)])
    monkeypatch.setattr(pair, "unreadable", {Path("one", "3.jpg"): HOSTILE})
    text = page(pair, network=HOSTILE)
    assert text.count("</script") == text.count("<script") == 2 and "alert" not in text.split("<script>", 1)[1]
    held = contents(text)
    assert [one["name"] for one in held["images"]] == [f"one/{name}", f"two/{name}"]
    assert held["missing"] == [HOSTILE] and held["network"] == HOSTILE


def test_ten_photographs_take_less_than_a_megabyte(tmp_path):
    network = SiameseNetwork("Conv4", embedding_dim=16, image_size=(16, 16)).eval()
    text = page(Comparison(network, photographs(tmp_path, 10, size=(400, 300))))
    assert len(contents(text)["images"]) == 10 and len(text.encode()) < 1e6


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder to work in, with a network."""
    small_network().save(tmp_path / "model.pth", classes=["a", "b"])
    (tmp_path / "config.yml").write_text("dataset: Mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(*arguments):
    command_line.main(["report", *arguments, "--output", "page.html"])
    return contents(Path("page.html").read_text(encoding="utf-8"))


def test_unreadable_images_are_named_and_left_out_and_a_pair_has_its_folder(trained, capsys):
    (trained / "images").mkdir()
    photographs(trained / "images", 3)
    break_file(trained / "images" / "00.jpg", 0.5)
    command_line.main(["report", "images", "--checkpoint", "model.pth"])
    printed = capsys.readouterr()
    written = next((trained / "outputs" / "Mine" / "pairs").glob("*/report.html"))  # two images are left
    note = "model.pth: trained on a, b"
    assert printed.out.endswith(f"{note}; similar above a similarity of 0.5\n{written.relative_to(trained)}\n")
    (line,) = printed.err.splitlines()
    assert line.startswith("left out: ") and "00.jpg: not a readable image" in line
    held = contents(written.read_text(encoding="utf-8"))
    assert [image["name"] for image in held["images"]] == ["01.jpg", "02.jpg"] and held["network"].endswith(note)
    assert [line.split(":")[0] for line in held["missing"]] == ["00.jpg"]


def test_a_page_is_written_into_a_folder_and_replaces_no_image(trained, capsys):
    paths = [str(path) for path in photographs(trained, 2)]
    Path("Mine").mkdir()
    Path("model.pth").rename("Mine/model.pth")
    command = ["report", *paths, "--checkpoint", "Mine", "--output"]
    command_line.main([*command, "pages"])
    assert Path("pages/report.html").is_file()
    image = Path(paths[0]).read_bytes()
    with pytest.raises(SystemExit):
        command_line.main([*command, paths[0]])
    assert "cannot be written" in capsys.readouterr().err and Path(paths[0]).read_bytes() == image


def test_a_folder_of_class_folders_is_compared_with_the_classes_in_the_names(trained):
    for image, file in zip(photographs(trained, 3), ("data/tulip/1.jpg", "data/rose/1.jpg", "data/.hidden/2.jpg")):
        (trained / file).parent.mkdir(parents=True, exist_ok=True)
        image.rename(trained / file)
    held = report("data", "--checkpoint", "model.pth")
    assert [image["name"] for image in held["images"]] == ["rose/1.jpg", "tulip/1.jpg"] and not held["missing"]


def test_the_network_is_the_trained_one_or_a_checkpoint_at_the_configured_threshold(trained, capsys):
    (trained / "checkpoints" / "Mine").mkdir(parents=True)
    info = {"classes": ["c", "d"], "config": {}, "calibrated_threshold": 0.5}
    small_network().save(trained / "checkpoints" / "Mine" / "model.pth", **info)
    small_network().save(trained / "bare.pth")  # without what training leaves
    (trained / "config.yml").write_text("dataset: Mine\nthreshold: 0.1")
    photographs(trained, 2)
    for options, network in (([], "Mine: trained on c, d"), (["--checkpoint", "bare.pth"], "does not name")):
        held = report("00.jpg", "01.jpg", *options)
        assert capsys.readouterr().out.endswith(f"{network}; similar above a similarity of 0.9\npage.html\n")
        assert network in held["network"] and held["threshold"] == 0.1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["one.jpg", "./one.jpg"], "one.jpg: 1 image; give two or more, or a folder of them"),
        (["empty"], "empty: 0 images; "),
        (["many"], f"many: more than {MOST} images, .*; give fewer"),
        (["one.jpg", "images/0.jpg", "--checkpoint", "model.pth"], "images/0.jpg: not a readable image"),
        (["images", "--checkpoint", "config.yml"], "config.yml: not a checkpoint"),
        (["images", "x" * 5000], "no such file or folder"),  # longer than a file's name may be
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_code_2(trained, capsys, arguments, words):
    for name, count in (("images", 2), ("many", MOST + 1), ("empty", 0)):
        (trained / name).mkdir()
        for k in range(count):
            (trained / name / f"{k}.jpg").touch()
    photographs(trained, 1)[0].rename(trained / "one.jpg")
    with pytest.raises(SystemExit) as caught:
        report(*arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and re.search(words, error) and error.count("\n") == 1
