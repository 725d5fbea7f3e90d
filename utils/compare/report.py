"""The report: one HTML file in which a reader explores the similarity of images and the effects of their regions.

The page (`utils/figures/page`) holds embeddings and the measured effects of regions. From these it computes, in the
reader's browser, what `Comparison` computes here.
"""

import base64
import io
import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage

from utils.compare.comparison import Comparison, names_with_folders, pair_folder
from utils.explain.occlusion import GRID, WEAKEST_MATCH, WINDOWS, in_few_dimensions, regression
from utils.explain.removal import REGION_SHARE
from utils.figures.style import COLORMAP, DRAINED, FAINT, OPACITY, SIMILARITY, WEAK
from utils.Grad_CAM import MIN_COUNTERFACTUAL, MIN_FACTUAL
from utils.images.folder import images_below
from utils.images.reading import shrink
from utils.models import load_checkpoint, network_for
from utils.system.errors import DataError
from utils.system.files import counted, write_whole
from utils.system.settings import Config

PAGE = Path(__file__).parents[1] / "figures" / "page"
SCRIPTS = ("numbers.js", "pictures.js", "pair.js", "table.js", "main.js")
DIMENSIONS = 64  # of embeddings and effects, at most
MOST = 100  # images in a page: their table has 9,900 cells


def write_report(
    config: Config, paths: Sequence[Path], checkpoint: Path | None = None, output: Path | None = None
) -> tuple[Path, str, list[str]]:
    """Compare images, and those in folders and their sub-folders, by `network_for` them or by that of a checkpoint, and
    write the page to a file that ends in .html, to a folder, or, for `None`, beside notebook 02's figures.

    Returns the file; a sentence that names the network; and a line for each image that cannot be read and is left out.
    Fewer than two images, or more than `MOST`, are a DataError.
    """
    paths, problems = _images(paths)
    if checkpoint is None:
        model, note = network_for(config, paths)
    else:
        model, note = load_checkpoint(config, checkpoint, f"{checkpoint.parent.name}/{checkpoint.name}")
    compared = Comparison(model, paths, skip_unreadable=True)
    pair = len(compared.paths) == 2
    folder = pair_folder(config, *compared.paths) if pair else config.outputs_path / "compare"
    if output is None or output.suffix.lower() not in (".html", ".htm"):  # no page replaces an image
        output = (output or folder) / "report.html"
    write_whole(output, page(compared, note))
    note += f"; similar above a similarity of {1 - model.threshold:.3g}"
    return output, note, [*problems, *compared.unreadable.values()]


def _images(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """List the images to compare, each once; and what is wrong with folders that cannot be searched, a line each."""
    found, problems = {}, {}
    for path in paths:
        inside = islice(images_below(path, problems), MOST + 1)  # nobody waits for a walk through a whole disk
        found |= dict.fromkeys(sorted(inside) if os.path.isdir(path) else [path])
    lines = [f"{path}: {reason}" for path, reason in problems.items()]
    given = ", ".join(map(str, paths[:3]))
    if len(found) > MOST:
        raise DataError(f"{given}: more than {MOST} images, and a page holds no more; give fewer")
    if len(found) < 2:
        few = f"{given}: {counted(len(found), 'image')}; give two or more, or a folder of them"
        raise DataError("\n".join([few, *lines]))
    return list(found), lines


def page(compared: Comparison, network: str = "") -> str:
    """Make the page, as HTML; `network` is a sentence that names the network."""
    html, css, *scripts = ((PAGE / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", *SCRIPTS))
    # A name may hold "</script>": without "<" the browser finds no tag in it.
    data = json.dumps(_contents(compared, network)).replace("<", "\\u003c")
    return html.replace("{{css}}", css).replace("{{script}}", "\n".join(scripts)).replace("{{data}}", data)


def _contents(compared: Comparison, network: str) -> dict:
    """The page's data, as plain values; arrays are in base64."""
    model, count = compared.model, len(compared.paths)
    files = [*compared.paths, *compared.unreadable]
    names = dict(zip(files, names_with_folders(files)))
    effects = in_few_dimensions(compared.effects_of(*range(count)), DIMENSIONS)
    side = 640 if count <= 12 else 400  # pixels, longest side of a picture
    return {
        "network": network,
        "missing": [line.replace(str(path), names[path], 1) for path, line in compared.unreadable.items()],
        "margin": model.margin,
        "threshold": model.threshold,
        "likeness": leaves_list(linkage(effects.embeddings.cpu(), "average", optimal_ordering=True)).tolist(),
        "size": list(model.image_size),
        "grid": GRID,
        "regression": in_steps(regression(model.image_size).numpy()),
        "regions": effects.regions[0].tolist(),  # the same in all images
        "perSide": WINDOWS[-1].per_side,
        # 256 of each; red, green and blue are a byte each
        "colours": [packed(scale(range(256), bytes=True)[:, :3], "u1") for scale in (COLORMAP, SIMILARITY)],
        "style": {"opacity": OPACITY, "weak": WEAK, "drained": DRAINED, "faint": FAINT},
        "minFactual": MIN_FACTUAL,
        "minCounterfactual": MIN_COUNTERFACTUAL,
        "region": REGION_SHARE,
        "weakest": WEAKEST_MATCH,
        "images": [
            {
                "name": names[compared.paths[i]],
                "picture": picture(compared.images[i], side),
                "box": compared.boxes[i],
                "embedding": packed(effects.embeddings[i].cpu().numpy(), "<f4"),
                "delta": in_steps(effects.delta[i].cpu().double().numpy()),
            }
            for i in range(count)
        ],
    }


def packed(values: np.ndarray, dtype: str) -> str:
    """Pack numbers for a page, as base64 of this type."""
    return base64.b64encode(values.astype(dtype).tobytes()).decode()


def in_steps(values: np.ndarray) -> dict:
    """Pack numbers as 16-bit multiples of a step, to 0.002 % of the largest."""
    step = max(float(np.abs(values).max()), 1e-12) / 32767
    return {"step": step, "values": packed(np.rint(values / step), "<i2")}


def picture(image: Image.Image, longest_side: int) -> str:
    """Pack an image for a page, shrunk to a longest side in pixels; small ones without loss."""
    image, data = shrink(image, longest_side), io.BytesIO()
    image.save(data, "WEBP", quality=85, lossless=max(image.size) <= 96)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
