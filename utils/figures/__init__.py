"""Figures made of numbers, and how all figures look. Those made of images are in `utils.imshow`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "plots": ["plot_class_counts", "plot_interventions", "plot_learning_curves", "plot_pairs", "show_groups"]
    },
)
