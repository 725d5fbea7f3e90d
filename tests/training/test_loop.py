import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from samples import NETWORKS
from tqdm.auto import tqdm
from trainers import before_epochs, interrupted, started, stop_at

from utils.__main__ import main
from utils.dataset import prepare_split, read_split
from utils.Grad_CAM import explain
from utils.networks.backbones import make_backbone
from utils.search import Index, build_index, search
from utils.Siamese import SiameseNetwork
from utils.system.errors import DataError, TrainingError
from utils.training import train
from utils.training.loop import Trainer
from utils.training.phases import HEAD_RATE, Phase
from utils.training.results import HISTORY


def test_two_runs_give_the_same_history_another_seed_another(config, tmp_path):
    image = {"size": (16, 16), "RandomRotationDegrees": 20}
    histories = [
        train(config(seed=seed, checkpoints_path=tmp_path / str(run), image=image)).drop(columns="seconds")
        for run, seed in enumerate((1, 1, 2))
    ]
    pd.testing.assert_frame_equal(histories[0], histories[1], check_exact=True)
    assert not histories[0].equals(histories[2])


@pytest.mark.parametrize("pairs", ["batch", "sampled"])
def test_colours_are_learnt_and_results_are_on_disk(config, pairs):
    settings = config({"epochs": 12}, training_pairs=pairs)
    history, folder = train(settings), settings.checkpoints_path
    assert history.train_loss.iloc[-1] < 0.5 * history.train_loss.iloc[0] and history.valid_auc.iloc[-1] == 1
    files = {"model.pth", "last.pth", "history.csv", "config.yml", "split.csv", "README.md"}
    assert {path.name for path in folder.iterdir()} == files | {".lock"}
    assert tuple(history.columns) == HISTORY and history.epoch.tolist() == [*range(1, 13)]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    split, model = read_split(folder / "split.csv"), SiameseNetwork.load(folder / "model.pth")
    assert split.split.value_counts().to_dict() == {"train": 12, "valid": 4, "test": 4}
    assert model.info["classes"] == ["blue", "red"]
    # The calibrated threshold parts the validation pairs.
    blue, red = (split.file[(split.split == "valid") & (split.label == label)] for label in ("blue", "red"))
    files = (*blue.iloc[:2], red.iloc[0])
    with torch.no_grad():
        one, same, other = (model.embed(model.preprocess(Image.open(settings.data_path / f))[None]) for f in files)
    distances = [float((one - z).norm()) / model.margin for z in (same, other)]
    assert distances[0] < model.info["calibrated_threshold"] < distances[1]


def test_a_network_sees_images_as_training_did(config):
    """Padded, and over the range of values of all images, of 11 bits."""
    settings = config(image={"size": (16, 16), "fit": "pad", "normalization": {"mean": (0.1, 0.2, 0.3)}})
    for i, path in enumerate(settings.data_path.glob("*/*.png")):
        grey = Image.open(path).convert("L").resize((20, 10 + i))
        Image.fromarray(np.asarray(grey, np.uint16) * 9).save(path)
    trainer = started(settings)
    trainer.results.history.append(trainer.run_epoch(1, tqdm(disable=True)))
    trainer.keep()
    model = SiameseNetwork.load(settings.checkpoints_path / "model.pth")
    assert model.frame == ((16, 16), "pad", (0.1, 0.2, 0.3), (0, 2047))
    table = trainer.data.table
    for split, images in trainer.data.images.items():
        for image, file in zip(images[np.arange(len(images))], table.file[table.split == split], strict=True):
            assert torch.equal(model.normalize(image), model.preprocess(Image.open(settings.data_path / file)))


def scripted(monkeypatch, aucs):
    """Replace validation: it reports these AUCs, epoch by epoch."""
    report = ({"valid_loss": 1.0, "valid_accuracy": 0.5, "valid_auc": auc} for auc in aucs)
    monkeypatch.setattr(Phase, "validate", lambda self: (next(report), {"calibrated_threshold": 0.5}))


def test_the_epoch_with_the_highest_auc_is_kept_and_training_stops_after_patience(config, monkeypatch):
    scripted(monkeypatch, [0.6, 0.9, 0.7, 0.8, 0.95])
    states = []
    keep = Trainer.keep
    monkeypatch.setattr(
        Trainer, "keep", lambda self: (states.append(self.model.head[0].weight.detach().clone()), keep(self))
    )
    settings = config({"epochs": 9}, early_stopping={"patience": 2})
    history = train(settings)
    assert history.valid_auc.tolist() == [0.6, 0.9, 0.7, 0.8]
    assert torch.equal(SiameseNetwork.load(settings.checkpoints_path / "model.pth").head[0].weight, states[1])
    assert torch.equal(SiameseNetwork.load(settings.checkpoints_path / "last.pth").head[0].weight, states[3])


def test_learning_rate_falls_when_the_auc_stalls_not_when_it_rises(config, monkeypatch):
    scripted(monkeypatch, [0.5, 0.6, 0.7, 0.7, 0.7, 0.7])
    history = train(
        config({"epochs": 6, "learning_rate": 0.01}, LRScheduler={"patience": 1, "factor": 0.5, "min_lr": 0.004})
    )
    assert history.learning_rate.tolist() == [0.01] * 5 + [0.005]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_that_dies_leaves_a_network_and_its_own_split(config, monkeypatch, epoch):
    settings = config()
    train(settings)
    before = {path.name: path.read_bytes() for path in settings.checkpoints_path.iterdir()}
    before_epochs(monkeypatch, stop_at(epoch, TrainingError))
    with pytest.raises(TrainingError):
        train(config(seed=5))
    after = {path.name: path.read_bytes() for path in settings.checkpoints_path.iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == (set() if epoch == 1 else set(before) - {".lock"})
    assert 0 < SiameseNetwork.load(settings.checkpoints_path / "model.pth").info["calibrated_threshold"]


@pytest.mark.parametrize("seed", [42, 5], ids=["the same split", "another split"])
def test_a_kill_between_a_network_and_its_split_never_leaves_another_networks_split(config, monkeypatch, seed):
    class Killed(BaseException):
        pass

    def replace(self, target):
        if Path(target).name == "split.csv":
            raise Killed
        return os.replace(self, target)

    train(config())
    path, again = config().checkpoints_path / "split.csv", config({"epochs": 3}, seed=seed)
    before = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", replace)
        train(again)
    if seed == 42:
        assert path.read_bytes() == before
    else:
        with pytest.raises(DataError, match="run 01_Train_Siamese_model.ipynb first"):
            read_split(path)
    train(again)
    assert read_split(path).equals(prepare_split(again)[0].astype(str))


def test_history_is_on_disk_after_every_epoch_and_files_that_vanish_do_not_stop_it(config, monkeypatch):
    settings, rows = config({"epochs": 3}), []

    def act(trainer, epoch):
        file = trainer.results.folder / "history.csv"
        rows.append(len(pd.read_csv(file)) if file.exists() else 0)
        shutil.rmtree(settings.data_path, ignore_errors=True)

    before_epochs(monkeypatch, act)
    assert len(train(settings)) == 3 and rows == [0, 1, 2] and not settings.data_path.exists()


def test_training_goes_on_without_images_that_break_after_the_split(config, capsys):
    settings = config({"epochs": 1})
    table = prepare_split(settings)[0]
    gone, cut = table.file[table.split == "train"].iloc[[0, 3]]
    (settings.data_path / gone).unlink()
    (settings.data_path / cut).write_bytes((settings.data_path / cut).read_bytes()[:200])
    train(settings, table)
    left = read_split(settings.checkpoints_path / "split.csv")
    assert sorted(left.file) == sorted(set(table.file) - {gone, cut})
    lost = f"2 of {(table.split == 'train').sum()} images gone or unreadable, left out: {gone}, {cut}"
    assert capsys.readouterr().out.startswith(f"train: {lost}\n")


@pytest.fixture
def pretrained(tmp_path):
    """Settings of a small network whose weights are given."""
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "weights.pth")
    return {"backbone_model": "test_efficientnet", "weights": tmp_path / "weights.pth", "image": {"size": (32, 32)}}


def start_of(settings):
    size, name = settings["image"]["size"], settings["backbone_model"]
    return make_backbone(name, weights=settings["weights"], image_size=size).state_dict()


def test_the_head_alone_learns_on_features_that_are_computed_once(config, monkeypatch, pretrained):
    passes = []
    embed = SiameseNetwork.embed
    monkeypatch.setattr(SiameseNetwork, "embed", lambda model, batch: passes.append(len(batch)) or embed(model, batch))
    settings = config({"epochs": 0, "head_steps": 40, "batch_size": 4}, **pretrained)
    history = train(settings)
    images = 12 + 4 + 4  # train, valid, test
    assert len(history) == 14 and history.valid_auc.max() == 1  # 12 images make 3 steps of 4
    assert history.learning_rate.max() <= HEAD_RATE and sum(passes) < 4 * images  # no training step embeds an image
    trained = SiameseNetwork.load(settings.checkpoints_path / "model.pth").backbone.state_dict()
    assert all(map(torch.equal, trained.values(), start_of(pretrained).values()))


def test_fine_tuning_repeats_bit_for_bit_and_leaves_the_first_blocks_and_the_statistics(config, tmp_path, pretrained):
    options = {"epochs": 2, "head_steps": 5, "batch_size": 4, "learning_rate": 1e-3}
    for run in "ab":
        history = train(config(options, checkpoints_path=tmp_path / run, **pretrained))
        assert history.epoch.tolist() == [1, 2, 3, 4]  # two of the head, two of fine-tuning
    a, b = (SiameseNetwork.load(tmp_path / run / "last.pth") for run in "ab")
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    last, start = a.backbone.state_dict(), start_of(pretrained)
    changed = {name for name in start if not torch.equal(start[name], last[name])}
    # Maps of 16, 8 and 4 positions a side come before a sixteenth of 32 pixels is left.
    assert {int(name.split(".")[0]) for name in changed} == set(range(5, 9))
    assert not any("running" in name for name in changed)


def test_of_a_transformer_the_last_third_is_trained(config, tmp_path):
    """The weights are of another image size, as published ones are."""
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    settings = dict(backbone_model="test_vit", weights=tmp_path / "weights.pth", image={"size": (32, 64)})
    history = train(config({"epochs": 1, "head_steps": 3, "batch_size": 4, "learning_rate": 1e-3}, **settings))
    assert history.epoch.tolist() == [1, 2] and np.isfinite(history.train_loss).all()
    last = SiameseNetwork.load(config().checkpoints_path / "last.pth").backbone.state_dict()
    changed = {name for name, tensor in start_of(settings).items() if not torch.equal(tensor, last[name])}
    # Of 7 groups of layers the first 5: what embeds patches, and 4 of 6 blocks.
    assert {name.split(".")[3] for name in changed if ".blocks." in name} == {"4", "5"}
    assert not any(part in name for part in ("patch_embed", "pos_embed", "cls_token") for name in changed)


@pytest.mark.parametrize(("name", "size"), NETWORKS.items())
def test_any_network_of_timm_is_trained_loaded_explained_and_searched(config, tmp_path, name, size):
    settings = config({"epochs": 1, "head_steps": 0}, backbone_model=name, pretrained=False, image={"size": size})
    assert np.isfinite(train(settings).train_loss).all()
    model = SiameseNetwork.load(settings.checkpoints_path)
    paths = sorted(settings.data_path.rglob("*.png"))
    images = torch.stack([model.preprocess(Image.open(path)) for path in paths[:3]])
    maps = explain(model, images[:2], images[1:], "distance")
    assert maps.factual.shape == (2, 2, *size) and not maps.factual.isnan().any()
    with torch.no_grad():
        expected = (model.embed(images[:1]) - model.embed(images[1:2])).norm()
    assert maps.distance[0].item() == pytest.approx(expected.item(), abs=1e-4)
    build_index(model, settings.data_path, tmp_path / "index.sqlite", verbose=False)
    with Index(tmp_path / "index.sqlite", model) as index:
        hits = search(model, index, paths[0], count=1).hits
    assert hits[0].pair["explanation"].factual.shape == (1, 2, *size)


@pytest.mark.parametrize("aucs, kept", [([0.9, 0.8, 0.6, 0.7], 4), ([0.9, 0.8, 0.7, 0.6], 3), ([0.9, 0.8], 2)])
def test_the_head_alone_is_kept_as_its_schedule_left_it(config, weights, monkeypatch, aucs, kept):
    """Of three epochs of the head, only the last can be the best; epochs of fine-tuning compete with it."""
    scripted(monkeypatch, aucs)
    settings = config({"epochs": 1, "head_steps": 9, "batch_size": 4}, weights=weights)
    assert interrupted(monkeypatch, settings, len(aucs) + 1).valid_auc.tolist() == aucs
    assert SiameseNetwork.load(settings.checkpoints_path / "model.pth").info["epoch"] == kept


def test_where_the_schedule_has_an_end_the_last_network_is_kept(config, monkeypatch):
    scripted(monkeypatch, [0.7, 0.9, 0.8])
    settings = config({"epochs": 3}, LRScheduler={"name": "OneCycle"})
    train(settings)
    assert SiameseNetwork.load(settings.checkpoints_path / "model.pth").info["epoch"] == 3


def test_an_interrupt_before_the_first_epoch_ends_leaves_nothing(config, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        interrupted(monkeypatch, config(), 1)
    assert not (config().checkpoints_path / "last.pth").exists()


@pytest.mark.parametrize("rank, printed", [("0", True), ("1", False)])
def test_the_command_line_reports_the_epoch_that_was_kept(config, monkeypatch, capsys, rank, printed):
    scripted(monkeypatch, [0.6, 0.9, 0.7])
    monkeypatch.setenv("RANK", rank)
    settings = config({"epochs": 3})
    settings.save(settings.data_path.parent / "config.yml")
    main(["train", "--config", str(settings.data_path.parent / "config.yml")])
    line = f"kept epoch 2 of 3: validation AUC 0.900; {settings.checkpoints_path / 'model.pth'}\n"
    out = capsys.readouterr().out
    assert out.startswith(f"{line}next: 03_Evaluate.ipynb") if printed else out == ""


@pytest.mark.parametrize("verbose", [True, False])
def test_a_process_alone_shows_its_progress_if_that_is_wanted(config, capsys, verbose):
    train(config({"epochs": 1, "verbose": verbose}))
    assert ("Epoch 1/1" in capsys.readouterr().err) is verbose
