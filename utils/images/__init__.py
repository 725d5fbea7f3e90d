"""Images: files in a folder -> splits, pairs, and tensors."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(
    __name__,
    pairs="evaluation_pairs renumber_pairs evenly_spaced_pairs",
    reading="read_image",
)
