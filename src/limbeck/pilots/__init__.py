"""Recipes × seeds on the same data, and the comparison that decides; several data sets and students at once."""

from limbeck.pilots.arms import Arm, plan
from limbeck.pilots.cells import CellFiles, run_cell
from limbeck.pilots.estimate import Forecast, estimate
from limbeck.pilots.matrix import MatrixForecast, MatrixResult, estimate_matrix, read_result
from limbeck.pilots.progress import Lines, Quiet, Watcher
from limbeck.pilots.result import PilotResult
from limbeck.pilots.run import pilot, run_arms, run_pilot
from limbeck.pilots.search import Range, Search

__all__ = [
    "Arm",
    "CellFiles",
    "Forecast",
    "Lines",
    "MatrixForecast",
    "MatrixResult",
    "PilotResult",
    "Quiet",
    "Range",
    "Search",
    "Watcher",
    "estimate",
    "estimate_matrix",
    "pilot",
    "plan",
    "read_result",
    "run_arms",
    "run_cell",
    "run_pilot",
]
