"""The files of a run, written after every epoch: the best network so far, and what a stopped run goes on from."""

from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from utils.early_stopping import best_epoch
from utils.images.folder import first_names
from utils.models import threshold_for
from utils.Siamese import SiameseNetwork
from utils.system.errors import TrainingError
from utils.system.files import replacing, write_whole
from utils.system.settings import Config
from utils.training.model_card import write_model_card

HISTORY = ("epoch", "seconds", "train_loss", "valid_loss", "valid_accuracy", "valid_auc", "learning_rate")
CALIBRATION = ("calibrated_threshold", "valid_embeddings", "valid_labels", "valid_features")  # of validation
# Settings that do not change the result, or by rounding alone. Other images, weights or covers have other fingerprints.
IGNORED = {"hyperparameters.num_workers", "hyperparameters.verbose", "LRScheduler.verbose", "device", "cuda", "gpu"}
IGNORED |= {"dataset", "data_path", "checkpoints_path", "outputs_path", "compare_path", "weights", "image.cover"}
IGNORED |= {"on_bad_image"}


def alone_in(folder: Path) -> AbstractContextManager:
    """Keep other runs out of a folder of results. When this process ends, however it ends, the system lets them in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock", mode=0o666).acquire(timeout=0)  # 666: another user may be the next
    except (Timeout, OSError) as error:  # a Timeout is an OSError, too
        busy = "another run is training here (start several processes by torchrun); wait until it ends, or"
        what = busy if isinstance(error, Timeout) else f"{error};"
        raise TrainingError(f"{folder}: {what} set another checkpoints_path") from None


def unfinished(config: Config, data: dict[str, list]) -> dict[str, Any] | None:
    """Find the stopped run of these settings and images, by their fingerprints `data`: its checkpoint, `last.pth`, or
    `None`. That of another stopped run is put aside, as `last-<date>.pth`, and found once its settings are back."""
    last = config.checkpoints_path / "last.pth"
    for path in [last, *sorted(last.parent.glob("last-*.pth"), reverse=True)]:
        if not path.exists():
            continue
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            if not (run := checkpoint["info"].get("run")):  # it has finished
                continue
            changed = _changed(run, config, data)
        except Exception:  # it is damaged, or an earlier version wrote it
            changed = ["the version of this project"]
        if not changed:
            path.replace(last)
            print(f"{path}: a run that was stopped after epoch {len(run['history'])}; training goes on from there")
            return checkpoint
        if path == last:
            written = datetime.fromtimestamp(path.stat().st_mtime)
            aside = path.replace(path.with_name(f"last-{written:%Y-%m-%d-%H%M%S-%f}.pth"))
            what = f"a run that was stopped does not go on, as {first_names(changed, 1)} changed"
            print(f"{path}: {what}; it is kept as {aside.name}, and goes on when you put that back")
    return None


def _changed(run: dict[str, Any], config: Config, data: dict[str, list]) -> list[str]:
    """The settings, or else the files, that are not those of a stopped run."""
    settings = (run["settings"], config.model_dump(mode="json"))
    before, now = (pd.json_normalize(each).to_dict("records")[0] for each in settings)  # keys as image.size
    keys = [key for key in {**now, **before} if before.get(key) != now.get(key) and key not in IGNORED]
    return keys or [file for file in {**data, **run["data"]} if run["data"].get(file) != data.get(file)]


class Results:
    """The files of a run: `model.pth` (best epoch), its model card `README.md`, `last.pth`, `history.csv`, `config.yml`
    and `split.csv`, the `table` of images that could be read; `first` and `last` are as in `best_epoch`."""

    def __init__(self, config: Config, table: pd.DataFrame, first: int, last: int | None) -> None:
        self.config, self.table, self.first, self.last = config, table, first, last
        self.folder = config.checkpoints_path
        self.history: list[dict[str, float]] = []  # a row per finished epoch
        self.best: dict[str, Any] = {}  # epoch, CALIBRATION and state_dict of the best epoch so far
        self.written = 0  # number of epochs of which all files are written

    def frame(self) -> pd.DataFrame:
        """One row per finished epoch: the columns `HISTORY`."""
        return pd.DataFrame(self.history, columns=HISTORY)

    def keep(self, model: SiameseNetwork, calibration: dict[str, Any], run: dict[str, Any] | None) -> None:
        """Write the files of a finished epoch; those of the best network only if this epoch is the best so far. `run`:
        the trainer's state, from which a stopped run goes on; `None`: the run ends here."""
        best = best_epoch(self.frame(), self.first, self.last) == len(self.history)
        if best:
            state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            self.best = {"epoch": len(self.history), **calibration, "state_dict": state}
        self.write(model if best else None)
        # Last, so that a run that is killed between two files goes on from the epoch before.
        info = self.info(calibration)
        model.threshold = threshold_for(self.config, info, model.margin)
        if run is not None:
            info["run"] = run | {"history": self.history, "best": self.best}
        model.save(self.folder / "last.pth", **info)
        self.written = len(self.history)

    def restore(self, model: SiameseNetwork, run: dict[str, Any], write: bool) -> None:
        """Go back to where a run was stopped. Its files are written again: it may have been killed between two of them,
        or another run has replaced them."""
        self.history, self.best = run["history"], run["best"]
        self.written = len(self.history)
        if write:
            model.load_state_dict(self.best["state_dict"])
            self.write(model)

    def write(self, best: SiameseNetwork | None) -> None:
        """Write the history and, if there is a new one, the best network with all that belongs to it."""
        with replacing(self.folder / "history.csv") as file:
            self.frame().to_csv(file, index=False)
        if best is None:
            return
        # No network meets another one's test images, wherever a kill comes: a split that changes goes first.
        path, split = self.folder / "split.csv", self.table.to_csv(index=False, lineterminator="\n")
        if path.is_file() and path.read_bytes() != split.encode():
            path.unlink()
        info = self.info(self.best)
        best.threshold = threshold_for(self.config, info, best.margin)
        best.save(self.folder / "model.pth", **info)
        write_whole(path, split)
        with replacing(self.folder / "config.yml") as file:
            self.config.save(file)
        write_model_card(self.config, info, self.table, self.frame())

    def info(self, calibration: dict[str, Any]) -> dict[str, Any]:
        """The plain values and tensors that are saved beside the weights."""
        classes = sorted(set(self.table.label[self.table.split == "train"]))
        kept = {key: calibration[key] for key in CALIBRATION if key in calibration}
        return {"config": self.config.model_dump(mode="json"), "classes": classes, "epoch": self.best["epoch"], **kept}
