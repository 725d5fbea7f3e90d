import numpy as np
import pandas as pd
import pytest
from samples import colour_config, make_files

from utils.images.cache import StoredImages
from utils.images.frame import Frame
from utils.system.errors import DataError
from utils.system.settings import ImageOptions
from utils.training.cover import CoveredImages, covered

FILES = ["a/1.png", "a/2.png", "b/3.png", "b/4.png"]


def stored(count=4, size=(8, 12)):
    """Image i is all of value 10 i."""
    pixels = np.repeat(np.arange(count, dtype=np.uint8) * 10, 3 * size[0] * size[1]).reshape(count, 3, *size)
    return StoredImages(pixels, np.arange(count), np.zeros(count, int))


def test_a_region_is_filled_from_its_surroundings_and_no_other_pixel_changes():
    pixels = np.full((2, 3, 8, 12), 90, np.uint8)
    pixels[:, :, 2:6, 3:9] = 250
    masks = np.zeros((2, 8, 12), bool)
    masks[1, 2:6, 3:9] = True
    found = CoveredImages(StoredImages(pixels, np.arange(2), np.zeros(2, int)), masks)
    plain, covered_one = found[np.arange(2)].numpy()
    assert (plain == pixels[0]).all() and (covered_one == 90).all()
    assert (found[np.array([1])].numpy() == covered_one).all() and len(found) == 2


@pytest.fixture
def config(tmp_path):
    make_files(tmp_path / "data", FILES)  # 10 x 6 pixels
    return lambda cover: colour_config(tmp_path / "data", tmp_path, image={"size": (16, 16), "cover": cover})


def marked(config, path, labels="ab"):
    rows = pd.DataFrame({"file": FILES[: len(labels)], "label": list(labels)})
    images = covered(config(path), stored(len(labels), (16, 16)), rows, FILES, Frame((16, 16)))
    return [np.unpackbits(bits, axis=1, count=16).nonzero() for bits in images.bits]


def test_a_csv_of_pixels_of_the_originals(config, tmp_path):
    path = tmp_path / "evidence.csv"
    rows = [(1, "a/1.png", 0, 3, 5, 10, True), (2, "a/2.png", 0, 6, 0, 10, False), (1, "b/3.png", 0, 1, 0, 1, True)]
    table = pd.DataFrame(rows, columns=["group", "file", "top", "bottom", "left", "right", "suspect"])
    table.to_csv(path, index=False)
    (rows, columns), other = marked(config, path, "aa")
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 7, 8, 15) and not other[0].size
    table.assign(group=2).to_csv(path, index=False)  # one group: the user has chosen it
    assert marked(config, path, "aa")[1][0].size == 16 * 16


def test_as_many_images_of_each_class_are_covered_so_that_the_fill_tells_nothing(config, tmp_path):
    path = tmp_path / "evidence.csv"
    rows = [("a/1.png", 0, 3, 5, 10), ("a/2.png", 0, 3, 0, 5)]
    pd.DataFrame(rows, columns=["file", "top", "bottom", "left", "right"]).to_csv(path, index=False)
    own, (more, columns) = marked(config, path, "aab")[:2], marked(config, path, "aab")[2]
    assert len(more) and any(np.array_equal(columns, at) for _, at in own)  # at the place of another image
    assert [bool(len(rows)) for rows, _ in marked(config, path, "abb")] == [True, True, True]
    path.write_text("file,top,bottom,left,right\na/1.png,0,3,5,10\n")
    assert sum(bool(len(rows)) for rows, _ in marked(config, path, "aabb")) == 2  # half of a, so half of b


def test_a_folder_of_masks(config, tmp_path):
    from PIL import Image

    (tmp_path / "m/a").mkdir(parents=True)
    Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 10, 1)).resize((10, 6), 0).save(tmp_path / "m/a/2.png")
    (none, _), (rows, _) = marked(config, tmp_path / "m", "aa")
    assert not none.size and set(rows) == set(range(8, 16))


@pytest.mark.parametrize(
    "line, problem",
    [
        ("1,a/9.png,0,3,5,10", "a/9.png is no image of this dataset's split"),
        ("1,a/1.png,0,3,5,11", "a/1.png: 0, 3, 5, 11 .* not inside of its image of 10 x 6 pixels"),
        ("1,a/1.png,-1,3,5,10", "a/1.png: -1, 3, 5, 10"),
        ("1,a/1.png,3,3,5,10", "a/1.png: 3, 3, 5, 10 .* is empty"),
        ("1,a/1.png,0,3,5,4", "a/1.png: 0, 3, 5, 4"),
        ("1,a/1.png,x,3,5,10", "needs the columns file, top"),
        ("1,a/1.png,0,99999999999999999999,5,10", "needs the columns file, top"),
        ("1,b/3.png,0,3,5,10", "holds no region of a training image"),
        ("1,a/1.png,0,3,5,10,False\n2,a/2.png,0,3,5,10,False", "has no suspect"),
    ],
)
def test_a_wrong_file_is_a_line(config, tmp_path, line, problem):
    header = "group,file,top,bottom,left,right" + ",suspect" * line.endswith("False")
    (tmp_path / "c.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(DataError, match=f"image.cover: .*{problem}"):
        marked(config, tmp_path / "c.csv")


def test_suspects_without_groups_are_a_line(config, tmp_path):
    (tmp_path / "c.csv").write_text("file,top,bottom,left,right,suspect\na/1.png,0,3,5,10,True\n")
    with pytest.raises(DataError, match="needs the columns .* \\('group'\\)"):
        marked(config, tmp_path / "c.csv")


def test_a_missing_file_is_an_error_of_the_configuration():
    with pytest.raises(ValueError, match="should be a path that exists"):
        ImageOptions(cover="nowhere.csv")
