"""A trained network as an ONNX file, for programs without PyTorch."""

import json
import warnings
from pathlib import Path

import torch
from torch import nn

from utils.images.frame import mean_colour
from utils.networks.backbones import eval_mode
from utils.system.errors import ModelError
from utils.system.files import replacing


class _FromPixels(nn.Module):
    """Embeds images given as pixels, which it normalises itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.embed((images.float() / 255 - self.model.mean) / self.model.std)


def export_onnx(model: nn.Module, path: str | Path) -> None:
    """Write a `SiameseNetwork` as ONNX: `images`, uint8 RGB (N, 3, H, W) of the network's size -> `embeddings` (N, D).

    The file's metadata hold what a decision needs beside the embeddings, each as JSON: two images are similar if
    `||z1 - z2|| / margin < threshold`. Raises a ModelError if the packages that write ONNX are missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise ModelError(f"export: {error.name} is missing; run: pip install onnx onnxscript") from None
    example = torch.zeros(2, 3, *model.image_size, dtype=torch.uint8, device=model.mean.device)
    facts = {"margin": model.margin, "threshold": model.threshold, "image_size": model.image_size}
    # As Pillow's BILINEAR resizes; another way makes an image dissimilar to itself.
    facts |= {"fit": model.frame.fit, "filter": "bilinear", "antialias": True}
    facts |= {"fill": mean_colour(model.frame.mean)} if model.frame.fit == "pad" else {}
    facts |= {"levels": model.frame.levels} if model.frame.levels else {}  # which are 0 and 255, of more than 8 bits
    facts |= {key: model.info[key] for key in ("calibrated_threshold", "classes") if key in model.info}
    with replacing(path) as file, eval_mode(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        names = {"input_names": ["images"], "output_names": ["embeddings"], "dynamo": True, "verbose": False}
        count = {"images": {0: torch.export.Dim("count")}}
        written = torch.onnx.export(_FromPixels(model).eval(), (example,), dynamic_shapes=count, **names).model_proto
        onnx.helper.set_model_props(written, {key: json.dumps(value) for key, value in facts.items()})
        onnx.save(written, file)
