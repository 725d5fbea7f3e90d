"""Training: `loop` reads from top to bottom, its parts lie beside it."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(__name__, loop="train", model_card="write_model_card")
