"""The metrics of a training in CSV files, TensorBoard or MLflow.

Each of the three is a callback of `limbeck.fit`, and takes a finished history at once (`write_run`), which is how a
pilot uses it: whatever process trained a cell, its metrics are written when it is complete.
"""

from __future__ import annotations

import csv
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.callbacks import Callback, Record, RunState
from limbeck.errors import ConfigError, require, unknown_name

if TYPE_CHECKING:
    from limbeck.pilots import Watcher


def flat(record: Mapping[str, Any], groups: Sequence[str] = ()) -> dict[str, float]:
    """The numbers of one epoch by name; lists over groups become `group_losses/NAME` (their numbers without names).

    What is no finite number, such as the loss of a group that was not met, is left out.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            for place, entry in enumerate(value):
                found[f"{name}/{groups[place] if place < len(groups) else place}"] = entry
        elif name != "epoch":
            found[name] = value
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


class Metrics(ABC):
    """A callback that hands each epoch's numbers on.

    Args:
        run: how the run is called; by default its recipe and stage.
        groups: the names of the groups.
    """

    def __init__(self, run: str | None = None, groups: Sequence[str] = ()) -> None:
        self.run, self.groups = run, tuple(groups)

    @abstractmethod
    def begin(self, run: str, settings: Mapping[str, Any]) -> None:
        """A run starts; one of the same name is replaced, or a new one beside it where the tool keeps both."""

    @abstractmethod
    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """The numbers of an epoch, counted from 1."""

    @abstractmethod
    def end(self) -> None:
        """The run is over."""

    def write_run(
        self, run: str, history: Sequence[Record], settings: Mapping[str, Any], groups: Sequence[str] = ()
    ) -> None:
        """A whole run at once."""
        self.begin(run, settings)
        for record in history:
            self.write(int(record["epoch"]), flat(record, groups or self.groups))
        self.end()

    def on_start(self, run: RunState) -> None:
        """Begin, with the epochs that were trained before a resume."""
        stage = "" if run.stage == "student" else f" {run.stage}"
        self.begin(f"{self.run or run.recipe}{stage}", {"recipe": run.recipe, "epochs": run.epochs})
        for record in run.history:
            self.write(int(record["epoch"]), flat(record, self.groups))

    def on_epoch(self, run: RunState) -> None:
        """Write the epoch."""
        self.write(int(run.history[-1]["epoch"]), flat(run.history[-1], self.groups))

    def on_end(self, run: RunState) -> None:
        """Close the run."""
        self.end()


def _file_name(run: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", run).strip("-")


class CSVMetrics(Metrics):
    """One file a run, `RUN.csv`: one row an epoch and metric, with the columns run, epoch, metric, value.

    Args:
        folder: where to.
        run, groups: as in `Metrics`.
    """

    def __init__(self, folder: str | Path, run: str | None = None, groups: Sequence[str] = ()) -> None:
        super().__init__(run, groups)
        self.folder = Path(folder)
        self._path: Path | None = None
        self._name = ""

    def begin(self, run: str, settings: Mapping[str, Any]) -> None:
        """Begin the file anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._name, self._path = run, self.folder / f"{_file_name(run)}.csv"
        self._path.write_text("run,epoch,metric,value\n", encoding="utf-8")

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Append the epoch; the file is whole after each."""
        assert self._path is not None
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows([self._name, epoch, name, repr(value)] for name, value in values.items())

    def end(self) -> None:
        """Nothing to close."""


class TensorBoardMetrics(Metrics):
    """One folder of event files a run (the extra `tensorboard`).

    Args:
        folder: what `tensorboard --logdir` is given.
        run, groups: as in `Metrics`.
    """

    def __init__(self, folder: str | Path, run: str | None = None, groups: Sequence[str] = ()) -> None:
        super().__init__(run, groups)
        require("tensorboard", "tensorboard")
        self.folder = Path(folder)
        self._writer: Any = None

    def begin(self, run: str, settings: Mapping[str, Any]) -> None:
        """Begin the run's folder anew."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder / _file_name(run)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder))
        lines = [f"| {name} | {value} |" for name, value in settings.items()]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]))

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write and flush the epoch."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def end(self) -> None:
        """Close the files."""
        self._writer.close()


class MLflowMetrics(Metrics):
    """One run of an MLflow experiment each (the extra `mlflow`); MLflow's own current run is left alone.

    Args:
        tracking: the address of a server, or of a store such as `sqlite:///mlflow.db`; None takes MLflow's own
            (`MLFLOW_TRACKING_URI`).
        experiment: it is made where it does not exist.
        run, groups: as in `Metrics`.
    """

    def __init__(
        self,
        tracking: str | None = None,
        experiment: str = "limbeck",
        run: str | None = None,
        groups: Sequence[str] = (),
    ) -> None:
        super().__init__(run, groups)
        self._client = require("mlflow.tracking", "mlflow").MlflowClient(tracking_uri=tracking)
        self._entities = require("mlflow.entities", "mlflow")
        found = self._client.get_experiment_by_name(experiment)
        self._experiment = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self._run_id = ""

    def begin(self, run: str, settings: Mapping[str, Any]) -> None:
        """Make a run and note its settings."""
        self._run_id = self._client.create_run(self._experiment, run_name=run).info.run_id
        params = [self._entities.Param(_allowed(name), str(value)[:500]) for name, value in settings.items()]
        self._client.log_batch(self._run_id, params=params)

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Send the epoch."""
        metrics = [self._entities.Metric(_allowed(name), value, 0, epoch) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def end(self) -> None:
        """Finish the run."""
        self._client.set_terminated(self._run_id)


def _allowed(name: str) -> str:
    """A name that MLflow takes: letters, digits, `_-./ ` and `:`."""
    return re.sub(r"[^A-Za-z0-9_\-./ :]", "-", name)


# A pilot's metrics ----------------------------------------------------------------------------------------------------

WRITERS: Mapping[str, Callable[[Path], Metrics]] = {
    "csv": lambda folder: CSVMetrics(folder / "csv"),
    "tensorboard": lambda folder: TensorBoardMetrics(folder / "tensorboard"),
    "mlflow": lambda folder: MLflowMetrics(_own_store(folder)),
}
"""By the name of the flag: from a folder to the callback."""


def metrics_writer(name: str, folder: Path) -> Metrics:
    """The callback of that name, writing into a folder (MLflow: to `MLFLOW_TRACKING_URI` where it is set).

    Raises:
        ConfigError: for an unknown name.
        MissingExtraError: where its package is not installed.
    """
    if name not in WRITERS:
        raise ConfigError(unknown_name("kind of metrics", name, WRITERS))
    return WRITERS[name](folder)


def _own_store(folder: Path) -> str | None:
    import os

    if os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


class MetricsWatcher:
    """A watcher of a pilot that hands each complete cell's metrics to writers, and everything to another watcher.

    Args:
        inner: the other watcher.
        kinds: names of `WRITERS`.
        folder: where to. It is made when the first cell is complete, so that a run folder begins empty.
    """

    def __init__(self, inner: Watcher, kinds: Sequence[str], folder: Path) -> None:
        for kind in kinds:
            if kind not in WRITERS:
                raise ConfigError(unknown_name("kind of metrics", kind, WRITERS))
            if kind != "csv":
                require(kind, kind)
        self.inner, self._kinds, self._folder = inner, tuple(kinds), folder
        self.callbacks: Sequence[Callback] = inner.callbacks
        self._writers: list[Metrics] | None = None

    def begin(self, name: str, arms: Sequence[str], seeds: int) -> None:
        """Passed on."""
        self.inner.begin(name, arms, seeds)

    def cell(self, label: str, seed: int) -> None:
        """Passed on."""
        self.inner.cell(label, seed)

    def done(self, label: str, seed: int, record: dict[str, Any]) -> None:
        """Write the cell's metrics, with what it reached on validation and test after its last epoch."""
        self.inner.done(label, seed, record)
        if not record["history"]:
            return
        if self._writers is None:
            self._writers = [metrics_writer(kind, self._folder) for kind in self._kinds]
        settings = {"model": label, "seed": seed, "selected_epoch": record["selected_epoch"]}
        settings |= {"parameters": record["parameters"], "seconds": record["seconds"]}
        for writer in self._writers:
            writer.write_run(f"{label} seed {seed}", record["history"], settings, record["test"]["group_names"])

    def end(self) -> None:
        """Passed on."""
        self.inner.end()
