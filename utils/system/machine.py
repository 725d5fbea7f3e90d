"""What a run needs of its machine: random numbers that repeat, a device, a number format and memory."""

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
    """Seed PyTorch's global CPU generator, from which new layers draw, in a block, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it reseeds the GPUs too
        yield


def choose_device(config: Config) -> torch.device:
    """Choose the device that the settings `device`, `cuda` and `gpu` ask for; where torchrun has started several
    processes, each takes a card of its own. Raises a ConfigError if this machine does not have the device."""
    wanted, cards = config.device, torch.cuda.device_count() if config.cuda else 0
    # Processes on this machine; another launcher may have left its own numbers behind.
    several = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["LOCAL_WORLD_SIZE"]) > 1
    card = int(os.environ["LOCAL_RANK"]) if several else config.gpu
    apple = torch.backends.mps.is_available() and not several
    if wanted == "cuda" and not cards:
        reason = "PyTorch sees no CUDA card; use device: auto" if config.cuda else "cuda: False forbids it"
        raise ConfigError(f"device: 'cuda' was asked for, but {reason}")
    if wanted == "mps" and not apple:
        raise ConfigError("device: 'mps' needs an Apple GPU, and trains in one process; use device: auto")
    if wanted in ("auto", "cuda") and cards:
        if card >= cards:
            reason = "each process needs its own" if several else "numbered from 0 as in nvidia-smi"
            raise ConfigError(f"gpu: there is no card {card}; PyTorch sees {cards}, {reason}")
        return torch.device("cuda", card)
    if wanted == "mps" or (wanted == "auto" and config.cuda and apple):
        return torch.device("mps")
    return torch.device("cpu")


def bfloat16_pays(device: torch.device) -> bool:
    """Tell whether the hardware computes in bfloat16; where it is only emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))
    return False


def keep_freed_memory() -> None:
    """Let glibc (Linux) keep up to 2 GiB of freed memory for the next tensor. By default it returns every large tensor
    to the kernel and requests the next one page by page, which can take as long as computing with it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4  # names of options in glibc's malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)  # bytes


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error of PyTorch means that memory ran out, on a GPU or on the CPU."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)
