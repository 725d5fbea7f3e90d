"""Figures made of numbers, and how all figures look. Those made of images are in `utils.imshow`."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(
    __name__,
    plots="plot_class_counts plot_interventions plot_learning_curves plot_pairs plot_reliability show_groups",
)
