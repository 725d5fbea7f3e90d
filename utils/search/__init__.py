"""Search: a folder of images, indexed, and the nearest of them explained."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(
    __name__,
    build="INDEX build_index place_of",
    query="MOST_ROWS export_parquet find_index search show_hits",
    store="Index",
)
