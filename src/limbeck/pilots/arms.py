"""The rows of a pilot's comparison: what is trained with what, and whether it can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.augment import check_teacher_views, views_for
from limbeck.errors import ConfigError, RecipeError
from limbeck.fitting import check_student, named_error_set
from limbeck.pilots.result import PLAIN
from limbeck.presets import PRESETS, as_recipe
from limbeck.recipe import Recipe
from limbeck.teachers import as_teacher
from limbeck.teachers import require as require_outputs
from limbeck.teachers.fingerprints import module_fingerprint
from limbeck.training import Training

if TYPE_CHECKING:
    from limbeck.config import PilotConfig
    from limbeck.data import Data

ModelFactory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Arm:
    """A row of the comparison: a model, a recipe and the teacher it learns from; each seed of it is a cell.

    Args:
        key: unique in the pilot, fit for a file name.
        label: how tables call it.
        role: `teacher`, `baseline` (no teacher) or `student`.
        model: builds it, or a module to start every seed from.
        recipe: what it is trained by; None for a finished teacher.
        training: how; None for a finished teacher.
        teachers: the keys of the arms it learns from; more than one only for recipes that weigh teachers.
        source: a finished teacher: a module, a table of probabilities, …
        options: the recipe's hyper-parameters that may be searched.
        vary: the recipe with other values of them.
    """

    key: str
    label: str
    role: str
    model: ModelFactory | nn.Module | None = None
    recipe: Recipe | None = None
    training: Training | None = None
    teachers: tuple[str, ...] = ()
    source: Any = None
    options: tuple[str, ...] = ()
    vary: Callable[[Mapping[str, Any]], Recipe] | None = None


def plan(config: PilotConfig, models: str | Path | None = None, data: Data | None = None) -> tuple[Data, list[Arm]]:
    """The data and the arms of a configuration; nothing is trained. Data that are given are not loaded again."""
    from limbeck.build import build_data
    from limbeck.models import build, load_user_file

    functions = {} if models is None else load_user_file(models)
    data = build_data(config) if data is None else data

    def factory(spec: Any) -> Callable[[], nn.Module]:
        return lambda: build(spec, inputs_shape=data.sample_shape, classes=data.num_classes, user=functions)

    arms = [_teacher_arm(key, config, factory, functions) for key in config.teachers]
    training = Training(**config.training.settings)
    for index, entry in enumerate(config.recipes):
        try:
            recipe = as_recipe(entry.settings, functions).replace(name=entry.label)
        except RecipeError as error:
            raise RecipeError(f"recipes[{index}]: {error}") from error
        teachers = _teachers_of(entry, recipe, config)
        made = student_arms(entry.label, recipe, teachers, factory(config.student), training)
        arms += [searchable(arm, entry.settings, functions) for arm in made]
    return data, with_plain_student(arms)


def searchable(arm: Arm, settings: str | Mapping[str, Any], functions: Mapping[str, Any] | None = None) -> Arm:
    """The arm with the way to change the hyper-parameters of the preset that its recipe came from."""
    plain = {"recipe": settings} if isinstance(settings, str) else dict(settings)
    preset = PRESETS.get(plain.get("recipe", ""))
    if preset is None or arm.recipe is None:
        return arm
    name = arm.recipe.name

    def vary(options: Mapping[str, Any]) -> Recipe:
        return as_recipe({**plain, **options}, functions).replace(name=name)

    return replace(arm, options=tuple(preset.options), vary=vary)


def _teachers_of(entry: Any, recipe: Recipe, config: PilotConfig) -> list[str]:
    if entry.teachers:
        if not (recipe.teacher_outputs or recipe.needs_teacher) and recipe.rounds == 1:
            raise RecipeError(
                f"recipe {entry.label!r} takes nothing from a teacher, but names {', '.join(entry.teachers)}: "
                "remove 'teacher'"
            )
        return list(entry.teachers)
    return list(config.teachers) if recipe.needs_teacher or recipe.takes_teacher else []


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
        return Arm(teacher_key(key), label, "teacher", source=source)
    recipe = as_recipe(section.recipe.settings if section.recipe else "erm", functions)
    training = Training(**config.training_of(key).settings)
    return Arm(teacher_key(key), label, "teacher", factory(section.model), recipe, training)


def teacher_key(name: str) -> str:
    return _slug(f"teacher-{name}")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


def student_arms(
    label: str, recipe: Recipe, teachers: Sequence[str], student: nn.Module | ModelFactory, training: Training
) -> list[Arm]:
    if not teachers:
        role = "student" if recipe.teacher_outputs else "baseline"
        return [
            Arm(_slug(label), f"{label} (no teacher)" if role == "baseline" else label, role, student, recipe, training)
        ]
    keys = tuple(map(teacher_key, teachers))
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


def taught_by(arm: Arm, teachers: Mapping[str, Any]) -> Any:
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
    elif plain.recipe is None or plain.recipe.to_dict() != as_recipe("erm").to_dict():
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
        named_error_set(arm.recipe, data.train)
        assert arm.training is not None
        views = views_for(arm.recipe, arm.training.views, data.train)
        if arm.teachers:
            models = {key: built(by_key[key]) if by_key[key].source is None else by_key[key].source for key in by_key}
            teacher = as_teacher(taught_by(arm, models))
            require_outputs(teacher, arm.recipe.teacher_outputs, by=f"recipe {arm.label!r}")
            check_teacher_views(teacher, views)
    for arm in arms:
        if arm.model is not None:
            check_student(built(arm), data)
    return list(dict.fromkeys(warnings))


def built(arm: Arm) -> nn.Module:
    """The arm's model; one that a factory makes is drawn under a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return arm.model if isinstance(arm.model, nn.Module) else arm.model()  # type: ignore[misc]


def identity(arm: Arm) -> dict[str, Any]:
    """What decides the arm's result, as plain data; with the weights that a factory draws under a fixed seed."""
    return {
        "model": None if arm.model is None else module_fingerprint(built(arm)),
        "recipe": None if arm.recipe is None else arm.recipe.to_dict(),
        "training": None if arm.training is None else arm.training.to_dict(),
        "teachers": list(arm.teachers),
        "source": None if arm.source is None else as_teacher(arm.source).fingerprint(),
    }


def card_of(arm: Arm, configuration: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is needed to build the model again, where it came from a configuration."""
    if configuration is None:
        return {}
    specs = {teacher_key(name): section.get("model") for name, section in configuration.get("teachers", {}).items()}
    if arm.role == "teacher":
        return {"model": specs[arm.key]}
    taught = {"teacher_model": specs[arm.teachers[0]]} if len(arm.teachers) == 1 else {}
    return {"model": configuration["student"], **taught}
