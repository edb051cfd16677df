"""What a pilot will cost, from a few real steps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.arbitration.fitting import starts
from limbeck.arbitration.judge import as_judge, evidence_data
from limbeck.arbitration.strata import THRESHOLDS, strata_of
from limbeck.callbacks import RunState
from limbeck.fitting import fit
from limbeck.modes import evaluating, one_thread
from limbeck.pilots.arms import Arm, built, check_arms
from limbeck.pilots.search import Search, planned
from limbeck.pilots.sharing import spoken
from limbeck.predict import InputReader, batched_logits, call_model
from limbeck.presets import as_recipe
from limbeck.recipe import Arbitrate, Recipe
from limbeck.teachers import Teacher, as_teacher, collect
from limbeck.teachers.base import reads_inputs
from limbeck.training import Training, batch_bounds
from limbeck.views import Views

if TYPE_CHECKING:
    from limbeck.data import Data

STEPS = 24
"""Steps a measured epoch: enough for a steady median, few enough to be done at once."""
FLOAT = 4
REPEATS = 2
"""Divisions into folds in arbitration's last round; `limbeck.arbitration.arbitrate` has as many."""


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
        once_seconds: beside the seeds, for the whole pilot: a finished teacher speaks once.
        judge_seconds: of `seconds`, what arbitration's judges take to train, at most.
        disk_bytes: of a teacher, what it says of the training part, as it is kept: for one seed, or once where it is
            finished.
    """

    label: str
    parameters: int
    seconds: float
    step_milliseconds: float
    teacher_milliseconds: float
    teacher_bytes: int
    memory_bytes: int
    once_seconds: float = 0.0
    judge_seconds: float = 0.0
    disk_bytes: int = 0

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
        once = sum(arm.once_seconds for arm in self.arms)
        return self.overhead_seconds + self.search_seconds + once + self.seeds * sum(arm.seconds for arm in self.arms)

    @property
    def disk_bytes(self) -> int:
        """What teachers say, as it is kept."""
        return sum(arm.disk_bytes * (1 if arm.once_seconds else self.seeds) for arm in self.arms)

    def without_teachers(self, roles: Sequence[str]) -> Forecast:
        """The same where another pilot trains the teachers.

        Args:
            roles: of the arms.
        """
        pairs = zip(self.arms, roles, strict=True)
        arms = tuple(
            replace(arm, seconds=0.0, once_seconds=0.0, disk_bytes=0) if role == "teacher" else arm
            for arm, role in pairs
        )
        return replace(self, arms=arms)

    @property
    def memory_bytes(self) -> int:
        """The largest arm beside the data and its teacher's stored outputs."""
        return self.data_bytes + max(arm.memory_bytes + arm.teacher_bytes for arm in self.arms)

    def __str__(self) -> str:
        lines = [f"{'model':30s} {'parameters':>12s} {'step':>9s} {'live teacher':>13s} {'stored':>10s} {'a seed':>9s}"]
        for arm in self.arms:
            live = f"{100 * arm.live_share:.0f} % of a step" if arm.teacher_milliseconds else "–"
            stored = shown_bytes(arm.teacher_bytes) if arm.teacher_bytes else "–"
            step = f"{arm.step_milliseconds:.2f} ms" if arm.step_milliseconds else "–"
            lines.append(
                f"{arm.label:30s} {arm.parameters:12,d} {step:>9s} {live:>13s} {stored:>10s} {arm.seconds:7.1f} s"
            )
        for arm in self.arms:
            if arm.judge_seconds:
                lines.append(f"{arm.label}: of these, up to {shown_time(arm.judge_seconds)} for its judges")
        if self.search_seconds:
            lines.append(f"search of settings: about {shown_time(self.search_seconds)}")
        lines.append(
            f"{len(self.arms)} models × {self.seeds} seeds: about {shown_time(self.seconds)} on one thread, "
            f"{shown_bytes(self.memory_bytes)} of memory (data {shown_bytes(self.data_bytes)})"
            + (f", {shown_bytes(self.disk_bytes)} on disk for what teachers say" if self.disk_bytes else "")
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        arms = [{**vars(arm), "live_share": arm.live_share} for arm in self.arms]
        return {
            "seconds": self.seconds,
            "search_seconds": self.search_seconds,
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
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
        forecasts = tuple(_arm(arm, data, sources, arms) for arm in arms)
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


def _arm(arm: Arm, data: Data, sources: Mapping[str, Any], arms: Sequence[Arm]) -> ArmForecast:
    train, evaluated = data.train, len(data.validation) + len(data.test)
    taught = [sources[key] for key in arm.teachers]
    teacher = as_teacher(taught if len(taught) > 1 else taught[0]) if taught else None
    speaking, kept = _speaking(arm, data, sources, arms) if arm.role == "teacher" else (0.0, 0)
    if arm.source is not None:
        source = as_teacher(arm.source)
        a_sample = _pass(source, data.test, ("logits",))
        module = getattr(source, "module", None)
        parameters = 0 if module is None else sum(part.numel() for part in module.parameters())
        # What goes by id is looked up with every seed; a network is asked once.
        seconds, once = (0.0, a_sample * evaluated + speaking) if reads_inputs(source) else (a_sample * evaluated, 0.0)
        return ArmForecast(arm.label, parameters, seconds, 0.0, 0.0, 0, 0, once, 0.0, kept)
    assert arm.training is not None
    assert arm.recipe is not None
    model, training = built(arm), arm.training
    small = _part(data, min(len(train), STEPS * training.batch_size))
    clock = _timed(model, small, arm.recipe, training, teacher)
    a_sample = _prediction(model, data.test)
    steps, measured = (len(batch_bounds(len(part), training.batch_size)) for part in (train, small.train))
    seconds, step = speaking, 0.0
    for stage, taken in clock.epochs.items():
        step = max(taken - a_sample * len(small.validation), 0.0) / measured
        epochs = _epochs_of(arm.recipe, stage) or training.epochs
        seconds += epochs * (steps * step + len(data.validation) * a_sample)
    seconds += evaluated * a_sample
    judges = 0.0 if arm.recipe.arbitrate is None else _judges(arm.recipe.arbitrate, data, small, teacher)
    batch = min(training.batch_size, len(train))
    asked = tuple(sorted(arm.recipe.teacher_outputs - {"head", "maps"})) if teacher is not None else ()
    a_batch, stored = 0.0, 0
    if teacher is not None and asked:
        a_batch = _pass(teacher, train, asked) * batch
        one = collect(teacher, small.train.subset(np.arange(1)), asked)
        stored = _passes(training) * FLOAT * len(train) * sum(value.numel() for value in one.values())
        if len(arm.teachers) > 1 and _passes(training) > 1:
            # Several teachers are asked about augmented images by each student, see `limbeck.pilots.sharing`.
            seconds += _passes(training) * a_batch / batch * len(train)
    parameters = sum(part.numel() for part in model.parameters())
    # Weights, gradients and, for Adam, two moments; then what the backward pass keeps.
    memory = 4 * FLOAT * parameters + FLOAT * _activations(model, train, batch)
    times = (seconds + judges, 1000 * step, 1000 * a_batch)
    return ArmForecast(arm.label, parameters, *times, stored, memory, 0.0, judges, kept)


def _timed(model: nn.Module, small: Data, recipe: Recipe, training: Training, teacher: Teacher | None) -> _Clock:
    """Three epochs of few steps: the fastest is a steady one."""
    clock = _Clock()
    if recipe.arbitrate is not None:
        # A step takes as long whatever the judges found; how long they take is counted for itself.
        recipe = recipe.replace(arbitrate=replace(recipe.arbitrate, rounds=1))
    fit(
        model,
        small,
        teacher=teacher,
        recipe=recipe,
        epochs=3,
        batch_size=training.batch_size,
        optimiser=training.optimiser,
        precision=training.precision,
        compile=training.compile,
        teacher_memory=training.teacher_memory,
        views=training.views,
        callbacks=[clock],
    )
    return clock


def _epochs_of(recipe: Recipe, stage: str) -> int | None:
    """How long a stage takes, where that is not the training's length; of a choice, `<candidate>: <stage>`."""
    candidate, _, name = stage.rpartition(": ")
    candidates = () if recipe.choose is None else recipe.choose.candidates
    recipe = next((one for one in candidates if one.name == candidate), recipe)
    return recipe.identify.epochs if name == "identify" and recipe.identify is not None else None


def _speaking(arm: Arm, data: Data, sources: Mapping[str, Any], arms: Sequence[Arm]) -> tuple[float, int]:
    """Seconds and bytes of what a teacher says once to all its students: of each stored view of the training part."""
    source = as_teacher(sources[arm.key])
    want, passes = spoken(arm, source, arms)
    if not want or not reads_inputs(source):
        return 0.0, 0
    one = collect(source, data.train.subset(np.arange(1)), want)
    samples = passes * len(data.train)
    return samples * _pass(source, data.train, want), FLOAT * samples * sum(value.numel() for value in one.values())


def _judges(asked: Arbitrate, data: Data, small: Data, teacher: Teacher | None) -> float:
    """Seconds that arbitration's judges train at most: of every hypothesis and round, and of the repeats."""
    judge = as_judge(asked.judge)
    linear = judge.basis == "teacher"
    seen = evidence_data(small, judge, teacher, None)[0]
    inside = len(data.train) * (asked.folds - 1) // asked.folds
    training = judge.training(inside)
    model = judge.build(seen, linear)
    ((_, taken),) = _timed(model, seen, as_recipe("erm"), training, None).epochs.items()
    a_sample = _prediction(model, seen.validation)
    measured = len(batch_bounds(len(seen.train), training.batch_size))
    step = max(taken - a_sample * len(seen.validation), 0.0) / measured
    # The loop judges the fold that it leaves out after every epoch.
    epoch = len(batch_bounds(inside, training.batch_size)) * step + (len(data.train) - inside) * a_sample
    afterwards = (len(data.train) - inside + len(data.validation)) * a_sample
    alone = 1 + len(starts(data.num_classes)) + asked.rounds + REPEATS - 1
    # Where no attribute is known, everything again for the sides of each threshold; with rates of their own.
    again = THRESHOLDS if asked.noise == "auto" and not strata_of(data, asked.attribute).columns else 0
    apart = asked.rounds if asked.noise == "auto" else 0
    first = alone + (0 if again else apart)
    every = first + again * (alone + apart)
    if teacher is not None and asked.witness != "never":
        # One hypothesis more a search; all again where the teacher turns out to know the labels by heart.
        heard = every + 1 + again
        every = max(heard, first + 1 + every) if asked.witness == "auto" else heard
    trained = asked.folds * every
    return trained * (training.epochs * epoch + afterwards)


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


def shown_bytes(count: float) -> str:
    """A size as a person says it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def shown_time(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
