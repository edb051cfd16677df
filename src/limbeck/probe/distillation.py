"""Self-distillation of linear probes, in closed form and exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import scipy.linalg
import scipy.special
from numpy.typing import ArrayLike

from limbeck.errors import ConfigError, DataError, unknown_name
from limbeck.probe.features import Features, Floats, as_features, not_finite, raw_matrix
from limbeck.probe.labels import Labels
from limbeck.probe.softmax import TOLERANCE, SoftmaxProbe

Solver = Literal["linear", "local", "exact"]


@dataclass(frozen=True, eq=False)
class SelfDistillation:
    """Every round of a self-distilled linear probe; round t stands at index t − 1.

    Attributes:
        predictions: `[rounds, N, C]` on the training samples, or None where they were not kept. Rows sum to 1; those of
            the linearised softmax may lie slightly outside 0..1.
        predicted: `[rounds, M, C]` for the samples of `predict`, or None.
        weights: `[rounds, D, C]`, for raw features (centring and scaling are folded in).
        intercepts: `[rounds, C]`.
        solver: "linear": prediction = intercept + x·weights; "local", "exact": softmax of that.
        weight_decay: λ.
        features: what was fitted on, prepared.
        residuals: `[rounds]`, largest deviation of a probability from the softmax fixed point (exact solver); None for
            the others.
    """

    predictions: Floats | None
    predicted: Floats | None
    weights: Floats
    intercepts: Floats
    solver: Solver
    weight_decay: float
    features: Features
    residuals: Floats | None

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(self.weights)

    @property
    def eigenvalues(self) -> Floats:
        """`[r]` of the Gram matrix, descending (r = min(N, D); the rest are 0). Computed when first asked for."""
        return self.features.spectrum.values

    @cached_property
    def filters(self) -> Floats:
        """`[rounds, r]`, the factor (g / (g + CNλ))ᵗ by which round t of the linearised probe keeps the given labels
        along each eigenvector."""
        values = self.eigenvalues
        kept = values / (values + self.weights.shape[2] * len(self.features) * self.weight_decay)
        return np.asarray(kept ** np.arange(1, self.rounds + 1)[:, None])

    def predict(self, features: ArrayLike) -> Floats:
        """Predictions of every round for new samples: `[M, D]` → `[rounds, M, C]`.

        Raises:
            DataError: where the width differs from the features fitted on, or a feature is no finite number.
        """
        return predict_rounds(features, self.weights, self.intercepts, self.solver)


def self_distillation(
    features: ArrayLike | Features,
    labels: ArrayLike,
    rounds: int,
    weight_decay: float,
    solver: Solver = "linear",
    *,
    bias: bool = False,
    standardise: bool = False,
    class_weights: Literal["balanced"] | ArrayLike | None = None,
    classes: int | None = None,
    predict: ArrayLike | None = None,
    keep_predictions: bool = True,
    tolerance: float = TOLERANCE,
) -> SelfDistillation:
    """Multi-round self-distillation of a linear softmax probe (arXiv 2402.10482, sections 3 and 4).

    Round 1 learns the given labels, round t the outputs of round t − 1 with fresh weights, by cross entropy averaged
    over the N samples plus λ/2 ‖W‖². With G the Gram matrix of the features:

        exact    Y⁽ᵗ⁾ = softmax((Y⁽ᵗ⁻¹⁾ − Y⁽ᵗ⁾) G / (Nλ))
        linear   Y⁽ᵗ⁾ = 1/C + (Y⁽⁰⁾ − 1/C) V diag((g / (g + CNλ))ᵗ) Vᵀ,    G = V diag(g) Vᵀ

    The closed form (linear) costs one Gram product and one factorisation, in the smaller of sample and feature space,
    for all rounds together; for prepared `Features` it is the eigendecomposition, which then serves all weight decays
    and label draws. It is a squared loss: calm under wrong labels, less accurate on clean ones. Between it and the
    exact solver stands

        local    W⁽¹⁾ by L-BFGS for the softmax from the closed form;  W⁽ᵗ⁾ = (H + λ)⁻¹ H W⁽ᵗ⁻¹⁾

    with H the Gram matrix over N of the samples weighted by their curvature (1 − Σp²)/(C − 1) after three steps: the
    softmax linearised near the probe, in place of the uniform output. Round 1 is logistic regression to some 1e-4 nats
    a sample, and later rounds cost one product; where features outnumber samples these are too strong.

    Everything is float64 (the local solver's arithmetic float32, where the weight decay stands above its rounding);
    features are converted a block of rows at a time, so memory beside the input is min(N, D)² + the predictions,
    rounds·N·C (`keep_predictions=False` leaves them out), + 3·N·C for the local and the exact solver. The result holds
    on to the prepared features.

    Args:
        features: `[N, D]`, or `Features` prepared once for many calls.
        labels: `[N]` class numbers, or `[N, C]` soft labels whose rows sum to 1.
        rounds: 1 or more.
        weight_decay: λ > 0, on the scale of the mean loss.
        solver: "linear" (closed form of the linearised softmax), "local" (linearised about a fitted softmax probe) or
            "exact" (Newton's method on the fixed point).
        bias: an unpenalised intercept; the paper has none.
        standardise: centre and scale every feature first.
        class_weights: None; "balanced": sample weights N / (C·n_k); or `[C]` positive numbers. They follow the *given*
            labels in every round and are scaled to mean 1 over the samples.
        classes: C, where the labels do not show the last classes.
        predict: `[M, D]`, more samples to predict every round.
        keep_predictions: whether to keep the predictions on the training samples.
        tolerance: of the exact solver, largest deviation of a probability from the fixed point.

    Returns:
        predictions, weights and residuals of every round.

    Raises:
        DataError: where features or labels cannot be used.
        ConfigError: where an option is out of range, or weight_decay too small for the tolerance.
    """
    if rounds < 1:
        raise ConfigError(f"rounds: expected 1 or more, found {rounds}")
    check_options(weight_decay, solver)
    prepared = as_features(features, bias, standardise)
    given = Labels(labels, classes, len(prepared), signed=solver == "linear")
    if class_weights is not None:
        prepared = prepared.reweighted(given.sample_weights(class_weights))
    if predict is not None:
        raw_matrix(predict, prepared.width, "predict")
    weights, intercepts = np.empty((rounds, prepared.width, given.classes)), np.empty((rounds, given.classes))
    predictions = np.empty((rounds, len(prepared), given.classes)) if keep_predictions else None
    residuals = None
    if solver == "exact":
        residuals = np.empty(rounds)
        probe, targets, start = SoftmaxProbe(prepared, weight_decay, tolerance=tolerance), given.dense(), None
        for index in range(rounds):
            start = fit = probe.fit(targets, start)
            weights[index], intercepts[index], residuals[index] = fit.weights, fit.intercept, fit.residual
            targets = fit.probabilities
            if predictions is not None:
                predictions[index] = targets
    else:
        if solver == "local":
            _local(prepared, given, weight_decay, weights, intercepts)
        elif prepared is not features and prepared.width <= len(prepared):
            _closed_form_once(prepared, given, weight_decay, weights, intercepts)
        else:
            _closed_form(prepared, given, weight_decay, weights, intercepts)
        if predictions is not None:
            outputs(prepared, weights, intercepts, solver, predictions)
    for index in range(rounds):
        weights[index], intercepts[index] = prepared.unfold(weights[index], intercepts[index])
    return SelfDistillation(
        predictions=predictions,
        predicted=None if predict is None else predict_rounds(predict, weights, intercepts, solver),
        weights=weights,
        intercepts=intercepts,
        solver=solver,
        weight_decay=weight_decay,
        features=prepared,
        residuals=residuals,
    )


def check_options(weight_decay: float, solver: str) -> None:
    """Raises ConfigError where the weight decay is not positive or the solver unknown."""
    if not (np.isfinite(weight_decay) and weight_decay > 0):
        raise ConfigError(
            f"weight_decay: expected a positive number (the theory has no limit at 0), found {weight_decay}"
        )
    if solver not in get_args(Solver):
        raise ConfigError(unknown_name("solver", solver, get_args(Solver)))


def outputs(
    features: Features, weights: Floats, intercepts: Floats, solver: Solver, out: Floats | None = None
) -> Floats:
    """Predictions `[rounds, N, C]` from weights `[rounds, D, C]` and intercepts `[rounds, C]`, in one pass."""
    rounds, width, classes = weights.shape
    stacked = np.ascontiguousarray(weights.transpose(1, 0, 2)).reshape(width, rounds * classes)
    result = np.empty((rounds, len(features), classes)) if out is None else out
    for rows, block in features.blocks():
        # Classes first: sums over a short last axis are an order of magnitude slower.
        scores = np.ascontiguousarray((block @ stacked).T).reshape(rounds, classes, len(block))
        scores += intercepts[:, :, None]
        if solver != "linear":
            scores -= scores.max(1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(1, keepdims=True)
        result[:, rows] = scores.transpose(0, 2, 1)
    return result


def predict_rounds(x: ArrayLike, weights: Floats, intercepts: Floats, solver: Solver) -> Floats:
    """Predictions `[rounds, M, C]` for new raw features `[M, D]`.

    Raises:
        DataError: where the width differs from that of the weights, or a feature is no finite number.
    """
    matrix = raw_matrix(x, weights.shape[1], "features")
    result = outputs(Features(matrix), weights, intercepts, solver)
    if not np.isfinite(result).all():
        raise DataError(not_finite(matrix, "features"))
    return result


def _base(features: Features, given: Labels) -> Floats:
    """What every output starts from: 1/C, and with a bias the (weighted) mean label, which every round keeps."""
    return given.mean(features.sample_weights) if features.bias else np.full(given.classes, 1 / given.classes)


def _closed_form_once(
    features: Features, given: Labels, weight_decay: float, weights: Floats, intercepts: Floats
) -> None:
    """`_closed_form` in feature space for one weight decay: a Cholesky factor in place of the eigendecomposition."""
    base, penalty = _base(features, given), given.classes * len(features) * weight_decay
    square = features.gram()
    if penalty < 1e-10 * square.trace():
        # Too nearly singular for a Cholesky factor.
        _closed_form(features, given, weight_decay, weights, intercepts)
        return
    square[np.diag_indices_from(square)] += penalty
    factor = scipy.linalg.cho_factor(square, overwrite_a=True, check_finite=False)
    current = features.transposed_times(lambda rows: given.rows(rows) - base)
    for index in range(len(weights)):
        solved = scipy.linalg.cho_solve(factor, current, check_finite=False)
        # (G + μ)⁻¹ G W is W − μ (G + μ)⁻¹ W.
        weights[index] = solved if index == 0 else current - penalty * solved
        current = weights[index]
    intercepts[:] = base


def _local(features: Features, given: Labels, weight_decay: float, weights: Floats, intercepts: Floats) -> None:
    """Fills weights and intercepts of a softmax probe and of the rounds linearised about it."""
    probe = SoftmaxProbe(features, weight_decay, dtype=np.float32)
    if not probe.resolved(given.classes):
        probe = SoftmaxProbe(features, weight_decay)
    parameters, curvature = probe.descend(given.dense())
    for index in range(len(weights)):
        if index:
            parameters = probe.next_round(parameters, curvature)
        weights[index], intercepts[index] = probe.weights(parameters), parameters[:, -1]


def _closed_form(features: Features, given: Labels, weight_decay: float, weights: Floats, intercepts: Floats) -> None:
    """Fills weights and intercepts of every round of the linearised probe, for the prepared features."""
    spectrum, rounds, classes, base = features.spectrum, len(weights), given.classes, _base(features, given)
    # R^½ turns the weighted problem into an unweighted one; in sample space it has to be undone at the end.
    root = 1.0 if features.sample_weights is None else np.sqrt(features.sample_weights)[:, None]
    if spectrum.space == "feature":
        coordinates = spectrum.vectors.T @ features.transposed_times(lambda rows: given.rows(rows) - base)
    else:
        coordinates = spectrum.vectors.T @ (root * (given.dense() - base))
    penalised = spectrum.values + classes * len(features) * weight_decay
    shrunk = (spectrum.values / penalised) ** np.arange(rounds)[:, None] / penalised
    stacked = (shrunk[:, :, None] * coordinates).transpose(1, 0, 2).reshape(len(penalised), rounds * classes)
    combined = spectrum.vectors @ stacked
    if spectrum.space == "sample":
        combined /= root
        dual = combined
        combined = features.transposed_times(lambda rows: dual[rows])
    weights[:] = combined.reshape(features.width, rounds, classes).transpose(1, 0, 2)
    intercepts[:] = base
