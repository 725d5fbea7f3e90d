"""Photographs before any training: what the ImageNet features of the installed weights are worth.

    python -m benchmarks.photographs Data/Flowers Data/AirBnB Data/Skin_cancer

Each folder has a sub-folder of images for each class. Of each: AUC of all pairs and recall@1; how often two random
crops (half of the area) of one photograph are similar, and two photographs of different folders; how well maps predict
what happens when cells are removed; the size of a page of 50 photographs, and what its 64 dimensions lose.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from utils.compare import Comparison
from utils.compare.report import DIMENSIONS, page
from utils.evaluate.agreement import agreement_table
from utils.evaluate.scores import query_scores
from utils.explain.occlusion import correlation, effect_on_distance, in_few_dimensions
from utils.explain.removal import embed_in_parts
from utils.Grad_CAM import explain_pairs
from utils.images.reading import is_named_as_image, read_image
from utils.models import photographs_network
from utils.Siamese import embedding_distance

CROPPED = 100  # images of each folder
IN_PAGE = 50


def random_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Half of an image's area, at its aspect ratio."""
    width, height = (round(side / 2**0.5) for side in image.size)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def read_folder(model, folder: Path, most: int, rng: np.random.Generator):
    """Up to `most` images, drawn at random: paths, classes, preprocessed images, and pairs of crops of the first."""
    paths = sorted(path for path in folder.glob("*/*") if is_named_as_image(path))
    paths = [paths[i] for i in rng.permutation(len(paths))[:most]]
    batch, crops = [], []
    for k, path in enumerate(tqdm(paths, folder.name)):
        image = read_image(path)
        batch.append(model.preprocess(image))
        if k < CROPPED:
            crops += [model.preprocess(random_crop(image, rng)) for _ in range(2)]
    return paths, [path.parent.name for path in paths], torch.stack(batch), torch.stack(crops)


def print_agreement(model, batch: torch.Tensor, count: int, rng: np.random.Generator) -> None:
    first, second = rng.permutation(len(batch))[: 2 * count].reshape(2, -1).tolist()
    table = agreement_table(model, batch, first, second, {"maps": explain_pairs(model, batch, first, second)})
    print("  agreement of maps, cells of 5 x 5:", table.loc["maps"].round(3).to_dict())


def print_page(model, paths: list[Path]) -> None:
    """The size of a page, and how well its few dimensions predict the effects of one region, and of two at once."""
    compared = Comparison(model, paths)
    print(f"page of {len(paths)} photographs: {len(page(compared, '').encode()) / 1e6:.2f} MB")
    whole = compared.effects_of(*range(len(paths)))
    kept = whole, in_few_dimensions(whole, DIMENSIONS)
    for title, others in (("one region", 0), ("two regions", 1)):
        scores = []
        for i in range(len(paths)):
            changes = (e.delta[[i]] + others * e.delta[[i]].roll(7, 1) for e in kept)
            differences = (e.embeddings[[i]] - e.embeddings[[i - 1]] for e in kept)
            scores.append(float(correlation(*map(effect_on_distance, changes, differences))))
        print(f"  in {DIMENSIONS} dimensions, correlation of effects of {title}: at least {min(scores):.4f}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--most", type=int, default=300, help="images of each folder")
    parser.add_argument("--pairs", type=int, default=12, help="explained pairs of each folder")
    options = parser.parse_args(arguments)
    model, rng, embeddings, paths = photographs_network(torch.device("cpu")), np.random.default_rng(0), [], []
    for folder in options.folders:
        found, labels, batch, crops = read_folder(model, folder, options.most, rng)
        z, of_crops = embed_in_parts(model, batch, 32), embed_in_parts(model, crops, 32)
        i, j = np.triu_indices(len(z), 1)
        distance = embedding_distance(z[i], z[j])
        auc = roc_auc_score([labels[a] == labels[b] for a, b in zip(i, j)], -distance.numpy())
        recall = query_scores(z, labels)["recall@1"].mean()
        similar = model.is_similar(embedding_distance(of_crops[::2], of_crops[1::2])).float().mean()
        print(f"{folder.name}: {len(z)} images, AUC {auc:.3f}, recall@1 {recall:.3f}, crops similar {similar:.3f}")
        print_agreement(model, batch, options.pairs, rng)
        embeddings.append(z)
        paths += found[: -(-IN_PAGE // len(options.folders))]
    if len(embeddings) > 1:
        ends = [rng.choice(len(embeddings), 2, replace=False) for _ in range(1000)]
        one, two = (torch.stack([embeddings[k][rng.integers(len(embeddings[k]))] for k in side]) for side in zip(*ends))
        similar = model.is_similar(embedding_distance(one, two)).float().mean()
        print(f"of 1,000 pairs across folders, similar: {similar:.3f}")
    print_page(model, paths[:IN_PAGE])


if __name__ == "__main__":
    main()
