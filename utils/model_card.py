"""A network's model card: what it is, what it learnt from, how good it is, and when not to trust it.

The headings are those of Hugging Face's template (after Mitchell et al., 2019, "Model Cards for Model Reporting"), so
that a checkpoint's folder can be shown to others as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from utils.files import counted, write_whole
from utils.settings import Config

CARD = "README.md"
MOST_CLASSES = 50  # in the table
FEW = 100  # images: scores of fewer are rough
CHANGES = ("HorizontalFlip", "VerticalFlip", "RandomRotationDegrees", "RandomErasing", "CutMix")
CHANGES += ("brightness", "contrast", "saturation", "hue")

PAGE = """---
library_name: pytorch
pipeline_tag: image-feature-extraction
tags: [image-similarity, siamese-network, metric-learning, explainability]
---

# Model Card for {name}

Says how alike two images are, as the distance of their embeddings, and which regions of each speak for that.

## Model Details

{details}

## Uses

**Direct use**: comparing, searching and explaining images like those of {name}.

**Out of scope**: images of other kinds, and decisions about people or their health. A similarity is no probability and
no diagnosis.

## Bias, Risks, and Limitations

{limits}

## How to Get Started with the Model

```python
from PIL import Image
from utils.Siamese import SiameseNetwork

model = SiameseNetwork.load("model.pth")  # knows its own preprocessing; the file cannot run code
one, two = (model.preprocess(Image.open(path))[None] for path in ("1.jpg", "2.jpg"))
print(model(one, two))  # dissimilarity in [0, 1]
```

## Training Details

### Training Data

{classes}

### Training Procedure

{procedure}

All settings are in `config.yml`, every image and its split in `split.csv`, every epoch in `history.csv`.

## Evaluation

### Validation

{validation}

### Test

{test}
"""


def write_model_card(
    config: Config, info: dict[str, Any], table: pd.DataFrame, history: pd.DataFrame, test: dict[str, Any] | None = None
) -> None:
    """Write `model_card` beside a network that was trained here; that of one that comes with the project stays."""
    if config.trained_path == config.checkpoints_path:
        write_whole(config.checkpoints_path / CARD, model_card(info, table, history, test))


def model_card(
    info: dict[str, Any], table: pd.DataFrame, history: pd.DataFrame, test: dict[str, Any] | None = None
) -> str:
    """The card as Markdown.

    Args:
        info: what is saved beside the network: `config`, `calibrated_threshold` and `epoch`, the one that was kept.
        table: the split: `file`, `label`, `split`.
        history: a row per epoch, as training leaves it.
        test: scores on the test images, as notebook 03 writes them to `metrics.json`; `None`: the card says where they
            come from.
    """
    config = Config(**info["config"])
    return PAGE.format(
        name=plain(config.dataset),
        details=_listed(_details(config, info["calibrated_threshold"])),
        limits=_listed(_limits(config, table)),
        classes=_classes(table),
        procedure=_listed(_procedure(config, history)),
        validation=_validation(config, history, info["epoch"]),
        test=_test(test),
    )


def _details(config: Config, calibrated: float) -> list[str]:
    height, width = config.image.size
    start = "ImageNet weights" if config.pretrained else "random weights"
    if config.weights is not None:
        start = f"the weights in {plain(config.weights.name)}"
    scaled = ", scaled to one length" if config.normalize_embeddings else ""
    return [
        f"**Architecture**: Siamese network, backbone `{config.backbone_model}`, {config.pooling} pooling",
        f"**Started from**: {start}",
        f"**Input**: RGB images, resized to {height} x {width} pixels ({config.image.fit})",
        f"**Output**: an embedding of {config.embedding_dim} numbers{scaled}; "
        f"dissimilarity = min(distance / {config.margin:g}, 1), similarity = 1 - dissimilarity",
        f"**Decision**: similar if the dissimilarity lies below {config.threshold:g}; "
        f"calibrated on the validation pairs, {calibrated:.2f}",
        "**Paper**: Livieris et al. (2023), Explainable Image Similarity, https://doi.org/10.3390/jimaging9100224",
    ]


def _limits(config: Config, table: pd.DataFrame) -> list[str]:
    counts, sizes = table.split.value_counts(), table.label.value_counts()
    limits = [
        'It learnt what tells the classes below apart, and nothing else: "similar" means "as of one class".',
        "A map shows where the network's evidence lies, not what a person would look at; and what would happen without "
        "a region, not with something else in its place.",
    ]
    names = {"valid": "validation", "test": "test"}
    if few := [
        counted(counts.get(split, 0), f"{name} image") for split, name in names.items() if counts.get(split, 0) < FEW
    ]:
        limits.append(f"Scores are rough: they rest on {' and '.join(few)}.")
    if sizes.max() >= 10 * sizes.min():
        limits.append(f"Classes have {sizes.min()} to {sizes.max()} images: rare ones are learnt less well.")
    if config.group_pattern is None:
        limits.append(
            "Near duplicates stayed in one split. Whatever else images share, such as the patient or the house, was "
            "not known (`group_pattern`); if it is in several splits, scores flatter."
        )
    if not config.hyperparameters.epochs:
        limits.append("Only the head was trained: the features are those of the backbone's own weights.")
    return limits


def _classes(table: pd.DataFrame) -> str:
    counts = pd.crosstab(table.label, table.split).reindex(columns=["train", "valid", "test"], fill_value=0)
    rows = [(plain(label), *row) for label, row in zip(counts.index[:MOST_CLASSES], counts.to_numpy())]
    if len(counts) > MOST_CLASSES:
        rows.append((f"{len(counts) - MOST_CLASSES} more", *counts[MOST_CLASSES:].sum()))
    return _table(("class", "train", "validation", "test"), [*rows, ("**all**", *counts.sum())])


def _procedure(config: Config, history: pd.DataFrame) -> list[str]:
    options, image = config.hyperparameters, config.image
    head, rest = f"{counted(config.head_steps, 'step')} of the head alone", f"up to {counted(options.epochs, 'epoch')}"
    steps = ", then ".join([head] * bool(config.head_steps) + [rest] * bool(options.epochs))
    additivity = f"; weight of additivity {options.additivity:g}" if options.additivity and options.epochs else ""
    changes = [f"{key} {getattr(image, key):g}" for key in CHANGES if getattr(image, key)]
    if image.RandomResizedCrop < 1:
        changes.append(f"RandomResizedCrop {image.RandomResizedCrop:g}")
    return [
        f"**Loss**: contrastive, margin {config.margin:g}, pairs: {config.training_pairs}{additivity}",
        f"**Steps**: {steps}, batches of {options.batch_size}",
        f"**Optimizer**: {options.optimizer}, learning rate {options.learning_rate:g}, {config.LRScheduler.name}",
        f"**Random changes to images**: {', '.join(changes) or 'none'}",
        f"**Seed**: {config.seed}",
        f"**Time**: {history.seconds.sum():.0f} s for {counted(len(history), 'epoch')}",
    ]


def _validation(config: Config, history: pd.DataFrame, epoch: int) -> str:
    kept = history.iloc[epoch - 1]
    why = (
        "as its validation AUC was the highest (so this score flatters)"
        if config.hyperparameters.epochs
        else "the last"
    )
    return (
        f"Epoch {epoch} of {len(history)} was kept, {why}: AUC {kept.valid_auc:.3f}, "
        f"accuracy {kept.valid_accuracy:.3f} at the threshold {config.threshold:g}."
    )


def _test(test: dict[str, Any] | None) -> str:
    if test is None:
        return "Not measured yet: notebook 03 scores the network on the test images, and writes the result here."
    low, high = test["intervals"]["auc"]
    return f"{test['images']} images that took no part in training, {test['pairs']} pairs.\n\n" + _table(
        ("score", "value"),
        [
            ("AUC (95 % interval)", f"{test['auc']:.3f} ({low:.3f}-{high:.3f})"),
            ("accuracy, configured threshold", f"{test['accuracy']:.3f}"),
            ("accuracy, calibrated threshold", f"{test['calibrated']['accuracy']:.3f}"),
            *((name, f"{test['retrieval'][name]:.3f}") for name in ("recall@1", "mAP")),
        ],
    )


def _listed(entries: Sequence[str]) -> str:
    return "\n".join(f"- {entry}" for entry in entries)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def plain(name: str) -> str:
    """A name as text in Markdown: none of its characters means anything."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>()#+!|~&" else letter for letter in " ".join(name.split()))
