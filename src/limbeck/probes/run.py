"""A pilot whose students are probes: every cell is trained together with the others, the rest is a pilot's."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ConfigError
from limbeck.modes import one_thread
from limbeck.pilots.arms import Arm, check_arms, plan, taught_by, with_plain_student
from limbeck.pilots.cells import CellFiles, keep_fitted, run_cell
from limbeck.pilots.choices import Choices
from limbeck.pilots.folder import open_folder
from limbeck.pilots.progress import Watcher
from limbeck.pilots.result import PilotResult
from limbeck.pilots.run import run_arms
from limbeck.pilots.schedule import Job
from limbeck.probes.averaging import label_averaging, partial_label_notes
from limbeck.probes.cells import train_cells
from limbeck.probes.stages import Cell, holds_vectors
from limbeck.probes.workers import worker_count
from limbeck.selection import SelectionRule, selection_rule

if TYPE_CHECKING:
    from limbeck.config import PilotConfig
    from limbeck.data import Data

Say = Callable[[str], None]


def run_probes(
    config: PilotConfig,
    *,
    output: str | Path | None = None,
    models: str | Path | None = None,
    resume: bool = True,
    progress: Watcher | None = None,
    workers: int | None = None,
    say: Say | None = None,
) -> PilotResult:
    """Run the pilot of a configuration over vector features, all its cells together.

    The folder, the verdict and the report are those of `run_pilot`; the results agree with it to about 1e-6. The report
    also shows what averaging labels does to these features. Where a run was interrupted all cells are trained again:
    they take seconds, and who was trained with whom stays the same (with as many workers), so the result does too.

    Args:
        config: validated, from `limbeck.config.load_config`; `precision: auto` is float32 here.
        output: a run folder in place of the configuration's.
        models: a Python file of the user's own models, terms and weightings.
        resume: keep what the folder holds where it is complete; False empties it first.
        progress: told of the finished cells.
        workers: processes that train at once; None: see `limbeck.fit_probes`.
        say: told in a sentence what is trained.

    Raises:
        ConfigError: where the samples are not vectors.
        LimbeckError: where the parts do not fit, before any training.
    """
    if config.search is not None:
        raise ConfigError("search: probes do not search settings: leave it out, or run limbeck pilot")
    data, arms = plan(config, models)
    return probe_arms(
        data,
        arms,
        config.seeds,
        selection=config.selection,
        folder=Path(output) if output is not None else config.output_folder,
        name=config.name,
        progress=progress,
        configuration=config.to_dict(),
        resume=resume,
        workers=workers,
        say=say,
    )


def probe_arms(
    data: Data,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    selection: str | SelectionRule | None,
    folder: Path | None,
    name: str,
    progress: Watcher | None = None,
    configuration: Mapping[str, Any] | None = None,
    resume: bool = True,
    workers: int | None = None,
    say: Say | None = None,
) -> PilotResult:
    """As `limbeck.pilots.run_arms`, with the cells of all seeds trained together; see `run_probes`."""
    if folder is None:
        with tempfile.TemporaryDirectory() as own:
            kept = probe_arms(
                data,
                arms,
                seeds,
                selection=selection,
                folder=Path(own) / "run",
                name=name,
                progress=progress,
                configuration=configuration,
                workers=workers,
                say=say,
            )
            return PilotResult(kept.record)
    started = time.perf_counter()
    count = worker_count(workers)
    _check_features(data)
    arms = [_in_float32(arm) for arm in with_plain_student(arms)]
    data.check(splits=("train", "validation", "test"))
    check_arms(arms, data)
    rule = selection_rule(selection, groups=data.groups is not None)
    open_folder(folder, name, arms, seeds, data, rule, configuration, Choices(), resume)
    recipes = [arm.recipe for arm in arms if arm.recipe is not None]

    def amend(record: dict[str, Any]) -> None:
        """What a probe has beside a pilot's record."""
        record["averaging"] = label_averaging(data)
        record["warnings"] = list(dict.fromkeys([*record["warnings"], *partial_label_notes(data, recipes)]))
        record["seconds"] = time.perf_counter() - started
        # The last digits of the weights depend on it: who is trained with whom.
        record["machine"]["workers"] = count if trained else _workers_before(folder)
        if configuration is not None:
            record["command"] = "limbeck probe config.yaml"

    with one_thread():
        trained = _train(data, arms, seeds, rule, folder, name, configuration, count, say or _quiet)
        return run_arms(
            data,
            arms,
            seeds,
            selection=rule,
            folder=folder,
            name=name,
            progress=progress,
            configuration=configuration,
            amend=amend,
        )


def _quiet(_: str) -> None:
    """Say nothing."""


def _check_features(data: Data) -> None:
    if not holds_vectors(data):
        raise ConfigError(
            f"a probe is trained on vectors, and a sample of {data.name!r} has the shape {data.sample_shape}: take "
            "frozen features of a network first (limbeck features CONFIG --model …), or run limbeck pilot"
        )


def _in_float32(arm: Arm) -> Arm:
    """Timing precisions at a linear layer is not worth a step."""
    if arm.training is None or arm.training.precision != "auto":
        return arm
    return replace(arm, training=replace(arm.training, precision="float32"))


def _train(
    data: Data,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    rule: SelectionRule,
    folder: Path,
    name: str,
    configuration: Mapping[str, Any] | None,
    workers: int,
    say: Say,
) -> bool:
    """Leave every cell's files in the folder, teachers first; whether any were missing."""
    job = Job(name, data, {arm.key: arm for arm in arms}, rule, folder, configuration)
    teachers: dict[int, dict[str, Any]] = {seed: {} for seed in seeds}
    anything = False
    for role in ("teachers", "students"):
        wave = [arm for arm in arms if (arm.role == "teacher") == (role == "teachers")]
        places = [(arm, seed, CellFiles(folder, arm.key, seed)) for arm in wave for seed in seeds]
        trained = [place for place in places if place[0].source is None]
        missing = [files.finished() is None for _, _, files in trained]
        if any(missing):
            anything = True
            say(f"training {len(trained)} {role} together")
            cells = [_cell(arm, seed, data, taught_by(arm, teachers[seed])) for arm, seed, _ in trained]
            for (arm, seed, files), fitted, wanted in zip(
                trained, train_cells(cells, selection=rule, workers=workers), missing, strict=True
            ):
                if wanted:
                    keep_fitted(arm, fitted, seed, data, files, job.card(arm))
        if role == "teachers":
            for arm, seed, files in places:
                cell = run_cell(arm, seed, data, None, selection=rule, files=files)
                teachers[seed][arm.key] = cell.teacher
    return anything


def _workers_before(folder: Path) -> int | None:
    """What the record says of a folder whose cells are all there."""
    kept = folder / "result.json"
    record = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    found: int | None = record.get("machine", {}).get("workers")
    return found


def _cell(arm: Arm, seed: int, data: Data, teacher: Any) -> Cell:
    assert arm.model is not None
    assert arm.recipe is not None
    assert arm.training is not None
    return Cell(arm.model, data, arm.recipe, teacher, arm.training, seed)
