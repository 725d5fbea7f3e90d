"""What else was tried: other targets, layers, weights and neighbourhoods for the maps, on networks trained before.

    python -m benchmarks.localisation --backbone Conv4 --keep FOLDER
    python -m benchmarks.variants FOLDER/Conv4_*

A folder holds `model.pth` and `split.csv`, as `checkpoints/<dataset>` does. Without masks, only interventions are
scored.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from benchmarks.localisation import intruders_that_matter
from utils.dataset import load_split, read_split
from utils.evaluate.localisation import energy_ratio, load_masks, pointing_game
from utils.evaluate.scores import embed_images, measure_split
from utils.explain.deeplift import from_reference
from utils.explain.evidence import local_mean
from utils.explain.removal import Interventions, blur, strongest_region
from utils.images.pairs import KINDS, some_pairs
from utils.settings import Config
from utils.Siamese import SiameseNetwork, eval_mode


class Variant(NamedTuple):
    """A way to make a signed map; the defaults are those of `contrast`."""

    name: str
    removable: float | None = None  # None: measured; 0: the derivative of D^2; 2: <z1 - mu, z2 - mu>
    # Where a region's going takes an embedding: its mean; or the mean of `own class`, of the `other class` nearest.
    reference: str = "population"
    # final, fine, earlier: the fine map's resolution doubled; a + b: their mean; a x b: their geometric mean.
    layer: str = "fine"
    spread: float = 0.05
    # The reference: their mean activation; or that of `images`, of `this image blurred`, or `nothing`.
    baseline: str = "blurred images"
    # DeepLIFT's rescale rule from the reference; or `derivative`; or its mean over `N points` of the way from there.
    rule: str = "secants"
    mean_weights: bool = False


VARIANTS = [
    Variant("contrast"),
    Variant("derivatives instead of DeepLIFT's secants", rule="derivative"),
    Variant("integrated gradients, 1 point", rule="1 points"),
    Variant("integrated gradients, 2 points", rule="2 points"),
    Variant("integrated gradients, 10 points", rule="10 points"),
    Variant("target: derivative of the squared distance", removable=0),
    Variant("target: from the mean embedding, r = 1", removable=1),
    Variant("target: <z1 - mu, z2 - mu>", removable=2),
    Variant("reference: mean of the own class", reference="own class"),
    Variant("reference: mean of the nearest other class", reference="other class"),
    Variant("no neighbourhood", spread=0),
    Variant("neighbourhood 0.1", spread=0.1),
    Variant("final layer", layer="final"),
    Variant("earlier layer", layer="earlier"),
    Variant("fused: mean of fine and final layer", layer="fine + final"),
    Variant("fused: geometric mean of fine and final layer", layer="fine x final"),
    Variant("fused: mean of fine and earlier layer", layer="fine + earlier"),
    Variant("mean weights (Grad-CAM)", mean_weights=True, rule="derivative"),
    Variant("baseline: nothing", baseline="nothing"),
    Variant("baseline: mean over sharp images", baseline="images"),
    Variant("baseline: this image blurred", baseline="this image blurred"),
    Variant(
        "distance (the paper's)",
        removable=0,
        layer="final",
        spread=0,
        baseline="nothing",
        mean_weights=True,
        rule="derivative",
    ),
]


def block_of(model: SiameseNetwork, layer: str) -> int:
    """Number of blocks up to a layer's feature map."""
    shapes = model.block_shapes()
    if layer == "final":
        return len(shapes)
    positions = shapes[model.fine_block][2:].numel()
    finer = [i for i, shape in enumerate(shapes) if shape[2:].numel() > positions]
    return (finer[-1] if layer == "earlier" and finer else model.fine_block) + 1


def signed_maps(
    model: SiameseNetwork,
    variant: Variant,
    class_means: torch.Tensor,
    batch: torch.Tensor,
    first: np.ndarray,
    second: np.ndarray,
) -> torch.Tensor:
    """Evidence for the decision, (P, 2, H, W), not normalised; of one layer, or of two fused."""
    layers = variant.layer.replace(" x ", " + ").split(" + ")
    maps = [layer_maps(model, variant._replace(layer=layer), class_means, batch, first, second) for layer in layers]
    if len(maps) == 1:
        return maps[0]
    one, other = (part / part.abs().amax((2, 3), keepdim=True).clamp(min=1e-12) for part in maps)
    if "+" in variant.layer:
        return one + other
    return (one.clamp(min=0) * other.clamp(min=0)).sqrt() - (one.clamp(max=0) * other.clamp(max=0)).sqrt()


def references(model: SiameseNetwork, variant: Variant, class_means: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Where a region's going is taken to move the embeddings (N, D): a point for each, (N, D)."""
    if variant.reference == "population":
        return model.mean_embedding.expand(z.shape)
    nearest = torch.cdist(z, class_means).argsort(dim=1)
    return class_means[nearest[:, 0 if variant.reference == "own class" else 1]]


def gradients(
    model: SiameseNetwork, block: int, features: torch.Tensor, baseline: torch.Tensor, wanted: torch.Tensor, rule: str
) -> torch.Tensor:
    """How the feature maps (N, C, h, w) behind a block move their embeddings in the `wanted` directions (N, D), of the
    maps' shape."""

    def embed(maps: torch.Tensor) -> torch.Tensor:
        return model.embed_features(model.backbone[block:](maps))

    def carried_back(
        maps: torch.Tensor, direction: torch.Tensor, reference: torch.Tensor | None = None
    ) -> torch.Tensor:
        leaf = maps.clone().requires_grad_()
        with eval_mode(model):
            z = embed(leaf) if reference is None else from_reference(embed, leaf, reference)
        return torch.autograd.grad(z, leaf, direction)[0]

    if rule == "derivative":
        return carried_back(features, wanted)
    if rule == "secants":
        if len(baseline) == 1:
            return carried_back(features, wanted, baseline)
        return torch.cat([carried_back(*parts) for parts in zip(features.split(1), wanted.split(1), baseline.split(1))])
    points = int(rule.split()[0])
    way = [(k + 0.5) / points for k in range(points)]
    return sum(carried_back(baseline + part * (features - baseline), wanted) for part in way) / points


def layer_maps(model, variant, class_means, batch, first, second) -> torch.Tensor:
    """As `signed_maps`, of one layer."""
    block = block_of(model, variant.layer)
    needed, ends = np.unique(np.stack([first, second]), return_inverse=True)
    batch, (first, second) = batch[needed], ends.reshape(2, -1)
    with eval_mode(model), torch.no_grad():
        features, blurred = (
            torch.cat([model.backbone[:block](part) for part in images.split(64)]) for images in (batch, blur(batch))
        )
        embeddings = torch.cat([model.embed_features(model.backbone[block:](part)) for part in features.split(64)])
    baselines = {
        "nothing": torch.zeros_like(features[:1]),
        "images": features.mean((0, 2, 3), keepdim=True).expand_as(features[:1]),
        "blurred images": blurred.mean((0, 2, 3), keepdim=True).expand_as(features[:1]),
        "this image blurred": blurred,
    }[variant.baseline]
    removable = model.removable if variant.removable is None else variant.removable
    maps = []
    for i in range(0, len(first), 32):
        chosen = np.concatenate([first[i : i + 32], second[i : i + 32]])
        own, baseline = embeddings[chosen], baselines if len(baselines) == 1 else baselines[chosen]
        partner = torch.cat(own.chunk(2)[::-1])
        mu = references(model, variant, class_means, own)
        similar = model.dissimilarity((own - partner).norm(dim=1)) < model.threshold
        wanted = (2 * (partner - mu) - (2 - removable) * (own - mu)) * torch.where(similar, 1, -1)[:, None]
        gradient = gradients(model, block, features[chosen], baseline, wanted, variant.rule)
        if variant.mean_weights:
            gradient = gradient.mean((2, 3), keepdim=True)
        raw = torch.stack((gradient * (features[chosen] - baseline)).sum(1).chunk(2), 1)
        if variant.spread:
            raw = local_mean(raw, variant.spread)
        maps.append(F.interpolate(raw, size=tuple(batch.shape[2:]), mode="bilinear"))
    return torch.cat(maps)


def check_right(interventions: Interventions, maps: torch.Tensor, sign: int) -> torch.Tensor:
    """Whether blurring the strongest tenth moved the margin in the direction of `sign`, (P, 2); NaN where there is no
    evidence."""
    moves = sign * (interventions.without(strongest_region(maps)) - interventions.before[:, None]) > 0
    return torch.where(maps.amax((2, 3)) > 0, moves.float(), torch.nan)


def score(folder: Path, most: int) -> pd.DataFrame:
    model = SiameseNetwork.load(folder / "model.pth")
    config, table = Config(**model.info["config"]), read_split(folder / "split.csv")
    test = measure_split(model, table, "test", config)
    known = embed_images(model, load_split(table, "valid", config, model.frame)[0], 64)
    names = table.label[table.split == "valid"].to_numpy()
    class_means = torch.stack([known[names == name].mean(0) for name in np.unique(names)])
    pairs = some_pairs(test.pairs, most)
    rows = table[table.split == "test"]
    batch = model.normalize(test.images[range(len(test.images))])
    interventions = Interventions.on(model, batch[pairs.first], batch[pairs.second])
    similar = (interventions.sign < 0).numpy()
    masks, intruders = (load_masks(config.data_path, rows.file, model.frame, ending) for ending in ("", "_intruder"))
    rng = np.random.default_rng(0)
    hosts = (
        [intruders_that_matter(model, batch, rows, intruders, kind, rng) for kind in (0, 1)]
        if masks is not None
        else []
    )
    results = []
    for variant in tqdm(VARIANTS, desc=folder.name):
        maps = signed_maps(model, variant, class_means, batch, pairs.first, pairs.second)
        factual, counter = (
            check_right(interventions, maps.clamp(min=0), -1),
            check_right(interventions, (-maps).clamp(min=0), 1),
        )
        result = {"maps": variant.name}
        for kind, name in enumerate(KINDS):
            letter, decided = name[0].upper(), similar == (kind == 0)
            result[f"factual check {letter}"] = factual[decided].nanmean().item()
            result[f"counterfactual check {letter}"] = counter[decided].nanmean().item()
            if masks is not None:
                chosen = torch.from_numpy(decided & (pairs.label == kind))
                found = maps[chosen].clamp(min=0).flatten(0, 1)
                objects = masks[np.stack([pairs.first, pairs.second], 1)][chosen].flatten(0, 1)
                result[f"pointing {letter}"] = pointing_game(found, objects).float().mean().item()
                result[f"energy {letter}"] = energy_ratio(found, objects).nanmean().item()
                first, second = hosts[kind]
                against = (-signed_maps(model, variant, class_means, batch, first, second)).clamp(min=0)
                moves = check_right(Interventions.on(model, batch[first], batch[second]), against, 1)[:, 0]
                result[f"intruder pointing {letter}"] = (
                    pointing_game(against[:, 0], intruders[first]).float().mean().item()
                )
                result[f"intruder check {letter}"] = moves.nanmean().item()
        results.append(result)
    return pd.DataFrame(results).set_index("maps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, default=10**6, help="at most so many test pairs")
    arguments = parser.parse_args()
    frames = pd.concat([score(folder, arguments.pairs) for folder in arguments.folders])
    print(f"means of {len(arguments.folders)} networks; S: similar pairs, D: dissimilar pairs")
    mean = frames.groupby(level=0, sort=False).mean()
    print(mean[sorted(mean.columns)].round(3).T.to_string())


if __name__ == "__main__":
    main()
