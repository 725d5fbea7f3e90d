"""In a notebook: choose two images by thumbnail or upload, and see their score, maps and "what if" at once."""

import re
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.core.pylabtools import print_figure
from IPython.display import display

from utils.compare.comparison import Comparison, describe
from utils.explain.occlusion import RegionEffects
from utils.figures.drawing import short
from utils.images.reading import SUFFIXES, read_image, shrink
from utils.imshow import show_explanation, show_what_if
from utils.Siamese import SiameseNetwork
from utils.system.errors import DataError
from utils.system.files import replacing

MOST = 40  # thumbnails shown
SIDE = 72  # pixels, of a thumbnail


class Chooser:
    """A widget to choose a pair of images by thumbnail, of at most `MOST` images; more can be uploaded. Two are chosen
    at the start. Thumbnails and uploads become image 1 and image 2 in turn; the buttons below a thumbnail say which
    one. Each image is measured once, when it is first explained."""

    def __init__(self, model: SiameseNetwork, paths: Sequence[Path], *notes: str) -> None:
        self.model, self.notes = model, notes
        self.chosen, self.turn = [None, None], 0  # paths of image 1 and image 2; whose turn it is
        self.effects: dict[Path, RegionEffects] = {}  # of the images measured so far
        self.buttons: dict[Path, list[widgets.Button]] = {}  # two for each image
        self.uploads = tempfile.TemporaryDirectory(prefix="chooser-")
        options = {"accept": ",".join(sorted(SUFFIXES)), "layout": {"width": "max-content"}}
        self.upload = widgets.FileUpload(description="Upload images", multiple=True, **options)
        self.upload.observe(self._take_uploads, "value")
        # Layouts are shared by all thumbnails, as a notebook stores every widget and layout.
        self.wide, self.narrow = widgets.Layout(width="90px"), widgets.Layout(width="36px")
        self.under = widgets.Layout(height=f"{SIDE}px", margin="0")
        self.over = widgets.Layout(width="90px", height=f"{SIDE}px", margin=f"-{SIDE}px 0 0 0")
        # What is to be chosen next, or the decision with its maps and checks, or what is wrong:
        self.result = widgets.HTML()
        self.tiles = widgets.Box(layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([self.tiles, self.upload, self.result])
        self._show("Choose image 1 and image 2.", *filter(None, map(self._add, paths[:MOST])))
        if len(self.buttons) == len(paths[:MOST]) >= 2:  # otherwise, what is wrong stays to be read
            self.choose(paths[0], 0)
            self.choose(paths[1], 1)

    def choose(self, path: Path, place: int, *_: object) -> None:
        """Choose an image as the pair's first (`place` 0) or second (1); when both are chosen, explain the pair."""
        self.chosen[place], self.turn = path, 1 - place
        for other, pair in self.buttons.items():
            for button, chosen in zip(pair, self.chosen):
                button.button_style = "primary" if chosen == other else ""
        if None in self.chosen:
            return self._show(f"Now choose image {self.chosen.index(None) + 1}.")
        self._show("Measuring …")
        try:
            compared = Comparison(self.model, self.chosen)
        except DataError as error:  # a file that was deleted meanwhile
            return self._show(str(error))
        compared.effects = {i: self.effects[path] for i, path in enumerate(self.chosen) if path in self.effects}
        pair, what_if = compared.pair(0, 1), compared.what_if(0, 1)
        self.effects |= {self.chosen[i]: effects for i, effects in compared.effects.items()}
        figures = ""
        for figure in (show_explanation(**pair), show_what_if(pair["images"], what_if, pair["names"])):
            figures += _tag(print_figure(figure), "max-width: 100%")
            plt.close(figure)
        checks = "".join(f"<li>{escape(line)}</li>" for line in what_if.report(pair["names"]).split("\n"))
        self._show(describe(pair["explanation"], pair["names"], self.model.threshold), *self.notes)
        self.result.value += f"{figures}<ul>{checks}</ul>"

    def _show(self, *lines: str) -> None:
        """Show lines of text in place of the last result."""
        self.result.value = "".join(f"<p><b>{escape(line)}</b></p>" for line in lines)

    def _add(self, path: Path) -> str | None:
        """Add a thumbnail with its buttons; returns what is wrong with the file, if anything."""
        try:
            image = shrink(read_image(path), SIDE)
        except DataError as error:
            return str(error)
        style = f"width: 90px; height: {SIDE}px; object-fit: contain; display: block"
        picture = widgets.HTML(_tag(image._repr_jpeg_(), style), layout=self.under)
        # ipywidgets knows no click on a picture: a button lies over it that nobody sees.
        click = widgets.Button(tooltip=f"choose {path.name}", layout=self.over, style={"button_color": "transparent"})
        click.on_click(lambda _: self.choose(path, self.turn))
        name = widgets.HTML(f"<small title='{escape(path.name)}'>{escape(short(path.stem, 13))}</small>")
        self.buttons[path] = pair = [widgets.Button(description=text, layout=self.narrow) for text in "12"]
        for place, button in enumerate(pair):
            button.tooltip = f"{path.name} as image {place + 1}"
            button.on_click(partial(self.choose, path, place))
        tile = widgets.VBox([picture, click, name, widgets.HBox(pair, layout=self.wide)], layout=self.wide)
        self.tiles.children += (tile,)
        return None

    def _take_uploads(self, change: dict[str, Any]) -> None:
        """Add the uploaded files and choose each, as if its thumbnail were clicked."""
        problems = []
        for file in change["new"]:
            # The browser's name for it, as a file name that every system allows.
            name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", file["name"])[-100:]
            path = Path(self.uploads.name) / str(len(self.buttons)) / name
            with replacing(path) as partly:
                partly.write_bytes(file["content"])
            if problem := self._add(path):
                problems.append(problem.replace(str(path.parent), "").lstrip("/\\"))
            else:
                self.choose(path, self.turn)
        if problems:
            self._show(*problems)


def show_chooser(model: SiameseNetwork, paths: Sequence[Path], *notes: str) -> Chooser:
    """Show a `Chooser` below the notebook's cell; below each decision it shows the `notes`."""
    chooser = Chooser(model, paths, *notes)
    # Where no notebook is running, as on a page of GitHub, the words stand for the widget.
    words = {"text/plain": "Two images can be chosen here while the notebook is running."}
    display(chooser.box._repr_mimebundle_() | words, raw=True)
    return chooser


def _tag(image: bytes, style: str) -> str:
    """Make the HTML of an image; browsers find out by themselves whether it is a JPEG or a PNG."""
    return f"<img style='{style}' src='data:image/png;base64,{b64encode(image).decode()}'>"
