"""What a network relies on: groups of regions that recur are taken away, and all images are compared again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, wilcoxon
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tqdm.auto import tqdm

from utils.evaluate.scores import embed_images, query_scores
from utils.explain.concepts import BATCH_SIZE, FEWEST, Groups, features_of_places, find_groups, strong_regions
from utils.explain.removal import REMOVALS, blur, equal_shares, filled
from utils.images.cache import StoredImages
from utils.images.pairs import evenly_spaced
from utils.images.places import BOX
from utils.models import every_pair
from utils.Siamese import SiameseNetwork, eval_mode
from utils.system.errors import DataError
from utils.system.files import replacing
from utils.system.settings import Config

KEPT = "evidence.pth"  # what is kept of it, in a folder with the indexes of searches
FORMAT = 1  # of that file; another number after each change of how groups are found or measured
COMPARED = 400  # images, at most, that are compared with each other
MEASURED = 100  # of these, at most, whose regions are occluded one by one
ONE_CLASS = 0.5  # how far a suspect's share of one class lies from that of all images (0) to 1
LEAST_COST = 0.005  # of AUC: what costs less is not relied on
CLEAR_COST = 0.04  # of AUC, beyond regions at random places in all images: it differs more by chance
BY_CHANCE, ONE_CLASS_BY_CHANCE = 0.1, 0.02  # probabilities below which something is no chance
AT_BORDER = 0.03  # of the image's longer side


FILLS = {  # what is shown inside the regions (N, 1, H, W) of images (N, 3, H, W)
    "without": filled,
    "blurred": lambda batch, inside: torch.where(inside, blur(batch), batch),
    "mean colour": lambda batch, inside: torch.where(inside, REMOVALS["filled with the mean colour"](batch), batch),
}


@dataclass(frozen=True)
class Reliance:
    """Groups of regions, distinct ones and the strongest first, and what happens without them.

    Attributes:
        table: a row for each group, numbered from 1, see `measure_reliance`.
        regions: a row for each region: `image`, `group`, `top`, `bottom`, `left`, `right` in pixels of the frame, and
            `effect`, its share of what the group does in this image, see `effects_of`.
        chosen: positions of the N images that are compared, evenly spaced if there are more than `COMPARED`.
        embeddings, without: of these, (N, D), and with each group filled, (G, N, D), as for `AUC without`.
        groups: what finds the groups in other images; `numbers` are theirs in the table.
    """

    table: pd.DataFrame
    regions: pd.DataFrame
    chosen: np.ndarray
    embeddings: torch.Tensor
    without: torch.Tensor
    groups: Groups
    numbers: dict[int, int]

    def save(self, path: Path, *made_of: Any) -> None:
        """Write this, and plain values that tell of what it was made, to a file of plain values and tensors."""
        plain = {name: getattr(self, name).to_dict("split") for name in ("table", "regions")}
        plain |= {"groups": vars(self.groups), "chosen": self.chosen.tolist(), "of": made_of}
        with replacing(path) as file:
            torch.save(vars(self) | plain, file)

    @classmethod
    def load(cls, path: Path, *made_of: Any) -> Reliance | None:
        """Read what `save` wrote; `None` if there is nothing of which the first values of `made_of` are these."""
        with suppress(Exception):  # it is not there, damaged, or of an earlier version
            kept = torch.load(path, weights_only=True)
            if kept.pop("of")[: len(made_of)] == made_of:
                kept |= {name: pd.DataFrame(**kept[name]) for name in ("table", "regions")}
                return cls(**kept | {"groups": Groups(**kept["groups"]), "chosen": np.array(kept["chosen"])})
        return None


def reliance_of(config: Config, model: SiameseNetwork, images: StoredImages, labels: Sequence[str]) -> Reliance:
    """`measure_reliance` of test images, kept in a file: notebook 03, `evidence` and `search` share it."""
    path, network, labels = config.outputs_path / "search" / KEPT, model.digest(FORMAT), [*map(str, labels)]
    made_of = network, config.seed, model.threshold, labels, images.checksums.tolist()
    found = Reliance.load(path, *made_of)
    if found is None:
        found = measure_reliance(model, images, labels, config.seed, config.hyperparameters.verbose)
        found.save(path, *made_of)
    return found


def measure_reliance(
    model: SiameseNetwork, images: StoredImages, labels: Sequence[str], seed: int, verbose: bool = True
) -> Reliance:
    """Find what recurs in uint8 images (N, 3, H, W) of classes (N,), take each group away from all of them, and compare
    all with each other.

    Returns:
        In the `table` are the number of `regions` and of `images`; the `share` of all that groups change; the most
        frequent `class`, its share of these images, `purity`, and of all images, `usual`; the share of regions `at the
        border`; how much nearer to its look its images are than the others, if it is distinct (`gap`, otherwise 0);
        `AUC`, `accuracy` (balanced) and `recall@1` of all images `before`, `without` the group, which is filled from
        its surroundings (or `blurred`, or filled with the `mean colour`), and with its regions moved to `random`
        places (each time, as large a share of every class is filled, see `equal_shares`), in the group's images alone
        or, where that leaves a clearly higher AUC, in all that are filled; the `cost`, AUC at
        random less AUC without the group, in 95 % of resamples of images `low` to `high`, and the group's rank by it,
        `rank low` to `rank high`; whether the group is `relied` on, and a `suspect`; and the `finding`, in words.

    Raises:
        DataError: one class, too few images, or nothing that recurs.
    """
    compared = evenly_spaced(len(images), COMPARED)
    labels, images = np.asarray(labels)[compared], images[compared]
    if len(set(labels)) < 2 or len(labels) < 2 * FEWEST:
        raise DataError(
            f"evidence: {len(labels)} test images of {len(set(labels))} class(es), but it needs {2 * FEWEST} images of "
            "2 classes; add images, or raise test_size, and train again"
        )
    features, measured = torch.cat([*features_of_places(images, verbose)]), evenly_spaced(len(images), MEASURED)
    groups = find_groups(strong_regions(model, images[measured], features[measured], verbose), features)
    regions = groups.find(features.split(BATCH_SIZE), model.image_size)
    regions = regions[regions.groupby("group").image.transform("nunique") >= FEWEST].reset_index(drop=True)
    if regions.empty:
        raise DataError(f"evidence: nothing recurs in {FEWEST} of {len(labels)} images; add images and train again")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), 200)
    before, rows, without, costs, moved = embed_images(model, images), {}, {}, {}, {}
    scores = {"before": _scores(model, before, labels, every_pair(before, labels))}
    for k, members in tqdm(regions.groupby("group"), desc="Taking groups away", disable=not verbose):
        has = np.isin(np.arange(len(labels)), members.image)
        more = [members[members.image == like].assign(image=i) for i, like in zip(*equal_shares(labels, has, rng))]
        everywhere = pd.concat([members, *more])
        ways = {way: (everywhere, fill) for way, fill in FILLS.items()}
        ways["random"] = pd.concat([at_random_places(members, model.image_size, rng), *more]), filled
        ways["elsewhere"] = at_random_places(everywhere, model.image_size, rng), filled
        changed = {way: embeddings_without(model, images, before, *how) for way, how in ways.items()}
        pairs = {way: every_pair(z, labels) for way, z in changed.items()}
        cost = {way: aucs(pairs[way], drawn) - aucs(pairs["without"], drawn) for way in ("random", "elsewhere")}
        # In the others, what fills a frame may look like a frame: then the first control has lost what tells classes.
        clear = cost["elsewhere"].mean() >= max(CLEAR_COST, cost["random"].mean())
        for found in (changed, pairs, cost):
            elsewhere = found.pop("elsewhere")
            found["random"] = elsewhere if clear else found["random"]
        costs[k] = cost["random"]
        effect, by_chance = (effects_of(before, changed[way], labels, before, labels) for way in ("without", "random"))
        regions.loc[members.index, "effect"] = effect[members.image] * shares_of(members)
        without[k], moved[k] = changed["without"], float((before - changed["without"])[has].norm(dim=1).sum())
        scores |= {way: _scores(model, z, labels, pairs[way]) for way, z in changed.items()}
        rows[k] = _facts(members, labels, effect - by_chance, costs[k], groups.gap[k], model.image_size) | {
            f"{score} {way}": value for way, found in scores.items() for score, value in found.items()
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["cost"] = table["AUC random"] - table["AUC without"]
    ranks = (-np.stack([*costs.values()])).argsort(0).argsort(0) + 1
    table["rank low"], table["rank high"] = np.quantile(ranks, [0.025, 0.975], axis=1, method="nearest")
    table["share"] = (1 - groups.rest) * pd.Series(moved) / max(sum(moved.values()), 1e-12)
    table["finding"] = table.apply(_finding, axis=1)
    table = table.sort_values(["distinct", "relied", "cost"], ascending=False, kind="stable")
    numbers = {k: number for number, k in enumerate(table.index, start=1)}
    regions = regions.assign(group=regions.group.map(numbers), image=compared[regions.image])
    regions = regions.sort_values(["group", "image"], kind="stable").reset_index(drop=True)
    without = torch.stack([without[k] for k in numbers])
    return Reliance(table.rename(numbers), regions, compared, before, without, groups, numbers)


def shares_of(members: pd.DataFrame) -> np.ndarray:
    """The share of each region in the area of its image's."""
    area = (members.bottom - members.top) * (members.right - members.left)
    return (area / area.groupby(members.image).transform("sum")).to_numpy()


def at_random_places(regions: pd.DataFrame, size: tuple[int, int], rng: np.random.Generator) -> pd.DataFrame:
    """Move each region to a random place in its image, which has this size."""
    moved = regions.copy()
    for (start, stop), side in zip((BOX[:2], BOX[2:]), size):
        length = regions[stop] - regions[start]
        moved[start] = rng.integers(side - length + 1)
        moved[stop] = moved[start] + length
    return moved


@torch.no_grad()
def embeddings_without(
    model: SiameseNetwork,
    images: StoredImages | torch.Tensor,
    embeddings: torch.Tensor,
    regions: pd.DataFrame,
    fill: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = filled,
) -> torch.Tensor:
    """Embeddings (N, D) of uint8 images (N, 3, H, W) with all `regions` replaced by what `fill` makes of their images;
    the others' stay as in `embeddings`."""
    result, boxes = embeddings.clone(), {image: part[BOX].to_numpy() for image, part in regions.groupby("image")}
    with eval_mode(model):
        for positions in np.array_split([*boxes], -(-len(boxes) // BATCH_SIZE)):
            batch = model.normalize(images[positions])
            inside = torch.zeros_like(batch[:, :1], dtype=torch.bool)
            for mask, position in zip(inside, positions):
                for top, bottom, left, right in boxes[position]:
                    mask[:, top:bottom, left:right] = True
            result[positions] = model.embed(fill(batch, inside)).float().cpu()
    return result


def effects_of(
    before: torch.Tensor, after: torch.Tensor, labels: np.ndarray, others: torch.Tensor, classes: np.ndarray
) -> np.ndarray:
    """How much nearer to its own class than to others each image was before, in mean squared distance, (N,).

    Args:
        before, after: embeddings of images of classes `labels`, (N, D).
        others: embeddings (M, D) of the images of `classes` with which they are compared.
    """
    same = torch.from_numpy(labels[:, None] == classes).to(before)
    own, other = (weights @ others / weights.sum(1, keepdim=True).clamp(min=1) for weights in (same, 1 - same))
    return 2 * ((before - after) * (own - other)).sum(1).numpy()


def aucs(pairs: tuple, drawn: np.ndarray) -> np.ndarray:
    """The AUC of `every_pair` in each of R resamples, (R,), in which images are `drawn` so many times, (R, N)."""
    distance, other, (first, second) = pairs
    order, found = np.argsort(distance, kind="stable"), []
    other, first, second = other[order], first[order], second[order]
    for times in drawn.astype(np.float32):
        pairs = times[first] * times[second]
        similar, dissimilar = np.where(other, 0, pairs).cumsum(dtype=float), np.where(other, pairs, 0)
        found.append((dissimilar * similar).sum() / (similar[-1] * dissimilar.sum()))
    return np.array(found)


def _scores(model: SiameseNetwork, embeddings: torch.Tensor, labels: np.ndarray, pairs: tuple) -> dict[str, float]:
    distance, other, _ = pairs
    called = ~model.is_similar(torch.from_numpy(distance)).numpy()
    found = float(query_scores(embeddings, labels)["recall@1"].mean())
    accuracy = float(balanced_accuracy_score(other, called))
    return {"AUC": float(roc_auc_score(other, distance)), "accuracy": accuracy, "recall@1": found}


def _facts(
    members: pd.DataFrame, labels: np.ndarray, gain: np.ndarray, cost: np.ndarray, gap: float, size: tuple[int, int]
) -> dict:
    """What a group is: the first columns of the table. `gain` (N,) is by how much its effect on each image exceeds that
    of random regions; `cost` is of resamples."""
    chosen, (low, high) = members.image.unique(), np.quantile(cost, [0.025, 0.975])
    counts = pd.Series(labels[chosen]).value_counts()
    gain = gain[chosen][labels[chosen] == counts.index[0]]  # it may pull images of other classes to this one
    images, most, usual = int(counts.sum()), int(counts.iloc[0]), float((labels == counts.index[0]).mean())
    edge = np.min([members.top, size[0] - members.bottom, members.left, size[1] - members.right], axis=0)
    sure = np.quantile(cost, BY_CHANCE) > 0 or gain.any() and wilcoxon(gain, alternative="greater").pvalue < BY_CHANCE
    relied = sure and cost.mean() >= LEAST_COST
    one_class = most / images >= usual + ONE_CLASS * (1 - usual)
    one_class &= binomtest(most, images, usual, "greater").pvalue < ONE_CLASS_BY_CHANCE
    facts = {"regions": len(members), "images": images, "class": counts.index[0], "purity": most / images}
    facts |= {"usual": usual, "at the border": float((edge <= AT_BORDER * max(size)).mean()), "gap": gap}
    distinct = bool(one_class and gap)
    facts |= {"low": float(low), "high": float(high), "distinct": distinct, "relied": bool(relied)}
    return facts | {"suspect": bool(distinct and relied)}


def _finding(row: pd.Series) -> str:
    """Say what was measured of a group."""
    costs = (
        f"AUC {row['AUC before']:.3f}; {row['AUC without']:.3f} without it, {row['AUC random']:.3f} without regions "
        "of the same sizes at random places"
    )
    if not row.suspect:
        return costs if row.relied else f"seen, but not relied on: {costs}"
    return (
        f"suspect: {row.purity:.0%} of its {row.images} images are {row['class']} ({row.usual:.0%} of all are), "
        f"a gap of {row.gap:.2f} in look parts them from the others, {row['at the border']:.0%} of its regions lie "
        f"at the border. {costs}. Look at it: should it tell {row['class']} from the others?"
    )
