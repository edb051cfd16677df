"""Intervals: against SciPy, and their coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from limbeck.errors import ConfigError, DataError
from limbeck.evaluation import clopper_pearson, interval, seeds_interval, wilson, worst_group_interval
from limbeck.evaluation.intervals import exact_lower, exact_upper

CASES = [(0, 1), (1, 1), (0, 12), (12, 12), (3, 7), (50, 100), (999, 1000), (123_456, 1_000_000)]


@pytest.mark.parametrize(("ours", "theirs"), [(wilson, "wilson"), (clopper_pearson, "exact")])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_against_scipy(ours: object, theirs: str, level: float) -> None:
    k, n = np.array(CASES).T
    low, high = ours(k, n, level)  # type: ignore[operator]
    for i, (correct, total) in enumerate(CASES):
        expected = stats.binomtest(correct, total).proportion_ci(level, method=theirs)
        assert low[i] == pytest.approx(expected.low, rel=1e-9, abs=1e-12)
        assert high[i] == pytest.approx(expected.high, rel=1e-9, abs=1e-12)


def test_empty_group_has_no_interval_and_bounds_are_exact() -> None:
    for method in ("wilson", "clopper_pearson"):
        low, high = interval([0, 0, 5], [0, 5, 5], method)
        assert np.isnan(low[0])
        assert np.isnan(high[0])
        assert low[1] == 0.0
        assert high[2] == 1.0
        assert 0 < high[1] < 1
        assert 0 < low[2] < 1


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'wilson'"):
        interval(1, 2, "wilsonn")
    with pytest.raises(ConfigError, match="level: 95"):
        wilson(1, 2, 95)
    with pytest.raises(DataError, match="between 0 and total"):
        wilson(3, 2)
    with pytest.raises(ConfigError, match="interval over seeds"):
        seeds_interval([1, 2], method="z")
    with pytest.raises(DataError, match="one finite number per seed"):
        seeds_interval([1, np.nan])


def test_coverage_of_one_proportion() -> None:
    """Exactly, by summing the binomial: exact never below its level, Wilson near it."""
    n = 40
    k = np.arange(n + 1)
    shares = np.linspace(0.005, 0.995, 199)
    covered = {}
    for method in (wilson, clopper_pearson):
        low, high = method(k, n)
        inside = (low[:, None] <= shares) & (shares <= high[:, None])
        covered[method] = (stats.binom.pmf(k[:, None], n, shares) * inside).sum(axis=0)
    assert covered[clopper_pearson].min() >= 0.95
    assert covered[wilson].min() > 0.83
    assert abs(covered[wilson].mean() - 0.95) < 0.01


WORST_CASES = [
    ("all alike", [0.9] * 10, [100] * 10),
    ("one clearly worst", [0.5, 0.95, 0.95], [30, 500, 500]),
    ("graded", [0.9, 0.8, 0.6], [300, 200, 50]),
    ("near 1", [0.99] * 5, [40] * 5),
    ("a hundred alike", [0.7] * 100, [50] * 100),
    ("one group", [0.8], [60]),
]


@pytest.mark.parametrize(("p", "n"), [case[1:] for case in WORST_CASES], ids=[case[0] for case in WORST_CASES])
def test_coverage_of_the_worst_group(p: list[float], n: list[int]) -> None:
    """Each side misses at most its half of 5 % (with the simulation's own error), however many groups tie."""
    rng = np.random.default_rng(0)
    repeats = 2000
    k = rng.binomial(n, p, size=(repeats, len(n)))
    # The same formulas as worst_group_interval, for all simulated tests at once.
    low = exact_lower(k, n, 0.025).min(axis=1)
    high = exact_upper(k, n, 1 - 0.975 ** (1 / len(n))).min(axis=1)
    for row in range(5):
        assert worst_group_interval(k[row], n) == pytest.approx((low[row], high[row]), rel=1e-12)
    slack = 3 * (0.025 * 0.975 / repeats) ** 0.5
    assert (low > min(p)).mean() <= 0.025 + slack
    assert (high < min(p)).mean() <= 0.025 + slack


def test_the_naive_interval_of_the_worst_group_fails_where_ours_holds() -> None:
    """The reason for having our own: the group that looks worst among ties is a selected one."""
    rng = np.random.default_rng(1)
    k = rng.binomial(50, 0.7, size=(500, 100))
    low, high = wilson(k.min(axis=1), 50)
    assert ((low <= 0.7) & (high >= 0.7)).mean() < 0.3


def test_worst_group_interval_ignores_small_and_empty_groups() -> None:
    k, n = np.array([90, 0, 0]), np.array([100, 3, 0])
    assert worst_group_interval(k, n, minimum=10) == worst_group_interval(k[:1], n[:1])
    assert worst_group_interval(k, n, minimum=1)[0] == 0.0
    assert np.isnan(worst_group_interval(k, n, minimum=1000)).all()
    # One group alone: plain Clopper-Pearson.
    low, high = clopper_pearson(90, 100)
    assert worst_group_interval(k[:1], n[:1]) == pytest.approx((float(low), float(high)), rel=1e-12)


def test_seeds_interval_is_students_t() -> None:
    x = np.array([0.71, 0.74, 0.69, 0.75, 0.72])
    expected = stats.t.interval(0.9, 4, loc=x.mean(), scale=stats.sem(x))
    assert seeds_interval(x, 0.9) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(seeds_interval([0.7])).all()


def test_coverage_over_seeds() -> None:
    """t holds its level for three seeds; percentiles of resampled seeds do not, as its docstring says."""
    rng = np.random.default_rng(2)
    hit = {"t": 0, "bootstrap": 0}
    for trial in range(500):
        x = rng.normal(size=3)
        for method in hit:
            low, high = seeds_interval(x, method=method, replicates=200, seed=trial)
            hit[method] += low <= 0 <= high
    assert 0.92 < hit["t"] / 500 < 0.98
    assert 0.65 < hit["bootstrap"] / 500 < 0.82
