"""Groups from predictions alone: what a biased model gets wrong, and where two models disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import IntArray
from limbeck.errors import DataError
from limbeck.groups.seen import Seen, classes_of


def error_set(labels: Any, probabilities: Any) -> NDArray[np.bool_]:
    """Which samples a model gets wrong, bool [N]: the error set of JTT (Liu et al., ICML 2021, arXiv 2107.09044).

    Args:
        labels: int [N].
        probabilities: float [N, C], or logits: only their order counts.
    """
    return Seen(labels=labels, probabilities=probabilities).wrong


@dataclass(frozen=True)
class ErrorRule:
    """Class × (right or wrong by the biased model); without classes, right or wrong. Reads the label."""

    classes: tuple[str, ...]
    within_class: bool = True
    reads: ClassVar[tuple[str, ...]] = ("biased", "labels")
    sees_errors: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        return _crossed(self.classes, ("right", "wrong"), self.within_class)

    @property
    def texts(self) -> tuple[str, ...]:
        told = ("the biased model is right", "the biased model is wrong")
        return _crossed(self.classes, told, self.within_class)

    @property
    def families(self) -> tuple[int, ...]:
        return _families(self.classes, self.within_class)

    def assign(self, seen: Seen) -> IntArray:
        labels = seen.required("labels")
        wrong = (seen.required("biased").argmax(1) != labels).astype(np.int64)
        return np.asarray(2 * labels + wrong if self.within_class else wrong, np.int64)


@dataclass(frozen=True)
class Errors:
    """The error set of a biased model against the rest (JTT).

    Args:
        within_class: groups are class × (right, wrong); False gives two groups, E and not E.
        identify_epochs: how long the biased model is trained, where it is trained here.
        cross_fit: training samples are judged by models that did not see them; False: by a model that was trained on
            them, shortly, as JTT does.
    """

    within_class: bool = True
    identify_epochs: int = 1
    cross_fit: bool = False
    name: ClassVar[str] = "errors"
    needs: ClassVar[tuple[str, ...]] = ("biased", "labels")
    from_errors: ClassVar[bool] = False

    def find(self, seen: Seen, classes: Sequence[str], seed: int) -> ErrorRule:
        """The rule; there is nothing to learn once the biased model is."""
        return ErrorRule(classes_of(seen.required("labels"), classes), self.within_class)


@dataclass(frozen=True)
class DisagreementRule:
    """Whether the biased and the other model agree; within classes where the label is read."""

    classes: tuple[str, ...]
    within_class: bool = True
    sees_errors: ClassVar[bool] = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("biased", "probabilities", *(["labels"] if self.within_class else []))

    @property
    def names(self) -> tuple[str, ...]:
        return _crossed(self.classes, ("agree", "disagree"), self.within_class)

    @property
    def texts(self) -> tuple[str, ...]:
        return _crossed(self.classes, ("the two models agree", "the two models disagree"), self.within_class)

    @property
    def families(self) -> tuple[int, ...]:
        return _families(self.classes, self.within_class)

    def assign(self, seen: Seen) -> IntArray:
        differ = (seen.required("biased").argmax(1) != seen.predicted).astype(np.int64)
        return np.asarray(2 * seen.required("labels") + differ if self.within_class else differ, np.int64)


@dataclass(frozen=True)
class Disagreement:
    """Where a biased and a robust (or longer trained) model disagree; needs no label at assignment if asked so.

    Args:
        within_class: groups are class × (agree, disagree), which reads the label; False gives two groups, which are
            known for unlabelled samples too.
        identify_epochs: how long the biased model is trained, where it is trained here.
        cross_fit: training samples are judged by models that did not see them.
    """

    within_class: bool = True
    identify_epochs: int = 1
    cross_fit: bool = True
    name: ClassVar[str] = "disagreement"
    needs: ClassVar[tuple[str, ...]] = ("biased", "probabilities", "labels")
    from_errors: ClassVar[bool] = False

    def find(self, seen: Seen, classes: Sequence[str], seed: int) -> DisagreementRule:
        """The rule; there is nothing to learn once the models are."""
        shapes = [seen.required(name).shape for name in ("biased", "probabilities")]
        if shapes[0] != shapes[1]:
            raise DataError(f"the two models give {shapes[0][1]} and {shapes[1][1]} classes: expected the same classes")
        return DisagreementRule(classes_of(seen.required("labels"), classes), self.within_class)


def _crossed(classes: Sequence[str], kinds: tuple[str, str], within_class: bool) -> tuple[str, ...]:
    return tuple(f"{label}: {kind}" for label in classes for kind in kinds) if within_class else kinds


def _families(classes: Sequence[str], within_class: bool) -> tuple[int, ...]:
    return tuple(k for k in range(len(classes)) for _ in range(2)) if within_class else (0, 0)
