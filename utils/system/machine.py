"""What a run asks of its machine: a device, a number format, memory, and random numbers that repeat."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.system.errors import ConfigError
from utils.system.settings import Config


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's global CPU generator, from which torchvision and fresh layers draw, seeded inside and as it was
    afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it reseeds the GPUs too
        yield


def choose_device(config: Config) -> torch.device:
    """The device of `device`, `cuda` and `gpu`; `auto` takes CUDA, then Apple's MPS, then the CPU. Of several processes
    that torchrun has started, each takes a card of its own, whatever `gpu` says.

    Raises:
        ConfigError: the device that was asked for is not there.
    """
    wanted, cards = config.device, torch.cuda.device_count() if config.cuda else 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # on this machine
    if wanted == "cuda" and not cards:
        raise ConfigError(
            "device: 'cuda' was asked for, but "
            + ("PyTorch sees no CUDA card; use device: auto" if config.cuda else "cuda: False forbids it")
        )
    if processes > 1 and wanted in ("auto", "cuda") and cards:
        if processes > cards:
            raise ConfigError(
                f"device: {processes} processes on a machine with {cards} CUDA card{'s' if cards > 1 else ''}; "
                "start as many as there are cards, or use device: cpu"
            )
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if processes > 1 and wanted == "mps":
        raise ConfigError("device: 'mps' trains in one process; use device: cpu")
    if wanted in ("auto", "cuda") and cards:
        if config.gpu >= cards:
            raise ConfigError(
                f"gpu: there is no card {config.gpu}; PyTorch sees {cards}, numbered from 0 as in nvidia-smi"
            )
        return torch.device("cuda", config.gpu)
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: 'mps' was asked for, but this machine has no Apple GPU; use device: auto")
    if wanted == "mps" or (wanted == "auto" and config.cuda and processes == 1 and torch.backends.mps.is_available()):
        return torch.device("mps")
    return torch.device("cpu")


def bfloat16_pays(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; elsewhere it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))
    return False


def keep_freed_memory() -> None:
    """Let glibc keep up to 2 GiB of freed memory for the next tensor (Linux; nothing elsewhere).

    It would hand every large tensor back to the kernel and fault the next one in page by page, which can cost as much
    as computing with it (docs/benchmarks.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or not."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)
