"""What is odd about images that can be read: there is nothing to see, it is too dark, there are more pages."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from utils.images.folder import first_names
from utils.system.files import counted

SIDE = 64  # pixels, to which an image is reduced to look at it
FLAT_STD = 2.0  # grey levels; an image of a lower standard deviation is flat
NEAR, MOST = 8, 0.995  # grey levels from the median, within which this share of a nearly blank image lies
DARK = 32  # grey level below which all but a hundredth of a dark image is
LOOKS = {
    "deep": "of more than 8 bits: values from {0:g} to {1:g} are shown from black to white, also later by this network",
    "blank": "with (nearly) nothing to see; delete or replace them",
    "dark": "all dark; if they are scans, or colours of 10 to 14 bits, save them over the whole range",
    "pages": "with more pages or frames, of which the first is taken; save others as files of their own",
}


def looks_of(image: Image.Image, grey: np.ndarray) -> str:
    """Find the keys of `LOOKS` that apply to an image as `read_image` returns it, parted by spaces; `grey` is the same,
    reduced to (SIDE, SIDE)."""
    blank = grey.std() < FLAT_STD or (abs(grey - np.median(grey)) <= NEAR).mean() >= MOST
    dark = not blank and np.quantile(grey, 0.99) < DARK
    found = {"deep": "values" in image.info, "blank": blank, "dark": dark, "pages": image.info.get("pages")}
    return " ".join(look for look in LOOKS if found[look])


def notes_on_looks(files: Sequence[str], looks: Sequence[str], levels: tuple[float, float] | None) -> list[str]:
    """Write a line for each finding, with the number of images and the first names; `levels` as in `to_rgb`."""
    table = pd.Series(looks, list(files)).str.split().explode()
    found = {look: table.index[table == look].tolist() for look in LOOKS}
    return [
        f"{counted(len(names), 'image')} {LOOKS[look].format(*levels or ())}: {first_names(names)}"
        for look, names in found.items()
        if names
    ]
