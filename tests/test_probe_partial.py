"""Partial labels: targets, students, warnings, choice, and the numbers of the pictures."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from limbeck import probe
from limbeck.errors import ConfigError, DataError
from limbeck.probe.labels import margins

Array = np.ndarray[Any, Any]


def problem(count: int = 80, width: int = 10, classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    return rng.normal(size=(count, width)) + 2 * rng.normal(size=(classes, width))[labels], labels


def test_partial_labels_by_hand() -> None:
    scores = [[0.1, 0.5, 0.4, 0.0], [0.3, 0.3, 0.1, 0.3]]
    candidates, targets = probe.partial_labels(scores)
    assert candidates.tolist() == [[1, 2], [0, 1]]
    np.testing.assert_allclose(targets, [[0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0]])
    _, targets = probe.partial_labels(scores, 3, [2, 1, 1])
    np.testing.assert_allclose(targets, [[0.25, 0.5, 0.25, 0], [0.5, 0.25, 0, 0.25]])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 20), st.integers(2, 8), st.data())
def test_partial_labels_keep_the_top(seed: int, count: int, classes: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, classes))
    k = data.draw(st.integers(1, classes))
    candidates, targets = probe.partial_labels(scores, k)
    np.testing.assert_allclose(targets.sum(1), 1)
    assert ((targets > 0).sum(1) == k).all()
    chosen = np.take_along_axis(scores, candidates, 1)
    assert (np.diff(chosen, axis=1) <= 0).all()
    assert (np.where(targets > 0, -np.inf, scores).max(1) <= chosen.min(1)).all()
    np.testing.assert_array_equal(probe.partial_labels(scipy.special.softmax(scores, axis=1), k)[1], targets)


@pytest.mark.parametrize("solver", ["linear", "exact"])
def test_student_is_one_round_on_the_partial_labels(solver: Any) -> None:
    x, labels = problem()
    teacher = probe.self_distillation(x, labels, 1, 0.01, solver).predictions[0]
    student = probe.partial_label_student(teacher, x, 0.02, solver=solver, bias=True, predict=x[:7])
    _, targets = probe.partial_labels(teacher)
    round_one = probe.self_distillation(x, targets, 1, 0.02, solver, bias=True, predict=x[:7])
    np.testing.assert_allclose(student.predictions, round_one.predictions[0], atol=1e-8)
    np.testing.assert_allclose(student.predicted, round_one.predicted[0], atol=1e-8)
    np.testing.assert_allclose(student.predict(x), student.predictions, atol=1e-7)
    assert student.warnings == ()
    balanced = probe.partial_label_student(teacher, x, 0.02, solver=solver, class_weights=[1, 2, 3, 4])
    weighted = probe.self_distillation(x, targets, 1, 0.02, solver, class_weights=[1, 2, 3, 4])
    np.testing.assert_allclose(balanced.predictions, weighted.predictions[0], atol=1e-8)


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_gce_student_is_a_minimum_of_the_generalised_cross_entropy(q: float) -> None:
    x, labels = problem()
    teacher = probe.self_distillation(x, labels, 1, 0.01, "exact").predictions[0]
    student = probe.partial_label_student(teacher, x, 0.01, solver="exact", loss="gce", gce_q=q)

    def objective(flat: Array) -> float:
        outputs = scipy.special.softmax(x @ flat.reshape(10, 4), axis=1)
        loss = (student.targets * (1 - outputs**q) / q).sum(1).mean()
        return float(loss + 0.005 * (flat**2).sum())

    assert student.residual < 1e-8
    found = student.weights.ravel()
    assert np.abs(scipy.optimize.approx_fprime(found, objective, 1e-7)).max() < 1e-6
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-2, 1e-1):
        for _ in range(10):
            assert objective(found + scale * rng.normal(size=found.shape)) > objective(found)
    # The same descent by another hand ends no lower.
    start = probe.partial_label_student(teacher, x, 0.01, solver="exact").weights.ravel()
    other = scipy.optimize.minimize(objective, start, method="L-BFGS-B", options={"maxiter": 300, "maxfun": 20_000})
    assert objective(found) <= other.fun + 1e-6


def test_gce_tends_to_cross_entropy() -> None:
    x, labels = problem()
    teacher = probe.self_distillation(x, labels, 1, 0.01, "exact").predictions[0]
    ce = probe.partial_label_student(teacher, x, 0.01, solver="exact").predictions
    gce = probe.partial_label_student(teacher, x, 0.01, solver="exact", loss="gce", gce_q=1e-5).predictions
    np.testing.assert_allclose(gce, ce, atol=1e-4)


def test_two_classes_and_other_ties_are_warned_of() -> None:
    x, labels = problem(classes=2)
    teacher = probe.self_distillation(x, labels, 1, 0.01).predictions[0]
    with pytest.warns(UserWarning, match="teach nothing"):
        student = probe.partial_label_student(teacher, x, 0.01)
    np.testing.assert_allclose(student.predictions, 0.5, atol=1e-12)
    assert len(student.warnings) == 1
    unequal = probe.partial_label_student(teacher, x, 0.01, weights=[2, 1])
    assert unequal.warnings == ()
    assert (unequal.predictions.argmax(1) == labels).mean() > 0.9

    assert probe.partial_label_warnings(4, noise_matrix=probe.noise_matrix("symmetric", 4, 0.5)) == ()
    pair = probe.partial_label_warnings(3, noise_matrix=probe.noise_matrix("pair", 3, 0.3), class_names=("a", "b", "c"))
    assert [note[:2] for note in pair] == ["a:", "b:", "c:"]
    assert all("nearly all of one class" in note for note in pair)
    clean = probe.partial_label_warnings(3, noise_matrix=np.eye(3))
    assert all("labels are clean" in note for note in clean)
    even = probe.partial_label_warnings(2, k=1, noise_matrix=[[0.5, 0.5], [0.2, 0.8]])
    assert len(even) == 1
    assert "as often as the right one" in even[0]
    assert "tie with the right one" in probe.partial_label_warnings(5, k=3, noise_matrix=np.eye(5))[0]
    assert "imbalanced (class 0: 90, class 2: 20)" in probe.partial_label_warnings(3, class_counts=[90, 40, 20])[0]
    assert probe.partial_label_warnings(3, class_counts=[60, 40, 20]) == ()


def test_k_above_two_equal_weights_ties_in_the_block_model_as_warned() -> None:
    model = probe.block_model(5, 100, 0.5, 0.1, probe.noise_matrix("symmetric", 5, 0.4), 0.1)
    assert model.partial_label_accuracy(2) == pytest.approx(1)
    truth = np.broadcast_to(np.arange(5)[:, None], (5, 5))
    assert margins(model.partial_label_predictions(2), truth).min() > 0.05
    assert np.abs(margins(model.partial_label_predictions(3), truth)).max() < 0.005


def noisy_problem(rate: float, seed: int = 0) -> tuple[Array, Array, Array, Array, Array]:
    """Four overlapping classes in more dimensions than averaging needs; validation labels are clean."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 200)) * 0.22
    truth, test = np.arange(240) % 4, np.arange(2000) % 4
    x, held = (rng.normal(size=(len(t), 200)) * 0.5 + centres[t] for t in (truth, test))
    matrix = probe.noise_matrix("symmetric", 4, rate)
    return x, np.array([rng.choice(4, p=matrix[row]) for row in truth]), held, test, truth


def test_choice_on_validation_reports_every_try_and_the_second_round() -> None:
    x, labels, held, test, _ = noisy_problem(0.5)
    teacher = probe.self_distillation(x, labels, 1, 0.01).predictions[0]
    choice = probe.choose_partial_labels(teacher, x, 0.01, validation=(held, test))
    assert [(score.k, len(score.weights)) for score in choice.table] == [
        (1, 1),
        (2, 2),
        (2, 2),
        (3, 3),
        (3, 3),
        (4, 4),
        (4, 4),
    ]
    assert choice.basis == "validation"
    for score in choice.table:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            student = probe.partial_label_student(teacher, x, 0.01, score.k, score.weights, predict=held)
        per_class = [(student.predicted.argmax(1) == test)[test == index].mean() for index in range(4)]
        if score.k < 4:
            assert score.average == pytest.approx(np.mean(per_class))
            assert score.worst_class == pytest.approx(min(per_class))
    top = max(score.average for score in choice.table)
    picked = next(s for s in choice.table if s.k == choice.k and s.weights == tuple(choice.weights))
    assert picked.average >= top - np.sqrt(top * (1 - top) / len(test))
    again = probe.self_distillation(x, labels, 2, 0.01, predict=held).predicted[1]
    assert choice.soft.average == pytest.approx((again.argmax(1) == test).mean())


def test_equal_uniform_candidates_score_nothing() -> None:
    x, labels, held, test, _ = noisy_problem(0.3)
    teacher = probe.self_distillation(x, labels, 1, 0.01).predictions[0]
    choice = probe.choose_partial_labels(teacher, x, 0.01, validation=(held, test), candidates=(4,))
    equal = next(score for score in choice.table if len(set(score.weights)) == 1)
    assert equal.average == 0
    assert len(set(choice.weights)) > 1


def test_choice_says_when_partial_labels_lose() -> None:
    """Clean digits under strong weight decay: the second candidate ties what the teacher's own outputs tell apart."""
    x, labels = load_digits(return_X_y=True)
    x, order = x / 16, np.random.default_rng(0).permutation(len(labels))
    train, held = order[:900], order[900:]
    teacher = probe.self_distillation(x[train], labels[train], 1, 0.1).predictions[0]
    choice = probe.choose_partial_labels(
        teacher, x[train], 0.1, validation=(x[held], labels[held]), candidates=(2,), metric="average"
    )
    assert max(score.average for score in choice.table) < choice.soft.average
    assert any("partial labels lose" in note for note in choice.warnings)


def test_default_stays_within_one_standard_error() -> None:
    x, labels = load_digits(return_X_y=True)
    x, order = x / 16, np.random.default_rng(0).permutation(len(labels))
    train, held = order[:900], order[900:1100]
    teacher = probe.self_distillation(x[train], labels[train], 1, 1e-3).predictions[0]
    choice = probe.choose_partial_labels(
        teacher, x[train], 1e-3, validation=(x[held], labels[held]), candidates=(1, 2, 3)
    )
    scores = {(score.k, score.weights): score.average for score in choice.table}
    assert scores[2, (0.5, 0.5)] < max(scores.values())
    assert (choice.k, choice.weights.tolist()) == (2, [0.5, 0.5])
    # With four and five candidates the difference is beyond one standard error.
    wide = probe.choose_partial_labels(teacher, x[train], 1e-3, validation=(x[held], labels[held]))
    assert wide.k == 4


def test_choice_from_the_block_model() -> None:
    symmetric = probe.block_model(4, 120, 0.4, 0.1, probe.noise_matrix("symmetric", 4, 0.5), 0.02)
    choice = probe.choose_partial_labels(block=symmetric)
    assert (choice.k, choice.weights.tolist()) == (2, [0.5, 0.5])
    assert choice.basis == "block model"
    assert choice.warnings == ()
    # Pair noise: top two of all samples of a class agree; equal halves get nothing right, unequal weights do.
    pair = probe.block_model(4, 2000, 0.4, 0.1, probe.noise_matrix("pair", 4, 0.3), 1.0)
    choice = probe.choose_partial_labels(block=pair, metric="worst_class")
    scores = {(score.k, score.weights): score for score in choice.table}
    assert scores[2, (0.5, 0.5)].worst_class == 0
    assert (choice.k, len(set(choice.weights))) != (2, 1)
    assert scores[choice.k, tuple(choice.weights)].worst_class == 1
    # Little noise, a teacher that is right already: the paper's default is right too, by less.
    easy = probe.choose_partial_labels(
        block=probe.block_model(4, 200, 0.5, 0.1, probe.noise_matrix("symmetric", 4, 0.1), 1.0)
    )
    perfect = [score for score in easy.table if score.average > 1 - 1e-9]
    assert any(score.weights == (0.5, 0.5) for score in perfect)
    assert easy.k == max(perfect, key=lambda score: score.margin).k == 1
    rare = probe.block_model(4, [400, 100, 100, 100], 0.4, 0.1, probe.noise_matrix("symmetric", 4, 0.5), 0.02)
    assert "imbalanced" in probe.choose_partial_labels(block=rare).warnings[0]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"k": 0}, r"k: expected 1\.\.4"),
        ({"k": 5}, r"k: expected 1\.\.4"),
        ({"weights": [1, 2, 3]}, "expected 2 non-negative"),
        ({"weights": [0, 0]}, "positive sum"),
        ({"loss": "gce"}, "no closed form"),
        ({"loss": "mse", "solver": "exact"}, "unknown loss"),
        ({"loss": "gce", "solver": "exact", "gce_q": 0.0}, "gce_q"),
        ({"teacher_probabilities": np.zeros((3, 4))}, "expected 80 rows"),
        ({"teacher_probabilities": np.full((80, 4), np.nan)}, "finite"),
    ],
)
def test_student_errors(arguments: dict[str, Any], match: str) -> None:
    x, labels = problem()
    options: dict[str, Any] = {"teacher_probabilities": np.eye(4)[labels], "features": x, "weight_decay": 0.1}
    with pytest.raises((ConfigError, DataError), match=match):
        probe.partial_label_student(**(options | arguments))


def test_choice_errors() -> None:
    x, labels = problem()
    block = probe.block_model(4, 10, 0.4, 0.1, np.eye(4), 0.1)
    teacher = np.eye(4)[labels]
    for options, match in (
        ({}, "either validation"),
        ({"block": block, "validation": (x, labels)}, "not both"),
        ({"validation": (x, labels)}, "needs teacher_probabilities"),
        ({"block": block, "metric": "median"}, "unknown metric"),
        ({"block": block, "candidates": (7,)}, r"numbers in 1\.\.4"),
    ):
        with pytest.raises(ConfigError, match=match):
            probe.choose_partial_labels(**options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="as many labels as features"):
        probe.choose_partial_labels(teacher, x, 0.1, validation=(x, labels[:5]))


@pytest.mark.parametrize("shape", [(80, 10), (30, 50)])
def test_picture_data_is_what_it_says(shape: tuple[int, int]) -> None:
    x, truth = problem(*shape)
    labels = truth.copy()
    labels[::5] = (labels[::5] + 1) % 4
    data = probe.picture_data(x, labels, 3, 0.01, true_labels=truth, bins=20)
    run = probe.self_distillation(x, labels, 3, 0.01)
    student = probe.partial_label_student(run.predictions[0], x, 0.01)
    assert all(isinstance(array, np.ndarray) for array in data.values())
    np.testing.assert_array_equal(data["filters"], run.filters)
    np.testing.assert_array_equal(data["clean"], np.arange(len(x)) % 5 != 0)
    for index in range(3):
        outputs = run.predictions[index]
        for true in range(4):
            np.testing.assert_allclose(data["class_average"][index, true], outputs[truth == true].mean(0))
    own = student.predictions[np.arange(len(x)), truth]
    others = np.where(np.eye(4)[truth] == 1, -np.inf, student.predictions).max(1)
    np.testing.assert_allclose(data["pll_margins"], own - others)
    right = student.predictions.argmax(1) == truth
    assert data["pll_noisy_accuracy"] == pytest.approx(right[::5].mean())
    assert data["accuracy"][2] == pytest.approx((run.predictions[2].argmax(1) == truth).mean())
    assert (data["clean_histogram"].sum(1) == data["clean"].sum()).all()
    assert data["pll_noisy_histogram"].sum() == (~data["clean"]).sum()
    # The spectral account of the labels gives back the size of every round's outputs.
    deviation = np.eye(4)[labels] - 0.25
    assert 0 < data["label_energy"].sum() <= 1 + 1e-9
    for index in range(3):
        size = (data["label_energy"] * run.filters[index] ** 2).sum() * (deviation**2).sum()
        assert size == pytest.approx(((run.predictions[index] - 0.25) ** 2).sum(), rel=1e-6)


def test_picture_data_without_truth_has_no_noisy_samples() -> None:
    x, labels = problem()
    data = probe.picture_data(x, labels, 2, 0.01)
    assert data["clean"].all()
    assert np.isnan(data["noisy_accuracy"]).all()
    assert np.isnan(data["pll_noisy_accuracy"])
