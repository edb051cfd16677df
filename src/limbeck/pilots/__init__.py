"""Recipes × seeds on the same data, and the comparison that decides."""

from limbeck.pilots.cells import Arm, CellFiles, run_cell
from limbeck.pilots.progress import Lines, Quiet, Watcher
from limbeck.pilots.result import PilotResult
from limbeck.pilots.run import pilot, run_arms, run_pilot

__all__ = ["Arm", "CellFiles", "Lines", "PilotResult", "Quiet", "Watcher", "pilot", "run_arms", "run_cell", "run_pilot"]
