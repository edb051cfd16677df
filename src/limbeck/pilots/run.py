"""A pilot: recipes × teachers × seeds on the same data, with the plain student and the teachers always beside them."""

from __future__ import annotations

import inspect
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck import __version__
from limbeck.errors import LimbeckError
from limbeck.modes import one_thread
from limbeck.pilots.arms import (
    Arm,
    ModelFactory,
    check_arms,
    plan,
    searchable,
    student_arms,
    teacher_key,
    with_plain_student,
)
from limbeck.pilots.cells import CellFiles, CellResult
from limbeck.pilots.choices import Choices
from limbeck.pilots.folder import open_folder, write_results
from limbeck.pilots.progress import Quiet, Watcher
from limbeck.pilots.records import Records
from limbeck.pilots.result import PLAIN, PilotResult, comparisons, validation_mean, verdict
from limbeck.pilots.schedule import Cell, Crew, Job, Order, cells_of, with_variants
from limbeck.pilots.search import Search, Variant, run_search
from limbeck.pilots.sharing import STORES
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe
from limbeck.selection import SelectionRule, selection_rule
from limbeck.training import Training

if TYPE_CHECKING:
    from limbeck.config import MatrixConfig, PilotConfig
    from limbeck.data import Data

Student = nn.Module | Callable[..., nn.Module]
"""A module, or a function that builds one."""


def pilot(
    data: Data | Mapping[str, Data],
    teacher: Any = None,
    student: Student | Mapping[str, Student] | None = None,
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
    """Compare recipes on a student; on several data sets or students where these are given by name.

    Args:
        data: with training, validation and test parts; several by name.
        teacher: a finished teacher (anything `as_teacher` takes), several by name, or None. With several data sets:
            any of these, by the name of the data set.
        student: a module, which every seed starts from, or a function that builds one under the seed; several by name.
            A function with a required parameter is given the data.
        recipes: presets, plain data or recipes. One that learns from a teacher is run with each.
        seeds: how many, or which.
        training: the same for all; `Training()` by default.
        selection: of epochs and for the verdict, on validation.
        search: of settings, on validation, before the seeds are run; every recipe gets the same number of trials.
        output: a run folder; finished cells in it are never computed again.
        name: of the pilot.
        progress: told of what happens.

    Returns:
        The result; its first line says whether distillation beat the plain student. Of several data sets or students
        a `MatrixResult`, which has the result of each.

    Raises:
        LimbeckError: where the parts do not fit, before any training.
    """
    if student is None:
        raise LimbeckError(
            "pilot(data, teacher, student): a student is needed: a module, or a function that builds one"
        )
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    folder = None if output is None else Path(output)
    settings = training or Training()
    if isinstance(data, Mapping) or isinstance(student, Mapping):
        from limbeck.pilots.matrix import run_matrix_arms

        def arms_of(own: Data, sources: Any, model: Student) -> list[Arm]:
            return _arms(own, sources, model, recipes, settings)

        return run_matrix_arms(
            data,
            teacher,
            student,
            arms_of,
            chosen,
            selection=selection,
            folder=folder,
            name=name,
            progress=progress,
            search=search,
        )
    arms = _arms(data, teacher, student, recipes, settings)
    return run_arms(data, arms, chosen, selection=selection, folder=folder, name=name, progress=progress, search=search)


def _arms(
    data: Data,
    teacher: Any,
    student: Student,
    recipes: Sequence[str | Mapping[str, Any] | Recipe],
    training: Training,
) -> list[Arm]:
    sources = {} if teacher is None else dict(teacher) if isinstance(teacher, Mapping) else {"teacher": teacher}
    arms = [Arm(teacher_key(key), f"{key} (teacher)", "teacher", source=source) for key, source in sources.items()]
    model = student if isinstance(student, nn.Module) else _built_for(student, data)
    for entry in recipes:
        recipe = as_recipe(entry)
        asks = recipe.needs_teacher or recipe.takes_teacher
        made = student_arms(recipe.name, recipe, list(sources) if asks else [], model, training)
        arms += made if isinstance(entry, Recipe) else [searchable(arm, entry) for arm in made]
    return arms


def _built_for(factory: Callable[..., nn.Module], data: Data) -> ModelFactory:
    """A factory without parameters; one that has a required one is given the data."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return factory
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [one for one in parameters if one.default is one.empty and one.kind in kinds]
    return partial(factory, data) if len(required) == 1 else factory


def run_pilot(
    config: PilotConfig | MatrixConfig,
    *,
    output: str | Path | None = None,
    models: str | Path | None = None,
    resume: bool = True,
    progress: Watcher | None = None,
    workers: int | None = 1,
    cluster: str | None = None,
) -> PilotResult:
    """Run the pilot of a configuration, or the pilots of several data sets and students.

    Args:
        config: validated, from `limbeck.config.load_plan`.
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
    from limbeck.config import MatrixConfig

    if isinstance(config, MatrixConfig):
        from limbeck.pilots.matrix import run_matrix

        more: dict[str, Any] = {"progress": progress, "workers": workers, "cluster": cluster}
        return run_matrix(config, output=output, models=models, resume=resume, **more)
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
    amend: Amend | None = None,
) -> PilotResult:
    """Run every arm with every seed, teachers first, and compare.

    Training is on one thread: small models gain nothing from more, two pilots on one machine do not fight, and
    results do not depend on the number of cores.

    Args:
        amend: changes the record before it is written.
    """
    asked = Asked(data, arms, selection, folder, name, configuration, models, amend=amend)
    with one_thread(), Crew(workers, cluster) as crew, own_stores(folder) as stores:
        part = Part(asked, seeds, search)
        part.open(resume, stores)
        return run_parts(name, [[part]], progress or Quiet(), crew)[part]


Amend = Callable[[dict[str, Any]], None]
"""Changes a record."""


@contextmanager
def own_stores(folder: Path | None) -> Iterator[Path]:
    """Where what teachers say is kept: in the run folder or, without one, for as long as the pilot runs."""
    if folder is not None:
        yield folder / STORES
        return
    with tempfile.TemporaryDirectory(prefix="limbeck-") as own:
        yield Path(own) / STORES


@dataclass(frozen=True)
class Asked:
    """What a pilot is asked to do beside what it shares with others.

    Args:
        data: of the pilot.
        arms: of the pilot.
        selection: of epochs.
        folder: the run folder.
        name: of the pilot.
        configuration: as plain data.
        models: the Python file of the user's own models.
        place: its data set and student, where it is one of several.
        amend: changes the record before it is written.
    """

    data: Data
    arms: Sequence[Arm]
    selection: str | SelectionRule | None
    folder: Path | None
    name: str
    configuration: Mapping[str, Any] | None = None
    models: str | Path | None = None
    place: tuple[str | None, str | None] = (None, None)
    amend: Amend | None = None


class Part:
    """One pilot, alone or of several that run together. Making it checks all that can be known before training, and
    writes nothing; `open` begins it.

    Args:
        asked: what it is.
        seeds: of each arm.
        search: of settings.

    Raises:
        LimbeckError: where its parts do not fit each other.
    """

    job: Job
    choices: Choices

    def __init__(self, asked: Asked, seeds: Sequence[int], search: Search | None) -> None:
        self.started = time.perf_counter()
        self.asked, self.seeds, self.search, self.data = asked, tuple(seeds), search, asked.data
        self.rule = selection_rule(asked.selection, groups=self.data.groups is not None)
        self.arms = with_plain_student(asked.arms)
        self.data.check(splits=("train", "validation", "test"))
        self.warnings = check_arms(self.arms, self.data)
        if search is not None:
            search.check([arm for arm in self.arms if arm.role != "teacher"])
        self.results: dict[str, list[CellResult]] = {arm.key: [] for arm in self.arms}
        self.searched: dict[str, Any] | None = None

    def open(self, resume: bool, stores: Path, home: Part | None = None) -> None:
        """Begin, or go on.

        Args:
            resume: with what its folder holds; False empties it first.
            stores: where what the teachers say is kept.
            home: the pilot that has the teachers, where that is another one of the same data; it is open.

        Raises:
            ConfigError: where the folder is another pilot's.
        """
        asked = self.asked
        choices = Choices.of(asked.folder)
        if home is not None:
            choices.agree(home.choices)
        choices.decide(self.arms, self.data)
        self.arms = choices.in_precision(self.arms)
        if asked.folder is not None:
            open_folder(
                asked.folder,
                asked.name,
                self.arms,
                self.seeds,
                self.data,
                self.rule,
                asked.configuration,
                choices,
                resume,
                self.search,
            )
        self.records = Records(asked.folder)
        self.records.begin(asked.name, self.data, self.arms, self.seeds, self.rule, asked.configuration)
        self.choices, self.arms = choices, choices.compiled(self.arms)
        self.job = self._job(choices, stores, asked.folder if home is None else home.asked.folder)

    def _job(self, choices: Choices, stores: Path, teachers: Path | None) -> Job:
        asked, order = self.asked, None
        if asked.configuration is not None and asked.folder is not None and teachers is not None:
            user = None if asked.models is None else str(Path(asked.models).resolve())
            configuration, chosen = json.dumps(dict(asked.configuration)), json.dumps(choices.to_dict())
            order = Order(configuration, user, str(asked.folder.resolve()), chosen, str(teachers.resolve()))
        return Job(
            name=asked.name,
            data=self.data,
            arms={arm.key: arm for arm in self.arms},
            rule=self.rule,
            folder=asked.folder,
            configuration=asked.configuration,
            teachers=teachers,
            stores=stores,
            order=order,
            place=asked.place,
        )

    def labels(self, teachers: bool) -> list[str]:
        """Of the arms that it trains, its teachers among them or not."""
        return [self.job.label(arm) for arm in self.arms if teachers or arm.role != "teacher"]

    def look_for_settings(self, home: Part, watcher: Watcher, crew: Crew) -> None:
        """Try settings on validation, where a search is asked for, and go on with the best."""
        if self.search is None:
            return
        run = _Trials(self.job, home.job, self.seeds[0], watcher, crew)
        students = [arm for arm in self.arms if arm.role != "teacher"]
        course, told = run_search(self.search, students, self.rule.name, run)
        self.warnings += told
        self.searched = course.to_dict(self.search, self.rule.name, self.seeds[0])
        self.job = _varied(self.job, course.chosen())
        self.arms = [self.job.arms[arm.key] for arm in self.arms]

    def take(self, arm: Arm, seed: int, result: CellResult, home: Part) -> None:
        """A cell is complete; that of a teacher may be another pilot's."""
        if home is not self:
            CellFiles(self.asked.folder, arm.key, seed).taken_from(home.job.files(arm, seed))
        self.results[arm.key].append(result)
        self.records.cell(arm, seed, result.record)

    @property
    def complete(self) -> bool:
        """Whether all of its cells are there."""
        return all(len(cells) == len(self.seeds) for cells in self.results.values())

    def conclude(self) -> PilotResult:
        """Compare, and write the result."""
        asked = self.asked
        for cells in self.results.values():
            cells.sort(key=lambda cell: self.seeds.index(cell.record["seed"]))
        seconds = time.perf_counter() - self.started
        if any(asked.place):
            # Of several pilots, what this one took and not what it waited for others.
            seconds = sum(cell.record["seconds"] for cells in self.results.values() for cell in cells)
        record = _record(asked.name, self.data, self.arms, self.results, self.seeds, self.rule, self.warnings, seconds)
        if self.searched is not None:
            record["search"] = self.searched
        if asked.configuration is not None:
            record |= {"command": "limbeck pilot config.yaml", "configuration": dict(asked.configuration)}
        if asked.amend is not None:
            asked.amend(record)
        outcome = PilotResult(record, asked.folder)
        if asked.folder is not None:
            from limbeck.report.evidence import gather

            self._tidy_up_stores()
            gather(outcome, self.data, self.arms, asked.models)
            write_results(outcome, self.data, self.results, asked.configuration)
            self.records.end(outcome.verdict)
        return outcome

    def _tidy_up_stores(self) -> None:
        """Remove the beginnings of stores that nobody went on with; all teachers are done."""
        if self.job.stores is not None and self.job.teachers == self.asked.folder:
            for pattern in ("*.partial", "*.preparing-*"):
                for path in self.job.stores.glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)


def run_parts(name: str, families: Sequence[Sequence[Part]], watcher: Watcher, crew: Crew) -> dict[Part, PilotResult]:
    """Run pilots together.

    Args:
        name: of all.
        families: the pilots of each data set, which have the first one's teachers in common.
        watcher: told of what happens.
        crew: where cells run.

    Returns:
        The result of each.
    """
    for family in families:
        for part in family:
            part.look_for_settings(family[0], watcher, crew)
    labels = [label for family in families for part in family for label in part.labels(part is family[0])]
    watcher.begin(name, labels, len(families[0][0].seeds))
    cells: list[Cell] = []
    owners: dict[Job, tuple[Part, Sequence[Part]]] = {}
    for family in families:
        arms = {part.job: part.arms for part in family}
        owners |= {part.job: (part, family) for part in family}
        start = len(cells)
        made = cells_of([part.job for part in family], arms, family[0].seeds)
        cells += [replace(cell, after=tuple(start + place for place in cell.after)) for cell in made]
    found: dict[Part, PilotResult] = {}
    for cell, result in crew.run(cells, watcher):
        owner, family = owners[cell.job]
        watcher.done(cell.label, cell.seed, result.record)
        for part in family if cell.arm.role == "teacher" else (owner,):
            part.take(cell.arm, cell.seed, result, owner)
            # The report times models, which must not fight with what other processes train.
            if part.complete and not crew.busy:
                found[part] = part.conclude()
    watcher.end()
    every = [part for family in families for part in family]
    return {part: found[part] if part in found else part.conclude() for part in every}


def _varied(job: Job, variants: Sequence[Variant]) -> Job:
    """The pilot with arms in other settings."""
    order = job.order
    if order is not None:
        order = replace(order, variants=json.dumps([variant.to_dict() for variant in variants]))
    return replace(job, arms=with_variants(job.arms, variants), order=order)


@dataclass(frozen=True)
class _Trials:
    """Trains variants of the arms with one seed, their teachers first."""

    job: Job
    home: Job
    seed: int
    watcher: Watcher
    crew: Crew

    def __call__(self, variants: Sequence[Variant]) -> list[dict[str, Any]]:
        """The record of each variant, in their order."""
        job = _varied(self.job, variants)
        trials = [job.arms[variant.key] for variant in variants]
        needed = {key for arm in trials for key in arm.teachers}
        teachers = [arm for key, arm in self.home.arms.items() if key in needed]
        # Where the pilot has its own teachers they are its cells, else another one's.
        jobs = [job] if self.home is self.job else [self.home, job]
        arms: dict[Job, list[Arm]] = {jobs[0]: teachers}
        arms[job] = [*arms.get(job, []), *trials]
        labels = [job.label(arm) for arm in (*teachers, *trials)]
        self.watcher.begin(f"{self.job.name}, search", labels, 1)
        records = {}
        for cell, result in self.crew.run(cells_of(jobs, arms, [self.seed]), self.watcher):
            records[cell.arm.key] = result.record
            self.watcher.done(cell.label, cell.seed, result.record)
        self.watcher.end()
        return [records[variant.key] for variant in variants]


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
