import re
import shutil
import signal

import dying
import pandas as pd
import pytest
import torch
from dying import KILLED, changed, configurations, difference, exit_code, watched
from trainers import before_epochs, interrupted

from utils.dataset import prepare_split
from utils.Siamese import SiameseNetwork
from utils.system.errors import TrainingError
from utils.training import results, train
from utils.training.loop import Trainer
from utils.training.phases import Phase

needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two configurations, trained without being stopped."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are killed
    found = configurations(tmp_path_factory.mktemp("kills"))
    for config in found.values():
        train(config)
    yield found
    torch.set_num_threads(threads)


def elsewhere(config, folder):
    return changed(config, {"checkpoints_path": folder / "again"})


@needs_sigkill
@pytest.mark.parametrize(
    "network, event, count",
    [("random weights", "step", 6), ("random weights", "write", 4), ("pretrained", "step", 11)],
    ids=["within an epoch", "between two files", "fine-tuning"],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(alone, tmp_path, capsys, network, event, count):
    again = elsewhere(alone[network], tmp_path)
    assert exit_code(dying.training, again, event, count) == KILLED
    train(again)
    assert difference(alone[network].checkpoints_path, again.checkpoints_path) is None
    if event == "step":  # otherwise it may have died before it could remember
        assert "training goes on from there" in capsys.readouterr().out


@pytest.mark.parametrize("network, epoch", [("random weights", 3), ("pretrained", 2), ("pretrained", 4)])
def test_an_interrupted_run_is_usable_and_goes_on(alone, tmp_path, monkeypatch, capsys, network, epoch):
    again = elsewhere(alone[network], tmp_path)
    assert len(interrupted(monkeypatch, again, epoch)) == epoch - 1
    assert "train again to go on from there" in capsys.readouterr().out
    assert SiameseNetwork.load(again.checkpoints_path / "model.pth").info["epoch"] == epoch - 1
    calls = []
    before_epochs(monkeypatch, lambda trainer, number: calls.append(number))
    train(again)
    assert f"stopped after epoch {epoch - 1}; training goes on" in capsys.readouterr().out
    assert calls[0] == epoch
    assert difference(alone[network].checkpoints_path, again.checkpoints_path) is None


@needs_sigkill
def test_a_run_of_the_head_alone_that_was_killed_while_finishing_finishes(alone, tmp_path, capsys):
    one_cycle = {"LRScheduler.name": "OneCycle", "hyperparameters.epochs": 0}  # as config.yml has it for one's own data
    undisturbed = changed(elsewhere(alone["pretrained"], tmp_path / "undisturbed"), one_cycle)
    with watched() as counts:
        train(undisturbed)
    again = changed(elsewhere(alone["pretrained"], tmp_path), one_cycle)
    assert exit_code(dying.training, again, "write", counts["write"] - 1) == KILLED
    train(again)
    assert "training goes on from there" in capsys.readouterr().out
    assert difference(undisturbed.checkpoints_path, again.checkpoints_path) is None


def test_a_run_goes_on_with_its_own_best_network_whatever_was_written_since(alone, tmp_path, monkeypatch):
    """The second epoch is the best; before the run goes on, another run has replaced `model.pth`."""
    again, other = (elsewhere(alone["random weights"], tmp_path / name) for name in ("one", "other"))

    aucs = iter([0.6, 0.9, 0.7, 0.8, 0.6, 0.9, 0.7, 0.8])  # of the one, then of the other

    def validate(self):
        return {"valid_loss": 1.0, "valid_accuracy": 0.5, "valid_auc": next(aucs)}, {"calibrated_threshold": 0.5}

    monkeypatch.setattr(Phase, "validate", validate)
    train(other)
    interrupted(monkeypatch, again, 4)
    stranger = SiameseNetwork.load(again.checkpoints_path / "model.pth")
    stranger.head[0].weight.data.zero_()
    stranger.save(again.checkpoints_path / "model.pth", epoch=1)
    train(again)
    assert SiameseNetwork.load(again.checkpoints_path / "model.pth").info["epoch"] == 2
    assert difference(other.checkpoints_path, again.checkpoints_path) is None


@pytest.mark.parametrize("file", ["last.pth", "model.pth"])
def test_an_interrupt_between_the_files_of_an_epoch_loses_nothing(alone, tmp_path, monkeypatch, capsys, file):
    again = elsewhere(alone["random weights"], tmp_path)
    replacing, pressed = results.replacing, []

    def press(path):
        if path.name == file and not pressed:
            pressed.append(path)
            raise KeyboardInterrupt
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(results, "replacing", press)
        patch.setattr("utils.Siamese.replacing", press)
        history = train(again)
    assert pressed and len(history) == 1 and "stopped after epoch 1 of 4" in capsys.readouterr().out
    assert len(pd.read_csv(again.checkpoints_path / "history.csv")) == 1
    train(again)
    assert difference(alone["random weights"].checkpoints_path, again.checkpoints_path) is None


def test_after_a_finished_run_the_next_starts_from_the_beginning(alone, tmp_path, capsys):
    again = elsewhere(alone["random weights"], tmp_path)
    histories = [train(again).drop(columns="seconds") for _ in range(2)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert len(histories[0]) == 4 and not capsys.readouterr().out
    assert "run" not in SiameseNetwork.load(again.checkpoints_path / "last.pth").info


def told_to_go_on(config, table=None):
    """What a trainer that is made says about a run that was stopped; the files that are there then."""
    Trainer(config, prepare_split(config)[0] if table is None else table)
    return sorted(path.name for path in config.checkpoints_path.glob("*.pth"))


@pytest.mark.parametrize(
    "key, value, goes_on",
    [
        ("hyperparameters.epochs", 3, False),
        ("hyperparameters.batch_size", 4, False),
        ("hyperparameters.num_workers", 1, True),
        ("device", "auto", True),
    ],
)
def test_a_run_goes_on_unless_a_setting_changes_its_result(alone, tmp_path, monkeypatch, capsys, key, value, goes_on):
    """Otherwise the setting is named and the run is put aside, until its settings are back."""
    again = elsewhere(alone["random weights"], tmp_path)
    interrupted(monkeypatch, again, 3)
    before, _ = (again.checkpoints_path / "last.pth").read_bytes(), capsys.readouterr()
    files, told = told_to_go_on(changed(again, {key: value})), capsys.readouterr().out
    assert ("training goes on" in told) == goes_on and (f"does not go on, as {key} changed" in told) != goes_on
    if not goes_on:
        aside, *_ = files
        assert re.fullmatch(r"last-\d{4}-\d\d-\d\d-\d{6}-\d{6}.pth", aside) and f"it is kept as {aside}," in told
        interrupted(monkeypatch, changed(again, {key: value}), 2)  # it leaves a run of its own, which is put aside, too
        assert (again.checkpoints_path / aside).read_bytes() == before and capsys.readouterr()
        files, told = told_to_go_on(again), capsys.readouterr().out
        assert len(files) == 3 and aside not in files and f"{aside}: a run that was stopped after epoch 2" in told
    assert (again.checkpoints_path / "last.pth").read_bytes() == before


def test_a_run_goes_on_where_the_project_and_its_images_have_moved(alone, tmp_path, monkeypatch, capsys):
    torch.save(SiameseNetwork("Conv4").backbone.state_dict(), tmp_path / "weights.pth")
    shutil.copytree(alone["random weights"].data_path, tmp_path / "images")
    keys = {"data_path": "images", "weights": "weights.pth", "image.cover": "cover.csv"}
    table = prepare_split(alone["random weights"])[0]
    cover = f"file,top,bottom,left,right\n{table.file[table.split == 'train'].iloc[0]},0,9,0,"
    (tmp_path / "cover.csv").write_text(cover + "9")
    start = changed(elsewhere(alone["random weights"], tmp_path), {"hyperparameters.head_steps": 9})
    start = changed(start, {key: tmp_path / name for key, name in keys.items()})
    interrupted(monkeypatch, start, 3)
    keys["checkpoints_path"] = "again"
    for name in keys.values():
        (tmp_path / name).rename(tmp_path / f"moved {name}")
    moved = changed(start, {key: tmp_path / f"moved {name}" for key, name in keys.items()})
    moved = changed(moved, {"outputs_path": tmp_path / "outputs"})
    for write, words in (
        (lambda: None, "training goes on from there"),
        (lambda: moved.image.cover.write_text(cover + "8"), "does not go on, as image.cover changed"),
        (lambda: moved.image.cover.write_text(cover + "9"), "training goes on from there"),
        (lambda: torch.save(SiameseNetwork("Conv4").backbone.state_dict(), moved.weights), "as weights changed"),
    ):
        write()
        told_to_go_on(moved)
        assert words in capsys.readouterr().out


def test_a_checkpoint_that_cannot_be_read_is_put_aside(alone, tmp_path, capsys):
    again = elsewhere(alone["random weights"], tmp_path)
    again.checkpoints_path.mkdir(parents=True)
    (again.checkpoints_path / "last.pth").write_bytes(b"cut off")
    (file,) = told_to_go_on(again)
    assert f"kept as {file}" in capsys.readouterr().out and (again.checkpoints_path / file).read_bytes() == b"cut off"


@needs_sigkill
def test_a_second_run_says_that_another_is_training_here_and_stops(alone, tmp_path, monkeypatch):
    again = elsewhere(alone["random weights"], tmp_path)
    with results.alone_in(again.checkpoints_path), pytest.raises(TrainingError, match="another run is training here"):
        monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("it trained"))
        train(again)
    assert exit_code(dying.training, again, "step", 6) == KILLED
    with results.alone_in(again.checkpoints_path):  # what was killed keeps nobody out
        pass


@pytest.mark.parametrize("change", ["pixels", "label", "new"])
def test_a_changed_image_starts_from_the_beginning_and_is_named(alone, tmp_path, monkeypatch, capsys, change):
    again = elsewhere(alone["random weights"], tmp_path)
    interrupted(monkeypatch, again, 3)
    capsys.readouterr()
    table = prepare_split(again)[0]
    row = table.index[table.split == "train"][0]
    name, image = table.file[row], again.data_path / table.file[row]
    before = image.read_bytes()
    if change == "pixels":
        image.write_bytes((again.data_path / table.file[table.split == "valid"].iloc[0]).read_bytes())
    elif change == "label":
        table.loc[row, "label"] = table.label[table.label != table.label[row]].iloc[0]
    else:
        table = table.drop(row)
    told_to_go_on(again, table)
    image.write_bytes(before)
    assert f"does not go on, as {name} changed" in capsys.readouterr().out
