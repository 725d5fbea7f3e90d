import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from samples import break_file, make_files

from utils.images import decoding
from utils.images.decoding import decode
from utils.images.frame import Frame
from utils.images.reading import read_image


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_each_file_is_decoded_once_in_order(tmp_path, monkeypatch, num_workers):
    paths, opened = [tmp_path / f"{i}.png" for i in range(30)], []
    for i, path in enumerate(paths):
        Image.new("RGB", (5, 4), (i, 2 * i, 3 * i)).save(path)
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 7 * 18)
    monkeypatch.setattr(decoding, "read_image", lambda path, levels: opened.append(path) or read_image(path))
    images = np.stack([image for image, _ in decode(paths[::-1], Frame((2, 3)), num_workers, verbose=False)])
    assert images.shape == (30, 3, 2, 3) and images.dtype == np.uint8
    assert images[:, :, 1, 2].tolist() == [[i, 2 * i, 3 * i] for i in reversed(range(30))]
    assert Counter(opened) == dict.fromkeys(paths, 1)


def test_fingerprints_come_with_the_pixels_and_a_reason_in_place_of_both(tmp_path):
    make_files(tmp_path, ["1.png", "2.png", "3.png"])
    break_file(tmp_path / "2.png", 0.5)
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "4.png"]
    one, broken, other, gone = decode(paths, Frame((6, 10)), 2, verbose=False)
    assert broken.startswith("not a readable image (") and gone.startswith("no such image;")
    for path, (pixels, known) in zip((paths[0], paths[2]), (one, other)):
        assert np.array_equal(pixels.transpose(1, 2, 0), Image.open(path))
        assert known.content == hashlib.sha256(path.read_bytes()).digest() and known.size == (10, 6)
