"""What a pilot will cost, from a few real steps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.callbacks import RunState
from limbeck.fitting import fit
from limbeck.modes import evaluating, one_thread
from limbeck.pilots.arms import Arm, built, check_arms
from limbeck.pilots.search import Search, planned
from limbeck.predict import InputReader, batched_logits, call_model
from limbeck.teachers import Teacher, as_teacher, collect
from limbeck.training import Training, batch_bounds
from limbeck.views import Views

if TYPE_CHECKING:
    from limbeck.data import Data

STEPS = 24
"""Steps a measured epoch: enough for a steady median, few enough to be done at once."""
FLOAT = 4


@dataclass(frozen=True)
class ArmForecast:
    """What one arm costs for one seed.

    Args:
        label: of the arm.
        parameters: of its model.
        seconds: for one seed, evaluation included.
        step_milliseconds: of a training step of its last stage.
        teacher_milliseconds: of the live teacher on one batch; 0 without one.
        teacher_bytes: of its stored outputs for the training part.
        memory_bytes: parameters, gradients, optimiser state and the activations of one batch.
    """

    label: str
    parameters: int
    seconds: float
    step_milliseconds: float
    teacher_milliseconds: float
    teacher_bytes: int
    memory_bytes: int

    @property
    def live_share(self) -> float:
        """The share of a step that a live teacher would take."""
        return self.teacher_milliseconds / (self.teacher_milliseconds + self.step_milliseconds)


@dataclass(frozen=True)
class Forecast:
    """What a pilot costs.

    Args:
        arms: one entry an arm.
        seeds: how many.
        data_bytes: of the inputs in memory.
        overhead_seconds: of comparison and report.
        search_seconds: of the trials of settings.
    """

    arms: tuple[ArmForecast, ...]
    seeds: int
    data_bytes: int
    overhead_seconds: float
    search_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole pilot, on one thread."""
        return self.overhead_seconds + self.search_seconds + self.seeds * sum(arm.seconds for arm in self.arms)

    @property
    def memory_bytes(self) -> int:
        """The largest arm beside the data and its teacher's stored outputs."""
        return self.data_bytes + max(arm.memory_bytes + arm.teacher_bytes for arm in self.arms)

    def __str__(self) -> str:
        lines = [f"{'model':30s} {'parameters':>12s} {'step':>9s} {'live teacher':>13s} {'stored':>10s} {'a seed':>9s}"]
        for arm in self.arms:
            live = f"{100 * arm.live_share:.0f} % of a step" if arm.teacher_milliseconds else "–"
            stored = _bytes(arm.teacher_bytes) if arm.teacher_bytes else "–"
            step = f"{arm.step_milliseconds:.2f} ms" if arm.step_milliseconds else "–"
            lines.append(
                f"{arm.label:30s} {arm.parameters:12,d} {step:>9s} {live:>13s} {stored:>10s} {arm.seconds:7.1f} s"
            )
        if self.search_seconds:
            lines.append(f"search of settings: about {_time(self.search_seconds)}")
        lines.append(
            f"{len(self.arms)} models × {self.seeds} seeds: about {_time(self.seconds)} on one thread, "
            f"{_bytes(self.memory_bytes)} of memory (data {_bytes(self.data_bytes)})"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        arms = [{**vars(arm), "live_share": arm.live_share} for arm in self.arms]
        return {
            "seconds": self.seconds,
            "search_seconds": self.search_seconds,
            "memory_bytes": self.memory_bytes,
            "data_bytes": self.data_bytes,
            "seeds": self.seeds,
            "arms": arms,
        }


def estimate(data: Data, arms: Sequence[Arm], seeds: int, search: Search | None = None) -> Forecast:
    """Forecast a pilot, with its search of settings, by training every arm for a few steps.

    Raises:
        LimbeckError: for all that the pilot itself would refuse.
    """
    with one_thread():
        check_arms(arms, data)
        sources: dict[str, Any] = {}
        for arm in arms:
            if arm.role == "teacher":
                sources[arm.key] = arm.source if arm.source is not None else built(arm)
        forecasts = tuple(_arm(arm, data, sources) for arm in arms)
    reader = InputReader(data)(torch.arange(1))
    parts = reader.values() if isinstance(reader, Mapping) else [reader]
    stored = len(data) * sum(part.numel() for part in parts) * _input_size(data)
    # Measured on the bundled examples: the bootstrap of each comparison and the page.
    searched = 0.0
    if search is not None:
        students = [arm for arm in arms if arm.role != "teacher"]
        search.check(students)
        seconds = {arm.key: found.seconds for arm, found in zip(arms, forecasts, strict=True)}
        searched = sum(planned(search, arm, students) * seconds[arm.key] for arm in students)
    return Forecast(forecasts, seeds, stored, 2.0 + 0.4 * len(arms), searched)


def _passes(training: Training) -> int:
    """How often the teacher goes through the training part: once a stored view; a live one was part of the steps."""
    views = Views.of(training.views)
    if views is None or not views.teacher_sees_changed:
        return 1
    return 0 if views.online else views.count


class _Clock:
    """The seconds of the last epoch of each stage, its steps aside from its validation."""

    def __init__(self) -> None:
        self.epochs: dict[str, float] = {}
        self.lengths: dict[str, int] = {}
        self._since = 0.0

    def on_start(self, run: RunState) -> None:
        """A stage begins."""
        self.lengths[run.stage] = run.epochs
        self._since = time.perf_counter()

    def on_epoch(self, run: RunState) -> None:
        """An epoch is over; the next one's time replaces it, so that what is done once does not count."""
        now = time.perf_counter()
        self.epochs[run.stage] = min(now - self._since, self.epochs.get(run.stage, math.inf))
        self._since = now

    def on_end(self, run: RunState) -> None:
        """Nothing."""


def _arm(arm: Arm, data: Data, sources: Mapping[str, Any]) -> ArmForecast:
    train, evaluated = data.train, len(data.validation) + len(data.test)
    taught = [sources[key] for key in arm.teachers]
    teacher = as_teacher(taught if len(taught) > 1 else taught[0]) if taught else None
    if arm.source is not None:
        source = as_teacher(arm.source)
        seconds = _pass(source, data.test, ("logits",)) * evaluated
        module = getattr(source, "module", None)
        parameters = 0 if module is None else sum(part.numel() for part in module.parameters())
        return ArmForecast(arm.label, parameters, seconds, 0.0, 0.0, 0, 0)
    assert arm.training is not None
    assert arm.recipe is not None
    model, training = built(arm), arm.training
    small = _part(data, min(len(train), STEPS * training.batch_size))
    clock = _Clock()
    # Three epochs of few steps: the fastest is a steady one.
    fit(
        model,
        small,
        teacher=teacher,
        recipe=arm.recipe,
        epochs=3,
        batch_size=training.batch_size,
        optimiser=training.optimiser,
        precision=training.precision,
        compile=training.compile,
        teacher_memory=training.teacher_memory,
        views=training.views,
        callbacks=[clock],
    )
    a_sample = _prediction(model, data.test)
    steps, measured = (len(batch_bounds(len(part), training.batch_size)) for part in (train, small.train))
    seconds, step = 0.0, 0.0
    for stage, taken in clock.epochs.items():
        step = max(taken - a_sample * len(small.validation), 0.0) / measured
        epochs = arm.recipe.identify.epochs if stage == "identify" and arm.recipe.identify else training.epochs
        seconds += epochs * (steps * step + len(data.validation) * a_sample)
    seconds += evaluated * a_sample
    batch = min(training.batch_size, len(train))
    asked = tuple(sorted(arm.recipe.teacher_outputs - {"head", "maps"})) if teacher is not None else ()
    a_batch, stored = 0.0, 0
    if teacher is not None and asked:
        a_batch = _pass(teacher, train, asked) * batch
        one = collect(teacher, small.train.subset(np.arange(1)), asked)
        views = _passes(training)
        stored = views * FLOAT * len(train) * sum(value.numel() for value in one.values())
        seconds += views * a_batch / batch * len(train)
    parameters = sum(part.numel() for part in model.parameters())
    # Weights, gradients and, for Adam, two moments; then what the backward pass keeps.
    memory = 4 * FLOAT * parameters + FLOAT * _activations(model, train, batch)
    return ArmForecast(arm.label, parameters, seconds, 1000 * step, 1000 * a_batch, stored, memory)


def _part(data: Data, samples: int) -> Data:
    """Some training and validation samples, every group and class among them where the whole has them."""
    kept = []
    for part, count in ((data.train, samples), (data.validation, 512)):
        index = part.y if part.groups is None else part.groups.index * part.num_classes + part.y
        order = np.random.default_rng(0).permutation(len(part))
        _, first = np.unique(index[order], return_index=True)
        chosen = np.concatenate([order[first], np.delete(order, first)])[: max(count, len(first))]
        assert part.parent_rows is not None
        kept.append(part.parent_rows[chosen])
    return data.subset(np.concatenate(kept))


def _prediction(model: nn.Module, data: Data) -> float:
    """Seconds a sample of a forward pass as validation makes it."""
    count = min(len(data), 2048)
    reader = InputReader(data)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        batched_logits(model, reader, count)
        taken.append(time.perf_counter() - started)
    return min(taken) / count


def _pass(teacher: Teacher, data: Data, want: tuple[str, ...]) -> float:
    """Seconds a sample of the teacher."""
    part = data.subset(np.arange(min(len(data), 512)))
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        collect(teacher, part, want)
        taken.append(time.perf_counter() - started)
    return min(taken) / len(part)


def _activations(model: nn.Module, data: Data, batch: int) -> int:
    """Numbers that the layers return for one batch, which the backward pass keeps at most."""
    total = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel()

    hooks = [part.register_forward_hook(count) for part in model.modules() if not list(part.children())]
    try:
        with evaluating(model):
            call_model(model, InputReader(data)(torch.arange(min(2, len(data)))))
    finally:
        for hook in hooks:
            hook.remove()
    return total * batch // min(2, len(data))


def _input_size(data: Data) -> int:
    return 1 if getattr(data.x, "dtype", None) == np.uint8 else FLOAT


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
