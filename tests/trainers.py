"""Helpers for tests: start a small training run, make one batch, stop a run."""

import numpy as np

from utils.dataset import prepare_split
from utils.training.loop import Trainer

QUICK = {"epochs": 2, "batch_size": 8, "verbose": False, "num_workers": 0, "learning_rate": 0.003}


def started(config, epoch=1, processes=None):
    """A trainer that has started the phase of this epoch."""
    trainer = Trainer(config, prepare_split(config)[0], processes)
    trainer.start(epoch)
    return trainer


def first_batch(trainer, seed=0):
    """The positions of a batch, what the phase makes of it, and the random numbers that follow."""
    rng = np.random.default_rng(seed)
    batch = trainer.data.batches(rng, trainer.options.batch_size)[0]
    return batch, next(trainer.phase.inputs([batch], 1, 0.0, rng)), rng


def before_epochs(monkeypatch, act):
    """Do something before each epoch: `act(trainer, epoch)`."""
    run_epoch = Trainer.run_epoch
    monkeypatch.setattr(Trainer, "run_epoch", lambda self, k, bar: act(self, k) or run_epoch(self, k, bar))


def stop_at(epoch, error=KeyboardInterrupt):
    def act(trainer, number):
        if number == epoch:
            raise error

    return act


def interrupted(monkeypatch, config, epoch):
    """Train until Ctrl-C is pressed in this epoch; returns the history."""
    with monkeypatch.context() as patch:
        before_epochs(patch, stop_at(epoch))
        return Trainer(config, prepare_split(config)[0]).run()
