import subprocess
import sys
from pathlib import Path

import pytest

import utils.evaluate
from utils.evaluate import score_pairs


def test_a_room_hands_on_what_its_modules_hold():
    assert score_pairs is utils.evaluate.scores.score_pairs
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from utils.evaluate import nothing  # noqa: F401
    with pytest.raises(AttributeError, match="No utils.evaluate attribute nothing"):
        utils.evaluate.nothing  # noqa: B018


def test_a_network_that_embeds_loads_no_plotting_library():
    code = (
        "import sys; from utils.Siamese import SiameseNetwork; from utils.images import read_image; "
        "print([name for name in ('matplotlib', 'seaborn', 'sklearn', 'pandas') if name in sys.modules])"
    )
    root = Path(__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).strip() == "[]"
