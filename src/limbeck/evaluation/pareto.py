"""Average against worst group: where every recipe stands, how sure that is, and which none beats in both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import ConfigError, DataError
from limbeck.evaluation.bootstrap import PairedCounts, redraw_worst
from limbeck.evaluation.counts import ratio
from limbeck.evaluation.power import Variance


@dataclass(frozen=True)
class Standing:
    """One recipe: average and worst-group accuracy, means over its seeds, with intervals at `level`.

    Attributes:
        average_low, average_high, worst_low, worst_high: over seeds *and* test samples, so of what another run of the
            recipe reaches on another test set; with one seed of this student. The worst group's allows for its having
            been picked. nan where no group is large enough.
        group: the group that is the worst of most seeds.
        front: whether no other recipe is as good in both and better in one.
        front_share: share of redrawn seeds and test sets in which that is so.
    """

    key: str
    average: float
    average_low: float
    average_high: float
    worst_group: float
    worst_low: float
    worst_high: float
    group: str | None
    seeds: int
    front: bool
    front_share: float
    level: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def pareto_front(
    right: Mapping[str, Any],
    groups: Any = None,
    group_names: Sequence[str] | None = None,
    *,
    minimum: int = 10,
    level: float = 0.95,
    replicates: int = 2000,
    seed: int = 0,
) -> tuple[Standing, ...]:
    """Where each recipe stands, in the order given.

    Args:
        right: whether each seed of each recipe is right on each test sample, bool `[N]` or `[seeds, N]`, all on the
            same samples in the same order.
        groups: group of each sample `[N]`, -1 where unknown (counts in the average only); None: one group "all".
        group_names: names of the groups, required with `groups`.
        minimum: samples that a group needs to count among the worst.
        replicates: redrawn test sets and seeds.

    Raises:
        DataError: no recipe, or recipes on different samples. ConfigError: an impossible level.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level: {level} is not a confidence level between 0 and 1, such as 0.95")
    if not right:
        raise DataError("right: no recipe was given, expected one entry a recipe")
    runs = [np.atleast_2d(np.asarray(values)) for values in right.values()]
    lengths = {key: values.shape[-1] for key, values in zip(right, runs, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError("right: recipes on different samples: " + ", ".join(f"{k} has {n}" for k, n in lengths.items()))
    every = np.concatenate(runs)
    sides = [slice(end - len(values), end) for values, end in zip(runs, np.cumsum([len(v) for v in runs]), strict=True)]
    # Counting patterns checks the input and makes a million samples a few thousand rows.
    patterns = PairedCounts.from_correct(every, every[:1], groups, group_names)
    totals, columns = patterns.totals, patterns.right_a.astype(np.float64)
    eligible = np.flatnonzero(totals >= max(minimum, 1))

    average, covariance = _moments(columns, patterns.count.astype(np.float64))
    strata = [np.flatnonzero(patterns.group == g) for g in range(len(totals) + 1)]
    moments = [_moments(columns[rows], patterns.count[rows].astype(np.float64)) for rows in strata]
    accuracy, group_covariance = (np.stack(parts) for parts in zip(*moments, strict=True))
    redrawn = redraw_worst(accuracy[eligible], group_covariance[eligible], replicates, seed) if eligible.size else None
    worst = accuracy[eligible].min(axis=0) if redrawn else np.full(len(every), np.nan)

    points = np.stack([[average[s].mean(), worst[s].mean()] for s in sides])
    on_front = _on_front(points[None])[0]
    if redrawn is None:
        shares = on_front.astype(float)
    else:
        shares = _front_shares(points, sides, average, worst, covariance, redrawn.worst, replicates, seed)
    found = []
    for n, (key, side) in enumerate(zip(right, sides, strict=True)):
        half = _variance(average[side], covariance[side, side], patterns.samples).half_width(1 - level)
        low, high, group = math.nan, math.nan, None
        if redrawn is not None:
            worst_of = Counter(accuracy[eligible][:, side].argmin(axis=0).tolist()).most_common(1)[0][0]
            group = patterns.group_names[eligible[worst_of]]
            spread = np.atleast_2d(np.cov(redrawn.worst[:, side], rowvar=False, bias=True))
            reach = _variance(worst[side], spread, int(totals[eligible[worst_of]])).half_width(1 - level)
            bias = min(float(redrawn.bias[side].mean()), 0.0)
            low, high = max(points[n, 1] - reach, 0.0), min(points[n, 1] + reach - bias, 1.0)
        found.append(
            Standing(
                key,
                float(points[n, 0]),
                max(float(points[n, 0]) - half, 0.0),
                min(float(points[n, 0]) + half, 1.0),
                float(points[n, 1]),
                float(low),
                float(high),
                group,
                len(average[side]),
                bool(on_front[n]),
                float(shares[n]),
                level,
            )
        )
    return tuple(found)


def _moments(right: NDArray[np.float64], count: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracy of each run `[D]` (nan without samples) and their covariance over test sets `[D, D]`.

    One sample that all have right and one that none has are added to the covariance (Agresti and Coull 1998), so that a
    small group without an error is not taken for certain.
    """
    n = count.sum() + 2
    mean = (count @ right + 1) / n
    second = ((right.T * count) @ right + 1) / n
    return ratio(count @ right, np.asarray(count.sum())), (second - np.outer(mean, mean)) / n


def _variance(values: NDArray[np.float64], covariance: NDArray[np.float64], samples: int) -> Variance:
    """Of the mean over seeds of one recipe, from each seed's value and their covariance over test sets."""
    seeds = len(values)
    shared = float(covariance.mean())
    if seeds == 1:
        return Variance(0.0, 1.0, shared, float(max(samples - 1, 1)), 0.0)
    interaction = max((float(np.trace(covariance)) - seeds * shared) / (seeds * (seeds - 1)), 0.0)
    spread = float(values.var(ddof=1)) / seeds
    return Variance(spread, seeds - 1.0, shared, float(max(samples - 1, 1)), interaction)


def _on_front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether no other point is as good in both and better in one, of points `[R, M, 2]`; nan beats nothing."""
    mine, other = points[:, :, None], points[:, None]
    # Without a worst group only the average counts.
    worse = (other >= mine) | np.isnan(mine) | np.isnan(other)
    beaten = np.all(worse, axis=3) & np.any(other > mine, axis=3)
    return np.asarray(~np.any(beaten, axis=2), bool)


def _front_shares(
    points: NDArray[np.float64],
    sides: Sequence[slice],
    average: NDArray[np.float64],
    worst: NDArray[np.float64],
    covariance: NDArray[np.float64],
    redrawn: NDArray[np.float64],
    replicates: int,
    seed: int,
) -> NDArray[np.float64]:
    """Share of redrawn test sets (the same for all) and seeds in which each recipe is on the front `[M]`.

    Draws are centred on what was measured: more noise moves every worst group down, which is no news of the recipes.
    Average and worst group are drawn apart, though a few samples of the one are also in the other.
    """
    rng = np.random.default_rng([seed, 3])
    factor = np.linalg.cholesky(covariance + 1e-9 * np.trace(covariance) * np.eye(len(covariance)))
    shift = rng.standard_normal((replicates, len(average))) @ factor.T
    drawn = np.empty((replicates, len(sides), 2))
    for n, side in enumerate(sides):
        seeds = len(average[side])
        drawn[:, n, 0] = points[n, 0] + shift[:, side].mean(axis=1)
        drawn[:, n, 1] = points[n, 1] + (redrawn[:, side] - redrawn[:, side].mean(axis=0)).mean(axis=1)
        if seeds > 1:
            of_seeds = np.cov(average[side], worst[side]) / seeds
            drawn[:, n] += rng.multivariate_normal(np.zeros(2), of_seeds, replicates, method="eigh")
    return np.asarray(_on_front(drawn).mean(axis=0))
