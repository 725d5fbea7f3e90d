"""Several processes that train one network together, on one machine or more, started by torchrun.

Every process draws the same batches from the same generators, augments and embeds its own share of each, and gets the
embeddings of all: so pairs are formed across processes, as in one. Batch normalisation in training mode takes its
statistics from a process's own share; in fine-tuning they stay, and the network is that of one process, to rounding.

torch.distributed by itself: gradient caching needs sums of tensors before and after the backward pass, for which
Hugging Face accelerate's wrapped networks and optimizers have no place; and processes on CPUs, which accelerate takes
for single ones unless it is told otherwise, cannot train a network each unnoticed.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from utils.machine import TrainingError, is_out_of_memory

T = TypeVar("T")
# Other launchers' numbers of processes, each of which would train alone: of Open MPI, of MPICH and Intel MPI, of srun.
OTHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


class Processes:
    """This process's number among those that train together, and what they exchange; alone, nothing happens."""

    def __init__(self, number: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.number, self.count, self.device = number, count, device
        self.interrupted = False  # this process, inside of `interrupts_together`

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.number == 0

    def share(self, count: int) -> range:
        """This process's positions among `count`; shares differ by one at most."""
        return range(self.number * count // self.count, (self.number + 1) * count // self.count)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors, on this one's device."""
        if self.count > 1:
            there = tensor.to(self.device, copy=True)
            dist.all_reduce(there)
            return there.to(tensor.device)
        return tensor

    def gather(self, tensor: torch.Tensor, count: int) -> torch.Tensor:
        """The rows that all processes have for their shares of `count`, where this one's are, on every process."""
        if self.count == 1:
            return tensor
        rows = tensor.new_empty(count, *tensor.shape[1:])
        for number in range(self.count):  # one at a time: a card need not hold them all
            share = Processes(number, self.count).share(count)
            if not share:
                continue
            there = rows[share.start : share.stop].to(self.device)
            if number == self.number:
                there.copy_(tensor)
            dist.broadcast(there, number)
            rows[share.start : share.stop] = there
        return rows

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Give parameters the sum of all processes' gradients; a process with an empty share has none of its own."""
        if self.count == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, part in zip(parameters, total.split([p.numel() for p in parameters])):
            parameter.grad = part.view(parameter.shape)

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Give all processes the mean of each of their tensors."""
        if self.count > 1:
            for tensor in tensors:
                tensor.copy_(self.sum(tensor) / self.count)

    def from_first(self, value: Any) -> Any:
        """The first process's value, of plain values and tensors."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def check_same_images(self, checksum: int) -> None:
        """
        Raises:
            TrainingError: this process has other images than the first.
        """
        if checksum != self.from_first(checksum):
            raise TrainingError(
                f"process {self.number} has other images than the first; copy the data to every machine, or share them"
            )

    @contextmanager
    def interrupts_together(self) -> Iterator[None]:
        """Inside, an interrupt of one process waits for the end of an `attempt`, and is then one in all of them: left
        alone at different places, they would wait for each other."""
        if self.count == 1:
            yield
            return

        def remember(*_: object) -> None:
            self.interrupted = True

        before = signal.signal(signal.SIGINT, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def attempt(self, compute: Callable[[], T]) -> T:
        """What `compute` gives; running out of memory in one process is an error in all of them, so that they try
        again together.

        Raises:
            RuntimeError: out of memory in one of them.
            KeyboardInterrupt: an interrupt of one of them, inside of `interrupts_together`.
        """
        if self.count == 1:
            return compute()
        result = None
        try:
            result = compute()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        failed, interrupted = self.sum(torch.tensor([result is None, self.interrupted]).float()).tolist()
        if interrupted:
            raise KeyboardInterrupt
        if failed:
            raise RuntimeError("out of memory in one of the processes")
        return result


def refuse_other_launchers() -> None:
    """
    Raises:
        TrainingError: another launcher than torchrun has started several processes, each of which would train a network
            of its own.
    """
    for name in OTHERS:
        if os.environ.get(name, "1") not in ("", "0", "1"):
            raise TrainingError(
                f"{name}={os.environ[name]}: each of these processes would train a network of its own; "
                "start them with torchrun (docs/commands.md, Several GPUs)"
            )


@contextmanager
def together(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun has started, ready to exchange tensors inside; only the first one prints.

    Raises:
        TrainingError: another launcher has started them.
    """
    if "WORLD_SIZE" not in os.environ:
        refuse_other_launchers()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The first one may take its time over the data; a process that dies is the launcher's business, not a time limit's.
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))
    try:
        processes = Processes(dist.get_rank(), dist.get_world_size(), device)
        with nullcontext() if processes.first else redirect_stdout(io.StringIO()):
            yield processes
    finally:
        dist.destroy_process_group()
