"""A film of the page that `report` writes: what a person sees who points at regions and clicks, in a real Chromium."""

import base64
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

from tests.browser import Browser

SIZE = (1000, 728)  # of the window, in pixels
ARROW = ((0, 0), (0, 22), (5, 17), (9, 26), (13, 24), (9, 16), (16, 16))  # the pointer, which Chromium does not draw
MATCHED = "#pair figure:nth-child(1) .matched"  # the region of image 1 that matches best, outlined at first
STAGE = "#pair figure:nth-child({}) .stage"
# What is pointed at, where in it (shares across and down), whether it is clicked, and for how many milliseconds the
# picture then stands.
STEPS = [
    (None, 0.0, 0.0, False, 2000),
    (MATCHED, 0.5, 0.5, False, 1500),
    (MATCHED, 0.5, 0.5, True, 2000),
    (STAGE.format(1), 0.75, 0.45, False, 1500),
    (STAGE.format(1), 0.75, 0.45, True, 2000),
    (STAGE.format(2), 0.5, 0.45, False, 2000),
]


def film(page: Path, path: Path) -> None:
    """Film `STEPS` on a page of one pair, as an animated WebP."""
    frames = []
    with Browser() as browser:
        browser.send("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(page, *SIZE)
        for selector, across, down, click, _ in STEPS:
            at = browser.place(selector, across, down) if selector else None
            if selector:
                browser.mouse(selector, across, down, click)
            frames.append(screenshot(browser, at))
    lasting = [milliseconds for *_, milliseconds in STEPS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=lasting, loop=0, quality=85, method=6)


def screenshot(browser: Browser, at: dict | None) -> Image.Image:
    """What the window shows, with a pointer at `at`."""
    picture = base64.b64decode(browser.send("Page.captureScreenshot", format="png")["data"])
    image = Image.open(BytesIO(picture)).convert("RGB")
    if at:
        arrow = [(at["x"] + x, at["y"] + y) for x, y in ARROW]
        ImageDraw.Draw(image).polygon(arrow, fill="black", outline="white", width=2)
    return image
