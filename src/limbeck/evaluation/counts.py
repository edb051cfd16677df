"""Counts by group, true class and predicted class: the one state every accuracy is read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError

UNKNOWN_GROUP = "(unknown group)"
"""The name under which samples whose group is -1 are shown."""

FULL_TABLE_CELLS = 2**24
"""Above this many cells (128 MiB) a table keeps its two margins instead of every group's confusion."""


class Worst(NamedTuple):
    """The group (or class) with the lowest accuracy."""

    position: int
    name: str
    accuracy: float
    samples: int


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """How many samples of each group and true class were predicted as each class.

    `table` is one int64 array `[G + 1, C, C]` (group x true x predicted) filled by a single `bincount`; its last plane
    holds the samples whose group is unknown (-1), which count in the average and in no group. With more than
    `FULL_TABLE_CELLS` cells the table is None and only its margins are kept: `outcomes` `[G + 1, 2]` (wrong, right)
    and `confusion` `[C, C]`; then `group_confusion` alone is unavailable. `a + b` merges counts of different samples.

    A group without samples has accuracy nan, never 0 and never that of a neighbour.
    """

    group_names: tuple[str, ...]
    class_names: tuple[str, ...]
    outcomes: NDArray[np.int64]
    confusion: NDArray[np.int64]
    table: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        groups, classes = len(self.group_names), len(self.class_names)
        expected: list[tuple[str, NDArray[np.int64] | None, tuple[int, ...]]] = [
            ("outcomes", self.outcomes, (groups + 1, 2)),
            ("confusion", self.confusion, (classes, classes)),
            ("table", self.table, (groups + 1, classes, classes)),
        ]
        for name, array, shape in expected:
            if array is not None and (array.shape != shape or array.dtype != np.int64 or bool((array < 0).any())):
                raise DataError(
                    f"{name}: counts must be int64, not negative, of shape {list(shape)} for {groups} groups and "
                    f"{classes} classes; found {array.dtype} of shape {list(array.shape)}"
                )
        if self.outcomes.sum() != self.confusion.sum() or self.outcomes[:, 1].sum() != np.trace(self.confusion):
            raise DataError("outcomes and confusion count different samples: they must come from the same predictions")

    @classmethod
    def from_table(
        cls, table: NDArray[np.int64], group_names: Sequence[str], class_names: Sequence[str]
    ) -> GroupCounts:
        """Counts from a ready table `[G + 1, C, C]`, the last plane being the unknown group."""
        table = np.asarray(table)
        if table.ndim != 3:
            raise DataError(f"table: expected shape [groups + 1, classes, classes], found {list(table.shape)}")
        right = np.trace(table, axis1=1, axis2=2)
        outcomes = np.stack([table.sum(axis=(1, 2)) - right, right], axis=1)
        return cls(tuple(group_names), tuple(class_names), outcomes, table.sum(axis=0), table)

    @classmethod
    def from_predictions(
        cls,
        labels: NDArray[Any],
        predicted: NDArray[Any],
        groups: NDArray[Any] | None = None,
        *,
        class_names: Sequence[str],
        group_names: Sequence[str] | None = None,
        compact: bool | None = None,
    ) -> GroupCounts:
        """Count predictions.

        Args:
            labels: true classes `[N]`, integers in 0..C-1.
            predicted: predicted classes `[N]`, integers in 0..C-1.
            groups: group of each sample `[N]`, integers in -1..G-1, -1 where it is unknown. None: one group "all".
            class_names: the C names.
            group_names: the G names; required with `groups`, so that a group absent from these samples is still known.
            compact: keep only the margins; by default where the full table would exceed `FULL_TABLE_CELLS`.

        Raises:
            DataError: lengths differ, values are not integers, or an index is out of range (names the first sample).
        """
        class_names = tuple(class_names)
        if groups is None:
            group_names = ("all",) if group_names is None else tuple(group_names)
            if len(group_names) != 1:
                raise DataError(f"groups: {len(group_names)} group names but no group of any sample was given")
        elif group_names is None:
            raise DataError("group_names: required with groups, so that a group without samples is still known")
        number_classes, number_groups = len(class_names), len(group_names)
        y = checked_index("labels", labels, number_classes, "classes")
        p = checked_index("predictions", predicted, number_classes, "classes")
        g = (
            np.zeros(len(y), np.int64)
            if groups is None
            else checked_index("groups", groups, number_groups, "groups", unknown=True)
        )
        same_length(labels=y, predictions=p, groups=g)
        g = np.where(g < 0, number_groups, g)
        cells = (number_groups + 1) * number_classes**2
        if compact is None:
            compact = cells > FULL_TABLE_CELLS
        if compact:
            outcomes = np.bincount(g * 2 + (y == p), minlength=2 * (number_groups + 1)).reshape(-1, 2)
            confusion = np.bincount(y * number_classes + p, minlength=number_classes**2)
            confusion = confusion.reshape(number_classes, number_classes)
            return cls(tuple(group_names), class_names, outcomes.astype(np.int64), confusion.astype(np.int64))
        table = np.bincount((g * number_classes + y) * number_classes + p, minlength=cells)
        shape = (number_groups + 1, number_classes, number_classes)
        return cls.from_table(table.astype(np.int64).reshape(shape), group_names, class_names)

    def __add__(self, other: GroupCounts) -> GroupCounts:
        if not isinstance(other, GroupCounts):
            return NotImplemented
        for kind, mine, theirs in (
            ("groups", self.group_names, other.group_names),
            ("classes", self.class_names, other.class_names),
        ):
            if mine != theirs:
                raise DataError(f"counts of different {kind} cannot be merged: {list(mine)} and {list(theirs)}")
        table = None if self.table is None or other.table is None else self.table + other.table
        return GroupCounts(
            self.group_names,
            self.class_names,
            self.outcomes + other.outcomes,
            self.confusion + other.confusion,
            table,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GroupCounts):
            return NotImplemented
        if (self.table is None) != (other.table is None):
            return False
        return (
            self.group_names == other.group_names
            and self.class_names == other.class_names
            and np.array_equal(self.outcomes, other.outcomes)
            and np.array_equal(self.confusion, other.confusion)
            and (self.table is None or other.table is None or np.array_equal(self.table, other.table))
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def group_confusion(self) -> NDArray[np.int64]:
        """Group x true x predicted, `[G, C, C]`, without the unknown group.

        Raises:
            DataError: only the margins were kept.
        """
        if self.table is None:
            raise DataError(
                f"the confusion of each of {len(self.group_names)} groups over {len(self.class_names)} classes was not "
                "kept (too large): use .confusion, .accuracy, or count with compact=False"
            )
        return self.table[:-1]

    @property
    def totals(self) -> NDArray[np.int64]:
        """Samples of each group, `[G]`."""
        return np.asarray(self.outcomes[:-1].sum(axis=1))

    @property
    def correct(self) -> NDArray[np.int64]:
        """Correctly predicted samples of each group, `[G]`."""
        return self.outcomes[:-1, 1]

    @property
    def unknown_total(self) -> int:
        """Samples whose group is unknown."""
        return int(self.outcomes[-1].sum())

    @property
    def unknown_correct(self) -> int:
        """Correctly predicted samples whose group is unknown."""
        return int(self.outcomes[-1, 1])

    @property
    def samples(self) -> int:
        """All samples, those of unknown group included."""
        return int(self.outcomes.sum())

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Accuracy of each group, `[G]`, nan where a group has no sample."""
        return ratio(self.correct, self.totals)

    @property
    def average(self) -> float:
        """Accuracy over all samples, those of unknown group included; nan without samples."""
        return float(ratio(self.outcomes[:, 1].sum(), self.outcomes.sum()))

    def average_weighted(self, training_counts: NDArray[Any]) -> float:
        """Sum over groups of training share x accuracy: the "adjusted average" of group DRO (Sagawa et al. 2020).

        nan where a group that was trained on has no sample here: its accuracy is not known, and it is not 0.

        Args:
            training_counts: training samples of each group, `[G]`.
        """
        weights = np.asarray(training_counts, np.float64)
        if weights.shape != (len(self.group_names),) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise DataError(
                f"training_counts: expected {len(self.group_names)} counts, one a group and none negative; "
                f"found {np.asarray(training_counts).tolist()}"
            )
        present = weights > 0
        if not present.any():
            return float("nan")
        return float((self.accuracy[present] * weights[present]).sum() / weights.sum())

    def worst(self, minimum: int = 1) -> Worst | None:
        """The group of lowest accuracy among those with at least `minimum` samples; None where there is none."""
        return _worst(self.group_names, self.correct, self.totals, minimum)

    def gap(self, minimum: int = 1) -> float:
        """Average minus worst group accuracy; nan where no group has `minimum` samples."""
        worst = self.worst(minimum)
        return float("nan") if worst is None else self.average - worst.accuracy

    @property
    def class_totals(self) -> NDArray[np.int64]:
        """Samples of each true class, `[C]`."""
        return np.asarray(self.confusion.sum(axis=1))

    @property
    def class_correct(self) -> NDArray[np.int64]:
        """Correctly predicted samples of each true class, `[C]`."""
        return np.diagonal(self.confusion)

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """Recall of each class, `[C]`, nan where a class has no sample."""
        return ratio(self.class_correct, self.class_totals)

    def worst_class(self, minimum: int = 1) -> Worst | None:
        """The class of lowest accuracy among those with at least `minimum` samples; None where there is none."""
        return _worst(self.class_names, self.class_correct, self.class_totals, minimum)

    @property
    def balanced_accuracy(self) -> float:
        """Mean accuracy over the classes that occur; nan without samples."""
        present = self.class_totals > 0
        return float(self.class_accuracy[present].mean()) if present.any() else float("nan")


def _worst(names: tuple[str, ...], correct: NDArray[np.int64], totals: NDArray[np.int64], minimum: int) -> Worst | None:
    eligible = np.flatnonzero(totals >= max(minimum, 1))
    if eligible.size == 0:
        return None
    accuracy = correct[eligible] / totals[eligible]
    index = int(eligible[np.argmin(accuracy)])
    return Worst(index, names[index], float(accuracy.min()), int(totals[index]))


def ratio(part: NDArray[Any] | np.integer[Any], whole: NDArray[Any] | np.integer[Any]) -> NDArray[np.float64]:
    """part / whole, nan where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    shape = np.broadcast_shapes(part.shape, whole.shape)
    return np.asarray(np.divide(part, whole, out=np.full(shape, np.nan), where=whole > 0))


def checked_index(name: str, values: Any, size: int, kind: str, *, unknown: bool = False) -> NDArray[np.int64]:
    """`values` as int64 `[N]`, all in 0..size-1 (or -1 where `unknown`).

    Raises:
        DataError: not one-dimensional, not integers, or out of range (names the first sample at fault).
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise DataError(f"{name}: expected integers of shape [N], found {array.dtype} of shape {list(array.shape)}")
    lowest = -1 if unknown else 0
    outside = (array < lowest) | (array >= size)
    if outside.any():
        row = int(np.argmax(outside))
        raise DataError(
            f"{name}: {array[row]} of sample {row} is out of range: there are {size} {kind}, so 0 to {size - 1}"
            + (", or -1 for unknown" if unknown else "")
            + f" ({int(outside.sum())} of {len(array)} samples are out of range)"
        )
    return array.astype(np.int64, copy=False)


def same_length(**arrays: NDArray[Any]) -> None:
    """Refuse arrays over samples that have different lengths."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError("lengths differ: " + ", ".join(f"{name} has {n}" for name, n in lengths.items()))
