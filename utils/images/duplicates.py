"""Images that show the same picture: copies of a file, and pictures saved again, resized or recoloured.

A network that trained on one of them knows the other, so they must not be separated by a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from utils.images.reading import what_is_wrong
from utils.system.errors import DataError

# A hash of SIDE * SIDE bits; the usual 8 * 8 take different skin lesions, each a blob in the middle, for the same.
SIDE = 16
# In which twins differ: in the paper's three sets all pairs up to here are twins, and from 44 on not all.
MOST_BITS = 40
FLAT = 2.0  # grey levels, standard deviation: below, a hash would tell of noise only
CHUNK = 2048  # hashes that are compared with as many others at a time: 16 MB of agreements


class Fingerprint(NamedTuple):
    """`content`: digest of the file; `bits`: its perceptual hash, bool (256,), None for a flat picture; `size`: width,
    height."""

    content: bytes
    bits: np.ndarray | None
    size: tuple[int, int]


def fingerprint_of(path: Path, image: Image.Image) -> Fingerprint:
    """The fingerprint of a file that was read as `image`.

    Raises:
        DataError: its content cannot be read again.
    """
    try:
        content = hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{path}: {what_is_wrong(path, error)}") from None
    grey = image.convert("L")
    bits = imagehash.phash(grey, SIDE).hash.ravel() if np.std(grey.resize((4 * SIDE, 4 * SIDE))) >= FLAT else None
    return Fingerprint(content, bits, image.size)


def twin_groups(prints: Sequence[Fingerprint | str], verbose: bool = False) -> np.ndarray:
    """Connected components of "same content, or hashes that differ in at most `MOST_BITS` bits".

    Where one component of near duplicates has more than half of all images, the hash cannot tell these pictures apart
    (drawings of the same outline, for instance), and only copies are twins.

    Args:
        verbose: show a bar, should it take more than two seconds: all pairs are compared, in memory for a few.

    Returns:
        For every image the position of its group's first image, int (N,): its own position if it has no twin.
    """
    groups = copies = exact_groups(prints)
    hashed = np.array([i for i, seen in enumerate(prints) if isinstance(seen, Fingerprint) and seen.bits is not None])
    if len(hashed) == 0:
        return copies
    bits = np.stack([prints[i].bits for i in hashed])
    chunks = list(combinations_with_replacement(range(0, len(bits), CHUNK), 2))
    for row, column in tqdm(chunks, desc="Comparing images", delay=2, disable=not verbose):
        one, other = (bits[start : start + CHUNK] * np.float32(2) - 1 for start in (row, column))
        # A product of signs is the bits that agree less those that differ.
        close = np.flatnonzero(one @ other.T >= bits.shape[1] - 2 * MOST_BITS)
        first, second = hashed[row + close // len(other)], hashed[column + close % len(other)]
        new = groups[first] != groups[second]
        if new.any():
            groups = join(groups, first[new], second[new])
    return copies if np.bincount(groups).max() > max(len(prints) / 2, np.bincount(copies).max()) else groups


def exact_groups(prints: Sequence[Fingerprint | str]) -> np.ndarray:
    """Files of the same content, numbered as in `twin_groups`; an unreadable one is alone."""
    seen: dict[bytes, int] = {}
    return np.array(
        [i if isinstance(known, str) else seen.setdefault(known.content, i) for i, known in enumerate(prints)],
        dtype=int,
    )


def join(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Groups, shape (N,), merged wherever positions `first` and `second`, shape (E,), are linked; numbered as in
    `twin_groups`."""
    linked, ends = np.unique([groups[first], groups[second]], return_inverse=True)
    links = coo_array((np.ones(len(first), bool), ends.reshape(2, -1)), shape=(len(linked), len(linked)))
    component = connected_components(links, directed=False)[1]
    merged = np.arange(len(groups))
    merged[linked] = linked[np.unique(component, return_index=True)[1]][component]  # the first of each component
    return merged[groups]
