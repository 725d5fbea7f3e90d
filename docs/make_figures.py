"""Makes the README's figures: photographs explained by a network that is trained here, and figures of the notebooks as
they are stored.

make figures, or, with scikit-image installed, python -m docs.make_figures
"""

import base64
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from utils.compare.comparison import Comparison
from utils.config import load_config
from utils.explain.removal import MAPS
from utils.imshow import show_explanation
from utils.models import load_trained
from utils.Siamese import SiameseNetwork
from utils.training import train

DOCS = Path(__file__).parent
Area = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class Part(NamedTuple):
    """A part of a photograph that is in the public domain, or free to use if its author is named."""

    photograph: str  # as skimage.data or sklearn.datasets calls it
    area: Area


# What the network learns to tell apart: crops of these parts. The space shuttle behind the astronaut is in none.
CLASSES = {
    "astronaut": Part("astronaut", (0, 0, 340, 512)),
    "rocket": Part("rocket", (180, 60, 470, 427)),
    "cat": Part("cat", (0, 0, 451, 300)),
    "coffee": Part("coffee", (0, 0, 600, 400)),
    "flower": Part("flower.jpg", (0, 0, 640, 427)),
    "temple": Part("china.jpg", (0, 0, 640, 427)),
}
CROPS = 24  # of each, with these shares of its sides
SHARES = (0.55, 1.0)
# What it then compares.
PAIR = {"astronaut": Part("astronaut", (0, 0, 512, 512)), "rocket": Part("rocket", (0, 0, 640, 427))}
# A notebook's cell, whose stored figure stands for it, and the file that shows it.
THUMBNAILS = {
    "notebook_01.png": ("01_Train_Siamese_model.ipynb", "01-19"),
    "notebook_02.png": ("02_Inference.ipynb", "11ac39da"),
    "notebook_03.png": ("03_Evaluate.ipynb", "03-23"),
}


def photograph(part: Part) -> Image.Image:
    """A part of a photograph that comes with scikit-learn (`.jpg`) or with scikit-image."""
    if part.photograph.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(part.photograph)
    else:
        import skimage.data

        pixels = getattr(skimage.data, part.photograph)()
    return Image.fromarray(pixels).crop(part.area)


def crops(image: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """`CROPS` crops of random size and place."""
    found = []
    for _ in range(CROPS):
        width, height = (int(side * share) for side, share in zip(image.size, rng.uniform(*SHARES, 2)))
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        found.append(image.crop((left, top, left + width, top + height)))
    return found


def trained_on_crops(folder: Path) -> SiameseNetwork:
    """A network trained on crops of photographs, as on any folder of images and with the settings of config.yml;
    `folder` takes what that needs."""
    rng = np.random.default_rng(0)
    for name, part in CLASSES.items():
        (folder / "Data" / name).mkdir(parents=True)
        for k, image in enumerate(crops(photograph(part), rng)):
            image.save(folder / "Data" / name / f"{k:02}.png")
    settings = (DOCS.parent / "config.yml").read_text(encoding="utf-8")
    (folder / "config.yml").write_text(f"{settings}\n  Photographs: {{}}\n", encoding="utf-8")
    places = {f"{name}_path": folder / name for name in ("checkpoints", "outputs")} | {"data_path": folder / "Data"}
    config = load_config(folder / "config.yml", "Photographs").model_copy(update=places)
    train(config)
    return load_trained(config)[0]


def explain_photographs(model: SiameseNetwork, folder: Path) -> None:
    """Explain the pair of whole photographs, and print what the outlined regions do to its distance."""
    for name, part in PAIR.items():
        photograph(part).save(folder / f"{name}.png")
    compared = Comparison(model, [folder / f"{name}.png" for name in PAIR])
    pair, what_if = compared.pair(0, 1), compared.what_if(0, 1)
    # JPEG, as a PNG of photographs is five times as large.
    figure = show_explanation(**pair)
    figure.savefig(DOCS / "explanation.jpg", dpi=150, bbox_inches="tight", pil_kwargs={"quality": 85})
    print(what_if.report(pair["names"]))
    distance, sign = float(pair["explanation"].distance[0]), -1 if pair["explanation"].is_similar[0] else 1
    for name, changes in zip(pair["names"], what_if.changes["blurred"]):
        for map_name, change in zip(MAPS, changes):
            after = distance + sign * model.margin * change
            print(f"{name} with its {map_name} region blurred: distance {distance:.2f} → {after:.2f}")


def stored_figure(notebook: str, cell: str) -> bytes:
    """The first figure that a cell, named by its id, has among its stored outputs, as PNG."""
    cells = json.loads((DOCS.parent / notebook).read_text(encoding="utf-8"))["cells"]
    outputs = next(one["outputs"] for one in cells if one["id"] == cell)
    data = next(output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    return base64.b64decode("".join(data))


def main() -> None:
    matplotlib.use("Agg")
    with tempfile.TemporaryDirectory() as folder:
        explain_photographs(trained_on_crops(Path(folder)), Path(folder))
    for name, place in THUMBNAILS.items():
        (DOCS / name).write_bytes(stored_figure(*place))


if __name__ == "__main__":
    main()
