import numpy as np
import pytest
from PIL import Image, ImageDraw
from samples import noise

from utils.images.looks import SIDE, looks_of, notes_on_looks
from utils.images.reading import read_image


def drawn(ground, shape=None, ink="black", size=(90, 120)):
    image = Image.new("RGB", size, ground)
    if shape:
        ImageDraw.Draw(image).ellipse(shape, fill=ink)
    return image


def noisy(mean, spread):
    return Image.fromarray(
        np.random.default_rng(0).normal(mean, spread, (80, 80)).clip(0, 255).astype(np.uint8)
    ).convert("RGB")


@pytest.mark.parametrize(
    "image, expected",
    [
        (drawn("white"), "blank"),
        (drawn("black"), "blank"),
        (drawn("grey"), "blank"),
        (noisy(250, 1), "blank"),
        (drawn("white", (10, 10, 14, 14)), "blank"),  # a speck of 0.2 %
        (drawn("white", (10, 10, 40, 40)), ""),
        (drawn("black", (10, 10, 40, 40), "white"), ""),
        (noise(8, 8).resize((80, 80)).point(lambda value: value / 9), "dark"),
        (noise(60, 60), ""),
    ],
)
def test_what_can_hardly_be_seen_is_found(image, expected):
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), float)
    assert looks_of(image, grey) == expected
    image.info |= {"pages": True, "values": (0, 9)}
    assert looks_of(image, grey).split() == ["deep", *expected.split(), "pages"]


def test_a_blank_first_page_is_both(tmp_path):
    drawn("white").save(tmp_path / "a.tif", save_all=True, append_images=[noise(120, 90)])
    assert looks_of(read_image(tmp_path / "a.tif"), np.full((SIDE, SIDE), 255.0)) == "blank pages"


def test_a_line_for_each_finding():
    looks = ["", "blank", "deep blank pages", "deep blank", "blank", ""]
    assert notes_on_looks([f"a/{i}.png" for i in range(6)], looks, (0, 4095)) == [
        "2 images of more than 8 bits: values from 0 to 4095 are shown from black to white, also later by this network"
        ": a/2.png, a/3.png",
        "4 images with (nearly) nothing to see; delete or replace them: a/1.png, a/2.png, a/3.png and 1 more",
        "1 image with more pages or frames, of which the first is taken; save others as files of their own: a/2.png",
    ]
    assert notes_on_looks(["a/1.png"], [""], None) == []
