"""Resampling counts: the same distribution as resampling samples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from limbeck.errors import ConfigError, DataError
from limbeck.evaluation import (
    PairedCounts,
    bootstrap_counts,
    hierarchical_bootstrap,
    paired_bootstrap,
    percentile_interval,
)
from limbeck.evaluation import bootstrap as bootstrap_module
from limbeck.evaluation.bootstrap import accuracies, run_covariance

NAMES = ("north", "south", "east", "west")


def sample(
    n: int = 300, seeds: int = 1, seed: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Two models that share what is difficult; group 2 is absent, some samples have no known group."""
    rng = np.random.default_rng(seed)
    g = rng.choice([-1, 0, 1, 3], n, p=[0.05, 0.5, 0.3, 0.15])
    easy = rng.normal(1.0, 1.0, n) - 0.7 * (g == 3)
    a = easy + rng.normal(0.2, 0.7, (seeds, n)) > 0
    b = easy + rng.normal(0.0, 0.7, (seeds, n)) > 0
    return a, b, g


def test_counts_have_the_distribution_of_resampled_samples() -> None:
    """Against the sample bootstrap itself: each group's accuracy by Kolmogorov-Smirnov, and the average's moments."""
    a, _, g = sample()
    right, group = a[0][g >= 0], g[g >= 0]
    table = np.zeros((4, 2), np.int64)
    np.add.at(table, (group, right.astype(int)), 1)
    rng = np.random.default_rng(1)
    rows = rng.integers(len(right), size=(2000, len(right)))
    drawn = bootstrap_counts(table, 2000, seed=2)
    assert drawn.shape == (2000, 4, 2)
    assert (drawn.sum(axis=(1, 2)) == len(right)).all()
    assert (drawn[:, 2] == 0).all()
    for k in (0, 1, 3):
        here = group[rows] == k
        naive = (right[rows] & here).sum(axis=1) / here.sum(axis=1)
        ours = drawn[:, k, 1] / drawn[:, k].sum(axis=1)
        assert stats.ks_2samp(naive, ours).pvalue > 0.001
    naive_average, average = right[rows].mean(axis=1), drawn[:, :, 1].sum(axis=1) / len(right)
    assert average.mean() == pytest.approx(naive_average.mean(), abs=0.003)
    assert average.std() == pytest.approx(naive_average.std(), rel=0.08)


def test_stratified_keeps_group_sizes_and_same_seed_same_draw() -> None:
    table = np.array([[5, 20], [0, 0], [1, 0]])
    drawn = bootstrap_counts(table, 500, seed=3, stratified=True)
    assert (drawn.sum(axis=2) == table.sum(axis=1)).all()
    assert drawn[:, 0, 0].mean() == pytest.approx(5, abs=0.5)
    np.testing.assert_array_equal(drawn, bootstrap_counts(table, 500, seed=3, stratified=True))
    assert (drawn != bootstrap_counts(table, 500, seed=4, stratified=True)).any()
    assert (bootstrap_counts(np.zeros((2, 3), int), 4) == 0).all()
    assert bootstrap_counts(np.zeros((0, 2), int), 4).shape == (4, 0, 2)


def test_percentile_interval_leaves_out_missing_replicates() -> None:
    values = np.arange(1001.0)[:, None] * np.ones(3)
    values[::2, 1] = np.nan
    values[:, 2] = np.nan
    low, high = percentile_interval(values)
    np.testing.assert_allclose([low[0], high[0]], [25, 975])
    np.testing.assert_allclose([low[1], high[1]], np.quantile(np.arange(1.0, 1001, 2), [0.025, 0.975]))
    assert np.isnan([low[2], high[2]]).all()
    np.testing.assert_allclose(percentile_interval(values[:, 0]), [25, 975])


def test_wrong_use_is_refused() -> None:
    with pytest.raises(DataError, match="none negative"):
        bootstrap_counts([[1, -1]])
    with pytest.raises(DataError, match="expected integers"):
        bootstrap_counts([[0.5, 1]])
    with pytest.raises(ConfigError, match="replicates"):
        bootstrap_counts([[1, 1]], 0)
    a, b, g = sample()
    with pytest.raises(DataError, match="right_a: expected bool"):
        PairedCounts.from_correct(a.astype(int), b, g, NAMES)
    with pytest.raises(DataError, match="lengths differ"):
        PairedCounts.from_correct(a[:, :-1], b, g, NAMES)
    with pytest.raises(DataError, match="group_names: required"):
        PairedCounts.from_correct(a, b, g)
    with pytest.raises(DataError, match="groups: 3 of sample"):
        PairedCounts.from_correct(a, b, g, NAMES[:3])
    several = PairedCounts.from_correct(*sample(seeds=3), NAMES)
    with pytest.raises(DataError, match="one seed of each"):
        _ = several.table


def test_table_of_one_seed() -> None:
    a, b, g = sample()
    table = PairedCounts.from_correct(a[0], b[0], g, NAMES).table
    for row, group in enumerate((0, 1, 2, 3, -1)):
        here = g == group
        expected = [(here & x & y).sum() for x, y in ((a[0], b[0]), (a[0], ~b[0]), (~a[0], b[0]), (~a[0], ~b[0]))]
        np.testing.assert_array_equal(table[row], expected)


@pytest.mark.parametrize("seeds", [1, 3, 40])
def test_patterns_lose_nothing(seeds: int) -> None:
    """Also for 80 right-or-wrong bits, more than any integer holds."""
    a, b, g = sample(seeds=seeds)
    paired = PairedCounts.from_correct(a, b, g, NAMES)
    whole = np.concatenate([np.where(g < 0, 4, g)[None], a, b]).T.astype(int)
    rows, count = np.unique(whole, axis=0, return_counts=True)
    ours = np.concatenate([paired.group[:, None], paired.right_a, paired.right_b], axis=1).astype(int)
    order = np.lexsort(ours.T[::-1])
    np.testing.assert_array_equal(ours[order], rows)
    np.testing.assert_array_equal(paired.count[order], count)
    assert (np.diff(paired.group) >= 0).all()
    assert paired.samples == len(g)
    found_a, found_b = accuracies(paired)
    for found, right in ((found_a, a), (found_b, b)):
        np.testing.assert_allclose(found.average, right.mean(axis=1))
        for k in (0, 1, 3):
            np.testing.assert_allclose(found.groups[:, k], right[:, g == k].mean(axis=1))
        assert np.isnan(found.groups[:, 2]).all()
        np.testing.assert_allclose(found.worst, np.nanmin(found.groups, axis=1))


def test_paired_bootstrap_against_resampling_samples() -> None:
    a, b, g = sample()
    paired = PairedCounts.from_correct(a, b, g, NAMES)
    ours_a, ours_b = paired_bootstrap(paired, 3000, seed=1)
    rng = np.random.default_rng(5)
    naive = []
    for _ in range(1500):
        rows = rng.integers(len(g), size=len(g))
        x, y, group = a[0][rows], b[0][rows], g[rows]
        each = [[z[group == k].mean() for k in (0, 1, 3)] for z in (x, y)]
        naive.append([x.mean() - y.mean(), min(each[0]) - min(each[1]), each[0][2] - each[1][2]])
    ours = np.stack(
        [
            (ours_a.average - ours_b.average)[:, 0],
            (ours_a.worst - ours_b.worst)[:, 0],
            (ours_a.groups - ours_b.groups)[:, 0, 3],
        ],
        axis=1,
    )
    for mine, theirs in zip(ours.T, np.array(naive).T, strict=True):
        assert mine.mean() == pytest.approx(theirs.mean(), abs=4 * theirs.std() / 1500**0.5)
        assert mine.std() == pytest.approx(theirs.std(), rel=0.08)


def test_both_models_and_all_seeds_see_the_same_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    a, _, g = sample(seeds=3)
    twin = PairedCounts.from_correct(a, a, g, NAMES)
    for stratified in (False, True):
        x, y = paired_bootstrap(twin, 50, stratified=stratified)
        np.testing.assert_array_equal(x.average, y.average)
        np.testing.assert_array_equal(x.worst, y.worst)
    same_seed = PairedCounts.from_correct(np.stack([a[0], a[0]]), a[0], g, NAMES)
    x, _ = paired_bootstrap(same_seed, 50)
    np.testing.assert_array_equal(x.average[:, 0], x.average[:, 1])
    assert x.average.std() > 0
    # Memory is bounded by drawing in parts, which keeps the shape.
    monkeypatch.setattr(bootstrap_module, "_CELLS_AT_A_TIME", 100)
    assert paired_bootstrap(same_seed, 50)[0].groups.shape == (50, 2, 4)


def test_covariance_of_runs_is_that_of_resampled_samples() -> None:
    """With the half samples added as samples, the closed form is the bootstrap's covariance."""
    a, b, g = sample(seeds=2)
    paired = PairedCounts.from_correct(a, b, g, NAMES)
    covariance = run_covariance(paired)
    assert covariance.shape == (4, 4, 4)
    assert (covariance[2] == 0).all()
    for k in (0, 1, 3):
        rows = np.concatenate([a, b])[:, g == k].astype(float)
        outcomes = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], float).T
        doubled = np.concatenate([rows, rows, outcomes], axis=1)
        n = rows.shape[1] + 2
        np.testing.assert_allclose(covariance[k], np.cov(doubled, bias=True) / n, rtol=1e-12)


def test_a_group_without_disagreement_keeps_some_doubt() -> None:
    right = np.ones(20, bool)
    covariance = run_covariance(PairedCounts.from_correct(right, right, np.zeros(20, np.int64), ["all"]))[0]
    contrast = np.array([1, -1])
    # Agresti and Min: 20 both, each outcome 0.5 more: differences of +-1 with share 0.5 / 22 each.
    assert contrast @ covariance @ contrast == pytest.approx(1 / 22 / 22)


def test_hierarchical_bootstrap_resamples_both_levels() -> None:
    """Its variance is the pigeonhole bootstrap's (Owen 2007): seeds + samples + interaction of the observed table."""
    rng = np.random.default_rng(0)
    seeds, n = 12, 400
    level = rng.normal(0, 0.05, (seeds, 1))
    a, b = rng.random((seeds, n)) < 0.8 + level, rng.random((seeds, n)) < 0.75
    difference = hierarchical_bootstrap(PairedCounts.from_correct(a, b), 4000, seed=1)
    d = a.astype(float) - b
    by_seed, by_sample = d.mean(axis=1).var() / seeds, d.mean(axis=0).var() / n
    within = (d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean()).var() / (seeds * n)
    assert difference.average.shape == (4000,)
    assert difference.groups.shape == (4000, 1)
    assert difference.average.mean() == pytest.approx(d.mean(), abs=0.002)
    assert difference.average.var() == pytest.approx(by_seed + by_sample + within, rel=0.1)
    np.testing.assert_array_equal(difference.average, difference.worst)
    unpaired = hierarchical_bootstrap(PairedCounts.from_correct(a, b[:1]), 500, paired_seeds=False)
    assert unpaired.average.std() > 0
    with pytest.raises(ConfigError, match="12 seeds and B 1"):
        hierarchical_bootstrap(PairedCounts.from_correct(a, b[:1]), 10)
