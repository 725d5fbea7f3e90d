"""Draws docs/explanation.png, the README's figure, with the network that comes with the project.

python -m docs.make_figures, or `make figures`
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

from utils.comparison import Comparison
from utils.config import load_config
from utils.imshow import save_figure, show_explanation
from utils.models import load_trained

DOCS = Path(__file__).parent
PAIR = ("rings/rings_020.png", "spokes/spokes_007.png")


def main() -> None:
    matplotlib.use("Agg")
    config = load_config(DOCS.parent / "config.yml", "Synthetic")
    # Where nothing was trained, it is the network that comes with the project.
    model, _ = load_trained(config.model_copy(update={"checkpoints_path": DOCS / "nothing"}))
    pair = Comparison(model, [config.data_path / name for name in PAIR]).pair(0, 1)
    save_figure(show_explanation(**pair), DOCS / "explanation.png")


if __name__ == "__main__":
    main()
