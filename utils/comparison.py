"""A few images compared with each other and explained, at the cost of one forward pass per image."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from utils.config import Config
from utils.dataset import SUFFIXES, DataError, read_image, read_split
from utils.evaluation import similarity_matrix
from utils.Grad_CAM import Explanation, explain_features, feature_maps, split_at
from utils.Siamese import SiameseNetwork, eval_mode


class Comparison:
    """Images, their feature maps, and everything that follows from these: similarities and explanations.

    Args:
        model: a trained network.
        paths: the images.
        method: how pairs are explained, see `utils.Grad_CAM.explain`.

    Attributes:
        images: the originals, in RGB.
        similarity: all images against all, shape (N, N), 1 on the diagonal.
    """

    def __init__(self, model: SiameseNetwork, paths: Sequence[Path], method: str = "contrast") -> None:
        self.model, self.paths, self.method = model, list(paths), method
        self.images = [read_image(path) for path in self.paths]
        batches = torch.stack([model.preprocess(image) for image in self.images]).split(16)
        self.features = torch.cat([feature_maps(model, batch, method) for batch in batches])
        self.similarity = similarity_matrix(model, self.embed())

    @torch.no_grad()
    def embed(self) -> torch.Tensor:
        """Embeddings of all images, shape (N, D), from their feature maps."""
        with eval_mode(self.model):
            return self.model.embed_features(self.model.backbone[split_at(self.model, self.method) :](self.features))

    def explain(self, first: int, second: int) -> Explanation:
        """The explanation of one pair, by position; its maps have the network's image size."""
        chosen = self.features[[first]], self.features[[second]]
        return explain_features(self.model, *chosen, image_size=self.model.image_size, method=self.method)

    def extremes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The most and the least similar pair of different images."""
        rows, columns = np.triu_indices(len(self.paths), k=1)
        values = self.similarity[rows, columns]
        return tuple((int(rows[k]), int(columns[k])) for k in (values.argmax(), values.argmin()))


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

    Long names are cut, as some systems allow 255 bytes, or 260 for the whole path; eight digits of a hash of both
    full paths keep pairs apart.
    """
    paths = [path.resolve() for path in (path1, path2)]
    names = [f"{path.parent.name[:30]}-{path.stem[:30]}" for path in paths]
    digits = hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()[:8]
    return config.outputs_path / "pairs" / "__".join([*names, digits])


def images_to_compare(config: Config, folder: str | Path | None = None) -> list[Path]:
    """The images of a folder, not of its sub-folders.

    `None` takes `data_for_compare` beside the dataset, or, with fewer than two images there, examples of the test split.

    Raises:
        DataError: the given folder is missing, or has fewer than two images.
    """
    place = Path(folder) if folder else config.data_path.with_name("data_for_compare")
    found = sorted(p for p in place.glob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    if len(found) >= 2:
        return found
    if folder:
        raise DataError(f"compare_folder: {folder}: {len(found)} images there; put at least two into it, or leave it None for an example")
    return example_images(config)


def example_images(config: Config, per_class: int = 2) -> list[Path]:
    """The first test images of every class."""
    table = read_split(config.checkpoints_path / "split.csv")
    table = table[table.split == "test"].groupby("label").head(per_class).sort_values("label", kind="stable")
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
        if not Path(path).is_file():
            raise DataError(f"{name}: {path}: no such file; give the path of an image, from the notebook's folder")
    return Path(image1), Path(image2)
