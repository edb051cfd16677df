"""Recipes in other people's loops, and metrics in other people's tools.

`prepare` makes a recipe ready for any loop; `limbeck.integrations.lightning` and `limbeck.integrations.trainer` put it
into Lightning's and into the Hugging Face Trainer. `CSVMetrics`, `TensorBoardMetrics` and `MLflowMetrics` are callbacks
of `limbeck.fit`, and of a pilot by `limbeck pilot --metrics`.
"""

from limbeck.integrations.metrics import (
    WRITERS,
    CSVMetrics,
    MetricsWatcher,
    MLflowMetrics,
    TensorBoardMetrics,
    flat,
    metrics_writer,
)
from limbeck.integrations.preparation import Prepared, RowDataset, prepare

__all__ = [
    "WRITERS",
    "CSVMetrics",
    "MLflowMetrics",
    "MetricsWatcher",
    "Prepared",
    "RowDataset",
    "TensorBoardMetrics",
    "flat",
    "metrics_writer",
    "prepare",
]
