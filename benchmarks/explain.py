"""What an explanation costs, as a multiple of one backbone forward pass of the two images, in one run beside its peers.

pip install -r benchmarks/requirements.txt
python -m benchmarks.explain
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM
from torch import nn

from utils.Grad_CAM import explain
from utils.machine import keep_freed_memory
from utils.Siamese import SiameseNetwork

SETTINGS = [(backbone, batch) for backbone in ("MobileNet", "ResNet50") for batch in (1, 8)]


class DistanceToPartner(nn.Module):
    """One image -> D^2 to its partner's fixed embedding, (N, 1): what single-input explainers can take."""

    def __init__(self, model: SiameseNetwork) -> None:
        super().__init__()
        self.model, self.partner = model, None

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.model.embed(batch) - self.partner).square().sum(1, keepdim=True)


def public_procedure(model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor) -> None:
    """Two forward passes with full backward passes (factual, counterfactual); activations of both images computed again
    for each of the four maps. Pair by pair: it takes no batches."""
    for one, two in zip(batch1.split(1), batch2.split(1)):
        for sign in (1, -1):
            finals = [model.backbone(image) for image in (one, two)]
            finals[0].retain_grad()
            z1, z2 = (model.embed_features(final) for final in finals)
            (sign * (z1 - z2).norm()).backward()
            weights = finals[0].grad.mean((2, 3), keepdim=True)
            for image in (one, two):
                maps = (weights * model.backbone(image).detach()).mean(1, keepdim=True).clamp(min=0)
                F.interpolate(maps, size=image.shape[2:], mode="bilinear")
        model.zero_grad()


def captum_maps(model: SiameseNetwork) -> Callable:
    """Captum's LayerGradCam on the final map, each image against the other; the counterfactual is the negative part."""
    wrapped = DistanceToPartner(model)
    method = LayerGradCam(wrapped, model.backbone[-1])

    def run(batch1, batch2):
        both = torch.cat([batch1, batch2])
        with torch.no_grad():
            wrapped.partner = model.embed(both).roll(len(batch1), 0)
        maps = method.attribute(both, target=0)
        return [F.interpolate(part.clamp(min=0), size=batch1.shape[2:], mode="bilinear") for part in (maps, -maps)]

    return run


def grad_cam_maps(model: SiameseNetwork) -> Callable:
    """pytorch-grad-cam's GradCAM, likewise; it returns positive parts, so each sign is a run of its own."""
    wrapped = DistanceToPartner(model)
    method = GradCAM(model=wrapped, target_layers=[model.backbone[-1]])

    def run(batch1, batch2):
        both = torch.cat([batch1, batch2])
        with torch.no_grad():
            wrapped.partner = model.embed(both).roll(len(batch1), 0)
        return [
            method(input_tensor=both, targets=[lambda output, s=sign: s * output.sum()] * len(both)) for sign in (1, -1)
        ]

    return run


def seconds(run: Callable, least: float = 4.0) -> float:
    """Best time of repeated runs, the first left out: the least disturbed one."""
    run()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < least:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    keep_freed_memory()  # for all alike
    print(f"multiples of one backbone forward pass of all images, {torch.get_num_threads()} threads, 224 x 224 pixels")
    print(
        f"{'backbone':<10} {'pairs':>5} {'forward ms':>10} {'distance':>9} {'contrast':>9} {'public':>9} "
        f"{'captum':>9} {'grad-cam':>9}"
    )
    for backbone, count in SETTINGS:
        torch.manual_seed(0)
        model = SiameseNetwork(backbone).eval()
        batch1, batch2 = (
            torch.randn(count, 3, 224, 224).contiguous(memory_format=torch.channels_last) for _ in range(2)
        )

        both = torch.cat([batch1, batch2])
        captum, grad_cam = captum_maps(model), grad_cam_maps(model)
        unit = seconds(torch.no_grad()(lambda: model.backbone(both)))
        runs = [
            lambda: explain(model, batch1, batch2, "distance"),
            lambda: explain(model, batch1, batch2, "contrast"),
            lambda: public_procedure(model, batch1, batch2),
            lambda: captum(batch1, batch2),
            lambda: grad_cam(batch1, batch2),
        ]
        print(f"{backbone:<10} {count:>5} {1000 * unit:>10.1f}", *(f"{seconds(run) / unit:>8.2f}x" for run in runs))


if __name__ == "__main__":
    main()
