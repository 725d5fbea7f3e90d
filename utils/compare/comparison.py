"""Images compared with each other: which, what they are called, and why they are similar or not.

Each image is embedded once, and its regions are measured when it is first explained.
"""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from utils.dataset import prepare_folder, read_split
from utils.explain.occlusion import Match, RegionEffects, correlation, matching_regions, region_effects, region_sums
from utils.explain.removal import WhatIf, embed_in_parts, what_if
from utils.Grad_CAM import Explanation, explain, explain_effects
from utils.images.pairs import Pairs, used_images
from utils.images.reading import is_named_as_image, read_image, shrink
from utils.Siamese import SiameseNetwork, similarity_matrix
from utils.system.errors import DataError
from utils.system.files import counted, hash_of_paths
from utils.system.settings import Config


class Comparison:
    """Images, their embeddings and similarities, and the explanation of any pair of them, by positions.

    Attributes:
        paths, unreadable: of the images that could be read; and what is wrong with the others, a line by each path.
            Without `skip_unreadable`, or if fewer than two are left, this is raised as a DataError.
        names: of the files, see `distinct_names`.
        images: the originals at their own aspect ratio, in RGB, shrunk for figures.
        boxes: the part of the network's frame that each image fills.
        embeddings, similarity: of all images, (N, D), and of all against all, (N, N), 1 on the diagonal.
    """

    def __init__(self, model: SiameseNetwork, paths: Sequence[Path], skip_unreadable: bool = False) -> None:
        self.model, self.paths = model, []
        self.images, self.boxes, batch, self.unreadable = [], [], [], {}
        for path in tqdm(paths, desc="Reading images", disable=len(paths) < 50):
            try:
                image = read_image(path, model.frame.levels)
            except DataError as error:
                self.unreadable[path] = str(error)
                continue
            self.paths.append(path)
            self.images.append(shrink(image))
            self.boxes.append(model.frame.box(image.size))
            batch.append(model.preprocess(image))
        if self.unreadable and not (skip_unreadable and len(batch) > 1):  # all at once, not one a run
            raise DataError("\n".join(self.unreadable.values()))
        if model.frame.levels is None and any("values" in image.info for image in self.images):
            print("images of more than 8 bits: each is shown over its own range of values, as the network knows none")
        self.names = distinct_names(self.paths)
        self.batch = torch.stack(batch)
        self.effects: dict[int, RegionEffects] = {}  # of the images explained so far

    @cached_property
    def embeddings(self) -> torch.Tensor:
        return embed_in_parts(self.model, self.batch, 16)

    @cached_property
    def similarity(self) -> np.ndarray:
        return similarity_matrix(self.model, self.embeddings)

    def explain(self, first: int, second: int) -> Explanation:
        """Explain one pair; its maps have the network's image size."""
        return explain_effects(self.model, self.effects_of(first, second), [0], [1], self.model.image_size)

    def grad_cam(self, first: int, second: int) -> tuple[dict, float]:
        """Explain a pair by the paper's Grad-CAM: what `pair` returns, with this explanation; and the correlation of
        its maps with the measured effects of regions, the mean of both images, NaN where a map is empty."""
        explanation = explain(self.model, self.batch[[first]], self.batch[[second]], "distance")
        effects = self.effects_of(first, second)
        predicted = region_sums(explanation.for_similar[0], effects.regions, self.model.image_size)
        score = correlation(predicted, effects.on_pairs([0], [1])[0]).mean()
        return self.pair(first, second, explanation), float(score)

    def effects_of(self, *images: int) -> RegionEffects:
        """The effects of regions of images; each image is measured once, when first asked for."""
        missing = [i for i in dict.fromkeys(images) if i not in self.effects]
        if missing:
            found = region_effects(self.model, self.batch[missing])
            self.effects |= {i: found.of([k]) for k, i in enumerate(missing)}
        return RegionEffects(*map(torch.cat, zip(*(vars(self.effects[i]).values() for i in images))))

    def pair(self, first: int, second: int, explanation: Explanation | None = None) -> dict:
        """The `images`, `explanation`, `names` and `boxes` of one pair, as arguments of `show_explanation`. If no other
        explanation is given, it is that by occlusion."""
        return {
            "images": (self.images[first], self.images[second]),
            "explanation": explanation or self.explain(first, second),
            "names": (self.names[first], self.names[second]),
            "boxes": (self.boxes[first], self.boxes[second]),
        }

    def extremes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Find the most and the least similar pair of different images."""
        rows, columns = np.triu_indices(len(self.paths), k=1)
        # By raw distance: the similarity of every pair beyond the margin is 0.
        values = (self.embeddings[rows] - self.embeddings[columns]).norm(dim=1).cpu().numpy()
        return tuple((int(rows[k]), int(columns[k])) for k in (np.argmin(values), np.argmax(values)))

    def matches(self, first: int, second: int) -> list[Match]:
        """Find the strongest matches of one pair; their centres are shares of the images' sides, not of the frame's."""
        boxes = self.boxes[first], self.boxes[second]
        return matching_regions(self.effects_of(first, second), 0, 1, boxes, self.model.image_size)

    def what_if(self, first: int, second: int) -> WhatIf:
        """Put the maps of one pair to the test, see `utils.explain.removal`."""
        explanation = self.explain(first, second)
        maps = torch.stack([explanation.factual[0], explanation.counterfactual[0]], dim=1)
        boxes = self.boxes[first], self.boxes[second]
        return what_if(self.model, self.batch[[first, second]], maps, explanation.empty[0], boxes)


def explained_pairs(model: SiameseNetwork, paths: Sequence[Path], pairs: Pairs, chosen: Sequence[int]) -> list[dict]:
    """Explain the chosen ones of many pairs, positions in `paths`, as `Comparison.pair` does; only the images in these
    are read. An image's name is its class and its file."""
    needed, *ends = used_images(pairs.first[chosen], pairs.second[chosen])
    compared = Comparison(model, [paths[i] for i in needed])
    compared.names = [f"{path.parent.name}\n{path.stem}" for path in compared.paths]  # class and file
    compared.effects_of(*range(len(needed)))  # of all in one go, under one progress bar
    return [compared.pair(i, j) for i, j in zip(*(side.tolist() for side in ends))]


def describe(explanation: Explanation, names: tuple[str, str], threshold: float) -> str:
    """Describe the decision on a pair in one sentence; the threshold is the network's, of the dissimilarity."""
    similarity = float(explanation.similarity[0])
    verdict, relation = ("similar", "above") if explanation.is_similar[0] else ("dissimilar", "not above")
    decided = f"similarity {similarity:.3f}, {relation} the threshold of {1 - threshold:.3g}"
    return f"{names[0]} and {names[1]} are {verdict}: {decided}."


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name files by their names, suffix left out; if two are then the same, by `names_with_folders`."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else names_with_folders(paths)


def names_with_folders(paths: Sequence[Path]) -> list[str]:
    """Name files by their full names, with their folders as far as these differ."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    shared = len(os.path.commonprefix([part[:-1] for part in parts]))
    return ["/".join(part[shared:]) for part in parts]


def pair_folder(config: Config, path1: Path, path2: Path) -> Path:
    """The folder for the figures of a pair, named after both images and their folders, with digits of both full paths
    to keep pairs apart. Long names are cut, as some systems allow 260 bytes for a path."""
    paths = [path.resolve() for path in (path1, path2)]
    names = "__".join(f"{path.parent.name[:18]}-{path.stem[:18]}" for path in paths)
    names = re.sub(r"[^\w-]", "_", names)  # Windows forbids some letters, and a name that begins as `con.1`
    return config.outputs_path / "pairs" / f"{names}__{hash_of_paths(*paths)}"


def images_to_compare(config: Config, folder: str | Path | None = None) -> list[Path]:
    """List the images of a folder, sub-folders left out; if none is given, of `compare_path`, or, with fewer than two
    images there, `example_images`. A given folder with fewer than two images is a DataError."""
    inside = Path(folder or config.compare_path).glob("*")  # of nothing, where there is no folder
    found = sorted(path for path in inside if is_named_as_image(path) and path.is_file())
    if len(found) >= 2:
        return found
    if folder:
        raise DataError(
            f"compare_folder: {folder}: {counted(len(found), 'image')} there, those of its sub-folders not counted; "
            "put at least two into it, or leave it None for an example"
        )
    return example_images(config)


def example_images(config: Config) -> list[Path]:
    """List the first two test images of every class, or, while nothing is trained, of each folder; 20 at most."""
    prepare_folder(config)
    split = config.trained_path / "split.csv"
    if os.path.isfile(split):
        table = read_split(split).query("split == 'test'").sort_values("label", kind="stable")
    else:
        files = [path.relative_to(config.data_path) for path in sorted(config.data_path.glob("*/*"))]
        files = [file for file in files if is_named_as_image(file)]
        table = pd.DataFrame({"file": files, "label": [file.parent.name for file in files]})
    return [config.data_path / file for file in table.groupby("label").head(2).file[:20]]


def choose_pair(config: Config, image1: str | Path | None, image2: str | Path | None) -> tuple[Path, Path]:
    """Choose the two images to explain; if neither is given, two test images of the first class that has two."""
    if (image1 is None) != (image2 is None):
        raise DataError("image1 and image2: give both, or neither for an example")
    if image1 is not None:
        return Path(image1), Path(image2)
    pairs = list(pairwise(example_images(config)))
    return next((pair for pair in pairs if pair[0].parent == pair[1].parent), pairs[0])
