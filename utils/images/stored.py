"""Images that stay on disk until they are asked for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch


class StoredImages:
    """Of a uint8 tensor (N, 3, H, W) on disk what training needs: its length, slices, and images at positions."""

    def __init__(self, pixels: np.ndarray, slots: np.ndarray, checksums: np.ndarray) -> None:
        """Image i is `pixels[slots[i]]`, and `checksums[i]` its CRC-32; `pixels` is mapped into memory."""
        self.pixels, self.slots, self.checksums = pixels, slots, checksums

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, positions: int | slice | Sequence[int] | np.ndarray) -> StoredImages | torch.Tensor:
        """A slice stays on disk, as a slice of a tensor is no copy; what is at positions is read, into a tensor."""
        if isinstance(positions, slice):
            return StoredImages(self.pixels, self.slots[positions], self.checksums[positions])
        return torch.from_numpy(np.take(self.pixels, self.slots[positions], axis=0))

    def __reduce__(self) -> tuple:
        """Another process, such as a worker of a DataLoader, maps the file itself."""
        return _mapped, (self.pixels.filename, self.pixels.shape, self.slots, self.checksums)

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """All images, at most `size` at a time; of none, as of a tensor, one empty part."""
        starts = range(0, max(1, len(self)), size)
        return (self[np.arange(start, min(start + size, len(self)))] for start in starts)


Images: TypeAlias = torch.Tensor | StoredImages


def _mapped(path: str, shape: tuple[int, ...], slots: np.ndarray, checksums: np.ndarray) -> StoredImages:
    return StoredImages(np.memmap(path, np.uint8, "r", shape=shape), slots, checksums)


def checksums(images: Images) -> list[int]:
    """The CRC-32 of each image's pixels."""
    if isinstance(images, StoredImages):
        return images.checksums.tolist()
    return [zlib.crc32(image.numpy().tobytes()) for image in images]
