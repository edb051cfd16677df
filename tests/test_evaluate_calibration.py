"""Likelihood and calibration: against scikit-learn and plain loops, with extreme logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import log_softmax as scipy_log_softmax
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from limbeck.errors import ConfigError, DataError
from limbeck.evaluation import (
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    group_calibration_error,
    log_softmax,
    negative_log_likelihood,
    score_samples,
)
from limbeck.evaluation import calibration as calibration_module
from limbeck.evaluation.calibration import group_means, kind_of, log_probabilities


def sample(n: int = 600, classes: int = 4, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    z = rng.normal(0, 2, (n, classes))
    z[np.arange(n), y] += 1.5
    return z, y


def loop_ece(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int) -> float:
    """Guo et al. 2017, word for word."""
    error = 0.0
    for b in range(bins):
        here = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if here.any():
            error += here.mean() * abs(correct[here].mean() - confidence[here].mean())
    return error


def test_against_scikit_learn() -> None:
    z, y = sample()
    p = softmax(z, axis=1)
    assert negative_log_likelihood(z, y) == pytest.approx(log_loss(y, p), rel=1e-12)
    assert negative_log_likelihood(p, y) == pytest.approx(log_loss(y, p), rel=1e-12)
    expected = brier_score_loss(y, p, scale_by_half=False)
    assert brier_score(z, y) == pytest.approx(expected, rel=1e-12)
    assert brier_score(p, y) == pytest.approx(expected, rel=1e-12)


def test_two_classes_brier_is_twice_the_binary_one() -> None:
    z, y = sample(classes=2)
    p = softmax(z, axis=1)
    assert brier_score(p, y) == pytest.approx(2 * np.mean((p[:, 1] - y) ** 2), rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1.7e308, 1.7e308))
)
def test_log_softmax_is_finite_and_normalised_for_every_finite_logit(z: NDArray[np.float64]) -> None:
    log_p = log_softmax(z)
    assert np.isfinite(log_p).all()
    assert (log_p <= 0).all()
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-12)
    if np.abs(z).max() < 1e6:
        np.testing.assert_allclose(log_p, scipy_log_softmax(z, axis=1), rtol=1e-9, atol=1e-9)


def test_extreme_logits() -> None:
    z = np.array([[1e308, -1e308], [1e4, 0.0], [0.0, 1e4], [88.0, -88.0]])
    y = np.array([1, 0, 0, 1])
    scores = score_samples(z, y)
    assert np.isfinite(scores.nll).all()
    np.testing.assert_allclose(scores.nll[1:], [0.0, 1e4, 176.0])
    np.testing.assert_allclose(scores.brier, [2, 0, 2, 2])
    assert math.isfinite(negative_log_likelihood(z, y))
    assert math.isfinite(negative_log_likelihood(np.tile(z[:1], (7, 1)), np.ones(7, np.int64)))
    # Half and single precision go through float64 before anything is subtracted.
    narrow = np.array([[6e4, -6e4]], np.float16)
    assert negative_log_likelihood(narrow, np.array([1])) == pytest.approx(120_000, rel=1e-3)


def test_probability_of_zero_is_what_its_type_cannot_hold() -> None:
    p = np.array([[1.0, 0.0]], np.float32)
    assert negative_log_likelihood(p, np.array([1])) == pytest.approx(-math.log(np.finfo(np.float32).tiny))
    assert negative_log_likelihood(p, np.array([0])) == 0.0


def test_confidently_wrong_is_not_overlooked() -> None:
    """Always right, always certain: 0. Always wrong, always certain: 1. Half right at a half: 0."""
    certain = np.ones(20)
    assert expected_calibration_error(certain, np.ones(20, bool)) == 0
    assert expected_calibration_error(certain, np.zeros(20, bool)) == 1
    assert expected_calibration_error(np.full(20, 0.5), np.arange(20) % 2 == 0) == 0


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_equal_width_against_the_definition(bins: int) -> None:
    z, y = sample()
    scores = score_samples(z, y)
    right = scores.predicted == y
    found = expected_calibration_error(scores.confidence, right, bins)
    assert found == pytest.approx(loop_ece(scores.confidence, right, bins), rel=1e-12)


def test_equal_mass_against_sorting_and_cutting() -> None:
    z, y = sample(n=600)
    scores = score_samples(z, y)
    right = scores.predicted == y
    order = np.argsort(scores.confidence)
    parts = np.split(order, 10)
    expected = sum(abs(right[part].mean() - scores.confidence[part].mean()) / 10 for part in parts)
    assert expected_calibration_error(scores.confidence, right, 10, "equal_mass") == pytest.approx(expected, rel=1e-12)


def test_equal_mass_does_not_depend_on_the_order_of_ties() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.choice([0.5, 0.7, 0.9], 200)
    right = rng.random(200) < 0.6
    first = expected_calibration_error(confidence, right, 7, "equal_mass")
    for _ in range(5):
        shuffled = rng.permutation(200)
        assert expected_calibration_error(confidence[shuffled], right[shuffled], 7, "equal_mass") == pytest.approx(
            first
        )


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_groups_are_scored_as_if_alone(binning: str) -> None:
    z, y = sample()
    rng = np.random.default_rng(1)
    g = rng.choice([0, 1, 3], len(y))
    scores = score_samples(z, y)
    right = scores.predicted == y
    error = group_calibration_error(scores.confidence, right, g, 4, binning=binning)  # type: ignore[arg-type]
    mean = group_means(scores.nll, g, 4)
    for group in (0, 1, 3):
        here = g == group
        alone = expected_calibration_error(scores.confidence[here], right[here], binning=binning)  # type: ignore[arg-type]
        assert error[group] == pytest.approx(alone, rel=1e-12)
        assert mean[group] == pytest.approx(scores.nll[here].mean(), rel=1e-12)
    assert np.isnan(error[2])
    assert np.isnan(mean[2])


def test_calibrated_predictions_score_near_zero_and_overconfident_ones_do_not() -> None:
    rng = np.random.default_rng(3)
    p = softmax(rng.normal(0, 1.5, (40_000, 3)), axis=1)
    y = (rng.random((len(p), 1)) > p.cumsum(axis=1)).sum(axis=1)
    sharp = softmax(3 * np.log(p), axis=1)
    for binning in ("equal_width", "equal_mass"):

        def error(q: NDArray[np.float64], how: str = binning) -> float:
            return expected_calibration_error(q.max(axis=1), q.argmax(axis=1) == y, binning=how)  # type: ignore[arg-type]

        assert error(p) < 0.012
        assert error(sharp) > 0.15
    assert classwise_calibration_error(p, y).max() < 0.012
    assert classwise_calibration_error(sharp, y).min() > 0.05


def test_classwise_error_sees_a_class_that_is_under_predicted() -> None:
    p = np.tile([0.6, 0.4], (10, 1))
    y = np.array([0] * 3 + [1] * 7)
    np.testing.assert_allclose(classwise_calibration_error(p, y), [0.3, 0.3], atol=1e-12)


def test_kind_is_recognised_and_can_be_said() -> None:
    z, y = sample()
    p = softmax(z, axis=1)
    assert kind_of(z) == "logits"
    assert kind_of(p) == kind_of(p.astype(np.float32)) == kind_of(p.astype(np.float16)) == "probabilities"
    one_wrong = p.copy()
    one_wrong[-1] *= 1.1
    assert kind_of(one_wrong) == "logits"
    assert negative_log_likelihood(p, y, "logits") == pytest.approx(log_loss(y, softmax(p, axis=1)), rel=1e-12)
    with pytest.raises(DataError, match="sample 599 is not a row of probabilities"):
        log_probabilities(one_wrong, "probabilities")
    with pytest.raises(ConfigError, match="did you mean 'logits'"):
        negative_log_likelihood(p, y, "logit")  # type: ignore[arg-type]


def test_large_tables_are_read_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = sample()
    whole = score_samples(z.astype(np.float32), y)
    monkeypatch.setattr(calibration_module, "_CELLS_AT_A_TIME", 4 * 7)
    for a, b in zip(whole, score_samples(z.astype(np.float32), y), strict=True):
        np.testing.assert_array_equal(a, b)
    z[500, 2] = np.nan
    with pytest.raises(DataError, match="nan at sample 500, class 2"):
        score_samples(z, y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    z, y = sample(n=5)
    z[3, 1] = value
    with pytest.raises(DataError, match="at sample 3, class 1; every value must be finite"):
        negative_log_likelihood(z, y)


def test_wrong_use_is_refused() -> None:
    z, y = sample(n=5)
    with pytest.raises(DataError, match="floats of shape"):
        score_samples(y, y)
    with pytest.raises(DataError, match="out of range"):
        score_samples(z, y + 4)
    with pytest.raises(ConfigError, match="binning"):
        expected_calibration_error([0.5], [True], binning="equal")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bins"):
        expected_calibration_error([0.5], [True], bins=0)
    for bad in (1.5, -0.1, np.nan):
        with pytest.raises(DataError, match="between 0 and 1"):
            expected_calibration_error([bad], [True])
    assert math.isnan(expected_calibration_error(np.empty(0), np.empty(0, bool)))


def test_bins_are_open_below_and_closed_above() -> None:
    """0.5 belongs to (0, 0.5]: beside 0.4 the two errors cancel, in a bin of its own they would not."""
    confidence, right = np.array([0.5, 0.4]), np.array([True, False])
    assert expected_calibration_error(confidence, right, 2) == pytest.approx(0.05)
    confidence, right = np.array([0.5, 0.6]), np.array([True, False])
    assert expected_calibration_error(confidence, right, 2) == pytest.approx(0.55)
    assert expected_calibration_error([0.0, 1.0], [True, False], 2) == 1
