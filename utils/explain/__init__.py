"""Explanations: what regions do to an embedding, and what follows from it."""
