"""Pooling: from a feature map to one vector of features, (N, C, h, w) -> (N, C)."""

import torch
from torch import nn
from torch.distributions import Normal


class GeM(nn.Module):
    """Generalised-mean pooling `(mean_hw A^p)^(1/p)` (Radenovic et al., 2018, Eq. 3): (N, C, h, w) -> (N, C)."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps = p, eps

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.float().clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)


class AveragePooling(nn.Module):
    """Mean over positions, the paper's pooling: (N, C, h, w) -> (N, C)."""

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.float().mean((2, 3))


class CentredPooling(AveragePooling):
    """Mean over positions, less what it is on average over a network's training images: (N, C, h, w) -> (N, C).

    Features are never negative, so any two images seem alike; without their mean, unrelated images are at a right
    angle. `norm` is the batch normalisation, followed by ReLU6, that makes the map: its shift and scale are the mean
    and standard deviation of what ReLU6 gets, taken as normally distributed.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        mean, std = norm.bias.detach(), norm.weight.detach().abs()
        self.register_buffer("mean", expected_excess(mean, std, 0.0) - expected_excess(mean, std, 6.0))

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return super().forward(activations) - self.mean


def expected_excess(mean: torch.Tensor, std: torch.Tensor, limit: float) -> torch.Tensor:
    """The mean of `max(y - limit, 0)` for normally distributed y, of the shape of `mean`."""
    above, normal = (mean - limit) / std, Normal(0.0, 1.0)
    return std * normal.log_prob(above).exp() + (mean - limit) * normal.cdf(above)
