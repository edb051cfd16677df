"""A pilot: recipes × teachers × seeds on the same data, with the plain student and the teachers always beside them."""

from __future__ import annotations

import json
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from limbeck import __version__
from limbeck.checkpoint import write_atomically, write_json
from limbeck.errors import ConfigError, LimbeckError, RecipeError
from limbeck.fitting import check_student
from limbeck.pilots.cells import Arm, CellFiles, CellResult, ModelFactory, run_cell
from limbeck.pilots.progress import Quiet, Watcher
from limbeck.pilots.result import PLAIN, PilotResult, comparisons, history_rows, validation_mean, verdict
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe
from limbeck.selection import SelectionRule, selection_rule
from limbeck.teachers import as_teacher
from limbeck.teachers import require as require_outputs
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
    arms = [Arm(_teacher_key(key), f"{key} (teacher)", "teacher", source=source) for key, source in sources.items()]
    training = training or Training()
    for entry in recipes:
        recipe = as_recipe(entry)
        asks = recipe.needs_teacher
        arms += _student_arms(recipe.name, recipe, list(sources) if asks else [], student, training)
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


def plan(config: PilotConfig, models: str | Path | None = None) -> tuple[Data, list[Arm]]:
    """The data and the arms of a configuration; nothing is trained."""
    from limbeck.build import build_data
    from limbeck.models import build, load_user_file

    functions = {} if models is None else load_user_file(models)
    data = build_data(config)

    def factory(spec: Any) -> Callable[[], nn.Module]:
        return lambda: build(spec, inputs_shape=data.sample_shape, classes=data.num_classes, user=functions)

    arms = [_teacher_arm(key, config, factory, functions) for key in config.teachers]
    training = Training(**config.training.model_dump())
    for index, entry in enumerate(config.recipes):
        try:
            recipe = as_recipe(entry.settings, functions).replace(name=entry.label)
        except RecipeError as error:
            raise RecipeError(f"recipes[{index}]: {error}") from error
        teachers = _teachers_of(entry, recipe, config)
        arms += _student_arms(entry.label, recipe, teachers, factory(config.student), training)
    return data, with_plain_student(arms)


def _teachers_of(entry: Any, recipe: Recipe, config: PilotConfig) -> list[str]:
    if entry.teachers:
        if not recipe.teacher_outputs and recipe.rounds == 1:
            raise RecipeError(
                f"recipe {entry.label!r} takes nothing from a teacher, but names {', '.join(entry.teachers)}: "
                "remove 'teacher'"
            )
        return list(entry.teachers)
    return list(config.teachers) if recipe.needs_teacher else []


def _teacher_arm(
    key: str, config: PilotConfig, factory: Callable[[Any], ModelFactory], functions: Mapping[str, Any]
) -> Arm:
    section = config.teachers[key]
    label = f"{key} (teacher)"
    if not section.trained_here:
        source: Any = section.table or section.onnx
        if section.weights is not None:
            from limbeck.models import load_weights

            source = factory(section.model)()
            load_weights(source, section.weights)
        return Arm(_teacher_key(key), label, "teacher", source=source)
    recipe = as_recipe(section.recipe.settings if section.recipe else "erm", functions)
    training = Training(**config.training_of(key).model_dump())
    return Arm(_teacher_key(key), label, "teacher", factory(section.model), recipe, training)


def _teacher_key(name: str) -> str:
    return _slug(f"teacher-{name}")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


def _student_arms(
    label: str, recipe: Recipe, teachers: Sequence[str], student: nn.Module | ModelFactory, training: Training
) -> list[Arm]:
    if not teachers:
        role = "student" if recipe.teacher_outputs else "baseline"
        return [
            Arm(_slug(label), f"{label} (no teacher)" if role == "baseline" else label, role, student, recipe, training)
        ]
    keys = tuple(map(_teacher_key, teachers))
    if "teachers_logits" in recipe.teacher_outputs:
        taught = f"{label} from {' and '.join(teachers)}"
        return [Arm(_slug(label), taught, "student", student, recipe, training, keys)]
    return [
        Arm(
            _slug(f"{label}-{name}" if len(teachers) > 1 else label),
            f"{label} from {name}",
            "student",
            student,
            recipe,
            training,
            (key,),
        )
        for name, key in zip(teachers, keys, strict=True)
    ]


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
    results do
    not depend on the number of cores.
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
    if not resume and folder is not None and (folder / "run.json").is_file():
        shutil.rmtree(folder)
    _open_folder(folder, name, arms, seeds, data, rule, configuration)
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
                _taught_by(arm, teachers),
                selection=rule,
                files=CellFiles(folder, arm.key, seed),
                callbacks=watcher.callbacks,
                card=card | {"arm": arm.key} | _card(arm, configuration),
            )
            if arm.role == "teacher":
                teachers[arm.key] = result.teacher
            result.teacher = None
            results[arm.key].append(result)
            watcher.done(arm.label, seed, result.record)
    record = _record(name, data, arms, results, seeds, rule, warnings, time.perf_counter() - started)
    watcher.end()
    outcome = PilotResult(record, folder)
    if folder is not None:
        _write(outcome, data, results, configuration)
    return outcome


def _taught_by(arm: Arm, teachers: Mapping[str, Any]) -> Any:
    """The arm's teacher of this seed; a list where it learns from several at once."""
    found = [teachers[key] for key in arm.teachers]
    several = arm.recipe is not None and "teachers_logits" in arm.recipe.teacher_outputs
    return found if several else found[0] if found else None


def with_plain_student(arms: Sequence[Arm]) -> list[Arm]:
    """Every comparison has the plain student in it."""
    found = list(arms)
    keys = [arm.key for arm in found]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"two arms of the pilot are called {twice!r}: give one of the recipes another name")
    students = [arm for arm in found if arm.role != "teacher"]
    if not students:
        raise ConfigError("a pilot needs at least one recipe")
    plain = next((arm for arm in found if arm.key == PLAIN), None)
    if plain is None:
        first = students[0]
        found.insert(
            len(found) - len(students),
            Arm(PLAIN, f"{PLAIN} (no teacher)", "baseline", first.model, as_recipe("erm"), first.training),
        )
    elif plain.role != "baseline":
        raise ConfigError(f"the name {PLAIN!r} belongs to the plain student: give the other recipe another name")
    return found


def check_arms(arms: Sequence[Arm], data: Data) -> list[str]:
    """Everything that can be known to fail is refused before the first step of training."""
    by_key = {arm.key: arm for arm in arms}
    names = None if data.groups is None else data.groups.names
    warnings: list[str] = []
    for arm in arms:
        if arm.source is not None:
            as_teacher(arm.source).check(data)
        if arm.recipe is None:
            continue
        warnings += arm.recipe.check(classes=data.num_classes, groups=names, teacher=bool(arm.teachers))
        if arm.recipe.needs_groups:
            data.check(groups_required=True)
        if arm.teachers:
            models = {key: _built(by_key[key]) if by_key[key].source is None else by_key[key].source for key in by_key}
            teacher = as_teacher(_taught_by(arm, models))
            require_outputs(teacher, arm.recipe.teacher_outputs, by=f"recipe {arm.label!r}")
    for arm in arms:
        if arm.model is not None:
            check_student(_built(arm), data)
    return list(dict.fromkeys(warnings))


def _built(arm: Arm) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return arm.model if isinstance(arm.model, nn.Module) else arm.model()  # type: ignore[misc]


def _open_folder(
    folder: Path | None,
    name: str,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    data: Data,
    rule: SelectionRule,
    configuration: Mapping[str, Any] | None,
) -> None:
    """Begin a run folder, or make sure that the one there is of this very pilot."""
    if folder is None:
        return
    plan = {
        "name": name,
        "data": data.fingerprint(),
        "selection": rule.name,
        "seeds": list(seeds),
        "arms": {arm.key: _plan_of(arm) for arm in arms},
    }
    plan = json.loads(json.dumps(plan, default=str))
    path = folder / "run.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["plan"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is not a run of this library: choose another output folder") from error
        different = sorted(key for key in plan if key != "seeds" and plan[key] != found.get(key))
        if different:
            raise ConfigError(
                f"{folder} holds another pilot (different: {', '.join(different)}): choose another output "
                "folder, or start "
                "afresh (--fresh)"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no run: choose another output folder")
    write_json(path, {"status": "running", "plan": plan, "limbeck": __version__})
    if configuration is not None:
        import yaml

        write_atomically(folder / "config.yaml", yaml.safe_dump(dict(configuration), sort_keys=False).encode())


def _plan_of(arm: Arm) -> dict[str, Any]:
    return {
        "recipe": None if arm.recipe is None else arm.recipe.to_dict(),
        "training": None if arm.training is None else arm.training.to_dict(),
        "teachers": list(arm.teachers),
        "source": None if arm.source is None else as_teacher(arm.source).fingerprint(),
    }


def _card(arm: Arm, configuration: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is needed to build the model again, where it came from a configuration."""
    if configuration is None:
        return {}
    specs = {_teacher_key(name): section.get("model") for name, section in configuration.get("teachers", {}).items()}
    if arm.role == "teacher":
        return {"model": specs[arm.key]}
    taught = {"teacher_model": specs[arm.teachers[0]]} if len(arm.teachers) == 1 else {}
    return {"model": configuration["student"], **taught}


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


def _write(
    outcome: PilotResult,
    data: Data,
    results: Mapping[str, Sequence[CellResult]],
    configuration: Mapping[str, Any] | None,
) -> None:
    """The run folder's tables and page; `run.json` says `complete` only after all else is there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = outcome.folder
    assert folder is not None
    write_json(folder / "result.json", outcome.record)
    pq.write_table(outcome.to_arrow(), folder / "metrics.parquet")
    history = history_rows(outcome.record)
    if history:
        pq.write_table(pa.Table.from_pylist(history), folder / "history.parquet")
    columns: dict[str, Any] = {"id": data.test.ids, "label": data.test.y}
    if data.test.groups is not None:
        columns["group"] = data.test.groups.index
    for key, cells in results.items():
        for cell in cells:
            columns[f"{key}-seed{cell.record['seed']}"] = cell.predictions.astype(np.int32)
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    outcome.report(folder / "report.html")
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", run | {"status": "complete", "verdict": outcome.verdict})
