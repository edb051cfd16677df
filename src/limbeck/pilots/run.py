"""A pilot: recipes × teachers × seeds on the same data, with the plain student and the teachers always beside them."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from limbeck.pilots.arms import (
    Arm,
    ModelFactory,
    built,
    card_of,
    check_arms,
    plan,
    student_arms,
    taught_by,
    teacher_key,
    with_plain_student,
)
from limbeck.pilots.cells import CellFiles, CellResult, run_cell
from limbeck.pilots.folder import open_folder, recorded_precision, write_results
from limbeck.pilots.progress import Quiet, Watcher
from limbeck.pilots.result import PLAIN, PilotResult, comparisons, validation_mean, verdict
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
        asks = recipe.needs_teacher
        arms += student_arms(recipe.name, recipe, list(sources) if asks else [], student, training)
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    folder = None if output is None else Path(output)
    return run_arms(data, arms, chosen, selection=selection, folder=folder, name=name, progress=progress)


def run_pilot(
    config: PilotConfig,
    *,
    output: str | Path | None = None,
    models: str | Path | None = None,
    resume: bool = True,
    progress: Watcher | None = None,
) -> PilotResult:
    """Run the pilot of a configuration.

    Args:
        config: validated, from `limbeck.config.load_config`.
        output: a run folder in place of the configuration's.
        models: a Python file of the user's own models, terms and weightings.
        resume: go on with what the folder holds; False empties it first.
        progress: told of what happens.

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
) -> PilotResult:
    """Run every arm with every seed, teachers first, and compare.

    Training is on one thread: small models gain nothing from more, two pilots on one machine do not fight, and
    results do not depend on the number of cores.
    """
    with one_thread():
        return _run_arms(data, arms, seeds, selection, folder, name, progress, configuration, resume)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
) -> PilotResult:
    started = time.perf_counter()
    watcher = progress or Quiet()
    rule = selection_rule(selection, groups=data.groups is not None)
    arms = with_plain_student(arms)
    data.check(splits=("train", "validation", "test"))
    warnings = check_arms(arms, data)
    choices = {} if folder is None else recorded_precision(folder)
    arms = [_with_precision(arm, data, choices) for arm in arms]
    if folder is not None:
        open_folder(folder, name, arms, seeds, data, rule, configuration, choices, resume)
    results: dict[str, list[CellResult]] = {arm.key: [] for arm in arms}
    watcher.begin(name, [arm.label for arm in arms], len(seeds))
    card = {"pilot": name, "data": data.name, "classes": list(data.classes), "fingerprint": data.fingerprint()}
    card["inputs_shape"] = data.sample_shape
    for seed in seeds:
        teachers: dict[str, Any] = {}
        for arm in sorted(arms, key=lambda arm: arm.role != "teacher"):
            watcher.cell(arm.label, seed)
            result = run_cell(
                arm,
                seed,
                data,
                taught_by(arm, teachers),
                selection=rule,
                files=CellFiles(folder, arm.key, seed),
                callbacks=watcher.callbacks,
                card=card | {"arm": arm.key} | card_of(arm, configuration),
            )
            if arm.role == "teacher":
                teachers[arm.key] = result.teacher
            result.teacher = None
            results[arm.key].append(result)
            watcher.done(arm.label, seed, result.record)
    record = _record(name, data, arms, results, seeds, rule, warnings, time.perf_counter() - started)
    watcher.end()
    if configuration is not None:
        record |= {"command": "limbeck pilot config.yaml", "configuration": dict(configuration)}
    outcome = PilotResult(record, folder)
    if folder is not None:
        write_results(outcome, data, results, configuration)
    return outcome


def _with_precision(arm: Arm, data: Data, choices: dict[str, Any]) -> Arm:
    """The arm with `precision: auto` decided: once a model, so that all recipes train in the same one."""
    if arm.training is None or arm.training.precision != "auto":
        return arm
    key = arm.key if arm.role == "teacher" else "student"
    if key not in choices:
        example = InputReader(data.train)(torch.arange(min(arm.training.batch_size, len(data.train))))
        choices[key] = choose_precision("auto", built(arm), example, forward_mean)
    return replace(arm, training=replace(arm.training, precision=choices[key]))


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
