"""Self-distillation of linear probes: the closed form and the exact fixed point against dense float64 references."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from limbeck import probe
from limbeck.errors import ConfigError, DataError
from limbeck.probe import features as features_module
from limbeck.probe import softmax as softmax_module
from limbeck.probe.softmax import SoftmaxProbe

Array = np.ndarray[Any, Any]
TALL, WIDE = (90, 12), (25, 60)


def problem(shape: tuple[int, int], classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, shape[0] - classes)]
    centres = rng.normal(size=(classes, shape[1]))
    return rng.normal(size=shape) + 0.7 * centres[labels], labels


def dense_rounds(x: Array, start: Array, rounds: int, penalty: float, base: Array) -> Array:
    """The recursion (Y⁽ᵗ⁾ − base) = G (G + penalty)⁻¹ (Y⁽ᵗ⁻¹⁾ − base), by dense solves in sample space."""
    gram, out, current = x @ x.T, [], start - base
    for _ in range(rounds):
        current = gram @ np.linalg.solve(gram + penalty * np.eye(len(x)), current)
        out.append(current + base)
    return np.stack(out)


@pytest.mark.parametrize("shape", [TALL, WIDE, (30, 30)])
@pytest.mark.parametrize("weight_decay", [1e-4, 1e-2, 1.0])
def test_closed_form_is_the_dense_recursion(shape: tuple[int, int], weight_decay: float) -> None:
    x, labels = problem(shape)
    result = probe.self_distillation(x, labels, 6, weight_decay, predict=x[:5])
    expected = dense_rounds(x, np.eye(4)[labels], 6, 4 * len(x) * weight_decay, np.full(4, 0.25))
    assert result.predictions is not None
    assert result.predicted is not None
    np.testing.assert_allclose(result.predictions, expected, atol=1e-10, rtol=0)
    np.testing.assert_allclose(result.predicted, expected[:, :5], atol=1e-10, rtol=0)
    np.testing.assert_allclose(result.predict(x), expected, atol=1e-10, rtol=0)


def test_closed_form_stays_exact_where_features_are_collinear() -> None:
    x, labels = problem(TALL)
    x = np.hstack([x, x[:, :3], np.zeros((len(x), 2))])
    expected = dense_rounds(x, np.eye(4)[labels], 4, 4 * len(x) * 1e-6, np.full(4, 0.25))
    np.testing.assert_allclose(probe.self_distillation(x, labels, 4, 1e-6).predictions, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_closed_form_with_options_solves_the_weighted_ridge_equations(
    shape: tuple[int, int], bias: bool, balanced: bool
) -> None:
    x, labels = problem(shape)
    x = x * np.linspace(0.5, 3, shape[1]) + 2
    result = probe.self_distillation(
        x,
        labels,
        3,
        0.01,
        bias=bias,
        standardise=True,
        class_weights="balanced" if balanced else None,
        predict=x + 1,
    )
    # The same model, written as an augmented least-squares problem per round and solved by an SVD.
    count = len(x)
    scaled, moved = (x - x.mean(0)) / x.std(0), (x + 1 - x.mean(0)) / x.std(0)
    weights = count / (4 * np.bincount(labels)[labels]) if balanced else np.ones(count)
    design = np.hstack([scaled, np.ones((count, 1))]) if bias else scaled
    test_design = np.hstack([moved, np.ones((count, 1))]) if bias else moved
    penalty = np.sqrt(4 * count * 0.01) * np.eye(design.shape[1])[: shape[1]]
    target = np.eye(4)[labels]
    for index in range(3):
        rows = np.vstack([np.sqrt(weights)[:, None] * design, penalty])
        values = np.vstack([np.sqrt(weights)[:, None] * (target - 0.25), np.zeros((shape[1], 4))])
        solution = np.linalg.lstsq(rows, values, rcond=None)[0]
        target = 0.25 + design @ solution
        np.testing.assert_allclose(result.predictions[index], target, atol=1e-9)
        np.testing.assert_allclose(result.predicted[index], 0.25 + test_design @ solution, atol=1e-9)
        np.testing.assert_allclose(result.predict(x)[index], target, atol=1e-9)


def test_round_t_distils_round_t_minus_one_whatever_the_solver() -> None:
    x, labels = problem(TALL)
    for solver in ("linear", "exact"):
        all_rounds = probe.self_distillation(x, labels, 3, 0.01, solver, tolerance=1e-12).predictions
        again = probe.self_distillation(x, all_rounds[1], 1, 0.01, solver, tolerance=1e-12).predictions
        np.testing.assert_allclose(again[0], all_rounds[2], atol=1e-10)


def test_filters_are_the_powers_of_the_paper() -> None:
    x, labels = problem(WIDE)
    result = probe.self_distillation(x, labels, 3, 0.1)
    values = np.linalg.eigvalsh(x @ x.T)[::-1]
    np.testing.assert_allclose(result.eigenvalues, values, atol=1e-9 * values[0])
    one = values / (values + 4 * len(x) * 0.1)
    np.testing.assert_allclose(result.filters, np.stack([one, one**2, one**3]), atol=1e-12)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("weight_decay", [1e-6, 1e-3, 1.0])
def test_exact_solver_is_at_the_fixed_point(shape: tuple[int, int], weight_decay: float) -> None:
    x, labels = problem(shape)
    result = probe.self_distillation(x, labels, 4, weight_decay, "exact")
    gram, target = x @ x.T, np.eye(4)[labels]
    assert result.residuals is not None
    for index in range(4):
        current = result.predictions[index]
        mapped = scipy.special.softmax(gram @ (target - current) / (len(x) * weight_decay), axis=1)
        assert np.abs(mapped - current).max() < 1e-8
        assert result.residuals[index] < 1e-8
        np.testing.assert_allclose(result.predict(x)[index], current, atol=1e-7)
        target = current


def test_exact_solver_with_bias_and_class_weights_is_stationary() -> None:
    for shape in (TALL, WIDE):
        x, labels = problem(shape)
        weights = np.array([1.0, 2.0, 0.5, 3.0])
        result = probe.self_distillation(x, labels, 2, 0.01, "exact", bias=True, class_weights=weights)
        row = weights[labels] / weights[labels].mean()
        target = np.eye(4)[labels]
        for index in range(2):
            pull = row[:, None] * (target - result.predictions[index])
            assert np.abs(pull.mean(0)).max() < 1e-8
            centred = x - row @ x / row.sum()
            np.testing.assert_allclose(result.weights[index], centred.T @ pull / (len(x) * 0.01), atol=1e-6)
            target = result.predictions[index]


@pytest.mark.parametrize(("bias", "class_weights"), [(False, None), (True, None), (True, "balanced")])
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_first_round_is_logistic_regression(shape: tuple[int, int], bias: bool, class_weights: str | None) -> None:
    x, labels = problem(shape)
    result = probe.self_distillation(x, labels, 1, 0.02, "exact", bias=bias, class_weights=class_weights)
    reference = LogisticRegression(
        C=1 / (len(x) * 0.02), fit_intercept=bias, class_weight=class_weights, tol=1e-12, solver="newton-cholesky"
    ).fit(x, labels)
    np.testing.assert_allclose(result.predictions[0], reference.predict_proba(x), atol=1e-7)
    np.testing.assert_allclose(result.weights[0].T, reference.coef_, atol=1e-6)


def test_second_round_minimises_the_soft_cross_entropy() -> None:
    x, labels = problem(TALL)
    result = probe.self_distillation(x, labels, 2, 0.05, "exact")
    target = result.predictions[0]

    def objective(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(x.shape[1], 4)
        logs = scipy.special.log_softmax(x @ weights, axis=1)
        gradient = x.T @ (np.exp(logs) - target) / len(x) + 0.05 * weights
        return -(target * logs).sum() / len(x) + 0.025 * (flat**2).sum(), gradient.ravel()

    best = scipy.optimize.minimize(
        objective,
        np.zeros(x.shape[1] * 4),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5000},
    )
    np.testing.assert_allclose(result.weights[1].ravel(), best.x, atol=1e-6)


def test_linear_is_the_limit_of_exact_for_strong_weight_decay() -> None:
    x, labels = problem(TALL)
    gaps = []
    for weight_decay in (100.0, 1000.0):
        linear = probe.self_distillation(x, labels, 1, weight_decay).predictions
        exact = probe.self_distillation(x, labels, 1, weight_decay, "exact", tolerance=1e-13).predictions
        gaps.append(np.abs(linear - exact).max())
    # The linearisation is wrong from the second order of 1/λ on.
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("solver", ["linear", "local", "exact"])
def test_blocks_and_storage_type_change_nothing(solver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The local solver computes in float32.
    tolerance = 2e-5 if solver == "local" else 2e-9
    for shape in (TALL, WIDE):
        x, labels = problem(shape)
        stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, x.shape)
        stored[:] = x
        options = {"bias": True, "standardise": True, "class_weights": "balanced"}
        expected = probe.self_distillation(stored.astype(np.float64), labels, 3, 0.01, solver, **options)
        for copied in (0, features_module.COPY_BYTES):
            with monkeypatch.context() as patch:
                patch.setattr(features_module, "BLOCK_BYTES", 7 * 8 * shape[1])
                patch.setattr(features_module, "COPY_BYTES", copied)
                patch.setattr(features_module, "CACHE_BYTES", 3 * 8 * shape[1])
                patch.setattr(softmax_module, "CACHE_BYTES", 5 * 8 * min(shape))
                assert len(list(probe.Features(stored).blocks())) == -(-len(x) // 7)
                found = probe.self_distillation(stored, labels, 3, 0.01, solver, predict=stored, **options)
            np.testing.assert_allclose(found.predictions, expected.predictions, atol=tolerance)
            np.testing.assert_allclose(found.predicted, expected.predictions, atol=50 * tolerance)


def test_prepared_features_serve_many_draws_and_are_not_altered() -> None:
    x, labels = problem(TALL)
    kept = x.copy()
    prepared = probe.Features(x, bias=True)
    spectrum = prepared.spectrum
    for shift in range(3):
        drawn = (labels + shift) % 4
        fresh = probe.self_distillation(x, drawn, 2, 0.01, bias=True)
        found = probe.self_distillation(prepared, drawn, 2, 0.01)
        np.testing.assert_allclose(found.predictions, fresh.predictions, atol=1e-12)
    assert prepared.spectrum is spectrum
    np.testing.assert_array_equal(x, kept)
    with pytest.raises(ConfigError, match="standardise=True"):
        probe.self_distillation(prepared, labels, 1, 0.01, standardise=True)


def test_memory_is_bounded_by_blocks_not_by_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((150_000, 64), dtype=np.float32)
    labels = rng.integers(0, 5, len(x))
    monkeypatch.setattr(features_module, "BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(features_module, "COPY_BYTES", 0)
    tracemalloc.start()
    result = probe.self_distillation(x, labels, 3, 0.01, keep_predictions=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.predictions is None
    # A float64 copy of the features would be 77 MB; the label checks need a few bytes a sample.
    assert peak < 8 << 20


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(3, 40),
    st.integers(1, 30),
    st.integers(2, 5),
    st.sampled_from(["linear", "exact"]),
    st.floats(-4, 1),
)
def test_invariances(seed: int, count: int, width: int, classes: int, solver: Any, power: float) -> None:
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(count, width)), rng.integers(0, classes, count)
    weight_decay = 10.0**power
    options: dict[str, Any] = {"solver": solver, "classes": classes, "tolerance": 1e-10}
    outcome = probe.self_distillation(x, labels, 3, weight_decay, **options).predictions
    np.testing.assert_allclose(outcome.sum(-1), 1, atol=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    rotated = probe.self_distillation(x @ rotation, labels, 3, weight_decay, **options).predictions
    np.testing.assert_allclose(rotated, outcome, atol=1e-7)
    order = rng.permutation(count)
    permuted = probe.self_distillation(x[order], labels[order], 3, weight_decay, **options).predictions
    np.testing.assert_allclose(permuted, outcome[:, order], atol=1e-7)
    names = rng.permutation(classes)
    renamed = probe.self_distillation(x, names[labels], 3, weight_decay, **options).predictions
    np.testing.assert_allclose(renamed[..., names], outcome, atol=1e-7)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_local_rounds_are_close_to_the_exact_ones(shape: tuple[int, int], class_weights: Any) -> None:
    x, labels = problem(shape)
    options: dict[str, Any] = {"bias": True, "class_weights": class_weights, "predict": x}
    for weight_decay in (1e-3, 1e-2):
        exact = probe.self_distillation(x, labels, 4, weight_decay, "exact", **options)
        local = probe.self_distillation(x, labels, 4, weight_decay, "local", **options)
        linear = probe.self_distillation(x, labels, 4, weight_decay, **options)
        np.testing.assert_allclose(local.predicted, local.predictions, atol=1e-9)
        # Where features outnumber samples, later rounds leave the saturated outputs they were linearised about.
        for index in range(4 if shape == TALL else 1):
            near = np.abs(local.predictions[index] - exact.predictions[index]).mean()
            assert near < 0.02 * (1 + 2 * index)
            assert near < 0.7 * np.abs(linear.predictions[index] - exact.predictions[index]).mean()
    far = [probe.self_distillation(x, labels, 4, 1e3, solver, **options).predictions for solver in ("local", "exact")]
    np.testing.assert_allclose(far[0], far[1], atol=0.02)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weight_decay", [1e-7, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1.0, 30.0), (100.0, 0.0)])
def test_first_local_round_is_logistic_regression_to_what_it_promises(
    shape: tuple[int, int], bias: bool, weight_decay: float, scale: float, offset: float
) -> None:
    x, labels = problem(shape)
    x = (scale * x + offset).astype(np.float32)

    def objective(result: probe.SelfDistillation) -> float:
        logs = scipy.special.log_softmax(x.astype(np.float64) @ result.weights[0] + result.intercepts[0], axis=1)
        return float(-logs[np.arange(len(x)), labels].mean() + weight_decay / 2 * (result.weights[0] ** 2).sum())

    options: dict[str, Any] = {"bias": bias, "keep_predictions": False}
    best = objective(probe.self_distillation(x, labels, 1, weight_decay, "exact", **options))
    found = objective(probe.self_distillation(x, labels, 1, weight_decay, "local", **options))
    # What a step promises is no bound, above all where the classes are nearly separable.
    assert best - 1e-7 <= found < best + 0.005


def test_single_precision_only_where_the_weight_decay_stands_above_its_rounding() -> None:
    x, labels = problem(TALL)
    share = (x**2).sum() / (len(x) * 4)
    for weights in (None, np.linspace(0.5, 2, len(x))):
        total = share if weights is None else weights @ (x**2).sum(1) / (len(x) * 4)
        for factor, wanted in ((9, False), (11, True)):
            features = probe.Features(x, sample_weights=weights)
            model = SoftmaxProbe(features, factor * 2.0**-23 * total, dtype=np.float32)
            assert model.resolved(4) is wanted
    for factor, same in ((9, True), (11, False)):
        weight_decay = factor * 2.0**-23 * share
        double = SoftmaxProbe(probe.Features(x), weight_decay)
        expected = double.weights(double.descend(np.eye(4)[labels])[0])
        found = probe.self_distillation(x, labels, 1, weight_decay, "local").weights[0]
        assert (np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()) is np.bool_(same)
    # Collinear features leave a Hessian of which only the weight decay makes an invertible one.
    x = np.hstack([x, x, x @ np.ones((12, 30))])
    for weight_decay in 10.0 ** np.arange(-8, 1):
        for bias in (False, True):
            assert np.isfinite(probe.self_distillation(x, labels, 3, weight_decay, "local", bias=bias).weights).all()


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_descent_starts_from_the_closed_form_and_ends_at_the_fixed_point(shape: tuple[int, int]) -> None:
    x, labels = problem(shape)
    model, targets = SoftmaxProbe(probe.Features(x), 0.01), np.eye(4)[labels]
    first, _ = model.descend(targets, 1)
    # An output that is off 1/C by δ has a logit of Cδ; the line search may shorten the step, not turn it.
    ratio = model.weights(first) / (4 * probe.self_distillation(x, labels, 1, 0.01).weights[0])
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)
    assert np.log2(ratio[0, 0]) == pytest.approx(round(np.log2(ratio[0, 0])), abs=1e-6)
    last, _ = model.descend(targets, 120, 0.0)
    np.testing.assert_allclose(model.weights(last), model.fit(targets).weights, atol=1e-3)


def test_next_round_is_the_exact_one_where_the_softmax_is_smooth() -> None:
    x, labels = problem(TALL, 2)
    shares = []
    for weight_decay in (0.1, 1.0, 10.0):
        model = SoftmaxProbe(probe.Features(x), weight_decay, tolerance=1e-13)
        first = model.fit(np.eye(2)[labels])
        second = model.fit(first.probabilities, first)
        curvature = model.shared(model.state(first.parameters, np.eye(2)[labels].T))
        gap = np.abs(model.next_round(first.parameters, curvature) - second.parameters).max()
        shares.append(gap / np.abs(second.parameters - first.parameters).max())
    # The curvature changes with the square of the logits, and these with 1/λ.
    assert shares[0] > 2 * shares[1] > 20 * shares[2]


def test_newton_survives_separable_data_with_hardly_any_weight_decay() -> None:
    x, labels = problem((200, 8))
    x = x + 20 * np.eye(8)[labels]
    result = probe.self_distillation(x, labels, 2, 1e-9, "exact")
    assert result.residuals.max() < 1e-8
    assert (result.predictions[0].argmax(1) == labels).all()


def curved(shape: tuple[int, int], bias: bool, classes: int) -> tuple[SoftmaxProbe, Array, Array, Array]:
    """A weighted probe, targets `[C, N]`, parameters somewhere and a direction, neither common to all classes."""
    x, labels = problem(shape, classes)
    weights = np.linspace(0.5, 2, len(x))
    model = SoftmaxProbe(probe.Features(x, bias=bias, sample_weights=weights), 0.1)
    rng = np.random.default_rng(1)
    parameters, direction = rng.normal(size=(2, classes, min(shape) + 1))
    direction -= direction.mean(0)
    parameters[:, -1] *= bias
    direction[:, -1] *= bias
    return model, np.eye(classes)[labels].T, 0.3 * parameters, direction


@pytest.mark.parametrize(("shape", "bias"), [(TALL, False), (TALL, True), (WIDE, True)])
def test_whole_hessian_is_the_hessian(shape: tuple[int, int], bias: bool) -> None:
    model, targets, parameters, direction = curved(shape, bias, 4)
    state = model.state(parameters, targets)
    step = 1e-6
    ahead, behind = (model.state(parameters + sign * step * direction, targets) for sign in (1, -1))
    product = model.hessian_times(state, targets, direction)
    np.testing.assert_allclose(product, (ahead.gradient - behind.gradient) / (2 * step), atol=1e-7)
    slope = (state.gradient * direction).sum()
    assert (ahead.value - behind.value) / (2 * step) == pytest.approx(slope, rel=1e-6)
    back = model.whole(state)(product)
    np.testing.assert_allclose(back - back.mean(0), direction, atol=1e-6)


@pytest.mark.parametrize(("shape", "bias"), [(TALL, False), (TALL, True), (WIDE, True)])
def test_shared_curvature_is_the_hessian_of_two_classes_and_of_the_first_step(
    shape: tuple[int, int], bias: bool
) -> None:
    model, targets, parameters, direction = curved(shape, bias, 2)
    state = model.state(parameters, targets)
    back = model.shared(state)(model.hessian_times(state, targets, direction))
    np.testing.assert_allclose(back, direction, atol=1e-7)
    model, targets, parameters, direction = curved(shape, bias, 4)
    state = model.state(np.zeros_like(parameters), targets)
    back = model.shared(state)(model.hessian_times(state, targets, direction))
    np.testing.assert_allclose(back, direction, atol=1e-7)


@pytest.mark.parametrize("shape", [(300, 12), (60, 90)])
def test_a_fit_on_other_samples_is_a_start_for_the_same_optimum(shape: tuple[int, int]) -> None:
    x, labels = problem(shape)
    targets, part = np.eye(4)[labels], np.arange(shape[0]) % 5 > 0
    weights = np.linspace(0.5, 2, len(x))[part]
    first = SoftmaxProbe(probe.Features(x, bias=True), 0.01).fit(targets)
    other = SoftmaxProbe(probe.Features(x[part], bias=True, sample_weights=weights), 0.005, tolerance=1e-12)
    cold, warm = other.fit(targets[part]), other.fit(targets[part], first)
    np.testing.assert_allclose(warm.probabilities, cold.probabilities, atol=1e-10)
    np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-8)
    assert warm.iterations < cold.iterations if shape[0] > shape[1] else warm.iterations <= cold.iterations
    assert other.fit(targets[part], cold).iterations == 0


def test_hopeless_tolerance_says_what_to_change() -> None:
    x, labels = problem(TALL)
    with pytest.raises(ConfigError, match=r"weight_decay=0\.001.*raise weight_decay"):
        probe.self_distillation(x, labels, 1, 1e-3, "exact", tolerance=1e-40)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"rounds": 0}, ConfigError, "rounds: expected 1 or more, found 0"),
        ({"weight_decay": 0.0}, ConfigError, "weight_decay: expected a positive number"),
        ({"solver": "exakt"}, ConfigError, "did you mean 'exact'"),
        ({"classes": 3}, DataError, "class 3 is outside the 3 classes"),
        ({"labels": np.zeros(5, int)}, DataError, r"expected shape \[90\]"),
        ({"labels": np.full(90, 0.5)}, DataError, "integer type"),
        ({"labels": np.r_[-1, np.zeros(89, int)]}, DataError, "row 0 is -1"),
        ({"labels": np.full((90, 4), 0.5)}, DataError, "sum to 1"),
        ({"features": np.zeros((90, 2, 2))}, DataError, "matrix"),
        ({"features": np.full((90, 2), np.nan)}, DataError, "row 0, column 0 holds nan"),
        ({"features": np.full((90, 2), np.nan), "solver": "local"}, DataError, "row 0, column 0 holds nan"),
        ({"features": np.full((90, 2), np.nan), "solver": "exact"}, DataError, "row 0, column 0 holds nan"),
        ({"features": np.full((90, 2), np.inf), "bias": True}, DataError, "row 0, column 0 holds inf"),
        ({"predict": np.zeros((3, 7))}, DataError, "expected 12 columns"),
        ({"predict": np.full((3, 12), np.nan)}, DataError, "row 0, column 0 holds nan"),
        ({"class_weights": "balance"}, ConfigError, "did you mean 'balanced'"),
        ({"class_weights": [1, 2]}, ConfigError, "4 positive numbers"),
    ],
)
def test_errors_name_what_is_wrong(change: dict[str, Any], error: type[Exception], match: str) -> None:
    x, labels = problem(TALL)
    arguments: dict[str, Any] = {"features": x, "labels": labels, "rounds": 1, "weight_decay": 0.1} | change
    with pytest.raises(error, match=match):
        probe.self_distillation(**arguments)


@pytest.mark.data
def test_real_features_agree_with_scikit_learn(limbeck_data: Path) -> None:
    with np.load(limbeck_data / "bar_efflite0_pca256.npz", allow_pickle=False) as stored:
        train, y = stored["split"] == 0, stored["y"].astype(np.int64)
        x = stored["x"].astype(np.float32)
    result = probe.self_distillation(x[train], y[train], 2, 1e-3, "exact", predict=x[~train])
    reference = LogisticRegression(
        C=1 / (train.sum() * 1e-3), fit_intercept=False, tol=1e-10, solver="newton-cg", max_iter=500
    ).fit(x[train].astype(np.float64), y[train])
    np.testing.assert_allclose(result.predicted[0], reference.predict_proba(x[~train]), atol=1e-5)
    assert result.residuals.max() < 1e-8


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
def test_inputs_are_never_altered(dtype: Any, tmp_path: Path) -> None:
    x, labels = problem(TALL)
    for stored in (x.astype(dtype), np.lib.format.open_memmap(tmp_path / "x.npy", "w+", dtype, x.shape)):
        stored[:] = (10 * x).astype(dtype)
        kept, given_kept = np.array(stored), labels.copy()
        for solver in ("linear", "local", "exact"):
            probe.self_distillation(stored, labels, 1, 0.1, solver, bias=True, standardise=True, predict=stored)
        np.testing.assert_array_equal(stored, kept)
        np.testing.assert_array_equal(labels, given_kept)
