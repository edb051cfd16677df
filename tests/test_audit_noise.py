"""Noise matrices, suspicious labels and the guard, against closed forms, known noise and naive re-derivations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict

from limbeck.audits import confident_flags, cross_fit, estimate_noise, guard, label_posterior, label_score, suspicious
from limbeck.audits.crossfit import calibrate, deal_folds, fit_temperature
from limbeck.audits.noise import confident_counts, noise_rate, thresholds, true_shares
from limbeck.data.inject import noise_matrix
from limbeck.errors import ConfigError, DataError
from limbeck.evaluation.calibration import log_softmax


def known(matrix: np.ndarray, samples: int = 20_000, sharp: float = 4.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """True labels, labels under the matrix, and the exact p(given | x) of a judge that sees noisy evidence."""
    rng = np.random.default_rng(seed)
    classes = len(matrix)
    y = rng.integers(classes, size=samples)
    evidence = rng.normal(size=(samples, classes)) + sharp * np.eye(classes)[y]
    clean = np.exp(log_softmax(sharp * evidence))  # Gaussian classes of unit variance: exactly the posterior
    labels = (rng.random(samples)[:, None] > matrix.cumsum(1)[y, :-1]).sum(1)
    return y, labels, clean @ matrix, clean


PAIR = np.array([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]])
SKEW = np.array([[0.95, 0.05, 0.0], [0.2, 0.6, 0.2], [0.0, 0.1, 0.9]])


@pytest.mark.parametrize("matrix", [np.eye(3), noise_matrix("symmetric", 3, 0.3), PAIR, SKEW])
def test_anchors_find_the_matrix_that_made_the_labels(matrix: np.ndarray) -> None:
    y, labels, p, _ = known(matrix)
    found = estimate_noise(p, labels)
    assert np.abs(found.matrix - matrix).max() < 0.05
    assert found.rate == pytest.approx((labels != y).mean(), abs=0.02)
    assert found.rate_low - 0.01 <= (labels != y).mean() <= found.rate_high + 0.01
    np.testing.assert_allclose(found.matrix.sum(1), 1)
    assert ((found.low <= found.matrix + 1e-9) & (found.matrix <= found.high + 1e-9)).all()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    matrix = noise_matrix("symmetric", 3, 0.3)
    inside = []
    for seed in range(40):
        _, labels, p, _ = known(matrix, samples=2000, sharp=6.0, seed=seed)
        found = estimate_noise(p, labels, replicates=200)
        inside.append((found.low <= matrix) & (matrix <= found.high))
    assert 0.9 <= np.mean(inside) <= 1.0


def test_the_confident_joint_is_that_of_the_paper() -> None:
    _, labels, p, _ = known(SKEW, samples=500)
    limits = [p[labels == k, k].mean() for k in range(3)]
    joint = np.zeros((3, 3))
    for row, label in zip(p, labels):
        confident = [k for k in range(3) if row[k] >= limits[k]]
        if confident:
            joint[max(confident, key=lambda k: row[k]), label] += 1
    joint *= np.bincount(labels) / joint.sum(0)
    np.testing.assert_allclose(confident_counts(p, labels), joint)
    np.testing.assert_allclose(thresholds(p, labels), limits)
    by_name = estimate_noise(p, labels, method="confident_joint")
    np.testing.assert_allclose(by_name.matrix, joint / joint.sum(1, keepdims=True), atol=1e-3)
    assert estimate_noise(p, labels).confident_rate == pytest.approx(by_name.rate, abs=1e-3)


def test_a_judge_that_has_not_seen_the_labels_cannot_agree_with_wrong_ones() -> None:
    # Nothing is wrong with the labels, but the judge is weak and sure: alone it finds noise.
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=6000)
    x = rng.normal(size=(6000, 4)) + 0.5 * np.eye(3, 4)[y]
    p = cross_fit(x, y, classes=3).probabilities
    alone = estimate_noise(p, y, y % 2)
    assert alone.rate > 0.2
    held = estimate_noise(p, y, y % 2, agreement=0.96)
    assert held.rate <= 0.041
    assert held.rate_high < 0.06
    assert all(entry.rate < 0.1 for entry in held.per_group)
    np.testing.assert_allclose(held.matrix.sum(1), 1)
    assert any("agrees with 96.0% of them" in note for note in held.notes)
    blind = estimate_noise(cross_fit(rng.normal(size=(6000, 4)), y, classes=3).probabilities, y)
    assert not blind.identified
    assert any("cannot be told from weak judges" in note for note in blind.notes)
    # Where the noise is real, an honest judge's agreement takes nothing away.
    truth, labels, exact, _ = known(SKEW)
    before, after = (estimate_noise(exact, labels, agreement=a) for a in (0.0, float((truth == labels).mean())))
    assert after.rate == pytest.approx(before.rate, abs=0.02)


def test_overlapping_classes_are_noise_to_the_confident_joint_and_not_to_anchors() -> None:
    _, labels, p, _ = known(np.eye(3), sharp=1.5)
    assert estimate_noise(p, labels).rate < 0.03 < 0.07 < estimate_noise(p, labels, method="confident_joint").rate


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_the_true_shares_are_those_that_make_the_observed_ones(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = 0.7 * np.eye(classes) + 0.3 * rng.dirichlet(np.ones(classes), classes)
    shares = 0.5 / classes + 0.5 * rng.dirichlet(np.ones(classes))
    found = true_shares(matrix, shares @ matrix, steps=5000)
    np.testing.assert_allclose(found, shares, atol=1e-3)
    assert noise_rate(matrix, shares @ matrix) == pytest.approx(1 - shares @ np.diag(matrix), abs=1e-3)


def test_groups_have_their_own_noise_where_they_are_large_and_the_common_one_where_small() -> None:
    rng = np.random.default_rng(1)
    groups = rng.choice(3, 30_000, p=[0.5, 0.498, 0.002])
    y, _, _, clean = known(np.eye(3), 30_000)
    rates = np.array([0.05, 0.4, 0.9])[groups]
    wrong = rng.random(30_000) < rates
    labels = np.where(wrong, (y + rng.integers(1, 3, 30_000)) % 3, y)
    overall = noise_matrix("symmetric", 3, float(rates.mean()))
    found = estimate_noise(clean @ overall, labels, groups, group_names=["low", "high", "tiny"])
    by_name = {entry.name: entry for entry in found.per_group}
    assert by_name["low"].rate == pytest.approx(0.05, abs=0.02)
    assert by_name["high"].rate == pytest.approx(0.4, abs=0.03)
    assert by_name["low"].rate_high < found.rate_low < found.rate_high < by_name["high"].rate_low
    # Sixty samples: shrunk most of the way to the overall matrix.
    assert by_name["tiny"].rate < 0.6
    assert by_name["low"].rate_low <= by_name["low"].rate <= by_name["low"].rate_high
    np.testing.assert_array_equal(found.group_matrices(3)[1], by_name["high"].matrix)


def test_the_posterior_is_bayes_where_the_judge_is_exact() -> None:
    y, labels, p, clean = known(SKEW, samples=5000)
    exact = clean * SKEW[:, labels].T
    exact /= exact.sum(1, keepdims=True)
    found = label_posterior(p, labels, SKEW)
    assert (found.argmax(1) == exact.argmax(1)).mean() > 0.98
    assert np.abs(found - exact).mean() < 0.03
    wrong = labels != y
    flagged = suspicious(p, labels, SKEW).flagged
    assert wrong[flagged].mean() > 0.9
    assert flagged[wrong].mean() > 0.8


def test_the_posterior_sees_pair_noise_that_margins_do_not() -> None:
    y, labels, p, _ = known(np.kron(np.eye(2), [[0.6, 0.4], [0.05, 0.95]]), sharp=3.0)
    wrong = labels != y
    matrix = estimate_noise(p, labels).matrix
    areas = {
        name: average_precision_score(wrong, label_score(p, labels, name, matrix))
        for name in ("posterior", "normalised_margin", "self_confidence")
    }
    assert areas["posterior"] > areas["normalised_margin"] + 0.05
    assert areas["posterior"] > areas["self_confidence"] + 0.05


def test_candidates_hold_the_given_label_and_mostly_the_true_one() -> None:
    y, labels, p, _ = known(SKEW, samples=5000, sharp=2.0)
    found = suspicious(p, labels, SKEW)
    rows = np.arange(len(y))
    assert found.candidates[rows, labels].all()
    asked = found.flagged | found.uncertain
    assert (found.candidates.sum(1) > 1)[asked].mean() > 0.9
    assert (found.candidates[~asked].sum(1) == 1).all()
    assert found.candidates[rows, y][asked].mean() > (labels == y)[asked].mean() + 0.2


def test_scores_match_their_definitions() -> None:
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    labels = np.array([1, 1])
    np.testing.assert_allclose(label_score(p, labels, "self_confidence"), [0.7, 0.5])
    np.testing.assert_allclose(label_score(p, labels, "normalised_margin"), [0.65, 0.4])
    flagged, suggested = confident_flags(
        np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7]]), np.array([0, 1, 1, 1])
    )
    # Thresholds .9 and .6: the second sample reaches neither, so it is not flagged.
    np.testing.assert_array_equal(flagged, [False, False, False, False])
    np.testing.assert_array_equal(suggested, [0, 1, 1, 1])


# -- the guard ----------------------------------------------------------------------------------------------------


def naive_guard(proposed, score, labels, groups, limit, by_cell):
    allowed = np.zeros(len(proposed), bool)
    for cell in set(zip(labels.tolist(), groups.tolist())):
        rows = [i for i in range(len(labels)) if (labels[i], groups[i]) == cell]
        most = int(min(limit, by_cell.get(cell, 1.0)) * len(rows) + 1e-9)
        asked = sorted((i for i in rows if proposed[i]), key=lambda i: (-score[i], i))
        allowed[asked[:most]] = True
    return allowed


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_the_guard_is_its_definition(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    labels, groups = rng.integers(3, size=n), rng.integers(-1, 2, size=n)
    proposed, score = rng.random(n) < 0.5, rng.random(n)
    found = guard(proposed, score, labels, groups, class_names="abc", group_names=["g", "h"], limit=limit)
    np.testing.assert_array_equal(found.allowed, naive_guard(proposed, score, labels, groups, limit, {}))
    assert (found.held_back == (proposed & ~found.allowed)).all()
    assert sum(cell.samples for cell in found.cells) == n
    for cell in found.cells:
        assert cell.allowed <= limit * cell.samples + 1e-9
        assert cell.allowed + cell.held_back == cell.proposed


def test_no_cell_is_emptied_by_default() -> None:
    labels = np.r_[np.zeros(900, int), np.ones(100, int)]
    proposed = np.r_[np.arange(900) < 45, np.ones(100, bool)]
    found = guard(proposed, np.linspace(0, 1, 1000), labels, class_names=["common", "rare"])
    share = proposed.mean()
    rare = next(cell for cell in found.cells if cell.name == "rare")
    assert rare.allowed == round(2 * share * 100) == 29
    assert rare.held_back == 100 - rare.allowed
    # Of the rare class the surest are allowed.
    assert found.allowed[-rare.allowed :].all()
    assert next(cell for cell in found.cells if cell.name == "common").held_back == 0


def test_protected_classes_and_groups_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    labels, groups, score = rng.integers(2, size=400), rng.integers(2, size=400), rng.random(400)
    proposed, names = np.ones(400, bool), {"class_names": ["no", "yes"], "group_names": ["a", "b"], "limit": 0.5}
    by_name = guard(proposed, score, labels, groups, protected=["yes"], **names)
    assert not by_name.allowed[labels == 1].any()
    assert by_name.allowed[labels == 0].any()
    by_share = guard(proposed, score, labels, groups, protected={"b": 0.1}, **names)
    for k in (0, 1):
        cell = (labels == k) & (groups == 1)
        assert by_share.allowed[cell].sum() == int(0.1 * cell.sum())
    into = guard(proposed, score, labels, groups, suggested=1 - labels, protected=["yes"], **names)
    assert not into.allowed.any()  # neither away from "yes" nor into it
    with pytest.raises(ConfigError, match=r"unknown class or group 'yess': did you mean 'yes'"):
        guard(proposed, score, labels, groups, protected=["yess"], **names)
    with pytest.raises(ConfigError, match=r"not a share between 0 and 1"):
        guard(proposed, score, labels, groups, protected={"yes": 2}, **names)
    both = {"class_names": ["no", "yes"], "group_names": ["yes", "b"]}
    with pytest.raises(ConfigError, match=r"'class:yes' or 'group:yes'"):
        guard(proposed, score, labels, groups, protected=["yes"], **both)
    assert guard(proposed, score, labels, groups, protected=["group:yes"], **both).allowed[groups == 1].any()


# -- the witness --------------------------------------------------------------------------------------------------


def test_the_witness_is_logistic_regression() -> None:
    x, y = load_digits(return_X_y=True)
    x = x[:, x.std(0) > 0.5]
    ours = cross_fit(x, y, classes=10, folds=4, weight_decays=(1e-2,), seed=3)
    theirs = np.empty_like(ours.probabilities)
    for fold in range(4):
        inside = ours.fold == fold
        mean, scale = x[~inside].mean(0), x[~inside].std(0)
        model = LogisticRegression(C=1 / (1e-2 * (~inside).sum()), max_iter=500, tol=1e-6)
        theirs[inside] = model.fit((x[~inside] - mean) / scale, y[~inside]).predict_proba((x[inside] - mean) / scale)
    assert np.abs(ours.probabilities - theirs).max() < 0.02
    assert (ours.probabilities.argmax(1) == theirs.argmax(1)).mean() > 0.995


def test_the_balanced_witness_does_not_know_the_shortcut() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=4000)
    aligned = rng.random(4000) < 0.95
    shortcut = np.where(aligned, y, 1 - y)
    x = np.column_stack([y + rng.normal(size=4000), 3 * shortcut + 0.1 * rng.normal(size=4000)])
    cells = y * 2 + shortcut
    plain = cross_fit(x, y, classes=2, cells=cells).probabilities.argmax(1) == y
    balanced = cross_fit(x, y, classes=2, cells=cells, balance=1.0).probabilities.argmax(1) == y
    assert plain[~aligned].mean() < 0.35
    assert balanced[~aligned].mean() > 0.6


def test_folds_are_even_in_every_cell_and_a_function_of_the_seed() -> None:
    cells = np.random.default_rng(0).choice(5, 403, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    fold = deal_folds(cells, 4, seed=1)
    for cell in range(5):
        counts = np.bincount(fold[cells == cell], minlength=4)
        assert np.ptp(counts) <= 1
    np.testing.assert_array_equal(fold, deal_folds(cells, 4, seed=1))
    assert (fold != deal_folds(cells, 4, seed=2)).any()


def test_the_temperature_undoes_a_known_one() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    labels = (rng.random(20_000)[:, None] > np.exp(log_softmax(logits)).cumsum(1)[:, :-1]).sum(1)
    assert fit_temperature(log_softmax(3 * logits), labels) == pytest.approx(3, rel=0.05)
    calibrated, temperature = calibrate(log_softmax(3 * logits), labels, np.arange(20_000) % 5)
    assert temperature == pytest.approx(3, rel=0.05)
    assert np.abs(calibrated - np.exp(log_softmax(logits))).max() < 0.05


def test_real_features_with_injected_noise_against_scikit_learn() -> None:
    x, y = load_digits(return_X_y=True)
    matrix = noise_matrix("symmetric", 10, 0.2)
    labels = (np.random.default_rng(0).random(len(y))[:, None] > matrix.cumsum(1)[y, :-1]).sum(1)
    p = cross_val_predict(LogisticRegression(C=0.01), x / 16, labels, method="predict_proba")
    by_sklearn, by_probe = (
        estimate_noise(p, labels),
        estimate_noise(cross_fit(x, labels, classes=10).probabilities, labels),
    )
    assert by_sklearn.rate == pytest.approx((labels != y).mean(), abs=0.05)
    assert by_probe.rate == pytest.approx((labels != y).mean(), abs=0.05)


@pytest.mark.parametrize(
    ("p", "labels", "message"),
    [
        (np.ones((3, 2)), np.zeros(3, int), "row 0 is"),
        (np.full((3, 2), 0.5), np.zeros(2, int), "expected 3 whole numbers"),
        (np.full((3, 2), 0.5), np.array([0, 1, 2]), "0..2 found for 2 classes"),
        (np.full((3, 1), 1.0), np.zeros(3, int), "two classes or more"),
    ],
)
def test_bad_input_is_told(p: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        estimate_noise(p, labels)


def test_degenerate_input_is_survived() -> None:
    # A class that is never given, a class never predicted, and a single sample.
    found = estimate_noise(np.array([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1]]), np.array([0, 0]))
    assert np.isfinite(found.matrix).all()
    assert found.notes
    assert np.isfinite(estimate_noise(np.array([[0.5, 0.5]]), np.array([1]), np.array([-1])).rate)
    with pytest.raises(ConfigError, match="did you mean 'anchors'"):
        estimate_noise(np.full((3, 2), 0.5), np.zeros(3, int), method="anchor")  # type: ignore[arg-type]
