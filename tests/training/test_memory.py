"""When memory runs out, batches are halved."""

import pytest
import torch
from trainers import before_epochs, stop_at

from utils.Siamese import SiameseNetwork
from utils.system.errors import TrainingError
from utils.training import train
from utils.training.loop import Trainer
from utils.training.phases import FineTuning

LIKE_A_CARD, LIKE_A_CPU = "CUDA out of memory. Tried ...", "DefaultCPUAllocator: can't allocate memory"


@pytest.fixture
def memory(monkeypatch):
    """Limit the images of a training step, from this epoch on, and those of other passes, `evaluated`."""

    def hold(images, epoch=1, evaluated=100, error=LIKE_A_CARD):
        embed_batch, backbone, now = FineTuning.embed_batch, SiameseNetwork.normalize, []

        def embed(self, batch):
            if len(batch) > images and now[-1] >= epoch:
                raise RuntimeError(error)
            return embed_batch(self, batch)

        def normalize(self, batch):
            if len(batch) > evaluated:
                raise RuntimeError(error)
            return backbone(self, batch)

        monkeypatch.setattr(FineTuning, "embed_batch", embed)
        monkeypatch.setattr(SiameseNetwork, "normalize", normalize)
        before_epochs(monkeypatch, lambda trainer, epoch: now.append(epoch))
        return now

    return hold


@pytest.mark.parametrize("error", [LIKE_A_CARD, LIKE_A_CPU])
def test_batches_are_halved_until_they_fit_and_a_line_says_so(config, tmp_path, memory, capsys, error, monkeypatch):
    one_cycle = {"LRScheduler": {"name": "OneCycle"}}
    smaller = config({"batch_size": 4}, checkpoints_path=tmp_path / "smaller", **one_cycle)
    expected, emptied = train(smaller).drop(columns="seconds"), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    memory(5, error=error)
    asked = config({"batch_size": 16}, **one_cycle)
    found = train(asked).drop(columns="seconds")
    told = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert [line.split(";")[0] for line in told] == [
        f"out of memory with hyperparameters.batch_size {size}" for size in (16, 8)
    ]
    assert "goes on with 4, from the last finished epoch; reduce image.size [16, 16]" in told[1]
    assert found.equals(expected) and emptied == [True, True]  # a card gives back what did not fit
    used, wanted = (SiameseNetwork.load(each.checkpoints_path / "model.pth") for each in (asked, smaller))
    assert all(map(torch.equal, used.state_dict().values(), wanted.state_dict().values()))
    assert used.info["config"]["hyperparameters"]["batch_size"] == 4
    assert "batch_size: 4" in (asked.checkpoints_path / "config.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("schedule", ["OneCycle", "ReduceLROnPlateau"])
def test_training_goes_on_after_the_last_finished_epoch_also_in_the_next_run(
    config, memory, monkeypatch, capsys, schedule
):
    """Memory runs out in the third epoch, and Ctrl-C is pressed in the fourth."""
    settings = config({"epochs": 4}, LRScheduler={"name": schedule})
    epochs = memory(4, epoch=3)
    with monkeypatch.context() as patch:
        before_epochs(patch, stop_at(4))
        stopped = train(settings)
    assert epochs == [1, 2, 3, 3] and stopped.epoch.tolist() == [1, 2, 3]
    capsys.readouterr()
    history, told = train(settings), capsys.readouterr().out
    assert "stopped after epoch 3; training goes on from there" in told and "out of memory" not in told
    assert epochs[-1] == 4 and history.epoch.tolist() == [1, 2, 3, 4] and history[:3].equals(stopped)
    if schedule == "OneCycle":  # 3 of 4 epochs are over, whatever their steps
        rates = history.learning_rate.to_numpy()
        assert rates[1] == rates.max() and rates[0] == pytest.approx(0.003 / 25) and rates[2] > 3 * rates[3] > 0


def test_epochs_of_the_head_stay_as_many_when_fine_tuning_needs_smaller_batches(config, weights, memory, capsys):
    epochs = memory(4)
    assert train(config({"head_steps": 6, "epochs": 2}, weights=weights)).epoch.tolist() == [1, 2, 3, 4, 5]
    assert epochs == [1, 2, 3, 4, 4, 5] and capsys.readouterr().out.count("out of memory") == 1


def test_features_of_the_frozen_backbone_are_computed_in_batches_that_fit(config, weights, memory, capsys):
    memory(100, evaluated=4)
    train(config({"head_steps": 3, "epochs": 0}, weights=weights))
    assert "goes on with 4, from" in capsys.readouterr().out


@pytest.mark.parametrize("pairs, smallest", [("batch", 4), ("sampled", 2)])
def test_where_no_batch_with_pairs_fits_the_keys_are_named(config, memory, pairs, smallest):
    memory(0)
    keys = rf"hyperparameters.batch_size \({smallest}\) or image.size \[16, 16\]"
    with pytest.raises(TrainingError, match=f"^out of memory; reduce {keys}$"):
        train(config(training_pairs=pairs))
    assert not (config().checkpoints_path / "last.pth").exists()


def test_an_error_that_is_not_about_memory_is_passed_on(config, monkeypatch):
    monkeypatch.setattr(Trainer, "run", lambda self: (_ for _ in ()).throw(RuntimeError("cuDNN error")))
    with pytest.raises(RuntimeError, match="^cuDNN error$"):
        train(config())
