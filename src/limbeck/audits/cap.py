"""The cap: what a student that copies a teacher can reach in its worst group, beside what the labels alone give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.audits.noise import Floats, Integers
from limbeck.audits.said import Said
from limbeck.data.columns import Groups
from limbeck.evaluation.compare import compare
from limbeck.evaluation.counts import ratio
from limbeck.evaluation.intervals import wilson, worst_group_interval

MINIMUM = 10
"""Samples that a group needs to be called the worst, as in evaluation."""


@dataclass(frozen=True)
class Reach:
    """What one way of learning reaches: average and worst group, shares from 0 to 1 with 95 % intervals.

    Attributes:
        name: "copying the teacher", or how the labels were learned.
        groups: accuracy of each group, nan where it has no samples.
    """

    name: str
    average: float
    average_low: float
    average_high: float
    worst: float
    worst_low: float
    worst_high: float
    worst_group: str | None
    groups: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        return _plain(asdict(self))


@dataclass(frozen=True)
class GroupVerdict:
    """Copying the teacher against learning from the labels alone, in one group or over all (`group` None).

    Attributes:
        teacher, labels: accuracies. difference: teacher − labels, with its interval.
        verdict: "hurts", "helps" or "not distinguishable", corrected for the number of groups.
    """

    group: str | None
    samples: int
    teacher: float
    labels: float
    difference: float
    low: float
    high: float
    verdict: str

    def sentence(self) -> str:
        """The verdict in words, from the measured numbers only."""
        kind = self.verdict if self.verdict in ("hurts", "helps") else "same"
        numbers = {"teacher": self.teacher, "labels": self.labels}
        if self.group is None:
            return Said(f"cap.{kind}_average", numbers)
        return Said(f"cap.{kind}", {"group": self.group, **numbers})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return _plain({**asdict(self), "sentence": self.sentence()})


@dataclass(frozen=True)
class Cap:
    """The cap of a teacher.

    Attributes:
        copy: what copying reaches; None without a teacher.
        labels: what the labels alone give, the better of `plain` and `balanced` in the worst group.
        plain, balanced: a cross-fitted probe on all samples alike, and one in which every cell weighs the same.
        verdicts: one a group with enough samples, worst first.
        average: the verdict over all samples.
        corrected: whether the accuracies are corrected for label noise (estimated accuracy on *true* labels).
        group_names: in the order of `Reach.groups`.
    """

    copy: Reach | None
    labels: Reach
    plain: Reach
    balanced: Reach
    verdicts: tuple[GroupVerdict, ...]
    average: GroupVerdict | None
    corrected: bool
    group_names: tuple[str, ...]

    @property
    def hurt(self) -> tuple[str, ...]:
        """Groups that copying hurts."""
        return tuple(v.group for v in self.verdicts if v.verdict == "hurts" and v.group is not None)

    @property
    def helped(self) -> tuple[str, ...]:
        """Groups in which the teacher knows more than the labels give."""
        return tuple(v.group for v in self.verdicts if v.verdict == "helps" and v.group is not None)

    def sentences(self) -> list[str]:
        """The cap and its verdicts in words."""
        basis = Said("basis.corrected" if self.corrected else "basis.held_out")
        labels = _reached(self.labels) | {"probe": _probe(self.labels.name)}
        if self.copy is None:
            return [Said("cap.labels_only", labels | {"basis": basis})]
        limits = {"low": self.copy.worst_low, "high": self.copy.worst_high}
        found: list[str] = [
            Said("cap.copy", _reached(self.copy) | limits | {"basis": basis}),
            Said("cap.labels", labels),
        ]
        found += [v.sentence() for v in self.verdicts if v.verdict == "hurts"]
        found += [v.sentence() for v in self.verdicts if v.verdict == "helps"]
        if self.average is not None and self.average.verdict != "not distinguishable":
            found.append(self.average.sentence())
        if self.verdicts and not self.hurt and not self.helped:
            found.append(Said("cap.nowhere"))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "copy": None if self.copy is None else self.copy.to_dict(),
            "labels": self.labels.to_dict(),
            "plain": self.plain.to_dict(),
            "balanced": self.balanced.to_dict(),
            "verdicts": [entry.to_dict() for entry in self.verdicts],
            "average": None if self.average is None else self.average.to_dict(),
            "corrected": self.corrected,
            "groups": list(self.group_names),
            "sentences": self.sentences(),
        }


def measure_cap(
    predicted: Integers | None,
    witnesses: Mapping[str, Integers],
    labels: Integers,
    groups: Groups,
    *,
    classes: tuple[str, ...],
    matrix: Floats | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Cap:
    """Hold a teacher's predictions against cross-fitted probes on the same samples.

    Args:
        predicted: the teacher's classes `[N]`, out of sample; None without a teacher.
        witnesses: predictions of "plain" and "balanced" probes, each `[N]`.
        labels: given classes `[N]`.
        groups: of these samples.
        classes: C names.
        matrix: `[C, C]`, p(given | true): accuracies are then those on true labels (see `NoiseCorrected`). None: on the
            given ones.
        level: of the intervals.
        seed: of the bootstrap.
    """
    if matrix is not None:
        return _corrected_cap(predicted, witnesses, labels, groups, classes, matrix, level, seed)
    reaches = {name: _reach(name, rows == labels, groups, level) for name, rows in witnesses.items()}
    best = _better(reaches)
    copy: Reach | None = None
    verdicts: tuple[GroupVerdict, ...] = ()
    average: GroupVerdict | None = None
    if predicted is not None:
        copy = _reach("copying the teacher", predicted == labels, groups, level)
        found = compare(
            predicted == labels,
            witnesses[best] == labels,
            groups.index,
            group_names=groups.names,
            names=("teacher", "labels"),
            minimum=MINIMUM,
            level=level,
            replicates=200,
            seed=seed,
        )
        totals = groups.counts()
        # A group of a handful of samples is no ground for a verdict, even where all of them agree.
        known = [d for d in found.groups if d.group is not None and totals[groups.names.index(d.group)] >= MINIMUM]
        verdicts = tuple(
            _verdict(d.group, d.samples, d.value, d.reference, (d.low, d.high), d.verdict)
            for d in sorted(known, key=lambda d: d.difference)
        )
        d = found.average
        average = _verdict(None, d.samples, d.value, d.reference, (d.low, d.high), d.verdict)
    return Cap(copy, reaches[best], reaches["plain"], reaches["balanced"], verdicts, average, False, groups.names)


_WORDS = {"better": "helps", "worse": "hurts"}


def _verdict(
    group: str | None, samples: int, teacher: float, labels: float, limits: tuple[float, float], word: str
) -> GroupVerdict:
    verdict = _WORDS.get(word, "not distinguishable")
    return GroupVerdict(group, samples, teacher, labels, teacher - labels, *limits, verdict)


def _better(reaches: Mapping[str, Reach]) -> str:
    """The probe with the better worst group; the plain one where they agree, or where there is no worst group."""
    plain, balanced = reaches["plain"], reaches["balanced"]
    return "balanced" if balanced.worst > plain.worst else "plain"


def _reach(name: str, right: NDArray[np.bool_], groups: Groups, level: float) -> Reach:
    known = groups.index >= 0
    total = np.bincount(groups.index[known], minlength=len(groups.names))
    correct = np.bincount(groups.index[known], right[known], len(groups.names))
    accuracy = ratio(correct, total)
    low, high = wilson(right.sum(), len(right), level)
    minimum = MINIMUM if (total >= MINIMUM).any() else 1
    worst = np.where(total >= minimum, accuracy, np.nan)
    place = None if np.isnan(worst).all() else int(np.nanargmin(worst))
    limits = worst_group_interval(correct, total, level, minimum)
    return Reach(
        _LABELS.get(name, name),
        float(right.mean()),
        float(low),
        float(high),
        float("nan") if place is None else float(worst[place]),
        *limits,
        None if place is None else groups.names[place],
        tuple(accuracy.tolist()),
    )


_LABELS = {"plain": "all samples alike", "balanced": "every group and class weighing the same"}


def _probe(told: str) -> str:
    known = next((name for name, label in _LABELS.items() if label == told), None)
    return told if known is None else Said(f"probe.{known}")


def _reached(reach: Reach) -> dict[str, Any]:
    return {"worst": reach.worst, "group": str(reach.worst_group), "average": reach.average}


class NoiseCorrected:
    """Accuracy on true labels from given ones.

    With N invertible and noise that does not depend on the sample, E[N⁻¹[given, k] | true = y] = 1[y = k] (the
    backward correction of Patrini et al. 2017, arXiv 1609.03683, theorem 1, here for the 0–1 loss). So the mean of
    N⁻¹[given, predicted] estimates accuracy; within a cell of a true class k and attribute values a, it is
    Σ 1[predicted = k] N⁻¹[given, k] over Σ N⁻¹[given, k], both over all samples with a: the given label of a sample
    says little about its cell.

    Args:
        labels: given classes `[N]`.
        groups: declared; those made of the label are taken apart into class and attributes.
        classes: C names.
        matrix: p(given | true).
    """

    def __init__(self, labels: Integers, groups: Groups, classes: tuple[str, ...], matrix: Floats) -> None:
        self._labels = labels
        self._inverse = np.linalg.inv(0.98 * matrix + 0.02 / len(matrix))
        self._names = groups.names
        self._class: list[int | None] = []
        self._members: list[NDArray[np.bool_]] = []
        place = groups.columns.index("label") if "label" in groups.columns and groups.cells else None
        attributes = [cell[:place] + cell[place + 1 :] for cell in groups.cells] if place is not None else []
        for number in range(len(groups.names)):
            if place is None:
                self._class.append(None)
                self._members.append(groups.index == number)
                continue
            alike = [g for g, cell in enumerate(attributes) if cell == attributes[number]]
            self._class.append(classes.index(groups.cells[number][place]))
            self._members.append(np.isin(groups.index, alike))

    def parts(self, predicted: Integers) -> tuple[Floats, Floats]:
        """What to sum for each group and, last, for all: numerators and denominators, each `[G + 1, N]`."""
        own = self._inverse[self._labels, predicted]
        top, bottom = np.zeros((2, len(self._names) + 1, len(own)))
        for number, (k, members) in enumerate(zip(self._class, self._members, strict=True)):
            if k is None:
                top[number], bottom[number] = members * own, members
            else:
                weight = members * self._inverse[self._labels, k]
                top[number], bottom[number] = weight * (predicted == k), weight
        top[-1], bottom[-1] = own, 1.0
        return top, bottom


def _corrected_cap(
    predicted: Integers | None,
    witnesses: Mapping[str, Integers],
    labels: Integers,
    groups: Groups,
    classes: tuple[str, ...],
    matrix: Floats,
    level: float,
    seed: int,
) -> Cap:
    counts = groups.counts()
    enough = counts >= (MINIMUM if (counts >= MINIMUM).any() else 1)
    given = {**witnesses, **({} if predicted is None else {"copy": predicted})}
    found = resample(given, labels, groups, classes=classes, matrix=matrix, seed=seed)
    point, replicates = found.point, found.replicates
    reaches = {name: found.reach(name, level) for name in given}
    best = _better(reaches)
    if predicted is None:
        return Cap(None, reaches[best], reaches["plain"], reaches["balanced"], (), None, True, groups.names)
    wanted = [int(g) for g in np.flatnonzero(enough)]
    verdicts = []
    for g in [*wanted, len(groups.names)]:
        # Bonferroni over the groups; the average is one question of its own.
        tail = (1 - level) / 2 / (1 if g == len(groups.names) else max(len(wanted), 1))
        drawn = replicates["copy"][:, g] - replicates[best][:, g]
        low, high = np.nanquantile(drawn, [tail, 1 - tail])
        word = "better" if low > 0 else "worse" if high < 0 else ""
        over_all = g == len(groups.names)
        group, samples = (None, len(labels)) if over_all else (groups.names[g], int(counts[g]))
        teacher, alone = float(point["copy"][g]), float(point[best][g])
        verdicts.append(_verdict(group, samples, teacher, alone, (float(low), float(high)), word))
    *by_group, average = verdicts
    copy = replace(reaches["copy"], name="copying the teacher")
    ordered = tuple(sorted(by_group, key=lambda v: v.difference))
    return Cap(copy, reaches[best], reaches["plain"], reaches["balanced"], ordered, average, True, groups.names)


REPLICATES = 300


@dataclass(frozen=True, eq=False)
class Resampled:
    """Accuracies of several predictors in each group, and under the same draws of the samples.

    Attributes:
        point: `[G + 1]` by name, the last over all samples; nan where a group has none.
        replicates: `[R, G + 1]` by name.
        groups: names.
        enough: bool `[G]`, groups that may be called the worst.
    """

    point: Mapping[str, Floats]
    replicates: Mapping[str, Floats]
    groups: tuple[str, ...]
    enough: NDArray[np.bool_]

    def reach(self, name: str, level: float = 0.95) -> Reach:
        """Average and worst group of one predictor."""
        point, drawn, tail = self.point[name], self.replicates[name], (1 - level) / 2
        each = np.where(self.enough, point[:-1], np.nan)
        place = None if np.isnan(each).all() else int(np.nanargmin(each))
        low, high = np.nanquantile(drawn[:, -1], [tail, 1 - tail])
        limits = (float("nan"), float("nan"))
        if place is not None:
            # The interval of the group that looks worst: with noise taken out, the exact one for a minimum does not
            # apply.
            worst = np.nanquantile(drawn[:, place], [tail, 1 - tail])
            limits = (float(worst[0]), float(worst[1]))
        return Reach(
            _LABELS.get(name, name),
            float(point[-1]),
            float(low),
            float(high),
            float("nan") if place is None else float(each[place]),
            *limits,
            None if place is None else self.groups[place],
            tuple(point[:-1].tolist()),
        )

    def worst(self, name: str) -> tuple[float, Floats]:
        """The worst group's accuracy, and that of each draw `[R]`; nan where no group has samples enough."""
        if not self.enough.any():
            return float("nan"), np.full(REPLICATES, np.nan)
        point, drawn = self.point[name][:-1][self.enough], self.replicates[name][:, :-1][:, self.enough]
        return float(np.fmin.reduce(point)), np.asarray(np.fmin.reduce(drawn, axis=1), np.float64)


def resample(
    predicted: Mapping[str, Integers],
    labels: Integers,
    groups: Groups,
    *,
    classes: tuple[str, ...],
    matrix: Floats | None = None,
    seed: int = 0,
) -> Resampled:
    """Accuracies of predictions `[N]` by name, and `REPLICATES` of them under one Poisson bootstrap of the samples.

    Args:
        predicted: classes.
        labels: given classes `[N]`.
        groups: of these samples.
        classes: C names.
        matrix: as in `measure_cap`.
        seed: of the bootstrap.
    """
    counts = groups.counts()
    correction = None if matrix is None else NoiseCorrected(labels, groups, classes, matrix)
    draws = np.random.default_rng(seed).poisson(1.0, (REPLICATES, len(labels))).astype(np.float32)
    point, replicates = {}, {}
    for name, rows in predicted.items():
        top, bottom = _counted(rows == labels, groups) if correction is None else correction.parts(rows)
        point[name] = _shares(top.sum(1), bottom.sum(1))
        replicates[name] = _shares(draws @ top.T.astype(np.float32), draws @ bottom.T.astype(np.float32))
    enough = counts >= (MINIMUM if (counts >= MINIMUM).any() else 1)
    return Resampled(point, replicates, groups.names, enough)


def _counted(right: NDArray[np.bool_], groups: Groups) -> tuple[Floats, Floats]:
    """As `NoiseCorrected.parts`, for labels that are taken as they are."""
    member = np.vstack([groups.index == np.arange(len(groups.names))[:, None], np.ones((1, len(right)), bool)])
    return np.asarray(member * right, np.float64), member.astype(np.float64)


def _shares(top: NDArray[Any], bottom: NDArray[Any]) -> Floats:
    """Ratios clipped to 0..1, nan where the cell comes out empty: the correction is unbiased, not confined."""
    share = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=np.asarray(bottom) > 1e-9)
    return np.asarray(np.clip(share, 0.0, 1.0), np.float64)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _number(value) for key, value in values.items()}


def _number(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_number(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value
