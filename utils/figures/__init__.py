"""Figures made of numbers, and how all figures look. Those made of images are in `utils.imshow`."""
