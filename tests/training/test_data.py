import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from utils.explain.removal import blur
from utils.system.settings import ImageOptions
from utils.training import data
from utils.training.data import SIDES, ChangedImages, ImageLoader, Request, halved_boxes, occlude_halves, random_changes

JITTER = ["brightness", "contrast", "saturation", "hue"]
IMAGES = torch.randint(0, 256, (8, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
EVERYTHING = dict.fromkeys(JITTER, 0.3) | {"RandomRotationDegrees": 30, "RandomResizedCrop": 0.4, "VerticalFlip": 0.5}
EVERYTHING |= {"HorizontalFlip": 0.5, "RandomErasing": 0.5, "CutMix": 0.5}


def options(images=IMAGES, **given):
    return ImageOptions(**{"HorizontalFlip": 0, "size": tuple(images.shape[2:])} | given)


def changed(images, seed=0, progress=1.0, epoch=1, **given):
    """Change each of the images once."""
    request = Request(np.arange(len(images)), 0, epoch, progress)
    return ChangedImages(images, options(images, **given), seed)[request]


@pytest.mark.parametrize("key, dim", [("HorizontalFlip", 3), ("VerticalFlip", 2)])
def test_a_flip_happens_as_often_as_asked(key, dim):
    images = IMAGES[:1].repeat(400, 1, 1, 1)
    flipped = (changed(images, **{key: 0.25}) == images.flip(dim)).flatten(1).all(1)
    assert 60 < flipped.sum() < 140  # 100 expected, 8.7 one standard deviation
    assert torch.equal(changed(IMAGES, **{key: 1}), IMAGES.flip(dim))


def test_erasing_fills_one_box_with_the_mean_colour_as_often_as_asked_and_more_as_training_goes_on():
    white = torch.full((400, 3, 40, 40), 255, dtype=torch.uint8)
    given = {"RandomErasing": 0.5, "normalization": {"mean": (0.2, 0.4, 0.6)}}
    found = [changed(white, progress=progress, **given) for progress in (0, 0.5, 1)]
    hit = [(images != 255).flatten(1).any(1) for images in found]
    assert not hit[0].any() and 60 < hit[1].sum() < 140 and 160 < hit[2].sum() < 240  # 100 and 200 expected
    for image in found[2][hit[2]]:
        box = (image != 255).any(0)
        height, width = box.any(1).sum(), box.any(0).sum()
        assert box.sum() == height * width and 0.015 < box.float().mean() < 0.35
        assert {tuple(pixel) for pixel in image[:, box].T.tolist()} == {(51, 102, 153)}


@pytest.mark.parametrize("size", [(40, 40), (40, 80)])
def test_a_crop_keeps_at_least_the_share_asked_for_and_nearly_the_shape(size):
    """Rows and columns of a ramp image count where a crop begins and ends."""
    height, width = size
    ramp = torch.zeros(1, 3, height, width)
    ramp[:, 0], ramp[:, 1] = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)
    crops = changed(ramp.round().to(torch.uint8).repeat(300, 1, 1, 1), RandomResizedCrop=0.25).float()
    assert crops.shape == (300, 3, *size)
    tall, wide = (
        (crops[:, channel].amax((1, 2)) - crops[:, channel].amin((1, 2))) / 255  # share of the side that is left
        for channel in (0, 1)
    )
    area, ratio = tall * wide, wide / tall
    assert 0.2 < area.min() < 0.35 and area.max() > 0.85
    assert 0.68 < ratio.min() < 0.85 and 1.18 < ratio.max() < 1.47


def test_rotation_turns_within_the_limit_and_fills_with_the_mean_colour():
    white = torch.full((30, 3, 41, 41), 255, dtype=torch.uint8)
    turned = changed(white, RandomRotationDegrees=45, normalization={"mean": (0.2, 0.4, 0.6)})
    assert (turned[:, :, 20, 20] == 255).all() and [51, 102, 153] in turned[:, :, 0, 0].tolist()
    dot = torch.zeros(200, 3, 41, 41, dtype=torch.uint8)
    dot[:, :, 20, 38] = 255  # right of the centre
    found = changed(dot, RandomRotationDegrees=30, normalization={"mean": (0, 0, 0)})
    y, x = np.array([divmod(int(image[0].argmax()), 41) for image in found]).T
    angles = np.degrees(np.arctan2(20 - y, x - 20))
    assert 22 < angles.max() < 33 and -33 < angles.min() < -22


@pytest.mark.parametrize("key", JITTER)
def test_each_jitter_works_alone(key):
    assert (changed(IMAGES, **{key: 0.4}) != IMAGES).float().mean() > 0.3
    grey = IMAGES[:, :1].repeat(1, 3, 1, 1)
    change = (changed(grey, **{key: 0.4}).int() - grey.int()).abs().max()
    assert (change <= 1) == (key in ("saturation", "hue"))  # grey has neither; 1 is rounding
    red = torch.zeros_like(IMAGES)
    red[:, 0] = 200
    # Only a turned hue makes red another colour.
    assert (changed(red, **{key: 0.4}).argmax(1) > 0).any() == (key == "hue")


def test_boxes_are_covered_by_what_the_other_image_has_there():
    images = IMAGES[:1].repeat(400, 1, 1, 1)
    request = Request(np.arange(400), 0, 1, 0.0, np.arange(399, -1, -1))
    found = ChangedImages(images, options(CutMix=1), 0)[request]
    assert torch.equal(found, images)  # by itself: nothing can be seen
    images[200:] = 255 - images[200:]
    found = ChangedImages(images, options(CutMix=0.25), 0)[request]
    inside = (found != images).any(1)
    assert 60 < inside.flatten(1).any(1).sum() < 140  # 100 expected
    for image, other, box, one in zip(images, images.flip(0), inside, found):
        assert torch.equal(one, torch.where(box, other, image))
        assert box.sum() == box.any(1).sum() * box.any(0).sum() < 0.4 * 16 * 24
    assert torch.equal(ChangedImages(images, options(CutMix=1), 0)[request._replace(others=None)], images)


# ------------------------------------------------------- the same random numbers, however the images are made


def epoch_of(loader, sizes, epoch=1, progress=1.0):
    """The images of an epoch in batches of these sizes."""
    positions = np.random.default_rng(5).permutation(16)
    parts = np.split(positions, np.cumsum(sizes)[:-1])
    others = np.split(np.roll(positions, 1), np.cumsum(sizes)[:-1])
    first = np.cumsum([0, *sizes])
    return torch.cat(list(loader(list(map(Request, parts, first, [epoch] * 9, [progress] * 9, others)))))


@pytest.fixture
def loader(monkeypatch):
    def make(workers=0, seed=3):
        monkeypatch.setattr(data, "MIN_PIXELS", 0)
        return ImageLoader(IMAGES.repeat(2, 1, 1, 1), options(**EVERYTHING), seed, workers)

    return make


def test_an_images_draws_depend_on_seed_epoch_and_place_alone(loader):
    one = loader()
    expected = epoch_of(one, [4, 4, 4, 4])
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(epoch_of(loader(), [1, 5, 7, 3]), expected)
    assert torch.equal(epoch_of(one, [16]), expected)  # again
    assert torch.equal(torch.get_rng_state(), before)
    others = epoch_of(one, [16], epoch=2), epoch_of(loader(seed=4), [16])
    for other in others:
        assert (other != expected).flatten(1).any(1).all()
    same = changed(IMAGES[:1].repeat(12, 1, 1, 1), **EVERYTHING)
    assert len({image.numpy().tobytes() for image in same}) == 12


def test_worker_processes_make_the_same_images_epoch_after_epoch(loader):
    alone, workers = loader(), loader(2)
    assert workers.loader.num_workers == 2
    before = torch.get_rng_state()
    for epoch in (1, 2):
        assert torch.equal(epoch_of(workers, [4] * 4, epoch), epoch_of(alone, [4] * 4, epoch))
    next(workers([Request(np.arange(4), 0, 3, 1.0)] * 4))  # an epoch that is not finished
    assert torch.equal(epoch_of(workers, [4] * 4, 4), epoch_of(alone, [4] * 4, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_few_small_images_start_no_workers():
    assert ImageLoader(IMAGES, options(), 0, 2).loader.num_workers == 0


def test_what_workers_get_can_be_sent_to_them():
    """As where they are started again, on Windows and macOS."""
    images = ChangedImages(IMAGES, options(**EVERYTHING), 3)
    request = Request(np.array([5, 1]), 7, 2, 0.5, np.array([1, 0]))
    assert torch.equal(pickle.loads(pickle.dumps(images))[request], images[request])


def test_only_what_is_configured_changes_images():
    assert torch.equal(changed(IMAGES), IMAGES) and not random_changes(options(RandomErasing=1, CutMix=1))
    assert isinstance(random_changes(options(hue=0.1))[0], v2.ColorJitter)
    assert random_changes(ImageOptions())[0].p == 0.5  # a flip is on unless it is switched off


# --------------------------------------------------------------------------------- boxes whose halves add up


def test_halves_are_neighbours_that_fill_a_box_of_the_image():
    boxes = halved_boxes(200, (40, 64), np.random.default_rng(0))
    assert boxes.shape == (200, 2, 4)
    rows = columns = 0
    for one, two in boxes:
        assert (boxes >= 0).all() and max(one[1], two[1]) <= 40 and max(one[3], two[3]) <= 64
        assert (one[0] < one[1]) and (one[2] < one[3]) and (two[0] < two[1]) and (two[2] < two[3])
        above = one[1] == two[0] and (one[2:] == two[2:]).all()
        beside = one[3] == two[2] and (one[:2] == two[:2]).all()
        assert above != beside
        rows, columns = rows + above, columns + beside
    assert rows > 60 and columns > 60
    heights = (boxes[:, 1, 1] - boxes[:, 0, 0]) / 40
    assert SIDES[0] - 0.02 < heights.min() < 0.25 and 0.6 < heights.max() < SIDES[1] + 0.02


def test_boxes_of_tiny_images_are_two_pixels_or_more_with_a_cut_between_them():
    boxes = halved_boxes(200, (3, 4), np.random.default_rng(0))
    height, width = boxes[:, 1, 1] - boxes[:, 0, 0], boxes[:, 1, 3] - boxes[:, 0, 2]
    assert set(height) == {2} and set(width) == {2, 3}  # 0.7 of 3 and of 4, rounded
    assert ((boxes[:, :, 1] > boxes[:, :, 0]) & (boxes[:, :, 3] > boxes[:, :, 2])).all()


def test_each_half_and_both_are_blurred():
    batch = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    boxes = np.array([[[2, 6, 3, 9], [6, 9, 3, 9]], [[0, 16, 0, 4], [0, 16, 4, 24]]])
    changed = occlude_halves(batch, boxes)
    blurred, expected = blur(batch), []
    for halves in ([0], [1], [0, 1]):
        for image in range(2):
            picture = batch[image].clone()
            for half in halves:
                top, bottom, left, right = boxes[image, half]
                for y in range(top, bottom):
                    for x in range(left, right):
                        picture[:, y, x] = blurred[image, :, y, x]
            expected.append(picture)
    assert torch.equal(changed, torch.stack(expected))
    torch.testing.assert_close(changed[5], blurred[1])  # its halves are the whole image
