"""Images that stay on disk until they are used."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch


class StoredImages:
    """N images on disk that are used like a uint8 tensor (N, 3, H, W): by length, slices and positions."""

    def __init__(self, pixels: np.ndarray, slots: np.ndarray, checksums: np.ndarray) -> None:
        """Image i is `pixels[slots[i]]` with CRC-32 `checksums[i]`; `pixels`, (M, 3, H, W), is mapped into memory."""
        self.pixels, self.slots, self.checksums = pixels, slots, checksums

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, positions: int | slice | Sequence[int] | np.ndarray) -> "StoredImages | torch.Tensor":
        """Take a slice, which stays on disk, or read the images at positions into a tensor."""
        if isinstance(positions, slice):
            return StoredImages(self.pixels, self.slots[positions], self.checksums[positions])
        return torch.from_numpy(np.take(self.pixels, self.slots[positions], axis=0))

    def __reduce__(self) -> tuple:
        """Pickle the path, not the pixels: another process, such as a worker of a DataLoader, maps the file itself."""
        return _mapped, (self.pixels.filename, self.pixels.shape, self.slots, self.checksums)

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Yield all images, at most `size` at a time; of none, as of a tensor, one empty part."""
        starts = range(0, max(1, len(self)), size)
        return (self[np.arange(start, min(start + size, len(self)))] for start in starts)


def _mapped(path: str, shape: tuple[int, ...], slots: np.ndarray, checksums: np.ndarray) -> StoredImages:
    return StoredImages(np.memmap(path, np.uint8, "r", shape=shape), slots, checksums)
