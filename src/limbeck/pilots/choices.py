"""What `auto` leaves to the machine, decided once a pilot and kept in its folder: all recipes compute alike, and a
pilot that goes on computes as it began."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.engine import FLOAT32, choose_precision
from limbeck.fitting import COLLECTED
from limbeck.loop import forward_mean
from limbeck.pilots.arms import Arm, built
from limbeck.predict import InputReader
from limbeck.teachers import as_teacher
from limbeck.teachers.base import reads_inputs
from limbeck.training import Training, batch_bounds
from limbeck.tuning import choose_compile, choose_teacher_ways, teacher_ways

if TYPE_CHECKING:
    from limbeck.data import Data

Choice = dict[str, Any]
"""Plain data that takes the place of `auto` in the settings of a training."""


@dataclass(frozen=True)
class Choices:
    """What was decided, by whose network it is for: a teacher's key, or `student` for all students.

    Args:
        precision: in place of `precision: auto`.
        compile: in place of `compile: auto`, whether the network is compiled.
        teachers: in place of `compile: auto`, how a frozen teacher is computed.
    """

    precision: dict[str, Choice] = field(default_factory=dict)
    compile: dict[str, Choice] = field(default_factory=dict)
    teachers: dict[str, Choice] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path | None) -> Choices:
        """What was decided when this folder was begun; nothing where it is new."""
        if folder is None:
            return cls()
        try:
            found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            return cls.from_dict(found)
        except (OSError, ValueError, AttributeError):
            return cls()

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Choices:
        """The inverse of `to_dict`; further keys are left alone."""
        found = {name: plain.get(name) for name in ("precision", "compile", "teachers")}
        return cls(**{name: dict(value) if isinstance(value, Mapping) else {} for name, value in found.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"precision": self.precision, "compile": self.compile, "teachers": self.teachers}

    def agree(self, other: Choices) -> None:
        """Take from another pilot of the same data what was decided for the teachers."""
        for own, theirs in zip(self.to_dict().values(), other.to_dict().values(), strict=True):
            own.update({key: choice for key, choice in theirs.items() if key != "student"})

    def decide(self, arms: Sequence[Arm], data: Data) -> None:
        """Time what is left to `auto` and not decided yet."""
        by_key = {arm.key: arm for arm in arms}
        for arm in arms:
            training, key = arm.training, network_key(arm)
            if training is None or arm.recipe is None:
                continue
            example = _example(data, training.batch_size)
            if training.precision == "auto" and key not in self.precision:
                self.precision[key] = choose_precision("auto", built(arm), example, forward_mean)
            if training.compile != "auto":
                continue
            if key not in self.compile:
                steps = training.epochs * len(batch_bounds(len(data.train), training.batch_size))
                precision = self.precision.get(key, training.precision)
                precision = precision if isinstance(precision, Mapping) else FLOAT32
                self.compile[key] = choose_compile("auto", built(arm), arm.recipe.needs, example, steps, precision)
            for teacher in arm.teachers:
                if teacher not in self.teachers:
                    self.teachers[teacher] = _frozen(by_key[teacher], arm, data)

    def in_precision(self, arms: Sequence[Arm]) -> list[Arm]:
        """The arms with `precision: auto` replaced."""
        return [self._changed(arm, "precision", self.precision.get(network_key(arm))) for arm in arms]

    def compiled(self, arms: Sequence[Arm]) -> list[Arm]:
        """The arms with `compile: auto` replaced."""
        found = []
        for arm in arms:
            choice = self.compile.get(network_key(arm))
            if choice is not None:
                frozen = [self.teachers[key] for key in arm.teachers if key in self.teachers]
                ways = {name: all(way[name] for way in frozen) for name in ("fold", "teacher")} if frozen else {}
                choice = {**choice, **ways}
            found.append(self._changed(arm, "compile", choice))
        return found

    @staticmethod
    def _changed(arm: Arm, name: str, choice: Choice | None) -> Arm:
        training = arm.training
        if choice is None or training is None or getattr(training, name) != "auto":
            return arm
        settings: dict[str, Any] = {name: choice}
        return replace(arm, training=replace(training, **settings))


def network_key(arm: Arm) -> str:
    """Whose network the arm trains: its own for a teacher, the students' common one otherwise."""
    return arm.key if arm.role == "teacher" else "student"


def _frozen(teacher: Arm, student: Arm, data: Data) -> Choice:
    """How a teacher is computed while a student learns from it."""
    assert student.recipe is not None
    assert student.training is not None
    source = as_teacher(built(teacher) if teacher.source is None else teacher.source)
    want = sorted(student.recipe.teacher_outputs - {"head", "teachers_logits"} | {"logits"} & source.supplies)
    ways = frozen_ways(source, want, data, student.training)
    told = {f"teacher_{name}": ways[name] for name in ("measured", "note") if name in ways}
    return {"fold": bool(ways.get("fold")), "teacher": bool(ways.get("compile")), **told}


def frozen_ways(teacher: Any, want: Sequence[str], data: Data, training: Training) -> dict[str, Any]:
    """`limbeck.tuning.choose_teacher_ways` for one pass over the training samples."""
    train = data.train
    count = min(COLLECTED, len(train))
    inputs = _example(data, count) if reads_inputs(teacher) else None
    ids = torch.from_numpy(train.ids[:count])
    wanted = teacher_ways(training.precision, training.compile)
    return choose_teacher_ways(wanted, teacher, want, inputs, ids, math.ceil(len(train) / count))


def _example(data: Data, count: int) -> Any:
    return InputReader(data.train)(torch.arange(min(count, len(data.train))))
