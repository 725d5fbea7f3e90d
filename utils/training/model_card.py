"""The model card of a network: what it is, what it learnt from, how good it is, and when not to trust it. The text is
in `model_card.md`, under the headings of Hugging Face's template (after Mitchell et al., 2019)."""

from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from utils.models import threshold_for
from utils.system.files import counted, write_whole
from utils.system.settings import Config

CARD = "README.md"
TEMPLATE = Path(__file__).with_suffix(".md")
FEW = 100  # scores on fewer images than these are rough


def write_model_card(
    config: Config, info: dict[str, Any], table: pd.DataFrame, history: pd.DataFrame, *scores: dict[str, Any] | None
) -> None:
    """Write the model card of a network that was trained here; the card that comes with the project is not changed."""
    if config.trained_path == config.checkpoints_path:
        write_whole(config.checkpoints_path / CARD, model_card(info, table, history, *scores))


def model_card(
    info: dict[str, Any],
    table: pd.DataFrame,
    history: pd.DataFrame,
    test: dict[str, Any] | None = None,
    unseen: dict[str, Any] | None = None,
) -> str:
    """The model card as Markdown, of what training leaves (`info` beside the network, the split, a row per epoch), and
    of the scores on test images and unseen classes, as notebook 03 measures them."""
    config = Config(**{key: value for key, value in info["config"].items() if key in Config.model_fields})  # of today
    splits = ["train", "valid", "test", *(["unseen"] if "unseen" in set(table.split) else [])]
    counts = pd.crosstab(table.label, table.split).reindex(columns=splits, fill_value=0)
    few = [(number, f"{name} image") for number, name in zip(counts.sum()[1:3], ("validation", "test"))]
    rough = " and ".join(counted(number, name) for number, name in few if number < FEW)
    # Numbers are the random changes; 0 switches them off, of the crop 1.
    changes = [f"{k} {v:g}" for k, v in config.image if isinstance(v, float) and v != (k == "RandomResizedCrop")]
    facts = {"info": info, "config": config, "counts": counts, "history": history, "test": test, "unseen": unseen}
    facts |= {"threshold": threshold_for(config, info, config.margin), "rough": rough, "changes": changes}
    environment = Environment(trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"plain": plain, "counted": counted}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(facts)


def plain(name: str) -> str:
    """A name as plain text in Markdown: special characters are escaped."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>()#+!|~&" else letter for letter in " ".join(name.split()))
