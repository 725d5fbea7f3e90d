"""Images: from a folder to a batch."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(
    __name__,
    pairs="evaluation_pairs only_used some_pairs",
    reading="read_image",
)
