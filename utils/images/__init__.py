"""Images: from a folder to a batch."""

from utils.system.lazy import hand_on

__getattr__ = hand_on(
    __name__,
    pairs="evaluation_pairs only_used some_pairs",
    reading="read_image",
)
