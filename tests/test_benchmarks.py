import importlib
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import colour_config, small_network
from torch.utils.data import DataLoader

from benchmarks import search, train, trust
from benchmarks.common import changed
from benchmarks.datasets import measure
from utils.dataset import prepare_split
from utils.Grad_CAM import explain
from utils.images.fingerprints import MAX_BITS

FOLDER = Path(__file__).parents[1] / "benchmarks"


def folder_config(folder, **settings):
    return colour_config(folder, folder, **settings)


# --------------------------------------------------------------------------------------------- common


@pytest.mark.parametrize("name", sorted({path.stem for path in FOLDER.glob("*.py")} - {"__init__", "common"}))
def test_every_benchmark_has_help(name, monkeypatch, capsys):
    if name in ("explain", "peers"):  # beside other libraries
        for needed in ("captum", "pytorch_grad_cam", "xaitk_saliency"):
            pytest.importorskip(needed)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"benchmarks.{name}").main()
    assert stopped.value.code == 0 and "usage" in capsys.readouterr().out


def test_dotted_keys_change_a_configuration_and_are_checked(colour_folder):
    config = folder_config(colour_folder)
    other = changed(config, {"image.size": [32, 48], "hyperparameters.epochs": 3, "embedding_dim": 2})
    assert other.image.size == (32, 48) and other.hyperparameters.epochs == 3 and other.embedding_dim == 2
    assert other.image.HorizontalFlip == config.image.HorizontalFlip and config.image.size == (16, 16)
    with pytest.raises(ValueError, match="embedding_dim"):
        changed(config, {"embedding_dim": 1})


def test_a_dataset_is_measured_on_the_images_that_were_held_out(colour_folder):
    settings = {"hyperparameters.epochs": 8, "hyperparameters.learning_rate": 0.003, "hyperparameters.verbose": False}
    config = changed(folder_config(colour_folder), settings | {"test_size": 0.3, "valid_size": 0.3})
    measured = measure(config)
    assert measured["test images"] == 6 and measured["AUC"] == measured["recall@1"] == measured["accuracy"] == 1
    assert 0.5 < measured["AUC low"] <= measured["AUC high"] == 1 and measured["seconds"] > 0


# ---------------------------------------------------------------------------------------------- trust


def test_patches_of_other_images_are_averaged_over_their_effects(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)  # no bfloat16
    model = small_network(size=(16, 24))
    batch, others = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 16, 24)
    effects = trust.true_effects(model, batch, others, [0], [1], grid=2)
    expected = []
    with torch.no_grad():
        before = (model.embed(batch[:1]) - model.embed(batch[1:])).square().sum()
        for other in others:
            changed = batch[1:].clone()
            changed[0, :, 8:, :12] = other[:, 8:, :12]
            expected.append((model.embed(batch[:1]) - model.embed(changed)).square().sum() - before)
    found = effects["2 patches of other images"]
    assert found.shape == (2, 4) and len(effects) == 4
    assert found[1, 2].item() == pytest.approx(np.mean(expected), abs=1e-6)  # image 2, third cell


def test_grad_cam_among_its_variants_is_the_papers():
    model = small_network(size=(32, 32))
    batch = torch.randn(3, 3, 32, 32)
    found = trust.cam_variants(model, batch, [0, 1], [2, 2])
    paper = explain(model, batch[[0, 1]], batch[[2, 2]], "distance")
    towards = torch.where(paper.is_similar, 1, -1)[:, None, None, None] * paper.raw
    assert set(found) == {f"{name}, {size}" for name in trust.WEIGHTS for size in ("8x8", "4x4")}
    expected = torch.cat([towards[:, 0], towards[:, 1]])
    torch.testing.assert_close(found["Grad-CAM, 4x4"], expected, rtol=1e-4, atol=1e-7)
    assert not any(block._forward_hooks for block in model.backbone.children())
    a, g = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0, 1.0]]])
    assert [weigh(g, a).tolist() for weigh in trust.WEIGHTS.values()] == [[[[1.5, 4.5]]], [[[2, 3]]], [[[1.25, 3.75]]]]


def test_effects_that_add_up_are_called_additive(monkeypatch):
    cells = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    quarters = torch.zeros(2, 4)
    for row in range(4):
        for column in range(4):
            quarters[:, row // 2 * 2 + column // 2] += cells[:, row * 4 + column]
    effects = {4: cells, 2: quarters}
    monkeypatch.setattr(trust, "effects_on_pairs", lambda *a: {"": effects[a[-1]]})
    batch = torch.zeros(2, 3, 8, 8)
    assert trust.additivity(None, batch, [0], [1]) == pytest.approx(1)
    effects[2] = quarters.flip(1)
    assert trust.additivity(None, batch, [0], [1]) < 0.9


# ---------------------------------------------------------------------------------------------- speed


def test_planted_twins_differ_in_as_many_bits_as_a_twin_may_and_are_found():
    bits, (first, second) = search.planted(3_000, np.random.default_rng(0))
    assert len(first) == 3 and ((bits[first] != bits[second]).sum(1) == MAX_BITS).all()
    assert 100 < (bits[0] != bits[1]).sum() < 156  # 128 expected, 8 one standard deviation
    assert search.near_duplicates(3_000).endswith("3/3 twins, 0 others")


def test_a_store_finds_what_a_loop_finds():
    found = search.measure("SQLite", 500, 4)
    assert found["right"] == "20/20" and found["first query s"] >= 0


def test_the_public_protocol_decodes_both_images_of_every_pair_and_trains_all_weights(colour_folder, monkeypatch):
    config, opened = folder_config(colour_folder), []
    public = train.PublicProtocol(config, prepare_split(config)[0])
    read = train.read_image
    monkeypatch.setattr(train, "read_image", lambda path: opened.append(path) or read(path))
    before = [parameter.clone() for parameter in public.model.parameters()]
    batch = public.batches()[0]
    for _ in range(2):
        public.step(batch)
    assert opened == 2 * [public.paths[position] for ends in (batch.first, batch.second) for position in ends]
    changes = [(old - new).abs().max() for old, new in zip(before, public.model.parameters())]
    assert len(batch.label) == 4 and 0 < max(changes) < 2.1 * 5e-6  # Adam's steps are no longer than its rate


def test_steps_and_waiting_for_batches_are_seen():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight])

    def slow(items):
        time.sleep(0.02)
        return torch.stack(items)

    with train.watched() as (steps, waits):
        for batch in DataLoader(torch.ones(3), batch_size=1, collate_fn=slow):
            (weight * batch).sum().backward()
            optimizer.step()
    assert len(steps) == 3 and len(waits) == 4 and steps == sorted(steps)  # the last wait finds the end
    assert all(seconds >= 0.02 for _, seconds in waits[:3])
    optimizer.step()
    assert len(steps) == 3


def test_ours_is_timed_to_the_first_epoch_that_is_good_enough(colour_folder, monkeypatch):
    config = folder_config(colour_folder, hyperparameters={"verbose": False, "epochs": 3, "batch_size": 6})
    table = prepare_split(config)[0]
    rate, waiting = train.rate_of_ours(config, table)
    assert rate > 0 and 0 <= waiting < 1
    ran = train.train(config, table)
    ran["valid_auc"], ran["seconds"] = [0.6, 0.8, 0.9], [1.0, 2.0, 4.0]
    monkeypatch.setattr(train, "train", lambda *args: time.sleep(0.01) or ran)
    monkeypatch.setattr(train.time, "perf_counter", iter([0.0, 10.0]).__next__)  # 7 s of epochs, 3 of all else
    assert train.run_ours(config, table, 0.75) == (6.0, 0.8)


def test_photographs_are_decoded_read_from_the_cache_and_changed(tmp_path, monkeypatch):
    opened, read = [], train.read_image
    monkeypatch.setattr(train, "PHOTOGRAPH", (96, 64))
    monkeypatch.setattr(train, "read_image", lambda path: opened.append(path) or read(path))
    monkeypatch.setattr(train, "best_seconds", lambda action: action() or 0.5)
    config = folder_config(tmp_path / "images", hyperparameters={"verbose": False}, dataset="Photographs")
    found = train.reading(config, 40)
    trained_on = len(opened)  # of 40: 20 % are for testing, a quarter of the rest for validation
    assert len(set(opened)) == trained_on == 24 and list(found.values()) == [48, 48, 1, 48]
