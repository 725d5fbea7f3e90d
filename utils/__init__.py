"""Explainable image similarity: Siamese networks and Grad-CAM."""

import os

# Before CUDA starts, so that `gpu: 0` in config.yml is the card that nvidia-smi calls 0.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
