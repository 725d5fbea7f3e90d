"""Images: files in a folder -> splits, pairs, and tensors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"pairs": ["evaluation_pairs", "renumber_pairs", "evenly_spaced_pairs"], "reading": ["read_image"]},
)
