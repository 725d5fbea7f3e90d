"""Evaluation: the data, the network's scores, and whether its explanations hold."""
