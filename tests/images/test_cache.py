import os
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dying
import numpy as np
import pandas as pd
import pytest
import torch
from dying import KILLED, exit_code
from PIL import Image
from samples import break_file, config_in, make_files, near_duplicates_in, noise

from utils.dataset import prepare_split
from utils.evaluate.audit import audit
from utils.evaluate.scores import measure_split
from utils.images import cache
from utils.images.cache import StoredImages, read_fingerprints, read_images
from utils.images.fingerprints import fingerprint_of
from utils.images.folder import scan
from utils.images.frame import Frame, to_uint8
from utils.images.reading import read_image
from utils.models import load_trained
from utils.system.errors import UserError
from utils.training import train

FILES = [f"{label}/{i}.png" for label in "ab" for i in range(6)]
FRAME = Frame((16, 20))
BYTES = 3 * 16 * 20  # of an image


def config_for(folder, **settings):
    places = {f"{name}_path": folder / name for name in ("data", "checkpoints", "outputs")}
    return config_in(folder, **places | {"image": {"size": FRAME.size}} | settings)


@pytest.fixture
def config(tmp_path):
    make_files(tmp_path / "data", FILES)
    return config_for(tmp_path)


@pytest.fixture
def opened(monkeypatch):
    """The files that are decoded, by whatever way."""
    found, load = [], Image.open

    def counting(file, *arguments):
        found.append("/".join(Path(getattr(file, "name", file)).parts[-2:]))
        return load(file, *arguments)

    monkeypatch.setattr(Image, "open", counting)
    return found


def fingerprints_of(config):
    return read_fingerprints(config, pd.DataFrame({"file": FILES}))


def pixels_of(config, files=FILES, frame=FRAME):
    images, problems = read_images(config, files, frame)
    assert not problems
    return images[np.arange(len(images))]


def decoded(config, files=FILES, frame=FRAME):
    return torch.stack([to_uint8(Image.open(config.data_path / file), frame) for file in files])


def cached(config, end):
    (path,) = (config.outputs_path / ".cache").glob(f"*.{end}")
    return path


def assert_whole(config, files=FILES):
    """A slot for each file, and no other."""
    assert sorted(pd.read_csv(cached(config, "csv"), index_col=0).index) == sorted(files)
    assert cached(config, "pixels").stat().st_size == len(files) * BYTES


# -------------------------------------------------------------------------------------------- what is read


def test_images_and_fingerprints_are_those_of_the_files(config):
    noise(300, 200).save(config.data_path / "a/0.png")
    Image.new("RGB", (20, 30), "red").save(config.data_path / "a/1.png")  # too flat for a hash
    paths = [config.data_path / file for file in FILES]
    wanted = [fingerprint_of(path, read_image(path)) for path in paths]
    for _ in range(2):  # when it is made, and from the disk
        assert torch.equal(pixels_of(config), decoded(config))
        assert fingerprints_of(config)[1][[*wanted[0]]].to_dict("records") == wanted
    assert (wanted[0]["width"], wanted[0]["height"]) == (200, 300) and wanted[0]["bits"] and not wanted[1]["bits"]


def test_a_subset_comes_in_the_order_that_was_asked_for(config):
    fingerprints_of(config)
    some = ["b/3.png", "a/5.png", "b/0.png", "a/5.png"]
    images, expected = read_images(config, some, FRAME)[0], decoded(config, some)
    assert isinstance(images, StoredImages) and torch.equal(images[range(4)], expected)
    assert images.checksums.tolist() == [zlib.crc32(image.numpy().tobytes()) for image in expected]
    assert len(read_images(config, [], FRAME)[0]) == 0


def test_other_frames_have_pixels_of_their_own(config):
    frames = [FRAME, Frame((16, 21)), Frame((16, 20), "pad"), Frame((16, 20), "pad", (0, 0, 1))]
    for frame in (*frames, *frames):
        assert torch.equal(pixels_of(config, frame=frame), decoded(config, frame=frame))


# ------------------------------------------------------------------------------------- decoded once, and alike


SMALL = {
    "backbone_model": "Conv4",
    "image": {"size": (16, 16)},
    "test_size": 0.25,
    "valid_size": 0.25,
    "device": "cpu",
    "embedding_dim": 4,
    "hyperparameters": {"epochs": 2, "batch_size": 8, "verbose": False},
}


def test_every_file_is_decoded_once_for_split_audit_training_and_evaluation(tmp_path, opened):
    near_duplicates_in(tmp_path / "data")
    config = config_for(tmp_path, **SMALL)
    opened.clear()
    table, _ = prepare_split(config)
    assert sorted(opened) == sorted(table.file)
    opened.clear()
    train(config, table)  # 01, and then 03
    audit(config)
    model, _ = load_trained(config)
    for split in ("valid", "test"):
        measure_split(model, table, split, config)
    prepare_split(config)
    assert opened == []


def test_training_and_evaluation_take_from_the_disk_a_batch_at_a_time(tmp_path, monkeypatch):
    """So that memory does not grow with the number of images."""
    near_duplicates_in(tmp_path / "data")
    config, taken, take = config_for(tmp_path, **SMALL), [], StoredImages.__getitem__

    def counting(self, positions):
        found = take(self, positions)
        taken.extend([len(found)] * isinstance(found, torch.Tensor))
        return found

    table = prepare_split(config)[0]
    monkeypatch.setattr(StoredImages, "__getitem__", counting)
    train(config, table)
    assert sum(taken) > 2 * 20 and max(taken) <= 9  # batches of 8, an image left over joins the last
    taken.clear()
    model, _ = load_trained(config)
    measure_split(model, table, "test", config)
    assert sum(taken) == 10 and max(taken) == 8


# ---------------------------------------------------------------------------------- files that change, break, go


def test_only_what_changed_is_decoded_again_and_what_is_in_use_stays(config, opened):
    images, before = read_images(config, FILES, FRAME)[0], decoded(config)
    noise(seed=99).save(config.data_path / FILES[4])
    (config.data_path / "b/new.png").write_bytes((config.data_path / "a/0.png").read_bytes())
    (config.data_path / FILES[0]).unlink()
    opened.clear()
    left = [*FILES[1:], "b/new.png"]
    again = pixels_of(config, left)
    assert sorted(opened) == sorted([FILES[4], "b/new.png"])
    assert torch.equal(again, decoded(config, left)) and not torch.equal(again[3], before[4])
    assert torch.equal(images[range(12)], before)  # of a training that has begun before


def test_files_that_were_exchanged_are_decoded_again_even_at_the_same_size_and_time(config):
    """As of archives that are unpacked: only the time of the change of status tells them apart."""
    files = [config.data_path / "a/0.bmp", config.data_path / "b/0.bmp"]
    for colours, expected in ((("red", "blue"), [255, 0]), (("blue", "red"), [0, 255])):
        for file, colour in zip(files, colours):
            Image.new("RGB", (20, 16), colour).save(file)
            os.utime(file, ns=(1, 1))
        assert pixels_of(config, ["a/0.bmp", "b/0.bmp"])[:, 0, 0, 0].tolist() == expected


def test_another_version_of_what_decodes_is_not_taken_for_this_one(config, opened, monkeypatch):
    pixels_of(config)
    opened.clear()
    monkeypatch.setattr(cache, "VERSION", "2")
    pixels_of(config)
    assert sorted(opened) == FILES


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "break_it, reason",
    [(os.unlink, "no such image"), (lambda path: break_file(path, 0.5), "not a readable image")],
    ids=["gone", "broken"],
)
def test_what_cannot_be_read_is_named_and_left_out_before_and_after_it_was_cached(config, when, break_it, reason):
    if when == "after":
        pixels_of(config)
    for file in (FILES[2], FILES[11]):
        break_it(config.data_path / file)
    left = [file for file in FILES if file not in (FILES[2], FILES[11])]
    for _ in range(2):
        images, problems = read_images(config, FILES, FRAME)
        assert torch.equal(images[range(10)], decoded(config, left)) and [*problems] == [FILES[2], FILES[11]]
        assert problems[FILES[2]].startswith(reason)
        table, known, bad, _ = fingerprints_of(config)
        assert table.file.tolist() == left and len(known) == 10 and bad[1].startswith(f"{FILES[11]}: {reason}")
    noise(seed=5).save(config.data_path / FILES[2])  # mended
    assert [*read_images(config, FILES, FRAME)[1]] == [FILES[11]]


def test_images_of_more_than_8_bits_are_decoded_by_the_range_of_their_set(config):
    levels = lambda files: read_fingerprints(config, pd.DataFrame({"file": files}))[3]  # noqa: E731
    assert levels(FILES) is None
    for file, white in zip(FILES[:2], (300, 4000)):
        Image.fromarray(np.array([[0, white]], np.uint16)).save(config.data_path / file)
    assert levels(FILES) == (0, 4095) and levels(FILES[:1]) == (0, 511) and levels(FILES[2:]) is None
    frame = FRAME._replace(levels=(0, 4095))
    assert [image.max().item() for image in pixels_of(config, FILES[:2], frame)] == [19, 249]  # 255 * 300 / 4095
    assert torch.equal(pixels_of(config, FILES[2:], frame), pixels_of(config, FILES[2:]))
    known = fingerprints_of(config)[1]
    assert known["values"].tolist()[:3] == ["0.0 300.0", "0.0 4000.0", ""]
    assert known.looks.tolist()[:3] == ["deep dark", "deep", ""]  # beside each other


# --------------------------------------------------------------------------------- kills, other runs, damage


def test_a_run_that_is_killed_leaves_nothing_wrong_and_what_it_left_goes(config):
    pixels_of(config, FILES[:3])
    assert exit_code(dying.reading, config, FILES) == KILLED
    assert torch.equal(pixels_of(config), decoded(config))
    assert_whole(config)


def test_runs_that_build_it_at_once_leave_one(config):
    expected = decoded(config)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: pixels_of(config), range(4))]
    assert all(torch.equal(images, expected) for images in [*found, pixels_of(config)])
    assert_whole(config)


@pytest.mark.parametrize("damage", ["pixels gone", "pixels short", "table damaged"])
def test_a_cache_that_lacks_something_is_made_again(config, damage):
    expected = pixels_of(config)
    if damage == "pixels gone":
        cached(config, "pixels").unlink()
    elif damage == "pixels short":
        os.truncate(cached(config, "pixels"), 100)
    else:
        cached(config, "csv").write_bytes(b"no table" * 1000)
    assert torch.equal(pixels_of(config), expected) and torch.equal(pixels_of(config), expected)
    assert_whole(config)


# -------------------------------------------------------------------------------------------------- room


def test_a_full_disk_and_a_place_that_cannot_be_written_to_are_one_line(config, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot be used \(No space left on device\); make room, check the access"):
            pixels_of(config)
    assert torch.equal(pixels_of(config), decoded(config))
    (config.outputs_path / "file").touch()
    with pytest.raises(UserError, match=r"file.\.cache: cannot be used \(.*or set outputs_path"):
        pixels_of(config.model_copy(update={"outputs_path": config.outputs_path / "file"}))


def test_it_is_no_class_even_where_outputs_lie_among_the_images(config):
    inside = config.model_copy(update={"outputs_path": config.data_path})
    before = scan(config.data_path)
    pixels_of(inside)
    table, skipped = scan(config.data_path)
    assert table.equals(before[0]) and skipped == before[1] == []


# ---------------------------------------------------------------------------------------- used like a tensor


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
