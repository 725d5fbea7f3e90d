"""Images compared with each other: in a notebook, by thumbnail, or as a page."""

from utils.system.lazy import hand_on

__getattr__ = hand_on(
    __name__,
    choosing="choose_pair images_to_compare pair_folder",
    chooser="show_chooser",
    comparison="Comparison describe explained_pairs",
)
