"""The one training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.augment import Augmented, MixedObjective
from limbeck.callbacks import Callback, Record, RunState
from limbeck.checkpoint import load_tensors, pack_optimiser, save_tensors, unpack_optimiser
from limbeck.engine import Compiled, choose_precision, engine_for
from limbeck.errors import CheckpointError, LimbeckError, RecipeError
from limbeck.evaluation import GroupCounts
from limbeck.predict import InputReader, batched_logits, call_model, logits_of
from limbeck.recipe import Objective, Recipe
from limbeck.selection import SelectionRule, worst_group
from limbeck.student import StudentCalls
from limbeck.teachers.asking import Column
from limbeck.training import Training, batch_bounds, derive_seed, epoch_order
from limbeck.tuning import choose_compile, chosen_training
from limbeck.weighting import sampling_weights

if TYPE_CHECKING:
    from limbeck.arbitration import Arbitration
    from limbeck.data import Data

IN_ORDER = 1 << 23
"""Bytes up to which a column is put in an epoch's order at once; a larger one is gathered batch by batch, while it fits
the cache."""


@dataclass
class Fitted:
    """What `fit` returns: the model of the selected epoch, and how it came about.

    Args:
        model: the student, in evaluation mode.
        recipe: what it was trained by.
        training: how, with the precision that was used.
        history: one record an epoch.
        selected_epoch: the epoch (from 1) whose weights `model` has.
        selection: the name of the rule that chose it.
        seed: of initialisation by a factory, order of samples and dropout.
        seconds: training time of all stages.
        earlier: the stages before, such as `identify` or `round 1`, by name.
        details: what a stage found, such as the size of the error set.
        warnings: what worked, but not as its paper had in mind.
        arbitration: whose posterior it was told, where its recipe has one.
    """

    model: nn.Module
    recipe: Recipe
    training: Training
    history: list[Record]
    selected_epoch: int
    selection: str
    seed: int
    seconds: float
    earlier: dict[str, Fitted] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    arbitration: Arbitration | None = None

    def __call__(self, inputs: Any) -> Any:
        """The model's output for a batch of inputs."""
        with torch.no_grad():
            return call_model(self.model, inputs)

    def save(self, path: str | Path, **card: Any) -> None:
        """Write the weights as safetensors, with recipe, training, selection and what `card` adds as metadata."""
        metadata = {
            "recipe": self.recipe.to_dict(),
            "training": self.training.to_dict(),
            "selection": self.selection,
            "selected_epoch": self.selected_epoch,
            "seed": self.seed,
        }
        save_tensors(Path(path), self.model.state_dict(), metadata | card)


@dataclass
class Stage:
    """One run of the loop: everything that decides its result.

    `teacher_fields` has one entry a view, `teacher_ways` says how they are computed (`limbeck.tuning`), and `saved` is
    what an interrupted run left.
    """

    name: str
    model: nn.Module
    recipe: Recipe
    training: Training
    data: Data
    seed: int
    rule: SelectionRule
    teacher_fields: Sequence[Mapping[str, Column]]
    context: dict[str, Any]
    key: dict[str, Any]
    callbacks: Sequence[Callback] = ()
    checkpoint: Path | None = None
    saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    teacher_ways: Mapping[str, Any] = field(default_factory=dict)
    record_errors: bool = False
    augmented: Augmented | None = None
    notes: Sequence[str] = ()


def train_stage(stage: Stage) -> Fitted:
    """Train one stage: the only training loop there is."""
    started = time.perf_counter()
    recipe, data, train = stage.recipe, stage.data, stage.data.train
    reader, validation = InputReader(train), data.validation
    validation_reader = InputReader(validation)
    labels = torch.from_numpy(np.ascontiguousarray(train.y))
    groups = None if train.groups is None else torch.from_numpy(train.groups.index)
    columns: dict[str, Column] = {"labels": labels, "ids": torch.from_numpy(train.ids)}
    if groups is not None:
        columns["groups"] = groups

    saved, model, engine = stage.saved, stage.model, engine_for()
    precision, compiled = (saved[1]["precision"], saved[1]["compile"]) if saved is not None else _choices(stage, reader)
    precision, compiled = engine.agree(precision), engine.agree(compiled)
    engine.compute_in(precision)
    if precision["channels_last"]:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(derive_seed(stage.seed, stage.name, "objective"))
    calls = StudentCalls(model, recipe.needs, reader(torch.arange(min(2, len(train)))))
    augmented = stage.augmented
    mixed = augmented is not None and bool(augmented.views.views.mixing)
    objective = (MixedObjective if mixed else Objective)(recipe, {**stage.context, **calls.context})
    explicit = objective.explicit
    parameters = [part for part in (*model.parameters(), *objective.parameters()) if part.requires_grad]
    if not parameters:
        raise RecipeError(
            f"{recipe.name}, {stage.name}: nothing is left to train: the student has no parameters beside a frozen "
            "last layer; use a student with a layer before its last one, or a projector (head: {projector: linear})"
        )
    sparse = any(getattr(part, "sparse", False) for part in model.modules())
    optimiser = stage.training.make_optimiser(parameters, sparse)
    step = stage.training.stepper(optimiser)
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    run = RunState(recipe.name, stage.training.epochs, stage.name)
    best: dict[str, Tensor] | None = None
    best_score, selected = -math.inf, 0
    wrong = torch.zeros(len(train), dtype=torch.bool) if stage.record_errors else None
    if saved is not None:
        tensors, state = saved
        model.load_state_dict(_part(tensors, "model."))
        objective.load_state_dict(_part(tensors, "objective."))
        unpack_optimiser(optimiser, _part(tensors, "optimiser."), state["optimiser"])
        run.history, run.stop, selected = state["history"], state["stop"], state["selected"]
        best_score = -math.inf if state["best_score"] is None else state["best_score"]
        best = _part(tensors, "best.") or None
        wrong = tensors.get("wrong")

    weights = None
    if recipe.sampling == "posterior":
        weights = stage.context["sample_weights"]
    elif recipe.sampling != "shuffle":
        by = groups if recipe.sampling == "group_balanced" and groups is not None else labels
        weights = sampling_weights(recipe.sampling, by)
    bounds = batch_bounds(len(train), stage.training.batch_size)
    run_calls = engine.place(calls, objective, compiled["student"])
    needed = [name for name in (*columns, *stage.teacher_fields[0]) if name in recipe.needs or name == "labels"]
    with_inputs = "x" in recipe.needs
    for callback in stage.callbacks:
        callback.on_start(run)
    for epoch in range(len(run.history), stage.training.epochs):
        if run.stop:
            break
        torch.manual_seed(derive_seed(stage.seed, stage.name, "epoch", epoch))
        objective.begin_epoch(epoch)
        factor = stage.training.factor(epoch)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        order = epoch_order(len(train), stage.seed, epoch, weights)
        losses_seen: list[Tensor] = []
        view = 0 if augmented is None else augmented.views.views.of_epoch(epoch)
        columns.update(stage.teacher_fields[view % len(stage.teacher_fields)])
        constant = {"progress": epoch / stage.training.epochs, "epoch": epoch}
        ordered = {name: _in_order(columns[name], order) for name in needed}
        told = None
        if augmented is None:
            told = objective.ahead({n: v for n, v in ordered.items() if v is not None}, data.num_classes)
        model.train()
        objective.train()
        for start, end in bounds:
            part = engine.part(start, end)
            rows = order[part]
            seen = None if augmented is None else augmented.views.batch(rows, view)
            inputs = reader(rows) if seen is None else seen.inputs
            batch: dict[str, Any] = {"rows": rows, **constant}
            for name, values in ordered.items():
                batch[name] = columns[name].index_select(0, rows) if values is None else values[part]
            if with_inputs:
                batch["x"] = inputs
            if augmented is not None and seen is not None:
                batch.update(augmented.fields(seen, rows, view, columns, needed))
            with engine.autocast():
                batch.update(run_calls(inputs))
            if explicit:
                gradient, sample_losses = objective.gradient(batch, None if told is None else told.part(part))
                root = batch["student_logits"]
            else:
                gradient = None
                root, sample_losses = objective.forward(batch)
            for parameter in parameters:
                parameter.grad = None
            engine.backward(root, gradient)
            if stage.training.clip is not None:
                nn.utils.clip_grad_norm_(parameters, stage.training.clip)
            step()
            losses_seen.append(sample_losses)
            if wrong is not None:
                wrong[rows] = batch["student_logits"].detach().argmax(1) != batch["labels"]
        seen_rows, all_losses = engine.gather(order, bounds, torch.cat(losses_seen))
        record = _record(epoch, seen_rows, all_losses, groups, stage, objective, optimiser)
        logits = batched_logits(model, validation_reader, len(validation))
        counts = _validate(record, logits, validation)
        run.history.append(record)
        score = stage.rule.of(counts, logits)
        if stage.rule.score is None:
            selected = epoch + 1
        elif score > best_score or best is None:
            best_score, selected = score, epoch + 1
            best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for callback in stage.callbacks:
            callback.on_epoch(run)
        if stage.checkpoint is not None and engine.first:
            choices = {"precision": precision, "compile": compiled, "teacher_ways": stage.teacher_ways}
            _keep(stage, model, objective, optimiser, run, best, best_score, selected, wrong, choices)
    calls.close()
    if isinstance(run_calls, Compiled) and run_calls.failure is not None:
        compiled = {"student": False, "student_note": f"it cannot be compiled: {run_calls.failure}"}
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    for callback in stage.callbacks:
        callback.on_end(run)
    details = {} if wrong is None else {"wrong": wrong}
    training = chosen_training(stage.training, precision, compiled, stage.teacher_ways)
    return Fitted(
        model,
        recipe,
        training,
        run.history,
        selected,
        stage.rule.name,
        stage.seed,
        time.perf_counter() - started,
        {},
        details,
    )


def _in_order(column: Column, order: Tensor) -> Tensor | None:
    """A column in the order of an epoch, so that each batch of it is a view; None where it is too large to copy."""
    held = isinstance(column, Tensor) and column.nbytes <= IN_ORDER
    return column.index_select(0, order) if held else None


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _choices(stage: Stage, reader: InputReader) -> tuple[dict[str, Any], dict[str, Any]]:
    """The student's precision, and whether it is compiled."""
    training, count = stage.training, len(stage.data.train)
    example = reader(torch.arange(min(training.batch_size, count)))
    precision = choose_precision(training.precision, stage.model, example, forward_mean)
    steps = training.epochs * len(batch_bounds(count, training.batch_size))
    return precision, choose_compile(training.compile, stage.model, stage.recipe.needs, example, steps, precision)


def forward_mean(model: nn.Module, inputs: Any) -> Tensor:
    """A scalar whose forward and backward pass take what a step of the student takes; for timing."""
    return logits_of(call_model(model, inputs)).float().mean()


def _record(
    epoch: int,
    rows: Tensor,
    losses: Tensor,
    groups: Tensor | None,
    stage: Stage,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
) -> Record:
    """What an epoch of training leaves behind; the only place where the loop waits for numbers."""
    mean = float(losses.mean())
    if not math.isfinite(mean):
        raise LimbeckError(
            f"{stage.recipe.name}, {stage.name}: the training loss is {mean} in epoch {epoch + 1}; lower the "
            "learning rate "
            f"({optimiser.param_groups[0]['lr']:g}), or clip the gradient (clip: 1.0)"
        )
    record: Record = {"epoch": epoch + 1, "loss": mean, "learning_rate": optimiser.param_groups[0]["lr"]}
    record["group_losses"] = record["group_weights"] = None
    if groups is not None:
        index = groups[rows]
        known = index >= 0
        names = stage.context["groups"]
        sums = torch.zeros(names).index_add_(0, index[known], losses[known])
        seen = torch.bincount(index[known], minlength=names)
        record["group_losses"] = [
            total / count if count else None for total, count in zip(sums.tolist(), seen.tolist(), strict=True)
        ]
    if (weights := objective.group_weights) is not None:
        record["group_weights"] = weights.tolist()
    return record


def _validate(record: Record, logits: Tensor, validation: Data) -> GroupCounts:
    groups = validation.groups
    counts = GroupCounts.from_predictions(
        validation.y,
        logits.argmax(1).numpy(),
        None if groups is None else groups.index,
        class_names=validation.classes,
        group_names=None if groups is None else groups.names,
    )
    worst = None if groups is None else worst_group(counts)
    labels = torch.from_numpy(np.ascontiguousarray(validation.y))
    record["validation_loss"] = float(nn.functional.cross_entropy(logits, labels))
    record["validation_average"] = counts.average
    record["validation_worst_group"] = None if worst is None else worst.accuracy
    record["validation_worst_group_name"] = None if worst is None else worst.name
    return counts


def _keep(
    stage: Stage,
    model: nn.Module,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    run: RunState,
    best: Mapping[str, Tensor] | None,
    best_score: float,
    selected: int,
    wrong: Tensor | None,
    choices: Mapping[str, Any],
) -> None:
    """Write everything the next epoch depends on. Random numbers are functions of (seed, epoch), so they need "
    "no state."""
    assert stage.checkpoint is not None
    tensors, plain = pack_optimiser(optimiser)
    held = {f"optimiser.{name}": value for name, value in tensors.items()}
    held |= {f"model.{name}": value for name, value in model.state_dict().items()}
    held |= {f"objective.{name}": value for name, value in objective.state_dict().items()}
    held |= {f"best.{name}": value for name, value in (best or {}).items()}
    if wrong is not None:
        held["wrong"] = wrong
    state = {
        "key": stage.key,
        "history": run.history,
        "stop": run.stop,
        "best_score": best_score,
        "selected": selected,
        "optimiser": plain,
        **choices,
    }
    save_tensors(stage.checkpoint, held, state)


def restored(path: Path, key: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state of an interrupted run; None where its first epoch was never finished.

    Raises:
        CheckpointError: where the file belongs to another run.
    """
    if not path.is_file():
        return None
    tensors, state = load_tensors(path)
    wanted = json.loads(json.dumps(key, default=str))
    found = state.get("key", {})
    if found != wanted:
        different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"{path}: belongs to another run (different: {', '.join(different)}); resume with the same settings, "
            "or use another folder"
        )
    return tensors, state
