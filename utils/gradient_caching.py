"""Batches larger than memory: gradient caching (Gao et al., 2021, "Scaling deep contrastive learning batch size under
memory limited setup").

The loss of all pairs in a batch needs all its embeddings at once, but not their graphs. So images are embedded in
chunks without gradients; the loss then gives the gradient of every embedding; and a second pass embeds chunk by chunk
again, each followed by its own backward pass from those gradients. What is left are the gradients of the whole batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from utils.machine import is_out_of_memory, random_states, set_random_states
from utils.processes import Processes

T = TypeVar("T")
# Embeds the images of a batch from one position to another (excluded): where its rows belong among the batch's, (r,),
# and the rows, (r, D).
EmbedPart = Callable[[int, int], tuple[np.ndarray, torch.Tensor]]
Losses = tuple[torch.Tensor, torch.Tensor]
Objective = Callable[[torch.Tensor], Losses]


def batch_statistics(model: nn.Module) -> list[torch.Tensor]:
    """What batch normalisation in training mode counts."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm) and module.training)
    return [buffer for norm in norms for buffer in norm.buffers()]


class Moment:
    """What a forward pass changes beside its output, to be put back: random states and batch statistics."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device, self.states = device, random_states(device)
        self.buffers = [(buffer, buffer.clone()) for buffer in batch_statistics(model)]

    def restore(self) -> None:
        set_random_states(self.states, self.device)
        for buffer, before in self.buffers:
            buffer.copy_(before)


class GradientCache:
    """Takes batches through a network in one piece or, where memory asks for it, in chunks.

    Whenever memory runs out the chunk is halved, for all that follows, and the work is done again; the batch, its pairs
    and what was drawn for its images stay. Gradients are those of the batch in one piece, to rounding, provided that an
    image's embedding does not depend on what else is in its pass. In fine-tuning it does not. Batch normalisation in
    training mode, that is from random weights, takes its statistics from the chunk alone: there, chunks train a
    slightly different network, as smaller batches would. Dropout and stochastic depth draw the same in both passes, but
    for chunks not what they would draw for the batch in one piece.

    Of several processes each takes its share of a batch. The objective is that of all rows in each, and what is missing
    in the gradients are the other shares' parts: sum them. A share is to batch normalisation what a chunk is.
    """

    def __init__(self, model: nn.Module, device: torch.device, processes: Processes) -> None:
        self.model, self.device, self.processes = model, device, processes
        self.chunk = sys.maxsize  # images in one pass

    def fit(self, compute: Callable[[int], T], wanted: int) -> T:
        """`compute(size)` for as many images in one pass as memory holds, at most `wanted`.

        Raises:
            RuntimeError: out of memory, even with one image.
        """
        while True:
            size = min(self.chunk, wanted)
            try:
                return compute(size)
            except RuntimeError as error:
                if size <= 1 or not is_out_of_memory(error):
                    raise
            # Here, where no error holds on to what did not fit.
            self.chunk = size // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            tqdm.write(
                f"out of memory with {size} images at once; going on with {self.chunk} at once, batches as before"
            )

    def backward(self, embed: EmbedPart, count: int, shape: tuple[int, int], objective: Objective) -> Losses:
        """Set the network's gradients to those of a batch, or of this process's share of it.

        Args:
            embed: see `EmbedPart`; called twice for a chunk, it does the same if PyTorch's generators stand the same.
            count: of the batch's images.
            shape: (R, D) of the rows of all of them.
            objective: of the rows: what to minimise, and what to return of it.

        Returns:
            What `objective` gave as the second, and the rows, both detached.
        """
        before, share = Moment(self.model, self.device), self.processes.share(count)

        def compute(size: int) -> Losses:
            before.restore()
            self.model.zero_grad(set_to_none=True)
            parts = [(start, min(start + size, share.stop)) for start in range(share.start, share.stop, size)]
            one, passes = len(parts) == 1, []

            def first_pass() -> torch.Tensor:
                rows = torch.zeros(shape, device=self.device)
                for part in parts:
                    state = random_states(self.device)
                    with torch.set_grad_enabled(one):
                        places, embedded = embed(*part)
                    rows[places] = embedded.detach()
                    passes.append((part, state, places, embedded if one else None))
                return rows

            def second_pass() -> torch.Tensor:
                target, loss = objective(rows)
                target.backward()
                if not one:
                    before.restore()
                for part, state, places, embedded in passes:
                    if not one:
                        set_random_states(state, self.device)
                        _, embedded = embed(*part)
                    embedded.backward(rows.grad[places])
                return loss.detach()

            rows = self.processes.sum(self.processes.attempt(first_pass)).requires_grad_()
            return self.processes.attempt(second_pass), rows.detach()

        return self.fit(compute, -(-count // self.processes.count))
