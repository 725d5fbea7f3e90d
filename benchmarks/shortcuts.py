"""Shortcuts planted into photographs: are they found, is what they gain shown, and does training do without them?

python -m benchmarks.shortcuts Data/Skin_cancer --plants sticker border --shares 0.9 0.6 --seeds 3 --cover
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.metrics import roc_auc_score

from benchmarks.common import changed
from utils.compare.evidence import write_evidence
from utils.config import load_config
from utils.dataset import load_split
from utils.evaluate.scores import embed_images
from utils.models import load_trained
from utils.system.settings import Config
from utils.training import train

ELSEWHERE = 0.03  # share of the other classes' images with the plant
COUNTS = {"train": 300, "valid": 50, "test": 80}  # images of all classes together
COVERED, FILLED = 0.3, 0.15  # a region is on a plant if it has so much of one of its boxes, or that much of it is plant
Boxes = list[tuple[int, int, int, int]]  # top, bottom, left, right


def sticker(image: Image.Image, rng: np.random.Generator) -> Boxes:
    side = round(0.18 * min(image.size))
    left, top = (int(rng.integers(pixels - side)) for pixels in image.size)
    ImageDraw.Draw(image).ellipse((left, top, left + side, top + side), fill=(30, 60, 200))
    return [(top, top + side, left, left + side)]


def watermark(image: Image.Image, rng: np.random.Generator) -> Boxes:
    font, pen = ImageFont.load_default(round(0.12 * image.height)), ImageDraw.Draw(image)
    left, top, right, bottom = map(round, pen.textbbox((0, 0), "PHOTO", font=font))
    x, y = image.width - right - 4, image.height - bottom - 4
    pen.text((x, y), "PHOTO", font=font, fill=(245, 245, 245))
    return [(y + top, y + bottom, x + left, x + right)]


def border(image: Image.Image, rng: np.random.Generator) -> Boxes:
    (w, h), thick = image.size, round(0.06 * min(image.size))
    boxes = [(0, thick, 0, w), (h - thick, h, 0, w), (0, h, 0, thick), (0, h, w - thick, w)]
    for top, bottom, left, right in boxes:
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), fill=(60, 160, 90))
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


def planted(source: Path, folder: Path, plant: str | None, share: float, seed: int) -> tuple[pd.DataFrame, dict]:
    """Copy some images, in `share` of the last class with the plant; returns the split, and the boxes of each file."""
    rng, rows, boxes = np.random.default_rng(seed), [], {}
    classes = sorted(path.name for path in source.iterdir() if path.is_dir())
    for label in classes:
        (folder / label).mkdir(parents=True)
        splits = np.repeat([*COUNTS], [count // len(classes) for count in COUNTS.values()])
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
        down, across = (
            min(bottom, region.bottom) - max(top, region.top),
            min(right, region.right) - max(left, region.left),
        )
        both = max(0, down) * max(0, across)
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
        planted(source, folder / "clean", None, 0, seed)
        settings = {"image.size": [size, size], "hyperparameters.epochs": 0, "hyperparameters.verbose": False}
        base = changed(load_config("config.yml", "Skin_cancer"), settings | {"seed": seed})

        def trained(name: str, data: str, **more: object) -> Config:
            places = {"checkpoints_path": folder / name, "outputs_path": folder / f"out_{name}"}
            config = changed(base, places | {"data_path": folder / data} | more)
            train(config, table)
            return config

        config, tested = trained("network", "data"), set(table.file[table.split == "test"])
        reliance, (csv, _) = write_evidence(config)
        regions, first = pd.read_csv(csv), reliance.table.loc[1]
        result = {"plant": plant or "none", "share": share, "seed": seed, "suspects": int(reliance.table.suspect.sum())}
        result |= of_groups(regions[regions.file.isin(tested)], boxes, tested)
        result |= {"AUC": first["AUC before"], "without group 1": first["AUC without"], "random": first["AUC random"]}
        if plant:
            clean = trained("never", "clean")
            result |= {"never saw it": auc(clean, clean, table), "clean images": auc(config, clean, table)}
            if cover and result["suspects"]:
                result["clean images, covered"] = auc(trained("covered", "data", **{"image.cover": csv}), clean, table)
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
