"""The optimizer and the learning-rate schedule of a configuration."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from utils.system.settings import Config


def make_optimizer(model: nn.Module, config: Config, rate: float | None = None) -> torch.optim.Optimizer:
    """The configured optimizer, for the parameters that are not frozen.

    Args:
        rate: learning rate; `None`: the configured one.
    """
    options = config.hyperparameters
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = {"lr": rate or options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "SGD":
        return torch.optim.SGD(parameters, momentum=options.momentum, nesterov=options.nesterov, **settings)
    return getattr(torch.optim, options.optimizer)(parameters, **settings)


def make_scheduler(optimizer: torch.optim.Optimizer, config: Config, steps: int) -> OneCycleLR | ReduceLROnPlateau:
    """The configured schedule of the learning rate.

    Args:
        steps: steps of an epoch.
    """
    options, peak = config.LRScheduler, optimizer.param_groups[0]["lr"]
    if options.name == "OneCycle":
        epochs = config.hyperparameters.epochs
        return OneCycleLR(optimizer, peak, epochs=epochs, steps_per_epoch=steps, cycle_momentum=False)
    return ReduceLROnPlateau(
        optimizer, mode="max", factor=options.factor, patience=options.patience, min_lr=options.min_lr
    )
