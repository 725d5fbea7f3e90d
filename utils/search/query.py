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
from utils.explain.occlusion import RegionEffects, effects_of_regions, joined, region_effects
from utils.Grad_CAM import Explanation, explain_effects
from utils.images.frame import Box
from utils.images.reading import DataError, read_image
from utils.search.build import INDEX, place_of, state_of
from utils.search.store import Entry, Index, SearchError
from utils.settings import Config
from utils.Siamese import SiameseNetwork


@dataclass(frozen=True)
class Hit:
    """One image that was found.

    Attributes:
        path: its file.
        image_size: its width and height in pixels; `box`: the part of the network's frame that it fills.
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
    """What a query found in the index of a folder, nearest first; `box`: the part of the frame that the query fills."""

    query: Path
    folder: Path
    box: Box
    hits: list[Hit]

    def table(self) -> pd.DataFrame:
        """A row for each hit: `rank`, `similarity`, `decision`, `file` (in the folder)."""
        rows = [
            (rank, round(hit.similarity, 3), "similar" if hit.is_similar else "dissimilar", self.name(hit))
            for rank, hit in enumerate(self.hits, start=1)
        ]
        return pd.DataFrame(rows, columns=["rank", "similarity", "decision", "file"])

    def name(self, hit: Hit) -> str:
        return hit.path.relative_to(self.folder).as_posix()


def search(model: SiameseNetwork, index: Index, query: Path, count: int = 10) -> Found:
    """The `count` images of an index that are nearest to an image, each explained from the effects in the index.

    The network looks at the query, and at hits whose effects are not known yet; these are kept for the next time. The
    query's own file is no hit.

    Raises:
        DataError: the query cannot be read.
        SearchError: the index is empty or damaged.
    """
    image = read_image(query)
    effects = region_effects(model, model.preprocess(image)[None])
    nearest = index.nearest(effects.embeddings[0].cpu().numpy(), count + 1)
    entries = [entry for _, entry in nearest if (index.folder / entry.state.file).resolve() != query.resolve()][:count]
    if not entries:
        raise SearchError(f"{index.path}: no other image in it; run python -m utils search build {index.folder} again")
    box, known = model.frame.box(image.size), known_effects(model, index, entries)
    hits = [_hit(model, index, effects, box, entry, of_entry) for entry, of_entry in zip(entries, known)]
    return Found(query, index.folder, box, hits)


def known_effects(model: SiameseNetwork, index: Index, entries: Sequence[Entry]) -> list[RegionEffects | str]:
    """The effects of the regions of each of some images, from the index or else measured, and then kept in it; or why
    that cannot be done."""
    results: list[RegionEffects | str | None] = [kept_effects(model, entry) for entry in entries]
    images: dict[int, torch.Tensor] = {}
    for k, entry in enumerate(entries):
        if results[k] is None:
            try:
                unchanged = state_of(index.folder, entry.state.file) == entry.state
                if unchanged:
                    images[k] = model.preprocess(read_image(index.folder / entry.state.file))
            except (OSError, DataError):
                unchanged = False
            if not unchanged:
                results[k] = f"{entry.state.file}: gone or changed; run python -m utils search build {index.folder}"
    if images:
        measured = region_effects(model, torch.stack(list(images.values())))
        results = [measured.of([list(images).index(k)]) if k in images else known for k, known in enumerate(results)]
        with suppress(SearchError):  # an index that cannot be written to now serves all the same
            index.add_effects([entries[k].id for k in images], measured)
    return results


def kept_effects(model: SiameseNetwork, entry: Entry) -> RegionEffects | None:
    """The effects that an index holds of an image; None where it holds none."""
    if entry.delta is None:
        return None
    device = model.mean.device
    embedding, delta = (torch.tensor(x.astype(np.float32), device=device)[None] for x in (entry.embedding, entry.delta))
    return effects_of_regions(embedding, delta, model.image_size)


def _hit(
    model: SiameseNetwork, index: Index, query: RegionEffects, query_box: Box, entry: Entry, known: RegionEffects | str
) -> Hit:
    box = model.frame.box(entry.image_size)
    distance = torch.tensor(float(np.linalg.norm(query.embeddings[0].cpu().numpy() - entry.embedding)))
    similarity, decision = 1 - float(model.dissimilarity(distance)), bool(model.is_similar(distance))
    hit = [index.folder / entry.state.file, entry.image_size, box, similarity, decision]
    if isinstance(known, str):
        return Hit(*hit, problem=known)
    return Hit(*hit, *explained(model, query, query_box, known, box))


def explained(
    model: SiameseNetwork, query: RegionEffects, query_box: Box, hit: RegionEffects, box: Box
) -> tuple[Explanation, list[Match]]:
    """Why a query and a hit are alike or not, and what matches what, from their effects alone."""
    both, size = joined([query, hit]), model.image_size
    return explain_effects(model, both, [0], [1], size), matching_regions(both, 0, 1, (query_box, box), size)


def find_index(config: Config, folder: Path | None = None) -> Path:
    """The index of a folder, or, without one, the only index that there is.

    Raises:
        SearchError: there is none, or several.
    """
    if folder is not None:
        if not os.path.isfile(index := place_of(config, folder, INDEX)):
            raise SearchError(f"{folder}: not indexed; run python -m utils search build {folder} first")
        return index
    place = config.outputs_path / "search"
    found = sorted(place.glob(f"*{INDEX}"))
    if not found:
        raise SearchError(f"{place}: no index there; run python -m utils search build FOLDER first")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise SearchError(f"{place}: several indexes ({names}); name the folder to search with --folder")
    return found[0]
