"""Explanations: what regions do to an embedding, and what follows from it."""

from utils.system.lazy import hand_on

__getattr__ = hand_on(
    __name__,
    removal="Interventions",
)
