import numpy as np
import pandas as pd
import pytest
from PIL import Image
from samples import break_file, config_in, make_files, near_duplicates_in

from utils.dataset import group_images, load_split, prepare_split, read_split
from utils.images.cache import read_fingerprints
from utils.images.folder import scan
from utils.images.frame import Frame
from utils.system.errors import DataError


def config_for(folder, **settings):
    return config_in(folder, **{"test_size": 0.25, "valid_size": 0.25} | settings)


def files_of(**counts):
    return [f"{label}/{i}.png" for label, count in counts.items() for i in range(count)]


def test_prepare_split_keeps_near_duplicates_together_whatever_the_seed(tmp_path):
    near_duplicates_in(tmp_path)
    for seed in range(8):
        table, notes = prepare_split(config_for(tmp_path, seed=seed))
        split = table.set_index("file").split
        assert split[["a/x_0_a.png", "a/x_7_a.png", "a/x_13_a.png"]].nunique() == 1
        assert split["a/x_5_a.png"] == split["b/x_5_b.png"]
        assert table.split.value_counts().to_dict() == {"train": 22, "test": 10, "valid": 8}
    assert notes == [
        "2 groups of near-duplicate images (5 files): each stays in one split; python -m utils audit Mine lists them"
    ]


def groups_of(table, config):
    return group_images(table, read_fingerprints(config, table)[1], config)


def test_a_group_pattern_keeps_views_of_one_object_together(tmp_path):
    places = [f"{city}_{i}" for city in ("rome", "oslo") for i in range(6)]
    names = [f"{label}/{place}_{view}.png" for label in "ab" for place in places for view in (1, 2)]
    make_files(tmp_path, [*names, "a/other.png", "b/other.png"])
    config = config_for(tmp_path, group_pattern=r"^([a-z]+_\d+)_")
    table, _ = scan(tmp_path)
    groups, notes = groups_of(table, config)
    by_hand = [file if "other" in file else file[2:].rsplit("_", 1)[0] for file in table.file]  # whatever the class
    assert [by_hand.index(key) for key in by_hand] == groups.tolist()
    assert notes == [
        "group_pattern: 12 groups of several classes (oslo_0, oslo_1, oslo_2 and 9 more); each stays in one split; "
        "if a name means another thing in each class, rename the files"
    ]
    for seed in range(8):
        table, _ = prepare_split(config.model_copy(update={"seed": seed}))
        assert (table.groupby(by_hand).split.nunique() == 1).all()


def test_a_pattern_links_near_duplicates(tmp_path):
    make_files(tmp_path, [*files_of(a=9, b=9), "a/n1_1.png", "a/n1_2.png", "a/n2_1.png", "a/n2_2.png"])
    (tmp_path / "a/n2_1.png").write_bytes((tmp_path / "a/n1_2.png").read_bytes())
    table, _ = scan(tmp_path)
    groups, notes = groups_of(table, config_for(tmp_path, group_pattern="^(n.)_"))
    linked = table.file.str.startswith("a/n").to_numpy()
    assert len(set(groups[linked])) == 1 and len(set(groups)) == 1 + 18
    assert notes[0].startswith("1 group of near-duplicate images (2 files)")


@pytest.mark.parametrize("pattern", [r"(patient_\d+)", r"(patient_\d+)/", r"^(patient_\d+)", r"^(\d)\.", r"(\d)"])
def test_a_pattern_is_searched_below_the_class_folder_then_in_the_name(tmp_path, pattern):
    make_files(tmp_path, [f"{label}/patient_{p}/{i}.png" for label in "ab" for p in range(3) for i in range(4, 6)])
    groups, notes = groups_of(scan(tmp_path)[0], config_for(tmp_path, group_pattern=pattern))
    by_name = pattern.startswith(r"^(\d)")  # matches no path
    assert groups.tolist() == ([0, 1] * 6 if by_name else [0, 0, 2, 2, 4, 4] * 2)
    assert notes[0].startswith(f"group_pattern: {2 if by_name else 3} groups of several classes")


def test_files_in_which_a_pattern_captures_nothing_stand_alone(tmp_path):
    make_files(tmp_path, ["a/n1_1.png", "a/n1_2.png", "a/x.png", "a/y.png", "b/z.png"])
    groups, notes = groups_of(scan(tmp_path)[0], config_for(tmp_path, group_pattern=r"^(n\d)_\d|^."))
    assert groups.tolist() == [0, 0, 2, 3, 4] and not notes


def test_a_pattern_that_matches_nothing_gets_a_note(tmp_path):
    make_files(tmp_path, ["a/1.png", "a/2.png", "b/1.png"])
    groups, notes = groups_of(scan(tmp_path)[0], config_for(tmp_path, group_pattern="(berlin)"))
    assert groups.tolist() == [0, 1, 2] and notes == [
        "group_pattern: '(berlin)' matches no path or file name, so it groups nothing; correct it in config.yml"
    ]


def test_prepare_split_scans_splits_and_notes(tmp_path):
    make_files(tmp_path, [*files_of(a=16, b=16, few=2), "a/readme.txt"])
    table, notes = prepare_split(config_for(tmp_path))
    found = {label: rows.split.value_counts().to_dict() for label, rows in table.groupby("label")}
    assert found == {label: {"train": 9, "valid": 3, "test": 4} for label in "ab"} | {"few": {"train": 2}}
    assert notes == [
        "a/readme.txt: not named as an image; save it as JPEG or PNG if it is one",
        "valid: fewer than 2 images of few: no pairs start from these classes; add images",
        "test: fewer than 2 images of few: no pairs start from these classes; add images",
    ]


@pytest.mark.parametrize(
    "counts, split", [({"a": 4, "b": 4}, "valid"), ({"a": 30, "b": 1}, "valid"), ({"a": 1, "b": 1}, "train")]
)
def test_splits_that_make_no_pairs_are_an_error(tmp_path, counts, split):
    make_files(tmp_path, files_of(**counts))
    with pytest.raises(DataError, match=f"too few images for the {split} split"):
        prepare_split(config_for(tmp_path))


@pytest.mark.parametrize(
    "classes, count, advice",
    [
        ("abc", 6, "set test_size: 0.4 and valid_size: 0.4, or add images"),  # 2 of 6 for test, 2 of 4 for validation
        ("abc", 4, "add images, or put whole classes into folders for each split, train/, valid/ and test/"),
        ("abcdefghij", 1, "add images, or put whole classes into folders for each split, train/, valid/ and test/"),
    ],
)
def test_advice_for_small_classes_leads_somewhere(tmp_path, classes, count, advice):
    make_files(tmp_path, files_of(**dict.fromkeys(classes, count)))
    config = config_for(tmp_path, test_size=0.1, valid_size=0.1)
    with pytest.raises(DataError) as caught:
        prepare_split(config)
    assert str(caught.value).endswith(f"needs two classes, one of them with two images; {advice}")
    if advice.startswith("set"):
        prepare_split(config.model_copy(update={"test_size": 0.4, "valid_size": 0.4}))


# ----------------------------------------------------------------------------- classes that are held out


def test_held_out_classes_are_a_split_of_their_own(tmp_path):
    make_files(tmp_path, files_of(**{f"{size}{i}": 20 if size == "L" else 4 for size in "LS" for i in range(4)}))
    config = config_for(tmp_path, unseen_classes=0.25)
    table, notes = prepare_split(config)
    splits = table.groupby("label").split.agg(set)
    unseen = splits[splits.map(lambda found: found == {"unseen"})].index.tolist()
    assert [name[0] for name in unseen] == ["L", "S"]  # one of each size
    assert all(
        found == {"train", "valid", "test"} for name, found in splits.items() if name[0] == "L" and name not in unseen
    )
    assert notes[0] == f"unseen_classes: 2 of 8 classes are held out ({', '.join(unseen)}): 24 images"
    assert prepare_split(config)[0].equals(table)
    drawn = {tuple(_unseen_of(config.model_copy(update={"seed": seed}))) for seed in range(8)}
    assert len(drawn) > 3
    named = prepare_split(config.model_copy(update={"unseen_classes": ("L0", "S3")}))[0]
    assert set(named.label[named.split == "unseen"]) == {"L0", "S3"}


def _unseen_of(config):
    table, _ = prepare_split(config)
    return sorted(set(table.label[table.split == "unseen"]))


def test_no_image_of_a_group_is_trained_on_while_another_is_unseen(tmp_path):
    make_files(tmp_path, files_of(a=12, b=12, c=12, d=3))
    (tmp_path / "a/0.png").write_bytes((tmp_path / "d/1.png").read_bytes())  # d is rarer: it keeps its image
    table, notes = prepare_split(config_for(tmp_path, unseen_classes=["c", "d"]))
    assert set(files_of(a=12, b=12, c=12, d=3)) - set(table.file) == {"a/0.png"}
    assert notes[1:] == [
        "unseen_classes: 2 of 4 classes are held out (c, d): 15 images",
        "1 image left out (a/0.png): near duplicates, or of one group_pattern group, with images of another split",
    ]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_many_small_classes_are_divided_as_a_whole(tmp_path, count):
    classes = {f"c{i:02d}": count for i in range(20)}
    make_files(tmp_path, files_of(**classes))
    with pytest.raises(DataError, match="; set unseen_classes: 0.25, which divides the set by whole classes, or add"):
        prepare_split(config_for(tmp_path, test_size=0.1, valid_size=0.1))
    table, notes = prepare_split(config_for(tmp_path, test_size=0.1, valid_size=0.1, unseen_classes=0.25))
    assert (table.groupby("label").split.nunique() == 1).all() and len(table) == 20 * count
    # by hand: 5 of 20; a tenth of 15 is 1.5, and two classes are needed for pairs; so of 13
    assert table.groupby("split").label.nunique().to_dict() == {"train": 11, "valid": 2, "test": 2, "unseen": 5}
    assert notes[1:] == ["classes are too small to be divided, so whole classes are taken: 2 for valid and 2 for test"]


@pytest.mark.parametrize(
    "unseen, message",
    [
        (0.9, "would hold out 4 of the 4 classes in {}; at least 2 must be held out, and 2 be left to train on"),
        (["a"], "would hold out 1 of the 4"),
        ([*"abc"], "would hold out 3 of the 4"),
        (["a", "x"], "no class x in {} (a, b, c and 1 more); correct the names in config.yml"),
    ],
)
def test_held_out_classes_that_cannot_be(tmp_path, unseen, message):
    make_files(tmp_path, files_of(a=6, b=6, c=6, d=6))
    with pytest.raises(DataError) as caught:
        prepare_split(config_for(tmp_path, unseen_classes=unseen))
    assert str(caught.value).startswith("unseen_classes: " + message.format(tmp_path)) and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------- a set that is divided already


def given_files(*folders, count=3):
    return [f"{folder}/{label}/{i}.png" for folder in folders for label in "ab" for i in range(count)]


def test_given_splits_are_kept(tmp_path):
    make_files(tmp_path, given_files("Training", "val", "test") + ["labels.csv", "extra/1.png", "test/9.png"])
    table, notes = prepare_split(config_for(tmp_path))
    given = {"Training": "train", "val": "valid", "test": "test"}
    assert [tuple(row) for row in table.itertuples(index=False)] == [
        (file, file.split("/")[1], given[file.split("/")[0]]) for file in sorted(given_files(*given))
    ]
    assert sorted(notes) == [
        f"{tmp_path}: divided already, the splits are those of its folders",
        "extra: a folder beside those of the splits (Training, test, val); move it into one if it is a class",
        "labels.csv: not inside a class folder; move it into one if it is an image",
        "test/9.png: not inside a class folder; move it into one if it is an image",
    ]


@pytest.mark.parametrize("folders, drawn", [(("train", "test"), "valid"), (("train", "valid"), "test")])
def test_a_split_that_is_missing_is_drawn_from_train(tmp_path, folders, drawn):
    make_files(tmp_path, given_files(*folders, count=12))
    table, notes = prepare_split(config_for(tmp_path))
    assert (table.split[table.file.str.startswith(folders[1])] == folders[1]).all()
    counts = table[table.file.str.startswith("train")].groupby(["label", "split"]).size()
    assert counts.to_dict() == {
        (label, split): {"train": 9, drawn: 3}[split] for label in "ab" for split in ("train", drawn)
    }
    assert notes == [
        f"{tmp_path}: divided already, the splits are those of its folders; {drawn}: no such folder; drawn from train"
    ]


def test_duplicates_across_given_splits_are_named(tmp_path):
    make_files(tmp_path, given_files("train", "valid", "test"))
    (tmp_path / "test/a/0.png").write_bytes((tmp_path / "train/a/1.png").read_bytes())
    table, notes = prepare_split(config_for(tmp_path))
    assert dict(zip(table.file, table.split))["test/a/0.png"] == "test"
    assert notes[1:] == [
        "in several splits: 1 group of images that belong together (test/a/0.png, train/a/1.png); "
        "scores will be too high; delete the images from train"
    ]


def test_given_splits_lose_the_classes_that_are_held_out(tmp_path):
    files = [f"{split}/{label}/{i}.png" for split in ("train", "valid", "test") for label in "abcd" for i in range(2)]
    make_files(tmp_path, files)
    table, notes = prepare_split(config_for(tmp_path, unseen_classes=["d", "b"]))
    expected = {file: "unseen" if file.split("/")[1] in "bd" else file.split("/")[0] for file in sorted(files)}
    assert dict(zip(table.file, table.split)) == expected and list(table.index) == list(range(24))
    assert notes == [
        "unseen_classes: 2 of 4 classes are held out (b, d): 12 images",
        f"{tmp_path}: divided already, the splits are those of its folders",
    ]


def test_classes_of_two_images_can_be_divided_as_a_whole(tmp_path):
    classes = {"train": "abc", "valid": "de", "test": "fg"}
    make_files(tmp_path, [f"{split}/{label}/{i}.png" for split in classes for label in classes[split] for i in (1, 2)])
    table, _ = prepare_split(config_for(tmp_path))
    assert table.groupby("split").label.unique().map("".join).to_dict() == classes


@pytest.mark.parametrize(
    "files",
    [["train/a/1.png", "test/a/1.png"], ["train/1.png", "test/1.png"], ["train/a/1.png", "train/b/1.png", "car/1.png"]],
)
def test_classes_called_train_and_test_are_classes(tmp_path, files):
    make_files(tmp_path, files)
    table, _ = scan(tmp_path)
    assert "split" not in table and set(table.label) == {file.split("/")[0] for file in files}


CLASSES = [f"{label}/{i:02d}.png" for label in "ab" for i in range(12)]


def broken_folder(folder):
    """Classes a and b of 12 images each, of which three are bad, and a link to nowhere."""
    make_files(folder, CLASSES)
    break_file(folder / "a/03.png", 0.5)
    break_file(folder / "b/07.png", 0)
    (folder / "b/08.png").write_text("no image")
    (folder / "a/link.jpg").symlink_to(folder / "nowhere.jpg")
    return ["a/03.png", "a/link.jpg", "b/07.png", "b/08.png"]


def test_all_bad_images_are_left_out_and_named_at_once(tmp_path, capsys):
    bad = broken_folder(tmp_path)
    table, notes = prepare_split(config_for(tmp_path))
    assert sorted(table.file) == sorted(set(CLASSES) - set(bad)) and set(table.split) == {"train", "valid", "test"}
    assert notes[0] == "4 of 25 images cannot be read: left out (on_bad_image: skip)"
    assert [note.split(":")[0] for note in notes[1:]] == bad
    images, rows = load_split(table, "train", config_for(tmp_path), Frame((4, 4)))
    assert len(images) == len(rows) == (table.split == "train").sum() and capsys.readouterr().out == ""


def test_bad_images_are_an_error_where_that_is_asked_for(tmp_path):
    bad = broken_folder(tmp_path)
    with pytest.raises(DataError) as caught:
        prepare_split(config_for(tmp_path, on_bad_image="error"))
    summary, *lines = str(caught.value).splitlines()
    assert summary == (
        f"{tmp_path}: 4 of 25 images cannot be read; "
        "replace or delete them, or set on_bad_image: skip to go on without them"
    )
    assert [line.split(":")[0] for line in lines] == bad
    for file in bad:
        (tmp_path / file).unlink()
    assert len(prepare_split(config_for(tmp_path, on_bad_image="error"))[0]) == 21


def test_bad_images_that_leave_too_few_are_all_in_the_error(tmp_path):
    make_files(tmp_path, CLASSES)
    for i in range(12):
        break_file(tmp_path / f"b/{i:02d}.png", 0.5)
    with pytest.raises(DataError, match=r"1 class folder\(s\) with images") as caught:
        prepare_split(config_for(tmp_path))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == CLASSES[12:]


@pytest.mark.parametrize("break_it", [lambda path: path.unlink(), lambda path: break_file(path, 0.5)])
def test_images_that_break_after_the_scan_are_left_out_too(tmp_path, capsys, break_it):
    make_files(tmp_path, CLASSES)
    config = config_for(tmp_path)
    table, _ = prepare_split(config)
    train = table[table.split == "train"]
    lost = train.file.iloc[1]
    break_it(tmp_path / lost)
    images, rows = load_split(table, "train", config, Frame((6, 10)))
    assert rows.equals(train[train.file != lost])
    expected = [np.asarray(Image.open(tmp_path / file)) for file in rows.file]
    assert np.array_equal(images[range(len(images))].permute(0, 2, 3, 1), np.stack(expected))
    assert capsys.readouterr().out == f"train: 1 of {len(train)} images gone or unreadable, left out: {lost}\n"
    with pytest.raises(DataError, match=f"1 of {len(train)} images cannot be read; replace or delete them") as caught:
        load_split(table, "train", config_for(tmp_path, on_bad_image="error"), Frame((6, 10)))
    assert str(caught.value).splitlines()[1].startswith(f"{tmp_path / lost}: no")


def test_too_few_images_after_the_scan_are_an_error(tmp_path):
    make_files(tmp_path, CLASSES)
    table, _ = prepare_split(config_for(tmp_path))
    for file in table.file[(table.split == "valid") & (table.label == "b")]:
        (tmp_path / file).unlink()
    with pytest.raises(DataError, match="too few images for the valid split"):
        load_split(table, "valid", config_for(tmp_path), Frame((6, 10)))


# ---------------------------------------------------------------------------------------- bad data sets


def test_a_folder_of_identical_images_is_an_error(tmp_path):
    make_files(tmp_path, CLASSES)
    for file in CLASSES:
        (tmp_path / file).write_bytes((tmp_path / CLASSES[0]).read_bytes())
    with pytest.raises(DataError) as caught:
        prepare_split(config_for(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: too few images for the valid split, which needs two classes, one of them with two images "
        "(24 of 24 images belong together, as near duplicates or by group_pattern); add images that differ"
    )


def test_prepare_split_draws_the_built_in_set_first(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.images.synthetic.IMAGES_PER_CLASS", 8)
    table, notes = prepare_split(config_for(tmp_path / "Synthetic", dataset="Synthetic"))
    assert len(table) == 5 * 8 and table.label.nunique() == 5 and not notes


def test_read_split_returns_what_was_written_as_text(tmp_path):
    written = pd.DataFrame({"file": ["007/1.png", "NA/2.png"], "label": ["007", "NA"], "split": ["train", "test"]})
    written.to_csv(tmp_path / "split.csv", index=False)
    read = read_split(tmp_path / "split.csv")
    assert read.to_dict("list") == written.to_dict("list")


def test_read_split_tells_what_to_run_first(tmp_path):
    with pytest.raises(DataError, match="split.csv: not there yet; run 01_Train_Siamese_model.ipynb"):
        read_split(tmp_path / "split.csv")


@pytest.mark.parametrize("content", [b"file;label;split\na/1.png;a;test\n", b"", b"\xff\xfef\0", b"a\nb,c\n\n1,2,3"])
def test_a_split_that_was_changed_is_named(tmp_path, content):
    (tmp_path / "split.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"split.csv: no table of file, label and split \(.*\); bring back") as caught:
        read_split(tmp_path / "split.csv")
    assert "\n" not in str(caught.value)


def test_other_images_are_not_mixed_with_the_built_in_scenes(tmp_path):
    make_files(tmp_path / "Synthetic", ["cats/1.png", "dots/1.png"])
    with pytest.raises(DataError, match="Synthetic: holds cats, not the built-in scenes; set dataset: in config.yml"):
        prepare_split(config_for(tmp_path / "Synthetic", dataset="Synthetic"))
