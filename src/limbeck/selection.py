"""Which epoch, and which recipe, is kept: rules over validation results that say which labels they consume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from limbeck.evaluation import GroupCounts, Worst


@dataclass(frozen=True)
class SelectionRule:
    """A rule of selection.

    Args:
        name: how configurations and reports call it.
        score: from validation counts to a number, higher is better; None keeps the last epoch.
        consumes: the labels it looks at, for the report.
        needs_groups: whether the groups of validation samples must be known.
    """

    name: str
    score: Callable[[GroupCounts], float] | None
    consumes: str
    needs_groups: bool = False


MINIMUM = 10
"""Validation samples that a group needs to decide, as in evaluation; where no group has as many, all may."""


def worst_group(counts: GroupCounts) -> Worst | None:
    """The group that worst-group selection goes by."""
    return counts.worst(MINIMUM) or counts.worst()


def _accuracy(worst: Worst | None) -> float:
    return math.nan if worst is None else worst.accuracy


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
        SelectionRule("last", None, "nothing: the last epoch is kept"),
    )
}


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
        raise ConfigError(
            f"selection by {rule.name!r} needs the groups of the validation samples, and no groups are "
            "declared: declare "
            "them, or select by 'average' or 'worst_class'"
        )
    return rule
