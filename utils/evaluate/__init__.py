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
    scores="bootstrap_intervals extreme_pairs measure_split score_pairs",
    unseen="class_table metrics_table split_metrics what_is_lost",
)
