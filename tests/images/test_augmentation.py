import numpy as np
import pytest
import torch

from utils.images.augmentation import Augmentation
from utils.settings import ImageOptions

STILL = dict(HorizontalFlip=0, VerticalFlip=0)


IMAGES = torch.randint(0, 256, (8, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmented(images, seed=0, **options):
    return Augmentation(ImageOptions(**STILL | options), seed)(images)


@pytest.mark.parametrize(
    "options, dims",
    [({"HorizontalFlip": 1}, [3]), ({"VerticalFlip": 1}, [2]), ({"HorizontalFlip": 1, "VerticalFlip": 1}, [2, 3])],
)
def test_a_certain_flip_is_torchs_flip(options, dims):
    assert torch.equal(augmented(IMAGES, **options), IMAGES.flip(dims))


@pytest.mark.parametrize("key, dim", [("HorizontalFlip", 3), ("VerticalFlip", 2)])
def test_a_flip_happens_as_often_as_asked(key, dim):
    images = IMAGES[:1].repeat(400, 1, 1, 1)
    flipped = (augmented(images, **{key: 0.25}) == images.flip(dim)).all(3).all(2).all(1)
    assert 60 < flipped.sum() < 140  # 100 expected, 8.7 one standard deviation


def test_erasing_fills_one_box_with_the_mean_colour_as_often_as_asked():
    mean = (0.2, 0.4, 0.6)
    white = torch.full((400, 3, 40, 40), 255, dtype=torch.uint8)
    erased = augmented(white, RandomErasing=0.25, normalization={"mean": mean}) != 255
    hit = erased.flatten(1).any(1)
    assert 60 < hit.sum() < 140  # 100 expected, 8.7 one standard deviation
    assert {
        tuple(image.flatten(1).amin(1).tolist())
        for image in augmented(white, RandomErasing=1, normalization={"mean": mean})
    } == {(51, 102, 153)}
    for box in erased[hit].any(1):
        height, width = box.any(1).sum(), box.any(0).sum()
        assert box.sum() == height * width and 0.015 < box.float().mean() < 0.35


def test_erasing_sets_in_as_training_goes_on():
    white, augment = (
        torch.full((400, 3, 40, 40), 255, dtype=torch.uint8),
        Augmentation(ImageOptions(HorizontalFlip=0, RandomErasing=0.8), 0),
    )
    shares = [(augment(white, progress) != 255).flatten(1).any(1).float().mean().item() for progress in (0, 0.5, 1)]
    # 0.4 and 0.8 expected, 0.025 one standard deviation.
    assert shares[0] == 0 and 0.3 < shares[1] < 0.5 and 0.7 < shares[2] < 0.9


@pytest.mark.parametrize("size", [(40, 40), (40, 80)])
def test_a_crop_keeps_at_least_the_share_asked_for_and_nearly_the_shape(size):
    """Rows and columns of a ramp image count where a crop begins and ends."""
    height, width = size
    ramp = torch.zeros(1, 3, height, width)
    ramp[:, 0], ramp[:, 1] = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)
    crops = augmented(ramp.round().to(torch.uint8).expand(300, -1, -1, -1), size=size, RandomResizedCrop=0.25).float()
    assert crops.shape == (300, 3, *size)
    tall = (crops[:, 0].amax((1, 2)) - crops[:, 0].amin((1, 2))) / 255  # share of the height that is left
    wide = (crops[:, 1].amax((1, 2)) - crops[:, 1].amin((1, 2))) / 255
    area, ratio = tall * wide, wide / tall
    assert 0.2 < area.min() < 0.35 and area.max() > 0.85
    assert 0.68 < ratio.min() < 0.85 and 1.18 < ratio.max() < 1.47


def test_all_zero_leaves_the_images_alone():
    assert torch.equal(augmented(IMAGES), IMAGES)


def test_rotation_turns_within_the_limit_and_fills_with_the_mean_colour():
    mean = (0.2, 0.4, 0.6)
    white = torch.full((30, 3, 41, 41), 255, dtype=torch.uint8)
    turned = augmented(white, RandomRotationDegrees=45, normalization={"mean": mean})
    assert (turned[:, :, 20, 20] == 255).all()
    corners = turned[:, :, 0, 0]
    assert [255 * value for value in mean] in corners.tolist()
    dot = torch.zeros(200, 3, 41, 41, dtype=torch.uint8)
    dot[:, :, 20, 38] = 255  # right of the centre
    y, x = np.array(
        [
            divmod(int(image[0].argmax()), 41)
            for image in augmented(dot, RandomRotationDegrees=30, normalization={"mean": (0, 0, 0)})
        ]
    ).T
    angles = np.degrees(np.arctan2(20 - y, x - 20))
    assert 22 < angles.max() < 33 and -33 < angles.min() < -22


def test_brightness_scales_by_up_to_the_given_share():
    grey = torch.full((300, 3, 2, 2), 100, dtype=torch.uint8)
    values = augmented(grey, brightness=0.3)[:, 0, 0, 0]
    assert 69 <= values.min() < 75 and 125 < values.max() <= 130


JITTER = ["brightness", "contrast", "saturation", "hue"]


@pytest.mark.parametrize("key", JITTER)
def test_each_jitter_works_alone(key):
    changed = augmented(IMAGES, **{key: 0.4})
    assert changed.shape == IMAGES.shape and changed.dtype == torch.uint8
    assert (changed != IMAGES).float().mean() > 0.3
    grey = IMAGES[:, :1].repeat(1, 3, 1, 1)
    change = (augmented(grey, **{key: 0.4}).int() - grey.int()).abs().max()
    assert (change <= 1) == (key in ("saturation", "hue"))  # grey has neither; 1 is rounding
    red = torch.zeros_like(IMAGES)
    red[:, 0] = 200
    # Only a turned hue makes red another colour.
    assert (augmented(red, **{key: 0.4}).argmax(1) > 0).any() == (key == "hue")


RANDOM = [
    {"HorizontalFlip": 0.5},
    {"VerticalFlip": 0.5},
    {"RandomRotationDegrees": 30},
    {"RandomResizedCrop": 0.4},
    {"RandomErasing": 0.5},
    *({key: 0.4} for key in JITTER),
]


@pytest.mark.parametrize("options", RANDOM, ids=lambda options: next(iter(options)))
def test_chance_is_drawn_per_image_and_per_call_from_the_seed(options):
    images = IMAGES[:1].repeat(12, 1, 1, 1)
    augmentation = Augmentation(ImageOptions(**STILL | options), 0)
    first, second = augmentation(images), augmentation(images)
    assert len({image.numpy().tobytes() for image in first}) > 1
    assert not torch.equal(first, second)
    again = Augmentation(ImageOptions(**STILL | options), 0)
    torch.manual_seed(123)
    assert torch.equal(again(images), first) and torch.equal(again(images), second)
    assert not torch.equal(augmented(images, seed=1, **options), first)


def test_the_global_generators_are_left_as_found(monkeypatch):
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    monkeypatch.setattr(torch.mps, "manual_seed", reseeded.append)
    before, source = torch.get_rng_state(), IMAGES.clone()
    augmented(IMAGES, HorizontalFlip=0.5, RandomRotationDegrees=10, hue=0.1)
    assert torch.equal(torch.get_rng_state(), before) and not reseeded
    assert torch.equal(IMAGES, source)
