"""Makes the figures of README and docs/: photographs, explained and searched by networks that are trained here, a film
of the page, and figures of the notebooks as they are stored.

make figures, or python -m docs.make_figures [NAME …], with docs/requirements.txt and Alibi installed
"""

import base64
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import ImageOps

from docs.film import film
from docs.idea import show_idea
from docs.photographs import CATS, CLASSES, PAIR, PUBLIC, SIMILAR, add_sticker, crops, photograph
from utils.compare.comparison import Comparison
from utils.compare.evidence import crops_of, original_regions
from utils.compare.report import write_report
from utils.config import Config, load_config
from utils.dataset import load_split, read_split
from utils.evaluate.reliance import measure_reliance
from utils.explain.removal import MAPS
from utils.figures.plots import show_groups
from utils.imshow import show_explanation
from utils.models import load_trained, network_for
from utils.search import Index, build_index, search, show_hits
from utils.training import train

DOCS = Path(__file__).parent
CROPS = 24  # of each class, for the network of photographs
STICKERS = {"first": 0.9, "second": 0.03}  # share of each class's images with a sticker
HITS, SHOWN = 4, 8  # of a search; regions of a group
# A notebook's cell, whose stored figure stands for it, and the file that shows it.
THUMBNAILS = {
    "notebook_01.png": ("01_Train_Siamese_model.ipynb", "01-19"),
    "notebook_02.png": ("02_Inference.ipynb", "photos-3"),
    "notebook_03.png": ("03_Evaluate.ipynb", "03-23"),
}


def save(figure: Figure, name: str) -> None:
    """Write a figure as JPEG: a PNG of photographs is five times as large."""
    figure.savefig(DOCS / name, dpi=150, bbox_inches="tight", pil_kwargs={"quality": 85})


def trained(folder: Path, name: str, settings: str) -> Config:
    """Train on `folder/Data`, as on any folder of images, with a block of settings of its own."""
    common = (DOCS.parent / "config.yml").read_text(encoding="utf-8")
    (folder / "config.yml").write_text(f"{common}\n  {name}: {settings}\n", encoding="utf-8")
    config = in_folder(folder, load_config(folder / "config.yml", name))
    train(config)
    return config


def in_folder(folder: Path, config: Config) -> Config:
    """The configuration with all its folders in `folder`."""
    places = {f"{name}_path": folder / name for name in ("checkpoints", "outputs")}
    return config.model_copy(update=places | {"data_path": folder / "Data"})


def explanation(folder: Path) -> None:
    """A network trained on crops of photographs explains two whole ones; what the outlined regions do is printed. The
    same regions draw the idea."""
    rng = np.random.default_rng(0)
    for name, part in CLASSES.items():
        (folder / "Data" / name).mkdir(parents=True)
        for k, image in enumerate(crops(photograph(part), CROPS, rng)):
            image.save(folder / "Data" / name / f"{k:02}.png")
    model, _ = load_trained(trained(folder, "Photographs", "{}"))
    for name, part in PAIR.items():
        photograph(part).save(folder / f"{name}.png")
    compared = Comparison(model, [folder / f"{name}.png" for name in PAIR])
    pair, what_if = compared.pair(0, 1), compared.what_if(0, 1)
    save(show_explanation(**pair), "explanation.jpg")
    save(show_idea(compared), "idea.jpg")
    print(what_if.report(pair["names"]))
    distance, sign = float(pair["explanation"].distance[0]), -1 if pair["explanation"].is_similar[0] else 1
    for name, changes in zip(pair["names"], what_if.changes["blurred"]):
        for map_name, change in zip(MAPS, changes):
            after = distance + sign * model.margin * change
            print(f"{name} with its {map_name} region blurred: distance {distance:.2f} → {after:.2f}")


def searched(folder: Path) -> None:
    """The photographs that are nearest to a cat, before any training."""
    (folder / "photographs").mkdir()
    for name, part in PUBLIC.items():
        photograph(part).save(folder / "photographs" / f"{name}.png")
    model, _ = network_for(in_folder(folder, load_config(dataset="Synthetic")), [folder / "photographs"])
    build_index(model, folder / "photographs", folder / "index.sqlite", verbose=False)
    with Index(folder / "index.sqlite", model) as index:
        found = search(model, index, folder / "photographs" / f"{next(iter(CATS))}.png", HITS)
    print(found.table())
    save(show_hits(found), "search.jpg")


def evidence(folder: Path) -> None:
    """What a network relies on that tells two classes of the same photographs apart, of which one has stickers."""
    rng, images = np.random.default_rng(0), [photograph(part) for part in PUBLIC.values()]
    for label, share in STICKERS.items():
        (folder / "Data" / label).mkdir(parents=True)
        for k, crop in enumerate(crop for image in images for crop in crops(image, CROPS, rng)):
            planted = add_sticker(crop, rng) if rng.random() < share else crop
            planted.save(folder / "Data" / label / f"{k:03}.png")
    config = trained(folder, "Stickers", "{image: {size: [192, 192]}, test_size: 0.2}")
    model, _ = load_trained(config)
    batch, rows = load_split(read_split(config.trained_path / "split.csv"), "test", config, model.frame)
    reliance = measure_reliance(model, batch, rows.label, config.seed)
    regions = original_regions(config, model, reliance, rows.file)
    shown = reliance.table.head(3)
    print(*shown.finding, sep="\n")
    parts = [
        [ImageOps.fit(part, (96, 96)) for _, part in crops_of(config, model, regions, k)[:SHOWN]] for k in shown.index
    ]
    save(show_groups(parts, shown), "evidence.jpg")


def page(folder: Path) -> None:
    """A film of the page that `report` writes of two cats, before any training."""
    paths = [folder / f"{name}.png" for name in SIMILAR]
    for path, part in zip(paths, SIMILAR.values()):
        photograph(part).save(path)
    write_report(in_folder(folder, load_config(dataset="Synthetic")), paths, None, folder / "page.html")
    film(folder / "page.html", DOCS / "page.webp")


def stored_figure(notebook: str, cell: str) -> bytes:
    """The first figure that a cell, named by its id, has among its stored outputs, as PNG."""
    cells = json.loads((DOCS.parent / notebook).read_text(encoding="utf-8"))["cells"]
    outputs = next(one["outputs"] for one in cells if one["id"] == cell)
    data = next(output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    return base64.b64decode("".join(data))


def notebooks(folder: Path) -> None:
    """The notebooks' figures."""
    for name, place in THUMBNAILS.items():
        (DOCS / name).write_bytes(stored_figure(*place))


FIGURES: dict[str, Callable[[Path], None]] = {
    "explanation": explanation, "search": searched, "evidence": evidence, "page": page, "notebooks": notebooks
}  # fmt: skip


def main() -> None:
    matplotlib.use("Agg")
    for name in sys.argv[1:] or FIGURES:
        with tempfile.TemporaryDirectory() as folder:
            FIGURES[name](Path(folder))


if __name__ == "__main__":
    main()
