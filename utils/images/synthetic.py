"""Draws the built-in dataset: small scenes in which the texture of one disc decides the class.

Everything else is drawn alike for all classes: the colours, the disc's place and size, the background and the
plain clutter on it. So an explanation has a right answer, the disc, and its mask is kept for every image.

Every fifth scene has an intruder: a smaller disc with another class's texture, with a mask of its own. It speaks
against "similar" when the partner is of the scene's class, and against "dissimilar" when the partner is of the
intruder's: the right answer for a counterfactual explanation.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from tqdm.auto import tqdm

from utils.system.files import replacing

SYNTHETIC = "Synthetic"
CLASSES = ("checks", "dots", "rings", "spokes", "stripes")
IMAGES_PER_CLASS = 200
INTRUDER_EVERY = 5  # scenes
SEED = 2023  # of the drawings


class Scene(NamedTuple):
    """An RGB image and masks of its size, 255 on an object, 0 elsewhere; `intruder` is None where there is none."""

    image: Image.Image
    mask: Image.Image
    intruder: Image.Image | None


def ensure_synthetic(data_path: Path, verbose: bool = True, images_per_class: int | None = None) -> None:
    """Draw the scenes that are missing in `data_path`, and their masks, into a folder beside it."""
    missing = [
        (label, index)
        for index in range(images_per_class or IMAGES_PER_CLASS)
        for label in range(len(CLASSES))
        if not all(path.exists() for path in scene_files(data_path, label, index))
    ]
    for label, index in tqdm(missing, desc="Drawing synthetic scenes", disable=not (verbose and missing)):
        drawn = scene(label, np.random.default_rng([SEED, label, index]), intruder_class(label, index))
        for picture, path in zip(drawn, scene_files(data_path, label, index)):
            with replacing(path) as file:
                picture.save(file)


def scene_files(data_path: Path, label: int, index: int) -> list[Path]:
    """Build the paths of a scene's image, of its mask and, if it has an intruder, of the intruder's mask."""
    name = CLASSES[label]
    masks = data_path.with_name(f"{data_path.name}_masks") / name
    files = [data_path / name / f"{name}_{index:03d}.png", masks / f"{name}_{index:03d}.png"]
    return files if intruder_class(label, index) is None else [*files, masks / f"{name}_{index:03d}_intruder.png"]


def intruder_class(label: int, index: int) -> int | None:
    """Choose the class of the intruder in a scene, if it has one; the other classes take turns."""
    turn, rest = divmod(index, INTRUDER_EVERY)
    return None if rest else (label + 1 + turn % (len(CLASSES) - 1)) % len(CLASSES)


def scene(label: int, rng: np.random.Generator, intruder: int | None = None) -> Scene:
    """Draw one scene, with sides of 96 to 160 pixels; its class and that of an intruder are positions in `CLASSES`."""
    height, width = rng.integers(96, 161, 2)
    patches = Image.fromarray(rng.uniform(90, 190, (*rng.integers(3, 8, 2), 3)).astype(np.uint8))  # soft, muted
    canvas = np.array(patches.resize((width, height), Image.Resampling.BICUBIC), dtype=float)  # (H, W, 3) in 0-255
    for _ in range(rng.integers(3, 7)):
        shape = _clutter_shape(height, width, rng)
        y, x = np.mgrid[:height, :width]
        colour, slope = rng.uniform(60, 220, 3), rng.uniform(-0.6, 0.6, 2)  # shaded from side to side
        shaded = colour + (slope[0] * (y - y.mean()) + slope[1] * (x - x.mean()))[..., None]
        canvas[shape] = shaded[shape]
    radius = min(height, width) * rng.uniform(0.15, 0.19)
    place = _place(height, width, radius, rng)
    masks = [_draw_disc(canvas, CLASSES[label], *place, radius, rng), None]
    if intruder is not None:
        small = radius * rng.uniform(0.5, 0.65)
        other = place
        while np.hypot(other[0] - place[0], other[1] - place[1]) < radius + small + 3:
            other = _place(height, width, small, rng)
        masks[1] = _draw_disc(canvas, CLASSES[intruder], *other, small, rng)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5))
    return Scene(image, *masks)


def _place(height: int, width: int, radius: float, rng: np.random.Generator) -> tuple[float, float]:
    """Draw a random centre (y, x) for a disc that lies entirely inside the image."""
    return rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)


def _draw_disc(
    canvas: np.ndarray, name: str, y0: float, x0: float, radius: float, rng: np.random.Generator
) -> Image.Image:
    """Draw a class's disc onto `canvas`, float (H, W, 3) in 0-255; returns its mask."""
    y, x = np.mgrid[: canvas.shape[0], : canvas.shape[1]]
    disc = (y - y0) ** 2 + (x - x0) ** 2 <= radius**2
    dark = light = np.zeros(3)
    while light.mean() - dark.mean() <= 110:  # colours that differ clearly in brightness
        dark, light = rng.uniform(0, 255, (2, 3))
    ink = _texture(name, y - y0, x - x0, radius, rng)[..., None]
    canvas[disc] = (ink * dark + (1 - ink) * light)[disc]
    return Image.fromarray((255 * disc).astype(np.uint8))


def _clutter_shape(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw an ellipse or a rotated rectangle at a random place, bool (H, W)."""
    y, x = np.mgrid[:height, :width]
    y, x = y - rng.uniform(0, height), x - rng.uniform(0, width)
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    a, b = min(height, width) * rng.uniform(0.06, 0.22, 2)
    return (u / a) ** 2 + (v / b) ** 2 <= 1 if rng.random() < 0.5 else (abs(u) <= a) & (abs(v) <= b)


def _texture(name: str, y: np.ndarray, x: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a class's texture around a disc's centre, as ink of 0 or 1."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = 2 * np.pi / (radius * rng.uniform(0.5, 0.65))  # one period, as a share of the radius
    if name == "stripes":
        value = np.sin(wave * u + phase)
    elif name == "checks":
        value = np.sin(0.75 * wave * u + phase) * np.sin(0.75 * wave * v)
    elif name == "dots":
        value = np.cos(wave * u + phase) + np.cos(wave * v) - 0.6
    elif name == "rings":
        value = np.sin(wave * np.hypot(x, y) + phase)
    else:  # spokes
        value = np.sin(rng.integers(5, 8) * np.arctan2(y, x) + phase)
    return (value > 0).astype(float)
