"""Our maps beside those of xaitk-saliency, SBSM (Dong et al., 2019) and RISE (Petsiuk et al., 2018), at as many passes.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.peers checkpoints/Flowers --pairs 24

On similar test pairs only, as xaitk-saliency clips what speaks for "dissimilar". Its maps look at images without a
region as ours do, in which a blurred copy shows; SBSM's windows are a quarter of the sides.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from xaitk_saliency.impls.gen_descriptor_sim_sal.similarity_scoring import SimilarityScoring
from xaitk_saliency.impls.perturb_image.rise import RISEGrid
from xaitk_saliency.impls.perturb_image.sliding_window import SlidingWindow
from xaitk_saliency.interfaces.perturb_image import PerturbImage
from xaitk_saliency.utils.masking import occlude_image_batch

from benchmarks.common import add_set_option, checkpoint_and_test
from utils.evaluate.agreement import effects_on_pairs
from utils.evaluate.faithfulness import area_under, curves, signed_evidence
from utils.evaluate.localisation import baseline_maps
from utils.explain.occlusion import correlation, region_effects, region_sums, windows
from utils.explain.removal import Interventions, blur, embed_in_parts, strongest_region
from utils.Grad_CAM import METHODS, explain
from utils.images.pairs import evaluation_pairs
from utils.Siamese import SiameseNetwork


def saliency(model: SiameseNetwork, image: torch.Tensor, partner: torch.Tensor, perturb: PerturbImage) -> torch.Tensor:
    """xaitk-saliency's map of a preprocessed image (3, H, W) for its partner, (H, W)."""

    def embeddings(batch: torch.Tensor) -> np.ndarray:
        return embed_in_parts(model, batch, 32).cpu().numpy()

    pixels, blurred = (x.permute(1, 2, 0).cpu().numpy() for x in (image, blur(image[None])[0]))
    masks = perturb(pixels)
    changed_images = torch.from_numpy(occlude_image_batch(pixels, masks, fill=blurred)).permute(0, 3, 1, 2)
    whole, partners = embeddings(image[None])[0], embeddings(partner[None])
    maps = SimilarityScoring("sqeuclidean")(whole, partners, embeddings(changed_images.to(image)), masks)
    return torch.from_numpy(maps[0]).float()


def rankings(model: SiameseNetwork, one: torch.Tensor, two: torch.Tensor) -> dict[str, tuple[torch.Tensor, float]]:
    """By method, maps (P, 2, H, W) of what speaks for "similar", below 0 against it, and the seconds of a pair."""
    height, width = size = tuple(one.shape[2:])
    found, passes = {}, 1 + region_effects(model, one[:1]).regions.shape[1]  # of an image by our occlusion
    for method in METHODS:
        start = time.perf_counter()
        maps = signed_evidence(explain(model, one, two, method))
        found[method] = maps, (time.perf_counter() - start) / len(one)
    steps = [(side - side // 4) // (round(passes**0.5) - 1) for side in size]
    for name, perturb in (
        ("SBSM (xaitk-saliency)", SlidingWindow((height // 4, width // 4), tuple(steps))),
        ("RISE (xaitk-saliency)", RISEGrid(passes, s=8, p1=0.5, seed=0)),
    ):
        start = time.perf_counter()
        pairs = list(zip(one, two))
        maps = [[saliency(model, *ends, perturb) for ends in ((a, b), (b, a))] for a, b in tqdm(pairs, desc=name)]
        found[name] = torch.stack([torch.stack(sides) for sides in maps]), (time.perf_counter() - start) / len(one)
    return found | {name: (maps, 0.0) for name, maps in baseline_maps((len(one), 2, *size)).items()}


def compare(model: SiameseNetwork, one: torch.Tensor, two: torch.Tensor) -> pd.DataFrame:
    """A row per method: agreement with 5 x 5 cells blurred, areas under deletion and insertion curves, the share of
    strongest tenths without which the pair is less similar, seconds of a pair."""
    interventions = Interventions(model, one, two, 16)
    both, count = torch.cat([one, two]), len(one)
    effect = effects_on_pairs(model, both, range(count), range(count, 2 * count), {"": blur(both)})[""]
    cells = windows(1 / 5, 5, tuple(one.shape[2:])).expand(2 * len(one), -1, -1)
    columns, rows = ["agreement", "deletion", "insertion", "check", "seconds"], {}
    for name, (maps, took) in rankings(model, one, two).items():
        sums = region_sums(torch.cat([maps[:, 0], maps[:, 1]]), cells, tuple(one.shape[2:]))
        areas = [area_under(curve) for curve in curves(interventions, maps).values()]
        change = interventions.margins_after(strongest_region(maps)) - interventions.margins_before[:, None]
        rows[name] = float(correlation(sums, effect).nanmean()), *areas, float((change < 0).float().mean()), took
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with model.pth, split.csv and config.yml")
    parser.add_argument("--pairs", type=int, default=24)
    add_set_option(parser)
    arguments = parser.parse_args()
    config, model, images, labels = checkpoint_and_test(arguments.folder, dict(arguments.set))
    pairs = evaluation_pairs(labels, config.seed)
    same = np.flatnonzero(pairs.label == 0)
    chosen = np.random.default_rng(0).permutation(same)
    with torch.no_grad():
        one, two = (model.normalize(images[side[chosen]]) for side in (pairs.first, pairs.second))
        similar = torch.cat([model(a, b) for a, b in zip(one.split(32), two.split(32))]) < model.threshold
    one, two = (side[similar][: arguments.pairs] for side in (one, two))
    print(f"{arguments.folder}: {len(one)} similar pairs\n{compare(model, one, two).round(3).to_string()}")


if __name__ == "__main__":
    main()
