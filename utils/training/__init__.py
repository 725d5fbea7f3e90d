"""Training: `loop` reads from top to bottom, its parts lie beside it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"loop": ["train"], "model_card": ["write_model_card"]}
)
