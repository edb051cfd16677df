"""Confidence intervals for accuracies, for the worst of several groups, and over seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from limbeck.errors import ConfigError, DataError, unknown_name

Limits = tuple[NDArray[np.float64], NDArray[np.float64]]


def wilson(correct: Any, total: Any, level: float = 0.95) -> Limits:
    """Score interval of a proportion (Wilson 1927), elementwise; nan where total is 0.

    Close to its level on average and never empty at 0 or 1; for single proportions it may fall a little short of it.
    """
    k, n = _counts(correct, total)
    z = special.ndtri((1 + _level(level)) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = k / n
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # The limits at 0 and 1 are exact; rounding would leave them at 1e-17.
    low = np.where(k == 0, 0.0, centre - half)
    high = np.where(k == n, 1.0, centre + half)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def clopper_pearson(correct: Any, total: Any, level: float = 0.95) -> Limits:
    """Exact interval of a proportion (Clopper and Pearson 1934), elementwise; nan where total is 0.

    Its coverage is never below the level, at the price of being wider than need be.
    """
    tail = (1 - _level(level)) / 2
    return exact_lower(correct, total, tail), exact_upper(correct, total, tail)


def exact_lower(correct: Any, total: Any, tail: float) -> NDArray[np.float64]:
    """Exact lower limit that a proportion falls below with probability at most `tail`; nan where total is 0."""
    k, n = _counts(correct, total)
    with np.errstate(invalid="ignore"):
        limit = np.where(k == 0, 0.0, special.betaincinv(np.maximum(k, 1), n - k + 1, tail))
    return np.where(n > 0, limit, np.nan)


def exact_upper(correct: Any, total: Any, tail: float) -> NDArray[np.float64]:
    """Exact upper limit that a proportion exceeds with probability at most `tail`; nan where total is 0."""
    k, n = _counts(correct, total)
    with np.errstate(invalid="ignore"):
        limit = np.where(k == n, 1.0, special.betainccinv(k + 1, np.maximum(n - k, 1), tail))
    return np.where(n > 0, limit, np.nan)


METHODS: dict[str, Callable[[Any, Any, float], Limits]] = {"wilson": wilson, "clopper_pearson": clopper_pearson}


def interval(correct: Any, total: Any, method: str = "wilson", level: float = 0.95) -> Limits:
    """Interval of each proportion `correct / total` by the method's name ("wilson" or "clopper_pearson")."""
    if method not in METHODS:
        raise ConfigError(unknown_name("interval", method, METHODS))
    return METHODS[method](correct, total, level)


def worst_group_interval(correct: Any, total: Any, level: float = 0.95, minimum: int = 1) -> tuple[float, float]:
    """Interval of the *lowest true* accuracy among the groups with at least `minimum` samples.

    The group that looks worst was selected for looking worst, so its own interval lies too low and covers too rarely.
    Let t be the lowest true accuracy, reached by group g*, and a = (1 - level) / 2.

    * Lower limit: min over groups of the one-sided limits at a. If it exceeds t then so does the limit of g*, whose
      chance is at most a: an intersection-union argument (Berger 1982), which needs no correction for the number
      of groups.
    * Upper limit: min over groups of the one-sided limits at 1 - (1 - a)^(1/G) (Sidak). If it is below t, then some
      group's own limit is below its own accuracy; groups are independent, so the chance is at most a.

    One-sided limits are exact (Clopper-Pearson), because this far out in one tail Wilson's error is not small. The
    coverage is therefore at least `level` for any number and size of groups. nan where no group qualifies.
    """
    k, n = _counts(correct, total)
    eligible = n >= max(minimum, 1)
    if not eligible.any():
        return float("nan"), float("nan")
    tail = (1 - _level(level)) / 2
    each = -np.expm1(np.log1p(-tail) / eligible.sum())
    low = exact_lower(k[eligible], n[eligible], tail).min()
    high = exact_upper(k[eligible], n[eligible], each).min()
    return float(low), float(high)


def seeds_interval(
    values: Any, level: float = 0.95, method: str = "t", *, replicates: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean over seeds of one number per seed, `[S]`; nan for a single seed.

    "t" is right for few seeds where the values are roughly normal. "bootstrap" takes percentiles of resampled means:
    it follows skewed values, but covers too rarely with few seeds (about 0.90 for 0.95 at 10 seeds, 0.75 at 3).
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise DataError(f"values: expected one finite number per seed, found {np.asarray(values).tolist()}")
    tail = (1 - _level(level)) / 2
    if method not in ("t", "bootstrap"):
        raise ConfigError(unknown_name("interval over seeds", method, ("t", "bootstrap")))
    if x.size == 1:
        return float("nan"), float("nan")
    if method == "t":
        half = float(special.stdtrit(x.size - 1, 1 - tail)) * float(x.std(ddof=1)) / x.size**0.5
        return float(x.mean()) - half, float(x.mean()) + half
    rows = np.random.default_rng(seed).integers(x.size, size=(replicates, x.size))
    low, high = np.quantile(x[rows].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _counts(correct: Any, total: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    k, n = np.broadcast_arrays(np.asarray(correct, np.float64), np.asarray(total, np.float64))
    if not ((k >= 0) & (k <= n)).all():
        raise DataError("correct must lie between 0 and total in every group")
    return k, n


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ConfigError(f"level: {level} is not a confidence level between 0 and 1, such as 0.95")
    return level
