"""Explainable image similarity: Siamese networks and Grad-CAM."""
import ctypes
import os
import sys

# Before CUDA starts, so that `gpu: 0` in config.yml is the card that nvidia-smi calls 0.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

# glibc hands every large tensor back to the kernel when it is freed and faults it in anew: half of a CPU training step.
# Keeping up to 2 GiB for the next tensor makes training about twice as fast (benchmarks/memory.py).
if sys.platform == "linux":
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent where the C library is not glibc
    if mallopt:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
