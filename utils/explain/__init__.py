"""Explanations: what regions do to an embedding, and what follows from it."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(__name__, removal="Interventions")
