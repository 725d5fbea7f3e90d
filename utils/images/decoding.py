"""Decodes image files to pixels, and describes them by their fingerprints or otherwise, in threads."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from utils.images.duplicates import fingerprint_of
from utils.images.frame import Frame, to_uint8
from utils.images.reading import read_image
from utils.system.errors import DataError

CHUNK_BYTES = 32 * 2**20  # of pixels that are decoded ahead


def decode(
    paths: Sequence[Path],
    frame: Frame,
    num_workers: int = 0,
    verbose: bool = True,
    describe: Callable[[Path, Image.Image], Any] = fingerprint_of,
) -> Iterator[tuple[np.ndarray, Any] | str]:
    """Read image files in `num_workers` threads; yields for each its pixels in the frame, uint8 (3, H, W), and what
    `describe` tells of the file and its image, or what is wrong with it and what to do."""
    step = max(1, CHUNK_BYTES // (3 * frame.size[0] * frame.size[1]))
    with (
        ThreadPoolExecutor(max(1, num_workers)) as pool,
        tqdm(total=len(paths), desc="Reading images", disable=not verbose) as bar,
    ):
        for start in range(0, len(paths), step):
            for decoded in pool.map(lambda path: _decode(path, frame, describe), paths[start : start + step]):
                bar.update()
                yield decoded


def _decode(path: Path, frame: Frame, describe: Callable[[Path, Image.Image], Any]) -> tuple[np.ndarray, Any] | str:
    try:
        image = read_image(path, frame.levels)
        return to_uint8(image, frame).numpy(), describe(path, image)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
