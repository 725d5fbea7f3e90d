"""Do the maps of a trained network predict what happens without a region, also in ways they were not measured by?

    python -m benchmarks.trust checkpoints/Flowers --pairs 24

On test pairs of the checkpoint's own split: agreement with cells of 5 x 5 and 3 x 3 that are blurred, filled with the
mean colour, covered by another part of the image, or by six patches of other photographs, also of Grad-CAM's variants;
how far effects add up; checks; areas under deletion and insertion curves.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import add_set_option, checkpoint_and_test
from utils.evaluate.agreement import effects_on_pairs, mean_correlations
from utils.evaluate.faithfulness import area_under, check_table, compare_rankings, curves, signed_evidence
from utils.explain.occlusion import correlation, region_effects, region_sums, windows
from utils.explain.removal import REMOVALS, Interventions, blur
from utils.Grad_CAM import METHODS, Explanation, explain_effects, explain_pairs
from utils.images.pairs import evaluation_pairs, evenly_spaced_pairs, used_images
from utils.Siamese import eval_mode

PATCHES = 6


def true_effects(model, batch, others, first, second, grid) -> dict[str, torch.Tensor]:
    """What taking cells away does to the squared distance: (2P, grid^2) by each removal, images 1 first."""
    removals = {name: removal(batch) for name, removal in REMOVALS.items()}
    removals |= {f"patch {k}": other.expand_as(batch) for k, other in enumerate(others)}
    effects = effects_on_pairs(model, batch, first, second, removals, grid)
    patches = [effects.pop(f"patch {k}") for k in range(len(others))]
    return effects | {f"{len(others)} patches of other images": torch.stack(patches).mean(0)}


# How a gradient g weighs feature maps A, each of shape (C, h, w): Selvaraju et al. 2017; Draelos & Carin 2020; Fu et
# al. 2020.
WEIGHTS = {
    "Grad-CAM": lambda g, a: g.mean((1, 2), keepdim=True) * a,
    "HiResCAM": lambda g, a: g * a,
    "XGrad-CAM": lambda g, a: (g * a).sum((1, 2), keepdim=True) / a.sum((1, 2), keepdim=True).clamp(min=1e-6) * a,
}


def coarsest_maps(model, image) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of an image (1, 3, H, W), what the last block of each of the two coarsest resolutions gives, by its size, and the
    embedding, with their graph."""
    outputs = {}

    def keep(block, inputs, output) -> None:
        outputs["x".join(map(str, output.shape[2:]))] = output

    hooks = [block.register_forward_hook(keep) for block in model.backbone.children()]
    try:
        z = model.embed(image)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(list(outputs.items())[-2:]), z


def cam_variants(model, batch, first, second) -> dict[str, torch.Tensor]:
    """Maps (2P, h, w) of `-D^2` by Grad-CAM and its relatives at two layers, images 1 first."""
    found: dict[str, list[torch.Tensor]] = {}
    with eval_mode(model):
        for i, j in [*zip(first, second), *zip(second, first)]:
            with torch.no_grad():
                partner = model.embed(batch[[j]])
            maps, z = coarsest_maps(model, batch[[i]])
            gradients = torch.autograd.grad(-(z - partner).square().sum(), list(maps.values()))
            for (size, a), g in zip(maps.items(), gradients):
                for name, weigh in WEIGHTS.items():
                    found.setdefault(f"{name}, {size}", []).append(weigh(g[0], a.detach()[0]).sum(0))
    return {name: torch.stack(maps) for name, maps in found.items()}


def additivity(model, batch, first, second) -> float:
    """The mean correlation of what blurring the four quarters of an image does to the squared distance with the sums
    of what blurring the four cells inside each does: 1 if effects added up. No map could serve both sizes better."""
    small, large = (effects_on_pairs(model, batch, first, second, {"": blur(batch)}, grid)[""] for grid in (4, 2))
    sums = small.unflatten(1, (2, 2, 2, 2)).sum((2, 4)).flatten(1)
    return float(correlation(sums, large).nanmean())


def explained(model, batch, effects, first, second, method) -> Explanation:
    """Pairs of a batch, given by their positions; `effects`: the batch's `region_effects`."""
    if method == "occlusion":
        return explain_effects(model, effects, first, second, model.image_size)
    return explain_pairs(model, batch, first, second, method)


def drawn_pairs(labels: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Up to `count` pairs of images, half of them of one class, as far as there are."""
    first, second = np.triu_indices(len(labels), 1)
    same, rng = labels[first] == labels[second], np.random.default_rng(0)
    drawn = np.concatenate([rng.permutation(np.flatnonzero(same == kind))[: count // 2] for kind in (True, False)])
    return first[drawn].tolist(), second[drawn].tolist()


def print_agreement(model, batch, others, ends, explanations) -> None:
    """Tables of correlations, for cells of 5 x 5 and 3 x 3, and how far effects add up."""
    variants = cam_variants(model, batch, *ends)
    for grid in (5, 3):
        effects = true_effects(model, batch, others, *ends, grid)
        table = mean_correlations(effects, explanations, effects, grid)
        cells = windows(1 / grid, grid, model.image_size)
        for name, maps in variants.items():
            sums = region_sums(maps, cells.expand(len(maps), -1, -1), model.image_size)
            table.loc[name] = [float(correlation(sums, effect).nanmean()) for effect in effects.values()]
        print(f"\n{grid} x {grid} cells\n", table.round(2).to_string(), flush=True)
    print(f"\nsums over cells of 4 x 4 against whole quarters: {additivity(model, batch, *ends):.2f}")


def print_curves(interventions, explanations) -> None:
    """Areas under deletion and insertion curves."""
    found = compare_rankings(interventions, explanations["occlusion"])
    found["distance"] = curves(interventions, signed_evidence(explanations["distance"]))
    for name, pair in found.items():
        print(f"{name}: {', '.join(f'{kind} {area_under(curve):.3f}' for kind, curve in pair.items())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with model.pth, split.csv and config.yml")
    parser.add_argument("--pairs", type=int, default=24, help="whose images are measured")
    parser.add_argument("--checks", type=int, default=120, help="pairs of these images, on which maps are checked")
    add_set_option(parser)
    arguments = parser.parse_args()
    config, model, images, labels = checkpoint_and_test(arguments.folder, dict(arguments.set))
    pairs = evenly_spaced_pairs(evaluation_pairs(labels, config.seed), arguments.pairs)
    used, *ends = used_images(pairs.first, pairs.second)
    batch = model.normalize(images[used])
    measured = region_effects(model, batch)
    rest = np.setdiff1d(np.arange(len(images)), used)
    others = model.normalize(images[np.random.default_rng(0).choice(rest, PATCHES, replace=False)])
    explanations = {method: explained(model, batch, measured, *ends, method) for method in METHODS}
    print(f"{arguments.folder}: {len(ends[0])} pairs of {len(used)} test images")
    print_agreement(model, batch, others, ends, explanations)
    print_curves(Interventions(model, *(batch[side] for side in ends), 16), explanations)
    ends = drawn_pairs(labels[used], arguments.checks)
    interventions = Interventions(model, *(batch[side] for side in ends), 16)
    for method in METHODS:
        table = check_table(interventions, explained(model, batch, measured, *ends, method), config.seed)
        print(f"\n{method}, {len(ends[0])} pairs\n", table.round(2).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
