"""The command `evidence`: what a network relies on, everywhere, as a CSV of regions and as a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from utils.compare.report import PAGE, _in_steps, _packed, _picture
from utils.dataset import load_split, read_split
from utils.evaluate.reliance import BOX, Reliance, effects_of, embeddings_without, measure_reliance
from utils.evaluate.scores import embed_images
from utils.images.places import in_originals
from utils.images.reading import read_image
from utils.Siamese import SiameseNetwork, load_trained
from utils.system.files import replacing, write_whole
from utils.system.settings import Config

CROPS, THUMBNAILS = 12, 100  # of a group; of images on the page
COLUMNS = ["group", "file", *BOX, "effect", "suspect"]


def write_evidence(config: Config) -> tuple[Reliance, list[Path]]:
    """Measure what the configuration's network relies on in its test images; write `evidence.csv` and `evidence.html`.

    The CSV lists the regions of all groups in the test images and, so that training can do without them, those of the
    suspects in the other images; columns `COLUMNS`, in pixels of the original images.

    Raises:
        DataError: one class, too few images, or nothing that recurs.
    """
    model, note = load_trained(config)
    split = read_split(config.trained_path / "split.csv")
    images, rows = load_split(split, "test", config, model.frame)
    reliance = measure_reliance(model, images, rows.label, config.seed, config.hyperparameters.verbose)
    tested = original_regions(config, model, reliance, rows.file.tolist())
    labels = rows.label.to_numpy()[reliance.chosen]
    found = [tested, *(_in_other_images(config, model, reliance, split, name, labels) for name in ("train", "valid"))]
    regions = pd.concat(found).sort_values(["group", "file"], kind="stable")[COLUMNS]
    paths = [config.outputs_path / f"evidence.{ending}" for ending in ("csv", "html")]
    with replacing(paths[0]) as file:
        regions.to_csv(file, index=False, float_format="%.6g")
    write_whole(paths[1], _page(config, model, reliance, rows, tested, note))
    return reliance, paths


def original_regions(config: Config, model: SiameseNetwork, reliance: Reliance, files: list[str]) -> pd.DataFrame:
    """The regions of groups in the test images `files`, in pixels of the originals: `COLUMNS`, and `image`."""
    regions = reliance.regions.assign(file=np.asarray(files)[reliance.regions.image])
    regions["suspect"] = reliance.table.suspect.reindex(regions.group).to_numpy()
    return in_originals(config, regions, model.frame)


def _in_other_images(
    config: Config, model: SiameseNetwork, reliance: Reliance, split: pd.DataFrame, name: str, labels: np.ndarray
) -> pd.DataFrame:
    """The regions of suspects in the images of another split, found by their look; then their effect is measured."""
    suspects = reliance.table.index[reliance.table.suspect]
    if not len(suspects):
        return pd.DataFrame(columns=COLUMNS)
    images, rows = load_split(split, name, config, model.frame)
    found, _ = reliance.groups.find(images)
    found["group"] = found.group.map(reliance.numbers)
    found = found[found.group.isin(suspects)].assign(suspect=True, effect=0.0)
    before, own = embed_images(model, images), rows.label.to_numpy()
    for _, members in found.groupby("group"):
        after = embeddings_without(model, images, before, members)
        effects = effects_of(before, after, own, reliance.embeddings, labels)[members.image]
        found.loc[members.index, "effect"] = effects / members.groupby("image").image.transform("size")
    found["file"] = rows.file.to_numpy()[found.image]
    return in_originals(config, found, model.frame)


def crops_of(config: Config, regions: pd.DataFrame, group: int) -> list[tuple[str, Image.Image]]:
    """The strongest regions of a group, cut out of the originals, one an image: (file, crop) of at most `CROPS`."""
    members = regions[regions.group == group].sort_values("effect", ascending=False, kind="stable")
    return [
        (row.file, read_image(config.data_path / row.file).crop((row.left, row.top, row.right, row.bottom)))
        for row in members.drop_duplicates("file").head(CROPS).itertuples()
    ]


def _page(
    config: Config, model: SiameseNetwork, reliance: Reliance, rows: pd.DataFrame, regions: pd.DataFrame, note: str
) -> str:
    """Make the page, as HTML."""
    shown = reliance.chosen[np.unique(np.linspace(0, len(reliance.chosen) - 1, THUMBNAILS).round().astype(int))]
    height, width = model.image_size
    shares = reliance.regions.assign(**{side: reliance.regions[side] / height for side in BOX[:2]})
    shares = shares.assign(**{side: reliance.regions[side] / width for side in BOX[2:]})
    classes = sorted(set(rows.label))
    data = {
        "title": f"What does the network of {config.dataset} rely on?",
        "note": f"{note}. {reliance.groups.rest:.0%} of the strong regions are in no group.",
        "margin": model.margin,
        "threshold": model.threshold,
        "radius": float(reliance.embeddings[0].norm()) if model.normalize_embeddings else 0,
        "classes": classes,
        "labels": [classes.index(label) for label in rows.label.to_numpy()[reliance.chosen]],
        "z": _packed(reliance.embeddings.numpy(), "<f4"),
        "groups": [
            row.to_dict()
            | {
                "number": int(number),
                "delta": _in_steps((reliance.embeddings - without).double().numpy()),
                "places": shares.loc[shares.group == number, BOX].head(200).round(3).to_numpy().tolist(),
                "crops": [(file, _picture(crop, 96)) for file, crop in crops_of(config, regions, number)],
            }
            for (number, row), without in zip(reliance.table.iterrows(), reliance.without)
        ],
        "images": [
            {
                "name": rows.file.iloc[i],
                "picture": _picture(read_image(config.data_path / rows.file.iloc[i]), 96),
                "regions": shares.loc[shares.image == i, ["group", *BOX]].round(3).to_numpy().tolist(),
            }
            for i in shown
        ],
    }
    text = json.dumps(data, default=lambda value: value.item()).replace("<", "\\u003c")
    return (PAGE / "evidence.html").read_text(encoding="utf-8").replace("{{data}}", text)
