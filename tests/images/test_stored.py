import pickle

import numpy as np
import torch

from utils.images.cache import StoredImages


def test_stored_images_are_indexed_as_a_tensor_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 6), dtype=np.uint8)
    pixels.tofile(tmp_path / "pixels")
    slots, checksums = np.array([7, 3, 19, 0, 4]), np.arange(5)
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=pixels.shape)
    images, expected = StoredImages(mapped, slots, checksums), torch.from_numpy(pixels[slots])
    assert len(images) == 5 and all(torch.equal(one, other) for one, other in zip(images, expected, strict=True))
    assert torch.equal(images[np.array([3, 3, 0])], expected[[3, 3, 0]]) and images[[1]].dtype == torch.uint8
    part = images[1:4]
    assert isinstance(part, StoredImages) and part.checksums.tolist() == [1, 2, 3]
    assert torch.equal(part[range(3)], expected[1:4])
    for stack in (images, images[:0]):
        parts, wanted = [*stack.split(2)], expected[: len(stack)].split(2)
        assert all(torch.equal(one, other) for one, other in zip(parts, wanted, strict=True))
    images[[0]].zero_()  # a copy
    images[0].zero_()
    assert torch.equal(images[[0]], expected[:1])


def test_another_process_gets_the_name_of_the_file_instead_of_the_pixels(tmp_path):
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(50, 3, 16, 16))
    mapped[:] = np.arange(50, dtype=np.uint8)[:, None, None, None]
    sent = pickle.dumps(StoredImages(mapped, np.array([9, 2]), np.zeros(2)))
    assert len(sent) < 2000 and pickle.loads(sent)[[0, 1]].amax((1, 2, 3)).tolist() == [9, 2]
