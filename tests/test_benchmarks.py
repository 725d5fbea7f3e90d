import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from samples import colour_config

from benchmarks import data as data_benchmark
from benchmarks import start, trust, variants
from benchmarks import train as train_benchmark
from benchmarks.architectures import (
    PseudoSiamese,
    Siamese,
    TwoChannel,
    compare_all,
    hinge_loss,
    ordered_pairs,
    position_by_position,
)
from benchmarks.augmentation import torchvisions
from benchmarks.computer import about_computer
from benchmarks.datasets import measure
from benchmarks.questions import QUESTIONS, answers, changed, split_of
from benchmarks.soak import soak
from utils.dataset import prepare_split
from utils.explain import without
from utils.explain.removal import blurred_features
from utils.Grad_CAM import explain
from utils.images.frame import Frame
from utils.images.pairs import Pairs
from utils.settings import ImageOptions
from utils.Siamese import ContrastiveLoss, SiameseNetwork

ARCHITECTURE = {"backbone_model": "Conv4", "embedding_dim": 4, "image_size": (16, 16)}
IMAGES = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PAIRS = Pairs(np.array([0, 1, 2, 3]), np.array([1, 0, 3, 3]), np.array([0, 0, 1, 1]))


def folder_config(folder, **settings):
    return colour_config(folder, folder, **settings)


@pytest.fixture
def make():
    def network(kind):
        torch.manual_seed(0)
        return kind(**ARCHITECTURE).eval()

    with torch.random.fork_rng(devices=[]):
        yield network


def test_ordered_pairs_give_the_loss_of_a_loop_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, 6, 4, generator=generator)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    loss = ContrastiveLoss(margin=2.0)(*ordered_pairs(z1, z2, labels), balanced=True)
    costs = {True: [], False: []}
    for i in range(6):
        for j in range(6):
            distance, same = (z1[i] - z2[j]).norm(), bool(labels[i] == labels[j])
            if i != j:
                costs[same].append(distance**2 / 2 if same else (2 - distance).clamp(min=0) ** 2 / 2)
    torch.testing.assert_close(loss, (torch.stack(costs[True]).mean() + torch.stack(costs[False]).mean()) / 2)


def test_hinge_loss_by_hand():
    scores, label = torch.tensor([-2.0, 0.5, 0.25, 3.0]), torch.tensor([0, 0, 1, 1])
    assert hinge_loss(scores, label).item() == pytest.approx((0 + 1.5 + 0.75 + 0) / 4)


def test_only_the_siamese_network_is_blind_to_the_order(make):
    swapped = Pairs(PAIRS.second, PAIRS.first, PAIRS.label)
    for kind, blind in ((Siamese, True), (PseudoSiamese, False), (TwoChannel, False)):
        network = make(kind)
        scores, others = network.scores(IMAGES, PAIRS), network.scores(IMAGES, swapped)
        assert scores.shape == (4,)
        assert torch.allclose(scores[:3], others[:3]) == blind  # the last pair is an image with itself
        assert torch.allclose(scores[3], others[3])


def test_evidence_is_gradient_times_feature():
    features = torch.full((1, 2, 3, 3), 3.0, requires_grad=True)
    (maps,) = position_by_position(features.square().sum(), [features])
    torch.testing.assert_close(maps, torch.full((1, 3, 3), 2 * 2 * 3.0 * 3.0))


@pytest.mark.parametrize(("kind", "maps_differ"), [(Siamese, True), (PseudoSiamese, True), (TwoChannel, False)])
def test_every_pair_has_a_map_for_either_image(make, kind, maps_differ):
    network = make(kind)
    batch = network.normalize(IMAGES)
    maps = network.evidence(batch[:2], batch[2:4])
    assert maps.shape[:2] == (2, 2) and (maps != 0).any()
    assert (maps[:, 0] != maps[:, 1]).any() == maps_differ


@pytest.mark.parametrize(("kind", "passes"), [(Siamese, 5), (PseudoSiamese, 10), (TwoChannel, 25)])
def test_passes_are_counted(make, kind, passes):
    assert compare_all(make(kind), IMAGES)[0] == passes


# -------------------------------------------------------------------------------------------- questions


def test_dotted_keys_change_a_configuration_and_are_checked(colour_folder):
    config = folder_config(colour_folder)
    other = changed(config, {"image.size": [32, 48], "hyperparameters.epochs": 3, "embedding_dim": 2})
    assert other.image.size == (32, 48) and other.hyperparameters.epochs == 3 and other.embedding_dim == 2
    assert other.image.HorizontalFlip == config.image.HorizontalFlip and config.image.size == (16, 16)
    with pytest.raises(ValueError, match="embedding_dim"):
        changed(config, {"embedding_dim": 1})


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_setting_of_a_question_is_a_valid_configuration(colour_folder, question):
    settings = answers(question, folder_config(colour_folder))
    assert len(settings) >= 2 and all(changed(folder_config(colour_folder), keys) for keys in settings.values())


def test_only_the_naive_split_parts_groups(colour_folder):
    # Two views of each thing: a_0, a_1, b_0, b_1, ...
    for number, file in enumerate(sorted(colour_folder.rglob("*.png"))):
        file.rename(file.with_name(f"{'abcde'[number % 10 // 2]}_{number % 2}.png"))
    config = folder_config(colour_folder, group_pattern="^([a-e])")

    def parted(table):
        return table.groupby([table.label, table.file.str.extract(r"/(.)_")[0]]).split.nunique().max() > 1

    assert parted(split_of(config, naive=True)) and not parted(split_of(config, naive=False))


def test_the_first_variant_is_contrast():
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", embedding_dim=4, image_size=(24, 24)).eval()
    batch, first, second = torch.randn(4, 3, 24, 24), np.array([0, 1, 0]), np.array([2, 3, 3])
    model.mean_embedding.copy_(model.embed(batch).mean(0).detach() / 2)
    model.blurred_features.copy_(blurred_features(model, batch))
    model.removable.fill_(0.7)
    expected = explain(model, batch[first], batch[second], "contrast").raw
    found = variants.signed_maps(model, variants.VARIANTS[0], None, batch, first, second)
    assert variants.VARIANTS[0] == variants.Variant("contrast") and expected.any()
    drawn = torch.nn.functional.interpolate(expected, size=(24, 24), mode="bilinear")
    assert torch.allclose(found, drawn, rtol=1e-3, atol=1e-4 * float(drawn.abs().max()))


def test_a_dataset_is_measured_on_the_images_that_were_held_out(colour_folder):
    settings = {"hyperparameters.epochs": 8, "hyperparameters.learning_rate": 0.003, "hyperparameters.verbose": False}
    config = changed(folder_config(colour_folder), settings | {"test_size": 0.3, "valid_size": 0.3})
    measured = measure(config)
    assert measured["test images"] == 6 and measured["AUC"] == measured["recall@1"] == measured["accuracy"] == 1
    assert 0.5 < measured["AUC low"] <= measured["AUC high"] == 1 and measured["seconds"] > 0


def test_patches_of_other_images_are_averaged_over_their_effects(monkeypatch):
    monkeypatch.setattr(without, "bfloat16_pays", lambda device: False)
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", embedding_dim=4, image_size=(16, 24)).eval()
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
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", embedding_dim=4, image_size=(32, 32)).eval()
    batch = torch.randn(3, 3, 32, 32)
    found = trust.cam_variants(model, batch, [0, 1], [2, 2])
    paper = explain(model, batch[[0, 1]], batch[[2, 2]], "distance")
    towards = torch.where(paper.is_similar, 1, -1)[:, None, None, None] * paper.raw
    expected = torch.cat([towards[:, 0], towards[:, 1]])
    finest, last = (model.block_shapes()[i][2] for i in (model.fine_block, -1))
    assert {f"{name}, {side}x{side}" for name in trust.WEIGHTS for side in (finest, last)} <= set(found)
    torch.testing.assert_close(found[f"Grad-CAM, {last}x{last}"], expected, rtol=1e-4, atol=1e-7)
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


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_soak_looks_at_memory_after_every_part():
    held = soak(rounds=6, parts=3)
    assert len(held) == 3 and all(50 < mebibytes < 100_000 for mebibytes in held)


# -------------------------------------------------------------------------------------------- speed


def test_torchvisions_transforms_are_those_of_the_configuration():
    options = {"size": (16, 16), "HorizontalFlip": 1, "VerticalFlip": 0, "RandomErasing": 0, "RandomResizedCrop": 1}
    assert torch.equal(torchvisions(ImageOptions(**options))(IMAGES[0]), IMAGES[0].flip(2))
    every = torchvisions(ImageOptions(**options | {"RandomErasing": 1, "brightness": 0.4, "RandomRotationDegrees": 9}))
    kinds = [type(step).__name__ for step in every.transforms]
    assert kinds == [
        "RandomHorizontalFlip",
        "RandomVerticalFlip",
        "RandomRotation",
        "RandomResizedCrop",
        "ColorJitter",
        "RandomErasing",
    ]
    assert every(IMAGES[0]).shape == IMAGES[0].shape and every.transforms[-1].p == 1


def test_what_was_measured_on_is_named(monkeypatch):
    for cores, words in (({0}, ", 1 core"), ({0, 3}, ", 2 cores")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: cores, raising=False)
        assert about_computer().endswith(words) and len(about_computer()) > len(words)


def test_a_start_is_timed_in_the_checkout_and_an_error_of_it_is_one(tmp_path):
    (tmp_path / "slow.py").write_text("import time; time.sleep(0.3)")
    assert 0.3 < start.least_seconds(["slow.py"], tmp_path, 1)
    with pytest.raises(subprocess.CalledProcessError):
        start.least_seconds(["none.py"], tmp_path, 1)


# -------------------------------------------------------------------------------------------- training


def test_the_public_protocol_decodes_both_images_of_every_pair_and_trains_all_weights(colour_folder, monkeypatch):
    config, opened = folder_config(colour_folder), []
    public = train_benchmark.PublicProtocol(config, prepare_split(config)[0])
    read = train_benchmark.read_image
    monkeypatch.setattr(train_benchmark, "read_image", lambda path: opened.append(path) or read(path))
    before = [parameter.clone() for parameter in public.model.parameters()]
    batch = public.batches()[0]
    for _ in range(2):
        public.step(batch)
    assert opened == 2 * [public.paths[position] for ends in (batch.first, batch.second) for position in ends]
    changes = [(old - new).abs().max() for old, new in zip(before, public.model.parameters())]
    assert len(batch.label) == 4 and 0 < max(changes) < 2.1 * 5e-6  # Adam's steps are no longer than its rate


@pytest.mark.parametrize("settings", [{}, {"weights": True}])
def test_the_compiled_variant_compiles_what_a_step_runs(colour_folder, monkeypatch, tmp_path, settings):
    if settings:
        torch.save(SiameseNetwork("Conv4").backbone.state_dict(), tmp_path / "w.pth")
        settings = {"weights": tmp_path / "w.pth"}
    config = folder_config(colour_folder, hyperparameters={"verbose": False, "head_steps": 0}, **settings)
    trainer, ran = train_benchmark.Trainer(config, prepare_split(config)[0]), []
    trainer.frozen = len(settings)  # of pretrained weights, the first blocks
    monkeypatch.setattr(torch, "compile", lambda function: lambda *args: ran.append(1) or function(*args))
    with train_benchmark.compiled(trainer):
        trainer.step(trainer.epoch_batches()[0])
    assert ran == [1]
    trainer.step(trainer.epoch_batches()[0])
    assert ran == [1]


def test_variants_of_a_step_do_what_they_say_and_leave_the_trainer_as_found(colour_folder):
    config = folder_config(colour_folder, hyperparameters={"verbose": False, "additivity": 2.0})
    trainer = train_benchmark.Trainer(config, prepare_split(config)[0])
    optimizer, normalize = trainer.optimizer, trainer.model.normalize
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with train_benchmark.fused(trainer):
        assert trainer.optimizer.param_groups[0]["fused"]
        assert trainer.optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    with train_benchmark.plain_layout(trainer):
        assert trainer.model.normalize(images).is_contiguous()
    with train_benchmark.float32(trainer):
        assert not trainer.autocast()._enabled
    with train_benchmark.without_additivity(trainer):
        assert not trainer.options.additivity and trainer.options.epochs == config.hyperparameters.epochs
    assert trainer.optimizer is optimizer and trainer.model.normalize == normalize
    assert trainer.options.additivity == 2
    assert trainer.model.normalize(images).is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------------ data


def test_ways_to_read_images_are_timed_and_leave_training_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(data_benchmark, "BATCH", 4)
    monkeypatch.setattr(data_benchmark, "FRAME", Frame((16, 16)))
    monkeypatch.setattr(data_benchmark, "NETWORKS", {"Conv4": {"backbone_model": "Conv4"}})
    data_benchmark.photographs(tmp_path / "images", 40, (96, 64))
    table, note = data_benchmark.times(tmp_path, threads=0)
    assert len(table) == 5 and (table.iloc[:, 0] >= 0).all() and table.loc["decoding every time"].iloc[2] == 1
    assert table.loc["ours, from the cache"].iloc[2] > 1 and "draft" in note
    spent = data_benchmark.shares(tmp_path, threads=0).loc["Conv4"]
    assert 0 < spent["reading, %"] and spent["reading, %"] + spent["random changes, %"] < 100


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_of_ones_own_and_of_mapped_files_are_told_apart(tmp_path):
    (tmp_path / "file").write_bytes(bytes(64 * 2**20))
    script = """if True:
        import sys
        import numpy as np
        from benchmarks.data import held
        before = held()
        own = np.ones(32 * 2**20, np.uint8)
        mapped = np.memmap(sys.argv[1], np.uint8, "r")
        assert own.max() + mapped.max() == 1
        print(*np.subtract(held(), before))
    """
    # In a process of its own: this one may take what it needs from memory that it has kept.
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    grown = [float(word) for word in subprocess.check_output(command, text=True).split()]
    assert np.allclose(grown, [32, 64], atol=4)
