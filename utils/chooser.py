"""In a notebook: choose two images by thumbnail or upload, and see their score, maps and "what if" at once."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from utils.comparison import Comparison, describe
from utils.explain.occlusion import RegionEffects
from utils.files import replacing
from utils.images.reading import SUFFIXES, DataError, read_image, shrink
from utils.imshow import short, show_explanation, show_what_if
from utils.Siamese import SiameseNetwork

try:
    import ipywidgets as widgets
except ImportError:  # the notebook goes on without
    widgets = None

MOST = 40  # thumbnails
SIDE = 72  # of a thumbnail, in pixels


def show_chooser(model: SiameseNetwork, paths: Sequence[Path]) -> Chooser | None:
    """Show a `Chooser` below the notebook's cell, or say that there is none."""
    if widgets is None:
        print("ipywidgets is missing, so there is nothing to choose from; the cells below do without")
        return None
    chooser = Chooser(model, paths)
    # Where no notebook is running, as on a page of GitHub, the words stand for the widget.
    words = {"text/plain": "Two images can be chosen here while the notebook is running."}
    display(chooser.box._repr_mimebundle_() | words, raw=True)
    return chooser


class Chooser:
    """Thumbnails with two buttons each, for image 1 and image 2. Nothing is measured before both are chosen, and every
    image once, however often it is chosen.

    Args:
        model: a trained network.
        paths: of the images to choose from, at most `MOST` of which are shown; more can be uploaded. Those that cannot
            be read are named.

    Attributes:
        box: the widget.
        buttons: two for each image, by its path.
        chosen: the paths of image 1 and image 2.
        status: HTML that says what is chosen, the decision, or what is wrong.
        figures: the maps, and "what if", as PNG.
        checks: HTML with a line for each map, whether it passed.
    """

    def __init__(self, model: SiameseNetwork, paths: Sequence[Path]) -> None:
        self.model, self.chosen = model, [None, None]
        self.effects: dict[Path, RegionEffects] = {}
        self.buttons: dict[Path, list[Any]] = {}
        self.uploads = tempfile.TemporaryDirectory(prefix="chooser-")
        kinds, whole = ",".join(sorted(SUFFIXES)), {"width": "max-content"}
        self.upload = widgets.FileUpload(accept=kinds, multiple=True, description="Upload images", layout=whole)
        self.upload.observe(self._take_uploads, "value")
        wrap = widgets.Layout(flex_flow="row wrap")
        # One for all tiles, as notebooks are stored with their widgets, and these with their layouts.
        sizes = {"tile": {"width": "84px", "margin": "0 6px 6px 0"}, "button": {"width": "36px"}, "row": {}}
        sizes["picture"] = {"width": f"{SIDE}px", "height": f"{SIDE}px", "object_fit": "contain"}
        self.layouts = {name: widgets.Layout(**size) for name, size in sizes.items()}
        self.tiles = widgets.Box(layout=wrap)
        self.status, self.checks = widgets.HTML(), widgets.HTML()
        layout = {"max_width": "100%", "object_fit": "contain", "display": "none"}
        self.figures = [widgets.Image(format="png", layout=layout) for _ in range(2)]
        figures = widgets.Box(self.figures, layout=wrap)
        self.box = widgets.VBox([self.tiles, self.upload, self.status, figures, self.checks])
        unreadable = [problem for path in paths[:MOST] if (problem := self._add(path))]
        self._say("Choose image 1 and image 2.", *unreadable)

    def choose(self, path: Path, place: int) -> None:
        """Make an image number `place`, 0 or 1, of the pair; with both chosen, compare and explain them."""
        self.chosen[place] = path
        for other, pair in self.buttons.items():
            for number, button in enumerate(pair):
                button.button_style = "primary" if self.chosen[number] == other else ""
        if None in self.chosen:
            self._say(f"Now choose image {self.chosen.index(None) + 1}.")
            return
        self._say("Measuring …")
        try:
            self._explain()
        except DataError as error:  # a file that has gone meanwhile
            self._say(str(error))

    def _explain(self) -> None:
        compared = Comparison(self.model, self.chosen)
        compared.effects = {i: self.effects[path] for i, path in enumerate(self.chosen) if path in self.effects}
        pair, what_if = compared.pair(0, 1), compared.what_if(0, 1)
        self.effects |= {path: compared.effects[i] for i, path in enumerate(self.chosen) if i in compared.effects}
        self._say(describe(pair["explanation"], pair["names"], self.model.threshold))
        drawn = show_explanation(**pair), show_what_if(pair["images"], what_if, pair["names"])
        for widget, figure in zip(self.figures, drawn):
            widget.value = _png(figure)
            widget.layout.display = None
        lines = what_if.report(pair["names"]).split("\n")
        self.checks.value = f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"

    def _say(self, *lines: str) -> None:
        """Also takes the last pair's figures away."""
        self.status.value = "<br>".join(f"<b>{escape(line)}</b>" for line in lines)
        self.checks.value = ""
        for figure in self.figures:
            figure.layout.display = "none"

    def _add(self, path: Path) -> str | None:
        """Add a thumbnail with its buttons; returns what is wrong with the file, if anything."""
        try:
            image = shrink(read_image(path), SIDE)
        except DataError as error:
            return str(error)
        data = io.BytesIO()
        image.save(data, "JPEG", quality=80)
        picture = widgets.Image(value=data.getvalue(), format="jpeg", layout=self.layouts["picture"])
        self.buttons[path] = pair = []
        for place in (0, 1):
            tooltip = f"{path.name} as image {place + 1}"
            button = widgets.Button(description=str(place + 1), tooltip=tooltip, layout=self.layouts["button"])
            button.on_click(lambda _, place=place: self.choose(path, place))
            pair.append(button)
        label = f"<small title='{escape(path.name)}'>{escape(short(path.stem, 13))}</small>"
        name, row = widgets.HTML(label, layout=self.layouts["row"]), widgets.HBox(pair, layout=self.layouts["row"])
        self.tiles.children += (widgets.VBox([picture, name, row], layout=self.layouts["tile"]),)
        return None

    def _take_uploads(self, change: dict[str, Any]) -> None:
        """Add the uploaded files; each takes the first place that is free, or else that of image 2."""
        problems = []
        for file in change["new"]:
            # As the browser names it: only a name, of letters that every system takes.
            name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", file["name"])[-100:]
            path = Path(self.uploads.name) / str(len(self.buttons)) / name
            with replacing(path) as partial:
                partial.write_bytes(file["content"])
            if problem := self._add(path):
                problems.append(problem.replace(str(path.parent), "").lstrip("/\\"))
            else:
                self.choose(path, self.chosen.index(None) if None in self.chosen else 1)
        if problems:
            self._say(*problems)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", bbox_inches="tight")
    plt.close(figure)
    return data.getvalue()
