"""A rule puts samples into groups by what is known of them; here is what all rules share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from limbeck.data.columns import IntArray
from limbeck.errors import ConfigError, unknown_name
from limbeck.groups.seen import Seen


@runtime_checkable
class GroupRule(Protocol):
    """What a discovery learned: a function from what is seen of a sample to its group.

    Attributes:
        names: one a group, unique.
        texts: one a group: the rule in words.
        families: one number a group: a group that is too small to train on joins the largest of its family.
        reads: what it reads, of `limbeck.groups.seen.FIELDS`.
        sees_errors: whether it sees, by label and prediction, if the model itself is right: judged on that model, its
            groups would be worse by construction, so that they are judged as told without the prediction.
    """

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def families(self) -> tuple[int, ...]: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def sees_errors(self) -> bool: ...

    def assign(self, seen: Seen) -> IntArray:
        """The group of each sample, int64 [N]."""
        ...


class Method(Protocol):
    """A way to look for groups: a value with its options, from what is seen of some samples to a rule.

    Attributes:
        name: how configurations and reports call it.
        needs: what it learns from, of `limbeck.groups.seen.FIELDS`.
        from_errors: whether it learns from errors, which must then be those on samples the model was not trained on.
    """

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def from_errors(self) -> bool: ...

    def find(self, seen: Seen, classes: Sequence[str], seed: int) -> GroupRule:
        """Learn a rule from these samples."""
        ...


@dataclass(frozen=True, eq=False)
class MergedRule:
    """Another rule with its small groups merged.

    Attributes:
        rule: the rule beneath.
        place: int64 [G of the rule], the new number of each old group.
        names, texts: one a new group.
    """

    rule: GroupRule
    place: IntArray
    names: tuple[str, ...]
    texts: tuple[str, ...]
    families: tuple[int, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return self.rule.reads

    @property
    def sees_errors(self) -> bool:
        return self.rule.sees_errors

    def assign(self, seen: Seen) -> IntArray:
        return self.place[self.rule.assign(seen)]


def merge_small(rule: GroupRule, index: IntArray, minimum: int) -> GroupRule:
    """The rule with every group of fewer than `minimum` training samples merged into the largest of its family.

    A group that has no training sample cannot be trained on, and one with very few would rule group weights. Only
    training samples decide, so that nothing of the other splits enters.

    Args:
        rule: any.
        index: int64 [N], the groups of the training samples by this rule.
        minimum: samples a group needs, 1 or more.
    """
    counts = np.bincount(index, minlength=len(rule.names))
    families = np.array(rule.families)
    target = np.arange(len(counts))
    for family in np.unique(families):
        inside = np.flatnonzero(families == family)
        largest = inside[counts[inside].argmax()]
        target[inside[counts[inside] < minimum]] = largest
    if counts[counts > 0].size and not counts[target].all():
        # A family without any training sample joins the largest group of all.
        target[counts[target] == 0] = counts.argmax()
    kept = np.unique(target)
    if len(kept) == len(counts):
        return rule
    place = np.searchsorted(kept, target).astype(np.int64)
    joined = [[g for g in np.flatnonzero(target == k) if g != k and counts[g]] for k in kept]
    texts = [
        rule.texts[k] + "".join(f"; or {rule.texts[g]}" for g in others) for k, others in zip(kept, joined, strict=True)
    ]
    return MergedRule(rule, place, tuple(rule.names[k] for k in kept), tuple(texts), tuple(families[kept].tolist()))


def one_of(option: str, value: str, known: Sequence[str]) -> str:
    """`value`, if it is known.

    Raises:
        ConfigError: with the nearest known one.
    """
    if value not in known:
        raise ConfigError(unknown_name(option, value, known))
    return value
