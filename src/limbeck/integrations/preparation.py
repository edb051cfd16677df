"""A recipe made ready for somebody else's loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from limbeck import fitting
from limbeck.errors import ConfigError, RecipeError
from limbeck.loop import Stage
from limbeck.predict import InputReader, batched_logits
from limbeck.presets import as_recipe
from limbeck.recipe import Objective, Recipe
from limbeck.selection import selection_rule
from limbeck.student import STUDENT_FIELDS, StudentCalls
from limbeck.teachers import as_teacher
from limbeck.teachers import require as require_outputs
from limbeck.teachers.asking import Column
from limbeck.training import Training, derive_seed, epoch_order
from limbeck.weighting import sampling_weights

if TYPE_CHECKING:
    from limbeck.data import Data


class Prepared(nn.Module):
    """A student, a recipe's objective and all that it needs to know of the training samples; made by `prepare`.

    A module, so that `parameters()` are those to optimise: the student's, and those that terms or weighting learn.

        prepared = prepare(student, data, teacher=teacher, recipe="rld", epochs=10)
        for epoch in range(10):
            prepared.begin_epoch(epoch)
            for rows in prepared.order(epoch).split(128):      # rows of data.train
                loss = prepared(rows)
                …
        model = prepared.finish()
    """

    def __init__(self, stage: Stage, columns: Mapping[str, Column], seed: int, weights: Tensor | None = None) -> None:
        super().__init__()
        self.recipe, self.data, self.seed, self.epochs = stage.recipe, stage.data, seed, stage.training.epochs
        self.reader = InputReader(self.data.train)
        torch.manual_seed(derive_seed(seed, stage.name, "objective"))
        self.calls = StudentCalls(
            stage.model, self.recipe.needs, self.reader(torch.arange(min(2, len(self.data.train))))
        )
        self.objective = Objective(self.recipe, {**stage.context, **self.calls.context})
        self._columns, self._weights, self._stage = dict(columns), weights, stage.name
        self._epoch = 0
        known = {*self._columns, *STUDENT_FIELDS, "rows", "progress", "epoch", "x"}
        if missing := sorted(set(self.recipe.needs) - known):
            raise RecipeError(
                f"recipe {self.recipe.name!r} reads {', '.join(missing)}, which only limbeck.fit provides: use fit"
            )
        self.begin_epoch(0)

    @property
    def model(self) -> nn.Module:
        """The student."""
        return self.calls.model

    @property
    def group_weights(self) -> Tensor | None:
        """The weighting's group weights q `[G]`, where it has any."""
        return self.objective.group_weights

    def begin_epoch(self, epoch: int) -> None:
        """Say which epoch begins, counted from 0: warm-ups and schedules of terms go by it."""
        self._epoch = epoch
        self.objective.begin_epoch(epoch)

    def order(self, epoch: int) -> Tensor:
        """The rows of `data.train` that the recipe's sampling draws in an epoch, those that `limbeck.fit` would."""
        return epoch_order(len(self.data.train), self.seed, epoch, self._weights)

    def forward(self, rows: Tensor, inputs: Any = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            rows: positions in `data.train` `[B]`, int64.
            inputs: what the student is called with; by default those samples as they are in the data.
        """
        loss, _ = self.loss(rows, inputs)
        return loss

    def loss(self, rows: Tensor, inputs: Any = None) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the student's logits `[B, C]`."""
        device = next(iter(self.parameters())).device
        rows = rows.long()
        given = self.reader(rows.cpu()) if inputs is None else inputs
        given = _moved(given, device)
        batch: dict[str, Any] = {"rows": rows.to(device), "x": given, "epoch": self._epoch}
        batch["progress"] = self._epoch / self.epochs
        for name in self.recipe.needs | {"labels"}:
            if name in self._columns:
                batch[name] = self._columns[name].index_select(0, rows.cpu()).to(device)
        batch |= self.calls(given)
        loss, _ = self.objective(batch)
        return loss, batch["student_logits"]

    def validate(self) -> dict[str, float]:
        """Accuracy on the validation part: `validation_average`, and with groups `validation_worst_group`."""
        part = self.data.validation
        device = next(iter(self.parameters())).device
        right = batched_logits(self.model, InputReader(part, device), len(part)).argmax(1).cpu().numpy() == part.y
        found = {"validation_average": float(right.mean())}
        if part.groups is not None:
            index = part.groups.index
            present = np.unique(index[index >= 0])
            if len(present):
                found["validation_worst_group"] = float(min(right[index == group].mean() for group in present))
        return found

    def finish(self) -> nn.Module:
        """The trained student in evaluation mode, its last layer refitted where the recipe says so."""
        self.calls.close()
        model = self.model.eval()
        if self.recipe.refit is not None:
            model, _ = fitting.refit_last_layer(model, self.data, self.recipe, self.seed)
        return model


def prepare(
    student: nn.Module | Callable[[], nn.Module],
    data: Data,
    *,
    teacher: Any = None,
    recipe: str | Mapping[str, Any] | Recipe = "erm",
    epochs: int = 10,
    training: Training | None = None,
    seed: int = 0,
) -> Prepared:
    """Make a recipe ready for a loop of one's own: everything that `limbeck.fit` does before its loop.

    Checks that the parts fit, asks the teacher once, finds the error set, trains the earlier rounds, and ends the
    student in the teacher's last layer, as the recipe says. The loop then takes the same steps as `limbeck.fit` where
    it has the same order, optimiser and schedule. On one process.

    Args:
        student, data, teacher, recipe, seed: as in `limbeck.fit`.
        epochs: how long the loop will be, by which warm-ups and schedules go.
        training: how the stages before the loop are trained (error set, earlier rounds).

    Raises:
        LimbeckError: where recipe, data, teacher and student do not fit each other.
    """
    recipe = as_recipe(recipe)
    training = replace(training or Training(), epochs=epochs)
    if training.views is not None:
        raise ConfigError("prepare: training.views is for limbeck.fit; augment in your own loop, and give its inputs")
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise ConfigError("prepare: this loop is for one process; limbeck.fit runs on several under torchrun")
    if recipe.arbitrate is not None or recipe.choose is not None:
        step = "arbitrate" if recipe.arbitrate is not None else "choose"
        raise RecipeError(f"recipe {recipe.name!r}: the step {step!r} is around the loop of limbeck.fit only: use fit")
    source = None if teacher is None else as_teacher(teacher)
    names = None if data.groups is None else data.groups.names
    recipe.check(classes=data.num_classes, groups=names, teacher=source is not None)
    data.check(groups_required=recipe.needs_groups)
    if source is not None and recipe.teacher_outputs:
        require_outputs(source, recipe.teacher_outputs, by=f"recipe {recipe.name!r}")
        source.check(data.train, sorted(recipe.teacher_outputs))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "student"))
        initial = fitting.own_copy(student)
        fitting.check_student(initial, data)
        context: dict[str, Any] = {}
        if recipe.identify is not None:
            context["error_set"] = find_error_set(initial, data, recipe, training, seed)
        if recipe.rounds > 1 and source is None:
            source = as_teacher(fitting.fit(initial, data, recipe="erm", training=training, seed=seed))
        for _ in range(2, recipe.rounds):
            begun, once = fitting.starting_model(initial, source, recipe), recipe.replace(rounds=1)
            source = as_teacher(fitting.fit(begun, data, teacher=source, recipe=once, training=training, seed=seed))
        begun = fitting.starting_model(initial, source, recipe)
        rule = selection_rule("last", groups=False)
        stage = fitting.prepare_stage(
            "student", begun, recipe, training, data, data.train, seed, rule, source, context, key={}, ways=None
        )
        return Prepared(stage, _columns(data, stage), seed, _drawn(data, recipe))


def find_error_set(initial: nn.Module, data: Data, recipe: Recipe, training: Training, seed: int) -> Tensor:
    assert recipe.identify is not None
    named = fitting.named_error_set(recipe, data.train)
    if named is not None:
        return named
    if recipe.identify.source == "online":
        raise RecipeError(
            f"recipe {recipe.name!r}: an error set met while training (source: online) is found by limbeck.fit only; "
            "use source: eval"
        )
    short = replace(training, epochs=recipe.identify.epochs, schedule="constant")
    biased = fitting.fit(initial, data, recipe="erm", training=short, seed=seed, selection="last")
    return fitting.find_error_set(biased, data.train, "eval")


def _columns(data: Data, stage: Stage) -> dict[str, Column]:
    train = data.train
    found: dict[str, Column] = {
        "labels": torch.from_numpy(np.ascontiguousarray(train.y)),
        "ids": torch.from_numpy(train.ids),
    }
    if train.groups is not None:
        found["groups"] = torch.from_numpy(train.groups.index)
    return found | dict(stage.teacher_fields[0])


def _drawn(data: Data, recipe: Recipe) -> Tensor | None:
    if recipe.sampling == "shuffle":
        return None
    train = data.train
    by = train.groups.index if recipe.sampling == "group_balanced" and train.groups is not None else train.y
    return sampling_weights(recipe.sampling, torch.from_numpy(np.ascontiguousarray(by)))


def _moved(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Mapping):
        return {name: value.to(device) for name, value in inputs.items()}
    return inputs.to(device)


class RowDataset(Dataset[dict[str, Any]]):
    """The samples of a part of the data one by one, for loops that want mappings: `labels`, the inputs, and `row`.

    Args:
        data: such as `data.train`.
        rows: whether each sample says its row, by which `Prepared` knows it; not for samples to evaluate on.
        name: what a single input is called; inputs that have names keep them.
    """

    def __init__(self, data: Data, *, rows: bool = True, name: str = "x") -> None:
        self.data, self._rows, self._name, self._reader = data, rows, name, InputReader(data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        inputs = self._reader(torch.tensor([row]))
        named = inputs if isinstance(inputs, Mapping) else {self._name: inputs}
        found: dict[str, Any] = {name: value[0] for name, value in named.items()}
        found["labels"] = int(self.data.y[row])
        return found | ({"row": row} if self._rows else {})
