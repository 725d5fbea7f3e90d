"""Finds near duplicates: copies of a file, and the same picture saved again, resized or recoloured.

A network that has been trained on one of them knows the other, so both must be in one split.
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

# A hash has HASH_SIDE^2 bits. The usual 8^2 take different skin lesions, each a blob in the middle, for the same.
HASH_SIDE = 16
# Bits in which hashes of near duplicates may differ: in the paper's three sets, all pairs up to here are duplicates,
# and from 44 on not all.
MAX_BITS = 40
FLAT_STD = 2.0  # grey levels; an image of a lower standard deviation is flat, and its hash would depend on noise only
CHUNK_HASHES = 2048  # hashes that are compared with as many others at a time: a matrix of 16 MB


class Fingerprint(NamedTuple):
    """What identifies an image: `content`, a digest of its file; `bits`, its perceptual hash, bool (256,), None for a
    flat image; `size`: width, height in pixels."""

    content: bytes
    bits: np.ndarray | None
    size: tuple[int, int]


def fingerprint_of(path: Path, image: Image.Image) -> Fingerprint:
    """Compute the fingerprint of a file that was read as `image`.

    Raises:
        DataError: its content cannot be read again.
    """
    try:
        content = hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{path}: {what_is_wrong(path, error)}") from None
    grey = image.convert("L")
    is_flat = np.std(grey.resize((4 * HASH_SIDE, 4 * HASH_SIDE))) < FLAT_STD
    return Fingerprint(content, None if is_flat else imagehash.phash(grey, HASH_SIDE).hash.ravel(), image.size)


def near_duplicate_groups(fingerprints: Sequence[Fingerprint], verbose: bool = False) -> np.ndarray:
    """Group images that have the same content, or hashes that differ in at most `MAX_BITS` bits, also through others.

    If one group has more than half of all images, the hash cannot tell these pictures apart (drawings of the same
    outline, for instance), and only copies count as duplicates.

    Args:
        fingerprints: of each image, N.
        verbose: show a progress bar if this takes more than two seconds: all pairs are compared.

    Returns:
        For every image the position of its group's first image, int (N,): its own position if it is alone.
    """
    groups = copies = copy_groups(fingerprints)
    hashed = np.array([i for i, known in enumerate(fingerprints) if known.bits is not None])
    if len(hashed) == 0:
        return copies
    bits = np.stack([fingerprints[i].bits for i in hashed])
    chunks = list(combinations_with_replacement(range(0, len(bits), CHUNK_HASHES), 2))
    for row, column in tqdm(chunks, desc="Comparing images", delay=2, disable=not verbose):
        one, other = (bits[start : start + CHUNK_HASHES] * np.float32(2) - 1 for start in (row, column))
        # The product of two vectors of signs is the number of bits that agree less that of those that differ.
        close = np.flatnonzero(one @ other.T >= bits.shape[1] - 2 * MAX_BITS)
        first, second = hashed[row + close // len(other)], hashed[column + close % len(other)]
        new = groups[first] != groups[second]
        if new.any():
            groups = join(groups, first[new], second[new])
    return copies if np.bincount(groups).max() > max(len(fingerprints) / 2, np.bincount(copies).max()) else groups


def copy_groups(fingerprints: Sequence[Fingerprint]) -> np.ndarray:
    """Group files of the same content; numbered as in `near_duplicate_groups`."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(known.content, i) for i, known in enumerate(fingerprints)], dtype=int)


def join(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Merge groups, numbered as in `near_duplicate_groups`, shape (N,), that hold linked images.

    Args:
        first, second: positions of the two images of each link, shape (E,).
    """
    linked, ends = np.unique([groups[first], groups[second]], return_inverse=True)
    links = coo_array((np.ones(len(first), bool), ends.reshape(2, -1)), shape=(len(linked), len(linked)))
    component = connected_components(links, directed=False)[1]
    merged = np.arange(len(groups))
    merged[linked] = linked[np.unique(component, return_index=True)[1]][component]  # the first of each component
    return merged[groups]
