"""The images of a folder that are nearest to one image, and why; and its index as a Parquet file."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from utils.explain.matching import Match, matching_regions
from utils.explain.occlusion import effects_of_regions, joined, region_effects
from utils.Grad_CAM import Explanation, explain_effects
from utils.images.frame import Box
from utils.images.reading import read_image
from utils.models import network_for
from utils.search.build import INDEX, place_of
from utils.search.store import Entry, Index, about
from utils.Siamese import SiameseNetwork
from utils.system.errors import DataError, SearchError
from utils.system.files import file_state, replacing
from utils.system.settings import Config


@dataclass(frozen=True)
class Hit:
    """An image that a query found."""

    file: str  # in the indexed folder
    image_size: tuple[int, int]  # width and height in pixels
    box: Box  # the part of the network's frame that it fills
    similarity: float  # to the query, in [0, 1]
    decision: str  # similar or dissimilar
    explanation: Explanation | None = None  # of the pair, image 1 being the query; None if it could not be measured
    matches: list[Match] = field(default_factory=list)  # regions that the two have in common, the strongest first
    problem: str | None = None  # why it is not explained, and what to do


@dataclass(frozen=True)
class Found:
    """The hits of a query in the index of a folder, nearest first; `box` is the part of the frame the query fills."""

    query: Path
    folder: Path
    box: Box
    hits: list[Hit]

    def table(self) -> pd.DataFrame:
        """Make a table with a row for each hit: `rank`, `similarity`, `decision`, `file` (in the folder)."""
        rows = [(k, round(hit.similarity, 3), hit.decision, hit.file) for k, hit in enumerate(self.hits, start=1)]
        return pd.DataFrame(rows, columns=["rank", "similarity", "decision", "file"])


def search(model: SiameseNetwork, index: Index, query: Path, count: int = 10) -> Found:
    """Find the `count` images of an index that are nearest to an image, and explain each.

    Effects come from the index. Only the query, and hits that were never measured, pass through the network; what is
    measured is kept in the index. The query's own file is no hit.

    Raises:
        DataError: the query cannot be read.
        SearchError: the index is empty or damaged.
    """
    if not os.path.isdir(index.folder):
        advice = "bring it back, or run python -m utils search build FOLDER where it is"
        raise SearchError(f"{index.folder}: the indexed folder is not there now; {advice}")
    image, own = read_image(query, model.frame.levels), query.resolve()
    effects = region_effects(model, model.preprocess(image)[None])
    found = index.nearest(effects.embeddings[0].cpu().numpy(), count + 1)
    nearest = [(d, entry) for d, entry in found if (index.folder / entry.file).resolve() != own][:count]
    if not nearest:
        raise SearchError(f"{index.path}: no other image in it; run python -m utils search build {index.folder} again")
    hits, box, size = [], model.frame.box(image.size), model.image_size
    for distance, entry in tqdm(nearest, "Explaining", unit="hit", delay=2):
        hit_box, distance = model.frame.box(entry.image_size), torch.tensor(distance)
        decision = "similar" if model.is_similar(distance) else "dissimilar"
        hit = entry.file, entry.image_size, hit_box, 1 - float(model.dissimilarity(distance)), decision
        try:
            delta = effects_of_hit(model, index, entry)
        except DataError as error:
            hits.append(Hit(*hit, problem=str(error)))
            continue
        z, delta = (torch.tensor(x[None].astype(np.float32)).to(model.mean.device) for x in (entry.embedding, delta))
        both = joined([effects, effects_of_regions(z, delta, size)])
        matches = matching_regions(both, 0, 1, (box, hit_box), size)
        hits.append(Hit(*hit, explain_effects(model, both, [0], [1], size), matches))
    return Found(query, index.folder, box, hits)


def effects_of_hit(model: SiameseNetwork, index: Index, entry: Entry) -> np.ndarray:
    """The effects (R, D) of an image's regions. Those that the index lacks are measured and written to it.

    Raises:
        DataError: its file has gone or changed, or cannot be read.
    """
    path, state = index.folder / entry.file, None
    with suppress(OSError):
        state = file_state(path)
    if state != entry.state:
        again = f"run python -m utils search build {index.folder} again"
        raise DataError(f"{entry.file}: gone or changed; {again}")
    if entry.delta is not None:
        return entry.delta
    delta = region_effects(model, model.preprocess(read_image(path, model.frame.levels))[None], verbose=False).delta
    with suppress(SearchError):  # an index that cannot be written to now serves all the same
        index.add_effects([entry.id], delta)
    return delta[0].cpu().numpy()


def find_index(config: Config, folder: Path | None = None) -> tuple[Path, SiameseNetwork, str]:
    """Find the file of a folder's index, or, for `None`, of the index that was built last; its network, and a sentence
    that says which one that is.

    Raises:
        SearchError: there is no index.
    """
    place = config.outputs_path / "search"
    found = sorted(place.glob(f"*{INDEX}")) if folder is None else [place_of(config, folder, INDEX)]
    if not found or not os.path.isfile(found[0]):
        build = f"python -m utils search build {folder or 'FOLDER'}"
        raise SearchError(f"{folder or place}: not indexed; run {build} first")
    path = max(found, key=lambda path: float(about(path).get("built", 0)))  # one that cannot be read is the oldest
    return path, *network_for(config, [Path(about(path).get("folder", folder or config.data_path))])


def export_parquet(index: Index, path: Path) -> int:
    """Write the full paths and the embeddings of an index, as columns `path` (text) and `embedding` (D numbers,
    float32), which LanceDB, Qdrant and Milvus read.

    Returns:
        How many images were written.

    Raises:
        SearchError: the package that writes Parquet is missing.
        UserError: the file cannot be written.
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
