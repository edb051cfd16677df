"""The one training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.augment import Augmented, MixedObjective
from limbeck.callbacks import Callback, Record, RunState
from limbeck.checkpoint import load_tensors, pack_optimiser, save_tensors, unpack_optimiser
from limbeck.engine import choose_precision, engine_for
from limbeck.errors import CheckpointError, LimbeckError
from limbeck.evaluation import GroupCounts
from limbeck.predict import InputReader, batched_logits, call_model, logits_of
from limbeck.recipe import Objective, Recipe
from limbeck.selection import SelectionRule, worst_group
from limbeck.student import StudentCalls
from limbeck.training import Training, batch_bounds, derive_seed, epoch_order
from limbeck.weighting import sampling_weights

if TYPE_CHECKING:
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
    """One run of the loop: everything that decides its result. `teacher_fields` has one entry a view."""

    name: str
    model: nn.Module
    recipe: Recipe
    training: Training
    data: Data
    seed: int
    rule: SelectionRule
    teacher_fields: Sequence[dict[str, Tensor]]
    context: dict[str, Any]
    key: dict[str, Any]
    callbacks: Sequence[Callback] = ()
    checkpoint: Path | None = None
    resume: bool = False
    record_errors: bool = False
    augmented: Augmented | None = None


def train_stage(stage: Stage) -> Fitted:
    """Train one stage: the only training loop there is."""
    started = time.perf_counter()
    recipe, data, train = stage.recipe, stage.data, stage.data.train
    reader, validation = InputReader(train), data.validation
    validation_reader = InputReader(validation)
    labels = torch.from_numpy(np.ascontiguousarray(train.y))
    groups = None if train.groups is None else torch.from_numpy(train.groups.index)
    columns: dict[str, Tensor] = {"labels": labels, "ids": torch.from_numpy(train.ids)}
    if groups is not None:
        columns["groups"] = groups

    saved = _restore(stage)
    model = stage.model
    precision = dict(saved[1]["precision"]) if saved is not None else _choose_precision(stage, reader)
    engine = engine_for(precision)
    if precision["channels_last"]:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(derive_seed(stage.seed, stage.name, "objective"))
    calls = StudentCalls(model, recipe.needs, reader(torch.arange(min(2, len(train)))))
    augmented = stage.augmented
    mixed = augmented is not None and bool(augmented.views.views.mixing)
    objective = (MixedObjective if mixed else Objective)(recipe, {**stage.context, **calls.context})
    parameters = [part for part in (*model.parameters(), *objective.parameters()) if part.requires_grad]
    optimiser = stage.training.make_optimiser(parameters)
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
    if recipe.sampling != "shuffle":
        by = groups if recipe.sampling == "group_balanced" and groups is not None else labels
        weights = sampling_weights(recipe.sampling, by)
    bounds = batch_bounds(len(train), stage.training.batch_size)
    run_calls = engine.place(calls, objective)
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
            loss, sample_losses = objective.forward(batch)
            for parameter in parameters:
                parameter.grad = None
            engine.backward(loss)
            if stage.training.clip is not None:
                nn.utils.clip_grad_norm_(parameters, stage.training.clip)
            optimiser.step()
            losses_seen.append(sample_losses)
            if wrong is not None:
                wrong[rows] = batch["student_logits"].detach().argmax(1) != batch["labels"]
        seen_rows, all_losses = engine.gather(order, bounds, torch.cat(losses_seen))
        record = _record(epoch, seen_rows, all_losses, groups, stage, objective, optimiser)
        logits = batched_logits(model, validation_reader, len(validation))
        counts = _validate(record, logits, validation)
        run.history.append(record)
        score = math.inf if stage.rule.score is None else stage.rule.score(counts)
        if stage.rule.score is None:
            selected = epoch + 1
        elif score > best_score or best is None:
            best_score, selected = score, epoch + 1
            best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for callback in stage.callbacks:
            callback.on_epoch(run)
        if stage.checkpoint is not None and engine.first:
            _keep(stage, model, objective, optimiser, run, best, best_score, selected, wrong, precision)
    calls.close()
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    for callback in stage.callbacks:
        callback.on_end(run)
    details = {} if wrong is None else {"wrong": wrong}
    training = replace(stage.training, precision=precision)
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


def _in_order(column: Tensor, order: Tensor) -> Tensor | None:
    """A column in the order of an epoch, so that each batch of it is a view; None where it is too large to copy."""
    return column.index_select(0, order) if column.nbytes <= IN_ORDER else None


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _choose_precision(stage: Stage, reader: InputReader) -> dict[str, Any]:
    example = reader(torch.arange(min(stage.training.batch_size, len(stage.data.train))))
    return choose_precision(stage.training.precision, stage.model, example, forward_mean)


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
    precision: Mapping[str, Any],
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
        "precision": dict(precision),
    }
    save_tensors(stage.checkpoint, held, state)


def _restore(stage: Stage) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    if not stage.resume or stage.checkpoint is None or not stage.checkpoint.is_file():
        return None
    tensors, state = load_tensors(stage.checkpoint)
    wanted = json.loads(json.dumps(stage.key, default=str))
    found = state.get("key", {})
    if found != wanted:
        different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"{stage.checkpoint}: belongs to another run (different: {', '.join(different)}); resume with the "
            "same settings, "
            "or use another folder"
        )
    return tensors, state
