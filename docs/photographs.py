"""Photographs that packages ship, and that may be shown: what the README's figures are made of."""

import importlib.util
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Area = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class Part(NamedTuple):
    """A part of a photograph that is in the public domain, or free to use if its author is named."""

    photograph: str  # as skimage.data, sklearn.datasets (`.jpg`) or Alibi's archive of cats (`_cat`) calls it
    area: Area


# What a network learns to tell apart: crops of these parts. The space shuttle behind the astronaut is in none.
CLASSES = {
    "astronaut": Part("astronaut", (0, 0, 340, 512)),
    "rocket": Part("rocket", (180, 60, 470, 427)),
    "cat": Part("cat", (0, 0, 451, 300)),
    "coffee": Part("coffee", (0, 0, 600, 400)),
    "flower": Part("flower.jpg", (0, 0, 640, 427)),
    "temple": Part("china.jpg", (0, 0, 640, 427)),
}
# Whole photographs: those that this network compares, and all in the public domain.
PAIR = {"astronaut": Part("astronaut", (0, 0, 512, 512)), "rocket": Part("rocket", (0, 0, 640, 427))}
CATS = {
    "tabby": Part("tabby_cat", (0, 0, 400, 296)),
    "siamese": Part("Siamese_cat", (0, 0, 319, 260)),
    "persian": Part("Persian_cat", (0, 0, 320, 240)),
    "egyptian": Part("Egyptian_cat", (0, 0, 301, 396)),
    "chelsea": Part("cat", (0, 0, 451, 300)),
}
PUBLIC = PAIR | CATS | {"coffee": Part("coffee", (0, 0, 600, 400)), "clock": Part("clock", (0, 0, 400, 300))}
# Two faces, which are similar before any training.
SIMILAR = {"tabby": Part("tabby_cat", (90, 40, 390, 290)), "chelsea": Part("cat", (0, 0, 451, 300))}
SHARES = (0.55, 1.0)  # of a photograph's sides, in a crop


def photograph(part: Part) -> Image.Image:
    """A part of a photograph that comes with scikit-learn (`.jpg`), Alibi (`_cat`) or scikit-image."""
    if part.photograph.endswith("_cat"):
        # Alibi itself is not imported: it needs much that is not needed here.
        folder = importlib.util.find_spec("alibi").submodule_search_locations[0]
        with tarfile.open(Path(folder) / "data" / "cats.tar.gz") as archive:
            name = next(name for name in archive.getnames() if part.photograph in name)
            return Image.open(archive.extractfile(name)).convert("RGB").crop(part.area)
    if part.photograph.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(part.photograph)
    else:
        import skimage.data

        pixels = getattr(skimage.data, part.photograph)()
    return Image.fromarray(pixels).convert("RGB").crop(part.area)


def crops(image: Image.Image, count: int, rng: np.random.Generator) -> list[Image.Image]:
    """`count` crops of random size and place."""
    found = []
    for _ in range(count):
        width, height = (int(side * share) for side, share in zip(image.size, rng.uniform(*SHARES, 2)))
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        found.append(image.crop((left, top, left + width, top + height)))
    return found


def add_sticker(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy with a blue disc, a sixth of the shorter side wide, somewhere on it."""
    image, side = image.copy(), min(image.size) // 6
    left, top = (int(rng.integers(pixels - side)) for pixels in image.size)
    ImageDraw.Draw(image).ellipse((left, top, left + side, top + side), fill=(30, 60, 200))
    return image
