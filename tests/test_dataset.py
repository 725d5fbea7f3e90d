import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from samples import generator, make_files, twins_in
from scipy.stats import chisquare

from utils.dataset import images_that_belong_together, load_split, prepare_split, read_split, scan, split_images
from utils.images.frame import Frame
from utils.images.reading import SUFFIXES, DataError
from utils.settings import Config


def test_scan_lists_the_images_and_says_what_it_skipped(tmp_path):
    make_files(
        tmp_path,
        [
            "b/2.PNG",
            "b/1.jpg",
            "b/deep/er/3.Jpeg",
            "a/x.webp",
            "a/notes.txt",
            "a/Thumbs.db",
            "README.txt",
            "stray.png",
            ".hidden/1.png",
            "a/.hidden.png",
            "a/.cache/1.png",
            ".DS_Store",
        ],
    )
    (tmp_path / "a" / "broken.png").write_bytes(b"no image at all")
    (tmp_path / "a" / "empty.jpg").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "a" / "folder.png").mkdir()
    table, skipped = scan(tmp_path)
    assert table.to_dict("list") == {
        "file": ["a/x.webp", "b/1.jpg", "b/2.PNG", "b/deep/er/3.Jpeg"],
        "label": ["a", "b", "b", "b"],
    }
    assert sorted(skipped) == [
        "README.txt: not inside a class folder",
        "a/Thumbs.db: not an image",
        "a/broken.png: not readable, damaged or over 179 megapixels",
        "a/empty.jpg: not readable, damaged or over 179 megapixels",
        "a/notes.txt: not an image",
        "stray.png: not inside a class folder",
    ]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_scan_knows_every_promised_format(tmp_path, suffix):
    make_files(tmp_path, [f"a/1{suffix}", f"b/1{suffix.upper()}"])
    table, skipped = scan(tmp_path)
    assert len(table) == 2 and not skipped


def test_scan_follows_a_class_folder_that_is_a_link(tmp_path):
    make_files(tmp_path, ["Data/a/1.png", "elsewhere/1.png"])
    try:
        (tmp_path / "Data" / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("no right to make links")
    assert scan(tmp_path / "Data")[0].file.tolist() == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize(
    "names, words",
    [
        (None, "no such folder"),
        ([], "no such folder"),
        (["stray.png"], "0 class folder"),
        (["a/1.png", "b/1.txt"], "1 class folder"),
    ],
)
def test_scan_needs_two_classes(tmp_path, names, words):
    make_files(tmp_path / "Data", names or [])
    with pytest.raises(DataError, match=words) as caught:
        scan(tmp_path / "Data")
    assert str(caught.value).startswith(str(tmp_path / "Data")) and "\n" not in str(caught.value)


def table_of(**counts):
    """Images of each class, the classes taking turns, so that the table is not sorted by class."""
    rows = sorted((i, label) for label, count in counts.items() for i in range(count))
    return pd.DataFrame([(f"{label}/{i}.png", label) for i, label in rows], columns=["file", "label"])


# by hand: test = round(n * share); valid = round((n - test) * share)
@pytest.mark.parametrize(
    "test_size, valid_size, expected",
    [
        (0.1, 0.1, {"a": (81, 9, 10), "b": (32, 4, 4), "c": (2, 0, 0)}),  # b: 4; 0.1 * 36 = 3.6 -> 4
        (
            0.25,
            0.5,
            {"a": (37, 38, 25), "b": (15, 15, 10), "c": (1, 1, 0)},
        ),  # a: 0.5 * 75 = 37.5 -> 38; c: 0.5 -> 0, then 1
    ],
)
def test_every_class_gets_its_share(test_size, valid_size, expected):
    split = split_images(table_of(a=100, b=40, c=2), test_size, valid_size, 0)
    found = {
        label: tuple((split.split[split.label == label] == name).sum() for name in ("train", "valid", "test"))
        for label in "abc"
    }
    assert found == expected


def test_a_split_only_adds_a_column():
    table = table_of(a=30, b=20)
    before = table.copy()
    split = split_images(table, 0.2, 0.2, 0)
    assert table.equals(before) and split[["file", "label"]].equals(before)
    assert set(split.split) == {"train", "valid", "test"}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_tiny_classes_train_only(count):
    split = split_images(table_of(a=count, b=100), 0.1, 0.1, 0)
    assert set(split.split[split.label == "a"]) == {"train"}


def test_the_seed_and_only_the_seed_decides():
    table = table_of(a=50, b=50)
    first, again, other = (split_images(table, 0.2, 0.2, seed).split for seed in (7, 7, 8))
    assert first.equals(again) and not first.equals(other)
    np.random.seed(1)
    assert split_images(table, 0.2, 0.2, 7).split.equals(first)


def test_every_image_can_be_tested():
    table = table_of(a=20, b=20)
    tested = sum((split_images(table, 0.2, 0.2, seed).split == "test").astype(int) for seed in range(300))
    assert tested.sum() == 300 * 8 and chisquare(tested).pvalue > 0.001


def random_groups(count, seed):
    """Singles, pairs and larger groups at random, across classes too."""
    rng = generator(seed)
    return np.where(rng.random(count) < 0.5, np.arange(count), rng.integers(0, count, count) // 4 * 4)


@pytest.mark.parametrize("seed", range(25))
def test_no_group_is_parted_and_the_shares_stay_near(seed):
    table = table_of(a=100, b=60, c=37, few=3)
    groups = random_groups(len(table), seed)
    split = split_images(table, 0.2, 0.25, seed, groups)
    assert (split.groupby(groups).split.nunique() == 1).all()
    wanted = split_images(table, 0.2, 0.25, seed).groupby(["label", "split"]).size()
    found = split.groupby(["label", "split"]).size().reindex(wanted.index, fill_value=0)
    assert (found - wanted).abs().max() <= 1
    assert split.split.equals(split_images(table, 0.2, 0.25, seed, groups).split)


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_one_change_nothing(seed):
    table = table_of(a=30, b=20, c=2)
    rng, expected = generator(seed), pd.Series("train", index=table.index)  # the rule without groups, written out
    for label in "abc":
        rows = rng.permutation(table.index[table.label == label].to_numpy())
        test = round(len(rows) * 0.2)
        valid = round((len(rows) - test) * 0.3)
        expected[rows[:test]], expected[rows[test : test + valid]] = "test", "valid"
    assert split_images(table, 0.2, 0.3, seed).split.tolist() == expected.tolist()
    assert split_images(table, 0.2, 0.3, seed, generator(9).permutation(len(table))).split.tolist() == expected.tolist()


# a: of 40, 8 are for testing and 0.25 * 32 = 8 for validation; by hand, what whole groups of one size can make of it
@pytest.mark.parametrize(
    "size, expected",
    [
        (2, (24, 8, 8)),
        (4, (24, 8, 8)),
        (5, (20, 10, 10)),  # 5: 10 is nearer to 8 than 5
        (10, (20, 10, 10)),
        (20, (40, 0, 0)),  # 20 is farther from 8 than 0
        (40, (40, 0, 0)),
    ],
)
def test_large_groups_come_as_near_to_the_shares_as_they_can(size, expected):
    table = table_of(a=40, b=40)
    groups = np.where(table.label == "a", table.groupby("label").cumcount() // size, 1000 + np.arange(80))
    split = split_images(table, 0.2, 0.25, 0, groups)
    counts = pd.crosstab(split.label, split.split).reindex(columns=["train", "valid", "test"], fill_value=0)
    assert tuple(counts.loc["a"]) == expected and tuple(counts.loc["b"]) == (24, 8, 8)


def test_groups_leave_something_to_train_on():
    # a: two pairs.
    split = split_images(table_of(a=4, b=100), 0.25, 0.25, 0, np.array([0, 1, 0, 3, 2, 5, 2] + list(range(7, 104))))
    assert "train" in set(split.split[split.label == "a"])


def config_for(folder, **settings):
    settings = {
        "dataset": "Mine",
        "test_size": 0.25,
        "valid_size": 0.25,
        "hyperparameters": {"verbose": False},
    } | settings
    return Config(data_path=folder, checkpoints_path=folder, outputs_path=folder, **settings)


def test_prepare_split_keeps_twins_together_whatever_the_seed(tmp_path):
    twins_in(tmp_path)
    for seed in range(20):
        table, notes = prepare_split(config_for(tmp_path, seed=seed))
        split = table.set_index("file").split
        assert split[["a/x_0_a.png", "a/x_7_a.png", "a/x_13_a.png"]].nunique() == 1
        assert split["a/x_5_a.png"] == split["b/x_5_b.png"]
        assert table.split.value_counts().to_dict() == {"train": 22, "test": 10, "valid": 8}
    assert notes == [
        "2 groups of near-duplicate images (5 files): each stays in one split; python -m utils audit Mine lists them"
    ]


def test_a_group_pattern_keeps_views_of_one_object_together(tmp_path):
    names = [
        f"{label}/{city}_{i}_{view}.png"
        for label in "ab"
        for city in ("rome", "oslo")
        for i in range(6)
        for view in (1, 2)
    ]
    make_files(tmp_path, [*names, "a/other.png", "b/other.png"])
    config = config_for(tmp_path, group_pattern=r"^([a-z]+_\d+)_")
    table, _ = scan(tmp_path)
    groups, notes = images_that_belong_together(table, config)
    by_hand = [file if "other" in file else file.rsplit("_", 1)[0] for file in table.file]  # the class is part of it
    assert not notes and [by_hand.index(key) for key in by_hand] == groups.tolist()
    for seed in range(20):
        table, _ = prepare_split(config.model_copy(update={"seed": seed}))
        assert (table.groupby(by_hand).split.nunique() == 1).all()


def test_a_pattern_links_groups_of_twins(tmp_path):
    make_files(
        tmp_path,
        [f"{label}/{i}_x.png" for label in "ab" for i in range(9)]
        + ["a/n1_1.png", "a/n1_2.png", "a/n2_1.png", "a/n2_2.png"],
    )
    (tmp_path / "a/n2_1.png").write_bytes((tmp_path / "a/n1_2.png").read_bytes())
    table, _ = scan(tmp_path)
    groups, notes = images_that_belong_together(table, config_for(tmp_path, group_pattern="^(n.)_"))
    linked = table.file.str.startswith("a/n").to_numpy()
    assert len(set(groups[linked])) == 1 and len(set(groups)) == 1 + 18
    assert notes[0].startswith("1 group of near-duplicate images (2 files)")


def test_a_pattern_that_matches_nothing_is_said(tmp_path):
    make_files(tmp_path, ["a/1.png", "a/2.png", "b/1.png"])
    groups, notes = images_that_belong_together(scan(tmp_path)[0], config_for(tmp_path, group_pattern="(berlin)"))
    assert groups.tolist() == [0, 1, 2] and notes == [
        "group_pattern: '(berlin)' is in no file name, so it groups nothing; correct it in config.yml"
    ]


def test_prepare_split_scans_splits_and_notes(tmp_path):
    make_files(
        tmp_path,
        [f"{label}/{i}.png" for label, count in (("a", 16), ("b", 16), ("few", 2)) for i in range(count)]
        + ["a/readme.txt"],
    )
    table, notes = prepare_split(config_for(tmp_path))
    assert table.groupby(["label", "split"]).size().to_dict() == {
        ("a", "train"): 9,
        ("a", "valid"): 3,
        ("a", "test"): 4,
        ("b", "train"): 9,
        ("b", "valid"): 3,
        ("b", "test"): 4,
        ("few", "train"): 2,
    }
    assert notes == [
        "a/readme.txt: not an image",
        "valid: fewer than 2 images of few; no pairs start from them",
        "test: fewer than 2 images of few; no pairs start from them",
    ]


@pytest.mark.parametrize(
    "counts, split", [({"a": 4, "b": 4}, "valid"), ({"a": 30, "b": 1}, "valid"), ({"a": 1, "b": 1}, "train")]
)
def test_prepare_split_refuses_splits_that_make_no_pairs(tmp_path, counts, split):
    make_files(tmp_path, [f"{label}/{i}.png" for label, count in counts.items() for i in range(count)])
    with pytest.raises(DataError, match=f"too few images for the {split} split"):
        prepare_split(config_for(tmp_path))


def test_prepare_split_draws_the_built_in_set_first(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.images.synthetic.IMAGES_PER_CLASS", 8)
    table, notes = prepare_split(config_for(tmp_path / "Synthetic", dataset="Synthetic"))
    assert len(table) == 5 * 8 and table.label.nunique() == 5 and not notes


def test_load_split_gives_images_and_labels_in_the_tables_order(tmp_path):
    make_files(tmp_path, ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    table = pd.DataFrame(
        {"file": ["b/2.png", "a/1.png", "b/1.png"], "label": ["b", "a", "b"], "split": ["test", "train", "test"]}
    )
    images, labels = load_split(table, "test", config_for(tmp_path), Frame((6, 10)))
    assert labels.tolist() == ["b", "b"]
    for image, name in zip(images, ["b/2.png", "b/1.png"], strict=True):
        assert np.array_equal(image.permute(1, 2, 0), Image.open(tmp_path / name))


def test_load_split_pads_every_image_by_its_own_shape(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (40, 20), "white").save(tmp_path / "a/wide.png")
    Image.new("RGB", (20, 40), "white").save(tmp_path / "a/tall.png")
    table = pd.DataFrame({"file": ["a/wide.png", "a/tall.png"], "label": "a", "split": "test"})
    images, _ = load_split(table, "test", config_for(tmp_path), Frame((8, 8), "pad", (0, 0, 0)))
    wide = torch.zeros(8, 8)
    wide[2:6] = 255
    assert torch.equal(images.float(), torch.stack([wide, wide.T])[:, None].expand(2, 3, 8, 8))


def test_read_split_returns_what_was_written_as_text(tmp_path):
    written = pd.DataFrame({"file": ["007/1.png", "NA/2.png"], "label": ["007", "NA"], "split": ["train", "test"]})
    written.to_csv(tmp_path / "split.csv", index=False)
    read = read_split(tmp_path / "split.csv")
    assert read.to_dict("list") == written.to_dict("list")


def test_read_split_says_what_to_run_first(tmp_path):
    with pytest.raises(DataError, match="split.csv: not there yet; run 01_Train_Siamese_model.ipynb"):
        read_split(tmp_path / "split.csv")
