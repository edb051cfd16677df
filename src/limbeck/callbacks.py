"""What surrounds the loop: things told of each epoch, which never change what is computed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Record = dict[str, Any]


@dataclass
class RunState:
    """What a callback sees: where the run stands; set `stop` to end it after this epoch."""

    recipe: str
    epochs: int
    stage: str = "student"
    history: list[Record] = field(default_factory=list)
    stop: bool = False


class Callback(Protocol):
    """Told of the start, of each epoch and of the end of a stage of training."""

    def on_start(self, run: RunState) -> None:
        """Training of a stage begins (or goes on after a resume)."""

    def on_epoch(self, run: RunState) -> None:
        """An epoch is over; its record is `run.history[-1]`."""

    def on_end(self, run: RunState) -> None:
        """The stage is over."""


class EarlyStopping:
    """Stop when a validation metric has not risen for `patience` epochs. A function of the history alone, so a resumed
    run stops where the straight one does."""

    def __init__(self, metric: str = "validation_average", patience: int = 5) -> None:
        self.metric, self.patience = metric, patience

    def on_start(self, run: RunState) -> None:
        """Nothing to do."""

    def on_epoch(self, run: RunState) -> None:
        """Ask for the end where the best epoch lies too far back."""
        values = [record[self.metric] for record in run.history]
        best = max(range(len(values)), key=lambda index: (values[index], -index))
        if len(values) - 1 - best >= self.patience:
            run.stop = True

    def on_end(self, run: RunState) -> None:
        """Nothing to do."""


class Progress:
    """One line a stage, with a bar where standard error is a terminal and nothing where it is not."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def on_start(self, run: RunState) -> None:
        """Show the bar."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[last]}"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task(
            f"{run.recipe} · {run.stage}", total=run.epochs, last="", completed=len(run.history)
        )

    def on_epoch(self, run: RunState) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            record = run.history[-1]
            last = f"loss {record['loss']:.3f}  validation {record['validation_average']:.3f}"
            if record.get("validation_worst_group") is not None:
                last += f"  worst group {record['validation_worst_group']:.3f}"
            self._bar.update(self._task, completed=len(run.history), last=last)

    def on_end(self, run: RunState) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
