"""What a model does in every group, with what certainty, and whether another is better. NumPy and SciPy only.

`evaluate` is the way in for one model, `limbeck.evaluation.compare.compare` for two.
"""

from limbeck.evaluation.bootstrap import (
    Accuracies,
    PairedCounts,
    bootstrap_counts,
    hierarchical_bootstrap,
    paired_bootstrap,
    percentile_interval,
)
from limbeck.evaluation.calibration import (
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    group_calibration_error,
    log_softmax,
    negative_log_likelihood,
    score_samples,
)
from limbeck.evaluation.changes import group_changes
from limbeck.evaluation.compare import (
    Comparison,
    Difference,
    benjamini_hochberg,
    bonferroni,
    compare_counts,
    decide,
    holm,
    mcnemar,
    verdict,
)
from limbeck.evaluation.cost import Cost, Latency, measure_cost
from limbeck.evaluation.counts import UNKNOWN_GROUP, GroupCounts, Worst
from limbeck.evaluation.intervals import clopper_pearson, interval, seeds_interval, wilson, worst_group_interval
from limbeck.evaluation.pareto import Standing, pareto_front
from limbeck.evaluation.power import Advice
from limbeck.evaluation.result import Evaluation, Row, Scores, evaluate

__all__ = [
    "UNKNOWN_GROUP",
    "Accuracies",
    "Advice",
    "Comparison",
    "Cost",
    "Difference",
    "Evaluation",
    "GroupCounts",
    "Latency",
    "PairedCounts",
    "Row",
    "Scores",
    "Standing",
    "Worst",
    "benjamini_hochberg",
    "bonferroni",
    "bootstrap_counts",
    "brier_score",
    "classwise_calibration_error",
    "clopper_pearson",
    "compare_counts",
    "decide",
    "evaluate",
    "expected_calibration_error",
    "group_calibration_error",
    "group_changes",
    "hierarchical_bootstrap",
    "holm",
    "interval",
    "log_softmax",
    "mcnemar",
    "measure_cost",
    "negative_log_likelihood",
    "paired_bootstrap",
    "pareto_front",
    "percentile_interval",
    "score_samples",
    "seeds_interval",
    "verdict",
    "wilson",
    "worst_group_interval",
]
