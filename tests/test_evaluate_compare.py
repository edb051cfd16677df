"""Is A better than B: against statsmodels and SciPy, and by simulating pilots with and without a difference."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from limbeck.errors import ConfigError, DataError
from limbeck.evaluation import (
    PairedCounts,
    benjamini_hochberg,
    bonferroni,
    decide,
    holm,
    mcnemar,
    paired_bootstrap,
    verdict,
)
from limbeck.evaluation.bootstrap import redraw_worst
from limbeck.evaluation.compare import Difference, compare
from limbeck.evaluation.power import Variance, more_seeds

Pair = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]


def pilot(
    rng: np.random.Generator,
    sizes: Sequence[int] = (300, 200, 60),
    base: Sequence[float] = (2.5, 2.0, 0.5),
    *,
    seeds: int = 3,
    spread: float = 0.3,
    better: float = 0.0,
) -> Pair:
    """Two recipes on one test set: shared difficulty of samples, a luck of its own for each run in each group."""
    g = np.repeat(np.arange(len(sizes)), sizes)
    easy = np.asarray(base)[g] + rng.normal(0, 2, len(g))

    def runs(shift: float) -> NDArray[np.bool_]:
        luck = rng.normal(0, spread, (seeds, len(sizes)))[:, g]
        return np.asarray(rng.random((seeds, len(g))) < 1 / (1 + np.exp(-(easy + luck + shift))))

    return runs(better), runs(0.0), g


def names(pair: Pair) -> list[str]:
    return [f"g{k}" for k in range(pair[2].max() + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Tests of counts


def test_mcnemar_exact_against_statsmodels_and_mid_p_against_its_definition() -> None:
    cases = [(0, 0), (0, 1), (5, 0), (3, 3), (4, 9), (120, 81), (3000, 3100)]
    a, b = np.array(cases).T
    exact, mid = mcnemar(a, b, "exact"), mcnemar(a, b)
    for i, (x, y) in enumerate(cases):
        assert exact[i] == pytest.approx(statsmodels_mcnemar([[0, x], [y, 0]], exact=True).pvalue, rel=1e-9)
        n, k = x + y, min(x, y)
        expected = min(1.0, 2 * stats.binom.cdf(k, n, 0.5) - stats.binom.pmf(k, n, 0.5))
        assert mid[i] == pytest.approx(expected, rel=1e-9)
    np.testing.assert_array_equal(mcnemar(b, a), mid)
    for bad in (-1, 1.5):
        with pytest.raises(DataError, match="none negative"):
            mcnemar(bad, 2)
    with pytest.raises(ConfigError, match="did you mean 'mid-p'"):
        mcnemar(1, 2, "midp")  # type: ignore[arg-type]


def test_corrections_against_statsmodels() -> None:
    rng = np.random.default_rng(0)
    cases = [[0.0], [1.0, 1.0], [0.02, 0.02, 0.02], [0.0, 1.0, 0.5, 0.5]]
    for p in [*cases, *(rng.random(m) ** rng.integers(1, 6) for m in (1, 2, 3, 5, 8, 12, 40))]:
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
        np.testing.assert_allclose(bonferroni(p), multipletests(p, method="bonferroni")[1], rtol=1e-12)
        np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1], rtol=1e-12)


def test_corrections_do_not_count_what_was_not_measured() -> None:
    p = np.array([0.01, np.nan, 0.04])
    np.testing.assert_allclose(holm(p), [0.02, np.nan, 0.04])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, np.nan, 0.04])
    assert holm([]).size == 0
    with pytest.raises(DataError, match="probabilities"):
        holm([1.2])


def test_verdict_words() -> None:
    assert verdict(0.1, 0.05) == "better"
    assert verdict(-0.1, 0.049) == "worse"
    assert verdict(0.1, 0.0501) == "not distinguishable"
    assert verdict(0.1, 0.02, level=0.99) == "not distinguishable"
    assert verdict(math.nan, math.nan) == "not measured"


# ---------------------------------------------------------------------------------------------------------------------
# Variance and its interval


def test_seeds_alone_are_students_t() -> None:
    d = np.array([0.02, 0.05, 0.01, 0.04])
    variance = Variance(float(d.var(ddof=1)) / 4, 3.0, 0.0, 100.0, 0.0)
    assert variance.p(float(d.mean())) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-9)
    low, _ = stats.t.interval(0.95, 3, loc=d.mean(), scale=stats.sem(d))
    assert variance.half_width(0.05) == pytest.approx(d.mean() - low, rel=1e-9)


def test_p_is_where_the_interval_reaches_zero() -> None:
    variance = Variance(3e-4, 2.0, 5e-4, 500.0, 1e-4)
    for difference in (0.0001, 0.001, 0.03, 0.2, 0.9):
        p = variance.p(difference)
        assert variance.half_width(p) == pytest.approx(difference, rel=1e-6)
        assert variance.p(-difference) == p
    assert 0 < Variance(0.0, 1.0, 1e-12, 1e6, 0.0).p(1.0) <= 1e-299
    assert variance.p(0.0) == 1.0
    assert math.isnan(variance.p(math.nan))


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("freedom", [1, 2, 4])
def test_interval_of_two_sources_never_falls_below_its_level(share: float, freedom: int) -> None:
    """Seeds and samples with known true shares of the variance; the seeds' is estimated from very few."""
    rng = np.random.default_rng(0)
    repeats = 3000
    seeds = share * rng.chisquare(freedom, repeats) / freedom
    error = np.abs(rng.normal(0, 1, repeats))
    covered = [
        Variance(s, freedom, 1 - share, 400, 0.0).half_width(0.05) >= e for s, e in zip(seeds, error, strict=True)
    ]
    assert np.mean(covered) >= 0.95 - 3 * (0.05 * 0.95 / repeats) ** 0.5


def test_closed_form_agrees_with_the_bootstrap() -> None:
    """Samples' and interaction part of the average: formula against 5,000 resampled test sets."""
    rng = np.random.default_rng(0)
    for seeds in (1, 4):
        a, b, g = pilot(rng, (2000, 1000), (1.0, 0.0), seeds=seeds)
        found = compare(a, b, g, group_names=["g0", "g1"], replicates=10_000)
        x, y = paired_bootstrap(PairedCounts.from_correct(a, b, g, ["g0", "g1"]), 5_000, seed=1)
        d = x.average - y.average
        assert found.average.variance.samples == pytest.approx(d.mean(axis=1).var(), rel=0.05)
        # One worst group by far: its resampled minimum is that group's mean, which has a closed form too.
        worst, group = found.worst_group.variance, found.groups[1].variance
        assert worst.samples == pytest.approx(group.samples, rel=0.05)
        assert worst.interaction == pytest.approx(group.interaction, rel=0.06, abs=1e-12)
        if seeds > 1:
            expected = (d - d.mean(axis=1, keepdims=True)).var(axis=0).sum() / (seeds * (seeds - 1))
            assert found.average.variance.interaction == pytest.approx(expected, rel=0.05)
            assert found.average.variance.seeds == pytest.approx((a.mean(1) - b.mean(1)).var(ddof=1) / seeds)


def test_the_seeds_own_level_is_not_interaction() -> None:
    """One run right everywhere, one nowhere: all of the variance is the seeds'. By halves: all is interaction."""
    n = 1000
    none = np.zeros((2, n), bool)
    found = compare(np.repeat([[True], [False]], n, axis=1), none).average.variance
    assert found.interaction == pytest.approx(0, abs=1e-12)
    assert found.seeds == pytest.approx(0.25)
    half = np.arange(n) < n // 2
    found = compare(np.stack([half, ~half]), none).average.variance
    assert found.interaction == pytest.approx(0.25 / n)
    assert found.seeds == 0


def test_variance_estimates_the_spread_of_repeated_pilots() -> None:
    rng = np.random.default_rng(3)
    for paired_seeds in (True, False):
        found = []
        for _ in range(100):
            pair = pilot(rng, seeds=4)
            found.append(compare(*pair, group_names=names(pair), paired_seeds=paired_seeds, replicates=100).average)
        spread = np.var([f.difference for f in found])
        assert np.mean([f.variance.total for f in found]) == pytest.approx(spread, rel=0.35)


# ---------------------------------------------------------------------------------------------------------------------
# compare


def test_one_run_each_follows_agresti_min_and_mcnemar() -> None:
    rng = np.random.default_rng(1)
    a, b, g = pilot(rng, seeds=1, better=0.8)
    found = compare(a[0], b[0], g, group_names=["g0", "g1", "g2"], names=("kd", "erm"), correction="none")
    for difference, here in [(found.average, g >= 0), *zip(found.groups, (g == 0, g == 1, g == 2), strict=True)]:
        x, y, n = a[0][here], b[0][here], here.sum()
        only_a, only_b = (x & ~y).sum(), (~x & y).sum()
        assert difference.difference == pytest.approx((only_a - only_b) / n, abs=1e-12)
        p1, p2 = (only_a + 0.5) / (n + 2), (only_b + 0.5) / (n + 2)
        error = ((p1 + p2 - (p1 - p2) ** 2) / (n + 2)) ** 0.5
        assert difference.variance.total == pytest.approx(error**2, rel=1e-9)
        half = stats.t.ppf(0.975, n - 1) * error
        assert (difference.low, difference.high) == pytest.approx(
            (difference.difference - half, difference.difference + half), rel=1e-9
        )
        wald = 2 * stats.t.sf(abs(difference.difference) / error, n - 1)
        assert difference.p == pytest.approx(max(wald, float(mcnemar(only_a, only_b))), rel=1e-6)
    assert (found.average.model, found.average.against) == ("kd", "erm")
    assert found.worst_group.value == min((a[0][g == k]).mean() for k in range(3))
    assert found.worst_group.group == "g2"


def test_swapping_the_models_turns_the_sign_only() -> None:
    rng = np.random.default_rng(2)
    a, b, g = pilot(rng, better=0.5)
    one, two = (compare(x, y, g, group_names=["g0", "g1", "g2"]) for x, y in ((a, b), (b, a)))
    for x, y in zip((one.average, *one.groups), (two.average, *two.groups), strict=True):
        assert x.difference == pytest.approx(-y.difference, abs=1e-15)
        assert x.p == pytest.approx(y.p)
    assert one.worst_group.difference == pytest.approx(-two.worst_group.difference)
    assert one.worst_group.p == pytest.approx(two.worst_group.p, abs=0.05)


def test_identical_models_are_not_distinguishable() -> None:
    rng = np.random.default_rng(4)
    for seeds in (1, 3):
        a, _, g = pilot(rng, seeds=seeds)
        found = compare(a, a.copy(), g, group_names=["g0", "g1", "g2"])
        for difference in (found.average, found.worst_group, *found.groups):
            assert difference.difference == 0
            assert difference.p == 1
            assert difference.verdict == "not distinguishable"
            assert difference.low < 0 < difference.high
            assert difference.advice is not None
            assert (difference.advice.more_seeds, difference.advice.more_samples) == (None, None)
            assert "a difference under a tenth of a point does not matter" in difference.sentence()


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_lucky_sample_is_no_evidence(seeds: int) -> None:
    """The smallest groups, always right under A and always wrong under B: certainty must not come from size 1."""
    g = np.array([0] * 100 + [1])
    a, b = np.ones((seeds, 101), bool), np.ones((seeds, 101), bool)
    b[:, -1] = False
    found = compare(a, b, g, group_names=["big", "single"], minimum=1)
    assert found.groups[1].difference == 1
    assert found.groups[1].verdict == "not distinguishable"
    assert found.worst_group.verdict == "not distinguishable"


def test_absent_small_and_unknown_groups() -> None:
    rng = np.random.default_rng(5)
    a, b, g = pilot(rng, (200, 5, 150), (2, -3, 1))
    g = np.where(g == 2, 3, g)
    g[:20] = -1
    found = compare(a, b, g, group_names=["big", "small", "absent", "other"])
    absent = found.groups[2]
    assert absent.verdict == "not measured"
    assert math.isnan(absent.p)
    assert "no sample" in absent.sentence()
    assert {d.comparisons for d in found.groups} == {3}
    # The small group is all wrong, yet not the worst; the unknown samples count in the average.
    assert found.worst_group.group == "other"
    assert found.worst_group.value == pytest.approx(min(a[:, g == k].mean() for k in (0, 3)), abs=0.05)
    assert found.average.samples == len(g)
    assert found.average.value == pytest.approx(a.mean())
    nothing = compare(a, b, g, group_names=["big", "small", "absent", "other"], minimum=10_000).worst_group
    assert nothing.verdict == "not measured"
    assert nothing.group is None
    json.dumps([d.to_dict() for d in (nothing, absent, found.average)], allow_nan=False)


def test_a_teacher_of_one_run_beside_several_seeds() -> None:
    rng = np.random.default_rng(6)
    a, b, g = pilot(rng, seeds=5)
    found = compare(a, b[0], g, group_names=["g0", "g1", "g2"]).average
    assert found.seeds == (5, 1)
    assert found.variance.seeds == pytest.approx(a.mean(axis=1).var(ddof=1) / 5)
    assert found.variance.seeds_freedom == 4
    assert "5 seeds against 1" in found.sentence()
    with pytest.raises(ConfigError, match="A has 5 seeds and B 1"):
        compare(a, b[0], g, group_names=["g0", "g1", "g2"], paired_seeds=True)


def test_without_groups_the_worst_group_is_all() -> None:
    rng = np.random.default_rng(7)
    a, b, _ = pilot(rng)
    found = compare(a, b)
    assert found.worst_group.difference == pytest.approx(found.average.difference)
    assert [d.group for d in found.groups] == ["all"]


def test_decide_corrects_over_recipes() -> None:
    rng = np.random.default_rng(8)
    asked = [
        compare(*pilot(rng, seeds=1, better=shift), group_names=["g0", "g1", "g2"]).average
        for shift in (0.0, 0.35, 0.5, 1.0)
    ]
    decided = decide(asked)
    np.testing.assert_allclose([d.adjusted_p for d in decided], holm([d.p for d in asked]))
    assert {d.comparisons for d in decided} == {4}
    assert all(d.p == before.p for d, before in zip(decided, asked, strict=True))
    assert decided[3].verdict == "better"
    assert "corrected for 4 comparisons" in decided[3].sentence()
    assert [d.adjusted_p for d in decide(asked, "none")] == [d.p for d in asked]
    assert [(d.low, d.high) for d in decide(asked, "none")] == [d.alone for d in asked]
    with pytest.raises(ConfigError, match="did you mean 'holm'"):
        decide(asked, "holms")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="level"):
        compare(*pilot(rng), group_names=["g0", "g1", "g2"], level=95)


@pytest.mark.parametrize("correction", ["holm", "bonferroni", "benjamini_hochberg", "none"])
def test_an_interval_leaves_out_0_where_the_difference_is_told(correction: str) -> None:
    rng = np.random.default_rng(20)
    told = 0
    for shift in (0.0, 1.0, 2.0):
        pairs = [pilot(rng, (300, 200), (0.5, 0), seeds=5, spread=0.1, better=shift * n / 4) for n in range(5)]
        found = [compare(*pair, group_names=["g0", "g1"], replicates=100) for pair in pairs]
        for kind in ("average", "worst_group"):
            asked = [getattr(one, kind) for one in found]
            for before, d in zip(asked, decide(asked, correction), strict=True):  # type: ignore[arg-type]
                assert (d.verdict == "not distinguishable") == (d.low <= 0 <= d.high)
                assert d.low <= before.low + 1e-12
                assert d.high >= before.high - 1e-12
                assert d.alone == pytest.approx((before.low, before.high))
                told += d.verdict != "not distinguishable"
    assert told > 5


def test_bonferronis_intervals_are_those_of_the_corrected_level() -> None:
    rng = np.random.default_rng(21)
    asked = [compare(*pilot(rng, seeds=4), group_names=["g0", "g1", "g2"], replicates=50).average for _ in range(4)]
    for d in decide(asked, "bonferroni"):
        # The same interval at level 1 - 0.05 / 4, each source with Student's t of its own.
        v = d.variance
        t_seeds, t_samples = stats.t.ppf(1 - 0.05 / 8, [v.seeds_freedom, v.samples_freedom])
        half = math.sqrt(v.seeds * t_seeds**2 + (v.total - v.seeds) * t_samples**2)
        assert (d.low, d.high) == pytest.approx((d.difference - half, d.difference + half), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# The worst of several was picked for being the worst


def test_the_bias_of_the_worst_of_tied_groups_is_known() -> None:
    """Four tied groups: the minimum of four normals lies 1.03 standard errors low (order statistics' mean)."""
    rng = np.random.default_rng(0)
    error, expected = 0.03, -1.02938
    found = []
    for seed in range(200):
        accuracy = 0.8 + error * rng.standard_normal((4, 1))
        found.append(redraw_worst(accuracy, np.full((4, 1, 1), error**2), 400, seed).bias[0])
    assert np.mean(found) == pytest.approx(expected * error, rel=0.1)


def test_a_group_that_is_clearly_the_worst_has_no_bias() -> None:
    covariance = np.full((3, 2, 2), 1e-4) + np.eye(2) * 1e-4
    accuracy = np.array([[0.6, 0.61], [0.9, 0.88], [0.95, 0.9]])
    redrawn = redraw_worst(accuracy, covariance, 500)
    assert redrawn.worst.shape == (500, 2)
    np.testing.assert_allclose(redrawn.bias, 0, atol=1e-12)
    np.testing.assert_array_equal(redrawn.times, [1000, 0, 0])
    np.testing.assert_allclose(np.cov(redrawn.worst, rowvar=False), covariance[0], rtol=0.2)
    np.testing.assert_array_equal(redraw_worst(accuracy, covariance, 500).worst, redrawn.worst)


def equal_against_one_bad(rng: np.random.Generator, seeds: int = 5) -> Pair:
    """Eight groups of 100: A is right in 70 % of each, B in 70 % of one and 90 % of the others."""
    g = np.repeat(np.arange(8), 100)
    level = np.where(g == 0, 0.7, 0.9)
    shared = rng.random(len(g))

    def runs(level: NDArray[np.float64]) -> NDArray[np.bool_]:
        # Three samples in four are as difficult for every run.
        own = np.where(rng.random((seeds, len(g))) < 0.75, shared, rng.random((seeds, len(g))))
        return np.asarray(own < level)

    return runs(np.full(len(g), 0.7)), runs(level), g


def test_a_model_with_equal_groups_is_not_called_worse_for_it() -> None:
    """Both are right in 70 % of their worst group; the worst of A's eight measured accuracies is picked from eight."""
    rng = np.random.default_rng(13)
    covered = without = 0
    for trial in range(100):
        d = compare(*equal_against_one_bad(rng), group_names=list("abcdefgh"), replicates=200, seed=trial).worst_group
        assert d.selection < 0
        covered += d.low <= 0 <= d.high
        half = d.variance.half_width(0.05)
        without += d.difference - half <= 0 <= d.difference + half
    assert covered / 100 >= 0.92
    assert without / 100 < 0.88


def test_selection_counts_against_a_claim_only() -> None:
    rng = np.random.default_rng(14)
    a, b, g = equal_against_one_bad(rng)
    d = compare(a, b, g, group_names=list("abcdefgh"), replicates=200).worst_group
    half = d.variance.half_width(0.05)
    assert (d.low, d.high) == pytest.approx((d.difference - half, d.difference + half - d.selection))
    # A, whom the selection wrongs, is better in truth: the test does not add what was lost.
    better = compare(a | (rng.random(a.shape) < 0.5), b, g, group_names=list("abcdefgh"), replicates=200).worst_group
    assert better.selection < 0 < better.difference
    assert better.p == pytest.approx(better.variance.p(better.difference))


def test_sentences_say_what_was_measured() -> None:
    rng = np.random.default_rng(9)
    pair = pilot(rng, (2000, 1000, 500), seeds=5, spread=0.1, better=1.0)
    found = compare(*pair, group_names=names(pair), names=("dett", "erm"))
    assert found.worst_group.sentence().startswith("dett is better than erm in the worst group: +")
    assert set(found.better_off) == {"g0", "g1", "g2"}
    assert found.worse_off == ()
    assert str(found).splitlines()[-1] == "better off: g0, g1, g2"
    d = found.worst_group
    assert f"({100 * d.low:+.1f} to {100 * d.high:+.1f})" in d.sentence()
    assert "5 seeds, 500 samples" in d.sentence()
    weak = compare(*pilot(rng, seeds=5, spread=0.1, better=0.15), group_names=names(pair), names=("kd", "erm"))
    text = weak.worst_group.sentence()
    assert "not distinguishable in the worst group at this size" in text
    plain = weak.worst_group.to_dict()
    assert plain["verdict"] == "not distinguishable"
    json.dumps(weak.to_list(), allow_nan=False)


def test_the_advice_is_right() -> None:
    """Pilots of the advised size do tell the difference about four times in five."""
    rng = np.random.default_rng(1)
    sizes, base, shift = (200, 200, 200), (2.0, 2.0, 1.0), 0.5

    def runs(seeds: int, repeats: int) -> list[Difference]:
        return [
            compare(
                *pilot(rng, sizes, base, seeds=seeds, spread=0.3, better=shift),
                group_names=["g0", "g1", "g2"],
                replicates=100,
            ).worst_group
            for _ in range(repeats)
        ]

    first = runs(4, 50)
    variance = Variance(*np.mean([d.variance for d in first], axis=0))
    difference = float(np.mean([d.difference for d in first]))
    more = more_seeds(difference, variance, 4)
    assert more is not None
    assert 2 <= more <= 12
    told = np.mean([d.p <= 0.05 for d in runs(4 + more, 80)])
    assert np.mean([d.p <= 0.05 for d in first]) < 0.6 < told < 0.95


# ---------------------------------------------------------------------------------------------------------------------
# Simulated pilots

SCENARIOS = [
    ("one run each", {"seeds": 1, "spread": 0.0}),
    ("three seeds", {"seeds": 3, "spread": 0.4}),
    ("two seeds", {"seeds": 2, "spread": 0.3}),
    ("three seeds, tied groups", {"seeds": 3, "spread": 0.3, "sizes": (150,) * 4, "base": (1.5,) * 4}),
    ("one run each, tiny groups", {"seeds": 1, "spread": 0.0, "sizes": (100, 30, 12), "base": (3.0, 2.0, 2.0)}),
    ("one run each, one group", {"seeds": 1, "spread": 0.0, "sizes": (200,), "base": (1.0,)}),
]


def false_claims(options: dict[str, object], repeats: int) -> dict[str, float]:
    """Share of simulated pilots without any difference that claim one."""
    rng = np.random.default_rng(11)
    claims = {"better on average": 0, "average": 0, "better in the worst group": 0, "worst group": 0, "any group": 0}
    for trial in range(repeats):
        pair = pilot(rng, **options)  # type: ignore[arg-type]
        found = compare(*pair, group_names=names(pair), replicates=150, seed=trial)
        average, worst = found.average.verdict, found.worst_group.verdict
        claims["better on average"] += average == "better"
        claims["average"] += average != "not distinguishable"
        claims["better in the worst group"] += worst == "better"
        claims["worst group"] += worst != "not distinguishable"
        claims["any group"] += bool(found.better_off or found.worse_off)
    return {name: count / repeats for name, count in claims.items()}


def check_false_claims(options: dict[str, object], repeats: int) -> None:
    for name, share in false_claims(options, repeats).items():
        nominal = 0.025 if name.startswith("better") else 0.05
        assert share <= nominal + 3 * (nominal * (1 - nominal) / repeats) ** 0.5, name


@pytest.mark.parametrize("options", [s[1] for s in SCENARIOS], ids=[s[0] for s in SCENARIOS])
def test_without_a_difference_claims_stay_at_their_rate(options: dict[str, object]) -> None:
    check_false_claims(options, 100)


@pytest.mark.slow
@pytest.mark.parametrize("options", [s[1] for s in SCENARIOS], ids=[s[0] for s in SCENARIOS])
def test_without_a_difference_claims_stay_at_their_rate_in_twelve_thousand_pilots(options: dict[str, object]) -> None:
    check_false_claims(options, 2_000)


def test_a_real_difference_is_found_and_its_interval_covers() -> None:
    """Group accuracies of each run are drawn about known means, so that the true differences are known."""
    rng = np.random.default_rng(12)
    sizes, mean = np.array([800, 500, 300]), np.array([0.85, 0.8, 0.55])
    g = np.repeat(np.arange(3), sizes)
    repeats, hits, told = 150, np.zeros(2), np.zeros(2)
    for trial in range(repeats):
        u = rng.random(len(g))

        def runs(shift: float, shared: NDArray[np.float64] = u) -> NDArray[np.bool_]:
            level = (mean + shift + rng.normal(0, 0.015, (4, 3)))[:, g]
            # Half of the samples' luck is the sample's own: the same for every run of both recipes.
            own = rng.random((4, len(g)))
            return np.asarray(np.where(rng.random(len(g)) < 0.5, shared, own) < level)

        found = compare(runs(0.08), runs(0.0), g, group_names=["g0", "g1", "g2"], replicates=150, seed=trial)
        for i, d in enumerate((found.average, found.worst_group)):
            hits[i] += d.low <= 0.08 <= d.high
            told[i] += d.verdict == "better"
            assert d.verdict != "worse"
    assert (hits / repeats >= 0.92).all()
    assert told[0] / repeats > 0.9
    assert told[1] / repeats > 0.6
