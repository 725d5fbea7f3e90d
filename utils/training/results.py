"""The files of a training run, written after every epoch, so that the best network so far is always on disk; and what a
stopped run goes on from."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from utils.early_stopping import best_epoch
from utils.Siamese import SiameseNetwork
from utils.system.files import replacing, write_whole
from utils.system.settings import Config
from utils.training.model_card import write_model_card

HISTORY = ("epoch", "seconds", "train_loss", "valid_loss", "valid_accuracy", "valid_auc", "learning_rate")
# Settings that do not change the result; images that `on_bad_image` leaves out change the fingerprints.
IGNORED = {"hyperparameters.num_workers", "hyperparameters.verbose", "LRScheduler.verbose", "on_bad_image"}
IGNORED |= {"cache_gigabytes", "outputs_path", "compare_path"}


def unfinished(config: Config, data: dict[str, list]) -> dict[str, Any] | None:
    """Load the checkpoint `last.pth` of a stopped run; `None` if there is none, or if settings or images have changed.

    Prints whether the run goes on. Its batches may be smaller than configured, if memory ran out.

    Args:
        data: the fingerprints of today's images, as in `TrainingData`.
    """
    path = config.checkpoints_path / "last.pth"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        run = checkpoint["info"]["run"]
        batch_size = run["configured_batch_size"]
    except Exception:  # there is no file, the run has finished, or an earlier version wrote it
        return None
    settings = [checkpoint["info"]["config"], config.model_dump(mode="json")]
    before, now = (pd.json_normalize(each).to_dict("records")[0] for each in settings)  # keys such as image.size
    before["hyperparameters.batch_size"] = batch_size
    changed = [key for key in {**now, **before} if before.get(key) != now.get(key) and key not in IGNORED]
    changed = changed or [f for f in {**data, **run["data"]} if run["data"].get(f) != data.get(f)]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        print(f"{path}: a run that was stopped; training starts from the beginning, as {changed[0]}{others} changed")
        return None
    print(f"{path}: a run that was stopped after epoch {len(run['history'])}; training goes on from there")
    return checkpoint


class Results:
    """The files of a run: `model.pth` (best epoch), its model card `README.md`, `last.pth`, `history.csv`, `config.yml`
    and `split.csv`.

    Args:
        table: the split, of the images that could be read: `file`, `label`, `split`.
        first: the first epoch that may be the best, as in `best_epoch`.
        last: the epoch that is the best once it is reached, as in `best_epoch`.
    """

    def __init__(self, config: Config, table: pd.DataFrame, first: int, last: int | None) -> None:
        self.config, self.table, self.first, self.last = config, table, first, last
        self.folder = config.checkpoints_path
        self.history: list[dict[str, float]] = []  # a row per finished epoch
        self.best: dict[str, Any] = {}  # epoch, calibrated_threshold and state_dict of the best epoch so far
        self.written = 0  # number of epochs of which all files are written

    def frame(self) -> pd.DataFrame:
        """One row per finished epoch: the columns `HISTORY`."""
        return pd.DataFrame(self.history, columns=HISTORY)

    def keep(self, model: SiameseNetwork, threshold: float, run: dict[str, Any]) -> None:
        """Write the files of a finished epoch; those of the best network only if this epoch is the best so far.

        Args:
            threshold: calibrated on the validation pairs.
            run: the trainer's state; a stopped run goes on from it, the history and the best network.
        """
        best = best_epoch(self.frame(), self.first, self.last) == len(self.history)
        if best:
            state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            self.best = {"epoch": len(self.history), "calibrated_threshold": threshold, "state_dict": state}
        # First, because `restore` makes the other files from it.
        self.save("last.pth", model, threshold, run=run | {"history": self.history, "best": self.best})
        self.save_history()
        if best:
            self.save_best(model)
        self.written = len(self.history)

    def restore(self, model: SiameseNetwork, run: dict[str, Any], write: bool) -> None:
        """Go back to where a run was stopped.

        Its files are written again: it may have been killed between two of them, or another run has replaced them.
        """
        self.history, self.best, self.written = run["history"], run["best"], len(run["history"])
        if write:
            model.load_state_dict(self.best["state_dict"])
            self.save_history()
            self.save_best(model)

    def save_history(self) -> None:
        with replacing(self.folder / "history.csv") as file:
            self.frame().to_csv(file, index=False)

    def save_best(self, model: SiameseNetwork) -> None:
        # No network meets another one's test images, wherever a kill comes: a split that changes goes first.
        path, split = self.folder / "split.csv", self.table.to_csv(index=False, lineterminator="\n")
        if path.is_file() and path.read_bytes() != split.encode():
            path.unlink()
        self.save("model.pth", model, self.best["calibrated_threshold"])
        write_whole(path, split)
        with replacing(self.folder / "config.yml") as file:
            self.config.save(file)
        write_model_card(self.config, self.info(self.best["calibrated_threshold"]), self.table, self.frame())

    def save(self, name: str, model: SiameseNetwork, threshold: float, **info: Any) -> None:
        model.save(self.folder / name, **self.info(threshold), **info)

    def info(self, threshold: float) -> dict[str, Any]:
        """The plain values that are saved beside the weights."""
        return {
            "config": self.config.model_dump(mode="json"),
            "classes": sorted(set(self.table.label)),
            "calibrated_threshold": threshold,
            "epoch": self.best["epoch"],
        }

    def close(self) -> None:
        """Finish the run: its state is removed from `last.pth`, so the next run starts from the beginning."""
        last = SiameseNetwork.load(self.folder / "last.pth")
        last.save(self.folder / "last.pth", **{key: value for key, value in last.info.items() if key != "run"})
