"""Resampling samples by resampling counts: milliseconds where resampling the samples takes minutes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import ConfigError, DataError
from limbeck.evaluation.counts import checked_index, ratio, same_length

_CELLS_AT_A_TIME = 2**22
"""Resampled counts held at once (32 MiB)."""


def bootstrap_counts(
    counts: Any, replicates: int = 2000, seed: int = 0, *, stratified: bool = False
) -> NDArray[np.int64]:
    """Bootstrap replicates of a table of counts, `[R, *counts.shape]`.

    Drawing N samples with replacement and counting them is one draw from the multinomial over the cells, so the result
    has exactly the distribution of the sample bootstrap (Efron 1979) at a cost that does not depend on N.

    Args:
        counts: non-negative integers of any shape, each sample counted in one cell.
        stratified: keep the total of each index of the first axis (group sizes fixed by design).
    """
    table = np.asarray(counts)
    if table.dtype.kind not in "iu" or table.ndim < 1 or bool((table < 0).any()):
        raise DataError(f"counts: expected integers, none negative; found {table.dtype} of shape {list(table.shape)}")
    if replicates < 1:
        raise ConfigError(f"replicates: at least 1 is needed, found {replicates}")
    rng = np.random.default_rng(seed)
    rows = table.reshape(len(table), -1) if stratified else table.reshape(1, -1)
    if rows.size == 0:
        return np.zeros((replicates, *table.shape), np.int64)
    drawn = rng.multinomial(rows.sum(axis=1), _shares(rows.astype(np.float64)), size=(replicates, len(rows)))
    return drawn.astype(np.int64, copy=False).reshape(replicates, *table.shape)


def percentile_interval(replicates: Any, level: float = 0.95) -> NDArray[np.float64]:
    """Percentile interval over the first axis, `[2, ...]`; nan replicates (an empty group drawn) are left out."""
    values = np.asarray(replicates, np.float64)
    columns = values.reshape(len(values), -1)
    tail = (1 - level) / 2
    limits = np.full((2, columns.shape[1]), np.nan)
    missing = np.isnan(columns)
    whole, some = ~missing.any(axis=0), missing.any(axis=0) & ~missing.all(axis=0)
    limits[:, whole] = np.quantile(columns[:, whole], [tail, 1 - tail], axis=0)
    limits[:, some] = np.nanquantile(columns[:, some], [tail, 1 - tail], axis=0)
    return limits.reshape(2, *values.shape[1:])


@dataclass(frozen=True, eq=False)
class PairedCounts:
    """Two models on the same samples, by pattern of right and wrong: all that a comparison needs of them.

    A pattern is a group and, for each seed of either model, whether that seed's student is right. A million samples
    fall into a few hundred patterns. With one seed a group has four: both right, only A, only B, none.

    Attributes:
        right_a: whether each seed of A is right, bool `[K, S_A]`.
        right_b: whether each seed of B is right, bool `[K, S_B]`.
        group: group of each pattern, int64 `[K]` in ascending order, G standing for the unknown group.
        count: samples of each pattern, int64 `[K]`.
    """

    group_names: tuple[str, ...]
    right_a: NDArray[np.bool_]
    right_b: NDArray[np.bool_]
    group: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def from_correct(
        cls, right_a: Any, right_b: Any, groups: Any = None, group_names: Sequence[str] | None = None
    ) -> PairedCounts:
        """Count patterns.

        Args:
            right_a: whether A is right on each sample, bool `[N]`, or `[S_A, N]` for several seeds.
            right_b: the same of B on the same samples in the same order, bool `[N]` or `[S_B, N]`.
            groups: group of each sample `[N]`, -1 where unknown; None: one group "all".
            group_names: the G names, required with `groups`.
        """
        a, b = _right("right_a", right_a), _right("right_b", right_b)
        if groups is None:
            names = ("all",) if group_names is None else tuple(group_names)
            g = np.zeros(a.shape[1], np.int64)
        elif group_names is None:
            raise DataError("group_names: required with groups, so that a group without samples is still known")
        else:
            names = tuple(group_names)
            g = checked_index("groups", groups, len(names), "groups", unknown=True)
        same_length(right_a=a.T, right_b=b.T, groups=g)
        g = np.where(g < 0, len(names), g)
        code = g
        for place, right in enumerate(np.concatenate([a, b])):
            if place % 16 == 15:
                # Renumbered densely now and then, so that any number of seeds fits an int64.
                code = np.unique(code, return_inverse=True)[1]
            code = code * 2 + right
        # The group is the leading digit, so ascending codes keep the groups in ascending order.
        _, first, count = np.unique(code, return_index=True, return_counts=True)
        return cls(names, a[:, first].T, b[:, first].T, g[first], count.astype(np.int64))

    @property
    def samples(self) -> int:
        """All samples, those of unknown group included."""
        return int(self.count.sum())

    @property
    def totals(self) -> NDArray[np.int64]:
        """Samples of each group, `[G]`."""
        groups = len(self.group_names)
        return np.bincount(self.group, weights=self.count, minlength=groups + 1)[:groups].astype(np.int64)

    @property
    def table(self) -> NDArray[np.int64]:
        """Both right, only A, only B, none: `[G + 1, 4]`, the last row being the unknown group. One seed each only."""
        if self.right_a.shape[1] != 1 or self.right_b.shape[1] != 1:
            raise DataError("a table of both, only A, only B and none exists for one seed of each model only")
        cell = self.group * 4 + 3 - 2 * self.right_a[:, 0] - self.right_b[:, 0]
        table = np.bincount(cell, weights=self.count, minlength=4 * (len(self.group_names) + 1))
        return table.astype(np.int64).reshape(-1, 4)


class Accuracies(NamedTuple):
    """Accuracies of one model's seeds, each with any number of leading axes (replicates)."""

    average: NDArray[np.float64]
    """Over all samples, `[..., S]`."""
    worst: NDArray[np.float64]
    """Lowest of the eligible groups, `[..., S]`; nan where there is none."""
    groups: NDArray[np.float64]
    """Of each group, `[..., S, G]`; nan where it has no sample."""


def accuracies(paired: PairedCounts, minimum: int = 1) -> tuple[Accuracies, Accuracies]:
    """Observed accuracies of A and B; the worst group is sought among those with at least `minimum` samples."""
    eligible = paired.totals >= max(minimum, 1)
    a, b = _accuracies(paired, paired.count[None], eligible)
    return Accuracies(*(x[0] for x in a)), Accuracies(*(x[0] for x in b))


def paired_bootstrap(
    paired: PairedCounts,
    replicates: int = 2000,
    seed: int = 0,
    *,
    minimum: int = 1,
    stratified: bool = False,
) -> tuple[Accuracies, Accuracies]:
    """Accuracies of A and B on resampled samples, the same resample for both and for every seed: `[R, S]`, `[R, S, G]`.

    Args:
        minimum: the worst group is sought among the groups with this many *observed* samples.
        stratified: keep the group sizes.
    """
    if replicates < 1:
        raise ConfigError(f"replicates: at least 1 is needed, found {replicates}")
    eligible = paired.totals >= max(minimum, 1)
    parts = [_accuracies(paired, part, eligible) for part in _draw(paired, replicates, seed, stratified)]
    a, b = (
        Accuracies(*(np.concatenate(pieces) for pieces in zip(*(part[side] for part in parts), strict=True)))
        for side in (0, 1)
    )
    return a, b


def hierarchical_bootstrap(
    paired: PairedCounts, replicates: int = 2000, seed: int = 0, *, minimum: int = 1, paired_seeds: bool = True
) -> Accuracies:
    """Differences A - B with seeds *and* samples resampled: average `[R]`, worst `[R]`, groups `[R, G]`.

    Both levels are crossed: all seeds see the same test samples, so one resample of samples serves all of them
    (Owen 2007). Percentiles of the result are fair with ten seeds or more; with fewer, resampled seeds spread too
    little, and `compare` takes the seeds' share in closed form with Student's t instead.

    Args:
        paired_seeds: draw the same seeds for A and B (seed s shared data order, split or noise); needs as many of each.
    """
    a, b = paired_bootstrap(paired, replicates, seed, minimum=minimum)
    seeds_a, seeds_b = paired.right_a.shape[1], paired.right_b.shape[1]
    if paired_seeds and seeds_a != seeds_b:
        raise ConfigError(f"paired_seeds: A has {seeds_a} seeds and B {seeds_b}; pass paired_seeds=False")
    rng = np.random.default_rng([seed, 1])
    rows_a = rng.integers(seeds_a, size=(replicates, seeds_a))
    rows_b = rows_a if paired_seeds else rng.integers(seeds_b, size=(replicates, seeds_b))
    replicate = np.arange(replicates)[:, None]
    average, worst, groups = (
        x[replicate, rows_a].mean(axis=1) - y[replicate, rows_b].mean(axis=1) for x, y in zip(a, b)
    )
    return Accuracies(average, worst, groups)


def run_covariance(paired: PairedCounts) -> NDArray[np.float64]:
    """Covariance of the runs' accuracies in each group over test sets, `[G, S_A + S_B, S_A + S_B]`; 0 where empty.

    Half a sample is added to each of "all right", "only A", "only B" and "all wrong" (Agresti and Min 2005), so that a
    small group without a disagreement is not taken for certain.
    """
    right = np.concatenate([paired.right_a, paired.right_b], axis=1).astype(np.float64)
    is_a = np.arange(right.shape[1]) < paired.right_a.shape[1]
    extra_rows = np.stack([np.ones(len(is_a)), is_a, ~is_a, np.zeros(len(is_a))]).astype(np.float64)
    covariance = np.zeros((len(paired.group_names), right.shape[1], right.shape[1]))
    present, starts = np.unique(paired.group, return_index=True)
    for g, start, end in zip(present, starts, [*starts[1:], len(right)], strict=True):
        if g < len(covariance):
            rows = np.concatenate([right[start:end], extra_rows])
            weights = np.concatenate([paired.count[start:end], np.full(4, 0.5)])
            n = weights.sum()
            mean = weights @ rows / n
            covariance[g] = ((rows.T * weights) @ rows / n - np.outer(mean, mean)) / n
    return covariance


class RedrawnWorst(NamedTuple):
    """The worst group of D runs on redrawn test sets."""

    worst: NDArray[np.float64]
    """Lowest accuracy, `[R, D]`."""
    bias: NDArray[np.float64]
    """How far the measured lowest accuracy lies above the lowest true one (so it is negative), estimated, `[D]`."""
    times: NDArray[np.float64]
    """How often each group is the worst of a run, `[G]`."""


def redraw_worst(
    accuracy: NDArray[np.float64], covariance: NDArray[np.float64], replicates: int = 2000, seed: int = 0
) -> RedrawnWorst:
    """Redraw the groups' accuracies about the measured ones, and take the worst of each run.

    The measured lowest of several accuracies lies below the lowest true one: the group that looks worst was picked for
    it. Its bias is extrapolated to test sets without noise from the measured one and redrawn ones of twice its variance
    (Cook and Stefanski 1994). The bias of tied groups is proportional to the standard error, so that one step of
    sqrt(2) - 1 leads back; where one group is clearly the worst, both are 0.

    Args:
        accuracy: of each run in each group, `[G, D]`. covariance: of the runs in each group, `[G, D, D]`.
    """
    groups, runs = accuracy.shape
    # The slack makes it positive definite where two runs agree on every sample.
    slack = 1e-9 * np.trace(covariance, axis1=1, axis2=2)[:, None, None] * np.eye(runs)
    factors = np.linalg.cholesky(covariance + slack).transpose(0, 2, 1)
    rng = np.random.default_rng(seed)
    at_worst = accuracy.argmin(axis=0)
    lowest, noise, times = [], np.zeros(runs), np.zeros(groups)
    step = max(1, _CELLS_AT_A_TIME // accuracy.size)
    for start in range(0, replicates, step):
        size = min(step, replicates - start)
        error = rng.standard_normal((groups, size, runs)) @ factors
        drawn = accuracy[:, None] + error
        lowest.append(drawn.min(axis=0))
        times += np.count_nonzero(drawn == lowest[-1], axis=(1, 2))
        noise += error[at_worst, :, np.arange(runs)].sum(axis=1)
    worst = np.concatenate(lowest)
    # What the draws do to the group that is the worst anyway is noise of the simulation, not bias.
    bias = (worst.mean(axis=0) - noise / replicates - accuracy.min(axis=0)) / (math.sqrt(2) - 1)
    return RedrawnWorst(worst, bias, times)


def _accuracies(
    paired: PairedCounts, counts: NDArray[np.int64], eligible: NDArray[np.bool_]
) -> tuple[Accuracies, Accuracies]:
    """Accuracies of A and B where pattern k was seen counts[r, k] times."""
    totals = _sum_by_group(paired, counts)

    def side(right: NDArray[np.bool_]) -> Accuracies:
        correct = np.stack([_sum_by_group(paired, counts * right[:, s]) for s in range(right.shape[1])], axis=1)
        average = ratio(correct.sum(axis=2), totals.sum(axis=1)[:, None])
        groups = ratio(correct, totals[:, None, :])[..., :-1]
        # A group that a resample left empty has no accuracy there: fmin passes over its nan.
        worst = np.fmin.reduce(np.where(eligible, groups, np.nan), axis=2, initial=np.nan)
        return Accuracies(average, worst, groups)

    return side(paired.right_a), side(paired.right_b)


def _sum_by_group(paired: PairedCounts, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of values `[R, K]` over the patterns of each group, `[R, G + 1]`."""
    sums = np.zeros((len(values), len(paired.group_names) + 1), np.int64)
    if paired.group.size:
        present, starts = np.unique(paired.group, return_index=True)
        sums[:, present] = np.add.reduceat(values, starts, axis=1)
    return sums


def _draw(paired: PairedCounts, replicates: int, seed: int, stratified: bool) -> Iterator[NDArray[np.int64]]:
    """Resampled counts `[part of R, K]`, in parts that fit in memory."""
    rng = np.random.default_rng(seed)
    weights = paired.count.astype(np.float64)
    if stratified:
        _, starts = np.unique(paired.group, return_index=True)
        ends = [*starts[1:], len(weights)]
        strata = [slice(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]
    else:
        strata = [slice(0, len(weights))]
    step = max(1, _CELLS_AT_A_TIME // max(len(weights), 1))
    for start in range(0, replicates, step):
        size = min(step, replicates - start)
        counts = np.zeros((size, len(weights)), np.int64)
        for part in strata:
            if part.stop > part.start:
                counts[:, part] = rng.multinomial(int(paired.count[part].sum()), _shares(weights[None, part])[0], size)
        yield counts


def _shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows scaled to sum 1; a row of zeros becomes all in its first cell, of which nothing will be drawn."""
    total = weights.sum(axis=1, keepdims=True)
    first = np.zeros_like(weights)
    first[:, 0] = 1
    return np.asarray(np.divide(weights, total, out=first, where=total > 0))


def _right(name: str, values: Any) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.dtype != bool or array.ndim not in (1, 2) or array.shape[0] == 0:
        raise DataError(
            f"{name}: expected bool of shape [N] or [seeds, N] (predicted == labels), found {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    return np.atleast_2d(array)
