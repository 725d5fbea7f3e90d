from pathlib import Path

import pandas as pd
import pytest
from samples import config_in

from utils.compare.choosing import (
    choose_pair,
    distinct_names,
    example_images,
    images_to_compare,
    names_with_folders,
    pair_folder,
)
from utils.system.errors import DataError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def config(tmp_path):
    """A trained dataset of three classes with 1, 3 and 2 test images."""
    settings = config_in(tmp_path, compare_path=tmp_path / "Data" / "data_for_compare")
    test = ["b/1.png", "a/0.png", "b/2.png", "c/9.png", "b/3.png", "c/sub/8.png"]
    rows = [("a/train.png", "a", "train"), *((file, file[0], "test") for file in test)]
    pd.DataFrame(rows, columns=["file", "label", "split"]).to_csv(settings.checkpoints_path / "split.csv", index=False)
    return settings


def names(paths):
    return [path.name for path in paths]


def test_examples_are_the_first_test_images_of_every_class(config):
    assert names(example_images(config)) == ["0.png", "1.png", "2.png", "9.png", "8.png"]
    assert example_images(config)[0] == config.data_path / "a" / "0.png"


def test_examples_before_training_are_the_first_images_of_every_folder(config):
    (config.checkpoints_path / "split.csv").unlink()
    for file in ("b/3.png", "b/1.png", "b/2.png", "a/x.jpg", "a/notes.txt", "loose.png"):
        touch(config.data_path / file)
    assert [path.relative_to(config.data_path).as_posix() for path in example_images(config)] == [
        "a/x.jpg",
        "b/1.png",
        "b/2.png",
    ]


def test_the_pair_is_the_one_given_or_of_one_class(config):
    assert choose_pair(config, "0.png", Path("3.png")) == (Path("0.png"), Path("3.png"))
    assert choose_pair(config, None, None) == (config.data_path / "b" / "1.png", config.data_path / "b" / "2.png")
    with pytest.raises(DataError, match="give both, or neither"):
        choose_pair(config, None, "0.png")


def test_images_of_the_usual_or_a_given_folder_in_order(config, tmp_path):
    for folder in (config.compare_path, tmp_path / "mine"):
        for name in ("c.png", "B.JPG", "a.webp", "._a.png", ".gitkeep", "README.txt", "sub/d.png", "folder.png/e.png"):
            touch(folder / name)
    for found in (images_to_compare(config), images_to_compare(config, tmp_path / "mine")):
        assert names(found) == ["B.JPG", "a.webp", "c.png"]
    assert found[0].parent == tmp_path / "mine"


def test_a_given_folder_must_hold_two_images_and_for_the_usual_one_test_images_stand_in(config, tmp_path):
    for folder in (tmp_path / "mine", config.compare_path):
        touch(folder / "alone.png")
    assert images_to_compare(config) == example_images(config)
    with pytest.raises(DataError, match="compare_folder: .*mine: 1 image there"):
        images_to_compare(config, tmp_path / "mine")


def test_every_pair_has_a_folder_of_its_own(config):
    pairs = [
        ("d1/rose/1.jpg", "d1/rose/2.jpg"),
        ("d1/rose/2.jpg", "d1/rose/1.jpg"),
        ("d2/rose/1.jpg", "d1/rose/2.jpg"),
        ("d1/rose/1.png", "d1/rose/2.jpg"),
        ("d/" + "x" * 200 + "1.jpg", "d/y.jpg"),
        ("d/" + "x" * 200 + "2.jpg", "d/y.jpg"),
    ]
    folders = [pair_folder(config, Path(one), Path(other)) for one, other in pairs]
    assert len(set(folders)) == len(pairs) and folders[0].name.startswith("rose-1__rose-2__")
    assert folders[0] == pair_folder(config, Path(pairs[0][0]).resolve(), Path(pairs[0][1]))
    folders[-1].mkdir(parents=True)  # a long name still makes a folder


def test_folders_of_pairs_have_names_that_windows_allows(config):
    for name in ('a"b', "a:b", "a<b>", "a|b", "a?", "a*", "a\\b", "a\nb", "a\udce9b", "con.1", "x.", "x "):
        folder = pair_folder(config, Path("d") / name / f"{name}.jpg", Path(name) / "1.jpg").name
        assert not set(folder) & set('<>:"/\\|?*.\n') and folder.encode() and folder[-1] in "0123456789abcdef"


def test_names_that_two_images_share_come_with_their_folders():
    paths = [Path("rose/IMG_1.jpg"), Path("rose/IMG_2.jpg"), Path("tulip/IMG_1.png")]
    assert distinct_names(paths[:2]) == ["IMG_1", "IMG_2"]
    assert distinct_names(paths) == ["rose/IMG_1.jpg", "rose/IMG_2.jpg", "tulip/IMG_1.png"]
    assert distinct_names([Path("1.jpg"), Path("1.png")]) == ["1.jpg", "1.png"]
    assert names_with_folders([Path("a/rose/1.jpg"), Path("b/../b/rose/1.jpg")]) == ["a/rose/1.jpg", "b/rose/1.jpg"]
    assert names_with_folders([Path("rose/1.jpg"), Path("rose/2.jpg")]) == ["1.jpg", "2.jpg"]
    assert names_with_folders([Path("rose/1.jpg")] * 2) == ["1.jpg", "1.jpg"]
