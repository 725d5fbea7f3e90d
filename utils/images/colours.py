"""Brightness, contrast, saturation and hue of a batch of images, as in torchvision's ColorJitter.

Every function takes float images (N, 3, H, W) on a scale of 0 to 255 and a factor per image, (N, 1, 1, 1), and gives
new images on the same scale. Nothing is rounded in between.
"""

from __future__ import annotations

import torch

GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue in torchvision's greyscale image


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Every pixel times the factor."""
    return (images * factor).clamp_(0, 255)


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The distance from the mean grey of the image, times the factor."""
    grey = (images.mean((2, 3)) @ images.new_tensor(GREY)).view(-1, 1, 1, 1)
    return (images * factor).add_((1 - factor) * grey).clamp_(0, 255)


def saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The distance from the grey of the pixel, times the factor."""
    red, green, blue = images.split(1, dim=1)
    grey = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    return (images * factor).add_(grey.mul_(1 - factor)).clamp_(0, 255)


def hue(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The hue of HSV, turned by the factor, a share of the whole circle in [-0.5, 0.5].

    With `low` and `high` the least and the greatest of red, green and blue, the hue t in [0, 1) is
    `(high - low + green + blue - red - low) / (6 (high - low))`, its negative where green < blue. A hue t is red
    `high - (high - low) clamp(2 - 6 |t - 1/2|, 0, 1)`, and green and blue
    `low + (high - low) clamp(2 - 6 |t - c|, 0, 1)` with c = 1/3 and 2/3. So no pixel has to be sorted into a sixth of
    the circle, as in the textbook's formulas, to which these are equal.
    """
    red, green, blue = images.split(1, dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    spread = (high - low).clamp_(min=1e-6)  # grey pixels have any hue
    turn = (green + blue).sub_(red).sub_(low).add_(spread)
    spread.mul_(6)
    turn.div_(spread)
    turn = torch.copysign(turn, green - blue).add_(factor)
    turn.sub_(turn.floor())
    turned = torch.empty_like(images)
    for channel, (base, centre, sign) in enumerate(((low, 1 / 2, 1), (high, 1 / 3, -1), (high, 2 / 3, -1))):
        # 2 - 6 |t - c| clamped to [0, 1] is 2 - 6 times |t - c| clamped to [1/6, 1/3].
        ramp = (turn - centre).abs_().clamp_(1 / 6, 1 / 3)
        start = torch.sub(base, spread, alpha=sign / 6)
        torch.addcmul(start, ramp, spread, value=sign, out=turned[:, channel : channel + 1])
    return turned
