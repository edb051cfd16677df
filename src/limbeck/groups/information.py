"""How much two partitions say about each other within classes, and how alike they are between runs.

Everything is taken within classes: groups are mostly class × something, so that over all samples even "misclassified or
not" looks like the true groups, for the class alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError


@dataclass(frozen=True)
class Information:
    """What found groups say about true ones, within classes.

    Attributes:
        share: I(found; true | class) / H(true | class): 1 where the found groups tell the true ones, 0 where they say
            nothing. Many small groups raise it by chance alone.
        adjusted: the adjusted mutual information (Vinh, Epps and Bailey, JMLR 2010, arithmetic mean), pooled over
            classes: 0 for groups drawn at random, whatever their number; 1 for the same partition.
        entropy: H(true | class), in nats; where it is 0 there is nothing to tell, and the two above are nan.
    """

    share: float
    adjusted: float
    entropy: float


def within_class_information(found: Any, true: Any, labels: Any) -> Information:
    """Mutual information of found and true groups within classes.

    Args:
        found, true: int [N]; samples with a negative number in either are left out.
        labels: int [N].

    Raises:
        DataError: where the lengths differ.
    """
    mutual = entropy_true = entropy_found = chance = 0.0
    total = 0
    for table in _tables(found, true, labels):
        n = int(table.sum())
        total += n
        mutual += n * _mutual(table)
        entropy_found += n * _entropy(table.sum(1))
        entropy_true += n * _entropy(table.sum(0))
        chance += n * _expected(table)
    if not total or entropy_true <= 1e-12 * total:
        return Information(float("nan"), float("nan"), 0.0)
    between = (entropy_found + entropy_true) / 2 - chance
    adjusted = (mutual - chance) / between if between > 1e-9 * total else float("nan")
    return Information(mutual / entropy_true, adjusted, entropy_true / total)


def within_class_adjusted_rand(found: Any, other: Any, labels: Any) -> float:
    """The adjusted Rand index (Hubert and Arabie 1985) over pairs of samples of one class; nan where neither cuts any.

    Args:
        found, other: int [N]; samples with a negative number in either are left out.
        labels: int [N].
    """
    both = expected = most = 0.0
    for table in _tables(found, other, labels):
        rows, columns = _pairs(table.sum(1)).sum(), _pairs(table.sum(0)).sum()
        every = _pairs(table.sum())
        both += _pairs(table).sum()
        expected += rows * columns / every if every else 0.0
        most += (rows + columns) / 2
    return float((both - expected) / (most - expected)) if most - expected > 1e-9 else float("nan")


@dataclass(frozen=True)
class Stability:
    """How alike the groups of several runs are, within classes: the mean over all pairs of runs, and the least.

    Attributes:
        runs: how many.
        information: mean adjusted mutual information.
        rand: mean adjusted Rand index.
        least: the lowest adjusted mutual information of a pair.
    """

    runs: int
    information: float
    rand: float
    least: float


def stability(runs: Sequence[Any], labels: Any) -> Stability:
    """How alike several assignments of the same samples are; nan where no run cuts any class.

    Args:
        runs: int [N] each, two or more.
        labels: int [N].

    Raises:
        DataError: for fewer than two runs.
    """
    if len(runs) < 2:
        raise DataError(f"stability is between runs: {len(runs)} given, expected two or more")
    pairs = [(a, b) for a, b in combinations(runs, 2)]
    information = [_symmetric(a, b, labels) for a, b in pairs]
    rand = [within_class_adjusted_rand(a, b, labels) for a, b in pairs]
    return Stability(len(runs), _mean(information), _mean(rand), float(np.min(information)))


def _symmetric(a: Any, b: Any, labels: Any) -> float:
    """Adjusted mutual information; 0 where one run cuts classes and the other does not."""
    found = [within_class_information(x, y, labels) for x, y in ((a, b), (b, a))]
    if all(each.entropy == 0 for each in found):
        return float("nan")
    if any(each.entropy == 0 for each in found):
        return 0.0
    return found[0].adjusted


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _tables(found: Any, other: Any, labels: Any) -> Iterator[NDArray[np.int64]]:
    """The contingency table of each class."""
    a, b, y = (np.asarray(values) for values in (found, other, labels))
    if not a.shape == b.shape == y.shape or a.ndim != 1:
        raise DataError(f"groups, groups and labels have shapes {a.shape}, {b.shape} and {y.shape}: expected [N] each")
    known = (a >= 0) & (b >= 0)
    for label in np.unique(y[known]):
        rows = known & (y == label)
        _, first = np.unique(a[rows], return_inverse=True)
        _, second = np.unique(b[rows], return_inverse=True)
        table = np.zeros((int(first.max()) + 1, int(second.max()) + 1), np.int64)
        np.add.at(table, (first, second), 1)
        yield table


def _entropy(counts: NDArray[np.int64]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _mutual(table: NDArray[np.int64]) -> float:
    joint = table / table.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    some = joint > 0
    return max(0.0, float((joint[some] * np.log(joint[some] / independent[some])).sum()))


def _expected(table: NDArray[np.int64]) -> float:
    """The mutual information that two partitions of these sizes have by chance."""
    if min(table.shape) == 1:
        return 0.0
    from sklearn.metrics.cluster import expected_mutual_information

    return float(expected_mutual_information(table, int(table.sum())))


def _pairs(counts: Any) -> Any:
    return np.asarray(counts, np.float64) * (np.asarray(counts, np.float64) - 1) / 2
