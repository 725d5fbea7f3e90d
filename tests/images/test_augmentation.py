import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import v2

from utils.images import augmentation
from utils.images.augmentation import Augmentation, changed_images
from utils.images.draws import COLOURS, Changes, draw_changes
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
    assert torch.equal(augmented(IMAGES, **options), IMAGES.flip(dims).float())


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
    assert changed.shape == IMAGES.shape and changed.dtype == torch.float32
    assert -0.001 < changed.min() and changed.max() < 255.001
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


# ---------------------------------------------------------------------------- beside torchvision, image by image


def smooth_images(count, size, seed=0):
    """Blurred noise, float on the scale of 0 to 255: its bilinear interpolation is about right."""
    noise = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 255
    return v2.functional.gaussian_blur(noise, [15, 15], [3.0, 3.0])


def changes(count, **fields):
    return Changes(**dict.fromkeys(Changes._fields) | {"factors": np.ones((count, 4))} | fields)


BLANK = torch.tensor([124.0, 116.0, 104.0]).view(3, 1, 1)
CROPS = np.array([[0, 0, 30, 40], [3, 5, 21, 30], [9, 0, 21, 13], [0, 33, 30, 7]])


def test_crops_are_torchvisions():
    images = IMAGES[:4].float().repeat(1, 1, 2, 2)[:, :, :30, :40]
    found = changed_images(images.clone(), changes(4, crops=CROPS), BLANK)
    for image, crop, one in zip(images, CROPS.tolist(), found):
        torch.testing.assert_close(one, v2.functional.resized_crop(image, *crop, [30, 40]), atol=0.01, rtol=0)


def test_turns_are_torchvisions_and_beyond_the_image_lies_the_mean_colour():
    images, angles = IMAGES[:4].float(), np.array([0.0, 17.5, -44.0, 131.0])
    found = changed_images(images.clone(), changes(4, angles=angles), BLANK)
    for image, angle, one in zip(images, angles, found):
        turned, inside = (
            v2.functional.rotate(part, float(angle), v2.InterpolationMode.BILINEAR, fill=fill)
            for part, fill in ((image, BLANK.flatten().tolist()), (torch.ones(1, 16, 24), [0.0]))
        )
        # torchvision weighs the image's edge twice, so it is left out.
        whole = ((inside < 1e-10) | (inside > 1 - 1e-4)).expand(3, -1, -1)
        assert whole.float().mean() > 0.7 and (angle == 0 or (inside == 0).any())
        torch.testing.assert_close(one[whole], turned[whole], atol=0.02, rtol=0)


def test_the_edge_of_a_turned_image_blends_into_the_mean_colour():
    white = torch.full((1, 3, 16, 24), 255.0)
    found = changed_images(white.clone(), changes(1, angles=np.array([20.0])), BLANK)
    share = (found - BLANK) / (255 - BLANK)
    assert share.min() > -1e-4 and share.max() < 1 + 1e-4
    torch.testing.assert_close(share[:, 0], share[:, 2], atol=1e-4, rtol=0)


def test_flips_turns_and_crops_in_one_interpolation_are_those_in_sequence():
    """On smooth images, where interpolating twice costs little: within 2 grey levels inside of the image."""
    images = smooth_images(4, (30, 40))
    flips = np.array([[True, False], [False, True], [True, True], [False, False]])
    angles = np.array([20.0, -35.0, 10.0, 77.0])
    found = changed_images(images.clone(), changes(4, flips=flips, angles=angles, crops=CROPS), BLANK)
    for position, image in enumerate(torch.cat([images, torch.ones(4, 1, 30, 40)], dim=1)):
        for axis, flipped in zip((2, 1), flips[position]):
            image = image.flip(axis) if flipped else image
        image = v2.functional.rotate(image, float(angles[position]), v2.InterpolationMode.BILINEAR)
        image = v2.functional.resized_crop(image, *CROPS[position].tolist(), [30, 40])
        inside = (image[3] > 1 - 1e-4).expand(3, -1, -1)
        assert inside.float().mean() > 0.2
        assert (found[position] - image[:3])[inside].abs().max() < 2 < image[:3][inside].std()


JITTERS = [
    getattr(v2.functional, f"adjust_{name}") for name in ("brightness", "contrast", "saturation", "hue")
]  # in the order of COLOURS


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_colours_are_torchvisions_in_every_order(order):
    factors = np.array([[1.3, 0.6, 1.4, 0.1], [0.7, 1.5, 0.5, -0.3], [0.0, 1.0, 2.0, 0.5]])
    orders = np.array([order, order[::-1], order[1:] + order[:1]])
    images = IMAGES[:3].clone()
    images[1, :, :4] = images[1, :1, :4]  # grey
    found = changed_images(images.float(), changes(3, order=orders, factors=factors), BLANK)
    for position, (image, one) in enumerate(zip(images, found)):
        exact, rounded = image / 255, image
        for kind in orders[position]:
            exact = JITTERS[kind](exact, factors[position, kind])
            rounded = JITTERS[kind](rounded, factors[position, kind])
        torch.testing.assert_close(one, exact * 255, atol=0.01, rtol=0)
        assert (one - rounded).abs().mean() < 4  # which cuts off fractions four times, and then stretches the contrast


def test_a_covered_box_shows_what_the_other_image_has_there():
    covers = np.array([[2, 3, 5, 7], [0, 0, 0, 0], [11, 20, 5, 4]])
    images, others = IMAGES[:3].float(), IMAGES[3:6]
    found = changed_images(images.clone(), changes(3, covers=covers), BLANK, others)
    for image, other, (top, left, height, width), one in zip(images, others, covers.tolist(), found):
        for y, x in np.ndindex(image.shape[1:]):
            inside = top <= y < top + height and left <= x < left + width
            assert torch.equal(one[:, y, x], (other.float() if inside else image)[:, y, x])
    assert torch.equal(
        changed_images(images.clone(), changes(3, covers=covers), BLANK), images
    )  # nothing to cover with


def test_without_other_images_nothing_is_covered():
    augment = Augmentation(ImageOptions(HorizontalFlip=0, CutMix=1), 0)
    assert augment.covers and not augment.changes_images and augment(IMAGES) is IMAGES
    covered = augment(IMAGES, others=255 - IMAGES) != IMAGES
    assert covered.flatten(1).any(1).all() and covered.float().mean() < 0.4
    assert not Augmentation(ImageOptions(), 0).covers


def test_holes_are_torchvisions():
    holes = np.array([[2, 3, 5, 7], [0, 0, 0, 0], [11, 20, 5, 4]])
    found = changed_images(IMAGES[:3].float(), changes(3, holes=holes), BLANK)
    for image, (top, left, height, width), one in zip(IMAGES[:3].float(), holes.tolist(), found):
        assert torch.equal(one, v2.functional.erase(image, top, left, height, width, BLANK.expand(3, height, width)))


# ---------------------------------------------------------------------------- distributions, beside torchvision's

EVERYTHING = ImageOptions(
    size=(40, 60),
    HorizontalFlip=0.3,
    VerticalFlip=0.6,
    RandomRotationDegrees=30,
    RandomResizedCrop=0.4,
    RandomErasing=0.4,
    CutMix=0.3,
    brightness=0.3,
    contrast=1.4,
    saturation=0.2,
    hue=0.1,
)


@pytest.fixture(scope="module")
def drawn():
    return draw_changes(EVERYTHING, np.random.default_rng(0), 10_000, (40, 60), progress=0.5)


def torchvisions(transform, keys, size=(40, 60), count=2_000):
    """`count` draws of a transform's parameters, (count, K)."""
    image = torch.zeros(3, *size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = [transform.make_params([image]) for _ in range(count)]
    return np.array([[row[key] for key in keys] for row in rows])


def same_distribution(found, expected):
    """Kolmogorov and Smirnov's test, column by column, at a level that chance passes in 999 of 1,000 runs."""
    assert found.shape[1] == expected.shape[1]
    for ours, theirs in zip(found.T, expected.T):
        assert ks_2samp(ours, theirs).pvalue > 0.001


def test_flips_and_angles_are_drawn_as_asked(drawn):
    assert drawn.flips.mean(0) == pytest.approx([0.3, 0.6], abs=0.02)  # 0.005 one standard deviation
    assert abs(np.corrcoef(drawn.flips.T)[0, 1]) < 0.04
    assert kstest(drawn.angles, "uniform", (-30, 60)).pvalue > 0.001


def test_crops_are_distributed_as_torchvisions(drawn):
    ratio = (3 / 4 * 60 / 40, 4 / 3 * 60 / 40)
    expected = torchvisions(
        v2.RandomResizedCrop((40, 60), scale=(0.4, 1), ratio=ratio), ["top", "left", "height", "width"]
    )
    same_distribution(drawn.crops, expected)
    same_distribution(drawn.crops[:, 2:].prod(1, keepdims=True), expected[:, 2:].prod(1, keepdims=True))
    same_distribution(drawn.crops[:, 3:] / drawn.crops[:, 2:3], expected[:, 3:] / expected[:, 2:3])
    assert (drawn.crops[:, :2] >= 0).all() and (drawn.crops[:, :2] + drawn.crops[:, 2:] <= (40, 60)).all()


def test_holes_are_distributed_as_torchvisions_and_as_often_as_asked(drawn):
    hit = drawn.holes[:, 2] > 0
    assert hit.mean() == pytest.approx(0.2, abs=0.02)  # half of 0.4; 0.004 one standard deviation
    expected = torchvisions(v2.RandomErasing(), ["i", "j", "h", "w"])
    same_distribution(drawn.holes[hit], expected)


def test_colours_are_distributed_as_torchvisions(drawn):
    keys = [f"{name}_factor" for name in COLOURS]
    expected = torchvisions(v2.ColorJitter(0.3, 1.4, 0.2, 0.1), keys)
    same_distribution(drawn.factors, expected)
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert len(orders) == 24 and chisquare(counts).pvalue > 0.001


def test_boxes_are_covered_as_often_as_asked_from_the_start_and_are_those_that_would_be_erased(drawn):
    hit = drawn.covers[:, 2] > 0
    assert hit.mean() == pytest.approx(0.3, abs=0.02)  # 0.005 one standard deviation
    assert not (hit & (drawn.holes[:, 2] > 0)).any()  # 0.2 + 0.3 of 1
    same_distribution(drawn.covers[hit], torchvisions(v2.RandomErasing(), ["i", "j", "h", "w"]))
    whole = draw_changes(EVERYTHING.model_copy(update={"CutMix": 1}), np.random.default_rng(0), 10_000, (40, 60), 0)
    assert (whole.covers[:, 2] > 0).all() and not whole.holes.any()


def test_an_image_s_changes_depend_on_the_images_before_it_and_not_on_the_batches():
    whole, parts = (Augmentation(EVERYTHING, 3) for _ in range(2))
    images = IMAGES.repeat(2, 1, 1, 1)
    others, sizes = images.flip(0), [1, 5, 7, 3]
    expected = whole(images, others=others)
    pieces = zip(images.split(sizes), others.split(sizes))
    found = torch.cat([parts(part, others=covering) for part, covering in pieces])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_images_that_are_changed_at_once_are_as_one_by_one(monkeypatch):
    """As on a GPU: each is due for other colours first."""
    images = IMAGES.repeat(2, 1, 1, 1)
    expected = Augmentation(EVERYTHING, 3)(images)
    monkeypatch.setattr(augmentation, "at_once", lambda images: (len(images), len(images)))
    torch.testing.assert_close(Augmentation(EVERYTHING, 3)(images), expected, atol=1e-3, rtol=0)
    assert (expected - images).abs().mean() > 1


def test_images_that_are_skipped_count_as_if_they_had_been_changed():
    whole, part = (Augmentation(EVERYTHING, 3) for _ in range(2))
    images = IMAGES.repeat(2, 1, 1, 1)
    expected = torch.cat([whole(images), whole(images)])
    part.skip(5)
    first = part(images[5:9])
    part.skip(len(images) - 9 + 2)
    torch.testing.assert_close(first, expected[5:9], atol=1e-3, rtol=0)
    torch.testing.assert_close(part(images[2:4]), expected[len(images) + 2 :][:2], atol=1e-3, rtol=0)


def test_switching_one_change_on_leaves_the_others_as_they_were(drawn):
    fewer = EVERYTHING.model_copy(update={"RandomResizedCrop": 1.0, "saturation": 0.0, "VerticalFlip": 0.0})
    other = draw_changes(fewer, np.random.default_rng(0), 10_000, (40, 60), progress=0.5)
    assert other.crops is None and not other.flips[:, 1].any() and other.order.shape == (10_000, 3)
    assert (other.flips[:, 0] == drawn.flips[:, 0]).all() and (other.angles == drawn.angles).all()
    assert (other.holes == drawn.holes).all()
