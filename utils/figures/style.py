"""The style of all figures and of the page: colours of evidence and similarity, and fonts for names in any script.

Importing this module is enough to set the fonts."""

from contextlib import suppress

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.font_manager import findSystemFonts, fontManager

# Brightness rises with the value: legible in print and to colour-blind readers. Its black end is left out, because
# weak evidence would look like a shadow.
COLORMAP = ListedColormap(matplotlib.colormaps["inferno"](np.linspace(0.3, 1, 256)), name="evidence")
SIMILARITY = matplotlib.colormaps["viridis"]
OPACITY = 0.9  # of the strongest evidence
WEAK = 0.7  # exponent of the opacity of weaker evidence, so that half of it is clearly seen
DRAINED = 0.15  # evidence, as a share of the strongest, from which on the image under it is grey
FAINT = 0.15  # share of the pair's strongest evidence; a weaker map is hardly seen: a few words say so

# With Chinese letters, most of them with Japanese and Korean ones, too; the nicer ones first.
# matplotlib calls the file that holds all of Noto Sans CJK "Noto Sans CJK JP".
ASIAN_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "SimHei", "Heiti TC", "STHeiti", "Malgun Gothic", "SimSun", "Songti SC"),
    *("Arial Unicode MS", "Droid Sans Fallback"),
)


def asian_fonts() -> list[str]:
    """List the fonts of `ASIAN_FONTS` that are installed, in their order."""
    if not {font.name for font in fontManager.ttflist} & {*ASIAN_FONTS}:
        # matplotlib lists fonts once and keeps the list; one may have been installed since.
        for file in set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}:
            with suppress(Exception):  # a file that matplotlib cannot read, of whatever kind
                fontManager.addfont(file)
    names = {font.name for font in fontManager.ttflist}
    return [name for name in ASIAN_FONTS if name in names]


# A letter is looked for in each of them, from the first to the last.
matplotlib.rcParams["font.family"] = ["sans-serif", *asian_fonts()]
matplotlib.rcParams["text.parse_math"] = False  # a file may be called price_$5^$.jpg
matplotlib.rcParams["text.usetex"] = False  # nor are names, as a_b.jpg, LaTeX
matplotlib.rcParams["figure.dpi"] = 80  # as shown: notebooks are committed with their figures, and stay under 2 MB
