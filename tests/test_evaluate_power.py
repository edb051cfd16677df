"""What would tell a difference: the numbers, the words, and what they are when nothing would."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from limbeck.evaluation.compare import Difference, decide
from limbeck.evaluation.power import Advice, Variance, detectable, more_of_both, more_samples, more_seeds


def difference(found: float, variance: Variance, **changes: object) -> Difference:
    half = variance.half_width(0.05)
    plain = {
        "model": "kd",
        "against": "erm",
        "metric": "worst_group",
        "group": "night",
        "value": 0.7 + found,
        "reference": 0.7,
        "difference": found,
        "low": found - half,
        "high": found + half,
        "p": variance.p(found),
        "adjusted_p": variance.p(found),
        "level": 0.95,
        "seeds": (5, 5),
        "samples": 500,
        "variance": variance,
        "deciding": (("night", 500),),
    }
    return Difference(**{**plain, **changes})  # type: ignore[arg-type]


VARIANCE = Variance(4e-4, 4.0, 6e-4, 499.0, 2e-4)

# Numbers --------------------------------------------------------------------------------------------------------------


def test_more_is_the_smallest_that_suffices() -> None:
    seeds = more_seeds(0.08, VARIANCE, 5)
    assert seeds is not None
    assert seeds > 0
    assert detectable(VARIANCE.scaled((5 + seeds) / 5, 1)) <= 0.08 < detectable(VARIANCE.scaled((4 + seeds) / 5, 1))
    samples = more_samples(0.085, VARIANCE, 500)
    assert samples is not None
    assert samples > 0
    assert detectable(VARIANCE.scaled(1, (500 + samples) / 500)) <= 0.085
    assert detectable(VARIANCE.scaled(1, (499 + samples) / 500)) > 0.085
    both = more_of_both(0.05, VARIANCE, 5, 500)
    assert both is not None
    grown = 1 + both[0] / 5
    assert both[1] == pytest.approx(500 * (grown - 1), abs=1)
    assert detectable(VARIANCE.scaled(grown, grown)) <= 0.05 < detectable(VARIANCE.scaled(grown - 0.2, grown - 0.2))


def test_more_knows_what_cannot_help() -> None:
    # The samples' own part remains however many seeds there are, and the seeds' part however many samples.
    variance = Variance(1e-3, 2.0, 1e-3, 999.0, 0.0)
    assert more_seeds(0.05, variance, 3) is None
    assert more_seeds(0.12, variance, 3) is not None
    assert more_samples(0.05, variance, 1000) is None
    assert more_of_both(0.05, variance, 3, 1000) is not None
    assert more_seeds(0.05, variance._replace(seeds=0.0), 1) is None
    assert more_of_both(0.05, variance._replace(seeds=0.0), 1, 1000) is None
    assert more_samples(0.0, variance, 1000) is None
    assert more_samples(0.1, variance, 0) is None


def test_an_allowance_asks_for_more_and_seeds_do_not_shrink_it() -> None:
    found = 0.9 * detectable(VARIANCE)
    for more, size in ((more_seeds, 5), (more_samples, 500)):
        plain, allowed = more(found, VARIANCE, size), more(found, VARIANCE, size, allowance=0.01)
        assert plain is not None
        assert allowed is not None
        assert allowed > plain
    # Seeds alone would tell this difference, but not where so much is given away; samples shrink what is.
    assert more_seeds(found, VARIANCE, 5, allowance=0.04) is None
    assert more_samples(found, VARIANCE, 500, allowance=0.02) is not None


def test_scaled_shrinks_each_source_by_its_own_number() -> None:
    variance = Variance(5e-4, 4.0, 7e-4, 99.0, 2e-4)
    more = variance.scaled(2.0, 4.0)
    assert more.interaction == pytest.approx(2e-4 / 8)
    assert more.seeds == pytest.approx(3e-4 / 2 + 2e-4 / 8)
    assert more.samples == pytest.approx(5e-4 / 4 + 2e-4 / 8)
    assert (more.seeds_freedom, more.samples_freedom) == (9, 399)
    assert variance.scaled(1, 1) == pytest.approx(variance)


def test_seeds_alone_agree_with_statsmodels() -> None:
    """With samples without end it is a t test over seeds, whose size statsmodels finds by the noncentral t."""
    for effect in (0.8, 1.0, 1.5):
        ours = more_seeds(effect, Variance(1.0 / 20, 19.0, 0.0, 1e9, 0.0), 20)
        n = math.ceil(TTestPower().solve_power(effect_size=effect, alpha=0.05, power=0.8))
        # Fewer seeds than there are is no advice to give.
        assert ours == max(n - 20, 0) or abs(20 + (ours or 0) - n) <= 1 or n < 20
    ours = more_seeds(0.5, Variance(1.0 / 4, 3.0, 0.0, 1e9, 0.0), 4)
    n = math.ceil(TTestPower().solve_power(effect_size=0.5, alpha=0.05, power=0.8))
    assert ours is not None
    assert abs(4 + ours - n) <= 1


def test_samples_alone_agree_with_the_normal_approximation() -> None:
    p = 0.2
    ours = more_samples(0.03, Variance(0.0, 1.0, p / 400, 399.0, 0.0), 400)
    n = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * p / 0.03**2
    assert ours is not None
    assert 400 + ours == pytest.approx(n, rel=0.005)


# Words ----------------------------------------------------------------------------------------------------------------


def advised(found: float, variance: Variance, **changes: object) -> str:
    advice = difference(found, variance, **changes).advice
    assert advice is not None
    json.dumps(advice.to_dict(), allow_nan=False)
    assert advice.to_dict()["sentence"] == advice.sentence()
    return advice.sentence()


def test_either_one_or_neither_would_tell() -> None:
    only_samples = advised(0.05, Variance(1e-5, 4.0, 9e-4, 499.0, 0.0))
    assert only_samples.startswith("about ")
    assert "more test samples of group 'night' would tell a difference of this size, no number of seeds alone" in (
        only_samples
    )
    only_seeds = advised(0.05, Variance(9e-4, 4.0, 1e-6, 499.0, 0.0))
    assert only_seeds.endswith("more seeds would tell a difference of this size, no number of test samples alone")
    neither = advised(0.05, Variance(1e-3, 4.0, 1e-3, 499.0, 0.0))
    assert neither.startswith("no number of seeds or test samples alone would tell a difference of this size, about ")
    assert neither.endswith("together would")
    both_ways = advised(0.05, Variance(3.5e-4, 4.0, 4e-4, 499.0, 3.45e-4))
    assert " or " in both_ways
    assert "alone" not in both_ways


def test_one_run_each_says_nothing_about_other_seeds() -> None:
    text = advised(0.02, Variance(0.0, 1.0, 4e-4, 499.0, 0.0), seeds=(1, 1))
    assert text.startswith("about ")
    assert "between these two runs; one run each says nothing about other seeds" in text


def test_what_does_not_matter_is_called_that() -> None:
    text = advised(0.0004, VARIANCE)
    assert text.startswith("a difference under a tenth of a point does not matter; one of ")
    advice = difference(0.0004, VARIANCE).advice
    assert advice is not None
    assert (advice.matters, advice.more_seeds, advice.more_samples, advice.both) == (False, None, None, None)
    assert f"{100 * detectable(VARIANCE):.1f} points" in text


def test_what_is_told_needs_no_advice() -> None:
    assert difference(0.3, VARIANCE).advice is None
    assert difference(math.nan, VARIANCE).advice is None


def test_groups_that_take_turns_are_all_named() -> None:
    variance = Variance(0.0, 1.0, 4e-4, 499.0, 0.0)
    advice = difference(0.035, variance, deciding=(("night", 500), ("rain", 100))).advice
    assert advice is not None
    assert advice.more_by_group["rain"] == pytest.approx(advice.more_by_group["night"] / 5, abs=1)
    assert advice.more_by_group["night"] == advice.more_samples
    assert "(and as many times more of 'rain', at times the worst)" in advice.sentence()
    several = Advice(True, 0.1, None, 40, dict.fromkeys("abcd", 40), None, "a", False)
    assert "of 'b' and 2 further groups, at times the worst" in several.sentence()
    assert "more test samples would" in advised(0.035, variance, metric="average", group=None, deciding=())


def test_advice_counts_the_other_comparisons() -> None:
    alone = difference(0.05, Variance(9e-4, 4.0, 1e-6, 499.0, 0.0))
    among = decide([alone] * 6)[0]
    assert alone.advice is not None
    assert among.advice is not None
    assert among.advice.more_seeds > alone.advice.more_seeds  # type: ignore[operator]
    assert among.advice.detectable > alone.advice.detectable


def test_selection_is_taken_off_before_advice_is_given() -> None:
    plain, given = (difference(0.05, VARIANCE, selection=selection).advice for selection in (0.0, 0.02))
    against = difference(0.05, VARIANCE, selection=-0.02).advice
    assert plain is not None
    assert given is not None
    assert against is not None
    assert given.detectable == pytest.approx(plain.detectable + 0.02)
    assert against.detectable == plain.detectable


@pytest.mark.parametrize("number", [1, 2, 99, 123, 4567])
def test_numbers_are_rounded_up_to_two_digits(number: int) -> None:
    text = Advice(True, 0.1, number, None, {}, None, None, False).sentence()
    shown = int(text.removeprefix("about ").split()[0].replace(",", ""))
    assert number <= shown <= 1.1 * number
    assert ("more seed " in text) == (number == 1)
    assert np.isclose(shown / 10 ** max(len(str(shown)) - 2, 0) % 1, 0)
