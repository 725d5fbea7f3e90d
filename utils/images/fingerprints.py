"""What is known of each image: which are near duplicates, and what is odd about those that can be read.

Near duplicates are copies of a file, and the same picture saved again, resized, recoloured, mirrored or turned. A
network that has been trained on one of them knows the other, so both must be in one split.
"""

import hashlib
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from utils.images.folder import first_names
from utils.system.files import counted

SIDE = 64  # pixels, to which an image is reduced to look at it
FLAT_STD = 2.0  # grey levels; an image of a lower standard deviation is flat
NEAR, MOST = 8, 0.995  # grey levels from the median, within which this share of a nearly blank image lies
DARK = 32  # grey level below which all but a hundredth of a dark image is
STRIP = 0.125  # share of the height at the lower end, which is grey, 128, where decoders of JPEG missed the end
LOOKS = {
    "deep": "of more than 8 bits: values from {0:g} to {1:g} are shown from black to white, also later by this network",
    "blank": "with (nearly) nothing to see; delete or replace them",
    "dark": "all dark; if they are scans, or colours of 10 to 14 bits, save them over the whole range",
    "cut": "whose lower part is plain grey, as if cut short; copy them again",
    "pages": "with more pages or frames, of which the first is taken; save others as files of their own",
}
# A hash has HASH_SIDE^2 bits, of which HALF rule out most pairs. The usual 8^2 take many skin lesions for the same.
HASH_SIDE, HALF = 16, 128
# Bits in which hashes of near duplicates may differ: in the paper's three sets, all pairs up to here are duplicates,
# and from 44 on not all.
MAX_BITS = 40
UNSURE = 0.1  # of a picture's usual coefficient; by less, none of its directions stands out
CHUNK_HASHES = 1024  # hashes that are compared with as many others at a time: a matrix of 4 MB


def fingerprint_of(path: Path, image: Image.Image) -> dict[str, Any]:
    """Compute the fingerprint of a file that was read as `image`, as a row of a table."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), float)
    return {
        "content": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bits": np.packbits(hashes_of(grey)).tobytes().hex(),
        "width": image.width,
        "height": image.height,
        "looks": looks_of(image, grey),
        "values": " ".join(map(str, image.info.get("values", ()))),  # lowest and highest, of more than 8 bits
    }


def looks_of(image: Image.Image, grey: np.ndarray) -> str:
    """Find the keys of `LOOKS` for an image of `read_image`, parted by spaces; `grey` is reduced to (SIDE, SIDE)."""
    strip = max(1, round(STRIP * image.height))
    upper, lower = (image.crop((0, top, image.width, top + strip)) for top in (0, image.height - strip))
    plain = [all(abs(level - 128) <= 1 for levels in part.getextrema() for level in levels) for part in (upper, lower)]
    blank = grey.std() < FLAT_STD or (abs(grey - np.median(grey)) <= NEAR).mean() >= MOST
    found = {
        "deep": "values" in image.info,
        "blank": blank,
        "dark": not blank and np.quantile(grey, 0.99) < DARK,
        "cut": plain == [False, True],
        "pages": image.info.get("pages"),
    }
    return " ".join(look for look in found if found[look])


def notes_on_looks(looks: pd.Series, levels: tuple[float, float] | None) -> list[str]:
    """Write a line for each finding in the `looks` of files, with the first names; `levels` are as in `to_rgb`."""
    found = looks.str.split().explode()
    return [
        f"{counted(len(names), 'image')} {what.format(*levels or ())}: {first_names(names)}"
        for look, what in LOOKS.items()
        if (names := found.index[found == look].tolist())
    ]


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


def near_duplicate_groups(fingerprints: pd.DataFrame, verbose: bool = False) -> np.ndarray:
    """Group images, of which `fingerprints` has a row each, that have the same content, or hashes that differ in at
    most `MAX_BITS` bits, also through others: for every image the position of its group's first image, int (N,).

    First images are compared as they lie, then in their poses. Where one group would get more than half of all images,
    hashes cannot tell these pictures apart (drawings of the same outline, for instance), and do not count.
    """
    groups = copy_groups(fingerprints)
    hexadecimal = map(bytes.fromhex, fingerprints.bits)
    known = [np.unpackbits(np.frombuffer(b, np.uint8)).view(bool).reshape(-1, HASH_SIDE**2) for b in hexadecimal]
    for hashes in (slice(1), slice(1, None)):  # as the images lie; in their poses
        linked, parts = groups, [bits[hashes] for bits in known]
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


def copy_groups(fingerprints: pd.DataFrame) -> np.ndarray:
    """Group files of the same content; numbered as in `near_duplicate_groups`."""
    _, first, inverse = np.unique(fingerprints.content, return_index=True, return_inverse=True)
    return first[inverse]


def join(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Merge groups, numbered as in `near_duplicate_groups`, that hold images whose positions are linked, (E,) each."""
    ends = np.append(np.arange(len(groups)), first), np.append(groups, second)
    links = coo_array((np.ones(len(ends[0]), bool), ends), shape=(len(groups), len(groups)))
    component = connected_components(links, directed=False)[1]
    return np.unique(component, return_index=True)[1][component]  # the first of each component
