"""The images of a folder that are nearest to one image, and why, in a figure; and its index as a Parquet file."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from utils.compare.comparison import Comparison
from utils.evaluate.reliance import FORMAT, KEPT, Reliance
from utils.explain.concepts import features_of_places
from utils.explain.occlusion import Match, effects_of_regions
from utils.figures.drawing import draw_map, mark_matches, short, write_inside
from utils.images.reading import shrink
from utils.imshow import rows_of_panels
from utils.models import network_for, strangers
from utils.search.build import INDEX, place_of
from utils.search.store import Entry, Index, about
from utils.Siamese import SiameseNetwork
from utils.system.errors import SearchError
from utils.system.files import replacing, state_if_there
from utils.system.settings import Config

TITLES = ("query", "hit", "query, factual", "hit, factual", "query, counterfactual", "hit, counterfactual")
MOST_ROWS = 20  # of a figure: a hundred would be 50,000 pixels high


class Hit(NamedTuple):
    """An image that a query found."""

    file: str  # in the indexed folder
    similarity: float  # to the query, in [0, 1]
    decision: str  # similar or dissimilar
    pair: dict | None  # query and hit as `Comparison.pair` gives them; `None` if the file has gone or changed
    matches: list[Match]  # regions that the two have in common, the strongest first


class Found(NamedTuple):
    """The hits of a query in the index of a folder, nearest first."""

    query: Image.Image
    folder: Path
    hits: list[Hit]
    strange: list[str]  # a line if the query resembles nothing that the network knows
    shared: list[str]  # a line for each group of `evidence` that the query shares with many hits

    def table(self) -> pd.DataFrame:
        """Make a table with a row for each hit: `rank`, `similarity`, `decision`, `file` (in the folder)."""
        rows = [(k, round(hit.similarity, 3), hit.decision, hit.file) for k, hit in enumerate(self.hits, start=1)]
        return pd.DataFrame(rows, columns=["rank", "similarity", "decision", "file"])


def search(model: SiameseNetwork, index: Index, query: Path, count: int = 10) -> Found:
    """Find the `count` images of an index that are nearest to an image, and explain each.

    Only the query, and hits that were never measured, pass through the network; their effects are kept in the index.
    The query's own file is no hit, nor are links to it.

    Raises:
        DataError: the query cannot be read.
        SearchError: the index is empty or damaged.
    """
    if not os.path.isdir(index.folder):
        advice = "bring it back, or run python -m utils search build FOLDER with its new place"
        raise SearchError(f"{index.folder}: the indexed folder is not there now; {advice}")
    asked = Comparison(model, [query])
    effects = asked.effects_of(0)
    (z,) = effects.embeddings
    nearest = _nearest_others(index, z.cpu().numpy(), query, count)
    if not nearest:
        raise SearchError(f"{index.path}: no other image; add some, run python -m utils search build {index.folder}")
    here = [one for _, one in nearest if state_if_there(index.folder / one.file) == one.state]
    compared = Comparison(model, [query, *(index.folder / one.file for one in here)])
    compared.effects = {0: effects}
    for k, one in enumerate(here, start=1):
        if one.delta is not None:
            known = (torch.tensor(x[None].astype(np.float32)).to(z.device) for x in (one.embedding, one.delta))
            compared.effects[k] = effects_of_regions(*known, model.image_size)
    if new := [k for k in range(1, len(compared.paths)) if k not in compared.effects]:
        with suppress(SearchError):  # an index that cannot be written to now serves all the same
            index.add_effects([here[k - 1].id for k in new], compared.effects_of(*new).delta)
    hits, places = [], {one.id: k for k, one in enumerate(here, start=1)}
    for distance, one in nearest:
        distance, k = torch.tensor(distance), places.get(one.id)
        decision = "similar" if model.is_similar(distance) else "dissimilar"
        explained = (compared.pair(0, k), compared.matches(0, k)) if k else (None, [])
        hits.append(Hit(one.file, 1 - float(model.dissimilarity(distance)), decision, *explained))
    strange = strangers(model, asked.batch, asked.names)
    shared = shared_groups(model, index.path.with_name(KEPT), compared.batch)
    return Found(compared.images[0], index.folder, hits, strange, shared)


def shared_groups(model: SiameseNetwork, path: Path, batch: torch.Tensor) -> list[str]:
    """Tell, a line each, which groups of regions the first of preprocessed images (N, 3, H, W), the query, shares with
    more of the others than of the test images; nothing, if `path` holds no `Reliance` of this network."""
    # A digest reads all weights, which a query need not wait for where nothing was measured.
    if not path.is_file() or (reliance := Reliance.load(path, model.digest(FORMAT))) is None:
        return []
    lines, pixels, others = [], 255 * (batch * model.std + model.mean).cpu(), len(batch) - 1
    found = reliance.groups.find(features_of_places(pixels, verbose=False), model.image_size)
    found["number"] = found.group.map(reliance.numbers)
    for number, images in found.dropna().groupby("number").image.unique().items():
        hits, facts = np.count_nonzero(images), reliance.table.loc[number]
        usual = facts.images / len(reliance.chosen)
        if 0 in images and hits > usual * others:
            group = f"group {number:.0f} of evidence{', a suspect' if facts.suspect else ''}"
            lines.append(f"{group}: in the query, in {hits} of {others} hits, in {usual:.0%} of the test images")
    return lines


def _nearest_others(index: Index, z: np.ndarray, query: Path, count: int) -> list[tuple[float, Entry]]:
    """Find the `count` nearest images whose files are not that of the query."""
    own, asked = state_if_there(query), count + 1  # links to a file share its state
    while True:
        found = index.nearest(z, asked)
        others = [hit for hit in found if state_if_there(index.folder / hit[1].file) != own]
        if len(others) >= count or len(found) < asked:
            return others[:count]
        asked *= 2  # links to the query took places


def show_hits(found: Found) -> Figure:
    """Show a row for each of the first `MOST_ROWS` hits: query and hit with matching regions circled, and their maps.

    A hit whose file was deleted or changed is a grey panel.
    """
    query, hits = shrink(found.query, 320), found.hits[:MOST_ROWS]
    grey = Image.new("RGB", query.size, "lightgrey")
    images = [shrink(hit.pair["images"][1], 320) if hit.pair else grey for hit in hits]
    higher = [max(query, image, key=lambda one: one.height / one.width) for image in images]
    figure, axes = rows_of_panels(higher, [], len(TITLES), 9.2, 0.25 * len(hits) + 0.5, height=1.45)
    for axis, title in zip(axes[0], TITLES):
        axis.set_title(title, fontsize=9)
    for rank, (row, hit, image) in enumerate(zip(axes, hits, images), start=1):
        row[0].set_ylabel(f"{rank}. {hit.decision}, {hit.similarity:.2f}", fontsize=9)
        row[1].set_xlabel("\n".join(short(part) for part in hit.file.rsplit("/", 1)), fontsize=7)
        row[0].imshow(query)
        row[1].imshow(image)
        if hit.pair is None:
            write_inside(row[2], "not explained", 8)
            continue
        mark_matches(row[:2], (query, image), hit.matches, size=7)
        for column, map_name in ((2, "factual"), (4, "counterfactual")):
            for side, picture in enumerate((query, image)):
                axis, box = row[column + side], hit.pair["boxes"][side]
                draw_map(axis, picture, hit.pair["explanation"], side, map_name, box, size=8)
    return figure


def find_index(config: Config, folder: Path | None = None) -> tuple[Path, SiameseNetwork, str]:
    """Find the file of a folder's index, or, for `None`, of the index that was built last; its network, and a sentence
    that says which one that is. Raises a SearchError if there is no index."""
    place = config.outputs_path / "search"
    found = sorted(place.glob(f"*{INDEX}")) if folder is None else [place_of(config, folder, INDEX)]
    if not found or not os.path.isfile(found[0]):
        build = f"python -m utils search build {folder or 'FOLDER'}"
        raise SearchError(f"{folder or place}: not indexed; run {build} first")
    path = max(found, key=lambda path: float(about(path).get("built", 0)))  # one that cannot be read is the oldest
    return path, *network_for(config, [Path(about(path).get("folder", folder or config.data_path))])


def export_parquet(index: Index, path: Path) -> int:
    """Write the full paths and the embeddings of an index, as columns `path` (text) and `embedding` (D numbers,
    float32), for a database; returns how many. Raises a UserError if pyarrow is missing or the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SearchError("search export: pyarrow is missing; run: pip install pyarrow") from None
    files, embeddings = index.contents()
    column = pyarrow.FixedSizeListArray.from_arrays(embeddings.ravel(), index.dim)
    table = pyarrow.table({"path": [str(index.folder / file) for file in files], "embedding": column})
    with replacing(path) as partial:
        parquet.write_table(table, partial)
    return len(files)
