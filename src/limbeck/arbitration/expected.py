"""Accuracy by group where validation labels are as wrong as training labels.

A rare cell of given labels then fills up with mislabelled members of a large one, and the worst group that is read off
it is a measure of the noise. Two estimates without it are wrong in different ways. By the posterior a sample counts in
each class's group: steady, but it prefers the students that err like the judges, or like a teacher that they heard. By
backward correction it counts as N⁻¹[ỹ, k], which is 1 on average for the true class and 0 for the others whoever the
judges are (Patrini et al., CVPR 2017, arXiv 1609.03683, theorem 1), and so unsteady that a rare group may add up to
nothing. Scores are the mean of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.integrate import trapezoid
from scipy.special import betainc

from limbeck.arbitration.model import Floats, Integers
from limbeck.arbitration.result import Arbitration, Judged
from limbeck.data import Data
from limbeck.errors import DataError
from limbeck.selection import MINIMUM, RULES, SelectionRule

SINGULAR = 0.05
"""Singular values of N below this share of the largest are not inverted: they would multiply noise by twenty."""
GRID = np.linspace(0.0, 1.0, 513)
"""Where the distribution of the least accuracy is taken."""
EXPECTED = ", expected without label noise"


@dataclass(frozen=True, eq=False)
class ExpectedGroups:
    """Validation samples whose true class is known by their posterior, or through the noise matrix, only.

    Attributes:
        names: of the G groups.
        group: the group that a sample is in if its class is k, `[m, C]`; -1 where unknown.
        memberships: how much it counts as class k, `[m, C]` by each estimate: the label itself where there is no noise.
    """

    names: tuple[str, ...]
    group: Integers
    memberships: tuple[Floats, ...]

    def table(self, predicted: Any, estimate: int = 0) -> tuple[Floats, Floats, Floats]:
        """For predicted classes `[m]`: accuracy of each group in 0..1, its samples, and how many samples without noise
        would tell as much, `[G]` each, by the first or another estimate. A group without samples has accuracy nan."""
        known, size, membership = self.group >= 0, len(self.names), self.memberships[estimate]
        places, values = self.group[known], membership[known]
        total, squares = np.bincount(places, values, size), np.bincount(places, values**2, size)
        rows, chosen = np.arange(len(self.group)), np.asarray(predicted, np.int64)
        inside = known[rows, chosen]
        right = np.bincount(self.group[rows, chosen][inside], membership[rows, chosen][inside], size)
        with np.errstate(divide="ignore", invalid="ignore"):
            accuracy: Floats = np.where(total > 0, np.clip(right / total, 0, 1), np.nan)
            worth: Floats = np.where(squares > 0, np.maximum(total, 0) ** 2 / squares, 0.0)
        return accuracy, np.asarray(total, np.float64), worth

    def average(self, predicted: Any) -> float:
        """The accuracy over all samples."""
        rows, chosen = np.arange(len(self.group)), np.asarray(predicted, np.int64)
        return float(np.mean([membership[rows, chosen].mean() for membership in self.memberships]))

    def worst(self, predicted: Any) -> float:
        """The expected accuracy of the worst group, see `expected_minimum`; what epochs and recipes are chosen by."""
        found = []
        for estimate in range(len(self.memberships)):
            accuracy, total, worth = self.table(predicted, estimate)
            enough = total >= min(1.0, total.max())
            found.append(expected_minimum((accuracy * worth)[enough], worth[enough]))
        return float(np.mean(found))

    def by_class(self) -> ExpectedGroups:
        """The same samples with the classes as groups."""
        classes = self.memberships[0].shape[1]
        index = np.repeat(np.arange(classes)[None], len(self.group), axis=0)
        return ExpectedGroups(tuple(map(str, range(classes))), index, self.memberships)


def expected_minimum(right: Any, total: Any) -> float:
    """E[min_g θ_g] where θ_g has the posterior Beta(½ + right, ½ + wrong) of its group, independently.

    Smoother than the least of the observed accuracies: a group of few samples does not decide alone, and the second
    worst counts too. ∫ Π_g P(θ_g > t) dt by the trapezoid rule.

    Args:
        right: `[G]`, may be fractions of samples.
        total: `[G]`.
    """
    right, total = np.asarray(right, np.float64), np.asarray(total, np.float64)
    if not len(right):
        return float("nan")
    wrong = np.maximum(total - right, 0)
    above = 1 - betainc(right[:, None] + 0.5, wrong[:, None] + 0.5, GRID)
    return float(trapezoid(above.prod(axis=0), GRID))


def expected_groups(arbitration: Arbitration, data: Data) -> ExpectedGroups:
    """The groups of the validation samples, for every class that each may truly be of.

    Groups that were declared without the label are what they are. Those over the label and attributes that the
    arbitration knows are declared again for every possible class. Where they cannot be (they rest on something derived
    from the label, such as a flag whether a colour is the label's own), and where the attribute was found, each class
    has two groups: the samples whose attribute speaks for it, p(k|s) > p(k), and the others.

    Args:
        arbitration: with validation samples.
        data: the same data.

    Raises:
        DataError: where the validation samples were not arbitrated.
    """
    judged, validation = arbitration.validation, data.validation
    if judged is None or not np.array_equal(judged.ids, validation.ids):
        raise DataError("the validation samples are not those that were arbitrated: run arbitrate on these data")
    groups, memberships = validation.groups, _memberships(judged)
    if groups is not None and "label" not in groups.columns:
        index = np.repeat(groups.index[:, None], data.num_classes, axis=1)
        return ExpectedGroups(groups.names, index, memberships)
    others = [] if groups is None else [name for name in groups.columns if name != "label"]
    known = set(others) <= set(arbitration.attribute) and not arbitration.attribute_found
    if groups is not None and "label" in groups.columns and known:
        return ExpectedGroups(groups.names, _redeclared(validation), memberships)
    return _for_and_against(arbitration, judged, memberships)


def _memberships(judged: Judged) -> tuple[Floats, ...]:
    """By the posterior, and by backward correction; where labels are right both are the label, and one is enough."""
    if (judged.posterior == np.eye(judged.posterior.shape[1])[judged.given]).all():
        return (judged.posterior,)
    inverse = np.linalg.pinv(judged.noise, rcond=SINGULAR)
    corrected = inverse[judged.given] if inverse.ndim == 2 else inverse[judged.noise_stratum, judged.given]
    return judged.posterior, np.asarray(corrected, np.float64)


def _redeclared(validation: Data) -> Integers:
    """The declared group that each sample would be in with each class, `[m, C]`."""
    groups = validation.groups
    assert groups is not None
    place = {cell: number for number, cell in enumerate(groups.cells)}
    values = [None if name == "label" else validation.attributes[name].strings().tolist() for name in groups.columns]
    found = np.full((len(validation), validation.num_classes), -1, np.int64)
    for row in range(len(validation)):
        for code, label in enumerate(validation.classes):
            cell = tuple(str(label) if column is None else column[row] for column in values)
            found[row, code] = place.get(cell, -1)
    return found


def _for_and_against(arbitration: Arbitration, judged: Judged, memberships: tuple[Floats, ...]) -> ExpectedGroups:
    """Each class by whether the attribute speaks for it; what has too few samples to be judged is put together."""
    classes = len(arbitration.classes)
    everyone = np.repeat(np.arange(classes)[None], len(judged.stratum), axis=0)
    if len(arbitration.strata) == 1:
        return ExpectedGroups(arbitration.classes, everyone, memberships)
    marginal = arbitration.counts.sum(axis=0) / arbitration.counts.sum()
    speaks_for = (arbitration.prior > marginal)[judged.stratum].astype(np.int64)
    sides = ("against", "for")
    names = [f"{name}, attribute {side}" for name in arbitration.classes for side in sides]
    names += [f"classes of few samples, attribute {side}" for side in sides]
    apart = ExpectedGroups(tuple(names), 2 * everyone + speaks_for, memberships)
    few = apart.table(judged.given)[2] < MINIMUM
    group = np.where(few[apart.group], 2 * classes + speaks_for, apart.group)
    return ExpectedGroups(apart.names, group, memberships)


def expected_rule(rule: SelectionRule, groups: ExpectedGroups) -> SelectionRule:
    """A rule of selection by name, as it reads validation labels under arbitration; any other rule as it is."""
    scores = {"average": groups.average, "worst_group": groups.worst, "worst_class": groups.by_class().worst}
    if rule.name not in scores or RULES.get(rule.name) is not rule:
        return rule
    score = scores[rule.name]
    return SelectionRule(
        rule.name + EXPECTED,
        rule.score,
        rule.consumes + ", with the noise that arbitration found taken out",
        rule.needs_groups,
        score_logits=lambda logits: score(logits.argmax(1).numpy()),
    )
