"""Images of more than 8 bits: what is stored, against what is seen."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from utils.images.depth import range_of
from utils.images.reading import read_image, to_rgb
from utils.system.errors import DataError


def write_tiff(path, values, white_is_zero=False, bands=1, planar=1):
    """A plain TIFF, as cameras and microscopes write it and Pillow partly does not; values (H, W) or (H, W, bands)."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, 8 * values.itemsize), (259, 1)]
    tags += [(262, 0 if white_is_zero else 2 if bands == 3 else 1), (273, 200), (277, bands), (278, values.shape[0])]
    tags += [(279, values.nbytes), (284, planar), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    path.write_bytes(head.ljust(200, b"\0") + values.tobytes())


RAMP = np.arange(4096).reshape(64, 64)  # 12 bits
SEEN = (RAMP * (255 / 4095)).round()


def grey(path, levels=None):
    image = read_image(path, levels)
    assert image.mode == "RGB" and np.ptp(np.asarray(image), axis=2).max() == 0
    return np.asarray(image)[..., 0].astype(int)


@pytest.mark.parametrize(
    "values, white_is_zero",
    [
        (RAMP.astype(np.uint16), False),
        ((RAMP - 1024).astype(np.int16), False),
        ((RAMP + 32768).astype(np.uint16), False),  # signed values, stored as unsigned
        ((4095 - RAMP).astype(np.uint16), True),
        ((65535 - RAMP * 16).astype(np.uint16), True),
        ((RAMP // 16).astype(np.uint32), False),
        ((RAMP * 2**20).astype(np.uint32), False),
        ((RAMP - 2000).astype(np.int32), False),
        ((RAMP // 16 - 128).astype(np.int8), False),
        ((RAMP / 4095).astype(np.float32), False),
        ((RAMP / 1e5 - 3).astype(np.float32), False),
    ],
)
def test_the_range_that_is_used_is_seen_from_black_to_white(tmp_path, values, white_is_zero):
    write_tiff(tmp_path / "a.tif", values, white_is_zero)
    seen = grey(tmp_path / "a.tif")
    assert abs(seen - SEEN).max() <= (16 if values.max() in (127, 255) else 1)  # of 8 bits, steps of 16


def test_eight_bits_in_a_32_bit_file_are_what_they_are(tmp_path):
    values = np.random.default_rng(0).integers(3, 200, (8, 9))
    for dtype in (np.int32, np.uint16, np.float32):
        write_tiff(tmp_path / "a.tif", values.astype(dtype))
        assert np.array_equal(grey(tmp_path / "a.tif"), values)


def test_images_compare_under_the_levels_of_their_set(tmp_path):
    for name, white in (("dark", 1000), ("light", 4000)):
        Image.fromarray(np.array([[0, white]], np.uint16)).save(tmp_path / f"{name}.png")
    assert grey(tmp_path / "dark.png", (0, 4095)).tolist() == [[0, 62]]
    assert grey(tmp_path / "light.png", (0, 4095)).tolist() == [[0, 249]]
    assert read_image(tmp_path / "dark.png").info["values"] == (0, 1000)
    assert grey(tmp_path / "light.png", (2000, 3000)).tolist() == [[0, 255]]
    with Image.open(tmp_path / "light.png") as image:  # as `preprocess` gets it
        assert np.asarray(to_rgb(image, (0, 8000))).max() == 128


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_colours_of_12_bits_keep_their_bits(tmp_path, name):
    colours = np.stack([RAMP, RAMP // 2, RAMP // 4], axis=-1).astype(np.uint16)
    if name == "a.png":
        (tmp_path / name).write_bytes(png_of(colours))
    else:
        write_tiff(tmp_path / name, colours, bands=3)
    seen = np.asarray(read_image(tmp_path / name)).astype(int)
    assert abs(seen - np.stack([SEEN, SEEN / 2, SEEN / 4], axis=-1)).max() <= 1


def png_of(colours):
    """A PNG of 16 bits a colour, which Pillow reads and does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", colours.shape[1], colours.shape[0], 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_camera_that_was_turned_is_upright_in_16_bits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(RAMP).astype(np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert abs(grey(tmp_path / "a.png") - SEEN).max() <= 1


def test_a_portable_greymap_of_sixteen_bits_keeps_its_greys(tmp_path):
    greys = np.arange(0, 65536, 4369, dtype=">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5\n16 1\n65535\n" + greys.tobytes())  # to Pillow of 32 bits
    assert np.array_equal(grey(tmp_path / "a.pgm")[0], greys // 257)


def test_what_is_no_number_is_black_and_nothing_else_is_an_error(tmp_path):
    write_tiff(tmp_path / "a.tif", np.array([[np.nan, 0.5, 1, np.inf, -np.inf]], np.float32))
    assert grey(tmp_path / "a.tif").tolist() == [[0, 128, 255, 255, 0]]
    write_tiff(tmp_path / "a.tif", np.full((2, 2), np.nan, np.float32))
    with pytest.raises(DataError, match=r"a\.tif: not a readable image \(its pixels are not numbers\)"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("values, bands", [(np.zeros((4, 4, 5), np.uint8), 5), (np.zeros((4, 4)), 1)])
def test_a_tiff_that_pillow_cannot_read_is_named(tmp_path, values, bands):
    write_tiff(tmp_path / "a.tif", values, bands=bands)
    with pytest.raises(
        DataError, match="a TIFF of a kind that is not read; save it as PNG, or with 1 or 3 bands of 8 or"
    ):
        read_image(tmp_path / "a.tif")


def test_colours_that_pillow_would_read_wrongly_are_an_error(tmp_path):
    write_tiff(tmp_path / "a.tif", np.zeros((4, 4, 3), np.uint16), bands=3, planar=2)
    with pytest.raises(DataError, match="its colours are in planes of 16 bits: save it as PNG"):
        read_image(tmp_path / "a.tif")


# By hand; the least 2^k - 1 is 1023 for 800, and a quarter of it 255.75.
@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 4000, (0, 4095)),
        (0, 1, (0, 1)),
        (0.2, 0.9, (0, 1)),
        (3, 255, (0, 255)),
        (3, 256, (0, 511)),
        (500, 800, (0, 1023)),
        (600, 800, (600, 800)),
        (-5, 800, (-5, 800)),
        (7, 7, (0, 7)),
        (0, 0, (0, 0)),
    ],
)
def test_range_by_hand(low, high, expected):
    assert range_of(low, high) == expected
