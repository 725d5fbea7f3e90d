"""A trained network as one file of plain tensors and values, which runs no code when it is read."""

import io
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision

from utils.networks.backbones import brief
from utils.system.errors import ModelError
from utils.system.files import replacing

FORMER_TENSORS = ("mean_embedding", "blurred_features", "removable")  # in files of earlier versions


def write_checkpoint(
    path: str | Path, state_dict: dict[str, torch.Tensor], architecture: dict[str, Any], info: dict[str, Any]
) -> None:
    """Write a network to a file: its weights, the arguments that make it, and `info` about it (plain values only).

    Raises:
        UserError: the file cannot be written.
    """
    checkpoint = {
        "state_dict": {name: tensor.cpu() for name, tensor in state_dict.items()},
        "architecture": architecture,
        "info": info,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
    }
    whole = io.BytesIO()  # torch's own writer reports a full disk as an error of its own
    torch.save(checkpoint, whole)
    with replacing(path) as file:
        file.write_bytes(whole.getbuffer())


@contextmanager
def checkpoint_of(path: str | Path) -> Iterator[dict[str, Any]]:
    """Read what `write_checkpoint` wrote, with `weights_only=True`: the file cannot run code.

    An error inside the `with` is reported as one of the file.

    Raises:
        ModelError: no such file, or what is inside does not make a network.
    """
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        raise ModelError(f"{path}: not there yet; run 01_Train_Siamese_model.ipynb first")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for name in FORMER_TENSORS:
            checkpoint["state_dict"].pop(name, None)
        yield checkpoint
    except PermissionError:
        raise ModelError(f"{path}: no permission to read it; change the file's access rights") from None
    except Exception as error:
        # Torch's own words advise to switch its protection off.
        reason = "no file of plain tensors" if "weights_only" in str(error) else brief(error)
        raise ModelError(f"{path}: not a checkpoint of this project ({reason}); train again") from None
