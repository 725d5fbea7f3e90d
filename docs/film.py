"""A film of the page that `report` writes: what a person sees who points at regions and clicks, in a real Chromium."""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

from tests.browser import Browser

SIZE = (1000, 760)  # of the window, in pixels
ARROW = ((0, 0), (0, 22), (5, 17), (9, 26), (13, 24), (9, 16), (16, 16))  # the pointer, which Chromium does not draw
# What is done: the image (1, 2, or 0 for nothing), where in it (shares across and down), a click or none, and how long
# the picture then stands, in milliseconds.
STEPS = [
    (0, 0.0, 0.0, False, 1500),
    (1, 0.55, 0.45, False, 1800),
    (1, 0.75, 0.75, False, 1800),
    (1, 0.75, 0.75, True, 2200),
    (2, 0.5, 0.4, False, 1800),
    (2, 0.5, 0.4, True, 2500),
]


def film(page: Path, path: Path) -> None:
    """Film `STEPS` on a page of one pair; `path` is an animated WebP."""
    frames, lasting = [], []
    with Browser() as browser:
        browser.open(page, *SIZE)
        for image, across, down, click, wait in STEPS:
            at = None
            if image:
                selector = f"#pair figure:nth-child({image}) .stage"
                at = browser.place(selector, across, down)
                browser.mouse(selector, across, down, click)
            frames.append(screenshot(browser, at))
            lasting.append(wait)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=lasting, loop=0, quality=80, method=6)


def screenshot(browser: Browser, at: dict | None) -> Image.Image:
    """What the window shows, with a pointer at `at`."""
    picture = base64.b64decode(browser.send("Page.captureScreenshot", format="png")["data"])
    image = Image.open(BytesIO(picture)).convert("RGB")
    if at:
        arrow = [(at["x"] + x, at["y"] + y) for x, y in ARROW]
        ImageDraw.Draw(image).polygon(arrow, fill="black", outline="white", width=2)
    return image
