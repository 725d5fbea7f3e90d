"""Images and folders to test with."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from utils.images.reading import SUFFIXES as READ_SUFFIXES
from utils.Siamese import SiameseNetwork
from utils.system.settings import Config

NETWORKS = {  # of timm, of every make, and image sizes that they take
    "vit_tiny_patch16_224": (64, 96),
    "vit_small_patch14_dinov2": (70, 84),
    "swin_tiny_patch4_window7_224": (64, 64),
    "convnext_atto": (64, 96),
    "resnet18": (64, 112),
    "densenet121": (32, 32),
}


def on_disk(name):
    """Of a name, the letters that files can have: not all under a locale other than UTF-8's."""
    encoding = sys.getfilesystemencoding()
    return name.encode(encoding, "ignore").decode(encoding)


HOSTILE = on_disk("</script><script>alert(1)</script>&amp;\"'<b>中国 🌼")  # a name
SUFFIXES = READ_SUFFIXES & Image.registered_extensions().keys()  # those that can be written, too
NEEDS_EMOJI = pytest.mark.skipif(not on_disk("\N{BLOSSOM}"), reason="no file can have this name under this locale")


def generator(seed=0):
    return np.random.default_rng(seed)


def noise(height=6, width=10, seed=0):
    return Image.fromarray(generator(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def picture(seed, size=(80, 60)):
    """A smooth picture of its own for every seed."""
    coarse = generator(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def make_files(root, names):
    """An image for every name; those whose suffix is no image's are text."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(seed=seed).save(path) if path.suffix.lower() in SUFFIXES else path.write_text("text")


def config_in(folder, **settings):
    """All paths are this folder, and there are no progress bars; `settings` come on top."""
    given = dict.fromkeys(("data_path", "checkpoints_path", "outputs_path"), folder)
    return Config(**given | {"dataset": "Mine", "hyperparameters": {"verbose": False}} | settings)


def colour_config(folder, results, **settings):
    """Of the classes in `colour_folder`, for a tiny network; `settings` come on top."""
    given = dict(
        dataset="Colours",
        data_path=folder,
        checkpoints_path=results / "c",
        outputs_path=results / "o",
        backbone_model="Conv4",
        image={"size": (16, 16)},
        test_size=0.2,
        valid_size=0.25,
    )
    return Config(**given | settings)


def break_file(path, share):
    noise(60, 60).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def near_duplicates_in(folder):
    """Classes a and b of 20 images each; a chain of three twins in a, two with conflicting labels, the rest alone."""
    make_files(folder, [f"{label}/x_{i}_{label}.png" for label in "ab" for i in range(20)])
    picture = noise(12, 16, seed=99)
    for index, name in enumerate(["a/x_0_a", "a/x_7_a", "a/x_13_a"]):
        picture.resize((64 << index, 48 << index), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    (folder / "b/x_5_b.png").write_bytes((folder / "a/x_5_a.png").read_bytes())


def photographs(folder, count, size=(120, 90)):
    """Parts of a photograph, each another one."""
    china, rng = Image.fromarray(load_sample_image("china.jpg")), generator()
    paths = [folder / f"{i:02}.jpg" for i in range(count)]
    for path in paths:
        left, top = (int(rng.integers(0, side - part)) for side, part in zip(china.size, size))
        china.crop((left, top, left + size[0], top + size[1])).save(path)
    return paths


def small_network(fit="stretch", size=(32, 48), margin=0.02):
    """Untrained; of these size and margin, it calls some photographs similar."""
    torch.manual_seed(0)
    network = SiameseNetwork("Conv4", embedding_dim=4, image_size=size, fit=fit).eval()
    network.margin = margin
    return network
