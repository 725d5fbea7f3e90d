"""Shortcuts planted into photographs: are they found, is what they gain shown, and does training do without them?

python -m benchmarks.shortcuts Data/Skin_cancer --plants sticker border --shares 0.9 0.6 --seeds 3 --cover
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import NMF
from sklearn.metrics import roc_auc_score

from benchmarks.common import changed
from utils.compare.evidence import write_evidence
from utils.config import load_config
from utils.dataset import load_split
from utils.evaluate.scores import embed_images
from utils.explain.concepts import CELLS
from utils.explain.occlusion import GRID, region_effects
from utils.images.places import BOX, in_originals
from utils.models import load_trained
from utils.Siamese import eval_mode
from utils.system.settings import Config
from utils.training import train

ELSEWHERE = 0.03  # share of the other classes' images with the plant
COUNTS = {"train": 300, "valid": 50, "test": 80}  # images of all classes together
CLEAN = COUNTS | {"test": 600}  # to test networks on images without the plant, among them those 80
CONCEPTS = 10  # of CRAFT; clusters of SpRAy
COVERED, FILLED = 0.3, 0.15  # a region is on a plant if it has so much of one of its boxes, or that much of it is plant
Boxes = list[tuple[int, int, int, int]]  # top, bottom, left, right


def sticker(image: Image.Image, rng: np.random.Generator, share: float = 0.18, fill: tuple = (30, 60, 200)) -> Boxes:
    side = round(share * min(image.size))
    left, top = (int(rng.integers(pixels - side)) for pixels in image.size)
    ImageDraw.Draw(image, "RGBA").ellipse((left, top, left + side, top + side), fill=fill)
    return [(top, top + side, left, left + side)]


def watermark(image: Image.Image, rng: np.random.Generator, words: str = "PHOTO", share: float = 0.12) -> Boxes:
    font, pen = ImageFont.load_default(round(share * image.height)), ImageDraw.Draw(image)
    left, top, right, bottom = map(round, pen.textbbox((0, 0), words, font=font))
    x, y = image.width - right - 4, image.height - bottom - 4
    pen.text((x, y), words, font=font, fill=(245, 245, 245) if words == "PHOTO" else (255, 150, 30))
    return [(y + top, y + bottom, x + left, x + right)]


def border(image: Image.Image, rng: np.random.Generator, fill: tuple = (60, 160, 90)) -> Boxes:
    (w, h), thick = image.size, round(0.06 * min(image.size))
    boxes = [(0, thick, 0, w), (h - thick, h, 0, w), (0, h, 0, thick), (0, h, w - thick, w)]
    for top, bottom, left, right in boxes:
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), fill=fill)
    return boxes


def ruler(image: Image.Image, rng: np.random.Generator) -> Boxes:
    (width, height), long, pen = image.size, round(0.12 * image.height), ImageDraw.Draw(image)
    bottom, left = int(height - rng.integers(0.1 * height)), int(rng.integers(0.3 * width))
    right = left + round(0.6 * width)
    pen.line((left, bottom, right, bottom), fill=(15, 15, 15), width=2)
    for k, x in enumerate(range(left, right, max(3, round(0.03 * width)))):
        pen.line((x, bottom, x, bottom - (long if k % 5 == 0 else long // 2)), fill=(15, 15, 15), width=2)
    return [(bottom - long, bottom, left, right)]


def tint(image: Image.Image, rng: np.random.Generator) -> Boxes:  # has no region, so none should be found
    image.paste(Image.fromarray((np.asarray(image) * [1, 0.85, 0.7]).astype(np.uint8)))
    return []


PLANTS = {plant.__name__: plant for plant in (sticker, watermark, border, ruler, tint)}
PLANTS |= {"dot": partial(sticker, share=0.08, fill=(200, 40, 180)), "frame": partial(border, fill=(5, 5, 5))}
PLANTS |= {"pale": partial(sticker, share=0.25, fill=(250, 220, 40, 128)), "red": partial(sticker, fill=(200, 30, 30))}
PLANTS["date"] = partial(watermark, words="12 05 '98", share=0.08)


def planted(source: Path, folder: Path, plant: str | None, share: float, seed: int, counts: dict = COUNTS) -> tuple:
    """Copy some images, in `share` of the last class with the plant; returns the split, and the boxes of each file."""
    rng, rows, boxes = np.random.default_rng(seed), [], {}
    classes = sorted(path.name for path in source.iterdir() if path.is_dir())
    for label in classes:
        (folder / label).mkdir(parents=True)
        splits = np.repeat([*counts], [count // len(classes) for count in counts.values()])
        for path, split in zip(rng.permutation(sorted((source / label).iterdir())), splits):
            image, name = Image.open(path).convert("RGB"), f"{label}/{path.stem}.png"
            own = np.random.default_rng([seed, len(rows)])
            if plant and own.random() < (share if label == classes[-1] else ELSEWHERE):
                boxes[name] = PLANTS[plant](image, own)
            image.save(folder / name)
            rows.append((name, label, split))
    return pd.DataFrame(rows, columns=["file", "label", "split"]), boxes


def on_plant(region: tuple, boxes: Boxes) -> bool:
    area = (region.bottom - region.top) * (region.right - region.left)
    for top, bottom, left, right in boxes:
        down = max(0, min(bottom, region.bottom) - max(top, region.top))
        both = down * max(0, min(right, region.right) - max(left, region.left))
        if both > COVERED * (bottom - top) * (right - left) or both > FILLED * area:
            return True
    return False


def of_groups(regions: pd.DataFrame, boxes: dict, files: set[str]) -> dict:
    """The rank, purity and recall of the group that is most of all the plant; rank 0: none is."""
    found = [(0, 0, 0)]
    for group, members in regions.groupby("group"):
        hits = np.array([on_plant(row, boxes.get(row.file, [])) for row in members.itertuples()])
        recall = members.file[hits].nunique() / max(1, len(files & set(boxes)))
        found.append((hits.mean(), recall, int(group)))
    return dict(zip(("purity", "recall", "rank"), max(found, key=lambda row: row[0] * row[1])))


@torch.no_grad()
def groups_of_others(config: Config, table: pd.DataFrame, boxes: dict) -> dict[str, float]:
    """Rank, purity and recall of what is most of all the plant, among groups that others find.

    CRAFT (Fel et al., 2023): concepts of the last class are factors (NMF) of the backbone's activations of crops as
    wide as our regions, ranked by what the nearness to the class changes without them (written here: craft-xai needs
    TensorFlow). SpRAy (Lapuschkin et al., 2019): spectral clusters of whole heat maps, which have no rank.
    """
    model, _ = load_trained(config)
    images, rows = load_split(table, "test", config, model.frame)
    x, labels = model.normalize(images[np.arange(len(images))]), rows.label.to_numpy()
    planted, last = rows.file.isin(list(boxes)).to_numpy(), labels == max(labels)
    side = round(CELLS / GRID * x.shape[2])
    centre, corners = embed_images(model, images)[last].mean(0), range(0, x.shape[2] - side + 1, int(0.8 * side))
    crops = [(i, y, y + side, x0, x0 + side) for i in np.flatnonzero(last) for y in corners for x0 in corners]
    with eval_mode(model):
        views = (F.interpolate(x[i : i + 1, :, a:b, c:d], x.shape[2:], mode="bilinear") for i, a, b, c, d in crops)
        activations = torch.cat([model.backbone(view).mean((2, 3)) for view in views]).numpy()
        factors = NMF(CONCEPTS, random_state=0, max_iter=500)
        weights = factors.fit_transform(activations)

        def nearness(weights: np.ndarray) -> np.ndarray:
            z = model.embed_pooled(torch.from_numpy(weights @ factors.components_).float())
            return (z - centre).norm(dim=1).numpy()

        whole, each = nearness(weights), 1 - np.eye(CONCEPTS)
        rank = np.argsort([-np.abs(whole - nearness(weights * without)).mean() for without in each]).argsort() + 1
        heat = region_effects(model, x, verbose=False).density[..., :-1].norm(dim=-1).flatten(1)
    regions = pd.DataFrame(crops, columns=["image", *BOX]).assign(group=rank[(weights / weights.max(0)).argmax(1)])
    regions["file"] = rows.file.to_numpy()[regions.image]
    concept = of_groups(in_originals(config, regions, model.frame), boxes, set(rows.file[last]))
    clusters = SpectralClustering(CONCEPTS, affinity="nearest_neighbors", random_state=0).fit_predict(heat)
    shares = [(planted[clusters == k].mean(), planted[clusters == k].sum() / planted.sum()) for k in set(clusters)]
    found = {"CRAFT": concept, "SpRAy": dict(zip(("purity", "recall"), max(shares, key=np.prod)))}
    return {f"{way} {score}": value for way, scores in found.items() for score, value in scores.items()}


def auc(config: Config, images_of: Config, table: pd.DataFrame) -> float:
    """The AUC of a configuration's network on all pairs of test images of another one."""
    model, _ = load_trained(config)
    images, rows = load_split(table, "test", images_of, model.frame)
    first, second = np.triu_indices(len(rows), 1)
    labels, distance = rows.label.to_numpy(), torch.pdist(embed_images(model, images)).numpy()
    return float(roc_auc_score(labels[first] != labels[second], distance))


def run(source: Path, plant: str | None, share: float, seed: int, size: int, cover: bool) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table, boxes = planted(source, folder / "data", plant, share, seed)
        without, _ = planted(source, folder / "clean", None, 0, seed, CLEAN)
        settings = {"image.size": [size, size], "hyperparameters.epochs": 0, "hyperparameters.verbose": False}
        base = changed(load_config("config.yml", "Skin_cancer"), settings | {"seed": seed})

        def trained(name: str, data: str, **more: object) -> Config:
            places = {"checkpoints_path": folder / name, "outputs_path": folder / f"out_{name}"}
            config = changed(base, places | {"data_path": folder / data} | more)
            train(config, table)
            return config

        config, tested = trained("network", "data"), set(table.file[table.split == "test"])
        reliance, (csv, *_) = write_evidence(config)
        regions, first = pd.read_csv(csv), reliance.table.loc[1]
        result = {"plant": plant or "none", "share": share, "seed": seed, "suspects": int(reliance.table.suspect.sum())}
        result |= of_groups(regions[regions.file.isin(tested)], boxes, tested)
        result |= {"AUC": first["AUC before"], "without group 1": first["AUC without"], "random": first["AUC random"]}
        if boxes:
            result |= groups_of_others(config, table, boxes)
        if plant:
            clean = trained("never", "clean")
            result |= {"never saw it": auc(clean, clean, without), "clean images": auc(config, clean, without)}
            if cover and result["suspects"]:
                covered = trained("covered", "data", **{"image.cover": csv})
                result["clean images, covered"] = auc(covered, clean, without)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, help="folder with a folder of photographs per class")
    parser.add_argument("--plants", nargs="*", choices=PLANTS, default=[*PLANTS])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.9, 0.6, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=192, help="pixels")
    parser.add_argument("--cover", action="store_true", help="also train without what is a suspect")
    options = parser.parse_args()
    rows = []
    for plant, share in [(plant, share) for plant in options.plants for share in options.shares] + [(None, 0.0)]:
        for seed in range(options.seeds):
            rows.append(run(options.source, plant, share, seed, options.size, options.cover))
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
    print(pd.DataFrame(rows).groupby(["plant", "share"]).mean(numeric_only=True).round(3).to_string())


if __name__ == "__main__":
    main()
