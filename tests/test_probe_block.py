"""The block model: check values, phase transition, estimation from data."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from limbeck import probe
from limbeck.errors import ConfigError, DataError
from limbeck.probe.block import correlation_clusters
from limbeck.probe.estimate import confident_joint
from limbeck.probe.labels import margins

Array = np.ndarray[Any, Any]


def block_features(counts: Array, same: Array, other: Array) -> tuple[Array, Array]:
    """Unit features with exactly these correlations, and their true classes."""
    truth = np.repeat(np.arange(len(counts)), counts)
    gram = other[np.ix_(truth, truth)].astype(float)
    alike = truth[:, None] == truth
    gram[alike] = np.broadcast_to(same[truth][:, None], gram.shape)[alike]
    np.fill_diagonal(gram, 1)
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(values.clip(min=0)), truth


def given_labels(counts: Array, matrix: Array) -> Array:
    """Labels with exactly the shares of the noise matrix."""
    cells = matrix * counts[:, None]
    assert np.abs(cells - cells.round()).max() < 1e-9
    return np.concatenate([np.repeat(np.arange(len(row)), row) for row in cells.round().astype(int)])


def uniform_block(classes: int, n: int, c: float, d: float) -> tuple[Array, Array]:
    return block_features(np.full(classes, n), np.full(classes, c), np.full((classes, classes), d))


@pytest.mark.parametrize(("rate", "margin", "threshold", "rounds"), [(0.5, 0.333, 11.27, 12), (0.7, 0.067, 22.55, 23)])
def test_check_values(rate: float, margin: float, threshold: float, rounds: int) -> None:
    matrix = probe.noise_matrix("symmetric", 4, rate)
    model = probe.block_model(4, 120, 0.4, 0.1, matrix, 0.02)
    assert (round(model.p, 4), round(model.q, 4)) == (0.8824, 0.9978)
    assert model.minimum.margin == pytest.approx(margin, abs=5e-4)
    assert model.minimum.threshold == pytest.approx(threshold, abs=5e-3)
    assert model.minimum.rounds == rounds
    predicted = model.accuracy(rounds + 2)
    np.testing.assert_allclose(predicted, np.where(np.arange(1, rounds + 3) < rounds, 1 - rate, 1), atol=1e-12)
    assert model.partial_label_accuracy() == pytest.approx(1)
    # ... and this is what happens to features with that Gram matrix.
    x, truth = uniform_block(4, 120, 0.4, 0.1)
    labels = given_labels(np.full(4, 120), matrix)
    run = probe.self_distillation(x, labels, rounds + 2, 0.02 / 480)
    right = margins(run.predictions, np.broadcast_to(truth, (rounds + 2, 480))) > 1e-9
    np.testing.assert_allclose(right.mean(1), predicted)
    np.testing.assert_allclose(run.predictions, model.predictions(rounds + 2)[:, truth, labels], atol=1e-10)
    for solver in ("linear", "exact"):
        teacher = probe.self_distillation(x, labels, 1, 0.02 / 480, solver).predictions[0]
        student = probe.partial_label_student(teacher.round(9), x, 0.02 / 480, solver=solver)
        assert (teacher.argmax(1) == truth).mean() == pytest.approx(1 - rate)
        assert margins(student.predictions, truth).min() > 0.01


def test_predictions_are_the_formula_of_the_paper() -> None:
    matrix = probe.noise_matrix("asymmetric", 5, 0.4)
    model = probe.block_model(5, 30, 0.6, 0.2, matrix, 0.3)
    for t, outputs in enumerate(model.predictions(4), start=1):
        for true in range(5):
            for label in range(5):
                expected = 0.2 + model.p**t * (np.eye(5)[label] - matrix[true]) + model.q**t * (matrix[true] - 0.2)
                np.testing.assert_allclose(outputs[true, label], expected, atol=1e-12)


CIRCULANT = [(8, 2, 2), (6, 3, 3), (7, 4, 1), (5, 5, 2), (4, 6, 2), (12, 0, 0), (6, 6, 0), (9, 3, 0)]


@pytest.mark.parametrize("shares", CIRCULANT)
def test_phase_transition_predicted_and_observed(shares: tuple[int, int, int]) -> None:
    limit, transitions = 40, 0
    matrix = np.stack([np.roll(shares, row) for row in range(3)]) / 12
    for c in (0.2, 0.5, 0.8):
        for d in (0.0, 0.1, 0.15):
            x, truth = uniform_block(3, 12, c, d)
            features, labels = probe.Features(x), given_labels(np.full(3, 12), matrix)
            for n_lambda in (0.03, 0.3, 3.0):
                model = probe.block_model(3, 12, c, d, matrix, n_lambda)
                run = probe.self_distillation(features, labels, limit, n_lambda / 36)
                right = margins(run.predictions, np.broadcast_to(truth, (limit, 36))) > 1e-9
                # Beyond ever more rounds the outputs themselves fade below any tolerance.
                visible = (run.predictions.max(-1) - run.predictions.min(-1)).min(1) > 1e-6
                predicted = np.arange(1, limit + 1) >= (model.minimum.rounds or math.inf)
                np.testing.assert_array_equal(right.all(1)[visible], predicted[visible])
                np.testing.assert_allclose(model.accuracy(limit)[visible], right.mean(1)[visible], atol=1e-12)
                transitions += bool(predicted[visible].any() and not predicted[0])
    if shares in ((8, 2, 2), (6, 3, 3), (7, 4, 1)):
        assert transitions >= 5


def test_unequal_counts_and_correlations_are_exact_too() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([10, 30, 20, 60])
    between = np.array([[0, 0.3, 0.05, 0], [0.3, 0, 0.1, 0], [0.05, 0.1, 0, 0.2], [0, 0, 0.2, 0]])
    same = np.array([0.5, 0.45, 0.6, 0.4])
    cells = np.array([rng.multinomial(count, [0.4, 0.3, 0.2, 0.1]) for count in counts])
    matrix = cells / counts[:, None]
    x, truth = block_features(counts, same, between)
    labels = given_labels(counts, matrix)
    model = probe.block_model(4, counts, same, between, matrix, 0.7)
    run = probe.self_distillation(x, labels, 5, 0.7 / 120)
    np.testing.assert_allclose(model.predictions(5)[:, truth, labels], run.predictions, atol=1e-10)
    np.testing.assert_allclose(model.agreement(5), (run.predictions.argmax(-1) == labels).mean(1))
    student = probe.partial_label_student(run.predictions[0].round(9), x, 0.7 / 120)
    np.testing.assert_allclose(model.partial_label_predictions()[truth, labels], student.predictions, atol=1e-10)


def test_partial_label_margin_is_half_the_noise_beyond_the_likeliest_wrong_label() -> None:
    # The teacher memorises (p close to 1), the averages are kept whole (q → 1).
    matrix = np.array([[0.6, 0.25, 0.1, 0.05], [0.1, 0.7, 0.1, 0.1], [0.0, 0.3, 0.7, 0.0], [0.0, 0.0, 0.0, 1.0]])
    model = probe.block_model(4, 10_000_000, 0.5, 0.0, matrix, 0.01)
    average = np.einsum("yk,ykc->yc", matrix, model.partial_label_predictions())
    np.testing.assert_allclose(margins(average, np.arange(4)), [0.075, 0.1, 0, 0], atol=1e-4)
    notes = probe.partial_label_warnings(4, noise_matrix=matrix)
    assert [note.split(":")[0] for note in notes] == ["class 2", "class 3"]
    # A teacher that has averaged the labels away gives all samples of a class the same candidates: all classes tie.
    blind = probe.block_model(4, 10_000_000, 0.99, 0.0, matrix, 1000.0)
    assert np.abs(margins(blind.partial_label_predictions()[:, 0], np.arange(4)))[[0, 2, 3]].max() < 1e-3


def test_minimum_rounds_at_the_edges() -> None:
    assert probe.minimum_rounds(np.eye(3), 0.9, 0.95) == (math.inf, 0.0, 1)
    assert probe.minimum_rounds([[0.5, 0.5], [0, 1]], 0.9, 0.95).rounds is None
    assert probe.minimum_rounds([[0.4, 0.6], [0, 1]], 0.9, 0.95).rounds is None
    assert probe.minimum_rounds([[0.6, 0.4], [0, 1]], 0.9, 0.9).rounds is None
    assert probe.minimum_rounds([[0.6, 0.4], [0, 1]], 0.0, 0.9).rounds == 1
    # Only wrong labels that occur count: class 1 of row 0 does not.
    assert probe.minimum_rounds([[0.6, 0, 0.4], [0, 1, 0], [0.0, 0, 1]], 0.8, 0.9).margin == pytest.approx(0.2)
    for bad, match in (([[0.5, 0.6], [0, 1]], "row 0"), ([[1.0]], "square"), ([[1.1, -0.1], [0, 1]], "row 0")):
        with pytest.raises(ConfigError, match=match):
            probe.minimum_rounds(bad, 0.1, 0.2)
    with pytest.raises(ConfigError, match=r"p=1\.5"):
        probe.minimum_rounds(np.eye(2), 1.5, 0.2)


def test_impossible_blocks_are_refused() -> None:
    matrix = np.eye(3)
    for arguments, match in (
        ((3, 10, 0.2, 0.9, matrix, 1.0), "no features have these correlations"),
        ((3, 10, 1.2, 0.1, matrix, 1.0), "no features have these correlations"),
        ((4, 10, 0.2, 0.1, matrix, 1.0), "expected 4 rows, found 3"),
        ((3, 0, 0.2, 0.1, matrix, 1.0), "per_class"),
        ((3, 10, 0.2, 0.1, matrix, 0.0), "n_lambda"),
        ((3, [1, 2], 0.2, 0.1, matrix, 1.0), r"per_class: expected one number or shape \[3\]"),
    ):
        with pytest.raises(ConfigError, match=match):
            probe.block_model(*arguments)  # type: ignore[arg-type]


def test_clusters_of_similar_classes() -> None:
    correlation = np.full((5, 5), 0.1)
    for one, other in ((0, 3), (1, 2)):
        correlation[one, other] = correlation[other, one] = 0.8
    assert correlation_clusters(correlation).tolist() == [0, 1, 1, 0, 2]


def test_estimate_recovers_a_block_and_its_rounds() -> None:
    matrix = probe.noise_matrix("symmetric", 4, 0.5)
    x, truth = uniform_block(4, 60, 0.5, 0.2)
    labels = given_labels(np.full(4, 60), matrix)
    found = probe.estimate_block(3 * x, labels, 1e-3, rounds=20, true_labels=truth)
    assert (found.same, found.other) == pytest.approx((0.5, 0.2))
    np.testing.assert_allclose(found.noise_matrix, matrix, atol=1e-12)
    np.testing.assert_allclose(found.predicted_accuracy, found.observed_accuracy)
    np.testing.assert_allclose(found.spectral_accuracy, found.observed_accuracy)
    np.testing.assert_allclose(found.predicted_agreement, found.observed_agreement)
    assert 1 < found.rounds < 20
    assert found.rounds == found.spectral_rounds
    # Self-influence read off the spectrum is pᵗ where the block model holds.
    for t in (1, 4):
        np.testing.assert_allclose(found.spectral._own_label_kept(t), found.model.p**t, atol=1e-9)
    # Without lengths of 1 the same correlations come out, for a weight decay on that scale.
    plain = probe.estimate_block(3 * x, labels, 9e-3, rounds=20, true_labels=truth, normalise=False)
    assert (plain.same, plain.other, plain.model.p) == pytest.approx((0.5, 0.2, found.model.p))


def test_estimate_unmixes_the_correlations_of_given_classes() -> None:
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(40, 4)))[0].T
    counts, matrix = np.array([900, 600, 1200, 700]), probe.noise_matrix("symmetric", 4, 0.4)
    truth = np.repeat(np.arange(4), counts)
    x = centres[truth] + 0.15 * rng.normal(size=(len(truth), 40))
    labels = np.array([rng.choice(4, p=matrix[row]) for row in truth])
    known = probe.estimate_block(x, labels, 1e-3, true_labels=truth)
    blind = probe.estimate_block(x, labels, 1e-3, noise_matrix=matrix)
    assert blind.observed_accuracy is None
    naive = probe.estimate_block(x, labels, 1e-3, noise_matrix=np.eye(4))
    assert abs(naive.same - known.same) > 0.2
    assert blind.same == pytest.approx(known.same, abs=0.05)
    np.testing.assert_allclose(blind.class_correlation, known.class_correlation, atol=0.08)
    np.testing.assert_allclose(blind.counts, known.counts, rtol=0.15)
    np.testing.assert_allclose(blind.observed_agreement, known.observed_agreement)


def test_spectrum_tells_that_few_dimensions_cannot_memorise() -> None:
    """N ≫ D: the block model expects the noise to be memorised, the features cannot."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 300)
    x = np.eye(10)[truth] + 0.3 * rng.normal(size=(1200, 10))
    labels = given_labels(np.full(4, 300), probe.noise_matrix("symmetric", 4, 0.5))
    found = probe.estimate_block(x, labels, 1e-6, true_labels=truth)
    assert found.predicted_accuracy[0] == pytest.approx(0.5)
    assert found.spectral_accuracy[0] == 1
    assert found.observed_accuracy[0] > 0.95


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
def test_noise_is_found_in_real_digits(rate: float) -> None:
    x, truth = load_digits(return_X_y=True)
    matrix = probe.noise_matrix("symmetric", 10, rate)
    rng = np.random.default_rng(0)
    labels = np.array([rng.choice(10, p=matrix[row]) for row in truth])
    found = probe.estimate_noise_matrix(x, labels)
    np.testing.assert_allclose(found.sum(1), 1)
    assert np.diag(found).mean() == pytest.approx(1 - rate, abs=0.06)
    again = probe.estimate_noise_matrix(x, labels)
    np.testing.assert_array_equal(found, again)


def test_confident_joint_by_hand() -> None:
    # Thresholds: class 0: mean(.9, .8, .1) = .6, class 1: mean(.9, .8, .2) = .6333.
    outputs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.1, 0.9], [0.2, 0.8], [0.8, 0.2]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(confident_joint(outputs, labels), [[2 / 3, 1 / 3], [1 / 3, 2 / 3]])
    # Row 4 is sure of neither class; the three confident samples given 1 then stand for all four.
    outputs = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6], [0.3, 0.7], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(confident_joint(outputs, labels), [[0.6, 0.4], [3 / 11, 8 / 11]])
    with pytest.raises(DataError, match="class 1 was never given"):
        confident_joint(outputs, np.zeros(7, int))


def test_estimates_refuse_what_cannot_be_estimated() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3))
    for arguments, match in (
        ({"labels": np.array([0, 0, 0, 0, 0, 1])}, "class 1 has 1 samples"),
        ({"labels": np.array([0, 1] * 2)}, "expected 6 of them"),
        ({"features": np.zeros((6, 3))}, "row 0 is all zeros"),
        ({"noise_matrix": "guess"}, "'estimate'"),
        ({"noise_matrix": np.eye(3)}, "expected 2 rows"),
        ({"true_labels": np.zeros(4, int)}, "true_labels: expected 6"),
        ({"true_labels": np.zeros(6, int), "noise_matrix": None}, "class 1 has no sample"),
    ):
        options: dict[str, Any] = {
            "features": x,
            "labels": np.array([0, 1] * 3),
            "weight_decay": 0.1,
            "noise_matrix": np.eye(2),
        } | arguments
        with pytest.raises((DataError, ConfigError), match=match):
            probe.estimate_block(**options)
    with pytest.raises(ConfigError, match="folds"):
        probe.estimate_noise_matrix(x, np.array([0, 1] * 3), folds=1)


@pytest.mark.data
def test_real_features_on_pacs(limbeck_data: Path) -> None:
    """The direction of the theory on real features: less weight decay memorises more, rounds unlearn it."""
    with np.load(limbeck_data / "pacs_efflite0_pca256.npz", allow_pickle=False) as stored:
        rows = np.random.default_rng(0).permutation(len(stored["y"]))[:300]
        x, truth = stored["x"][rows].astype(np.float32), stored["y"][rows].astype(np.int64)
    rng = np.random.default_rng(1)
    matrix = probe.noise_matrix("symmetric", 7, 0.3)
    labels = np.array([rng.choice(7, p=matrix[row]) for row in truth])
    agreement = []
    for weight_decay in (1e-3, 1e-4, 1e-5):
        found = probe.estimate_block(x, labels, weight_decay, true_labels=truth)
        agreement.append(found.observed_agreement[0])
        assert (np.diff(found.observed_agreement) <= 0).all()
        # The spectrum predicts the observed agreement better than c and d alone.
        off = [
            np.abs(found.observed_agreement - guess).mean()
            for guess in (found.spectral_agreement, found.predicted_agreement)
        ]
        assert off[0] <= off[1] + 1e-12
    assert all(before < after for before, after in pairwise(agreement))
