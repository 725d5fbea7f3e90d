"""Evaluation: checks of the data, scores of the network, and tests of its explanations."""

from utils.system.lazy import lazy_getattr

__getattr__ = lazy_getattr(
    __name__,
    agreement="agreement_table",
    baselines="compare_methods",
    calibration="brier_scores same_class_estimates",
    faithfulness="check_table compare_rankings randomisation_check",
    localisation="load_masks localisation_table",
    mosaics="make_mosaics mosaic_scores",
    reliance="measure_reliance",
    retrieval="retrieval_scores",
    scores="bootstrap_intervals class_similarity extreme_pairs measure_split score_pairs score_table",
    unseen="compare_unseen split_metrics",
)
