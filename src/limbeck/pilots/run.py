"""A pilot: recipes × teachers × seeds on the same data, with the plain student and the teachers always beside them."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck import __version__
from limbeck.engine import choose_precision
from limbeck.errors import LimbeckError
from limbeck.loop import forward_mean
from limbeck.modes import one_thread
from limbeck.pilots.arms import (
    Arm,
    ModelFactory,
    built,
    check_arms,
    plan,
    searchable,
    student_arms,
    teacher_key,
    with_plain_student,
)
from limbeck.pilots.cells import CellResult
from limbeck.pilots.folder import open_folder, recorded_precision, write_results
from limbeck.pilots.progress import Quiet, Watcher
from limbeck.pilots.records import Records
from limbeck.pilots.result import PLAIN, PilotResult, comparisons, validation_mean, verdict
from limbeck.pilots.schedule import (
    Job,
    Order,
    in_order,
    precision_key,
    run_cells,
    with_precision,
    with_variants,
)
from limbeck.pilots.search import Search, Variant, run_search
from limbeck.predict import InputReader
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe
from limbeck.selection import SelectionRule, selection_rule
from limbeck.training import Training

if TYPE_CHECKING:
    from limbeck.config import PilotConfig
    from limbeck.data import Data


def pilot(
    data: Data,
    teacher: Any = None,
    student: nn.Module | ModelFactory | None = None,
    *,
    recipes: Sequence[str | Mapping[str, Any] | Recipe] = ("group_dro", "kd", "groupdistil"),
    seeds: int | Sequence[int] = 3,
    training: Training | None = None,
    selection: str | SelectionRule | None = None,
    search: Search | None = None,
    output: str | Path | None = None,
    name: str = "pilot",
    progress: Watcher | None = None,
) -> PilotResult:
    """Compare recipes on one student.

    Args:
        data: with training, validation and test parts.
        teacher: a finished teacher (anything `as_teacher` takes), several by name, or None.
        student: a module, which every seed starts from, or a function that builds one under the seed.
        recipes: presets, plain data or recipes. One that learns from a teacher is run with each.
        seeds: how many, or which.
        training: the same for all; `Training()` by default.
        selection: of epochs and for the verdict, on validation.
        search: of settings, on validation, before the seeds are run; every recipe gets the same number of trials.
        output: a run folder; finished cells in it are never computed again.
        name: of the pilot.
        progress: told of what happens.

    Returns:
        The result; its first line says whether distillation beat the plain student.
    """
    if student is None:
        raise LimbeckError(
            "pilot(data, teacher, student): a student is needed: a module, or a function that builds one"
        )
    sources = {} if teacher is None else dict(teacher) if isinstance(teacher, Mapping) else {"teacher": teacher}
    arms = [Arm(teacher_key(key), f"{key} (teacher)", "teacher", source=source) for key, source in sources.items()]
    training = training or Training()
    for entry in recipes:
        recipe = as_recipe(entry)
        asks = recipe.needs_teacher or recipe.takes_teacher
        made = student_arms(recipe.name, recipe, list(sources) if asks else [], student, training)
        arms += made if isinstance(entry, Recipe) else [searchable(arm, entry) for arm in made]
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    folder = None if output is None else Path(output)
    return run_arms(data, arms, chosen, selection=selection, folder=folder, name=name, progress=progress, search=search)


def run_pilot(
    config: PilotConfig,
    *,
    output: str | Path | None = None,
    models: str | Path | None = None,
    resume: bool = True,
    progress: Watcher | None = None,
    workers: int | None = 1,
    cluster: str | None = None,
) -> PilotResult:
    """Run the pilot of a configuration.

    Args:
        config: validated, from `limbeck.config.load_config`.
        output: a run folder in place of the configuration's.
        models: a Python file of the user's own models, terms and weightings.
        resume: go on with what the folder holds; False empties it first.
        progress: told of what happens.
        workers: how many processes train at once, each on one thread; None takes one a core where there is enough to
            do. The result is the same to the byte. A script that asks for more than one keeps what it starts under
            `if __name__ == "__main__":`, because each process imports it.
        cluster: the address of a Ray cluster whose nodes share the run folder, or `local` for one started here.

    Raises:
        LimbeckError: where the parts do not fit, before any training.
    """
    data, arms = plan(config, models)
    return run_arms(
        data,
        arms,
        config.seeds,
        selection=config.selection,
        folder=Path(output) if output is not None else config.output_folder,
        name=config.name,
        progress=progress,
        configuration=config.to_dict(),
        resume=resume,
        models=models,
        workers=workers,
        search=None if config.search is None else config.search.built(),
        cluster=cluster,
    )


# Running the arms -----------------------------------------------------------------------------------------------------


def run_arms(
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
    models: str | Path | None = None,
    workers: int | None = 1,
    search: Search | None = None,
    cluster: str | None = None,
) -> PilotResult:
    """Run every arm with every seed, teachers first, and compare.

    Training is on one thread: small models gain nothing from more, two pilots on one machine do not fight, and
    results do not depend on the number of cores.
    """
    with one_thread():
        return _run_arms(
            data,
            arms,
            seeds,
            selection,
            folder,
            name,
            progress,
            configuration,
            resume,
            models,
            workers,
            search,
            cluster,
        )


def _run_arms(
    data: Data,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    selection: str | SelectionRule | None,
    folder: Path | None,
    name: str,
    progress: Watcher | None,
    configuration: Mapping[str, Any] | None,
    resume: bool,
    models: str | Path | None,
    workers: int | None,
    search: Search | None,
    cluster: str | None,
) -> PilotResult:
    started = time.perf_counter()
    watcher = progress or Quiet()
    rule = selection_rule(selection, groups=data.groups is not None)
    arms = with_plain_student(arms)
    data.check(splits=("train", "validation", "test"))
    warnings = check_arms(arms, data)
    choices = {} if folder is None else recorded_precision(folder)
    _choose_precision(arms, data, choices)
    arms = with_precision(arms, choices)
    if folder is not None:
        open_folder(folder, name, arms, seeds, data, rule, configuration, choices, resume, search)
    records = Records(folder)
    records.begin(name, data, arms, seeds, rule, configuration)
    by_key = {arm.key: arm for arm in arms}
    order = _order(configuration, models, folder, choices)
    searched: dict[str, Any] | None = None
    if search is not None:
        trials = Job(name, data, by_key, rule, folder, configuration)
        runner = _Trials(trials, seeds[0], watcher, order, workers, cluster)
        course, told = run_search(search, [arm for arm in arms if arm.role != "teacher"], rule.name, runner)
        warnings += told
        searched = course.to_dict(search, rule.name, seeds[0])
        by_key = with_variants(by_key, course.chosen())
        arms = [by_key[arm.key] for arm in arms]
        order = _with_variants(order, course.chosen())
    results: dict[str, list[CellResult]] = {arm.key: [] for arm in arms}
    watcher.begin(name, [arm.label for arm in arms], len(seeds))
    job = Job(name, data, by_key, rule, folder, configuration)
    for arm, seed, result in run_cells(job, in_order(arms, seeds), watcher, order, workers, cluster):
        results[arm.key].append(result)
        records.cell(arm, seed, result.record)
        watcher.done(arm.label, seed, result.record)
    for cells in results.values():
        cells.sort(key=lambda cell: list(seeds).index(cell.record["seed"]))
    record = _record(name, data, arms, results, seeds, rule, warnings, time.perf_counter() - started)
    watcher.end()
    if searched is not None:
        record["search"] = searched
    if configuration is not None:
        record |= {"command": "limbeck pilot config.yaml", "configuration": dict(configuration)}
    outcome = PilotResult(record, folder)
    if folder is not None:
        write_results(outcome, data, results, configuration)
        records.end(outcome.verdict)
    return outcome


def _order(
    configuration: Mapping[str, Any] | None, models: str | Path | None, folder: Path | None, choices: Mapping[str, Any]
) -> Order | None:
    """What other processes need; None for a pilot of modules, which are only here, or one that keeps nothing."""
    if configuration is None or folder is None:
        return None
    user = None if models is None else str(Path(models).resolve())
    return Order(json.dumps(dict(configuration)), user, str(folder.resolve()), json.dumps(dict(choices)))


def _with_variants(order: Order | None, variants: Sequence[Variant]) -> Order | None:
    if order is None:
        return None
    return replace(order, variants=json.dumps([variant.to_dict() for variant in variants]))


@dataclass(frozen=True)
class _Trials:
    """Trains variants of the arms with one seed, their teachers first."""

    job: Job
    seed: int
    watcher: Watcher
    order: Order | None
    workers: int | None
    cluster: str | None

    def __call__(self, variants: Sequence[Variant]) -> list[dict[str, Any]]:
        """The record of each variant, in their order."""
        every = with_variants(self.job.arms, variants)
        trials = [every[variant.key] for variant in variants]
        needed = {key for arm in trials for key in arm.teachers}
        arms = [*(arm for key, arm in self.job.arms.items() if key in needed), *trials]
        self.watcher.begin(f"{self.job.name}, search", [arm.label for arm in arms], 1)
        order = _with_variants(self.order, variants)
        job = replace(self.job, arms=every)
        records = {}
        for arm, seed, result in run_cells(
            job, in_order(arms, [self.seed]), self.watcher, order, self.workers, self.cluster
        ):
            records[arm.key] = result.record
            self.watcher.done(arm.label, seed, result.record)
        self.watcher.end()
        return [records[variant.key] for variant in variants]


def _choose_precision(arms: Sequence[Arm], data: Data, choices: dict[str, Any]) -> None:
    """Decide `precision: auto` for the models that have no choice yet."""
    for arm in arms:
        key = precision_key(arm)
        if arm.training is not None and arm.training.precision == "auto" and key not in choices:
            example = InputReader(data.train)(torch.arange(min(arm.training.batch_size, len(data.train))))
            choices[key] = choose_precision("auto", built(arm), example, forward_mean)


def _record(
    name: str,
    data: Data,
    arms: Sequence[Arm],
    results: Mapping[str, Sequence[CellResult]],
    seeds: Sequence[int],
    rule: SelectionRule,
    warnings: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    groups = data.groups
    models: list[dict[str, Any]] = [
        {
            "key": arm.key,
            "role": arm.role,
            "label": arm.label,
            "recipe": None if arm.recipe is None else arm.recipe.to_dict(),
            "training": None if arm.training is None else arm.training.to_dict(),
            "teacher": arm.teachers[0] if len(arm.teachers) == 1 else None,
            "teachers": list(arm.teachers),
            "parameters": results[arm.key][0].record["parameters"],
            "runs": [result.record for result in results[arm.key]],
        }
        for arm in arms
    ]
    plain = next(row for row in models if row["key"] == PLAIN)
    baselines = [row for row in models if row["role"] == "baseline"]
    strongest = max(baselines, key=lambda row: validation_mean(row, rule.name))["key"]
    references = [PLAIN] if strongest == PLAIN else [PLAIN, strongest]
    predictions = {key: [result.predictions for result in cells] for key, cells in results.items()}
    differences = comparisons(models, predictions, data.test, references)
    sentence, chosen = verdict(models, differences, rule.name, groups=groups is not None)
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "limbeck": __version__,
            "python": platform.python_version(),
            "torch": metadata.version("torch"),
            "numpy": metadata.version("numpy"),
        },
        "machine": {
            "system": platform.platform(terse=True),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "seconds": seconds,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint(),
            "samples": {part: len(rows) for part, rows in parts.items()},
            "classes": list(data.classes),
            "groups": [] if groups is None else list(groups.names),
            "group_columns": [] if groups is None else list(groups.columns),
            "group_counts": {
                part: [] if rows.groups is None else rows.groups.counts().tolist() for part, rows in parts.items()
            },
            "injections": list(data.injections),
        },
        "selection": {"rule": rule.name, "consumes": rule.consumes},
        "settings": plain["training"],
        "seeds": list(seeds),
        "models": models,
        "comparisons": [difference.to_dict() for difference in differences],
        "strongest_baseline": strongest,
        "chosen": chosen,
        "verdict": sentence,
        "warnings": list(
            dict.fromkeys(
                [*warnings, *(note for cells in results.values() for cell in cells for note in cell.record["warnings"])]
            )
        ),
    }
