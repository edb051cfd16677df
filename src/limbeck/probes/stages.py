"""The stages of a fit one at a time, so that those of many fits can be trained together.

What `limbeck.fit` does around the loop (an error set first, rounds, a refit afterwards) is here a generator: it yields
each stage that is to be trained and is sent what came out of it.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.augment import check_teacher_views
from limbeck.callbacks import Record
from limbeck.engine import FLOAT32
from limbeck.fitting import (
    check_student,
    describe_error_set,
    find_error_set,
    named_error_set,
    own_copy,
    starting_model,
)
from limbeck.heads import transplant, transplant_weights
from limbeck.loop import Fitted, Stage
from limbeck.predict import InputReader
from limbeck.presets import as_recipe
from limbeck.probes.network import layers_of
from limbeck.recipe import Head, Recipe
from limbeck.selection import SelectionRule, selection_rule
from limbeck.teachers import Teacher, as_teacher, collect
from limbeck.teachers import require as require_outputs
from limbeck.teachers.base import batch_axis
from limbeck.training import Training, derive_seed

if TYPE_CHECKING:
    from limbeck.data import Data

Steps = Generator[Stage, Fitted, Fitted]


@dataclass(frozen=True)
class Cell:
    """One probe to train: what `limbeck.fit` takes.

    Args:
        student: a module, which every seed starts from as it is, or a function that builds one under the seed.
        data: with a training and a validation part. Cells over the same array of features share it.
        recipe: what it is trained by.
        teacher: any source of `limbeck.teachers.as_teacher`; a sequence for several; None for none.
        training: how.
        seed: of the order of samples and of what the recipe initialises.
    """

    student: nn.Module | Callable[[], nn.Module]
    data: Data
    recipe: Recipe
    teacher: Any = None
    training: Training = field(default_factory=Training)
    seed: int = 0


class Sources:
    """The teachers of many cells: each is asked once for each sample, and its outputs are held once."""

    def __init__(self) -> None:
        self._teachers: dict[tuple[int, ...], tuple[Any, Teacher]] = {}
        self._known: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = {}

    def once(self, what: Any, of: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` gives for these objects, the first time. They are held, so that their ids stay their own."""
        key = (what, *map(id, of))
        if key not in self._known:
            self._known[key] = (of, make())
        return self._known[key][1]

    def teacher(self, source: Any) -> Teacher | None:
        """The teacher that a source stands for; the same object for the same source."""
        if source is None:
            return None
        several = isinstance(source, Sequence) and not isinstance(source, str)
        key = tuple(map(id, source)) if several else (id(source),)
        if key not in self._teachers:
            # The source is held as well, so that its id stays its own.
            self._teachers[key] = (list(source) if several else source, as_teacher(source))
        return self._teachers[key][1]

    def asked(self, recipe: Recipe) -> list[str]:
        """What a recipe asks of a teacher, read once: it is looked up in the signatures of its parts."""
        found: list[str] = self.once("asked", (recipe,), lambda: sorted(recipe.teacher_outputs))
        return found

    def check(self, teacher: Teacher, data: Data, want: Sequence[str]) -> None:
        """Refuse a teacher that cannot teach these data, once."""
        self.once(("teacher", *want), (teacher, data), lambda: teacher.check(data, want))

    def warnings(self, recipe: Recipe, data: Data, teacher: Teacher | None) -> list[str]:
        """Hold recipe and data against each other, once."""
        groups = None if data.groups is None else data.groups.names

        def check() -> tuple[list[str], bool]:
            said = recipe.check(classes=data.num_classes, groups=groups, teacher=teacher is not None)
            return said, recipe.needs_groups

        said, needs_groups = self.once(("recipe", teacher is not None), (recipe, data), check)
        self.once(("data", needs_groups), (data,), lambda: data.check(groups_required=needs_groups))
        return list(said)

    def context(self, data: Data) -> dict[str, Any]:
        """What objectives are told of the training samples."""
        train = data.train
        labels = torch.from_numpy(np.ascontiguousarray(train.y))

        def count() -> dict[str, Any]:
            found: dict[str, Any] = {"class_counts": torch.bincount(labels, minlength=data.num_classes)}
            if train.groups is not None:
                index = torch.from_numpy(train.groups.index)
                found["groups"] = len(train.groups.names)
                found["group_counts"] = torch.bincount(index[index >= 0], minlength=found["groups"])
            return found

        own = {"classes": data.num_classes, "samples": len(train), "labels_all": labels}
        return {**own, **self.once("counts", (data,), count)}

    def outputs(self, teacher: Teacher, data: Data, want: Sequence[str]) -> list[tuple[str, Tensor]]:
        """The outputs for every sample of `data`, samples first: the same tensors for whoever asks.

        Those of a student that teaches its own next round are not held: nobody else will ask.
        """

        def ask() -> list[tuple[str, Tensor]]:
            whole = collect(teacher, data, want)
            return [(name, value.movedim(batch_axis(name), 0).contiguous()) for name, value in whole.items()]

        if not any(teacher is known for _, known in self._teachers.values()):
            return ask()
        found: list[tuple[str, Tensor]] = self.once(("outputs", *want), (teacher, data), ask)
        return found


def can_be_together(cell: Cell) -> bool:
    """Whether this cell's stages may be trained beside others: vectors, and layers that can be stacked.

    What cannot (images, views, dropout, normalisation, clipping, a user's optimiser, a refit, feature maps) is a case
    for `limbeck.fit` alone.
    """
    training, recipe = cell.training, cell.recipe
    vectors = holds_vectors(cell.data)
    plain = isinstance(training.optimiser, str) and training.clip is None and training.views is None
    online = recipe.identify is not None and recipe.identify.source == "online"
    # A step of a recipe that is not known here is for `limbeck.fit`, and so is a field that is not gathered here.
    known = all(getattr(recipe, part.name) == part.default for part in fields(Recipe) if part.name not in _STEPS)
    known = known and recipe.sampling in _SAMPLINGS and recipe.needs <= _FIELDS
    if not (vectors and plain and known) or online or training.precision not in ("float32", FLOAT32):
        return False
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return False
    with torch.random.fork_rng(devices=[]):
        return layers_of(own_copy(cell.student)) is not None


_STEPS = ("terms", "weighting", "head", "sampling", "identify", "rounds", "start", "name")
_SAMPLINGS = ("shuffle", "group_balanced", "class_balanced")
_FIELDS = frozenset(
    {
        "student_logits",
        "student_features",
        "teacher_logits",
        "teachers_logits",
        "teacher_features",
        "labels",
        "groups",
        "ids",
        "rows",
        "x",
        "progress",
        "epoch",
    }
)


def holds_vectors(data: Data) -> bool:
    """Whether a sample is one vector of numbers. What is read lazily is not read for the answer."""
    shape = data.sample_shape
    return isinstance(shape, tuple) and len(shape) == 1 and getattr(data.x, "dtype", None) == np.float32


def steps(cell: Cell, selection: str | SelectionRule | None, sources: Sources) -> Steps:
    """What `limbeck.fit` does for a cell that can be together, stage by stage: yields them and returns the result.

    Raises:
        LimbeckError: before the first stage, where the parts of the cell do not fit each other.
    """
    started = time.perf_counter()
    data, recipe, training, seed = cell.data, cell.recipe, cell.training, cell.seed
    train = data.train
    rule = selection_rule(selection, groups=data.groups is not None)
    source = sources.teacher(cell.teacher)
    warnings = sources.warnings(recipe, data, source)
    named = named_error_set(recipe, train)
    if source is not None and sources.asked(recipe):
        require_outputs(source, sources.asked(recipe), by=f"recipe {recipe.name!r}")
        sources.check(source, train, sources.asked(recipe))
        check_teacher_views(source, None)
    torch.default_generator.manual_seed(derive_seed(seed, "student"))
    initial = own_copy(cell.student)
    check_student(initial, data)
    waiting = time.perf_counter() - started

    def stage(name: str, what: Recipe, by: Teacher | None, how: Training, which: SelectionRule) -> Stage:
        model = copy.deepcopy(starting_model(initial, by, what) if name != "identify" else initial)
        taught: dict[str, Tensor] = {}
        if by is not None and sources.asked(what):
            if what.head is not None:
                torch.manual_seed(derive_seed(seed, name, "projector"))
                model = _transplanted(model, by, what.head, train)
            kinds = [kind for kind in sources.asked(what) if kind != "head"]
            given = sources.outputs(by, train, kinds)
            taught = {kind if kind == "teachers_logits" else f"teacher_{kind}": value for kind, value in given}
        own: dict[str, Any] = {
            **sources.context(data),
            "epochs": how.epochs,
            "student_copy": starting_model(initial, by, what) if name != "identify" else initial,
            **context,
        }
        if "teacher_features" in taught:
            own["teacher_width"] = taught["teacher_features"].shape[1]
        return Stage(name, model, what, how, data, seed, which, [taught], own, {})

    earlier: dict[str, Fitted] = {}
    details: dict[str, Any] = {}
    context: dict[str, Any] = {}
    plain: Recipe = sources.once("plain", (), lambda: as_recipe("erm"))
    if recipe.identify is not None and recipe.identify.trains:
        short = replace(training, epochs=recipe.identify.epochs, schedule="constant")
        earlier["identify"] = yield stage("identify", plain, None, short, selection_rule("last", groups=False))
        context["error_set"] = find_error_set(earlier["identify"], train, recipe.identify.source)
    elif named is not None:
        context["error_set"] = named
    if "error_set" in context:
        details["error_set"] = describe_error_set(context["error_set"], train)
    if recipe.rounds > 1 and source is None:
        earlier["round 1"] = yield stage("round 1", plain, None, training, rule)
        source = as_teacher(earlier["round 1"])
    for number in range(2, recipe.rounds):
        name = f"round {number}"
        earlier[name] = yield stage(name, recipe, source, training, rule)
        source = as_teacher(earlier[name])
    fitted = yield stage("student", recipe, source, training, rule)
    fitted.recipe, fitted.earlier, fitted.details, fitted.warnings = recipe, earlier, details, warnings
    fitted.seconds += waiting + sum(one.seconds for one in earlier.values())
    return fitted


def finished(stage: Stage, history: list[Record], selected_epoch: int, seconds: float) -> Fitted:
    """The result of a stage whose model has its weights."""
    stage.model.eval()
    training = replace(stage.training, precision=dict(FLOAT32))
    return Fitted(stage.model, stage.recipe, training, history, selected_epoch, stage.rule.name, stage.seed, seconds)


def _transplanted(model: nn.Module, teacher: Teacher, head: Head, train: Data) -> nn.Module:
    """The student ended in the teacher's last layer, as `limbeck.fit` does where features are vectors."""
    module = getattr(teacher, "module", None)
    if not isinstance(module, nn.Module) or head.match == "vector":
        return transplant_weights(model, *teacher.head(), head.projector, head.student_layer)
    example = InputReader(train)(torch.arange(min(2, len(train))))
    return transplant(
        model, module, head.projector, head.student_layer, head.teacher_layer, head.match, example=example
    )
