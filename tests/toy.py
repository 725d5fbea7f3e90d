"""A network known by hand, in which two patches of an image decide; and a small real one."""

from types import SimpleNamespace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from utils.Siamese import SiameseNetwork

H, W = SIZE = (24, 40)
A, B = (slice(8, 12), slice(20, 24)), (slice(0, 4), slice(0, 4))  # the toy network's patches, 16 pixels each


def boxes(*pixels, size=SIZE):
    """One map or mask, 1 at the given (row, column) or slices, shape (1, H, W)."""
    maps = torch.zeros(1, *size)
    for pixel in pixels:
        maps[0][pixel] = 1
    return maps


class Toy(SiameseNetwork):
    """z = mean red of patch A + mean red of patch B, a number; margin 2, so a pair is similar if closer than 1."""

    def __init__(self):
        super().__init__("Conv4", image_size=SIZE)
        self.seen = []

    def embed(self, batch):
        self.seen.append(len(batch))
        return (batch[:, 0, A[0], A[1]].mean((1, 2)) + batch[:, 0, B[0], B[1]].mean((1, 2)))[:, None]


def toy_image(a, b):
    return torch.full((3, *SIZE), 0.3) + (a - 0.3) * boxes(A) + (b - 0.3) * boxes(B)


# A speaks for the decision, B against it. A similar pair, a dissimilar one, and one far beyond the margin:
IMAGES1 = torch.stack([toy_image(1.6, 0.2), toy_image(3, -1), toy_image(5, -1)])  # z = 1.8, 2, 4
IMAGES2 = torch.stack([toy_image(1.6, -0.2), toy_image(-1, 0.5), toy_image(-5, 1)])  # z = 1.4, -0.5, -4
MARGINS_BEFORE = [0.3, 0.75, 3.5]  # 0.5 - D / 2 with D = 0.4; D / 2 - 0.5 with D = 2.5 and 8
MARGINS_AFTER = {  # by blurring (to black) a patch of image 1, of image 2
    "A": [[-0.1, -0.5], [-0.25, 0.25], [1, 1]],  # D = 1.2, 2; 0.5, 1.5; 3, 3
    "B": [[0.4, 0.4], [1.25, 1], [4, 4]],  # D = 0.2, 0.2; 3.5, 3; 9, 9
    "all": [[-0.2, -0.4], [-0.25, 0.5], [1.5, 1.5]],  # D = 1.4, 1.8; 0.5, 2; 4, 4
    "elsewhere": [[0.3, 0.3], [0.75, 0.75], [3.5, 3.5]],
}
PATCHES = {"A": boxes(A), "B": boxes(B), "all": torch.ones(1, *SIZE), "elsewhere": boxes((slice(14, 22), slice(2, 10)))}


def maps_of(patch, n=3):
    return PATCHES[patch].expand(n, 2, *SIZE)


def explanation_of(factual, counterfactual):
    empty = torch.stack([factual.amax((2, 3)) == 0, counterfactual.amax((2, 3)) == 0], dim=2)
    return SimpleNamespace(factual=factual, counterfactual=counterfactual, empty=empty)


PAIRS = 4


def network_images(size=SIZE):
    return torch.randn(2, PAIRS, 3, *size, generator=torch.Generator().manual_seed(3)).unbind()


def trained_network(name="Conv4", size=SIZE, pooling="auto"):
    """A network with batch statistics as if trained, which takes half of the pairs for similar."""
    torch.manual_seed(0)
    model = SiameseNetwork(name, pooling=pooling, embedding_dim=5, image_size=size)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.embed(torch.cat(network_images(size)))
        model.eval()
        z1, z2 = (model.embed(images) for images in network_images(size))
        model.margin = 2 * float((z1 - z2).norm(dim=1).median() * 1.0001)
    for norm in norms:
        norm.momentum = 0.1
    return model


def naive_margins(regions):
    """Margins (N, 2) by loops: one image of each pair with its region blurred by scipy."""
    result = np.zeros((len(regions), 2))
    for n, side in np.ndindex(*result.shape):
        z = []
        for k, images in enumerate([IMAGES1, IMAGES2]):
            red = images[n, 0].double().numpy()
            if k == side:
                red = np.where(regions[n, side], gaussian_filter(red, 5, mode="mirror", radius=10), red)
            z.append(red[A].mean() + red[B].mean())
        distance = abs(z[0] - z[1])
        result[n, side] = 0.5 - distance / 2 if n == 0 else distance / 2 - 0.5
    return result
