"""Search: a folder of images, indexed, and the nearest of them explained."""

from utils.system.lazy import hand_on

__getattr__ = hand_on(
    __name__,
    build="INDEX build_index place_of",
    figure="show_hits",
    query="search",
    store="Index",
)
