import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from samples import SUFFIXES, break_file, noise

from utils.images.frame import Frame, to_uint8
from utils.images.reading import range_of, read_image, shrink, to_rgb
from utils.system.errors import DataError


@pytest.mark.parametrize("values", [np.asarray(noise()), np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000])
@pytest.mark.parametrize(
    "orientation, stored",
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_camera_or_scan_that_was_turned(tmp_path, orientation, stored, values, suffix):
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored(values))).save(path, exif=exif)
    seen = np.asarray(read_image(path))
    expected = values if values.ndim == 3 else np.repeat((values / 257).round()[..., None], 3, 2)  # 65535 -> 255
    assert abs(seen - expected).max() <= (values.ndim == 2)


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


@pytest.mark.parametrize(
    "image, suffix, expected",
    [
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
    ],
)
def test_an_image_of_every_mode_becomes_rgb_on_white(tmp_path, image, suffix, expected):
    image.save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.mode == "RGB"
    assert np.abs(np.asarray(read)[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "bmp", "webp"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    for share in (0, 0.5):
        break_file(path, share)
        with pytest.raises(DataError, match="not a readable image") as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error, words",
    [
        (
            OSError(5, "Input/output error"),
            "cannot be read (Input/output error); check the disk or network drive that it is on, and run again",
        ),
        (PermissionError(13, "Permission denied"), "no permission to read it; change the file's access rights"),
        (RuntimeError("a\nb"), "not a readable image (a b); delete or replace it"),
    ],
)
def test_whatever_a_decoder_raises_is_one_line_about_the_file(tmp_path, monkeypatch, error, words):
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", lambda path: (_ for _ in ()).throw(error))
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.png")
    assert str(caught.value) == f"{tmp_path / 'a.png'}: {words}"


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_promised_format_is_read(tmp_path, suffix):
    Image.new("RGB", (8, 8), RED).save(tmp_path / f"a{suffix}")
    assert np.abs(np.asarray(read_image(tmp_path / f"a{suffix}")) - np.array(RED)).max() <= 3


@pytest.mark.parametrize("mode, light, dark", [("RGBA", (255, 250, 240), (0, 40, 90)), ("LA", (250,), (20,))])
@pytest.mark.parametrize("opacity", [255, 60])
def test_a_drawing_is_laid_on_a_ground_that_shows_it(tmp_path, mode, light, dark, opacity):
    for ink, ground in ((light, 0), (dark, 255)):
        image = Image.new(mode, (9, 9), (*ink, 0))
        image.paste((*ink, opacity), (2, 2, 6, 6))
        image.save(tmp_path / "a.png")
        seen = np.asarray(read_image(tmp_path / "a.png").convert("L"), int)
        assert seen[0, 0] == ground and abs(seen[3, 3] - ground) > opacity / 2


LEAD = b"\0\0\0\x18ftyp"


@pytest.mark.parametrize(
    "content, words",
    [
        (LEAD + b"heic\0\0", "a HEIC image; install what reads it (pip install pillow-heif), or save it as JPEG"),
        (LEAD + b"avif\0\0", "an AVIF image; install what reads it (pip install --upgrade pillow), or save it as JPEG"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL image; save it as JPEG or PNG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the image; fetch the images"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "a saved web page, not the image; download the image itself"),
        (b"\0" * 128 + b"DICM", "a DICOM file; export it as PNG or TIFF of 16 bits"),
    ],
)
def test_a_file_of_another_kind_is_named_with_a_way_out(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.jpg")
    assert str(caught.value).startswith(f"{tmp_path / 'a.jpg'}: {words}")


@pytest.mark.parametrize("size, warning", [((12000, 9000), "error"), ((16320, 12240), "ignore")])
def test_the_largest_photographs_of_telephones_are_read(tmp_path, size, warning):
    Image.new("1", (1, 1)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">2I", *size)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter(warning, Image.DecompressionBombWarning)
        with Image.open(tmp_path / "a.png") as image:  # its pixels are not there
            assert image.size == size


def test_metadata_of_megabytes_cost_no_image(tmp_path):
    info = PngInfo()
    for k in range(80):  # 80 MB
        info.add_text(f"workflow {k}", "{}" * 500_000, zip=True)
    noise().save(tmp_path / "a.png", pnginfo=info, icc_profile=b"\0" * 2_000_000)
    assert np.array_equal(read_image(tmp_path / "a.png"), noise())


def test_heic_is_read_where_a_plugin_reads_it(tmp_path):
    pytest.importorskip("pillow_heif")
    image = noise(3, 4).resize((64, 48))
    image.save(tmp_path / "a.heic", quality=95)
    assert np.abs(np.asarray(read_image(tmp_path / "a.heic")).astype(int) - np.asarray(image)).mean() < 8


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: not a file; delete it"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix, pages", [("gif", True), ("tif", True), ("png", True), ("webp", True), ("jpg", False)])
def test_further_pages_are_noted_and_the_preview_of_a_photograph_is_not(tmp_path, suffix, pages):
    noise().save(
        tmp_path / f"a.{suffix}", save_all=True, append_images=[noise(seed=1)], format="MPO" * (not pages) or None
    )
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.info.get("pages", False) == pages
    assert suffix not in ("tif", "png") or np.array_equal(read, noise())  # the others lose something
    noise().save(tmp_path / f"one.{suffix}")
    assert not read_image(tmp_path / f"one.{suffix}").info.get("pages")


def test_training_and_figures_see_the_same_way_up(tmp_path):
    upright, exif = noise(32, 48), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.size == (32, 48) and np.array_equal(shrink(turned), upright)
        for image in (read_image(tmp_path / "turned.png"), turned):
            assert np.array_equal(to_uint8(image, Frame((32, 48), "pad")).permute(1, 2, 0), upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_data_cost_no_image(tmp_path, exif):
    noise().save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (10, 6)


# ------------------------------------------------------------------------------ of more than 8 bits


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
        ((4095 - RAMP).astype(np.uint16), True),
        ((RAMP - 2000).astype(np.int32), False),
        ((RAMP * 2**20).astype(np.uint32), False),
        ((RAMP // 16 - 128).astype(np.int8), False),
        ((RAMP / 4095).astype(np.float32), False),
        ((RAMP / 1e5 - 3).astype(np.float32), False),
    ],
)
def test_the_range_that_is_used_is_seen_from_black_to_white(tmp_path, values, white_is_zero):
    write_tiff(tmp_path / "a.tif", values, white_is_zero)
    assert abs(grey(tmp_path / "a.tif") - SEEN).max() <= (16 if values.itemsize == 1 else 1)  # in steps of 16


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
    expected = np.stack([SEEN, SEEN / 2, SEEN / 4], axis=-1)
    assert abs(np.asarray(read_image(tmp_path / name)) - expected).max() <= 1
    assert abs(np.asarray(read_image(tmp_path / name, (0, 16383))) - expected / 4).max() <= 1  # of a set of 14 bits


def png_of(colours):
    """A PNG of 16 bits a colour, which Pillow reads and does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", colours.shape[1], colours.shape[0], 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


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


@pytest.mark.parametrize(
    "dtype, bands, planar, words",
    [
        (np.uint8, 5, 1, "a TIFF of a kind that is not read; save it as PNG, or with 1 or 3 bands of 8"),
        (np.uint16, 3, 2, "its colours are in planes of 16 bits: save it as PNG"),  # which it would read wrongly
    ],
)
def test_a_tiff_that_pillow_cannot_read_is_named(tmp_path, dtype, bands, planar, words):
    write_tiff(tmp_path / "a.tif", np.zeros((4, 4, bands), dtype), bands=bands, planar=planar)
    with pytest.raises(DataError, match=words):
        read_image(tmp_path / "a.tif")


# By hand; the least 2^k - 1 is 1023 for 800, and a quarter of it 255.75.
@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 4000, (0, 4095)),
        (0, 1, (0, 1)),
        (3, 255, (0, 255)),
        (3, 256, (0, 511)),
        (500, 800, (0, 1023)),
        (600, 800, (600, 800)),
        (-5, 800, (-5, 800)),
        (0, 0, (0, 0)),
    ],
)
def test_range_by_hand(low, high, expected):
    assert range_of(low, high) == expected
