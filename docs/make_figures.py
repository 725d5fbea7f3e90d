"""Makes the README's figures, with the network that comes with the project and from the notebooks as they are stored.

python -m docs.make_figures, or `make figures`
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import matplotlib

from utils.comparison import Comparison
from utils.config import load_config
from utils.imshow import save_figure, show_explanation
from utils.models import load_trained

DOCS = Path(__file__).parent
PAIR = ("rings/rings_020.png", "spokes/spokes_007.png")
# A notebook's cell, whose stored figure stands for it, and the file that shows it.
THUMBNAILS = {
    "notebook_01.png": ("01_Train_Siamese_model.ipynb", "01-19"),
    "notebook_02.png": ("02_Inference.ipynb", "11ac39da"),
    "notebook_03.png": ("03_Evaluate.ipynb", "03-23"),
}


def stored_figure(notebook: str, cell: str) -> bytes:
    """The first figure that a cell, named by its id, has among its stored outputs, as PNG."""
    cells = json.loads((DOCS.parent / notebook).read_text(encoding="utf-8"))["cells"]
    outputs = next(one["outputs"] for one in cells if one["id"] == cell)
    data = next(output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {}))
    return base64.b64decode("".join(data))


def main() -> None:
    matplotlib.use("Agg")
    config = load_config(DOCS.parent / "config.yml", "Synthetic")
    # Where nothing was trained, it is the network that comes with the project.
    model, _ = load_trained(config.model_copy(update={"checkpoints_path": DOCS / "nothing"}))
    pair = Comparison(model, [config.data_path / name for name in PAIR]).pair(0, 1)
    save_figure(show_explanation(**pair), DOCS / "explanation.png")
    for name, place in THUMBNAILS.items():
        (DOCS / name).write_bytes(stored_figure(*place))


if __name__ == "__main__":
    main()
