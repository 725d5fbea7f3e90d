"""Evaluation: checks of the data, scores of the network, and tests of its explanations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "agreement": ["agreement_table"],
        "baselines": ["compare_methods"],
        "faithfulness": ["check_table", "compare_rankings"],
        "localisation": ["load_masks", "localisation_table"],
        "reliance": ["reliance_of"],
        "scores": ["extreme_pairs", "measure_split", "score_pairs"],
        "unseen": ["class_table", "metrics_table", "split_metrics", "what_is_lost"],
    },
)
