"""Images on disk -> tables, splits, pairs, batches: against hand-made images, naive rules and torch's own operations."""
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import chisquare

from utils import dataset, download
from utils.config import Config, ImageOptions
from utils.dataset import (
    Augmentation, DataError, Frame, Pairs, evaluation_pairs, evenly, image_batches, load_images, load_split, make_pairs, pair_batches,
    images_that_belong_together, prepare_split, read_image, read_split, scan, split_images, to_uint8,
)
from utils.download import DownloadError


def generator(seed=0):
    return np.random.default_rng(seed)


def noise(height=6, width=10, seed=0):
    return Image.fromarray(generator(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_files(root, names):
    """An image for every name; those whose suffix is no image's are text."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(seed=seed).save(path) if path.suffix.lower() in dataset.SUFFIXES else path.write_text("text")


# ------------------------------------------------------------------------------------------------ scan


def test_scan_lists_the_images_and_says_what_it_skipped(tmp_path):
    make_files(tmp_path, ["b/2.PNG", "b/1.jpg", "b/deep/er/3.Jpeg", "a/x.webp", "a/notes.txt", "a/Thumbs.db", "README.txt", "stray.png",
                          ".hidden/1.png", "a/.hidden.png", "a/.cache/1.png", ".DS_Store"])
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
        "README.txt: not inside a class folder", "a/Thumbs.db: not an image", "a/broken.png: not readable, damaged or over 179 megapixels",
        "a/empty.jpg: not readable, damaged or over 179 megapixels", "a/notes.txt: not an image", "stray.png: not inside a class folder",
    ]


@pytest.mark.parametrize("suffix", sorted(dataset.SUFFIXES))
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


@pytest.mark.parametrize("names, words", [
    (None, "no such folder"), ([], "no such folder"), (["stray.png"], "0 class folder"), (["a/1.png", "b/1.txt"], "1 class folder"),
])
def test_scan_needs_two_classes(tmp_path, names, words):
    make_files(tmp_path / "Data", names or [])
    with pytest.raises(DataError, match=words) as caught:
        scan(tmp_path / "Data")
    assert str(caught.value).startswith(str(tmp_path / "Data")) and "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("orientation, stored", [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
    (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a)), (7, lambda a: np.rot90(a.transpose(1, 0, 2), 2)), (8, lambda a: np.rot90(a, -1)),
])
def test_a_camera_that_was_turned(tmp_path, orientation, stored):
    upright = np.asarray(noise())
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored(upright))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), upright)


RED, WHITE, PINK = (255, 0, 0), (255, 255, 255), (255, 127, 127)


def two_by_one(mode, first, second):
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), first)
    image.putpixel((1, 0), second)
    return image


def palette_image(transparency):
    image = two_by_one("P", 0, 1)
    image.putpalette([*RED, 0, 0, 255])
    image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize("image, suffix, expected", [
    (two_by_one("RGB", RED, WHITE), "png", [RED, WHITE]),
    (two_by_one("RGBA", (*RED, 255), (0, 255, 0, 0)), "png", [RED, WHITE]),
    (two_by_one("RGBA", (*RED, 128), (0, 0, 0, 0)), "png", [PINK, WHITE]),
    (two_by_one("LA", (100, 255), (100, 0)), "png", [(100,) * 3, WHITE]),
    (palette_image(1), "gif", [RED, WHITE]),
    (palette_image(bytes([128, 0])), "png", [PINK, WHITE]),
    (two_by_one("L", 0, 77), "png", [(0,) * 3, (77,) * 3]),
    (two_by_one("1", 0, 1), "png", [(0,) * 3, WHITE]),
    (two_by_one("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "tif", [RED, WHITE]),
    (Image.fromarray(np.array([[0, 65535]], np.uint16)), "png", [(0,) * 3, WHITE]),
    (Image.fromarray(np.array([[128 * 256, 1000]], np.uint16)), "tif", [(128,) * 3, (3,) * 3]),
])
def test_every_kind_of_image_becomes_rgb_on_white(tmp_path, image, suffix, expected):
    image.save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.mode == "RGB"
    assert np.abs(np.asarray(read)[0].astype(int) - expected).max() <= 1


def break_file(path, share):
    noise(60, 60).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "bmp", "webp"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_file_is_named(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    break_file(path, share)
    with pytest.raises(DataError, match="not a readable image") as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_an_image_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match="no such image") as caught:
        read_image(tmp_path / "gone.png")
    assert str(caught.value).startswith(str(tmp_path / "gone.png"))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_to_uint8_is_channels_height_width(mode):
    tensor = to_uint8(noise(20, 50).convert(mode), Frame((8, 12)))
    assert tensor.shape == (3, 8, 12) and tensor.dtype == torch.uint8 and tensor.is_contiguous()


def test_to_uint8_puts_each_pixel_in_its_place():
    quarters = np.zeros((40, 80, 3), np.uint8)  # red above, green right, blue below left
    quarters[:20, :, 0], quarters[:, 40:, 1], quarters[20:, :40, 2] = 255, 255, 255
    tensor = to_uint8(Image.fromarray(quarters), Frame((4, 6)))
    assert tensor[0, 0, 0] == 255 and tensor[0, 3].max() == 0
    assert tensor[1, :, 5].min() == 255 and tensor[1, :, 0].max() == 0
    assert tensor[2, 3, 0] == 255 and tensor[2, 0].max() == 0


def test_to_uint8_at_the_same_size_changes_nothing():
    assert torch.equal(to_uint8(noise(), Frame((6, 10))), torch.from_numpy(np.asarray(noise()).copy()).permute(2, 0, 1))


SIZES = [(10, 6), (6, 10), (7, 7), (301, 57), (13, 640), (1, 1), (2000, 3), (3, 2000)]  # width, height


@pytest.mark.parametrize("size", SIZES)
def test_stretching_is_one_resize_to_the_whole_frame(size):
    image, frame = noise(size[1], size[0]), Frame((9, 14))
    assert np.array_equal(to_uint8(image, frame).permute(1, 2, 0), image.resize((14, 9), Image.Resampling.BILINEAR))
    assert frame.box(size) == (slice(0, 9), slice(0, 14))


@pytest.mark.parametrize("size, frame, rows, columns", [
    ((200, 100), (64, 64), (16, 48), (0, 64)), ((100, 200), (64, 64), (0, 64), (16, 48)), ((50, 50), (64, 64), (0, 64), (0, 64)),
    ((10, 10), (40, 60), (0, 40), (10, 50)), ((30, 20), (40, 60), (0, 40), (0, 60)),
    ((30, 10), (65, 65), (21, 43), (0, 65)),  # 21.67 rows: 22, and 21 above them, 22 below
    ((2000, 3), (64, 64), (31, 32), (0, 64)), ((3, 2000), (64, 64), (0, 64), (31, 32)), ((1, 1), (16, 17), (0, 16), (0, 16)),
])
def test_a_padded_image_fills_the_middle_of_the_frame(size, frame, rows, columns):
    assert Frame(frame, "pad").box(size) == (slice(*rows), slice(*columns))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame", [(64, 64), (33, 50), (50, 33)])
def test_padding_agrees_with_pillow_but_for_rounding(size, frame):
    image = noise(size[1], size[0])
    framed = to_uint8(image, Frame(frame, "pad", (0.1, 0.2, 0.3))).permute(1, 2, 0).numpy()
    rows, columns = Frame(frame, "pad").box(size)
    inside = np.zeros(frame, dtype=bool)
    inside[rows, columns] = True
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert np.array_equal(framed[inside].reshape(height, width, 3), image.resize((width, height), Image.Resampling.BILINEAR))
    assert (framed[~inside] == [26, 51, 76]).all()  # 25.5, 51 and 76.5, halves to the even number
    if min(size) > 3:  # Pillow would make thinner ones vanish
        assert np.abs(np.subtract((width, height), ImageOps.contain(image, frame[::-1]).size)).max() <= 1
    assert abs(rows.start - (frame[0] - rows.stop)) <= 1 and abs(columns.start - (frame[1] - columns.stop)) <= 1


def test_a_turned_photograph_is_padded_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise(20, 40).save(tmp_path / "a.png", exif=exif)
    expected = to_uint8(read_image(tmp_path / "a.png"), Frame((16, 16), "pad"))
    assert torch.equal(to_uint8(Image.open(tmp_path / "a.png"), Frame((16, 16), "pad")), expected)
    assert len(set(map(tuple, expected[:, :, 0].T.tolist()))) == 1  # blank at the left: it stands upright


def test_what_padding_fills_in_is_what_augmentation_fills_in():
    mean = (0.3, 0.6, 0.9)
    framed = to_uint8(noise(10, 40), Frame((16, 16), "pad", mean))
    options = ImageOptions(RandomErasing=1, HorizontalFlip=0, normalization={"mean": mean})
    erased = Augmentation(options, seed=0)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert set(map(tuple, erased[0].flatten(1).T.tolist())) == {(0, 0, 0), tuple(framed[:, 0, 0].tolist())}


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_load_images_decodes_each_file_once_and_keeps_the_order(tmp_path, monkeypatch, num_workers):
    paths, opened = [tmp_path / f"{i}.png" for i in range(30)], []
    for i, path in enumerate(paths):
        Image.new("RGB", (5, 4), (i, 2 * i, 3 * i)).save(path)
    monkeypatch.setattr(dataset, "read_image", lambda path: opened.append(path) or read_image(path))
    images = load_images(paths[::-1], Frame((2, 3)), num_workers, verbose=False)
    assert images.shape == (30, 3, 2, 3) and images.dtype == torch.uint8
    assert images[:, :, 1, 2].tolist() == [[i, 2 * i, 3 * i] for i in reversed(range(30))]
    assert Counter(opened) == dict.fromkeys(paths, 1)


def test_load_images_names_the_bad_file(tmp_path):
    make_files(tmp_path, ["1.png", "2.png", "3.png"])
    break_file(tmp_path / "2.png", 0.5)
    with pytest.raises(DataError, match="2.png: not a readable image"):
        load_images(sorted(tmp_path.iterdir()), Frame((4, 4)), 2, verbose=False)


# ---------------------------------------------------------------------------------------------- splits


def table_of(**counts):
    """Images of each class, the classes taking turns, so that the table is not sorted by class."""
    rows = sorted((i, label) for label, count in counts.items() for i in range(count))
    return pd.DataFrame([(f"{label}/{i}.png", label) for i, label in rows], columns=["file", "label"])


# by hand: test = round(n * share); valid = round((n - test) * share)
@pytest.mark.parametrize("test_size, valid_size, expected", [
    (0.1, 0.1, {"a": (81, 9, 10), "b": (32, 4, 4), "c": (2, 0, 0)}),  # b: 4; 0.1 * 36 = 3.6 -> 4
    (0.25, 0.5, {"a": (37, 38, 25), "b": (15, 15, 10), "c": (1, 1, 0)}),  # a: 0.5 * 75 = 37.5 -> 38; c: 0.5 -> 0, then 1
])
def test_every_class_gets_its_share(test_size, valid_size, expected):
    split = split_images(table_of(a=100, b=40, c=2), test_size, valid_size, 0)
    found = {label: tuple((split.split[split.label == label] == name).sum() for name in ("train", "valid", "test")) for label in "abc"}
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
@pytest.mark.parametrize("size, expected", [
    (2, (24, 8, 8)), (4, (24, 8, 8)), (5, (20, 10, 10)),  # 5: 10 is nearer to 8 than 5
    (10, (20, 10, 10)),
    (20, (40, 0, 0)),  # 20 is farther from 8 than 0
    (40, (40, 0, 0)),
])
def test_large_groups_come_as_near_to_the_shares_as_they_can(size, expected):
    table = table_of(a=40, b=40)
    groups = np.where(table.label == "a", table.groupby("label").cumcount() // size, 1000 + np.arange(80))
    split = split_images(table, 0.2, 0.25, 0, groups)
    counts = pd.crosstab(split.label, split.split).reindex(columns=["train", "valid", "test"], fill_value=0)
    assert tuple(counts.loc["a"]) == expected and tuple(counts.loc["b"]) == (24, 8, 8)


def test_groups_leave_something_to_train_on():
    split = split_images(table_of(a=4, b=100), 0.25, 0.25, 0, np.array([0, 1, 0, 3, 2, 5, 2] + list(range(7, 104))))  # a: two pairs
    assert "train" in set(split.split[split.label == "a"])


def twins_in(folder):
    """Classes a and b of 20 images each; a chain of three twins in a, a pair with conflicting labels, all else alone."""
    make_files(folder, [f"{label}/x_{i}_{label}.png" for label in "ab" for i in range(20)])
    picture = noise(12, 16, seed=99)
    for index, name in enumerate(["a/x_0_a", "a/x_7_a", "a/x_13_a"]):
        picture.resize((64 << index, 48 << index), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    (folder / "b/x_5_b.png").write_bytes((folder / "a/x_5_a.png").read_bytes())


def test_prepare_split_keeps_twins_together_whatever_the_seed(tmp_path):
    twins_in(tmp_path)
    for seed in range(20):
        table, notes = prepare_split(config_for(tmp_path, seed=seed))
        split = table.set_index("file").split
        assert split[["a/x_0_a.png", "a/x_7_a.png", "a/x_13_a.png"]].nunique() == 1
        assert split["a/x_5_a.png"] == split["b/x_5_b.png"]
        assert table.split.value_counts().to_dict() == {"train": 22, "test": 10, "valid": 8}
    assert notes == ["2 groups of near-duplicate images (5 files): each stays in one split; python -m utils.dataset audit Mine lists them"]


def test_a_group_pattern_keeps_views_of_one_object_together(tmp_path):
    names = [f"{label}/{city}_{i}_{view}.png" for label in "ab" for city in ("rome", "oslo") for i in range(6) for view in (1, 2)]
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
    make_files(tmp_path, [f"{label}/{i}_x.png" for label in "ab" for i in range(9)] + ["a/n1_1.png", "a/n1_2.png", "a/n2_1.png", "a/n2_2.png"])
    (tmp_path / "a/n2_1.png").write_bytes((tmp_path / "a/n1_2.png").read_bytes())
    table, _ = scan(tmp_path)
    groups, notes = images_that_belong_together(table, config_for(tmp_path, group_pattern="^(n.)_"))
    linked = table.file.str.startswith("a/n").to_numpy()
    assert len(set(groups[linked])) == 1 and len(set(groups)) == 1 + 18
    assert notes[0].startswith("1 group of near-duplicate images (2 files)")


def test_a_pattern_that_matches_nothing_is_said(tmp_path):
    make_files(tmp_path, ["a/1.png", "a/2.png", "b/1.png"])
    groups, notes = images_that_belong_together(scan(tmp_path)[0], config_for(tmp_path, group_pattern="(berlin)"))
    assert groups.tolist() == [0, 1, 2] and notes == ["group_pattern: '(berlin)' is in no file name, so it groups nothing; mend it in config.yml"]


def config_for(folder, **settings):
    settings = {"dataset": "Mine", "test_size": 0.25, "valid_size": 0.25, "hyperparameters": {"verbose": False}} | settings
    return Config(data_path=folder, checkpoints_path=folder, outputs_path=folder, **settings)


def test_prepare_split_scans_splits_and_notes(tmp_path):
    make_files(tmp_path, [f"{label}/{i}.png" for label, count in (("a", 16), ("b", 16), ("few", 2)) for i in range(count)] + ["a/readme.txt"])
    table, notes = prepare_split(config_for(tmp_path))
    assert table.groupby(["label", "split"]).size().to_dict() == {
        ("a", "train"): 9, ("a", "valid"): 3, ("a", "test"): 4, ("b", "train"): 9, ("b", "valid"): 3, ("b", "test"): 4, ("few", "train"): 2,
    }
    assert notes == ["a/readme.txt: not an image", "valid: fewer than 2 images of few; no pairs start from them",
                     "test: fewer than 2 images of few; no pairs start from them"]


@pytest.mark.parametrize("counts, split", [({"a": 4, "b": 4}, "valid"), ({"a": 30, "b": 1}, "valid"), ({"a": 1, "b": 1}, "train")])
def test_prepare_split_refuses_splits_that_make_no_pairs(tmp_path, counts, split):
    make_files(tmp_path, [f"{label}/{i}.png" for label, count in counts.items() for i in range(count)])
    with pytest.raises(DataError, match=f"too few images for the {split} split"):
        prepare_split(config_for(tmp_path))


def test_prepare_split_draws_the_built_in_set_first(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.synthetic.IMAGES_PER_CLASS", 8)
    table, notes = prepare_split(config_for(tmp_path / "Synthetic", dataset="Synthetic"))
    assert len(table) == 5 * 8 and table.label.nunique() == 5 and not notes


def test_load_split_gives_images_and_labels_in_the_tables_order(tmp_path):
    make_files(tmp_path, ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    table = pd.DataFrame({"file": ["b/2.png", "a/1.png", "b/1.png"], "label": ["b", "a", "b"], "split": ["test", "train", "test"]})
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


# ----------------------------------------------------------------------------------------------- pairs

LABELS = {
    "unsorted strings": ["rose", "daisy", "rose", "tulip", "daisy", "rose", "rose", "tulip"],
    "integers": [3, 1, 1, 3, 2, 2, 2, 9, 9],
    "an image alone in its class": ["b", "a", "lonely", "a", "b", "b"],
    "one class of singles beside one of many": [1, 0, 0, 0],
    "a table's column": pd.Series(["x", "y", "x", "y"], index=[7, 3, 5, 1]),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("rounds", [1, 3])
def test_pairs_follow_the_papers_rule(labels, rounds):
    labels = list(labels)
    pairs = make_pairs(labels, generator(), rounds)
    with_partner = [i for i in range(len(labels)) if labels.count(labels[i]) > 1]
    for wanted in (0, 1):
        assert Counter(pairs.first[pairs.label == wanted].tolist()) == dict.fromkeys(with_partner, rounds)
    assert len(pairs.first) == len(pairs.second) == len(pairs.label) == 2 * rounds * len(with_partner)
    for first, second, label in zip(*pairs, strict=True):
        assert first != second
        assert (labels[first] != labels[second]) == label


def test_every_possible_partner_is_equally_likely():
    labels = ["b", "a", "c", "a", "b", "a", "lonely", "b", "a"]
    pairs = make_pairs(labels, generator(1), rounds=3000)
    for anchor in (i for i in range(9) if labels[i] in "ab"):
        for wanted in (0, 1):
            possible = [i for i in range(9) if i != anchor and (labels[i] != labels[anchor]) == wanted]
            counts = Counter(pairs.second[(pairs.first == anchor) & (pairs.label == wanted)].tolist())
            assert set(counts) == set(possible)
            assert len(possible) == 1 or chisquare([counts[i] for i in possible]).pvalue > 1e-4


def test_partners_change_from_round_to_round():
    pairs = make_pairs(["a"] * 50 + ["b"] * 50, generator(), rounds=2)
    similar = pairs.second[pairs.label == 0].reshape(2, 100)
    assert (similar[0] == similar[1]).mean() < 0.2


@pytest.mark.parametrize("labels", [["a", "a", "a"], ["a", "b", "c"], ["a"]])
def test_labels_without_both_kinds_of_pairs_are_refused(labels):
    with pytest.raises(DataError, match="two classes, one of them with two images"):
        make_pairs(labels, generator())


def test_evaluation_pairs_depend_on_the_seed_alone():
    labels = ["a", "b", "c"] * 20
    first, again, other = (evaluation_pairs(labels, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(first.second, other.second)


# --------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("batch_size", [2, 3, 4, 7, 16, 64, 1000])
@pytest.mark.parametrize("count", [2, 3, 33, 64, 65])
def test_image_batches_hold_every_image_once(count, batch_size):
    labels = generator(5).integers(0, 3, count)
    batches = image_batches(labels, batch_size, generator())
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    *full, last = map(len, batches)
    assert set(full) <= {batch_size} and 2 <= last <= batch_size + 1


@pytest.mark.parametrize("labels", [["a", "b", "c", "d"] * 10, [0] * 10 + [1] * 30, [i // 2 for i in range(40)]])
@pytest.mark.parametrize("batch_size", [3, 4, 8])
def test_small_batches_hold_a_similar_pair(labels, batch_size):
    for seed in range(20):
        for batch in image_batches(labels, batch_size, generator(seed))[:-1]:
            assert max(Counter(labels[i] for i in batch).values()) > 1


def test_image_batches_are_mixed_anew_but_repeatable():
    first, again, other = (np.concatenate(image_batches([0, 1] * 20, 8, generator(seed))).tolist() for seed in (1, 1, 2))
    assert first == again != other
    partners = {frozenset(first[i : i + 2]) for i in range(0, 40, 2)} & {frozenset(other[i : i + 2]) for i in range(0, 40, 2)}
    assert len(partners) < 10  # the couples themselves are drawn anew


@pytest.mark.parametrize("count, most, chosen", [(10, 4, [0, 3, 6, 9]), (3, 60, [0, 1, 2]), (5, 2, [0, 4])])
def test_an_even_choice_spans_all(count, most, chosen):
    assert evenly(count, most).tolist() == chosen


@pytest.mark.parametrize("batch_size, sizes", [(4, [4, 4, 2]), (5, [5, 5]), (50, [10])])
def test_pair_batches_hold_every_pair_once_and_whole(batch_size, sizes):
    pairs = Pairs(np.arange(10), np.arange(10) + 100, np.arange(10) % 2)
    batches = pair_batches(pairs, batch_size, generator())
    assert [len(batch.label) for batch in batches] == sizes
    rows = [row for batch in batches for row in zip(*batch, strict=True)]
    assert sorted(rows) == list(zip(*pairs, strict=True)) and rows != sorted(rows)
    again = pair_batches(pairs, batch_size, generator())
    assert all(np.array_equal(x.first, y.first) for x, y in zip(batches, again, strict=True))


# ---------------------------------------------------------------------------------------- augmentation

STILL = dict(HorizontalFlip=0, VerticalFlip=0)
IMAGES = torch.randint(0, 256, (8, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
JITTER = ["brightness", "contrast", "saturation", "hue"]
RANDOM = [
    {"HorizontalFlip": 0.5}, {"VerticalFlip": 0.5}, {"RandomRotationDegrees": 30}, {"RandomResizedCrop": 0.4}, {"RandomErasing": 0.5},
    *({key: 0.4} for key in JITTER),
]


def augmented(images, seed=0, **options):
    return Augmentation(ImageOptions(**STILL | options), seed)(images)


@pytest.mark.parametrize("options, dims", [({"HorizontalFlip": 1}, [3]), ({"VerticalFlip": 1}, [2]), ({"HorizontalFlip": 1, "VerticalFlip": 1}, [2, 3])])
def test_a_certain_flip_is_torchs_flip(options, dims):
    assert torch.equal(augmented(IMAGES, **options), IMAGES.flip(dims))


@pytest.mark.parametrize("key, dim", [("HorizontalFlip", 3), ("VerticalFlip", 2)])
def test_a_flip_happens_as_often_as_asked(key, dim):
    images = IMAGES[:1].repeat(400, 1, 1, 1)
    flipped = (augmented(images, **{key: 0.25}) == images.flip(dim)).all(3).all(2).all(1)
    assert 60 < flipped.sum() < 140  # 100 expected, 8.7 one standard deviation

def test_erasing_fills_one_box_with_the_mean_colour_as_often_as_asked():
    mean = (0.2, 0.4, 0.6)
    white = torch.full((400, 3, 40, 40), 255, dtype=torch.uint8)
    erased = augmented(white, RandomErasing=0.25, normalization={"mean": mean}) != 255
    hit = erased.flatten(1).any(1)
    assert 60 < hit.sum() < 140  # 100 expected, 8.7 one standard deviation
    assert {tuple(image.flatten(1).amin(1).tolist()) for image in augmented(white, RandomErasing=1, normalization={"mean": mean})} == {(51, 102, 153)}
    for box in erased[hit].any(1):
        height, width = box.any(1).sum(), box.any(0).sum()
        assert box.sum() == height * width and 0.015 < box.float().mean() < 0.35


def test_erasing_sets_in_as_training_goes_on():
    white, augment = torch.full((400, 3, 40, 40), 255, dtype=torch.uint8), Augmentation(ImageOptions(HorizontalFlip=0, RandomErasing=0.8), 0)
    shares = [(augment(white, progress) != 255).flatten(1).any(1).float().mean().item() for progress in (0, 0.5, 1)]
    assert shares[0] == 0 and 0.3 < shares[1] < 0.5 and 0.7 < shares[2] < 0.9  # 0.4 and 0.8 expected, 0.025 one standard deviation


@pytest.mark.parametrize("size", [(40, 40), (40, 80)])
def test_a_crop_keeps_at_least_the_share_asked_for_and_nearly_the_shape(size):
    """Rows and columns of a ramp image count where a crop begins and ends."""
    height, width = size
    ramp = torch.zeros(1, 3, height, width)
    ramp[:, 0], ramp[:, 1] = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)
    crops = augmented(ramp.round().to(torch.uint8).expand(300, -1, -1, -1), size=size, RandomResizedCrop=0.25).float()
    assert crops.shape == (300, 3, *size)
    tall = (crops[:, 0].amax((1, 2)) - crops[:, 0].amin((1, 2))) / 255  # share of the height that is left
    wide = (crops[:, 1].amax((1, 2)) - crops[:, 1].amin((1, 2))) / 255
    area, ratio = tall * wide, wide / tall
    assert 0.2 < area.min() < 0.35 and area.max() > 0.85
    assert 0.68 < ratio.min() < 0.85 and 1.18 < ratio.max() < 1.47


def test_all_zero_leaves_the_images_alone():
    assert torch.equal(augmented(IMAGES), IMAGES)


def test_rotation_turns_within_the_limit_and_fills_with_the_mean_colour():
    mean = (0.2, 0.4, 0.6)
    white = torch.full((30, 3, 41, 41), 255, dtype=torch.uint8)
    turned = augmented(white, RandomRotationDegrees=45, normalization={"mean": mean})
    assert (turned[:, :, 20, 20] == 255).all()
    corners = turned[:, :, 0, 0]
    assert [255 * value for value in mean] in corners.tolist()
    dot = torch.zeros(200, 3, 41, 41, dtype=torch.uint8)
    dot[:, :, 20, 38] = 255  # right of the centre
    y, x = np.array([divmod(int(image[0].argmax()), 41) for image in augmented(dot, RandomRotationDegrees=30, normalization={"mean": (0, 0, 0)})]).T
    angles = np.degrees(np.arctan2(20 - y, x - 20))
    assert 22 < angles.max() < 33 and -33 < angles.min() < -22


def test_brightness_scales_by_up_to_the_given_share():
    grey = torch.full((300, 3, 2, 2), 100, dtype=torch.uint8)
    values = augmented(grey, brightness=0.3)[:, 0, 0, 0]
    assert 69 <= values.min() < 75 and 125 < values.max() <= 130


@pytest.mark.parametrize("key", JITTER)
def test_each_jitter_works_alone(key):
    changed = augmented(IMAGES, **{key: 0.4})
    assert changed.shape == IMAGES.shape and changed.dtype == torch.uint8
    assert (changed != IMAGES).float().mean() > 0.3
    grey = IMAGES[:, :1].repeat(1, 3, 1, 1)
    change = (augmented(grey, **{key: 0.4}).int() - grey.int()).abs().max()
    assert (change <= 1) == (key in ("saturation", "hue"))  # grey has neither; 1 is rounding
    red = torch.zeros_like(IMAGES)
    red[:, 0] = 200
    assert (augmented(red, **{key: 0.4}).argmax(1) > 0).any() == (key == "hue")  # only a turned hue makes red another colour


@pytest.mark.parametrize("options", RANDOM, ids=lambda options: next(iter(options)))
def test_chance_is_drawn_per_image_and_per_call_from_the_seed(options):
    images = IMAGES[:1].repeat(12, 1, 1, 1)
    augmentation = Augmentation(ImageOptions(**STILL | options), 0)
    first, second = augmentation(images), augmentation(images)
    assert len({image.numpy().tobytes() for image in first}) > 1
    assert not torch.equal(first, second)
    again = Augmentation(ImageOptions(**STILL | options), 0)
    torch.manual_seed(123)
    assert torch.equal(again(images), first) and torch.equal(again(images), second)
    assert not torch.equal(augmented(images, seed=1, **options), first)


def test_the_global_generators_are_left_as_found(monkeypatch):
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    monkeypatch.setattr(torch.mps, "manual_seed", reseeded.append)
    before, source = torch.get_rng_state(), IMAGES.clone()
    augmented(IMAGES, HorizontalFlip=0.5, RandomRotationDegrees=10, hue=0.1)
    assert torch.equal(torch.get_rng_state(), before) and not reseeded
    assert torch.equal(IMAGES, source)


# ---------------------------------------------------------------------------------------- command line


def test_the_command_line_downloads_by_name(monkeypatch):
    asked = []
    monkeypatch.setattr(download, "download_public", asked.append)
    dataset.main(["download", "Flowers"])
    assert asked == ["Flowers"]


def test_the_command_line_audits_by_name(tmp_path, monkeypatch, capsys):
    twins_in(tmp_path / "Data" / "Mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yml").write_text("datasets: {Mine: {hyperparameters: {verbose: False}}}")
    dataset.main(["audit", "Mine", "--config", "mine.yml"])
    printed = capsys.readouterr().out
    assert "Conflicting labels:\n  a/x_5_a.png  b/x_5_b.png\n" in printed
    assert "Near duplicates:\n  a/x_0_a.png  a/x_13_a.png  a/x_7_a.png\n" in printed


@pytest.mark.parametrize("name, words", [("Mine", "no such folder"), ("Cars", "no block named 'Cars'")])
def test_a_failed_audit_is_one_line_and_an_exit_code(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text("datasets: {Mine: {}}")
    with pytest.raises(SystemExit, match=words) as caught:
        dataset.main(["audit", name])
    assert "\n" not in caught.value.code


def test_the_command_line_lists_the_names_it_knows(capsys):
    with pytest.raises(SystemExit) as caught:
        dataset.main(["download", "Cars"])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in error
    assert all(name in error.splitlines()[-1] for name in ("Cars", "AirBnB", "Flowers", "Skin_cancer"))


def test_a_failed_download_is_one_line_and_an_exit_code(monkeypatch, capsys):
    def fail(name):
        raise DownloadError(f"{name}: HTTP 429; wait and try again")

    monkeypatch.setattr(download, "download_public", fail)
    with pytest.raises(SystemExit) as caught:
        dataset.main(["download", "Flowers"])
    assert caught.value.code == "Flowers: HTTP 429; wait and try again"  # Python prints it to stderr and exits with 1
