"""Images compared with each other: in a notebook, by thumbnail, or as a page."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(
    __name__,
    chooser="show_chooser",
    comparison="Comparison choose_pair describe explained_pairs images_to_compare pair_folder",
    evidence="crops_of original_regions",
    report="write_report",
)
