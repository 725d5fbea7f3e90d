"""What an explanation costs, in one run beside its peers: by gradients, as a multiple of one backbone forward pass of
the two images; by occlusion, in seconds.

pip install -r benchmarks/requirements.txt
python -m benchmarks.explain
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, Occlusion
from pytorch_grad_cam import GradCAM
from torch import nn
from xaitk_saliency.impls.perturb_image.sliding_window import SlidingWindow

from benchmarks.common import about_computer, best_seconds, seconds
from benchmarks.peers import saliency
from utils.explain.occlusion import region_effects
from utils.Grad_CAM import explain, explain_effects
from utils.networks.backbones import TimmNetwork
from utils.Siamese import SiameseNetwork
from utils.system.machine import keep_freed_memory

BACKBONES = ("EfficientNetLite0", "MobileNet", "ResNet50", "vit_tiny_patch16_224", "vit_small_patch16_224")


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
    last = model.backbone[-1]
    if isinstance(last, TimmNetwork):  # of a vision transformer
        options = {"reshape_transform": lambda tokens: model.backbone.as_map(tokens)}
        method = GradCAM(model=wrapped, target_layers=[last.model.blocks[-1].norm1], **options)
    else:
        method = GradCAM(model=wrapped, target_layers=[last])

    def run(batch1, batch2):
        both = torch.cat([batch1, batch2])
        with torch.no_grad():
            wrapped.partner = model.embed(both).roll(len(batch1), 0)
        return [
            method(input_tensor=both, targets=[lambda output, s=sign: s * output.sum()] * len(both)) for sign in (1, -1)
        ]

    return run


def other_occlusions(model: SiameseNetwork, batch1: torch.Tensor, batch2: torch.Tensor) -> dict[str, Callable]:
    """Captum's Occlusion and xaitk-saliency's SBSM by 9 x 9 windows of a quarter of the side, both images of one pair,
    each for this partner."""
    wrapped, side = DistanceToPartner(model), batch1.shape[-1]
    window, step = side // 4, (side - side // 4) // 8
    ends, slide = ((batch1, batch2), (batch2, batch1)), SlidingWindow((window, window), (step, step))
    windows = {"sliding_window_shapes": (3, window, window), "strides": (3, step, step)}

    def captum() -> None:
        for image, partner in ends:
            with torch.no_grad():
                wrapped.partner = model.embed(partner)
                Occlusion(wrapped).attribute(image, target=0, perturbations_per_eval=32, **windows)

    return {
        "captum Occlusion": captum,
        "xaitk-saliency SBSM": lambda: [saliency(model, image[0], partner[0], slide) for image, partner in ends],
    }


def occlusion_costs(backbone: str, many: int) -> None:
    """Seconds of one pair, with the number of embeddings that this takes, of a further pair of known images, and of all
    pairs of `many` images."""
    torch.manual_seed(0)
    model = SiameseNetwork(backbone).eval()
    one, two = torch.randn(2, 1, 3, 224, 224).unbind()
    embedded: list[int] = []  # ours computes earlier blocks in part only
    hook = model.pooling.register_forward_hook(lambda module, inputs, output: embedded.append(len(output)))
    runs = {"occlusion (ours)": lambda: explain(model, one, two)} | other_occlusions(model, one, two)
    counts = {}
    for name, run in runs.items():
        embedded.clear()
        run()
        counts[name] = sum(embedded)
    hook.remove()
    for name, run in runs.items():
        took = best_seconds(run)
        print(f"{backbone:<22} {name:<20} {counts[name]:>10} {took:>8.2f} {1000 * took / counts[name]:>8.1f}")
    effects = region_effects(model, torch.cat([one, two]))
    further = best_seconds(lambda: effects.maps([0], [1]))
    drawn = best_seconds(lambda: explain_effects(model, effects, [0], [1], (224, 224)))
    print(f"{backbone:<22} a further pair: {1000 * further:.2f} ms, drawn at 224 px {1000 * drawn:.2f} ms")
    images, pairs = torch.randn(many, 3, 224, 224), torch.combinations(torch.arange(many))
    start = time.perf_counter()
    effects = region_effects(model, images)
    measured = time.perf_counter() - start
    mapped = seconds(lambda: [effects.maps(*part.T) for part in pairs.split(64)])
    print(f"{backbone:<22} all {len(pairs)} pairs of {many} images: {measured:.1f} s for the images, {mapped:.1f} more")


def gradient_costs(backbone: str, count: int) -> None:
    """Multiples of one backbone forward pass of both images, `count` pairs at once."""
    torch.manual_seed(0)
    model = SiameseNetwork(backbone).eval()
    both = torch.randn(2 * count, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    pairs = both.split(count)
    runs = {"distance": lambda: explain(model, *pairs, "distance")}
    whole = getattr(model.backbone[-1], "model", None)  # of timm, if it does not run block by block
    if whole is None or hasattr(whole, "blocks"):
        grad_cam = grad_cam_maps(model)
        runs["grad-cam"] = lambda: grad_cam(*pairs)
    if whole is None:
        captum = captum_maps(model)
        runs |= {"public": lambda: public_procedure(model, *pairs), "captum": lambda: captum(*pairs)}
    unit = best_seconds(torch.no_grad()(lambda: model.backbone(both)))
    multiples = (f"{name} {best_seconds(run) / unit:.2f}x" for name, run in runs.items())
    print(f"{backbone:<22} {count:>5} {1000 * unit:>10.1f} ", *multiples, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="names of backbones")
    parser.add_argument("--images", type=int, default=100, help="of which all pairs are explained")
    arguments = parser.parse_args()
    keep_freed_memory()  # for all alike
    print(f"both images of a pair, 224 x 224 pixels; {about_computer()}")
    print(f"{'backbone':<22} {'pairs':>5} {'forward ms':>10}  multiples of it")
    for backbone in arguments.backbones:
        for count in (1, 8):
            gradient_costs(backbone, count)
    print(f"\n{'backbone':<22} {'one pair':<20} {'embeddings':>10} {'seconds':>8} {'ms each':>8}")
    for backbone in arguments.backbones:
        occlusion_costs(backbone, arguments.images)


if __name__ == "__main__":
    main()
