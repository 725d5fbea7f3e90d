"""DeepLIFT's rescale rule: gradients that say what a difference from a reference did, not what the next small step would do."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

# Elementwise nonlinearities as torchvision's backbones, our pooling and our head call them.
NONLINEAR = {F.relu, F.hardtanh, F.silu, F.hardswish, F.hardsigmoid, F.gelu, torch.sigmoid, torch.Tensor.clamp, torch.Tensor.pow}


class RescaleRule(TorchFunctionMode):
    """Within it, a network passes back slopes from a reference instead of derivatives.

    Where a nonlinearity f met r on the reference and now meets x, its derivative is replaced by `(f(x) - f(r)) / (x - r)`
    (Shrikumar et al., 2017, section 3.5.2; 0 where x = r). Gradients become DeepLIFT's multipliers, and what they give to the
    elements of the input adds up: `sum (dz/dx) (x - r) = z(x) - z(r)`, exactly where everything else in the network is linear or
    a maximum over places that are alike in the reference. Products (squeeze-and-excitation) keep their derivative.

    Args:
        network: what will run within; each run must meet the same functions in the same order.
        reference: its input, of shape (1, ...) or that of the later input.

    Example:
        >>> with RescaleRule(network, reference):
        ...     z = network(x)
        >>> (multipliers,) = torch.autograd.grad(z, x, direction)
    """

    def __init__(self, network: Callable[[torch.Tensor], Any], reference: torch.Tensor) -> None:
        super().__init__()
        self.met: list[torch.Tensor] = []
        self.remaining = None
        with torch.no_grad(), self:
            network(reference)
        self.remaining = iter(self.met)

    def __torch_function__(self, function: Callable, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        options = options or {}
        if function not in NONLINEAR:
            return function(*arguments, **options)
        x, *rest = arguments

        def apply(inputs: torch.Tensor) -> torch.Tensor:
            return function(inputs.clone(), *rest, **options)  # some work in place

        if self.remaining is None:
            self.met.append(x)
            return apply(x)
        return _Secant.apply(x, next(self.remaining), apply)


class _Secant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, reference: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        y = function(x)
        ctx.save_for_backward(((y - function(reference)) / (x - reference)).nan_to_num_(0, 0, 0))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None
