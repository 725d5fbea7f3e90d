import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from utils import training
from utils.backbones import backbone_blocks
from utils.dataset import prepare_split, read_split
from utils.explain.additivity import halved_boxes, surplus
from utils.explain.removal import blur
from utils.images.reading import DataError
from utils.models import build_model
from utils.optimization import make_optimizer, make_scheduler
from utils.processes import Processes
from utils.results import HISTORY
from utils.settings import Config
from utils.Siamese import SiameseNetwork
from utils.training import Trainer, TrainingError, train
from utils.transfer import HEAD_RATE

QUICK = {"epochs": 2, "batch_size": 8, "verbose": False, "num_workers": 0, "learning_rate": 0.003}


@pytest.fixture
def config(colour_folder):
    def make(hyperparameters=None, **settings):
        defaults = {
            "dataset": "Colours",
            "data_path": colour_folder,
            "checkpoints_path": colour_folder.parents[1] / "checkpoints",
            "outputs_path": colour_folder.parents[1] / "outputs",
            "backbone_model": "Conv4",
            "image": {"size": (16, 16)},
            "test_size": 0.2,
            "valid_size": 0.25,
            "device": "cpu",
            "embedding_dim": 4,
        }
        return Config(**defaults | settings, hyperparameters=QUICK | (hyperparameters or {}))

    return make


def test_two_runs_give_the_same_history_another_seed_another(config, tmp_path):
    histories = [
        train(
            config(
                seed=seed, checkpoints_path=tmp_path / str(run), image={"size": (16, 16), "RandomRotationDegrees": 20}
            )
        ).drop(columns="seconds")
        for run, seed in enumerate((1, 1, 2))
    ]
    pd.testing.assert_frame_equal(histories[0], histories[1], check_exact=True)
    assert not histories[0].equals(histories[2])


@pytest.mark.parametrize("pairs", ["batch", "sampled"])
def test_colours_are_learnt(config, pairs):
    history = train(config({"epochs": 12}, training_pairs=pairs))
    assert history.train_loss.iloc[-1] < 0.5 * history.train_loss.iloc[0]
    assert history.valid_auc.iloc[-1] == 1


def test_results_on_disk(config):
    settings = config()
    history = train(settings)
    folder = settings.checkpoints_path
    assert {path.name for path in folder.iterdir()} == {
        "model.pth",
        "last.pth",
        "history.csv",
        "config.yml",
        "split.csv",
        "README.md",
    }
    assert tuple(history.columns) == HISTORY and history.epoch.tolist() == [1, 2]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), history)
    split = pd.read_csv(folder / "split.csv")
    assert split.split.value_counts().to_dict() == {"train": 12, "valid": 4, "test": 4}
    assert SiameseNetwork.load(folder / "last.pth").info["classes"] == ["blue", "red"]


def test_checkpoint_holds_the_mean_training_embedding_and_a_threshold_that_parts_the_validation_pairs(config):
    settings = config({"epochs": 12})
    train(settings)
    model = SiameseNetwork.load(settings.checkpoints_path / "model.pth")
    split = pd.read_csv(settings.checkpoints_path / "split.csv")
    images = {
        name: torch.stack([model.preprocess(Image.open(settings.data_path / file)) for file in rows.file])
        for name, rows in split.groupby("split")
    }
    with torch.no_grad():
        blue, red = (
            images["valid"][np.flatnonzero(split[split.split == "valid"].label == name)] for name in ("blue", "red")
        )
        same, other = (
            float((model.embed(blue[:1]) - model.embed(x)).norm()) / model.margin for x in (blue[1:], red[:1])
        )
        assert same < model.info["calibrated_threshold"] < other


def test_training_pads_as_its_checkpoint_does(config):
    settings = config(image={"size": (16, 16), "fit": "pad", "normalization": {"mean": (0.1, 0.2, 0.3)}})
    for i, path in enumerate(settings.data_path.glob("*/*.png")):
        Image.open(path).resize((20, 10 + i)).save(path)
    trainer = Trainer(settings, prepare_split(settings)[0])
    trainer.history.append(trainer.run_epoch(1, tqdm(disable=True)))
    trainer.keep()
    model = SiameseNetwork.load(settings.checkpoints_path / "model.pth")
    assert model.frame == ((16, 16), "pad", (0.1, 0.2, 0.3))
    for split, images in trainer.images.items():
        for image, file in zip(images, trainer.table.file[trainer.table.split == split], strict=True):
            assert torch.equal(model.normalize(image), model.preprocess(Image.open(settings.data_path / file)))


def scripted(monkeypatch, aucs):
    """Let validation report these AUCs, whatever the network does."""
    report = iter(aucs)

    def validate(self):
        self.calibrated_threshold = 0.5
        return {"valid_loss": 1.0, "valid_accuracy": 0.5, "valid_auc": next(report)}

    monkeypatch.setattr(Trainer, "validate", validate)


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


def test_one_cycle_rises_to_the_learning_rate_and_ends_near_zero(config):
    settings = config({"epochs": 5, "learning_rate": 0.01}, LRScheduler={"name": "OneCycle"})
    optimizer = make_optimizer(build_model(settings), settings)
    scheduler = make_scheduler(optimizer, settings, steps=4)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < 20:
            scheduler.step()
    assert rates[0] < max(rates) == pytest.approx(0.01) and 0 < rates.index(max(rates)) < 10 and rates[-1] < 1e-5


def test_equal_aucs_are_decided_by_the_loss(config, monkeypatch):
    reports = iter([(0.9, 0.5), (1.0, 0.4), (1.0, 0.2), (1.0, 0.3)])

    def validate(self):
        self.calibrated_threshold = 0.5
        auc, loss = next(reports)
        return {"valid_loss": loss, "valid_accuracy": 0.5, "valid_auc": auc}

    monkeypatch.setattr(Trainer, "validate", validate)
    settings = config({"epochs": 4})
    history = train(settings)
    assert len(history) == 4
    kept = SiameseNetwork.load(settings.checkpoints_path / "model.pth").info
    assert kept["epoch"] == 3 and kept["calibrated_threshold"] == 0.5


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_that_dies_leaves_a_network_and_its_own_split(config, monkeypatch, epoch):
    settings = config()
    train(settings)
    before = {path.name: path.read_bytes() for path in settings.checkpoints_path.iterdir()}
    run_epoch = Trainer.run_epoch

    def dying(self, number, bar):
        if number == epoch:
            raise TrainingError("dead")
        return run_epoch(self, number, bar)

    monkeypatch.setattr(Trainer, "run_epoch", dying)
    with pytest.raises(TrainingError):
        train(config(seed=5))
    after = {path.name: path.read_bytes() for path in settings.checkpoints_path.iterdir()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == (set() if epoch == 1 else set(before))
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


def test_networks_with_random_layers_repeat_too(config, tmp_path):
    settings = [
        config(
            {"epochs": 1},
            backbone_model="efficientnet_b0",
            image={"size": (32, 32)},
            checkpoints_path=tmp_path / str(k),
        )
        for k in (0, 1)
    ]
    losses = []
    for setting in settings:
        torch.rand(len(losses))  # the global generator is elsewhere each time
        losses.append(train(setting).train_loss.tolist())
    assert losses[0] == losses[1]


def test_an_interrupt_keeps_what_was_trained(config, monkeypatch):
    run_epoch = Trainer.run_epoch

    def interrupted(self, epoch, bar):
        if epoch == 2:
            raise KeyboardInterrupt
        return run_epoch(self, epoch, bar)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)
    settings = config({"epochs": 5})
    assert train(settings).epoch.tolist() == [1]
    assert len(pd.read_csv(settings.checkpoints_path / "history.csv")) == 1
    assert "calibrated_threshold" in SiameseNetwork.load(settings.checkpoints_path / "model.pth").info


def test_history_is_on_disk_after_every_epoch(config, monkeypatch):
    rows = []
    run_epoch = Trainer.run_epoch

    def counting(self, epoch, bar):
        file = self.results.folder / "history.csv"
        rows.append(len(pd.read_csv(file)) if file.exists() else 0)
        return run_epoch(self, epoch, bar)

    monkeypatch.setattr(Trainer, "run_epoch", counting)
    train(config({"epochs": 3}))
    assert rows == [0, 1, 2]


@pytest.mark.parametrize("pairs, images_an_epoch", [("batch", 12), ("sampled", 2 * 2 * 12)])
@pytest.mark.parametrize("rounds", [1, 2])
def test_only_training_images_are_augmented_each_as_often_as_configured(
    config, monkeypatch, pairs, images_an_epoch, rounds
):
    seen = Counter()

    def counting(self, images, progress):
        seen[progress] += len(images)
        return images

    monkeypatch.setattr(training.Augmentation, "__call__", counting)
    train(config({"epochs": 3}, training_pairs=pairs, number_of_iterations=rounds))
    assert seen == dict.fromkeys((0, 0.5, 1), rounds * images_an_epoch)


@pytest.mark.parametrize(
    "options, kind, expected",
    [
        ({"optimizer": "Adam", "weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1}),
        ({"optimizer": "AdamW", "weight_decay": 0.2}, torch.optim.AdamW, {"weight_decay": 0.2}),
        (
            {"optimizer": "SGD", "momentum": 0.8, "nesterov": True},
            torch.optim.SGD,
            {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
        ),
    ],
)
def test_optimizer_keys_arrive(config, options, kind, expected):
    settings = config(options)
    optimizer = make_optimizer(build_model(settings), settings)
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in expected} == expected and optimizer.defaults["lr"] == 0.003


def test_gradients_are_clipped(config):
    settings = config(
        {"optimizer": "SGD", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, "max_norm": 0.001}
    )
    trainer = Trainer(settings, prepare_split(settings)[0])
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.model.train()
    trainer.step(trainer.epoch_batches()[0])
    moved = torch.stack([(p - q).norm() for p, q in zip(trainer.model.parameters(), before)]).norm()
    assert moved.item() == pytest.approx(0.001, rel=0.01)


def test_files_that_vanish_while_training_runs_do_not_stop_it(config, monkeypatch):
    settings = config({"epochs": 3})
    run_epoch, epochs = Trainer.run_epoch, []

    def vanish(trainer, epoch, bar):
        epochs.append(epoch)
        if epoch == 2:
            shutil.rmtree(settings.data_path)
        return run_epoch(trainer, epoch, bar)

    monkeypatch.setattr(Trainer, "run_epoch", vanish)
    assert len(train(settings)) == 3 and epochs == [1, 2, 3] and not settings.data_path.exists()


def test_training_goes_on_without_images_that_break_after_the_split(config, capsys):
    settings = config({"epochs": 1})
    table = prepare_split(settings)[0]
    gone, cut = table.file[table.split == "train"].iloc[[0, 3]]
    (settings.data_path / gone).unlink()
    (settings.data_path / cut).write_bytes((settings.data_path / cut).read_bytes()[:200])
    train(settings, table)
    left = read_split(settings.checkpoints_path / "split.csv")
    assert sorted(left.file) == sorted(set(table.file) - {gone, cut})
    summary, *lines = capsys.readouterr().out.splitlines()
    assert summary == f"2 of {len(table)} images cannot be read: left out (on_bad_image: skip)"
    assert [line.split(": ")[0] for line in lines[:2]] == [str(settings.data_path / file) for file in (gone, cut)]


def test_a_split_that_training_makes_itself_comes_with_its_notes(config, capsys):
    settings = config({"epochs": 1})
    (settings.data_path / "red/1.png").write_bytes(b"")
    train(settings)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "1 of 20 images cannot be read: left out (on_bad_image: skip)",
        "red/1.png: not a readable image (the file is empty); delete or replace it",
    ]


def test_bad_images_stop_training_before_the_first_epoch_where_that_is_asked_for(config, monkeypatch):
    settings = config(on_bad_image="error")
    for file in ("red/1.png", "blue/2.png"):
        (settings.data_path / file).write_bytes(b"")
    monkeypatch.setattr(Trainer, "run_epoch", lambda *_: pytest.fail("an epoch was run"))
    with pytest.raises(DataError, match="2 of 20 images cannot be read; mend or delete them") as caught:
        train(settings)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == ["blue/2.png", "red/1.png"]
    assert not settings.checkpoints_path.exists()


def test_training_takes_a_split_that_is_given(config):
    settings = config()
    table = prepare_split(settings)[0]
    other = table.assign(split=table.split.replace({"test": "valid", "valid": "test"}))
    train(settings, other)
    assert read_split(settings.checkpoints_path / "split.csv").equals(other) and not other.equals(table)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried ..."), RuntimeError("MPS backend out of memory")]
)
def test_running_out_of_memory_names_the_key(config, monkeypatch, error):
    monkeypatch.setattr(Trainer, "step", lambda self, batch: (_ for _ in ()).throw(error))
    with pytest.raises(TrainingError, match=r"reduce hyperparameters.batch_size \(8\)"):
        train(config())


def test_memory_that_holds_four_images_trains_the_same_network(config, tmp_path, monkeypatch, capsys):
    """Of batches of eight, in fine-tuning; with room for the head's features, which are small."""
    for module in ("training", "transfer"):  # rounding to bfloat16 would hide mistakes
        monkeypatch.setattr(f"utils.{module}.bfloat16_pays", lambda device: False)
    # Adam's first steps go by the sign of a gradient, so rounding would show.
    options = {"epochs": 2, "head_steps": 2, "additivity": 1.0, "optimizer": "SGD", "learning_rate": 0.1}
    runs = [config(options, checkpoints_path=tmp_path / name, **PRETRAINED) for name in ("whole", "chunks")]
    histories = [train(runs[0])]
    assert "out of memory" not in capsys.readouterr().out
    passes, late = [], training.embed_late

    def small(model, batch, blocks):
        if len(batch) > 8:  # four images, and boxes in at least one
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        passes.append(len(batch))
        return late(model, batch, blocks)

    monkeypatch.setattr(training, "embed_late", small)
    histories.append(train(runs[1]))
    told = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert told == ["out of memory with 8 images at once; going on with 4 at once, batches as before"] and passes
    whole, chunks = (history.drop(columns="seconds") for history in histories)
    pd.testing.assert_frame_equal(whole, chunks, rtol=1e-3)
    a, b = (weights_of(run.checkpoints_path / "last.pth") for run in runs)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_memory_that_holds_no_image_ends_training(config, monkeypatch, capsys):
    def none(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried ...")

    settings = config()
    trainer = Trainer(settings, prepare_split(settings)[0])
    monkeypatch.setattr(SiameseNetwork, "embed", none)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step(trainer.epoch_batches()[0])
    assert len(capsys.readouterr().out.splitlines()) == 3  # 8, 4, 2, 1
    with pytest.raises(TrainingError, match=r"reduce hyperparameters.batch_size \(8\) or image.size"):
        train(settings)


@pytest.mark.parametrize("pairs, count", [("batch", 8), ("sampled", 16)])
def test_a_loss_that_is_not_finite_stops_training_and_names_images_and_key(config, monkeypatch, pairs, count):
    settings = config(training_pairs=pairs)
    trainer = Trainer(settings, prepare_split(settings)[0])
    batch = trainer.epoch_batches()[0]
    trainer.step(batch)
    with torch.no_grad():
        trainer.model.head[0].bias.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"epoch 1: .*lower hyperparameters.learning_rate \(0.003\)") as caught:
        trainer.step(batch)
    files = trainer.table.file[trainer.table.split == "train"].to_numpy()[training.every_image(batch)]
    different = list(dict.fromkeys(files))
    assert len(files) == count
    assert str(caught.value).endswith(f"images: {', '.join(different[:3])} and {len(different) - 3} more")


@pytest.mark.parametrize("count, end", [(2, ""), (3, ""), (4, " and 1 more")])
def test_up_to_three_images_are_named_and_of_more_the_number(config, count, end):
    trainer = Trainer(config(), prepare_split(config())[0])
    files = trainer.table.file[trainer.table.split == "train"].tolist()
    with pytest.raises(TrainingError) as caught:
        trainer.refuse(np.arange(count), float("nan"), torch.zeros(count, 4))
    assert str(caught.value).endswith(f"look at its images: {', '.join(files[:count][:3])}{end}")


def test_of_a_batch_the_images_are_named_whose_embeddings_are_not_finite(config, monkeypatch):
    settings = config()
    trainer = Trainer(settings, prepare_split(settings)[0])
    batch, normalize = trainer.epoch_batches()[0], SiameseNetwork.normalize
    trainer.model.eval()  # or batch statistics would spread it

    def spoil(model, images):
        spoilt = normalize(model, images)
        spoilt[5] = float("nan")
        return spoilt

    monkeypatch.setattr(SiameseNetwork, "normalize", spoil)
    with pytest.raises(TrainingError) as caught:
        trainer.step(batch)
    file = trainer.table.file[trainer.table.split == "train"].iloc[batch[5]]
    assert str(caught.value).endswith(f"images: {file}")


def test_a_gradient_that_is_not_finite_stops_training_too(config):
    settings = config()
    trainer = Trainer(settings, prepare_split(settings)[0])
    trainer.model.train()
    trainer.model.head[2].bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="or its gradient, is not finite"):
        trainer.step(trainer.epoch_batches()[0])


def test_activations_beyond_the_range_of_float16_train(config, monkeypatch):
    """Numbers of 16 bits are bfloat16, which reach as far as float32."""
    monkeypatch.setattr(training, "bfloat16_pays", lambda device: True)
    settings = config()
    trainer = Trainer(settings, prepare_split(settings)[0])
    trainer.model.eval()
    with torch.no_grad():
        trainer.model.backbone[0].weight.mul_(1e6)
        seen = []
        hook = trainer.model.backbone[0].register_forward_hook(lambda *call: seen.append(call[2].detach()))
        embeddings = trainer.embed_batch(trainer.model.normalize(trainer.images["train"][[0, 1, 2, 3]]))
        hook.remove()
    assert seen[0].dtype is torch.bfloat16 and seen[0].abs().max() > torch.finfo(torch.float16).max
    assert embeddings.isfinite().all()


def test_batches_of_the_public_configuration_hold_similar_pairs(config):
    settings = config({"batch_size": 4})
    trainer = Trainer(settings, prepare_split(settings)[0])
    for batch in trainer.epoch_batches():
        labels = trainer.labels["train"][batch].numpy()
        assert len(np.unique(labels)) < len(labels)


PRETRAINED = {"backbone_model": "EfficientNetLite0", "pretrained": True, "image": {"size": (32, 32)}}


def weights_of(path):
    return SiameseNetwork.load(path).state_dict()


def test_the_head_alone_learns_on_features_that_are_computed_once(config, monkeypatch):
    passes = []
    embed = SiameseNetwork.embed
    monkeypatch.setattr(SiameseNetwork, "embed", lambda model, batch: passes.append(len(batch)) or embed(model, batch))
    settings = config({"epochs": 0, "head_steps": 40, "batch_size": 4}, **PRETRAINED)
    history = train(settings)
    images = 12 + 4 + 4  # train, valid, test
    assert len(history) == 14 and history.valid_auc.max() == 1  # 12 images make 3 steps of 4
    assert history.learning_rate.max() <= HEAD_RATE and sum(passes) < 4 * images  # no training step embeds an image
    start = nn.Sequential(*backbone_blocks("EfficientNetLite0", pretrained=True))
    trained = SiameseNetwork.load(settings.checkpoints_path / "model.pth")
    assert all(torch.equal(a, b) for a, b in zip(trained.backbone.state_dict().values(), start.state_dict().values()))


def test_every_image_of_a_batch_of_the_heads_is_seen_in_a_view_of_its_own(config, monkeypatch):
    trainer = Trainer(config(), prepare_split(config())[0])
    trainer.features["train"] = torch.cartesian_prod(torch.arange(4), torch.arange(12)).view(4, 12, 2)
    monkeypatch.setattr(SiameseNetwork, "embed_pooled", lambda model, features: features)
    positions, seen = np.array([7, 2, 11, 0, 5]), set()
    for _ in range(20):  # batches
        some, embed = trainer.draw(positions)
        places, drawn = embed(1, 4)
        assert not len(some) and places.tolist() == [1, 2, 3] and drawn[:, 1].tolist() == [2, 11, 0]
        seen.add(tuple(drawn[:, 0].tolist()))
    assert {view for views in seen for view in views} == {0, 1, 2, 3} and any(len(set(views)) > 1 for views in seen)


def test_boxes_are_covered_by_another_image_of_the_batch(config):
    changes = {"size": (16, 16), "HorizontalFlip": 0, "CutMix": 1}
    trainer = Trainer(settings := config({}, image=changes), prepare_split(settings)[0])
    positions = np.array([4, 0, 7])
    plain = trainer.images["train"][positions].float()
    covered = trainer.training_images(positions)
    for k in range(3):
        inside = (covered[k] != plain[k]).any(0)
        assert inside.any() and torch.equal(covered[k][:, inside], plain[k - 1][:, inside])


def test_fine_tuning_follows_repeats_bit_for_bit_and_leaves_the_first_blocks_and_the_statistics(config, tmp_path):
    options = {"epochs": 2, "head_steps": 5, "batch_size": 4, "learning_rate": 1e-3}
    for run in "ab":
        history = train(config(options, checkpoints_path=tmp_path / run, **PRETRAINED))
        assert history.epoch.tolist() == [1, 2, 3, 4]  # two of the head, two of fine-tuning
    a, b = (weights_of(tmp_path / run / "last.pth") for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    last = SiameseNetwork.load(tmp_path / "a" / "last.pth").backbone.state_dict()
    start = nn.Sequential(*backbone_blocks("EfficientNetLite0", pretrained=True)).state_dict()
    changed = {name for name in start if not torch.equal(start[name], last[name])}
    assert {int(name.split(".")[0]) for name in changed} == set(range(8, 21)) and not any(
        "running" in n for n in changed
    )


@pytest.mark.parametrize(
    "aucs, kept", [([0.9, 0.8, 0.6, 0.7], 4), ([0.9, 0.8, 0.7, 0.6], 3), ([0.9, 0.8], 2), ([0.9, 0.8, 0.7], 3)]
)
def test_the_head_alone_is_kept_as_its_schedule_left_it(config, tmp_path, monkeypatch, aucs, kept):
    """Three epochs of the head, however good its first ones looked; then those of fine-tuning compete with its last."""
    scripted(monkeypatch, aucs)
    run_epoch = Trainer.run_epoch

    def interrupted(self, epoch, bar):
        if epoch > len(aucs):
            raise KeyboardInterrupt
        return run_epoch(self, epoch, bar)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)
    torch.save(SiameseNetwork("Conv4").backbone.state_dict(), tmp_path / "w.pth")
    settings = config({"epochs": 1, "head_steps": 9, "batch_size": 4}, weights=tmp_path / "w.pth")
    assert train(settings).valid_auc.tolist() == aucs
    assert SiameseNetwork.load(settings.checkpoints_path / "model.pth").info["epoch"] == kept


@pytest.mark.parametrize("schedule, kept", [("OneCycle", 3), ("ReduceLROnPlateau", 2)])
def test_where_the_schedule_has_an_end_the_last_network_is_kept(config, monkeypatch, schedule, kept):
    scripted(monkeypatch, [0.7, 0.9, 0.8])
    settings = config({"epochs": 3}, LRScheduler={"name": schedule})
    train(settings)
    best, last = (SiameseNetwork.load(settings.checkpoints_path / f"{name}.pth") for name in ("model", "last"))
    assert best.info["epoch"] == kept
    alike = [torch.equal(a, b) for a, b in zip(best.head.parameters(), last.head.parameters())]
    assert alike == [kept == 3] * len(alike)


def test_without_pretrained_weights_there_are_no_steps_of_the_head_alone(config):
    assert train(config({"epochs": 1, "head_steps": 300})).epoch.tolist() == [1]


def test_effects_that_do_not_add_up_cost_what_the_weight_says(config, monkeypatch):
    """The gradient of a batch with additivity is that without, and the weight times that of
    `||delta_AB - delta_A - delta_B||^2`, here an image and a box at a time."""
    monkeypatch.setattr(training, "bfloat16_pays", lambda device: False)
    boxes_of = []
    monkeypatch.setattr(training, "halved_boxes", lambda *args: boxes_of.append(halved_boxes(*args)) or boxes_of[-1])
    gradients = []
    for weight in (0.0, 1e4):  # large beside rounding: an untrained network's effects are small
        settings = config({"additivity": weight, "batch_size": 12}, image={"size": (16, 16), "HorizontalFlip": 0.0})
        trainer = Trainer(settings, prepare_split(settings)[0])
        trainer.model.eval()  # at fixed batch statistics, as in fine-tuning
        batch = trainer.epoch_batches()[0]
        trainer.rng = np.random.default_rng(5)
        trainer.gradients(batch)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    rng = np.random.default_rng(5)
    some = rng.choice(len(batch), 2, replace=False)  # an eighth of 12, rounded up
    model, left = trainer.model, []
    for position, halves in zip(some, boxes_of[-1]):
        (image,) = model.normalize(trainer.images["train"][batch[[position]]])
        (soft,) = blur(image[None])
        seen = []
        for gone in ([], [0], [1], [0, 1]):
            changed = image.clone()
            for top, bottom, left_edge, right in halves[gone]:
                changed[:, top:bottom, left_edge:right] = soft[:, top:bottom, left_edge:right]
            seen.append(model.embed(changed[None])[0])
        whole, a, b, both = seen
        left.append(((whole - both) - (whole - a) - (whole - b)).square().sum())
    wanted = torch.autograd.grad(sum(left) / len(left), list(model.parameters()))
    wanted = 1e4 * torch.cat([gradient.flatten() for gradient in wanted])
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(gradients[1] - gradients[0], wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


def test_the_loss_of_an_epoch_is_the_mean_over_its_images(config, monkeypatch):
    settings, step, seen = config({"batch_size": 5}), Trainer.step, []  # batches that differ in size
    monkeypatch.setattr(Trainer, "step", lambda self, batch: seen.append(step(self, batch)) or seen[-1])
    trainer = Trainer(settings, prepare_split(settings)[0])
    row = trainer.run_epoch(1, tqdm(disable=True))
    assert len({len(found) for _, found in seen}) > 1
    assert row["train_loss"] == pytest.approx(
        sum(loss * len(found) for loss, found in seen) / sum(len(found) for _, found in seen)
    )


def test_every_process_draws_its_own_in_every_epoch_whatever_the_seed_and_one_alone_goes_on(config, monkeypatch):
    monkeypatch.setattr(Trainer, "epoch_batches", lambda self: ["one"])
    trainer, drawn = Trainer(config(), prepare_split(config())[0]), []
    monkeypatch.setattr(Trainer, "step", lambda self, batch: drawn.append(torch.initial_seed()) or 1 / 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for processes in [Processes(), Processes(0, 2), Processes(1, 2)]:
            for seed in (42, 43):
                trainer.processes, trainer.config = processes, config(seed=seed)
                for epoch in range(1, 101):
                    with pytest.raises(ZeroDivisionError):
                        trainer.run_epoch(epoch, tqdm(disable=True))
    assert set(drawn[:200]) == {7} and len(set(drawn[200:])) == 400


def test_a_process_may_have_no_share_of_the_validation_images(config):
    class Idle(Processes):
        def share(self, count):
            return range(count, count)

        def gather(self, rows, count):
            assert rows.shape == (0, 4)
            return torch.randn(count, 4)  # of the others

    trainer = Trainer(config(), prepare_split(config())[0])
    trainer.processes = Idle()
    assert set(trainer.validate()) == {"valid_loss", "valid_accuracy", "valid_auc"}


def test_processes_compare_what_files_and_pixels_they_train_on(config):
    compared = []

    class Watched(Processes):
        def check_same_images(self, checksum):
            compared.append(checksum)

    table = prepare_split(config())[0]
    for _ in range(2):
        Trainer(config(), table, Watched())
    file = config().data_path / table.file[table.split == "train"].iloc[0]
    Image.open(file).transpose(Image.Transpose.ROTATE_180).save(file)
    Trainer(config(), table, Watched())
    assert compared[0] == compared[1] != compared[2]


def test_without_a_weight_no_boxes_are_looked_at(config, monkeypatch):
    monkeypatch.setattr(training, "halved_boxes", None)
    assert len(train(config())) == 2


def test_sampled_pairs_are_looked_at_with_boxes_too(config, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "surplus", lambda left: seen.append(len(left)) or surplus(left))
    train(config({"epochs": 1, "additivity": 1.0, "batch_size": 8}, training_pairs="sampled"))
    assert seen == [2, 2, 2]  # of 24 pairs, 8 at a time, that is of 16 images, one in eight


def test_an_error_that_is_not_about_memory_is_passed_on(config, monkeypatch):
    monkeypatch.setattr(Trainer, "run", lambda self: (_ for _ in ()).throw(RuntimeError("cuDNN error")))
    with pytest.raises(RuntimeError, match="^cuDNN error$"):
        train(config())


def test_an_interrupt_before_the_first_epoch_ends_leaves_nothing(config, monkeypatch):
    monkeypatch.setattr(Trainer, "run_epoch", lambda self, epoch, bar: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(config())
    assert not config().checkpoints_path.exists()


@pytest.mark.parametrize("rank, printed", [("0", True), ("1", False)])
def test_the_command_line_reports_the_epoch_that_was_kept(config, monkeypatch, capsys, rank, printed):
    scripted(monkeypatch, [0.6, 0.9, 0.7])
    monkeypatch.setenv("RANK", rank)
    settings = config({"epochs": 3})
    training.train_and_report(settings)
    line = f"kept epoch 2 of 3: validation AUC 0.900; {settings.checkpoints_path / 'model.pth'}\n"
    assert capsys.readouterr().out == (line if printed else "")


@pytest.mark.parametrize("verbose", [True, False])
def test_a_process_alone_shows_its_progress_if_that_is_wanted(config, capsys, verbose):
    train(config({"epochs": 1, "verbose": verbose}))
    assert ("Epoch 1/1" in capsys.readouterr().err) is verbose


def test_training_reuses_freed_memory(config, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "keep_freed_memory", lambda: asked.append(True))
    monkeypatch.setattr(Trainer, "run", lambda self: None)
    train(config())
    assert asked == [True]
