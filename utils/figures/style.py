"""How figures write text: names as they are, in any script. Importing this module is enough."""

import matplotlib
from matplotlib.font_manager import fontManager

ASIAN_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
)

installed = {font.name for font in fontManager.ttflist}
matplotlib.rcParams["font.family"] = ["sans-serif", *(name for name in ASIAN_FONTS if name in installed)]
matplotlib.rcParams["text.parse_math"] = False  # a file may be called price_$5^$.jpg
matplotlib.rcParams["figure.dpi"] = 90  # as shown: notebooks are committed with their figures, and stay under 2 MB
