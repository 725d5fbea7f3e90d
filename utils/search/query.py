"""The images of a folder that are nearest to one image, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from utils.explain.matching import Match, matching_regions
from utils.explain.occlusion import effects_of_regions, joined, region_effects
from utils.Grad_CAM import Explanation, explain_effects
from utils.images.frame import Box
from utils.images.reading import read_image
from utils.search.build import INDEX, place_of
from utils.search.store import Entry, Index, about, built_last
from utils.Siamese import SiameseNetwork, network_for
from utils.system.errors import DataError, SearchError
from utils.system.files import file_state
from utils.system.settings import Config


@dataclass(frozen=True)
class Hit:
    """An image that a query found.

    Attributes:
        path: its file.
        image_size: its width and height in pixels.
        box: the part of the network's frame that it fills.
        similarity: to the query, in [0, 1].
        is_similar: the decision.
        explanation: of the pair, image 1 being the query; None if it could not be measured.
        matches: regions of the query and of this image that match, the strongest first.
        problem: why it is not explained, and what to do.
    """

    path: Path
    image_size: tuple[int, int]
    box: Box
    similarity: float
    is_similar: bool
    explanation: Explanation | None = None
    matches: list[Match] = field(default_factory=list)
    problem: str | None = None


@dataclass(frozen=True)
class Found:
    """The hits of a query in the index of a folder, nearest first; `box` is the part of the frame the query fills."""

    query: Path
    folder: Path
    box: Box
    hits: list[Hit]

    def table(self) -> pd.DataFrame:
        """Make a table with a row for each hit: `rank`, `similarity`, `decision`, `file` (in the folder)."""
        rows = [
            (rank, round(hit.similarity, 3), "similar" if hit.is_similar else "dissimilar", self.name(hit))
            for rank, hit in enumerate(self.hits, start=1)
        ]
        return pd.DataFrame(rows, columns=["rank", "similarity", "decision", "file"])

    def name(self, hit: Hit) -> str:
        return hit.path.relative_to(self.folder).as_posix()


def search(model: SiameseNetwork, index: Index, query: Path, count: int = 10) -> Found:
    """Find the `count` images of an index that are nearest to an image, and explain each.

    Effects come from the index. Only the query, and hits that were never measured, pass through the network; what is
    measured is kept in the index. The query's own file is no hit.

    Raises:
        DataError: the query cannot be read.
        SearchError: the index is empty or damaged.
    """
    image = read_image(query, model.frame.levels)
    effects = region_effects(model, model.preprocess(image)[None])
    nearest = index.nearest(effects.embeddings[0].cpu().numpy(), count + 1)
    nearest = [(d, entry) for d, entry in nearest if (index.folder / entry.state.file).resolve() != query.resolve()]
    if not nearest:
        raise SearchError(f"{index.path}: no other image in it; run python -m utils search build {index.folder} again")
    hits, box, size, nearest = [], model.frame.box(image.size), model.image_size, nearest[:count]
    known = known_effects(model, index, [entry for _, entry in nearest])
    for (distance, entry), delta in zip(nearest, known):
        hit_box, distance = model.frame.box(entry.image_size), torch.tensor(distance)
        similarity, decision = 1 - float(model.dissimilarity(distance)), bool(model.is_similar(distance))
        hit = [index.folder / entry.state.file, entry.image_size, hit_box, similarity, decision]
        if isinstance(delta, str):
            hits.append(Hit(*hit, problem=delta))
            continue
        z, delta = (torch.tensor(x[None].astype(np.float32)).to(model.mean.device) for x in (entry.embedding, delta))
        both = joined([effects, effects_of_regions(z, delta, size)])
        matches = matching_regions(both, 0, 1, (box, hit_box), size)
        hits.append(Hit(*hit, explain_effects(model, both, [0], [1], size), matches))
    return Found(query, index.folder, box, hits)


def known_effects(model: SiameseNetwork, index: Index, entries: Sequence[Entry]) -> list[np.ndarray | str]:
    """The effects (R, D) of each image's regions, or a line that tells why they cannot be measured.

    Effects that the index lacks are measured and written to it.
    """
    results: list[np.ndarray | str | None] = [entry.delta for entry in entries]
    images: dict[int, torch.Tensor] = {}
    for k, entry in enumerate(entries):
        try:
            if file_state(index.folder / entry.state.file) != entry.state.state:
                raise FileNotFoundError
            if entry.delta is None:
                images[k] = model.preprocess(read_image(index.folder / entry.state.file, model.frame.levels))
        except DataError as error:
            results[k] = str(error)
        except OSError:
            results[k] = f"{entry.state.file}: gone or changed; run python -m utils search build {index.folder} again"
    if images:
        measured = region_effects(model, torch.stack(list(images.values()))).delta
        for k, delta in zip(images, measured):
            results[k] = delta.cpu().numpy()
        with suppress(SearchError):  # an index that cannot be written to now serves all the same
            index.add_effects([entries[k].id for k in images], measured)
    return results


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
    path = built_last(found)
    return path, *network_for(config, [Path(about(path).get("folder", folder or config.data_path))])
