"""Explanations: what regions do to an embedding, and what follows from it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"removal": ["Interventions"]})
