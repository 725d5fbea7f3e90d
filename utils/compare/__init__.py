"""Images compared with each other: in a notebook, by thumbnail, or as a page."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(
    __name__,
    choosing="choose_pair images_to_compare pair_folder",
    chooser="show_chooser",
    comparison="Comparison describe explained_pairs",
    evidence="crops_of original_regions",
)
