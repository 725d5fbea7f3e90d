"""Several processes that train one network together, on one machine or more, started by torchrun.

Each embeds its share of a batch and gets the embeddings of all, so pairs are formed as in one process. Each computes
the loss of the whole batch, with gradients by its own embeddings alone; summed over processes they are those of the
batch. DistributedDataParallel would exchange them within the backward pass: there, a process whose memory runs out
leaves the others waiting for ever.
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

from utils.system.errors import TrainingError
from utils.system.machine import is_out_of_memory

T = TypeVar("T")
# Other launchers' numbers of processes: of Open MPI, of MPICH and Intel MPI, of srun.
OTHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


class Processes:
    """This process's number among those that train together, and what they exchange; alone, nothing happens."""

    def __init__(self, number: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.number, self.count, self.device = number, count, device
        self.first = number == 0  # the one that writes and prints
        self.interrupted = False

    def share(self, count: int) -> slice:
        """This process's positions among `count`; shares differ by one at most."""
        return slice(self.number * count // self.count, (self.number + 1) * count // self.count)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors, each where it was."""
        if self.count == 1:
            return tensor
        there = tensor.to(self.device, copy=True)
        dist.all_reduce(there)
        return there.to(tensor.device)

    def gather(self, own: torch.Tensor, count: int) -> torch.Tensor:
        """The rows of all processes, of which this one has its share of `count`; gradients flow to its own alone."""
        rows = own.new_zeros(count, *own.shape[1:])
        rows[self.share(count)] = own.detach()
        rows = self.sum(rows)
        rows[self.share(count)] = own
        return rows

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Give parameters the sum of all processes' gradients; a process with an empty share has none of its own."""
        if self.count > 1:
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
            total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for parameter, part in zip(parameters, total.split([p.numel() for p in parameters])):
                parameter.grad = part.view(parameter.shape)

    def from_first(self, value: Any) -> Any:
        """The first process's value, of plain values and tensors."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def attempt(self, compute: Callable[[], T]) -> T:
        """What `compute` gives. If memory runs out in one process, or one is interrupted, that is raised in all."""
        if self.count == 1:
            return compute()
        result, full = None, False
        try:
            result = compute()
        except RuntimeError as error:
            full = is_out_of_memory(error)
            if not full:
                raise
        full, interrupted = self.sum(torch.tensor([full, self.interrupted]).float()).tolist()
        if interrupted:
            raise KeyboardInterrupt
        if full:
            raise RuntimeError("out of memory in one of the processes")
        return result


@contextmanager
def together(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun has started, inside; only the first one prints, and an interrupt waits for the end of
    an `attempt`.

    Raises:
        TrainingError: another launcher has started several processes.
    """
    others = [f"{name}={os.environ[name]}" for name in OTHERS if os.environ.get(name, "") not in ("", "0", "1")]
    if others and "WORLD_SIZE" not in os.environ:
        raise TrainingError(
            f"{others[0]}: each of these processes would train a network of its own; "
            "start them with torchrun (docs/commands.md, Several GPUs)"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The first one may take its time over the data; a process that dies is torchrun's business, not a time limit's.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    processes = Processes(dist.get_rank(), dist.get_world_size(), device)
    before = signal.signal(signal.SIGINT, lambda *_: setattr(processes, "interrupted", True))
    try:
        with nullcontext() if processes.first else redirect_stdout(io.StringIO()):
            yield processes
    finally:
        signal.signal(signal.SIGINT, before)
        dist.destroy_process_group()
