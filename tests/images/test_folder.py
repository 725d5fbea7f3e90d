"""Folders in which files have odd names, or are no images at all."""

import os
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from samples import break_file, config_in, make_files, noise, on_disk

from utils.images.cache import read_fingerprints
from utils.images.folder import doubtful_folders, scan
from utils.system.errors import DataError


def test_scan_lists_the_images_and_what_it_skipped(tmp_path):
    images = ["a/x.webp", "b/1.jpg", "b/2.PNG", "b/deep/er/3.Jpeg"]
    hidden = [".hidden/1.png", "a/.hidden.png", "a/.cache/1.png", ".DS_Store"]
    make_files(tmp_path, [*images, *hidden, "a/notes.txt", "a/Thumbs.db", "README.txt", "stray.png"])
    (tmp_path / "nothing").mkdir()
    (tmp_path / "a" / "folder.png").mkdir()
    table, skipped = scan(tmp_path)
    assert table.to_dict("list") == {"file": images, "label": ["a", "b", "b", "b"]}
    assert sorted(skipped) == [
        "README.txt: not inside a class folder; move it into one if it is an image",
        "a/Thumbs.db: not named as an image; save it as JPEG or PNG if it is one",
        "a/notes.txt: not named as an image; save it as JPEG or PNG if it is one",
        "stray.png: not inside a class folder; move it into one if it is an image",
    ]


def link(path, target):
    try:
        path.symlink_to(target, target_is_directory=os.path.isdir(target))
    except OSError:
        pytest.skip("no right to make links")


def test_scan_follows_a_class_folder_that_is_a_link(tmp_path):
    make_files(tmp_path, ["Data/a/1.png", "elsewhere/1.png"])
    link(tmp_path / "Data" / "b", tmp_path / "elsewhere")
    assert scan(tmp_path / "Data")[0].file.tolist() == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize("names", [[], ["Data/stray.png"], ["Data/a/1.png", "Data/b/1.txt"]])
def test_scan_needs_two_classes(tmp_path, names):
    make_files(tmp_path, names)
    words = f"{len(names) - 1} class folder" if names else "no such folder"
    with pytest.raises(DataError, match=words) as caught:
        scan(tmp_path / "Data")
    assert str(caught.value).startswith(str(tmp_path / "Data"))


def test_a_missing_class_is_explained_by_what_was_skipped(tmp_path):
    make_files(tmp_path, ["a/1.png", "b/1.txt", *(f"{i}.png" for i in range(9))])
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    first, *skipped = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path}: 1 class folder(s) with images; at least 2 are needed")
    assert skipped == [
        "0.png, 1.png, 2.png and 6 more: not inside a class folder; move it into one if it is an image",
        "b/1.txt: not named as an image; save it as JPEG or PNG if it is one",
    ]


def test_classes_one_folder_too_deep_are_recognised(tmp_path):
    make_files(tmp_path, ["Flowers/roses/1.png", "Flowers/tulips/1.png"])
    with pytest.raises(DataError, match="if roses, tulips are the classes, set data_path: .*/Flowers$"):
        scan(tmp_path)


def test_links_to_folders_are_named_where_they_are_not_followed(tmp_path):
    make_files(tmp_path, ["Data/a/1.png", "Data/b/1.png", "elsewhere/1.png"])
    link(tmp_path / "Data/a/more", tmp_path / "elsewhere")
    link(tmp_path / "Data/c", tmp_path / "unmounted")
    table, skipped = scan(tmp_path / "Data")
    assert table.file.tolist() == ["a/1.png", "b/1.png"] and skipped == [
        "a/more: a link to a folder, which is not followed; put the folder itself there",
        "c: a link to nowhere; delete or correct it",
    ]


def test_folders_that_may_not_be_listed_are_named(tmp_path, monkeypatch):
    make_files(tmp_path, ["a/1.png", "a/deep/1.png", "b/1.png", "locked/1.png"])
    scandir = os.scandir

    def deny_all(path):
        raise PermissionError(13, "Permission denied", str(path))

    def deny(path):
        if Path(path).name in ("deep", "locked"):
            deny_all(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    table, skipped = scan(tmp_path)
    assert table.file.tolist() == ["a/1.png", "b/1.png"]
    assert skipped == ["a/deep, locked: a folder that cannot be listed; change its access rights"]
    monkeypatch.setattr(Path, "iterdir", deny_all)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied\); change its access rights"):
        scan(tmp_path)


@pytest.mark.parametrize("letter", [b"\xe9", b"\r"])
def test_a_name_that_is_no_text_is_named_as_far_as_it_is(tmp_path, letter):
    make_files(tmp_path, ["a/1.png", "b/1.png"])
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/caf" + letter + b".png")).touch()
    except (OSError, UnicodeError):
        pytest.skip("such names cannot be made here")
    assert scan(tmp_path)[1] == ["a/caf?.png: a name that is not valid text; rename it"]


# ------------------------------------------------------------------- what is read, and what is left out


def readable(found, folder, fit="stretch"):
    """A table without the files that cannot be read, and a line for each of these."""
    table, fingerprints, bad, _ = read_fingerprints(config_in(folder, image={"size": (16, 24), "fit": fit}), found)
    assert len(fingerprints) == len(table)
    return table, bad


def test_bad_images_are_left_out_with_the_reason(tmp_path, monkeypatch):
    make_files(tmp_path, ["a/1.png", "b/1.png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    noise(100, 100).save(tmp_path / "a/bomb.png")
    break_file(tmp_path / "a/cut.jpg", 0.5)
    (tmp_path / "a/empty.jpg").touch()
    link(tmp_path / "a/nowhere.jpg", tmp_path / "gone.jpg")
    (tmp_path / "a/text.jpg").write_text("text")
    found, skipped = scan(tmp_path)
    table, bad = readable(found, tmp_path)
    assert table.file.tolist() == ["a/1.png", "b/1.png"] and table.index.tolist() == [0, 1] and not skipped
    for line, start in zip(
        bad,
        [
            "a/bomb.png: over 0 megapixels, which is not read; save it smaller",
            "a/cut.jpg: not a readable image (image file is truncated",
            "a/empty.jpg: not a readable image (the file is empty); delete or replace it",
            "a/nowhere.jpg: a link to nowhere; delete it, or bring back",
            "a/text.jpg: not a readable image (its content is not an image's); delete or replace it",
        ],
        strict=True,
    ):
        assert line.startswith(start) and "\n" not in line and str(tmp_path) not in line


def test_unusual_images_are_taken(tmp_path):
    names = ["1 x 1.png", "1 x 5000.png", "animated.gif", "jpeg.png", on_disk("quotes ' and, \u82b1 \U0001f338.png")]
    make_files(tmp_path, ["b/1.png", *(f"a/{name}" for name in names)])
    noise(1, 1).save(tmp_path / "a/1 x 1.png")
    noise(1, 5000).save(tmp_path / "a/1 x 5000.png")
    noise().save(tmp_path / "a/animated.gif", save_all=True, append_images=[noise(seed=1)])
    noise().save(tmp_path / "a/jpeg.png", "JPEG")
    found, skipped = scan(tmp_path)
    for fit in ("stretch", "pad"):
        table, bad = readable(found, tmp_path, fit)
        assert sorted(table.file) == sorted(["b/1.png", *(f"a/{name}" for name in names)]) and skipped == bad == []
    table.to_csv(tmp_path / "split.csv", index=False)
    assert pd.read_csv(tmp_path / "split.csv", dtype=str, keep_default_na=False).equals(table)


# ---------------------------------------------------------------------------- mistakes in folders and names


def table_of(*files):
    return pd.DataFrame([(file, file.split("/")[0]) for file in files], columns=["file", "label"])


def test_classes_that_differ_only_in_case_are_named(tmp_path):
    assert doubtful_folders(table_of("Cat/1.png", "a/x.png", "cat/1.png"), tmp_path) == [  # as no Windows can hold
        "Cat and cat: classes whose names differ only in case; rename or merge them"
    ]


@pytest.mark.parametrize("names", [("caf\u00e9", "cafe\u0301"), ("caf\u00e9", "caf\u00e9 ")])
@pytest.mark.parametrize("root", ["", "train/"])
def test_class_folders_whose_names_look_alike_are_one_class_and_named(tmp_path, names, root):
    files = [f"{root}{name}/{i}.png" for i, name in enumerate([*names, "tea"])]
    make_files(tmp_path, files + ["test/tea/1.png"] * bool(root))
    if len(list((tmp_path / root).iterdir())) < 3:
        pytest.skip("this file system takes them for one")
    table, _ = scan(tmp_path)
    assert sorted(set(table.label)) == ["caf\u00e9", "tea"] and (table.label == "caf\u00e9").sum() == 2
    assert all((tmp_path / file).is_file() for file in table.file)
    spelt = " and ".join(repr(name) for name in sorted(names, key="{}/".format))
    assert doubtful_folders(table, tmp_path) == [
        f"{spelt}: one class, as their names look the same; put them into one folder"
    ]


def test_a_class_inside_a_class_is_named_with_its_first_folders(tmp_path, monkeypatch):
    (tmp_path / "Data").mkdir()
    monkeypatch.chdir(tmp_path)
    table = table_of("a/1.png", "b/1.png", "b/b/2.png", *(f"a/{name}/deep/1.png" for name in "vwxyz"))
    assert doubtful_folders(table, Path("Data")) == [
        "a: images in its sub-folders v, w, x and 2 more count as a; if these folders are classes, move them to Data/",
        "b: images in its sub-folders b count as b; if these folders are classes, move them to Data/",
    ]


def test_class_folders_without_images_are_named_but_hidden_ones_are_not(tmp_path):
    make_files(tmp_path, ["a/1.png", "b/1.png", ".cache/1.txt", "none/readme.txt", "z.txt"])
    assert doubtful_folders(table_of("a/1.png", "b/1.png"), tmp_path) == [
        "none: a class folder without a readable image; add images or delete it"
    ]
