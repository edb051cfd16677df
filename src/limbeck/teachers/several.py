"""Several teachers as one: averaged, kept apart, or with their classes mapped onto the data's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import TeacherError, unknown_name
from limbeck.teachers.base import Source, Teacher, accept, describe, reads_inputs, require, shown
from limbeck.teachers.fingerprints import fingerprint_of
from limbeck.teachers.probabilities import logits_from_probabilities

if TYPE_CHECKING:
    from limbeck.data import Data

AVERAGES = ("probabilities", "logits")


class _Members(Source):
    """What `Ensemble` and `Several` share: members that agree on the classes."""

    def __init__(self, teachers: Sequence[Teacher], kind: str) -> None:
        self.teachers = tuple(teachers)
        if not self.teachers:
            raise TeacherError(f"{kind} needs at least one teacher")
        for teacher in self.teachers:
            require(teacher, ["logits"], by=kind)
        first = self.teachers[0]
        for other in self.teachers[1:]:
            names = first.class_names, other.class_names
            if other.classes != first.classes or (None not in names and names[0] != names[1]):
                raise TeacherError(
                    f"{describe(first)} and {describe(other)} disagree on the classes "
                    f"({_space(first)} and {_space(other)}): bring them to one with map_classes(teacher, ...)"
                )
        self.reads_inputs = any(map(reads_inputs, self.teachers))
        self.description = f"{kind} of {len(self.teachers)} teachers"

    @property
    def classes(self) -> int:
        return self.teachers[0].classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return next((t.class_names for t in self.teachers if t.class_names is not None), None)

    def accepts(self, data: Data) -> None:
        for teacher in self.teachers:
            accept(teacher, data)

    def computed(self, how: Mapping[str, Any], example: Any) -> _Members:
        twin = copy.copy(self)
        twin.teachers = tuple(_computed(teacher, how, example) for teacher in self.teachers)
        return twin

    def check(self, data: Data, want: Sequence[str] | None = None) -> None:
        """Each member's own check."""
        require(self, want or (), "the check")
        for teacher in self.teachers:
            teacher.check(data, ("logits",))


class Ensemble(_Members):
    """The weighted average of several teachers.

    Args:
        teachers: the members, of the same classes.
        weights: one a member, not negative; they are normalised. Equal by default.
        average: `probabilities` (a mixture: logits are the logarithm of the mean probability) or `logits`.

    Raises:
        TeacherError: for members that disagree on the classes or supply no logits, or for weights that do not fit.
    """

    advice: Mapping[str, str] = MappingProxyType(
        dict.fromkeys(("features", "head", "maps"), "choose one teacher, or a recipe that needs logits only")
        | {"teachers_logits": "keep the teachers apart: Several([...])"}
    )

    def __init__(
        self, teachers: Sequence[Teacher], weights: Sequence[float] | None = None, *, average: str = "probabilities"
    ) -> None:
        super().__init__(teachers, "an ensemble")
        if average not in AVERAGES:
            raise TeacherError(unknown_name("average", average, AVERAGES))
        given = [1.0] * len(self.teachers) if weights is None else [float(weight) for weight in weights]
        if len(given) != len(self.teachers) or min(given) < 0 or not 0 < sum(given) < np.inf:
            raise TeacherError(
                f"an ensemble of {len(self.teachers)} teachers needs as many weights of 0 or more: {given}"
            )
        self.weights = tuple(weight / sum(given) for weight in given)
        self.average = average

    @property
    def supplies(self) -> frozenset[str]:
        return frozenset({"logits", "probabilities"})

    def fingerprint(self) -> str:
        return fingerprint_of("ensemble", [t.fingerprint() for t in self.teachers], self.weights, self.average)

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        if self.average == "logits":
            logits = self._mean(x, ids, "logits").float()
            found = {"logits": logits, "probabilities": logits.softmax(1)}
        else:
            mean = self._mean(x, ids, "probabilities")
            found = {"probabilities": mean.float()}
            if "logits" in want:
                found["logits"] = logits_from_probabilities(mean)
        return {name: found[name] for name in want}

    def _mean(self, x: Any, ids: Any, what: str) -> Tensor:
        total: Tensor | None = None
        for teacher, weight in zip(self.teachers, self.weights):
            asked = what if what in teacher.supplies else "logits"
            values = teacher.outputs(x, ids, (asked,))[asked].double()
            part = weight * (values if asked == what else values.softmax(1))
            total = part if total is None else total + part
        assert total is not None
        return total


class Several(_Members):
    """Several teachers kept apart, for recipes that weigh them per sample (AGRE-KD, arXiv 2411.14984).

    Supplies `teachers_logits` `[T, B, C]` and nothing else: where a recipe wants one teacher, say how they become one
    with `Ensemble`.
    """

    advice: Mapping[str, str] = MappingProxyType(
        dict.fromkeys(("logits", "probabilities"), "average them with Ensemble([...])")
        | dict.fromkeys(("features", "head", "maps"), "choose one teacher")
    )

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        super().__init__(teachers, "a list")

    @property
    def supplies(self) -> frozenset[str]:
        return frozenset({"teachers_logits"})

    def fingerprint(self) -> str:
        return fingerprint_of("several", [teacher.fingerprint() for teacher in self.teachers])

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        parts = [teacher.outputs(x, ids, ("logits",))["logits"].float() for teacher in self.teachers]
        return {"teachers_logits": torch.stack(parts)}


class MappedTeacher(Source):
    """A teacher whose classes are those of another label space; made by `map_classes`."""

    def __init__(self, teacher: Teacher, members: Sequence[Sequence[int]], names: tuple[str, ...] | None) -> None:
        require(teacher, ["logits"], by="map_classes")
        self.teacher = teacher
        self.members = tuple(tuple(part) for part in members)
        self.reads_inputs = reads_inputs(teacher)
        self.description = f"{describe(teacher)} (classes mapped)"
        self.advice = getattr(teacher, "advice", {})
        self._names = names

    def accepts(self, data: Data) -> None:
        accept(self.teacher, data)

    def computed(self, how: Mapping[str, Any], example: Any) -> MappedTeacher:
        twin = copy.copy(self)
        twin.teacher = _computed(self.teacher, how, example)
        return twin

    @property
    def supplies(self) -> frozenset[str]:
        # The logit of merged classes is no linear function of the features.
        merged = any(len(part) > 1 for part in self.members)
        return self.teacher.supplies & {"logits", "probabilities", "features", "maps", *([] if merged else ["head"])}

    @property
    def classes(self) -> int:
        return len(self.members)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._names

    def fingerprint(self) -> str:
        return fingerprint_of("mapped", self.teacher.fingerprint(), self.members, self._names)

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        passed = [name for name in want if name in ("features", "maps")]
        mapped = [name for name in want if name in ("logits", "probabilities")]
        found = self.teacher.outputs(x, ids, [*passed, *(["logits"] if mapped else [])])
        if mapped:
            logits = found.pop("logits").float()
            parts = [logits[:, part].logsumexp(1) if len(part) > 1 else logits[:, part[0]] for part in self.members]
            new = torch.stack(parts, 1)
            found |= {name: new if name == "logits" else new.softmax(1) for name in mapped}
        return found

    def head(self) -> tuple[Tensor, Tensor]:
        if "head" not in self.supplies:
            return super().head()
        weight, bias = self.teacher.head()
        order = [part[0] for part in self.members]
        return weight[order], bias[order]


def map_classes(
    teacher: Teacher,
    mapping: Sequence[str | int] | Mapping[Any, Any],
    *,
    classes: Sequence[str] | None = None,
    drop: bool = False,
) -> MappedTeacher:
    """The teacher in another label space.

    Classes that become one have their probabilities added (logits: logsumexp). Dropped classes are conditioned away:
    the softmax runs over those that remain.

    Args:
        teacher: with logits.
        mapping: for every class of the data, in order, the teacher's class by name or index
            (`map_classes(teacher, data.classes)` where both use the same names); or a mapping from the teacher's
            class to the data's, where several may go to one.
        classes: the data's class names; needed where a mapping names them, else optional.
        drop: allow classes of the teacher that the mapping does not mention.

    Raises:
        TeacherError: for unknown or forgotten classes, on either side.
    """
    if isinstance(mapping, Mapping):
        members, names = _from_mapping(teacher, mapping, classes)
    else:
        members = [[_index(teacher, wanted)] for wanted in mapping]
        listed = tuple(wanted for wanted in mapping if isinstance(wanted, str))
        names = tuple(map(str, classes)) if classes is not None else listed if len(listed) == len(members) else None
        if names is not None and len(names) != len(members):
            raise TeacherError(
                f"the mapping has {len(members)} classes, the names given are {len(names)}: {shown(names)}"
            )
    used = [index for part in members for index in part]
    doubled = sorted({index for index in used if used.count(index) > 1})
    if doubled:
        raise TeacherError(
            f"classes {shown(_called(teacher, i) for i in doubled)} of {describe(teacher)} are mapped twice"
        )
    forgotten = [index for index in range(teacher.classes) if index not in used]
    if forgotten and not drop:
        raise TeacherError(
            f"classes {shown(_called(teacher, i) for i in forgotten)} of {describe(teacher)} are not mentioned by the "
            "mapping: map them, or leave them out on purpose with drop=True"
        )
    return MappedTeacher(teacher, members, names)


def _from_mapping(
    teacher: Teacher, mapping: Mapping[Any, Any], classes: Sequence[str] | None
) -> tuple[list[list[int]], tuple[str, ...] | None]:
    names = None if classes is None else tuple(map(str, classes))
    targets = {}
    for own, other in mapping.items():
        if isinstance(other, str):
            if names is None or other not in names:
                raise TeacherError(
                    unknown_name("class of the data", other, names or ())
                    if names
                    else f"the mapping names the data's class {other!r}: give their order, classes=data.classes"
                )
            targets[_index(teacher, own)] = names.index(other)
        else:
            targets[_index(teacher, own)] = int(other)
    count = len(names) if names is not None else max(targets.values(), default=-1) + 1
    members: list[list[int]] = [[] for _ in range(count)]
    for own, other in sorted(targets.items()):
        if not 0 <= other < count:
            raise TeacherError(f"the mapping leads to class {other}, the data's are 0..{count - 1}")
        members[other].append(own)
    empty = [names[i] if names else i for i, part in enumerate(members) if not part]
    if empty:
        raise TeacherError(
            f"no class of {describe(teacher)} is mapped to {shown(empty)}: it cannot teach what it does not know"
        )
    return members, names


def _index(teacher: Teacher, wanted: Any) -> int:
    if isinstance(wanted, str):
        names = teacher.class_names
        if names is None:
            raise TeacherError(f"{describe(teacher)} has no class names: map by index, or declare its class_names")
        if wanted not in names:
            raise TeacherError(f"{describe(teacher)}: " + unknown_name("class", wanted, names))
        return names.index(wanted)
    index = int(wanted)
    if not 0 <= index < teacher.classes:
        raise TeacherError(
            f"{describe(teacher)} has the classes 0..{teacher.classes - 1}, the mapping asks for {index}"
        )
    return index


def _computed(teacher: Teacher, how: Mapping[str, Any], example: Any) -> Teacher:
    return teacher.computed(how, example) if isinstance(teacher, Source) else teacher


def _called(teacher: Teacher, index: int) -> str:
    return teacher.class_names[index] if teacher.class_names else str(index)


def _space(teacher: Teacher) -> str:
    return f"{teacher.classes}: {shown(teacher.class_names)}" if teacher.class_names else str(teacher.classes)
