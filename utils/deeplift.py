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
    """Within it, a network passes back slopes from a reference, the last element of its batch, instead of derivatives.

    Where a nonlinearity f meets x, and meets r in the reference, its derivative is replaced by `(f(x) - f(r)) / (x - r)`
    (Shrikumar et al., 2017, section 3.5.2; 0 where x = r). Gradients become DeepLIFT's multipliers, and what they give to the
    elements of the input adds up: `sum (dz/dx) (x - r) = z(x) - z(r)`, exactly where everything else in the network is linear or
    a maximum over places that are alike in the reference. Products (squeeze-and-excitation) keep their derivative.

    Example:
        >>> with RescaleRule():
        ...     z = network(torch.cat([x, reference]))[:-1]  # x (N, ...), reference (1, ...)
        >>> (multipliers,) = torch.autograd.grad(z, x, direction)
    """

    def __torch_function__(self, function: Callable, types: Any, arguments: tuple = (), options: dict | None = None) -> Any:
        options = options or {}
        if function is F.batch_norm and not options["training"] and options["weight"] is not None:
            return _normalise(*arguments, options["weight"], options["bias"], options["eps"])
        if function not in NONLINEAR:
            return function(*arguments, **options)
        x, *rest = arguments
        options.pop("inplace", None)
        return _Secant.apply(x, lambda inputs: function(inputs, *rest, **options))


class _Secant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        y = function(x)
        ctx.save_for_backward((y - y[-1:]).div_(x - x[-1:]).nan_to_num_(0, 0, 0))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def _normalise(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Batch normalisation with fixed statistics as the product and sum that it is: PyTorch's backward pass for it is slower."""
    with torch.no_grad():
        scale = weight * (variance + eps).rsqrt()
        shift = torch.addcmul(bias, mean, scale, value=-1)
    return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1))
