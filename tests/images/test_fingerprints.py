"""Near duplicates and looks: against naive double loops and small drawn pictures."""

import io

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFilter
from samples import noise, picture

from utils.images.fingerprints import (
    MAX_BITS,
    SIDE,
    fingerprint_of,
    hashes_of,
    join,
    looks_of,
    near_duplicate_groups,
    notes_on_looks,
)
from utils.images.reading import read_image


def fingerprints_of(bits):
    """Of the hashes of each image, bool (P, 256), or its only one."""
    packed = [np.packbits(row).tobytes().hex() for row in bits]
    return pd.DataFrame({"content": [f"file {i}" for i in range(len(packed))], "bits": packed})


def fingerprints_in(paths):
    return pd.DataFrame([fingerprint_of(path, read_image(path)) for path in paths])


def naive_groups(count, linked):
    """Every image's first relative, by passing the smallest position on until nothing changes."""
    groups = list(range(count))
    while True:
        spread = [min(groups[j] for j in range(count) if i == j or linked(i, j)) for i in range(count)]
        if spread == groups:
            return groups
        groups = spread


def test_the_same_picture_in_other_clothes_is_found(tmp_path):
    original = picture(0)
    original.save(tmp_path / "0.png")
    original.save(tmp_path / "1.jpg", quality=60)
    original.resize((160, 120)).save(tmp_path / "2.png")
    original.convert("L").save(tmp_path / "3.png")
    original.point(lambda value: value * 0.8).save(tmp_path / "4.png")
    original.filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "5.png")
    for seed in range(6, 16):
        picture(seed).save(tmp_path / f"{seed}.png")
    paths = sorted(tmp_path.iterdir(), key=lambda path: int(path.stem))
    assert near_duplicate_groups(fingerprints_in(paths)).tolist() == [0] * 6 + list(range(6, 16))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("change", Image.Transpose)
def test_the_same_picture_mirrored_or_turned_is_found(tmp_path, seed, change):
    turned = picture(seed).transpose(change)
    turned.resize((turned.width // 2, turned.height // 2)).save(tmp_path / "1.jpg", quality=60)
    for k in (0, *range(2, 8)):
        picture(seed if k == 0 else 50 + k).save(tmp_path / f"{k}.png")
    assert near_duplicate_groups(fingerprints_in(sorted(tmp_path.iterdir()))).tolist() == [0, 0, *range(2, 8)]


def test_pictures_that_are_alike_only_in_their_poses_do_not_undo_what_is_alike_as_it_lies():
    bits = np.random.default_rng(0).random((6, 256)) < 0.5
    bits[1] = bits[0]
    same_pose = [np.stack([row, bits[0]]) for row in bits]
    assert near_duplicate_groups(fingerprints_of(same_pose)).tolist() == [0, 0, 2, 3, 4, 5]
    some = fingerprints_of([*same_pose[:3], *bits[3:]])
    assert near_duplicate_groups(some).tolist() == [0, 0, 0, 3, 4, 5]


def test_the_first_hash_is_that_of_the_library(tmp_path):
    grey = np.asarray(picture(3, (64, 64)).convert("L"), float)
    assert np.array_equal(hashes_of(grey)[0], imagehash.phash(Image.fromarray(grey.astype(np.uint8)), 16).hash.ravel())


def test_a_picture_without_a_direction_has_a_hash_of_every_pose():
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    assert len(hashes_of(100 * np.cos(3 * np.hypot(rows, columns)))) == 1 + 8
    assert len(hashes_of(100 * np.cos(3 * np.hypot(rows, columns)) + 30 * columns + 60 * rows)) == 1 + 1


@pytest.mark.parametrize("chunk", [7, 2048])
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_the_connected_components_of_close_hashes(monkeypatch, seed, chunk):
    monkeypatch.setattr("utils.images.fingerprints.CHUNK_HASHES", chunk)
    rng = np.random.default_rng(seed)
    bits = rng.random((4, 256)) < 0.5
    # Between 0 and about 70 bits apart.
    bits = bits[rng.integers(0, 4, 40)] ^ (rng.random((40, 256)) < rng.uniform(0, 0.15, (40, 1)))
    expected = naive_groups(40, lambda i, j: (bits[i] != bits[j]).sum() <= MAX_BITS)
    assert max(np.bincount(expected)) <= 20 and len(set(expected)) < 40  # not a trivial case
    assert near_duplicate_groups(fingerprints_of(bits)).tolist() == expected


def test_the_threshold_is_met_to_the_bit_and_chains_hold_together():
    bits = np.zeros((8, 256), bool)
    places = np.random.default_rng(1).permutation(256)
    bits[1, places[:MAX_BITS]] = True
    bits[2, places[: 2 * MAX_BITS]] = True  # twin of 1, not of 0
    bits[3, places[: 3 * MAX_BITS + 1]] = True  # a bit too far from 2
    bits[4:] = np.random.default_rng(0).random((4, 256)) < 0.5
    assert near_duplicate_groups(fingerprints_of(bits)).tolist() == [0, 0, 0, 3, 4, 5, 6, 7]


def test_flat_images_are_duplicates_only_as_copies(tmp_path):
    for index, grey in enumerate([200, 200, 10, 90, 160, 240]):
        Image.new("RGB", (40, 40), (grey,) * 3).save(tmp_path / f"{index}.png")
    noise = np.random.default_rng(0).integers(120, 123, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "6.png")
    for seed in range(7, 10):
        picture(seed).save(tmp_path / f"{seed}.png")
    fingerprints = fingerprints_in(sorted(tmp_path.iterdir()))
    assert (fingerprints.bits == "").tolist() == [True] * 7 + [False] * 3
    assert near_duplicate_groups(fingerprints).tolist() == [0, 0, *range(2, 10)]


def test_a_set_of_pictures_that_the_hash_cannot_tell_apart_is_left_alone():
    bits = np.zeros((10, 256), bool)
    bits[np.arange(10), np.arange(10)] = True
    fingerprints = fingerprints_of(bits)
    fingerprints.loc[7] = fingerprints.loc[2]
    assert near_duplicate_groups(fingerprints).tolist() == [0, 1, 2, 3, 4, 5, 6, 2, 8, 9]


def test_copies_are_duplicates_even_where_they_are_most_of_the_set():
    fingerprints = fingerprints_of(np.random.default_rng(0).random((4, 256)) < 0.5)
    assert near_duplicate_groups(fingerprints.loc[[0, 1, 1, 1]]).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_join_is_the_naive_merge(seed):
    rng = np.random.default_rng(seed)
    before = join(np.arange(30), *rng.integers(0, 30, (2, 8)))
    links = rng.integers(0, 30, (2, 6))
    pairs = set(zip(*links.tolist())) | set(zip(*links[::-1].tolist()))
    expected = naive_groups(30, lambda i, j: before[i] == before[j] or (i, j) in pairs)
    assert join(before, *links).tolist() == expected


# ------------------------------------------------------------------------------------ what can hardly be seen


def drawn(ground, shape=None, ink="black", size=(90, 120)):
    image = Image.new("RGB", size, ground)
    if shape:
        ImageDraw.Draw(image).ellipse(shape, fill=ink)
    return image


def cut_short(share):
    """A JPEG of which a share is left, closed by a program that mended it."""
    noise(200, 200).resize((400, 400)).save(data := io.BytesIO(), "JPEG")
    data = data.getvalue()
    return Image.open(io.BytesIO(data[: int(share * len(data))] + b"\xff\xd9")).convert("RGB")


def noisy(mean, spread):
    return Image.fromarray(
        np.random.default_rng(0).normal(mean, spread, (80, 80)).clip(0, 255).astype(np.uint8)
    ).convert("RGB")


@pytest.mark.parametrize(
    "image, expected",
    [
        (drawn("white"), "blank"),
        (drawn("black"), "blank"),
        (drawn("grey"), "blank"),
        (noisy(250, 1), "blank"),
        (drawn("white", (10, 10, 14, 14)), "blank"),  # a speck of 0.2 %
        (drawn("white", (10, 10, 40, 40)), ""),
        (drawn("black", (10, 10, 40, 40), "white"), ""),
        (noise(8, 8).resize((80, 80)).point(lambda value: value / 9), "dark"),
        (cut_short(0.5), "cut"),
        (cut_short(1), ""),
        (drawn((128, 128, 128), (10, 30, 80, 80)), ""),  # of grey all round
        (noise(60, 60), ""),
    ],
)
def test_what_can_hardly_be_seen_is_found(image, expected):
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), float)
    assert looks_of(image, grey) == expected
    image.info |= {"pages": True, "values": (0, 9)}
    assert looks_of(image, grey).split() == ["deep", *expected.split(), "pages"]


def test_a_line_for_each_finding():
    looks = ["", "blank", "deep blank pages", "deep blank", "blank", ""]
    assert notes_on_looks(pd.Series(looks, [f"a/{i}.png" for i in range(6)]), (0, 4095)) == [
        "2 images of more than 8 bits: values from 0 to 4095 are shown from black to white, also later by this network"
        ": a/2.png, a/3.png",
        "4 images with (nearly) nothing to see; delete or replace them: a/1.png, a/2.png, a/3.png and 1 more",
        "1 image with more pages or frames, of which the first is taken; save others as files of their own: a/2.png",
    ]
    assert notes_on_looks(pd.Series([""], ["a/1.png"]), None) == []
