"""Several processes that torchrun has started, on one machine or more, train one network together.

Each computes the loss of the whole batch from the embeddings of all, with gradients by those of its own share alone;
their sum is the gradient of the batch. DistributedDataParallel would sum within the backward pass, where a process that
runs out of memory would leave the others waiting for ever.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from utils.system.machine import is_out_of_memory


class Processes:
    """What the processes of one training run exchange. A single process exchanges nothing."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self.first = rank == 0  # which alone writes and prints

    def share(self, count: int) -> slice:
        """The positions among `count` that belong to this process; shares differ by one at most."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of the tensors of all processes, on the tensor's device."""
        if self.world_size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, own: torch.Tensor, count: int) -> torch.Tensor:
        """All `count` rows, from the share of each process; gradients flow to the own rows alone."""
        rows = own.new_zeros(count, *own.shape[1:])
        rows[self.share(count)] = own.detach()
        rows = self.sum(rows)
        rows[self.share(count)] = own
        return rows

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum the gradients of all processes, in place; a process with an empty share has none."""
        if self.world_size > 1:  # in one exchange
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for parameter, part in zip(parameters, total.split([p.numel() for p in parameters])):
                parameter.grad = part.view(parameter.shape)

    def from_first(self, value: Any) -> Any:
        """The value of the first process: plain values and tensors."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def attempt(self, compute: Callable[[], Any]) -> Any:
        """The result of `compute`. If one process runs out of memory, all processes raise that."""
        result, full = None, False
        try:
            result = compute()
        except RuntimeError as error:
            if not (full := is_out_of_memory(error)):
                raise
        if self.sum(torch.tensor(float(full))):
            raise RuntimeError("out of memory in one of the processes")
        return result


@contextmanager
def together(device: torch.device) -> Iterator[Processes]:
    """Connect the processes that torchrun has started; only the first prints, and shows progress bars."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun sets it
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # No time limit: the first process may read data for long, and torchrun ends the others when one dies.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    processes = Processes(dist.get_rank(), dist.get_world_size(), device)
    out, err = (sys.stdout, sys.stderr) if processes.first else (io.StringIO(), io.StringIO())
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield processes
    finally:
        dist.destroy_process_group()
