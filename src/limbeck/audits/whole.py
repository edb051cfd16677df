"""`audit`: the teacher, the labels, and what to do about both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.audits.advice import RECIPES, Advice, AdviceCheck, advise, check_advice
from limbeck.audits.basis import Basis, basis_of
from limbeck.audits.cap import Cap, measure_cap
from limbeck.audits.crossfit import CrossFitted, cross_fit, deal_folds
from limbeck.audits.gates import FEW_VALIDATION, Measured
from limbeck.audits.honesty import Honesty, check_honesty
from limbeck.audits.labels import MATERIAL, LabelAudit, audit_labels
from limbeck.audits.noise import Floats, Integers
from limbeck.audits.said import Said, plain
from limbeck.audits.teacher import Outputs, TeacherAudit, audit_teacher
from limbeck.audits.trial import FOLDS, Trial, run_trial
from limbeck.data.columns import Groups, to_numpy
from limbeck.data.splits import TEST, TRAIN, VALIDATION
from limbeck.errors import ConfigError, DataError, TeacherError
from limbeck.evaluation.calibration import log_softmax
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from limbeck.data import Data
    from limbeck.pilots import PilotResult
    from limbeck.teachers import Teacher
    from limbeck.training import Training

FORMAT = 1
"""Of the plain data of an audit."""

JUDGE = 0.5
"""How far the cells are balanced for the judge of labels: fully, it ranks the majority's labels worse; not at all, it
takes a minority's right labels for wrong."""

SUPPLIED = ("logits", "features", "maps", "head", "teachers_logits")


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found. `print` shows the verdicts, the table and the advice; `to_dict` is plain JSON.

    Attributes:
        teacher: the teacher audit, or None.
        labels: the label audit.
        cap: what the labels alone give, and what copying the teacher would.
        advice: recipes, ranked.
        measured: the numbers that gates are tested on.
        data: name, fingerprint, samples, classes and groups.
        trial: recipes tried as linear students; None where none were.
    """

    teacher: TeacherAudit | None
    labels: LabelAudit
    cap: Cap
    advice: tuple[Advice, ...]
    measured: Measured
    data: dict[str, Any]
    trial: Trial | None = None

    @property
    def verdicts(self) -> list[str]:
        """What a reader should know first, one sentence each."""
        found = self.cap.sentences() if self.teacher is None else self.teacher.sentences()
        return [*found, *self.labels.sentences(), *self.data["notes"]]

    def advice_was_right(self, result: PilotResult | Mapping[str, Any], *, tolerance: float = 0.01) -> AdviceCheck:
        """Hold the advice against a finished pilot: see `limbeck.audits.check_advice`."""
        return check_advice(self.advice, result, tolerance=tolerance)

    def table(self, width: int = 120) -> str:
        """One row a group (a class where none are declared)."""
        from limbeck.audits.text import table

        return table(self, width)

    def text(self, width: int = 120) -> str:
        """Verdicts, table and advice, for a terminal."""
        from limbeck.audits.text import text

        return text(self, width)

    def __str__(self) -> str:
        return self.text()

    def to_dict(self) -> dict[str, Any]:
        """Everything but single samples as plain JSON (of these the most suspicious hundred).

        The keys are those of `FORMAT` and are described in docs/audit.md: one that is there stays, and means the same,
        as long as the number does.
        """
        return {
            "format": FORMAT,
            "data": self.data,
            "teacher": None if self.teacher is None else self.teacher.to_dict(),
            "labels": self.labels.to_dict(),
            "cap": self.cap.to_dict(),
            "advice": [entry.to_dict() for entry in self.advice],
            "trial": None if self.trial is None else self.trial.to_dict(),
            "measured": self.measured.to_dict(),
            "verdicts": self.verdicts,
            "said": [plain(sentence) for sentence in self.verdicts],
        }


def audit(
    data: Data,
    teacher: Any = None,
    *,
    seed: int = 0,
    folds: int = 5,
    features: Any = None,
    protected: Mapping[str, float] | Sequence[str] = (),
    limit: float | None = None,
    refit: Callable[[Data], Any] | None = None,
    recipes: Iterable[str | Mapping[str, Any] | Recipe] = RECIPES,
    trial: bool = True,
    student: nn.Module | Callable[[], nn.Module] | None = None,
    training: Training | None = None,
) -> Audit:
    """Is the teacher good enough for every group, are the labels, and which recipe fits?

    Looks at training and validation samples, never at test. A linear probe on `features`, cross-fitted, stands beside
    the teacher as an independent witness. Where groups are declared (or discovered: any data with groups), further
    probes, in which (group, class) cells are balanced, judge the labels, because one that has learned the shortcut
    takes a minority's right labels for wrong. Without groups everything is by class.

    Args:
        data: whose labels are audited.
        teacher: a module, what `fit` returned, an ONNX file, a table of probabilities, a classifier with
            `predict_proba`, a `Teacher`; None audits the labels alone.
        seed: of folds and intervals.
        folds: of the cross-fitting.
        features: what the witness looks at, see `limbeck.audits.basis.basis_of`; by default the inputs where they are
            [N, D], else the teacher's features or pooled pixels.
        protected: classes or groups whose labels are not corrected without review, or beyond a share: see
            `limbeck.audits.guard.guard`.
        limit: the largest share of a (group, class) cell that may be corrected.
        refit: from data to a teacher trained on its training part: then the teacher is cross-fitted, and every sample
            judged by one that has not seen it. Without it, a teacher that is better on training samples than on
            validation samples is judged on validation alone.
        recipes: those that advice is given on.
        trial: whether these are tried first, see `limbeck.audits.trial`. False: advice goes by what the kind of a
            recipe is expected to reach.
        student: what they are tried on, such as the student that is wanted, small and on vectors; None: a linear layer
            on what the witness looks at, which takes seconds.
        training: how it is trained in the trial.

    Raises:
        DataError: no samples to audit, or no features for the witness.
        TeacherError: a teacher that does not fit the data.
        ConfigError: an unknown protected name or recipe, or folds out of range.
    """
    if teacher is not None and refit is not None:
        raise ConfigError("audit takes a finished teacher or a way to fit one (refit), not both")
    seen = _audited(data)
    given = _Teaching(seen, teacher, refit, folds, seed)
    groups = seen.groups if seen.groups is not None else _by_class(seen)
    cells = _cells(groups.index, seen.y, seen.num_classes)
    basis = basis_of(seen, None if given.honesty.memorised else given.teacher, _of_seen(features, data))
    probes = _probes(basis, seen, cells, folds, seed)
    labels = audit_labels(
        probes["judge"].probabilities,
        seen.y,
        seen.groups,
        noise_probabilities=probes["plain"].probabilities,
        noise_groups=_without_label(seen.groups),
        agreement=given.agreement(seen.y),
        class_names=seen.classes,
        ids=seen.ids,
        limit=limit,
        protected=protected,
        judge=f"a cross-fitted linear probe on {basis.description}, small groups counting for more",
        seed=seed,
    )
    rows = given.rows
    matrix = labels.noise.matrix if _material(labels) else None
    cap = measure_cap(
        None if given.log_probabilities is None else given.log_probabilities.argmax(1),
        {name: probes[name].probabilities[rows].argmax(1) for name in ("plain", "balanced")},
        seen.y[rows],
        groups.take(rows),
        classes=seen.classes,
        matrix=matrix,
        seed=seed,
    )
    found = None
    if given.log_probabilities is not None:
        found = audit_teacher(
            Outputs(given.log_probabilities, deal_folds(seen.y[rows], min(folds, len(rows)), seed)),
            seen.y[rows],
            probes["balanced"].probabilities[rows],
            cap,
            given.honesty,
            groups=None if seen.groups is None else seen.groups.index[rows],
            group_names=() if seen.groups is None else seen.groups.names,
            class_names=seen.classes,
            description=given.description,
            source=given.source,
            notes=_notes(seen, rows),
        )
    measured = _measured(data, seen, labels, cap, found, given, probes, groups)
    asked = [as_recipe(recipe) for recipe in recipes]
    how: dict[str, Any] = {"student": student, "training": training, "matrix": matrix, "seed": seed}
    tried = _tried(seen, basis, groups, asked, given, **how) if trial else None
    return Audit(
        found, labels, cap, advise(measured, asked, tried), measured, _described(data, seen, basis, labels), tried
    )


def _tried(
    seen: Data, basis: Basis, groups: Groups, recipes: Sequence[Recipe], given: _Teaching, **how: Any
) -> Trial | None:
    """The recipes tried; a student learns from what the teacher says of any sample, learned by heart or not."""
    rows = given.answered
    # A class that some fold lacks cannot be learned there.
    if min(np.bincount(seen.y[rows], minlength=seen.num_classes)) < FOLDS:
        return None
    part = seen if len(rows) == len(seen) else seen.subset(rows)
    return run_trial(part, basis.x[rows], groups.take(rows), recipes, given.outputs, **how)


def _of_seen(features: Any, data: Data) -> Any:
    """Features given as an array, one row a sample of `data`, for the samples audited."""
    if not (isinstance(features, np.ndarray | list) or hasattr(features, "detach")):
        return features
    x = to_numpy(features)
    if x.ndim == 0 or len(x) != len(data):
        raise DataError(
            f"features: expected one row for each of the {len(data):,} samples, found shape {list(x.shape)}"
        )
    return x[data.split != TEST]


def _material(labels: LabelAudit) -> bool:
    """Whether so many labels are wrong, and certainly so, that accuracies on them mislead."""
    return labels.noise.identified and labels.noise.rate_low >= MATERIAL


def _audited(data: Data) -> Data:
    rows = np.flatnonzero(data.split != TEST)
    if not len(rows):
        raise DataError(f"{data.name!r} has test samples only: an audit needs training or validation samples")
    return data.subset(rows) if len(rows) < len(data) else data


class _Teaching:
    """A teacher's outputs on the samples that they can be believed on."""

    def __init__(self, seen: Data, source: Any, refit: Callable[[Data], Any] | None, folds: int, seed: int) -> None:
        nan = float("nan")
        self.honesty = Honesty(nan, nan, nan, nan, nan, nan, nan, nan, nan, memorised=False, known=False)
        self.rows: Integers = np.arange(len(seen))
        self.log_probabilities: Floats | None = None
        # Of all samples that it answers for, also of those that it cannot be judged on.
        self.answered: Integers = self.rows
        self.outputs: Floats | None = None
        self.teacher: Teacher | None = None
        self.description = ""
        self.source = ""
        if refit is not None:
            self._cross_fit(seen, refit, folds, seed)
        elif source is not None:
            self._look(seen, source)

    def agreement(self, labels: Integers) -> float:
        """Share of the labels that the teacher agrees with where it can be believed; 0 without one."""
        if self.log_probabilities is None:
            return 0.0
        return float((self.log_probabilities.argmax(1) == labels[self.rows]).mean())

    def _look(self, seen: Data, source: Any) -> None:
        from limbeck.teachers import as_teacher
        from limbeck.teachers.base import describe

        self.teacher = as_teacher(source)
        self.description = describe(self.teacher)
        held_out = seen.split == VALIDATION
        try:
            self.teacher.check(seen)
            outputs = _log_probabilities(self.teacher, seen)
        except TeacherError:
            # A table is often made for the held-out part alone.
            if not held_out.any() or held_out.all():
                raise
            part = seen.subset(held_out)
            self.teacher.check(part)
            self.rows = np.flatnonzero(held_out)
            self.log_probabilities = _log_probabilities(self.teacher, part)
            self.answered, self.outputs = self.rows, self.log_probabilities
            self.source = Said("source.answered", {"n": len(self.rows)})
            return
        cells = None if seen.groups is None else _cells(seen.groups.index, seen.y, seen.num_classes)
        self.honesty = check_honesty(np.exp(outputs), seen.y, held_out, cells)
        if self.honesty.memorised:
            self.rows = np.flatnonzero(held_out)
            self.source = Said("source.memorised", {"n": len(self.rows)})
        elif self.honesty.known:
            self.source = Said("source.all", {"n": len(seen)})
        else:
            self.source = Said("source.validation" if held_out.all() else "source.training", {"n": len(seen)})
        self.log_probabilities, self.outputs = outputs[self.rows], outputs

    def _cross_fit(self, seen: Data, refit: Callable[[Data], Any], folds: int, seed: int) -> None:
        from limbeck.teachers import as_teacher
        from limbeck.teachers.base import describe

        fold = deal_folds(_cells(_index(seen), seen.y, seen.num_classes), folds, seed)
        outputs = np.empty((len(seen), seen.num_classes))
        for index in range(folds):
            inside = fold == index
            # The next fold selects the epoch, so that the fold judged has no part in training at all.
            split = np.where(inside, TEST, np.where(fold == (index + 1) % folds, VALIDATION, TRAIN))
            self.teacher = as_teacher(refit(seen.replace(split=split)))
            part = seen.subset(inside)
            self.teacher.check(part)
            outputs[inside] = _log_probabilities(self.teacher, part)
        self.log_probabilities = self.outputs = outputs
        self.description = f"{describe(self.teacher)}, cross-fitted" if self.teacher is not None else ""
        self.source = Said("source.cross_fitted", {"n": len(seen), "folds": folds})
        self.teacher = None  # five teachers have no features in common


def _log_probabilities(teacher: Teacher, part: Data) -> Floats:
    from limbeck.teachers import collect

    return log_softmax(collect(teacher, part, ("logits",))["logits"].numpy())


def _probes(basis: Basis, seen: Data, cells: Integers, folds: int, seed: int) -> dict[str, CrossFitted]:
    options: dict[str, Any] = {"classes": seen.num_classes, "folds": folds, "seed": seed, "cells": cells}
    plain = cross_fit(basis.x, seen.y, **options)
    return {
        "plain": plain,
        "judge": cross_fit(basis.x, seen.y, balance=JUDGE, weight_decays=[plain.weight_decay], **options),
        "balanced": cross_fit(basis.x, seen.y, balance=1.0, **options),
    }


def _cells(index: Integers, labels: Integers, classes: int) -> Integers:
    """One number a (group, class) cell; unknown groups are a group of their own."""
    return np.asarray((index + 1) * classes + labels, np.int64)


def _index(data: Data) -> Integers:
    return np.full(len(data), -1, np.int64) if data.groups is None else data.groups.index


def _by_class(data: Data) -> Groups:
    return Groups(("label",), tuple(data.classes), data.y, tuple((name,) for name in data.classes))


def _without_label(groups: Groups | None) -> Groups | None:
    """The groups by their attributes alone: noise is estimated given the attributes, not given the label itself."""
    if groups is None or "label" not in groups.columns or not groups.cells:
        return groups
    place = groups.columns.index("label")
    columns = groups.columns[:place] + groups.columns[place + 1 :]
    if not columns:
        return None
    rest = [cell[:place] + cell[place + 1 :] for cell in groups.cells]
    cells = tuple(dict.fromkeys(rest))
    numbers = np.array([*(cells.index(cell) for cell in rest), -1], np.int64)
    names = tuple(", ".join(f"{column}={value}" for column, value in zip(columns, cell, strict=True)) for cell in cells)
    return Groups(columns, names, numbers[groups.index], cells)


def _measured(
    data: Data,
    seen: Data,
    labels: LabelAudit,
    cap: Cap,
    teacher: TeacherAudit | None,
    given: _Teaching,
    probes: Mapping[str, CrossFitted],
    groups: Groups,
) -> Measured:
    training = seen.split == TRAIN if (seen.split == TRAIN).any() else np.ones(len(seen), bool)
    counts = np.bincount(seen.y[training], minlength=seen.num_classes)
    declared = seen.groups
    by_group = None if declared is None else declared.counts(training)
    held_out = None if declared is None else declared.counts(seen.split == VALIDATION)
    smallest = None if by_group is None else int(by_group.argmin())
    gain = _gain(probes, seen.y, groups, cap)
    noise = labels.noise
    base = Measured(
        classes=seen.num_classes,
        samples=int(training.sum()),
        class_ratio=float(counts.max() / max(counts.min(), 1)),
        groups=None if declared is None else declared.names,
        label_groups=declared is not None and "label" in declared.columns,
        smallest_group=None if declared is None or smallest is None else declared.names[smallest],
        smallest_count=len(seen) if by_group is None else int(by_group.min()),
        unseen_groups=_named(declared, held_out, lambda n: n == 0),
        thin_groups=_named(declared, held_out, lambda n: (n > 0) & (n < FEW_VALIDATION)),
        noise=noise.rate,
        noise_low=noise.rate_low if noise.identified else 0.0,
        noise_high=max(noise.rate_high, noise.confident_rate),
        plain_average=cap.plain.average,
        plain_worst=cap.plain.worst,
        balanced_average=cap.balanced.average,
        balanced_worst=cap.balanced.worst,
        gain_low=gain,
    )
    if teacher is None or cap.copy is None:
        return base
    slices = teacher.groups or teacher.classes
    worst = min((entry for entry in slices if entry.samples >= FEW_VALIDATION), key=lambda s: s.top2, default=None)
    return replace(
        base,
        teacher=True,
        supplies=_supplies(given.teacher),
        teacher_average=cap.copy.average,
        teacher_worst=cap.copy.worst,
        teacher_worst_high=cap.copy.worst_high,
        teacher_group=cap.copy.worst_group,
        hurt=cap.hurt,
        helped=cap.helped,
        average="not distinguishable" if cap.average is None else cap.average.verdict,
        top2=teacher.overall.top2,
        top2_worst=teacher.overall.top2 if worst is None else worst.top2,
        top2_group=None if worst is None else worst.name,
        memorised=teacher.honesty.memorised,
    )


def _supplies(teacher: Teacher | None) -> tuple[str, ...]:
    # A teacher that was cross-fitted here will be given as whatever its user has.
    return SUPPLIED if teacher is None else tuple(name for name in SUPPLIED if name in teacher.supplies)


def _gain(probes: Mapping[str, CrossFitted], labels: Integers, groups: Groups, cap: Cap) -> float:
    """Lower 95 % limit of what equal weights gain in the group that the plain probe serves worst."""
    if cap.plain.worst_group is None:
        return float("nan")
    inside = groups.index == groups.names.index(cap.plain.worst_group)
    right = {name: (probe.probabilities[inside].argmax(1) == labels[inside]) for name, probe in probes.items()}
    difference = right["balanced"].astype(float) - right["plain"]
    # Half a sample on either side, so that a group of three is not certain.
    spread = float(np.sqrt((np.var(difference) * len(difference) + 1) / (len(difference) + 1) / len(difference)))
    return float(difference.mean()) - 1.96 * spread


def _named(groups: Groups | None, counts: Integers | None, test: Callable[[Any], Any]) -> tuple[str, ...]:
    if groups is None or counts is None:
        return ()
    return tuple(groups.names[int(g)] for g in np.flatnonzero(test(counts)))


def _notes(seen: Data, rows: NDArray[np.int64]) -> list[str]:
    if seen.groups is None:
        return []
    counts = seen.groups.counts(rows)
    thin = [name for name, n in zip(seen.groups.names, counts) if n < FEW_VALIDATION]
    if not thin:
        return []
    return [Said("note.thin", {"few": FEW_VALIDATION, "groups": thin})]


def _described(data: Data, seen: Data, basis: Basis, labels: LabelAudit) -> dict[str, Any]:
    counts = np.bincount(seen.y, minlength=seen.num_classes)
    notes: list[str] = []
    if counts.max() > _IMBALANCED * max(counts.min(), 1):
        rare, common = int(counts.argmin()), int(counts.argmax())
        names = {"common": seen.classes[common], "rare": seen.classes[rare]}
        sizes = {"common_count": int(counts[common]), "rare_count": int(counts[rare])}
        notes.append(Said("note.imbalanced", {**names, **sizes}))
    if _material(labels):
        notes.append(Said("note.corrected"))
    return {
        "name": data.name,
        "fingerprint": data.fingerprint(),
        "samples": len(seen),
        "classes": list(seen.classes),
        "groups": None if seen.groups is None else list(seen.groups.names),
        "basis": basis.description,
        "notes": notes,
    }


_IMBALANCED = 10
