"""DeepLIFT's rescale rule: gradients that say what a difference from a reference did, not what the next small step
would do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

# Elementwise nonlinearities as the backbones of torchvision and timm, our pooling and our head call them.
NONLINEAR = {
    F.relu,
    F.relu6,
    F.hardtanh,
    F.silu,
    F.hardswish,
    F.hardsigmoid,
    F.gelu,
    torch.sigmoid,
    torch.Tensor.sigmoid,
    torch.Tensor.clamp,
    torch.Tensor.pow,
}
BATCH_NORM = inspect.signature(F.batch_norm)


def from_reference(
    network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """`network(x)` for x (N, ...), whose gradients are DeepLIFT's multipliers from a reference (1, ...) of the same
    kind.

    Examples:
        >>> (multipliers,) = torch.autograd.grad(from_reference(network, x, reference), x, direction)
    """
    with RescaleRule():
        return network(torch.cat([x, reference]))[:-1]


class RescaleRule(TorchFunctionMode):
    """Within it, a network passes back slopes from a reference, the last element of its batch, instead of derivatives.

    Where a nonlinearity f meets x, and meets r in the reference, its derivative is replaced by `(f(x) - f(r)) / (x -
    r)` (Shrikumar et al., 2017, section 3.5.2; by 0, and not the derivative, where x = r: nothing differs that could be
    passed on). Gradients become DeepLIFT's multipliers, and what they give to the elements of the input adds up: `sum
    (dz/dx) (x - r) = z(x) - z(r)`. A product of two maps (squeeze-and-excitation), or of an embedding and its inverse
    length, shares its difference evenly between them. So the sum is exact in ResNet, MobileNet, EfficientNet, RegNet
    and DenseNet. All other functions keep their
    derivative: maxima over places that differ in the reference (VGG, GoogLeNet), layer normalisation (ConvNeXt). There
    the sum holds only roughly.
    """

    def __torch_function__(
        self, function: Callable, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        options = options or {}
        if function is F.batch_norm:  # torchvision and timm name other arguments of it
            given = BATCH_NORM.bind(*arguments, **options)
            given.apply_defaults()
            x, mean, variance, weight, bias, training, _, eps = given.args
            if not training and weight is not None and x.ndim == 4:
                return _normalise(x, mean, variance, weight, bias, eps)
        if function is torch.Tensor.mul and all(isinstance(x, torch.Tensor) and x.ndim in (2, 4) for x in arguments):
            return _product(*arguments)
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


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a b` with slopes `(b + b_r) / 2` and `(a + a_r) / 2`: together they give its difference from `a_r b_r`."""
    passed = a * ((b + b[-1:]) / 2).detach() + b * ((a + a[-1:]) / 2).detach()
    return passed + (a * b - passed).detach()


def _normalise(
    x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Batch normalisation of maps with fixed statistics as the product and sum that it is: PyTorch's backward pass for
    it is slow on many channels of few positions (ResNet50)."""
    with torch.no_grad():
        scale = weight * (variance + eps).rsqrt()
        shift = torch.addcmul(bias, mean, scale, value=-1)
    return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1))
