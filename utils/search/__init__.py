"""Search: a folder of images, indexed, and the nearest of them explained."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(
    __name__,
    build="INDEX build_index place_of",
    figure="MOST_ROWS show_hits",
    query="export_parquet find_index search",
    store="Index",
)
