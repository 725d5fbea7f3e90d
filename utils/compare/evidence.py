"""The command `evidence`: what a network relies on, everywhere, as a CSV of regions and as a page."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from utils.compare.report import PAGE, in_steps, packed, picture
from utils.dataset import load_split, read_split
from utils.evaluate.reliance import Reliance, effects_of, embeddings_without, reliance_of, shares_of
from utils.evaluate.scores import embed_images
from utils.explain.concepts import features_of_places
from utils.images.places import BOX, in_originals
from utils.images.reading import read_image
from utils.models import load_trained
from utils.Siamese import SiameseNetwork
from utils.system.files import replacing, write_whole
from utils.system.settings import Config

CROPS, THUMBNAILS = 12, 100  # of a group; of images on the page
COLUMNS = ["group", "file", *BOX, "effect", "suspect"]
WAYS = ("before", "without", "blurred", "mean colour", "random")  # of the scores in the table


def write_evidence(config: Config) -> tuple[Reliance, list[Path]]:
    """Measure what the configuration's network relies on in its test images; write `evidence.csv`, `evidence.html` and,
    if there are suspects, their regions as masks, in the layout of `Data/<name>_masks`: the folder `evidence_masks`.

    The CSV has the regions of all groups in the test images and, for training without them, those of suspects in the
    other images, in pixels of the originals: `COLUMNS`.

    Raises:
        DataError: one class, too few images, or nothing that recurs.
    """
    model, note = load_trained(config)
    split = read_split(config.trained_path / "split.csv")
    images, rows = load_split(split, "test", config, model.frame)
    reliance, verbose = reliance_of(config, model, images, rows.label), config.hyperparameters.verbose
    tested = original_regions(config, model, reliance, rows.file)
    suspects, labels = reliance.table.index[reliance.table.suspect], rows.label.to_numpy()[reliance.chosen]
    tables = [tested]
    for name in sorted(set(split.split) - {"test"}) if len(suspects) else ():
        images, others = load_split(split, name, config, model.frame)
        found = reliance.groups.find(features_of_places(images, verbose), model.image_size)
        found = found.assign(group=found.group.map(reliance.numbers), file=others.file.to_numpy()[found.image])
        found, before = found[found.group.isin(suspects)].assign(suspect=True), embed_images(model, images)
        for _, members in found.groupby("group"):
            after = embeddings_without(model, images, before, members)
            effect = effects_of(before, after, others.label.to_numpy(), reliance.embeddings, labels)[members.image]
            found.loc[members.index, "effect"] = effect * shares_of(members)
        tables.append(in_originals(config, found, model.frame))
    paths = [config.outputs_path / f"evidence.{ending}" for ending in ("csv", "html")]
    with replacing(paths[0]) as file:
        table = pd.concat(tables).sort_values(["group", "file"], kind="stable")[COLUMNS]
        table.to_csv(file, index=False, float_format="%.6g")
    write_whole(paths[1], _page(config, model, reliance, rows, tested, note))
    masks = config.outputs_path / "evidence_masks"
    shutil.rmtree(masks, ignore_errors=True)
    for file, regions in table[table.suspect].groupby("file"):
        mask = Image.new("L", read_image(config.data_path / file).size)
        for row in regions.itertuples():
            mask.paste(255, (row.left, row.top, row.right, row.bottom))
        (masks / file).parent.mkdir(parents=True, exist_ok=True)
        mask.save((masks / file).with_suffix(".png"))
    return reliance, paths + [masks] * len(suspects[:1])


def original_regions(config: Config, model: SiameseNetwork, reliance: Reliance, files: pd.Series) -> pd.DataFrame:
    """The regions of groups in the test images `files`, in pixels of the originals: `COLUMNS`, and `image`."""
    regions = reliance.regions.assign(file=files.to_numpy()[reliance.regions.image])
    regions["suspect"] = reliance.table.suspect.reindex(regions.group).to_numpy()
    return in_originals(config, regions, model.frame)


def crops_of(config: Config, model: SiameseNetwork, regions: pd.DataFrame, group: int) -> list[tuple[str, Image.Image]]:
    """Cut the strongest regions of a group, at most `CROPS`, one an image, out of the originals: (file, crop)."""
    members = regions[regions.group == group].sort_values("effect", ascending=False, kind="stable")
    found = []
    for row in members.drop_duplicates("file").head(CROPS).itertuples():
        image = read_image(config.data_path / row.file, model.frame.levels)
        found.append((row.file, image.crop((row.left, row.top, row.right, row.bottom))))
    return found


def _page(
    config: Config, model: SiameseNetwork, reliance: Reliance, rows: pd.DataFrame, regions: pd.DataFrame, note: str
) -> str:
    chosen, files, classes = reliance.chosen, rows.file.to_numpy(), sorted(set(rows.label))
    levels = model.frame.levels
    sizes = np.repeat(model.image_size, 2)  # height, height, width, width
    places = reliance.regions[["group", "image"]].join((reliance.regions[BOX] / sizes).round(3))
    data = {
        "title": f"What does the network of {config.dataset} rely on?",
        "note": f"{note}. {reliance.groups.rest:.0%} of the strong regions are in no group.",
        "margin": model.margin,
        "length": float(reliance.embeddings[0].norm()) if model.normalize_embeddings else 0,
        "classes": classes,
        "labels": np.searchsorted(classes, rows.label.to_numpy()[chosen]).tolist(),
        "z": packed(reliance.embeddings.numpy(), "<f4"),
        "groups": [
            {
                **row[["finding", "regions", "images", "share"]].to_dict(),
                "number": number,
                "delta": in_steps((reliance.embeddings - without).double().numpy()),
                "places": places.loc[places.group == number, BOX].head(200).to_numpy().tolist(),
                "crops": [(file, picture(crop, 96)) for file, crop in crops_of(config, model, regions, number)],
                "scores": [[row[f"{s} {way}"] for s in ("AUC", "accuracy", "recall@1")] for way in WAYS],
            }
            for (number, row), without in zip(reliance.table.iterrows(), reliance.without)
        ],
        "images": [
            (files[i], picture(read_image(config.data_path / files[i], levels), 96), part.to_numpy().tolist())
            for i in chosen[:: -(-len(chosen) // THUMBNAILS)]
            for part in [places.loc[places.image == i, ["group", *BOX]]]
        ],
    }
    text = json.dumps(data).replace("<", "\\u003c")
    return (PAGE / "evidence.html").read_text(encoding="utf-8").replace("{{data}}", text)
