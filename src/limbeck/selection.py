"""Which epoch, and which recipe, is kept: rules over validation results that say which labels they consume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import ConfigError, DataError, unknown_name

if TYPE_CHECKING:
    from limbeck.data import Data
    from limbeck.evaluation import GroupCounts, Worst
    from limbeck.groups import Discovery, Groups


@dataclass(frozen=True)
class SelectionRule:
    """A rule of selection; `print` says what it consumes. One's own is made of a name, a function and what it looks at.

    Args:
        name: how configurations and reports call it.
        score: from validation counts to a number, higher is better; None keeps the last epoch.
        consumes: the labels it looks at, for the report.
        needs_groups: whether the groups of validation samples must be known.
        slices: the groups of the samples it looks at, where these are not the groups of the data; see `worst_slice`.
        score_logits: from validation logits `[m, C]` (a tensor) to a number, in place of `score`.
    """

    name: str
    score: Callable[[GroupCounts], float] | None
    consumes: str
    needs_groups: bool = False
    slices: Callable[[Data], Groups] | None = None
    score_logits: Callable[[Any], float] | None = None

    def of(self, counts: GroupCounts, logits: Any) -> float:
        """The score of an epoch; infinite where the last epoch is kept."""
        if self.score_logits is not None:
            return self.score_logits(logits)
        return math.inf if self.score is None else self.score(counts)

    def judge(self, validation: Data, outputs: Any) -> float:
        """The score of a finished model, higher is better; nan where nothing decides, or for `last`.

        Args:
            validation: the samples that decide.
            outputs: what the model says of them: logits or probabilities `[N, C]`, or predicted classes `[N]`.

        Raises:
            ConfigError: for a rule over groups where none are declared.
            DataError: where the outputs do not fit the samples.
        """
        from limbeck.evaluation import GroupCounts

        predicted = np.asarray(outputs)
        predicted = predicted.argmax(1) if predicted.ndim == 2 else predicted
        if predicted.shape != (len(validation),):
            raise DataError(
                f"{self.name}: outputs of shape {list(np.shape(outputs))} for {len(validation):,} validation samples: "
                "expected [N, C] or [N]"
            )
        groups = validation.groups if self.slices is None else self.slices(validation)
        selection_rule(self, groups=groups is not None)
        if self.score is None:
            return math.nan
        return self.score(
            GroupCounts.from_predictions(
                validation.y,
                predicted,
                None if groups is None else groups.index,
                class_names=validation.classes,
                group_names=None if groups is None else groups.names,
            )
        )

    def __str__(self) -> str:
        return f"{self.name} (consumes {self.consumes})"


MINIMUM = 10
"""Validation samples that a group needs to decide, as in evaluation; where no group has as many, all may."""


def worst_group(counts: GroupCounts) -> Worst | None:
    """The group that worst-group selection goes by."""
    return counts.worst(MINIMUM) or counts.worst()


def _accuracy(worst: Worst | None) -> float:
    return math.nan if worst is None else worst.accuracy


def _class_gap(counts: GroupCounts) -> float:
    """Minus (best class - worst class): 0 where all classes are recognised alike, however well."""
    enough = counts.class_totals >= MINIMUM
    enough = enough if enough.any() else counts.class_totals > 0
    accuracy = counts.class_accuracy[enough]
    return float(accuracy.min() - accuracy.max()) if len(accuracy) else math.nan


RULES: dict[str, SelectionRule] = {
    rule.name: rule
    for rule in (
        SelectionRule("average", lambda counts: counts.average, "validation labels"),
        SelectionRule(
            "worst_group",
            lambda counts: _accuracy(worst_group(counts)),
            "validation labels and validation groups",
            True,
        ),
        SelectionRule(
            "worst_class",
            lambda counts: _accuracy(counts.worst_class(MINIMUM) or counts.worst_class()),
            "validation labels",
        ),
        SelectionRule("class_gap", _class_gap, "validation labels"),
        SelectionRule("last", None, "nothing: the last epoch is kept"),
    )
}


def worst_slice(found: Discovery) -> SelectionRule:
    """Select by the worst of the groups that were found: no group label is needed.

    `judge` and `choose` look at the found groups whatever groups the data declare. In `fit` the data must carry them:
    `lb.fit(student, found.apply(data), selection=worst_slice(found))`.

    Args:
        found: from `limbeck.discover_groups`.
    """
    names = found.names

    def score(counts: GroupCounts) -> float:
        if counts.group_names != names:
            raise ConfigError(
                "selection by 'worst_slice' looks at the groups that were found, and the data declare others: put the "
                "found ones there, with found.apply(data)"
            )
        return _accuracy(worst_group(counts))

    consumes = f"validation labels; groups {found.consumes}"
    return SelectionRule("worst_slice", score, consumes, True, found.groups_of)


def selection_rule(name: str | SelectionRule | None, *, groups: bool) -> SelectionRule:
    """The rule of that name; None means `worst_group` where groups are declared and `average` elsewhere.

    Raises:
        ConfigError: for an unknown name, or a rule over groups where none are declared.
    """
    if isinstance(name, SelectionRule):
        rule = name
    elif name is None:
        rule = RULES["worst_group" if groups else "average"]
    elif name in RULES:
        rule = RULES[name]
    else:
        raise ConfigError(unknown_name("selection rule", name, RULES))
    if rule.needs_groups and not groups:
        way = "declare them" if rule.slices is None else "put those that were found there, with found.apply(data)"
        raise ConfigError(
            f"selection by {rule.name!r} needs the groups of the validation samples, and no groups are declared: "
            f"{way}, or select by 'average' or 'worst_class'"
        )
    return rule


@dataclass(frozen=True)
class Choice:
    """The model that a rule chose. `print` says why, and what the rule looked at for it.

    Attributes:
        name: of the model. score: its own, higher is better. scores: of all, by name. rule: that chose.
    """

    name: str
    score: float
    scores: Mapping[str, float]
    rule: SelectionRule

    def __str__(self) -> str:
        others = sorted((value, name) for name, value in self.scores.items() if name != self.name)
        next_best = f"; next {others[-1][1]} ({others[-1][0]:.3f})" if others else ""
        return f"chosen by {self.rule.name}: {self.name} ({self.score:.3f}){next_best}. Consumed: {self.rule.consumes}."


def choose(outputs: Mapping[str, Any], validation: Data, rule: str | SelectionRule | None = None) -> Choice:
    """The best of several finished models by a rule, on validation; the first of equals.

    Args:
        outputs: by name, what each model says of the validation samples: logits `[N, C]` (`lb.predict_logits`) or
            predicted classes `[N]`.
        validation: the samples that decide; never test samples.
        rule: a name of `RULES` or a rule; `worst_group` where groups are declared, `average` elsewhere, by default.

    Raises:
        ConfigError: where there is no model, or the rule keeps the last epoch or needs groups that are not there.
        DataError: where outputs do not fit the samples.
    """
    chosen = selection_rule(rule, groups=validation.groups is not None or getattr(rule, "slices", None) is not None)
    if not outputs:
        raise ConfigError("there is no model to choose from: give what at least one says of the validation samples")
    if chosen.score is None:
        raise ConfigError(f"the rule {chosen.name!r} chooses epochs, not models: take one of average, worst_class, …")
    scores = {name: chosen.judge(validation, values) for name, values in outputs.items()}
    best = max(scores, key=lambda name: -math.inf if math.isnan(scores[name]) else scores[name])
    return Choice(best, scores[best], scores, chosen)
