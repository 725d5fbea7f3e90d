"""Images compared with each other: in a notebook, by thumbnail, or as a page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "chooser": ["show_chooser"],
        "comparison": ["Comparison", "choose_pair", "describe", "explained_pairs", "images_to_compare", "pair_folder"],
        "evidence": ["crops_of", "original_regions"],
        "report": ["page", "write_report"],
    },
)
