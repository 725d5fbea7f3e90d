"""Search: a folder of images, indexed, and the nearest of them explained."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["INDEX", "build_index", "place_of"],
        "query": ["MOST_ROWS", "export_parquet", "find_index", "search", "show_hits"],
        "store": ["Index"],
    },
)
