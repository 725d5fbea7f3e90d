"""Explanations: what a region does to an embedding, and to a decision."""
