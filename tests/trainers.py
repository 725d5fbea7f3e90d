"""Helpers for tests: start a small training run, make one batch, stop a run."""

import numpy as np

from utils.dataset import prepare_split
from utils.training.data import images_of
from utils.training.loop import Trainer

QUICK = {"epochs": 2, "batch_size": 8, "verbose": False, "num_workers": 0, "learning_rate": 0.003}


def started(config, epoch=1, processes=None):
    """A trainer that has started the phase of this epoch."""
    trainer = Trainer(config, prepare_split(config)[0], processes)
    trainer.start(epoch)
    return trainer


def first_batch(trainer, seed=0):
    """A batch, and the inputs that the phase makes of it."""
    rng = np.random.default_rng(seed)
    batch = trainer.data.batches(trainer.config, rng)[0]
    return batch, next(trainer.phase.inputs([images_of(batch)], 1, 0.0, rng))


def interrupted(monkeypatch, config, epoch):
    """Train until Ctrl-C is pressed in this epoch; returns the history."""
    run_epoch = Trainer.run_epoch

    def stop(self, number, bar):
        if number == epoch:
            raise KeyboardInterrupt
        return run_epoch(self, number, bar)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", stop)
        return Trainer(config, prepare_split(config)[0]).run()
