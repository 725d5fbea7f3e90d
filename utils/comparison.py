"""A few images compared with each other and explained, at the cost of one forward pass per image."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from utils.dataset import read_split
from utils.explain.matching import Match, matching_regions
from utils.explain.occlusion import RegionEffects, correlation, joined, region_effects, region_sums
from utils.explain.removal import OTHERS, Interventions, embed_in_parts, strongest_region
from utils.files import counted, digits_of
from utils.Grad_CAM import MAPS, Explanation, explain, explain_effects
from utils.images.frame import Box
from utils.images.pairs import Pairs, used_in
from utils.images.reading import DataError, is_named_as_image, read_image, shrink
from utils.settings import Config
from utils.Siamese import SiameseNetwork, similarity_matrix


class Comparison:
    """Images, their feature maps, and everything that follows from these: similarities and explanations.

    Args:
        model: a trained network.
        paths: the images.
        method: how pairs are explained, see `utils.Grad_CAM.explain`.
        skip_unreadable: leave out images that cannot be read, as long as two are left.

    Attributes:
        paths: of the images that could be read.
        unreadable: what is wrong with the others, a line by path.
        names: of the files, see `distinct_names`.
        images: the originals at their own aspect ratio, in RGB, shrunk for figures.
        boxes: the part of the network's frame that each image fills.
        similarity: all images against all, shape (N, N), 1 on the diagonal.

    Raises:
        DataError: images that cannot be read, a line each.
    """

    def __init__(
        self, model: SiameseNetwork, paths: Sequence[Path], method: str = "occlusion", skip_unreadable: bool = False
    ) -> None:
        self.model, self.method, self.paths = model, method, []
        self.images, self.boxes, batch, self.unreadable = [], [], [], {}
        for path in tqdm(paths, desc="Reading images", disable=len(paths) < 50):
            try:
                image = read_image(path)
            except DataError as error:
                self.unreadable[path] = str(error)
                continue
            self.paths.append(path)
            self.images.append(shrink(image))
            self.boxes.append(model.frame.box(image.size))
            batch.append(model.preprocess(image))
        if self.unreadable and not (skip_unreadable and len(batch) > 1):  # all at once, not one a run
            raise DataError("\n".join(self.unreadable.values()))
        self.names = distinct_names(self.paths)
        self.batch = torch.stack(batch)
        self.embeddings = embed_in_parts(model, self.batch, 16)
        self.effects: dict[int, RegionEffects] = {}  # of the images explained so far
        self.similarity = similarity_matrix(model, self.embeddings)

    def explain(self, first: int, second: int) -> Explanation:
        """The explanation of one pair, by position; its maps have the network's image size."""
        if self.method != "occlusion":
            return explain(self.model, self.batch[[first]], self.batch[[second]], self.method)
        return explain_effects(self.model, self.effects_of(first, second), [0], [1], self.model.image_size)

    def paper(self, first: int, second: int) -> tuple[dict, float]:
        """The paper's Grad-CAM of a pair, as `pair` gives it, and how well it predicts the measured effects of regions:
        the mean correlation over both images, NaN where a map is empty."""
        explanation = explain(self.model, self.batch[[first]], self.batch[[second]], "distance")
        effects = self.effects_of(first, second)
        towards = explanation.raw[0] * (1 if explanation.is_similar[0] else -1)
        predicted = region_sums(towards, effects.regions, self.model.image_size)
        measured = effects.on_pairs([0], [1])[0]
        pair = self.pair(first, second) | {"explanation": explanation}
        return pair, float(correlation(predicted, measured).mean())

    def effects_of(self, *images: int) -> RegionEffects:
        """What regions of some images do, in their order; of each image measured once, however many pairs it is in."""
        missing = [i for i in dict.fromkeys(images) if i not in self.effects]
        if missing:
            found = region_effects(self.model, self.batch[missing])
            self.effects |= {i: found.of([k]) for k, i in enumerate(missing)}
        return joined([self.effects[i] for i in images])

    def pair(self, first: int, second: int) -> dict:
        """The `images`, `explanation`, `names` and `boxes` of one pair, as `show_explanation` takes them."""
        return {
            "images": (self.images[first], self.images[second]),
            "explanation": self.explain(first, second),
            "names": (self.names[first], self.names[second]),
            "boxes": (self.boxes[first], self.boxes[second]),
        }

    def extremes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The most and the least similar pair of different images."""
        rows, columns = np.triu_indices(len(self.paths), k=1)
        # By raw distance: the similarity of every pair beyond the margin is 0.
        values = (self.embeddings[rows] - self.embeddings[columns]).norm(dim=1).cpu().numpy()
        return tuple((int(rows[k]), int(columns[k])) for k in (np.argmin(values), np.argmax(values)))

    def matches(self, first: int, second: int) -> list[Match]:
        """The strongest matching regions of one pair; their places are shares of the images' sides, not of the
        frame's."""
        boxes = self.boxes[first], self.boxes[second]
        return matching_regions(self.effects_of(first, second), 0, 1, boxes, self.model.image_size)

    def what_if(self, first: int, second: int) -> WhatIf:
        """Take the strongest tenth of each map of a pair away, one at a time, by blurring and in other ways, and
        compare again."""
        explanation = self.explain(first, second)
        interventions = Interventions.on(self.model, self.batch[[first]], self.batch[[second]])
        maps = torch.stack([explanation.factual[0], explanation.counterfactual[0]], dim=1)
        regions = strongest_region(maps)

        def margins_without(removal: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
            return torch.stack([interventions.without(regions[None, :, kind], removal)[0] for kind in (0, 1)], dim=1)

        margins = margins_without()
        changes = (margins - interventions.before).cpu().numpy()
        others = {
            name: (margins_without(removal) - interventions.before).cpu().numpy() for name, removal in OTHERS.items()
        }
        before, after = (
            1 - self.model.threshold - (interventions.sign * values).cpu() for values in (interventions.before, margins)
        )
        return WhatIf(
            float(before),
            after.numpy(),
            changes,
            regions,
            explanation.empty[0].cpu().numpy(),
            boxes=(self.boxes[first], self.boxes[second]),
            others=others,
        )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The files' names without suffix; with it, and with folders, where two would be called the same, as cameras do."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else names_with_folders(paths)


def names_with_folders(paths: Sequence[Path]) -> list[str]:
    """The files' names; where they lie in several folders, each after its folder's, or after as many as tell all
    apart."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    depth = 1 if len({part[:-1] for part in parts}) == 1 else 2
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def explained_pairs(model: SiameseNetwork, paths: Sequence[Path], pairs: Pairs, chosen: Sequence[int]) -> list[dict]:
    """Some pairs of many images, each as `Comparison.pair` gives it, under the names of class and file; only their
    own images are read.

    Args:
        paths: of all images; `pairs` holds positions in it, `chosen` positions in `pairs`.
    """
    needed, *ends = used_in(pairs.first[chosen], pairs.second[chosen])
    compared = Comparison(model, [paths[i] for i in needed])
    compared.names = [f"{path.parent.name}\n{path.stem}" for path in compared.paths]  # class and file
    compared.effects_of(*range(len(needed)))  # of all in one go, under one progress bar
    return [compared.pair(i, j) for i, j in zip(*(side.tolist() for side in ends))]


@dataclass(frozen=True)
class WhatIf:
    """A pair before and after blurring a region; arrays of shape (2, 2): image; factual, counterfactual region.

    Attributes:
        before: similarity of the untouched images, below 0 beyond the margin.
        after: the same with the region of one image blurred, the other image untouched.
        change: of the decision's margin; negative if the decision got weaker.
        regions: the strongest tenth of each map, bool of shape (2, 2, H, W), at the network's image size.
        empty: maps without evidence, for which there is nothing to blur.
        boxes: the part of the network's frame that each image fills; `None` for all of it.
        others: as `change`, by other removals, by their names.
    """

    before: float
    after: np.ndarray
    change: np.ndarray
    regions: torch.Tensor
    empty: np.ndarray
    boxes: tuple[Box | None, Box | None] = (None, None)
    others: dict[str, np.ndarray] = field(default_factory=dict)

    def told(self, image: int, kind: int) -> str:
        """The similarity before and after; where it is 0 both times, the distances, which still tell them apart."""
        before, after = self.before, float(self.after[image, kind])
        if max(before, after) <= 0:
            return f"distance / margin {_apart(1 - before, 1 - after)}"
        return f"similarity {_apart(max(before, 0), max(after, 0))}"

    def report(self, names: tuple[str, str]) -> str:
        """What each map's strongest region does to the pair, and whether the map passes its own check: without
        the factual region the decision should get weaker, without the counterfactual one stronger, however it is taken
        away."""
        lines = []
        for image, name in enumerate(names):
            for kind, (word, sign) in enumerate(zip(MAPS, (-1, 1))):
                effect = ("weaker", "stronger")[int(self.change[image, kind] > 0)]
                passed = "as it should" if sign * self.change[image, kind] > 0 else "so do not trust this map"
                if self.empty[image, kind]:
                    lines.append(f"{name}, {word} region has no evidence to blur")
                    continue
                line = f"{name}, {word} region blurred: {self.told(image, kind)}, the decision gets {effect}, {passed}"
                differ = [other for other, change in self.others.items() if sign * change[image, kind] <= 0]
                if differ and passed == "as it should":
                    line += f"; but not if it is {' or '.join(differ)}"
                lines.append(line)
        return "\n".join(lines)


def _apart(before: float, after: float) -> str:
    """Two numbers by two decimals, or, up to four, as many as tell them apart."""
    digits = next((digits for digits in (2, 3) if f"{before:.{digits}f}" != f"{after:.{digits}f}"), 4)
    return f"{before:.{digits}f} → {after:.{digits}f}"


def describe(explanation: Explanation, names: tuple[str, str], threshold: float, index: int = 0) -> str:
    """The decision on a pair in one sentence."""
    similarity = float(explanation.similarity[index])
    verdict, relation = ("similar", "below") if explanation.is_similar[index] else ("dissimilar", "not below")
    return (
        f"{names[0]} and {names[1]} are {verdict}: similarity {similarity:.3f}, "
        f"dissimilarity {1 - similarity:.3f}, which is {relation} the threshold of {threshold:g}."
    )


def pair_folder(config: Config, path1: Path, path2: Path) -> Path:
    """Where the figures of a pair go: a folder of its own, named after both images and their folders.

    Long names are cut, as some systems allow 255 bytes, or 260 for the whole path, and characters that Windows forbids
    become `_`; digits of both full paths keep pairs apart.
    """
    paths = [path.resolve() for path in (path1, path2)]
    names = [f"{path.parent.name[:18]}-{path.stem[:18]}" for path in paths]
    # A dot, because `con.1-a` would be a device; surrogates, because they stand for bytes that are no text.
    readable = re.sub(r'[<>:"/\\|?*.\x00-\x1f\ud800-\udfff]', "_", "__".join(names))
    return config.outputs_path / "pairs" / f"{readable}__{digits_of(*paths)}"


def images_to_compare(config: Config, folder: str | Path | None = None) -> list[Path]:
    """The images of a folder, not of its sub-folders.

    `None` takes the configuration's `compare_path`, or, with fewer than two images there, examples of the test split.

    Raises:
        DataError: the given folder is missing, or has fewer than two images.
    """
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


def example_images(config: Config, per_class: int = 2, most: int = 20) -> list[Path]:
    """The first test images of every class, at most `most` in all."""
    table = read_split(config.trained_path / "split.csv")
    table = table[table.split == "test"].groupby("label").head(per_class).sort_values("label", kind="stable").head(most)
    return [config.data_path / file for file in table.file]


def choose_pair(config: Config, image1: str | Path | None, image2: str | Path | None) -> tuple[Path, Path]:
    """The two images to explain; where neither is given, two test images of the first class that has two.

    Raises:
        DataError: only one is given, or a file is missing.
    """
    if (image1 is None) != (image2 is None):
        raise DataError("image1 and image2: give both, or neither for an example")
    if image1 is None:
        examples = example_images(config)
        classes = [path.relative_to(config.data_path).parts[0] for path in examples]
        start = next((i for i in range(1, len(classes)) if classes[i - 1] == classes[i]), 1)
        return tuple(examples[start - 1 : start + 1])
    for name, path in (("image1", image1), ("image2", image2)):
        if not os.path.isfile(path):
            raise DataError(f"{name}: {path}: no such file; give the path of an image, from the notebook's folder")
    return Path(image1), Path(image2)
