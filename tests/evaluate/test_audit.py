"""The audit of a small folder in which everything is wrong once."""

import pytest
from PIL import Image
from samples import config_in, picture

from utils.evaluate.audit import audit, report
from utils.system.errors import DataError


def make_pictures(folder, files):
    for seed, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, (60, 40)).save(folder / file)


def config_for(folder, **settings):
    return config_in(folder, **{"image": {"size": (40, 60)}, "test_size": 0.2, "valid_size": 0.25} | settings)


@pytest.fixture
def dirty(tmp_path):
    folder = tmp_path / "Data"
    files = [f"{label}/{i:02d}.png" for label, count in (("a", 20), ("b", 20), ("few", 7)) for i in range(count)]
    make_pictures(folder, files)

    def copy(source, target):
        (folder / target).write_bytes((folder / source).read_bytes())

    copy("a/00.png", "a/01.png")  # identical
    picture(5).resize((120, 80)).save(folder / "a/02.png")  # of a/05, a/06 and a/07, larger
    picture(5).resize((30, 20)).save(folder / "a/06.png")  # smaller
    picture(5).resize((60, 20)).save(folder / "a/07.png")  # smaller, and twice as wide for its height
    copy("b/03.png", "few/03.png")  # conflicting
    # Cut short: opens, but cannot be decoded.
    (folder / "b/04.png").write_bytes((folder / "b/05.png").read_bytes()[:2000])
    (folder / "b/06.png").write_text("no image")
    (folder / "b/notes.txt").write_text("text")
    return folder


def test_everything_is_found_once(dirty):
    found = audit(config_for(dirty))
    assert [note.split(":")[0] for note in found.unreadable] == ["b/04.png", "b/06.png"]
    assert found.unreadable[1] == "b/06.png: not a readable image (its content is not an image's); delete or replace it"
    assert found.skipped == ["b/notes.txt: not named as an image; save it as JPEG or PNG if it is one"]
    assert found.doubtful == []
    assert found.copies == (("b/03.png", "few/03.png"), ("a/00.png", "a/01.png"))
    assert found.groups == (
        ("b/03.png", "few/03.png"),
        ("a/02.png", "a/05.png", "a/06.png", "a/07.png"),
        ("a/00.png", "a/01.png"),
    )
    assert found.conflicting == found.groups[:1]
    assert found.small == ["few"]  # 7: round(1.4) to test
    assert audit(config_for(dirty, unseen_classes=0.25)).small == []  # then whole classes are divided
    assert len(found.sizes) == 20 + 18 + 7


def test_the_table_counts_and_advises(dirty):
    table = audit(config_for(dirty)).table()
    assert table.columns.tolist() == ["finding", "number", "what to do"]
    # The last two: a/06 and a/07 are smaller, a/07 is stretched twice.
    assert table.number.tolist() == [2, 1, 0, 2, 3, 1, 0, 1, 2, 1]
    assert table["what to do"][7] == "add images: few"
    assert "shorter sides 20 to 80 pixels" in table.finding[8] and "width / height 1.50 to 3.00" in table.finding[9]


def test_padding_stretches_nothing_and_enlarges_less(dirty):
    for size in ((40, 60), (40, 40)):
        stretched, padded = (
            audit(config_for(dirty, image={"size": size, "fit": fit})).table().number.tolist()
            for fit in ("stretch", "pad")
        )
        assert stretched[:8] == padded[:8] == [2, 1, 0, 2, 3, 1, 0, 1]
        # At 40 x 40 pixels only a/07 (3 to 1) is stretched more than 1.5 times; padded, only a/06 (30 x 20) enlarged.
        assert (stretched[8:], padded[8:]) == (([2, 1], [1, 0]))


def test_a_clean_folder_asks_for_nothing(colour_folder):
    found = audit(config_for(colour_folder, image={"size": (20, 20)}, test_size=0.3, valid_size=0.3))
    assert found.groups == () and set(found.table().number) == {0} and set(found.table()["what to do"]) == {"nothing"}
    assert "\n\n" not in report(found)


def test_the_report_names_the_files_conflicts_before_other_duplicates(dirty):
    (dirty / "c").mkdir()
    found = audit(config_for(dirty))
    table, *lists = report(found).split("\n\n")
    assert len(table.splitlines()) == 10 and lists == [
        "Unreadable:\n  " + "\n  ".join(found.unreadable),
        "Skipped:\n  b/notes.txt: not named as an image; save it as JPEG or PNG if it is one",
        "Doubtful folders and names:\n  c: a class folder without a readable image; add images or delete it",
        "Identical files:\n  b/03.png  few/03.png\n  a/00.png  a/01.png",
        "Conflicting labels:\n  b/03.png  few/03.png",
        "Near duplicates:\n  a/02.png  a/05.png  a/06.png  a/07.png\n  a/00.png  a/01.png",
    ]


def test_duplicates_across_given_splits_are_found_and_what_can_hardly_be_seen(tmp_path):
    folder = tmp_path / "Data"
    files = [f"{split}/{label}/{i}.png" for split in ("train", "test") for label in "ab" for i in "01"]
    make_pictures(folder, files)
    picture(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "test/a/1.png")  # of train/a/0.png
    picture(2).resize((90, 60)).save(folder / "train/b/1.png")  # of train/b/0.png
    Image.new("RGB", (60, 40), "white").save(folder / "test/b/0.png")
    found = audit(config_for(folder))
    assert found.parted == (("test/a/1.png", "train/a/0.png"),) and not found.conflicting
    assert found.groups == (found.parted[0], ("train/b/0.png", "train/b/1.png"))
    assert found.looks == ["1 image with (nearly) nothing to see; delete or replace them: test/b/0.png"]
    assert report(found).split("\n\n")[1:] == [
        "Findings about what can be seen:\n  " + found.looks[0],
        "In several of the given splits:\n  test/a/1.png  train/a/0.png",
        "Near duplicates:\n  train/b/0.png  train/b/1.png",
    ]


def test_a_folder_of_nothing_readable_is_named(dirty):
    for path in dirty.glob("*/*.png"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="Data: none of its 47 images can be read"):
        audit(config_for(dirty))
