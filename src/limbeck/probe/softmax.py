"""The exact softmax fixed point: L2-regularised multinomial regression on soft targets, by Newton's method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.special

from limbeck.errors import ConfigError
from limbeck.probe.features import COPY_BYTES, Features, Floats

TOLERANCE = 1e-9
"""Default bound on the residual of the fixed point, the largest deviation of any one probability."""

SAMPLED = 50
"""Rows per dimension from which a preconditioner is built where there are more."""


@dataclass(frozen=True, eq=False)
class SoftmaxFit:
    """A fitted softmax probe.

    Attributes:
        weights: `[D, C]`, for the prepared features.
        intercept: `[C]`, 0 without bias.
        probabilities: `[N, C]` on the training samples.
        residual: largest |Y − softmax((T − Y) G / (Nλ))| over samples and classes; with a bias also the largest mean of
            T − Y over the samples, which must vanish.
        iterations: Newton steps taken.
        parameters: `[r + 1, C]` in the eigenbasis, intercept last.
        inverse: the inverse of the Hessian somewhere on the way, where it had to be built.
    """

    weights: Floats
    intercept: Floats
    probabilities: Floats
    residual: float
    iterations: int
    parameters: Floats
    inverse: Callable[[Floats], Floats] | None = None


@dataclass(frozen=True, eq=False)
class _State:
    """The objective at one point: value, probabilities `[N, C]`, mass `[N, 1]` and gradient `[r + 1, C]`."""

    value: float
    probabilities: Floats
    mass: Floats
    gradient: Floats


class SoftmaxProbe:
    """Minimises mean(r_i · CE(T_i, softmax(Wᵀx_i + b))) + λ/2 ‖W‖², whose stationary point is the fixed point

        Y = softmax((T − Y) G / (Nλ)),    W = Xᵀ R (T − Y) / (Nλ)

    (arXiv 2402.10482, section 3). Newton steps by preconditioned conjugate gradients in the eigenbasis of the Gram
    matrix, where the Hessian starts out diagonal; every Hessian product is one pass over the features. Memory beside
    the features: a few arrays `[N, C]` and at most `COPY_BYTES` of preconditioner.

    Args:
        features: prepared features.
        weight_decay: λ > 0.
        tolerance: on the residual of the fixed point.
        max_iterations: Newton steps.
        gce_q: None for CE; else the loss is Σ_k T_k (1 − p_k^q)/q, with fixed point Y = softmax((S − mY) G / (Nλ)),
            S = T·Y^q, m = Σ_k S_k. It is not convex: a stationary point downhill of the start is found.
    """

    def __init__(
        self,
        features: Features,
        weight_decay: float,
        *,
        tolerance: float = TOLERANCE,
        max_iterations: int = 200,
        gce_q: float | None = None,
    ) -> None:
        self.features = features
        self.weight_decay = weight_decay
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.gce_q = gce_q
        spectrum = features.spectrum
        self.eigenvalues = spectrum.values
        # The coordinates are X·U (feature space, multiplied on the fly) or R^−½·V·√g (sample space, small).
        self._rotation: Floats | None = None
        self._coordinates: Floats | None = None
        if spectrum.space == "feature":
            self._rotation = spectrum.vectors
        else:
            self._coordinates = spectrum.vectors * np.sqrt(spectrum.values)
            if features.sample_weights is not None:
                self._coordinates /= np.sqrt(features.sample_weights)[:, None]

    def fit(self, targets: Floats, start: SoftmaxFit | None = None) -> SoftmaxFit:
        """The fixed point for targets `[N, C]` (rows of non-negative numbers, summing to 1).

        Args:
            targets: `[N, C]`.
            start: an earlier fit on the same features to start from; None for weights of 0.

        Raises:
            ConfigError: where the tolerance cannot be reached: weight_decay is too small for float64.
        """
        shape = (len(self.eigenvalues) + 1, targets.shape[1])
        parameters, inverse = (np.zeros(shape), None) if start is None else (start.parameters, start.inverse)
        state, patience = self._state(parameters, targets), self._patience(shape[1])
        iteration = spent = 0
        while (residual := self._residual(state)) > self.tolerance:
            if iteration == self.max_iterations:
                raise ConfigError(
                    f"weight_decay={self.weight_decay:g}: the exact softmax probe came to a residual of {residual:.1e} "
                    f"in {iteration} Newton steps, expected {self.tolerance:g}: raise weight_decay, scale the features "
                    "down or raise the tolerance"
                )
            step, steps = self._newton_step(state, targets, inverse or self._diagonal(state), patience)
            parameters, state = self._line_search(parameters, state, step, targets)
            spent += steps
            if spent >= patience and self._fits(shape[1]):
                inverse, spent = self._whole(state), 0
            iteration += 1
        weights = self._to_weights(parameters[:-1], self._pull(state.probabilities, state.mass, targets))
        return SoftmaxFit(weights, parameters[-1], state.probabilities, residual, iteration, parameters, inverse)

    def _blocks(self) -> Iterator[tuple[slice, Floats]]:
        if self._coordinates is None:
            yield from self.features.blocks()
        else:
            yield slice(0, len(self.features)), self._coordinates

    def _rotate(self, values: Floats) -> Floats:
        return values if self._rotation is None else self._rotation @ values

    def _rotate_back(self, values: Floats) -> Floats:
        return values if self._rotation is None else self._rotation.T @ values

    def _pull(self, probabilities: Floats, mass: Floats, targets: Floats) -> Floats:
        """Minus the derivative of the per-sample loss by the logits: S − mY (CE: T − Y)."""
        reached = targets if self.gce_q is None else targets * probabilities**self.gce_q
        return reached - mass * probabilities

    def _state(self, parameters: Floats, targets: Floats) -> _State:
        """The objective and its gradient, in one pass."""
        count, q = len(self.features), self.gce_q
        rotated = self._rotate(parameters[:-1])
        probabilities, mass = np.empty_like(targets), np.empty((len(targets), 1))
        moment, total, loss = np.zeros_like(rotated), np.zeros(targets.shape[1]), 0.0
        for rows, block in self._blocks():
            target, sample_weight = targets[rows], self.features.weights_of(rows)
            logs = scipy.special.log_softmax(block @ rotated + parameters[-1], axis=1)
            probability = np.exp(logs)
            powers = 1.0 if q is None else np.exp(q * logs)
            mass[rows] = (target * powers).sum(1, keepdims=True)
            # With q the powers enter the loss itself; (1 − p^q)/q keeps its digits as −expm1(q log p)/q.
            losses = -target * logs if q is None else -target * np.expm1(q * logs) / q
            loss += float((sample_weight * losses).sum())
            error = sample_weight * (mass[rows] * probability - target * powers)
            moment += block.T @ error
            total += error.sum(0)
            probabilities[rows] = probability
        gradient = np.empty_like(parameters)
        gradient[:-1] = self._rotate_back(moment) / count + self.weight_decay * parameters[:-1]
        gradient[-1] = total / count if self.features.bias else 0.0
        value = loss / count + self.weight_decay / 2 * float((parameters[:-1] ** 2).sum())
        return _State(value, probabilities, mass, gradient)

    def _residual(self, state: _State) -> float:
        """How far the fixed-point map moves any probability: its logits differ from the current ones by −X∇/λ."""
        rotated, worst = self._rotate(state.gradient[:-1]) / self.weight_decay, 0.0
        for rows, block in self._blocks():
            probability = state.probabilities[rows]
            with np.errstate(divide="ignore"):
                moved = scipy.special.softmax(np.log(probability) - block @ rotated, axis=1)
            worst = max(worst, float(np.abs(moved - probability).max()))
        return max(worst, float(np.abs(state.gradient[-1]).max()))

    def _line_search(self, parameters: Floats, state: _State, step: Floats, targets: Floats) -> tuple[Floats, _State]:
        slope, length = float((state.gradient * step).sum()), 1.0
        while True:
            trial = self._state(parameters + length * step, targets)
            # Near the optimum the decrease drowns in rounding; there a full Newton step is right.
            if trial.value <= state.value + 1e-4 * length * slope + 1e-13 * abs(state.value) or length < 1e-6:
                return parameters + length * step, trial
            length /= 2

    def _newton_step(
        self, state: _State, targets: Floats, precondition: Callable[[Floats], Floats], patience: int
    ) -> tuple[Floats, int]:
        """Solves H·s = −∇ by conjugate gradients, more exactly the closer the optimum is; also the steps taken."""
        step, remaining = np.zeros_like(state.gradient), -state.gradient
        direction = preconditioned = precondition(remaining)
        size = float((remaining * preconditioned).sum())
        stop = size * min(0.01, size**0.5)
        for count in range(patience):
            if size <= stop:
                return step, count
            product = self._hessian_times(state, targets, direction)
            curvature = float((direction * product).sum())
            if curvature <= 0:
                # Only the generalised cross entropy curves downwards; what is solved so far is a descent direction.
                return (direction if count == 0 else step), count
            step = step + size / curvature * direction
            remaining = remaining - size / curvature * product
            preconditioned = precondition(remaining)
            new_size = float((remaining * preconditioned).sum())
            direction, size = preconditioned + new_size / size * direction, new_size
        return step, patience

    def _hessian_times(self, state: _State, targets: Floats, direction: Floats) -> Floats:
        count, q = len(self.features), self.gce_q
        rotated = self._rotate(direction[:-1])
        moment, total = np.zeros_like(rotated), np.zeros(direction.shape[1])
        for rows, block in self._blocks():
            probability = state.probabilities[rows]
            change = block @ rotated + direction[-1]
            change -= (probability * change).sum(1, keepdims=True)
            curved = state.mass[rows] * probability * change
            if q is not None:
                moved = q * targets[rows] * probability**q * change
                curved += moved.sum(1, keepdims=True) * probability - moved
            curved *= self.features.weights_of(rows)
            moment += block.T @ curved
            total += curved.sum(0)
        out = np.empty_like(direction)
        out[:-1] = self._rotate_back(moment) / count + self.weight_decay * direction[:-1]
        out[-1] = total / count if self.features.bias else 0.0
        return out

    def _curvature(self, state: _State, rows: slice) -> Floats:
        probability = state.probabilities[rows]
        return state.mass[rows] * self.features.weights_of(rows) * probability * (1 - probability)

    def _diagonal(self, state: _State) -> Callable[[Floats], Floats]:
        """The Hessian if every sample had the same curvature: diagonal in the eigenbasis."""
        curvature = self._curvature(state, slice(None)).mean(0)
        diagonal = np.empty_like(state.gradient)
        diagonal[:-1] = self.eigenvalues[:, None] / len(self.features) * curvature + self.weight_decay
        diagonal[-1] = curvature.clip(min=1e-12)
        return lambda values: values / diagonal

    def _fits(self, classes: int) -> bool:
        """Whether the whole Hessian may be held."""
        return 8 * ((len(self.eigenvalues) + 1) * classes) ** 2 <= COPY_BYTES

    def _patience(self, classes: int) -> int:
        """The number of Hessian products that cost as much as building it (one large product is 4× as efficient)."""
        count, width = len(self.features), len(self.eigenvalues)
        if not self._fits(classes):
            return 1000
        build = min(count, SAMPLED * width) * width**2 * classes * (classes + 1) + ((width + 1) * classes) ** 3 / 3
        return int(np.clip(build / (16 * count * width * classes), 20, 1000))

    def _whole(self, state: _State) -> Callable[[Floats], Floats]:
        """The inverse of the Hessian of the convex part, from every n-th row where there are many."""
        (width, classes), count = state.gradient.shape, len(self.features)
        skip = max(1, count // (SAMPLED * width))
        hessian, used = np.zeros((classes, width, classes, width)), 0
        for rows, block in self._blocks():
            # A column of ones stands for the intercept; without bias it is decoupled below.
            picked = np.column_stack([block[::skip], np.full(len(block[::skip]), float(self.features.bias))])
            probability = state.probabilities[rows][::skip]
            weight = (state.mass[rows] * self.features.weights_of(rows))[::skip]
            used += len(picked)
            for one in range(classes):
                scaled = picked * (weight * probability[:, one : one + 1])
                hessian[one, :, one] += scaled.T @ picked
                for other in range(one + 1):
                    hessian[one, :, other] -= (scaled * probability[:, other : other + 1]).T @ picked
        for one in range(classes):
            for other in range(one + 1):
                part = hessian[one, :, other] / used
                if self._rotation is not None:
                    part[:-1] = self._rotation.T @ part[:-1]
                    part[:, :-1] = part[:, :-1] @ self._rotation
                hessian[one, :, other] = part
        square = hessian.reshape(classes * width, classes * width)
        penalty = np.full((classes, width), self.weight_decay)
        # Intercepts are not penalised, and one common to all classes changes nothing: keep the matrix invertible.
        penalty[:, -1] = 1e-9 if self.features.bias else 1.0
        square[np.diag_indices_from(square)] += penalty.ravel()
        factor = scipy.linalg.cho_factor(square, lower=True, overwrite_a=True, check_finite=False)

        def solve(values: Floats) -> Floats:
            solved = scipy.linalg.cho_solve(factor, values.T.ravel(), check_finite=False)
            return np.ascontiguousarray(solved.reshape(classes, width).T)

        return solve

    def _to_weights(self, parameters: Floats, pull: Floats) -> Floats:
        if self._rotation is not None:
            return self._rotation @ parameters
        return self.features.transposed_times(lambda rows: pull[rows]) / (len(self.features) * self.weight_decay)
