"""The teacher audit: is it good enough for every group, and where teacher and label disagree, who is wrong?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from limbeck.audits.cap import Cap
from limbeck.audits.crossfit import calibrate
from limbeck.audits.honesty import Honesty
from limbeck.audits.noise import Floats, Integers
from limbeck.audits.said import Said
from limbeck.evaluation.calibration import group_calibration_error, group_means
from limbeck.evaluation.compare import holm
from limbeck.evaluation.intervals import wilson

BACKED = 2.0
"""The witness takes a side where it finds one class this many times as probable as the other."""

RELATIONS = 10
"""Pairs of classes that are listed."""


@dataclass(frozen=True)
class Slice:
    """One group, or one class, under this teacher. Shares from 0 to 1; low and high are 95 % intervals; nan: not known.

    Attributes:
        accuracy: agreement with the given labels.
        confidence: mean probability of the predicted class, calibrated out of sample.
        confidence_wrong: the same over the samples where it disagrees with the label.
        calibration_error, calibrated_error: expected calibration error as it is, and calibrated.
        top2: how often the label is among the two largest outputs. top2_spread: standard deviation over folds.
        disagreements: samples where teacher and label differ; of these, by the witness: `teacher_wrong` (it backs the
            label), `label_suspicious` (it backs the teacher), `undecided`.
        witness: the witness's own accuracy here, so that one sees how far to trust it.
    """

    name: str
    samples: int
    accuracy: float
    low: float
    high: float
    confidence: float
    confidence_wrong: float
    calibration_error: float
    calibrated_error: float
    top2: float
    top2_low: float
    top2_high: float
    top2_spread: float
    disagreements: int
    teacher_wrong: int
    label_suspicious: int
    undecided: int
    witness: float


@dataclass(frozen=True)
class Relation:
    """Two classes that the teacher confuses.

    Attributes:
        first, second: class names, the commoner direction first.
        forward: share of samples labelled `first` that it calls `second`; backward: the reverse.
        kind: "both ways", or "one way" where the two rates differ (Fisher's exact test, Holm over the pairs).
    """

    first: str
    second: str
    forward: float
    backward: float
    samples: int
    p: float
    kind: str

    def sentence(self) -> str:
        """The relation in words."""
        names = ("first", "second", "forward", "backward")
        return Said(f"relation.{self.kind.replace(' ', '_')}", {name: getattr(self, name) for name in names})


@dataclass(frozen=True, eq=False)
class TeacherAudit:
    """What there is to know of a teacher before a student learns from it.

    Attributes:
        description: what it is. source: which samples were looked at, and why these.
        honesty: whether its outputs on training samples can be believed.
        temperature: fitted out of sample; above 1 it is over-confident.
        overall: over all samples audited. groups, classes: one slice each, where it has samples.
        cap: what copying it can reach.
        relations: the pairs of classes that it confuses most.
        notes: what weakens the audit.
        disagreeing: rows of the audited samples where teacher and label differ.
        sides: of each of these, 1 the teacher is wrong, -1 the label is suspicious, 0 undecided.
    """

    description: str
    source: str
    honesty: Honesty
    temperature: float
    overall: Slice
    groups: tuple[Slice, ...]
    classes: tuple[Slice, ...]
    cap: Cap
    relations: tuple[Relation, ...]
    notes: tuple[str, ...]
    disagreeing: Integers
    sides: NDArray[np.int8]

    def sentences(self) -> list[str]:
        """What was found, the verdict on copying first."""
        all_ = self.overall
        found = self.cap.sentences()
        if all_.disagreements:
            sides = {"label": all_.teacher_wrong, "teacher": all_.label_suspicious, "neither": all_.undecided}
            found.append(Said("teacher.sides", {"differ": all_.disagreements, "samples": all_.samples, **sides}))
        found.append(Said("teacher.audited", {"honesty": self.honesty.sentence(), "source": self.source}))
        if self.temperature > 1.25 or self.temperature < 0.8:
            errors = {"error": all_.calibration_error, "calibrated": all_.calibrated_error}
            word = "over" if self.temperature > 1 else "under"
            found.append(Said(f"teacher.{word}_confident", {"temperature": self.temperature, **errors}))
        found += [relation.sentence() for relation in self.relations[:3]]
        return found + [Said("note.said", {"note": note}) for note in self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        return {
            "description": self.description,
            "source": self.source,
            "honesty": self.honesty.to_dict(),
            "temperature": self.temperature,
            "overall": _plain(self.overall),
            "groups": [_plain(entry) for entry in self.groups],
            "classes": [_plain(entry) for entry in self.classes],
            "cap": self.cap.to_dict(),
            "relations": [asdict(entry) | {"sentence": entry.sentence()} for entry in self.relations],
            "notes": list(self.notes),
            "sentences": self.sentences(),
        }


@dataclass(frozen=True, eq=False)
class Outputs:
    """A teacher's outputs on the samples audited: log probabilities `[N, C]`, and the fold of each sample `[N]`."""

    log_probabilities: Floats
    fold: Integers


def audit_teacher(
    outputs: Outputs,
    labels: Integers,
    witness: Floats,
    cap: Cap,
    honesty: Honesty,
    *,
    groups: Integers | None,
    group_names: Sequence[str],
    class_names: Sequence[str],
    description: str,
    source: str,
    notes: Sequence[str] = (),
) -> TeacherAudit:
    """Audit a teacher from its out-of-sample outputs.

    Args:
        outputs: of the N samples audited.
        labels: given classes `[N]`.
        witness: probabilities `[N, C]` of an independent judge that has seen neither sample nor label.
        cap: of the same samples.
        honesty: of the teacher.
        groups: `[N]`, -1 where unknown; None where there are none.
        group_names, class_names: names.
        description, source, notes: for the record.
    """
    calibrated, temperature = calibrate(outputs.log_probabilities, labels, outputs.fold)
    measured = _Measured(np.exp(outputs.log_probabilities), calibrated, labels, witness, outputs.fold)
    overall = measured.slices(np.zeros(len(labels), np.int64), ["all samples"])[0]
    by_group = [] if groups is None else measured.slices(groups, group_names)
    differ = np.flatnonzero(measured.side != 2)
    return TeacherAudit(
        description,
        source,
        honesty,
        temperature,
        overall,
        tuple(by_group),
        tuple(measured.slices(labels, class_names)),
        cap,
        relations(measured.predicted, labels, class_names),
        tuple(notes),
        differ.astype(np.int64),
        measured.side[differ],
    )


class _Measured:
    """One number a sample; slices are their means."""

    def __init__(self, raw: Floats, calibrated: Floats, labels: Integers, witness: Floats, fold: Integers) -> None:
        rows = np.arange(len(labels))
        self.predicted = raw.argmax(1)
        self.right = self.predicted == labels
        self.raw_confidence, self.confidence = raw.max(1), calibrated.max(1)
        self.top2 = top_two(raw, labels)
        self.witness = witness.argmax(1) == labels
        # Held against the teacher's answer and the label alone: what else the witness might think is another matter.
        own, other = witness[rows, labels], witness[rows, self.predicted]
        side = np.where(own >= BACKED * other, 1, np.where(other >= BACKED * own, -1, 0))
        self.side = np.where(self.right, 2, side).astype(np.int8)
        self.fold = fold

    def slices(self, index: Integers, names: Sequence[str]) -> list[Slice]:
        """One slice a name that has samples."""
        known, count = index >= 0, len(names)
        group = index[known]
        total = np.bincount(group, minlength=count)

        def summed(values: NDArray[Any]) -> Integers:
            return np.bincount(group, values[known].astype(np.float64), count).round().astype(np.int64)

        def mean(values: NDArray[Any], where: NDArray[np.bool_] = known) -> Floats:
            return group_means(values[where].astype(np.float64), index[where], count)

        right, top2 = summed(self.right), summed(self.top2)
        low, high = wilson(right, total)
        top_low, top_high = wilson(top2, total)
        errors = [
            group_calibration_error(values[known], self.right[known], group, count)
            for values in (self.raw_confidence, self.confidence)
        ]
        by_fold = np.stack([mean(self.top2, known & (self.fold == f)) for f in np.unique(self.fold)])
        confidence, wrong = mean(self.confidence), mean(self.confidence, known & ~self.right)
        sides = {value: summed(self.side == value) for value in (1, -1, 0)}
        witness = mean(self.witness)
        found = []
        for g in np.flatnonzero(total).tolist():
            n, seen = int(total[g]), by_fold[:, g][~np.isnan(by_fold[:, g])]
            found.append(
                Slice(
                    str(names[g]),
                    n,
                    right[g] / n,
                    float(low[g]),
                    float(high[g]),
                    float(confidence[g]),
                    float(wrong[g]),
                    float(errors[0][g]),
                    float(errors[1][g]),
                    top2[g] / n,
                    float(top_low[g]),
                    float(top_high[g]),
                    float(seen.std(ddof=1)) if len(seen) > 1 else float("nan"),
                    n - int(right[g]),
                    int(sides[1][g]),
                    int(sides[-1][g]),
                    int(sides[0][g]),
                    float(witness[g]),
                )
            )
        return found


def top_two(probabilities: Floats, labels: Integers) -> NDArray[np.bool_]:
    """Whether the label is among the two largest outputs `[N]`; always so at two classes."""
    own = probabilities[np.arange(len(labels)), labels]
    return np.asarray((probabilities > own[:, None]).sum(1) < 2)


def relations(predicted: Integers, labels: Integers, class_names: Sequence[str]) -> tuple[Relation, ...]:
    """The pairs of classes confused most, and whether both ways or one way."""
    count = len(class_names)
    table = np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)
    total = table.sum(1)
    pairs = [
        (a, b) for a in range(count) for b in range(a + 1, count) if table[a, b] + table[b, a] and total[[a, b]].all()
    ]
    pairs.sort(key=lambda pair: -(table[pair] / total[pair[0]] + table[pair[::-1]] / total[pair[1]]))
    listed = pairs[:RELATIONS]
    tests = [
        stats.fisher_exact([[table[a, b], total[a] - table[a, b]], [table[b, a], total[b] - table[b, a]]])[1]
        for a, b in listed
    ]
    # Corrected for all pairs that could have been listed, not for those that were.
    adjusted = holm(np.r_[tests, np.ones(len(pairs) - len(listed))]) if pairs else np.zeros(0)
    found = []
    for (a, b), p in zip(listed, adjusted):
        if table[a, b] / total[a] < table[b, a] / total[b]:
            a, b = b, a
        found.append(
            Relation(
                str(class_names[a]),
                str(class_names[b]),
                float(table[a, b] / total[a]),
                float(table[b, a] / total[b]),
                int(table[a, b] + table[b, a]),
                float(p),
                "one way" if p < 0.05 else "both ways",
            )
        )
    return tuple(found)


def _plain(entry: Slice) -> dict[str, Any]:
    values = asdict(entry).items()
    return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in values}
