"""Decodes image files to pixels and fingerprints, in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from utils.images.duplicates import Fingerprint, fingerprint_of
from utils.images.frame import Frame, to_uint8
from utils.images.reading import read_image
from utils.system.errors import DataError

CHUNK_BYTES = 32 * 2**20  # of pixels that are decoded ahead

Decoded = tuple[np.ndarray, Fingerprint]


def decode(paths: Sequence[Path], frame: Frame, num_workers: int = 0, verbose: bool = True) -> Iterator[Decoded | str]:
    """Read image files in `num_workers` threads and fit them into a frame.

    Yields:
        For each path: pixels, uint8 (3, H, W), and fingerprint; or what is wrong with the file and what to do.
    """
    step = max(1, CHUNK_BYTES // (3 * frame.size[0] * frame.size[1]))
    with (
        ThreadPoolExecutor(max(1, num_workers)) as pool,
        tqdm(total=len(paths), desc="Reading images", disable=not verbose) as bar,
    ):
        for start in range(0, len(paths), step):
            for decoded in pool.map(lambda path: _decode(path, frame), paths[start : start + step]):
                bar.update()
                yield decoded


def _decode(path: Path, frame: Frame) -> Decoded | str:
    try:
        image = read_image(path)
        return to_uint8(image, frame).numpy(), fingerprint_of(path, image)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
