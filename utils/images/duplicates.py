"""Finds near duplicates: copies of a file, and the same picture saved again, resized, recoloured, mirrored or turned.

A network that has been trained on one of them knows the other, so both must be in one split.
"""

import hashlib
from collections.abc import Sequence
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from utils.images.looks import FLAT_STD, SIDE, looks_of

# A hash has HASH_SIDE^2 bits, of which HALF rule out most pairs. The usual 8^2 take many skin lesions for the same.
HASH_SIDE, HALF = 16, 128
# Bits in which hashes of near duplicates may differ: in the paper's three sets, all pairs up to here are duplicates,
# and from 44 on not all.
MAX_BITS = 40
UNSURE = 0.1  # of a picture's usual coefficient; by less, none of its directions stands out
CHUNK_HASHES = 1024  # hashes that are compared with as many others at a time: a matrix of 4 MB


class Fingerprint(NamedTuple):
    """A digest of a file; of its image the `hashes_of`, (P, 256), width and height, `looks_of` and, as text, the lowest
    and highest value of more than 8 bits."""

    content: bytes
    bits: np.ndarray
    size: tuple[int, int]
    looks: str = ""
    values: str = ""


def fingerprint_of(path: Path, image: Image.Image) -> Fingerprint:
    """Compute the fingerprint of a file that was read as `image`."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), float)
    values = " ".join(map(str, image.info.get("values", ())))
    content = hashlib.sha256(path.read_bytes()).digest()
    return Fingerprint(content, hashes_of(grey), image.size, looks_of(image, grey), values)


def hashes_of(grey: np.ndarray) -> np.ndarray:
    """Compute the perceptual hash (`phash` of imagehash) of an image (SIDE, SIDE) as it lies, and then in the pose in
    which the first frequencies along rows and columns are positive and the former is the larger one, or in all that may
    be this pose, so that mirroring and turning change nothing: bool (P, 256), none for a flat image."""
    if grey.std() < FLAT_STD:  # a hash would depend on noise only
        return np.empty((0, HASH_SIDE**2), bool)
    waves, order = dctn(grey)[:HASH_SIDE, :HASH_SIDE], np.arange(HASH_SIDE)
    across, down = waves[0, 1], waves[1, 0]
    unsure, poses = UNSURE * np.sqrt(np.square(waves.ravel()[1:]).mean()), [waves]
    values = (across, down, abs(across) - abs(down))
    # Mirroring changes the sign of every second row or column, turning swaps rows and columns.
    for right, below, wide in product(*((1, -1) if abs(value) < unsure else (np.sign(value),) for value in values)):
        pose = waves * right**order * (below**order)[:, None]
        poses.append(pose if wide > 0 else pose.T)
    return np.stack([(pose > np.median(pose)).ravel() for pose in poses])


def near_duplicate_groups(fingerprints: Sequence[Fingerprint], verbose: bool = False) -> np.ndarray:
    """Group images that have the same content, or hashes that differ in at most `MAX_BITS` bits, also through others:
    for every image the position of its group's first image, int (N,).

    First images are compared as they lie, then in their poses. Where one group would get more than half of all images,
    hashes cannot tell these pictures apart (drawings of the same outline, for instance), and do not count.
    """
    groups = copy_groups(fingerprints)
    for hashes in (slice(1), slice(1, None)):  # as the images lie; in their poses
        linked, parts = groups, [known.bits[hashes] for known in fingerprints]
        owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        bits = np.concatenate(parts) if parts else np.empty((0, 0))
        chunks = list(combinations_with_replacement(range(0, len(bits), CHUNK_HASHES), 2))
        for row, column in tqdm(chunks, desc="Comparing images", delay=2, disable=not verbose):
            one, other = (bits[start : start + CHUNK_HASHES] * np.float32(2) - 1 for start in (row, column))
            # The product of two vectors of signs is the number of bits that agree less that of those that differ. Most
            # pairs are too far apart already by half of them.
            near = one[:, :HALF] @ other[:, :HALF].T >= HALF - 2 * MAX_BITS
            rows, columns = near.any(axis=1).nonzero()[0], near.any(axis=0).nonzero()[0]
            close = (one[rows] @ other[columns].T >= bits.shape[1] - 2 * MAX_BITS).nonzero()
            first, second = owners[row + rows[close[0]]], owners[column + columns[close[1]]]
            new = linked[first] != linked[second]
            if new.any():
                linked = join(linked, first[new], second[new])
        if len(linked) and np.bincount(linked).max() <= max(len(linked) / 2, np.bincount(groups).max()):
            groups = linked
    return groups


def copy_groups(fingerprints: Sequence[Fingerprint]) -> np.ndarray:
    """Group files of the same content; numbered as in `near_duplicate_groups`."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(known.content, i) for i, known in enumerate(fingerprints)], dtype=int)


def join(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Merge groups, numbered as in `near_duplicate_groups`, that hold images whose positions are linked, (E,) each."""
    linked, ends = np.unique([groups[first], groups[second]], return_inverse=True)
    links = coo_array((np.ones(len(first), bool), ends.reshape(2, -1)), shape=(len(linked), len(linked)))
    component = connected_components(links, directed=False)[1]
    merged = np.arange(len(groups))
    merged[linked] = linked[np.unique(component, return_index=True)[1]][component]  # the first of each component
    return merged[groups]
