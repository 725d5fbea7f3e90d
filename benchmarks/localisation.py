"""Do the maps find what decides? Training seeds on the synthetic scenes, scored on ground truth and by intervention.

python -m benchmarks.localisation --backbone Conv4 --seeds 5
python -m benchmarks.localisation --seeds 2 --set pooling=avg
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from benchmarks.common import add_set_option, changed
from utils.config import load_config
from utils.dataset import read_split
from utils.evaluate.faithfulness import area_under, check, check_table, compare_rankings
from utils.evaluate.localisation import load_masks, localisation_table, pointing_game
from utils.evaluate.scores import measure_split, score_pairs
from utils.explain.occlusion import region_effects, strongest_matches
from utils.explain.removal import Interventions
from utils.Grad_CAM import METHODS, explain_pairs
from utils.images.pairs import PAIR_LABELS, Pairs, evenly_spaced_pairs
from utils.images.synthetic import CLASSES, ensure_synthetic, intruder_class
from utils.Siamese import SiameseNetwork
from utils.system.settings import Config
from utils.training import train

MATTERS = 0.05  # an intruder matters if blurring it makes the decision stronger by this share of the margin


class Setting(NamedTuple):
    """What trains a backbone; from random weights, unless `more` says otherwise."""

    side: int  # pixels
    epochs: int
    images_per_class: int
    more: dict[str, object] = {}


# As for photographs, but for embeddings of any length: without its disc a scene lies as far from the others as with it.
FINE_TUNED = {"pretrained": True, "image.RandomErasing": 0.0, "hyperparameters.batch_size": 64}
FINE_TUNED |= {"hyperparameters.learning_rate": 5e-4, "hyperparameters.additivity": 1.0}
SETTINGS = {
    "Conv4": Setting(64, 14, 200),
    "MobileNet": Setting(96, 14, 1600),
    "resnet18": Setting(96, 10, 1600),
    "EfficientNetLite0": Setting(128, 6, 200, FINE_TUNED),
}


def trained(backbone: str, seed: int, scratch: Path, settings: dict[str, object]) -> tuple[Config, SiameseNetwork]:
    side, epochs, images_per_class, more = SETTINGS[backbone]
    name = "_".join([backbone, *(f"{key}={value}" for key, value in settings.items()), str(seed)])
    data, folder = scratch / f"scenes_{images_per_class}", scratch / name
    ensure_synthetic(data, images_per_class=images_per_class)
    places = {"dataset": data.name, "data_path": data, "checkpoints_path": folder, "outputs_path": folder, "seed": seed}
    size = {"backbone_model": backbone, "image.size": [side, side], "hyperparameters.epochs": epochs}
    config = changed(load_config("config.yml", "Synthetic"), places | size | more | settings)
    if not (folder / "history.csv").exists():
        train(config)
    return config, SiameseNetwork.load(folder / "model.pth")


def public_procedure(model: SiameseNetwork, batch: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """The public implementation's maps: the clipped distance's gradient in image 1 weighs both images' channels."""
    maps = []
    for i, j in zip(pairs.first, pairs.second):
        final = model.backbone(batch[[i, j]]).detach().requires_grad_()
        z1, z2 = model.embed_features(final)
        (gradient,) = torch.autograd.grad((z1 - z2).norm().clamp(max=1), final)
        raw = (gradient[:1].mean((2, 3), keepdim=True) * final.detach()).sum(1).clamp(min=0)
        maps.append(F.interpolate(raw[None], size=batch.shape[2:], mode="bilinear"))
    return torch.cat(maps)


def intruders_that_matter(model, batch, table, masks, kind, rng) -> tuple[np.ndarray, np.ndarray]:
    """Rightly decided pairs of a kind that get `MATTERS` stronger without image 1's intruder: positions of both."""
    labels = np.array([CLASSES.index(name) for name in table.label])
    kinds = np.array(
        [intruder_class(label, int(Path(file).stem.split("_")[1])) for label, file in zip(labels, table.file)],
        dtype=object,
    )
    hosts = np.flatnonzero(kinds != None)  # noqa: E711
    hosts = hosts[:: -(-len(hosts) // 40)]  # at most 40
    pools = [np.flatnonzero(labels == (labels[i] if kind == 0 else kinds[i])) for i in hosts]
    first = np.repeat(hosts, 8)
    second = np.concatenate([rng.choice(pool[pool != i], 8, replace=False) for i, pool in zip(hosts, pools)])
    interventions = Interventions(model, batch[first], batch[second])
    region = F.max_pool2d(masks[first][:, None].float(), 5, 1, 2) > 0
    after = interventions.margins_after(torch.cat([region, torch.zeros_like(region)], dim=1))[:, 0]
    effect = after - interventions.margins_before
    matters = ((interventions.sign < 0) == (kind == 0)) & (effect > MATTERS)
    return first[matters.numpy()], second[matters.numpy()]


def counterfactual_rows(model, batch, table, masks, rng) -> list[dict]:
    """Do counterfactual maps find the intruders that matter?"""
    rows = []
    for kind, name in enumerate(PAIR_LABELS):
        first, second = intruders_that_matter(model, batch, table, masks, kind, rng)
        explanation = explain_pairs(model, batch, first, second)
        effect, random = check(Interventions(model, batch[first], batch[second]), explanation, "counterfactual", rng)
        hits = pointing_game(explanation.counterfactual[:, 0], masks[first])
        shares = [values.float().mean().item() for values in (hits, effect[:, 0] > 0, random[:, 0] > 0)]
        rows.append({"pairs": name, "number": len(first)} | dict(zip(("pointing", "check right", "random"), shares)))
    return rows


def matches_on_objects(model, batch, pairs, masks, right, most=60) -> float:
    """Share of rightly decided similar pairs whose strongest match joins the two deciding objects."""
    hits = []
    for k in np.flatnonzero(right & (pairs.label == 0))[:most]:
        ends = pairs.first[k], pairs.second[k]
        best = strongest_matches(region_effects(model, batch[list(ends)]).interaction(0, 1), 1)[0]
        at = [[int(share * side) for share, side in zip(place, masks.shape[1:])] for place in best[:2]]
        points = torch.zeros(2, *masks.shape[1:])
        for point, (y, x) in zip(points, at):
            point[y, x] = 1
        hits.append(bool(pointing_game(points, masks[list(ends)]).all()))
    return float(np.mean(hits))


def score(config, model, rng) -> dict[str, pd.DataFrame]:
    table = read_split(config.checkpoints_path / "split.csv")
    test = measure_split(model, table, "test", config)
    rows = table[table.split == "test"]
    batch = model.normalize(test.images[range(len(test.images))])
    auc = score_pairs(test.dissimilarity, test.pairs.label, 0.5).auc
    pairs = evenly_spaced_pairs(test.pairs, 200)
    explanations = {method: explain_pairs(model, batch, pairs.first, pairs.second, method) for method in METHODS}
    right = (explanations["occlusion"].is_similar.numpy()) == (pairs.label == 0)
    maps = {method: explanation.factual for method, explanation in explanations.items()}
    maps["public procedure"] = public_procedure(model, batch, pairs)
    masks = load_masks(config.data_path, rows.file, model.frame)
    located = localisation_table(maps, masks, pairs, right)
    interventions = Interventions(model, batch[pairs.first], batch[pairs.second])
    checks = {name: check_table(interventions, e, config.seed) for name, e in explanations.items()}
    intruders = load_masks(config.data_path, rows.file, model.frame, "_intruder")
    causal = pd.DataFrame(counterfactual_rows(model, batch, rows, intruders, rng))
    curves = compare_rankings(interventions, explanations["occlusion"])
    areas = {name: {curve: area_under(values) for curve, values in pair.items()} for name, pair in curves.items()}
    network = {"AUC": auc, "matches on both objects": matches_on_objects(model, batch, pairs, masks, right)}
    return {
        "network": pd.DataFrame([network]),
        "localisation": located,
        "interventions": pd.concat(table.assign(method=name) for name, table in checks.items()),
        "areas under the curves": pd.DataFrame(areas).T.rename_axis("ranking").reset_index(),
        "intruders that matter": causal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=SETTINGS, default="Conv4")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder of trained networks to reuse")
    add_set_option(parser)
    arguments = parser.parse_args()
    settings = dict(arguments.set)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in tqdm(range(arguments.seeds), desc="seeds"):
            config, model = trained(arguments.backbone, seed, arguments.keep or Path(scratch), settings)
            results.append(score(config, model, np.random.default_rng(seed)))
    changes = [f"{key}={value}" for key, value in settings.items()]
    print(" ".join([arguments.backbone, *changes]) + f", means of {arguments.seeds} seeds")
    for name in results[0]:
        frames = pd.concat([result[name] for result in results])
        keys = [column for column in frames if not pd.api.types.is_numeric_dtype(frames[column])]
        mean = frames.groupby(keys, sort=False).mean() if keys else frames.mean().to_frame().T
        print(f"\n{name}\n{mean.round(3).to_string()}")


if __name__ == "__main__":
    main()
