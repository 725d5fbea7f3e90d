import numpy as np
import pytest
import torch
from PIL import Image
from samples import break_file, noise

from utils.images import frame
from utils.images.frame import Box, Frame, to_uint8
from utils.system.settings import ImageOptions
from utils.training.data import random_changes


def test_to_uint8_puts_each_pixel_in_its_place():
    quarters = np.zeros((40, 80, 3), np.uint8)  # red above, green right, blue below left
    quarters[:20, :, 0], quarters[:, 40:, 1], quarters[20:, :40, 2] = 255, 255, 255
    tensor = to_uint8(Image.fromarray(quarters), Frame((4, 6)))
    assert tensor.shape == (3, 4, 6) and tensor.dtype == torch.uint8 and tensor.is_contiguous()
    assert tensor[0, 0, 0] == 255 and tensor[0, 3].max() == 0
    assert tensor[1, :, 5].min() == 255 and tensor[1, :, 0].max() == 0
    assert tensor[2, 3, 0] == 255 and tensor[2, 0].max() == 0


SIZES = [(10, 6), (7, 7), (301, 57), (13, 640), (1, 1), (2000, 3), (3, 2000)]  # width, height


@pytest.mark.parametrize("size", SIZES)
def test_stretching_is_one_resize_to_the_whole_frame(size):
    image, whole = noise(size[1], size[0]), Frame((9, 14))
    assert np.array_equal(to_uint8(image, whole).permute(1, 2, 0), image.resize((14, 9), Image.Resampling.BILINEAR))
    assert whole.box(size) == Box(0, 9, 0, 14)


@pytest.mark.parametrize(
    "size, frame, rows, columns",
    [
        ((200, 100), (64, 64), (16, 48), (0, 64)),
        ((100, 200), (64, 64), (0, 64), (16, 48)),
        ((10, 10), (40, 60), (0, 40), (10, 50)),
        ((30, 20), (40, 60), (0, 40), (0, 60)),
        ((30, 10), (65, 65), (21, 43), (0, 65)),  # 21.67 rows: 22, and 21 above them, 22 below
        ((2000, 3), (64, 64), (31, 32), (0, 64)),
        ((1, 1), (16, 17), (0, 16), (0, 16)),
    ],
)
def test_a_padded_image_fills_the_middle_of_the_frame(size, frame, rows, columns):
    assert Frame(frame, "pad").box(size) == Box(*rows, *columns)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frame", [(64, 64), (33, 50), (50, 33)])
def test_padding_surrounds_one_resize(size, frame):
    image, padded = noise(size[1], size[0]), Frame(frame, "pad", (0.1, 0.2, 0.3))
    box, pixels = padded.box(size), to_uint8(image, padded).permute(1, 2, 0).numpy().copy()
    assert np.array_equal(pixels[box.slices], image.resize((box.width, box.height), Image.Resampling.BILINEAR))
    assert abs(box.top - (frame[0] - box.bottom)) <= 1 and abs(box.left - (frame[1] - box.right)) <= 1
    pixels[box.slices] = [26, 51, 76]
    assert (pixels == [26, 51, 76]).all()  # 25.5, 51 and 76.5, halves to the even number


def test_what_padding_fills_in_is_what_augmentation_fills_in():
    mean = (0.3, 0.6, 0.9)
    framed = to_uint8(noise(10, 40), Frame((16, 16), "pad", mean))
    options = ImageOptions(RandomErasing=1, HorizontalFlip=0, normalization={"mean": mean})
    (erase,) = random_changes(options, progress=1.0)
    erased = erase(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert set(map(tuple, erased[0].flatten(1).T.tolist())) == {(0, 0, 0), tuple(framed[:, 0, 0].tolist())}


@pytest.mark.parametrize("num_workers", [0, 4])
def test_files_are_decoded_in_order_with_a_reason_in_place_of_one_that_cannot_be(tmp_path, monkeypatch, num_workers):
    paths = [tmp_path / f"{i}.png" for i in range(30)]
    for i, path in enumerate(paths):
        Image.new("RGB", (5, 4), (i, 2 * i, 3 * i)).save(path)
    break_file(paths[9], 0.5)
    paths[21].unlink()
    monkeypatch.setattr(frame, "CHUNK_BYTES", 7 * 18)
    found = [*frame.decode(paths[::-1], Frame((2, 3)), lambda path, image: image.size, num_workers, verbose=False)]
    assert found.pop(20).startswith("not a readable image (") and found.pop(8).startswith("no such image;")
    images, sizes = zip(*found)
    assert np.stack(images)[:, :, 1, 2].tolist() == [[i, 2 * i, 3 * i] for i in range(29, -1, -1) if i not in (9, 21)]
    assert images[0].dtype == np.uint8 and set(sizes) == {(5, 4)}


def test_a_file_that_goes_before_it_is_described_costs_one_image(tmp_path):
    noise().save(tmp_path / "a.png")
    (found,) = frame.decode([tmp_path / "a.png"], Frame((2, 3)), lambda path, image: path.unlink() or path.stat())
    assert found == "no such image; check the path, or train again if the data have moved"
