"""The model card: what it says, and that it is written beside every network. Headings are those of Hugging Face."""

import re

import numpy as np
import pandas as pd
import pytest
from samples import colour_config

from utils.dataset import read_split
from utils.Siamese import SiameseNetwork
from utils.system.settings import SHIPPED, Config
from utils.training import train
from utils.training.model_card import model_card, plain, write_model_card

TEST = {
    "images": 20,
    "pairs": 40,
    "auc": 0.9312,
    "accuracy": 0.8124,
    "intervals": {"auc": (0.9, 0.95)},
    "calibrated": {"accuracy": 0.875},
    "retrieval": {"recall@1": 0.75, "mAP": 0.5},
}


def settings(**changes):
    return Config(dataset="A_b", data_path="x", checkpoints_path="y", outputs_path="z", **changes)


def info(**changes):
    return {"config": settings(**changes).model_dump(mode="json"), "calibrated_threshold": 0.416, "epoch": 2}


def table(sizes=(("a|b", 20), ("c", 2)), splits=("train", "valid", "test", "train")):
    labels = [label for label, size in sizes for _ in range(size)]
    return pd.DataFrame({"file": "f", "label": labels, "split": np.resize(splits, len(labels))})


HISTORY = pd.DataFrame({"seconds": [1.5, 2.5], "valid_auc": [0.5, 0.8761], "valid_accuracy": [0.25, 0.625]})


def section(card, heading):
    return re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", card, re.DOTALL | re.MULTILINE)[1]


def test_says_what_was_trained_on_what_and_how_well():
    card = model_card(info(), table(), HISTORY)
    rows = section(card, "Training Data").strip().split("\n")
    assert rows[2:] == ["| a\\|b | 10 | 5 | 5 |", "| c | 1 | 1 | 0 |", "| **all** | 11 | 6 | 5 |"]
    assert "Epoch 2 of 2" in (validation := section(card, "Validation"))
    assert "AUC 0.876" in validation and "accuracy 0.625" in validation
    assert "**Time**: 4 s for 2 epochs" in card and "above 0.5; calibrated on the validation pairs, 0.58\n" in card
    assert card.startswith("---\n") and "# Model Card for A\\_b\n" in card
    assert "notebook 03" in section(card, "Test")
    test = section(model_card(info(), table(), HISTORY, TEST), "Test")
    for part in ("20 images", "40 pairs", "0.931 (0.900-0.950)", "0.812", "0.875", "recall@1 | 0.750"):
        assert part in test


@pytest.mark.parametrize(
    ("changes", "sizes", "wanted"),
    [
        ({}, (400, 400), "`group_pattern`"),
        ({}, (40, 4), "Classes have 4 to 40 images"),
        ({}, (40, 40), "20 validation images and 20 test images"),
        ({"pretrained": True, "hyperparameters": {"epochs": 0}}, (400, 400), "Only the head was trained"),
        ({"hyperparameters": {"epochs": 3}}, (40, 40), "**Steps**: up to 3 epochs, batches"),
        ({"pretrained": True, "hyperparameters": {"epochs": 0}}, (40, 40), "**Steps**: 300 steps of the head alone, b"),
        (
            {"pretrained": True, "hyperparameters": {"epochs": 3}},
            (40, 40),
            "**Steps**: 300 steps of the head alone, then up to 3 epochs, batches",
        ),
    ],
)
def test_limits_and_steps_are_those_of_this_network(changes, sizes, wanted):
    assert wanted in model_card(info(**changes), table(zip("ab", sizes)), HISTORY)
    good = info(group_pattern="(.)", hyperparameters={"epochs": 5})
    assert wanted not in model_card(good, table((("a", 400), ("b", 400))), HISTORY)


def test_many_classes_are_summed_up():
    card = model_card(info(), table([(f"{k:03d}", 4) for k in range(1000)]), HISTORY)
    rows = section(card, "Training Data").strip().split("\n")[2:]
    assert len(rows) == 52 and rows[-2:] == ["| 950 more | 1900 | 950 | 950 |", "| **all** | 2000 | 1000 | 1000 |"]


def test_names_are_no_markdown():
    assert plain("a\n<b>_c_|`d`") == r"a \<b\>\_c\_\|\`d\`"


def test_written_by_training_and_completed_later(colour_folder, tmp_path):
    options = {"epochs": 1, "batch_size": 8, "verbose": False}
    config = colour_config(colour_folder, tmp_path, device="cpu", hyperparameters=options)
    history = train(config)
    model = SiameseNetwork.load(tmp_path / "c" / "model.pth")
    split = read_split(tmp_path / "c" / "split.csv")
    card = tmp_path / "c" / "README.md"
    assert card.read_text(encoding="utf-8") == model_card(model.info, split, history)
    assert "| blue | 6 | 2 | 2 |" in card.read_text(encoding="utf-8")
    write_model_card(config, model.info, split, history, TEST)
    assert "0.931" in card.read_text(encoding="utf-8")


def test_the_network_that_comes_with_the_project_has_one_and_keeps_it(tmp_path):
    folder = SHIPPED / "Synthetic"
    shipped, history = SiameseNetwork.load(folder / "model.pth"), pd.read_csv(folder / "history.csv")
    split, card = read_split(folder / "split.csv"), (folder / "README.md").read_text(encoding="utf-8")
    before, _, test = card.partition("### Test\n")
    assert before == model_card(shipped.info, split, history).partition("### Test\n")[0]
    assert "100 images" in test and "AUC" in test
    nothing_trained = settings().model_copy(update={"dataset": "Synthetic", "checkpoints_path": tmp_path / "c"})
    write_model_card(nothing_trained, shipped.info, split, history, TEST)
    assert (folder / "README.md").read_text(encoding="utf-8") == card and not (tmp_path / "c").exists()
