"""Training: `loop` reads from top to bottom, its parts lie beside it."""

from utils.system.lazy import hand_on

__getattr__ = hand_on(
    __name__,
    loop="train",
    model_card="write_model_card",
)
