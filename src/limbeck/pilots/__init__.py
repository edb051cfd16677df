"""Recipes × seeds on the same data, and the comparison that decides."""

from limbeck.pilots.arms import Arm, plan
from limbeck.pilots.cells import CellFiles, run_cell
from limbeck.pilots.estimate import Forecast, estimate
from limbeck.pilots.progress import Lines, Quiet, Watcher
from limbeck.pilots.result import PilotResult
from limbeck.pilots.run import pilot, run_arms, run_pilot
from limbeck.pilots.search import Range, Search

__all__ = [
    "Arm",
    "CellFiles",
    "Forecast",
    "Lines",
    "PilotResult",
    "Quiet",
    "Range",
    "Search",
    "Watcher",
    "estimate",
    "pilot",
    "plan",
    "run_arms",
    "run_cell",
    "run_pilot",
]
