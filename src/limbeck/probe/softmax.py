"""The exact softmax fixed point: L2-regularised multinomial regression on soft targets, by Newton's method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from limbeck.errors import ConfigError, DataError
from limbeck.probe.features import CACHE_BYTES, COPY_BYTES, Features, Floats, not_finite

TOLERANCE = 1e-9
"""Default bound on the residual of the fixed point, the largest deviation of any one probability."""

SAMPLED = 50
"""Rows per dimension from which the whole Hessian is built where there are more."""

FAR = 0.1
"""The residual is not looked at after a step that promised more than this: it costs half a Hessian product."""

ENOUGH = 3e-4
"""`descend` ends with the first step that promises less, in nats a sample: the validation accuracy is then within .1
points of the converged one."""

STEPS = 100
"""Of `descend` at most."""

RENEWED = 3
"""Steps after which its metric is computed anew: by then most samples are sure, and few of them curve the loss."""

FLOOR = 0.03
"""Share of the curvature at weights of 0 that each sample keeps in it: outliers that are sure for the moment would
leave directions without any, and steps far too long."""

REMEMBERED = 20
"""Steps of which it keeps the change of the gradient."""

Solve = Callable[[Floats], Floats]


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
        features: what it was fitted on.
        parameters: `[C, r + 1]` in the coordinates of the solver, intercept last.
        preconditioner: an approximate inverse of the last Hessian, in these coordinates.
    """

    weights: Floats
    intercept: Floats
    probabilities: Floats
    residual: float
    iterations: int
    features: Features
    parameters: Floats
    preconditioner: Solve | None = None


@dataclass(frozen=True, eq=False)
class State:
    """The objective at one point: value, probabilities `[C, N]`, mass `[N]` and gradient `[C, r + 1]`."""

    value: float
    probabilities: Floats
    mass: Floats
    gradient: Floats


class SoftmaxProbe:
    """Minimises mean(r_i · CE(T_i, softmax(Wᵀx_i + b))) + λ/2 ‖W‖², whose stationary point is the fixed point

        Y = softmax((T − Y) G / (Nλ)),    W = Xᵀ R (T − Y) / (Nλ)

    (arXiv 2402.10482, section 3). Newton steps by preconditioned conjugate gradients: in feature space as the features
    are, in sample space (fewer samples than features) in the eigenbasis of the Gram matrix. The preconditioner is the
    Hessian with each sample's curvature, a matrix `[C, C]`, replaced by its mean over the directions in which it acts:
    one weighted Gram matrix serves all classes, and with two classes it is the Hessian itself. Where that does not do
    and there is room, the whole Hessian takes its place. Memory beside the features: a few arrays `[N, C]` and at most
    `COPY_BYTES` of preconditioner.

    Args:
        features: prepared features.
        weight_decay: λ > 0.
        tolerance: on the residual of the fixed point.
        max_iterations: Newton steps.
        dtype: of the arithmetic. float32 is for `descend`, where the weight decay is `resolved`.
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
        dtype: type[np.floating[Any]] = np.float64,
    ) -> None:
        self.features = features
        self.weight_decay = weight_decay
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.gce_q = gce_q
        self.dtype = dtype
        # In sample space the coordinates are R^−½·V·√g: `[N, r]`, small.
        self._coordinates: Floats | None = None
        if len(features) < features.width:
            spectrum = features.spectrum
            self._coordinates = spectrum.vectors * np.sqrt(spectrum.values)
            if features.sample_weights is not None:
                self._coordinates /= np.sqrt(features.sample_weights)[:, None]
        self.rank = features.width if self._coordinates is None else self._coordinates.shape[1]
        self._chunk = max(1, CACHE_BYTES // (np.dtype(dtype).itemsize * self.rank))
        self._rows = (
            features.prepared(dtype) if self._coordinates is None else self._coordinates.astype(dtype, copy=False)
        )

    def fit(self, targets: Floats, start: SoftmaxFit | None = None) -> SoftmaxFit:
        """The fixed point for targets `[N, C]` (rows of non-negative numbers, summing to 1).

        Args:
            targets: `[N, C]`.
            start: a fit to start from, on the same features or on other samples, weights or weight decay of the same
                width and classes; None for weights of 0.

        Raises:
            DataError: where a feature is no finite number.
            ConfigError: where the tolerance cannot be reached: weight_decay is too small for float64.
        """
        wanted = np.ascontiguousarray(targets.T, dtype=self.dtype)
        classes, whole = len(wanted), False
        parameters, solve = self._start(classes, start)
        state = self._first(parameters, wanted)
        if solve is None:
            solve = self.shared(state) if self._coordinates is None else self._diagonal(state)
        patience, refresh = self._patience(classes), max(1, self.rank // (16 * classes))
        iteration = spent = since = 0
        promised = residual = 0.0
        while promised > FAR or (residual := self._residual(state)) > self.tolerance:
            if iteration == self.max_iterations:
                raise ConfigError(
                    f"weight_decay={self.weight_decay:g}: the exact softmax probe came to a residual of "
                    f"{self._residual(state):.1e} in {iteration} Newton steps, expected {self.tolerance:g}: raise "
                    "weight_decay, scale the features down or raise the tolerance"
                )
            if spent >= patience and self._fits(classes):
                solve, whole, spent, since = self.whole(state), True, 0, 0
            elif not whole and since > refresh:
                solve, since = self.shared(state), 0
            step, products = self._newton_step(state, wanted, solve, patience)
            promised = -float((state.gradient * step).sum())
            parameters, state = self.line_search(parameters, state, step, wanted)
            spent, since, iteration = spent + products, since + products, iteration + 1
        probabilities = np.ascontiguousarray(state.probabilities.T)
        weights = self._to_weights(parameters, state, wanted)
        return SoftmaxFit(
            weights, parameters[:, -1].copy(), probabilities, residual, iteration, self.features, parameters, solve
        )

    def descend(self, targets: Floats, steps: int = STEPS, enough: float = ENOUGH) -> tuple[Floats, Solve]:
        """Parameters `[C, r + 1]` by L-BFGS with the `shared` Hessian, and the inverse of that.

        The first step is the closed form itself, the Newton step at weights of 0. The last is the first that promises
        less than `enough`; it is taken on trust.
        """
        wanted = np.ascontiguousarray(targets.T, dtype=self.dtype)
        parameters = np.zeros((len(wanted), self.rank + 1), self.dtype)
        state = self._first(parameters, wanted)
        solve = self.shared(state) if self._coordinates is None else self._diagonal(state)
        pairs: list[tuple[Floats, Floats, float]] = []
        for count in range(steps):
            if count == RENEWED:
                solve = self.shared(state, FLOOR)
            step = -_quasi_newton(state.gradient, pairs, solve)
            if -np.vdot(state.gradient, step) < enough:
                return parameters + step, solve
            moved, new = self.line_search(parameters, state, step, wanted)
            move, change = moved - parameters, new.gradient - state.gradient
            if (curved := float(np.vdot(move, change))) > 0:
                pairs = [*pairs[-REMEMBERED + 1 :], (move, change, curved)]
            parameters, state = moved, new
        return parameters, solve

    def resolved(self, classes: int) -> bool:
        """Whether the weight decay stands well above the rounding of the `shared` Hessian, whatever the weights."""
        total = 0.0
        for rows, block in self._blocks():
            weights = self.features.sample_weights
            total += float(np.vdot(block, block) if weights is None else weights[rows] @ (block**2).sum(1))
        # No sample curves the loss more than 1/C.
        return bool(self.weight_decay > 10 * np.finfo(self.dtype).eps * total / (len(self.features) * classes))

    def next_round(self, parameters: Floats, curvature: Solve) -> Floats:
        """Self-distillation of a probe, linearised about it: `(H + λ)⁻¹ H W`, with `(H + λ)⁻¹` given."""
        penalised = self.weight_decay * parameters
        penalised[:, -1] = 0.0
        return parameters - curvature(penalised)

    def weights(self, parameters: Floats) -> Floats:
        """Parameters `[C, r + 1]` as weights `[D, C]` for the prepared features."""
        if self._coordinates is None:
            return np.ascontiguousarray(parameters[:, :-1].T)
        # U = XᵀR^½ V/√g, and the product with XᵀR is at hand.
        spectrum, weights = self.features.spectrum, self.features.sample_weights
        length = np.sqrt(spectrum.values)[:, None]
        scaled = np.divide(parameters[:, :-1].T, length, out=np.zeros_like(parameters[:, :-1].T), where=length > 0)
        dual = spectrum.vectors @ scaled
        if weights is not None:
            dual /= np.sqrt(weights)[:, None]
        return self.features.transposed_times(lambda rows: dual[rows])

    def state(self, parameters: Floats, targets: Floats) -> State:
        """The objective and its gradient for targets `[C, N]`, in one pass."""
        count, q = len(self.features), self.gce_q
        probabilities, mass = np.empty_like(targets), np.ones(targets.shape[1], targets.dtype)
        gradient, loss, weights = np.zeros_like(parameters), 0.0, np.ascontiguousarray(parameters[:, :-1].T)
        start = not weights.any()
        for rows, block in self._blocks():
            target = targets[:, rows]
            # Classes first: sums over a short last axis are an order of magnitude slower.
            logs = np.zeros_like(target) if start else np.ascontiguousarray((block @ weights).T)
            logs += parameters[:, -1:]
            logs -= logs.max(0)
            probability = np.exp(logs, out=probabilities[:, rows])
            total = probability.sum(0)
            probability /= total
            if q is None:
                losses = np.log(total) - (target * logs).sum(0)
                error = probability - target
            else:
                logs -= np.log(total)
                reached = target * np.exp(q * logs)
                mass[rows] = reached.sum(0)
                # With q the powers enter the loss itself; (1 − p^q)/q keeps its digits as −expm1(q log p)/q.
                losses = -(target * np.expm1(q * logs)).sum(0) / q
                error = mass[rows] * probability - reached
            if self.features.sample_weights is not None:
                losses *= self._sample_weights(rows)
                error *= self._sample_weights(rows)
            loss += float(losses.sum())
            gradient[:, :-1] += error @ block
            gradient[:, -1] += error.sum(1)
        self._finish(gradient, parameters)
        value = loss / count + self.weight_decay / 2 * float((parameters[:, :-1] ** 2).sum())
        return State(value, probabilities, mass, gradient)

    def line_search(self, parameters: Floats, state: State, step: Floats, targets: Floats) -> tuple[Floats, State]:
        """The longest of the steps 1, ½, ¼ … that lowers the objective enough."""
        slope, length = float((state.gradient * step).sum()), 1.0
        while True:
            trial = self.state(parameters + length * step, targets)
            # Near the optimum the decrease drowns in rounding; there a full Newton step is right.
            if trial.value <= state.value + 1e-4 * length * slope + 1e-13 * abs(state.value) or length < 1e-6:
                return parameters + length * step, trial
            length /= 2

    def shared(self, state: State, floor: float = 0.0) -> Solve:
        """The inverse of the Hessian with every sample's curvature the same in all directions of the classes.

        Args:
            state: where.
            floor: added to the curvatures, as a share of that at weights of 0.
        """
        rank, count = self.rank, len(self.features)
        product = np.zeros((rank, rank), self.dtype, order="F")
        square = np.zeros((rank + 1, rank + 1), self.dtype, order="F")
        update = scipy.linalg.get_blas_funcs("syrk", (product,))
        buffer = np.empty((min(self._chunk, count), rank), self.dtype)
        for rows, block in self._blocks():
            curvature = self._curvature(state, rows) + floor / len(state.probabilities)
            common = float(curvature[0])
            # At weights of 0 all samples curve alike: nothing to scale.
            if (curvature == common).all():
                product = update(common / count, block.T, 1.0, product, lower=True, overwrite_c=True)
            else:
                scaled = np.multiply(block, np.sqrt(curvature)[:, None], out=buffer[: len(block)])
                product = update(1 / count, scaled.T, 1.0, product, lower=True, overwrite_c=True)
            square[-1, :-1] += curvature @ block
            square[-1, -1] += curvature.sum()
        square[-1] /= count
        square[:-1, :-1] = product
        if self.features.bias:
            square[-1, -1] += 1e-12 + 100 * np.finfo(self.dtype).eps * square[-1, -1]
        else:
            square[-1, :-1], square[-1, -1] = 0.0, 1.0
        # Collinear features and hardly any weight decay: it approximates all the same, and must stay invertible.
        square[np.diag_indices(rank)] += self.weight_decay + 1e-14 * square.trace()
        factor, lower = scipy.linalg.cho_factor(square, lower=True, overwrite_a=True, check_finite=False)
        # What scipy.linalg.cho_solve calls, which takes twice as long to look at its arguments.
        solve = scipy.linalg.get_lapack_funcs("potrs", (factor,))
        return lambda values: np.ascontiguousarray(solve(factor, values.T, lower=lower)[0].T)

    def whole(self, state: State) -> Solve:
        """The inverse of the Hessian of the convex part, from every n-th row where there are many."""
        (classes, width), count = state.gradient.shape, len(self.features)
        skip = max(1, count // (SAMPLED * width))
        hessian, used = np.zeros((classes, width, classes, width)), 0
        for rows, block in self._blocks():
            # A column of ones stands for the intercept; without bias it is decoupled below.
            picked = np.column_stack([block[::skip], np.full(len(block[::skip]), float(self.features.bias))])
            probability = state.probabilities[:, rows][:, ::skip]
            weight = (state.mass[rows] * self._sample_weights(rows))[::skip]
            used += len(picked)
            for one in range(classes):
                scaled = picked * (weight * probability[one])[:, None]
                hessian[one, :, one] += scaled.T @ picked
                for other in range(one + 1):
                    hessian[one, :, other] -= (scaled * probability[other][:, None]).T @ picked
        hessian /= used
        square = hessian.reshape(classes * width, classes * width)
        penalty = np.full((classes, width), self.weight_decay)
        # Intercepts are not penalised, and one common to all classes changes nothing: keep the matrix invertible.
        penalty[:, -1] = 1e-9 if self.features.bias else 1.0
        square[np.diag_indices_from(square)] += penalty.ravel()
        factor = scipy.linalg.cho_factor(square, lower=True, overwrite_a=True, check_finite=False)

        def solve(values: Floats) -> Floats:
            solved = scipy.linalg.cho_solve(factor, values.ravel(), check_finite=False)
            return np.asarray(solved.reshape(classes, width))

        return solve

    def hessian_times(self, state: State, targets: Floats, direction: Floats) -> Floats:
        """The Hessian at a state times a direction `[C, r + 1]`, in one pass."""
        q, out = self.gce_q, np.zeros_like(direction)
        for rows, block in self._blocks():
            probability = state.probabilities[:, rows]
            change = direction[:, :-1] @ block.T
            change += direction[:, -1:]
            change -= (probability * change).sum(0)
            curved = probability * change
            curved *= state.mass[rows]
            if q is not None:
                moved = q * targets[:, rows] * probability**q * change
                curved += moved.sum(0) * probability - moved
            curved *= self._sample_weights(rows)
            out[:, :-1] += curved @ block
            out[:, -1] += curved.sum(1)
        self._finish(out, direction)
        return out

    def _first(self, parameters: Floats, targets: Floats) -> State:
        state = self.state(parameters, targets)
        if not np.isfinite(state.gradient).all():
            raise DataError(not_finite(self.features.x, "features"))
        return state

    def _start(self, classes: int, start: SoftmaxFit | None) -> tuple[Floats, Solve | None]:
        parameters = np.zeros((classes, self.rank + 1), self.dtype)
        if start is None:
            return parameters, None
        if start.features is self.features:
            return start.parameters, start.preconditioner
        parameters[:, -1] = start.intercept if self.features.bias else 0.0
        if self._coordinates is None:
            parameters[:, :-1] = start.weights.T
        else:
            # X = V √g Uᵀ (rows divided by √r where weighted): the coordinates of weights w are Uᵀw.
            reached = self.features.times(start.weights)
            if self.features.sample_weights is not None:
                reached *= np.sqrt(self.features.sample_weights)[:, None]
            length = np.sqrt(self.features.spectrum.values)
            along = self.features.spectrum.vectors.T @ reached
            parameters[:, :-1] = np.divide(
                along.T, length, out=np.zeros_like(along.T), where=length > 1e-7 * length.max()
            )
        return parameters, None

    def _blocks(self) -> Iterator[tuple[slice, Floats]]:
        kept = self._rows
        blocks = self.features.blocks() if kept is None else [(slice(0, len(kept)), kept)]
        for rows, block in blocks:
            for start in range(0, len(block), self._chunk):
                part = block[start : start + self._chunk].astype(self.dtype, copy=False)
                yield slice(rows.start + start, rows.start + start + len(part)), part

    def _sample_weights(self, rows: slice) -> Floats | float:
        weights = self.features.sample_weights
        return 1.0 if weights is None else weights[rows].astype(self.dtype, copy=False)

    def _finish(self, moment: Floats, parameters: Floats) -> None:
        """Sums over the samples become those of the mean loss, and the penalty joins them."""
        moment /= len(self.features)
        moment[:, :-1] += self.weight_decay * parameters[:, :-1]
        if not self.features.bias:
            moment[:, -1] = 0.0

    def _residual(self, state: State) -> float:
        """How far the fixed-point map moves any probability: its logits differ from the current ones by −X∇/λ."""
        change, worst = state.gradient[:, :-1] / self.weight_decay, 0.0
        for rows, block in self._blocks():
            probability = state.probabilities[:, rows]
            with np.errstate(divide="ignore"):
                logs = np.log(probability)
            logs -= change @ block.T
            logs -= logs.max(0)
            moved = np.exp(logs)
            moved /= moved.sum(0)
            worst = max(worst, float(np.abs(moved - probability).max()))
        return max(worst, float(np.abs(state.gradient[:, -1]).max()))

    def _newton_step(self, state: State, targets: Floats, precondition: Solve, patience: int) -> tuple[Floats, int]:
        """Solves H·s = −∇ by conjugate gradients, more exactly the closer the optimum is; also the products taken."""
        step, remaining = np.zeros_like(state.gradient), -state.gradient
        direction = preconditioned = precondition(remaining)
        size = float((remaining * preconditioned).sum())
        stop = size * min(0.01, size**0.5)
        for count in range(patience):
            if size <= stop:
                return step, count
            product = self.hessian_times(state, targets, direction)
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

    def _diagonal(self, state: State) -> Solve:
        """`shared` if every sample had the same curvature: diagonal in the eigenbasis."""
        curvature = self._curvature(state, slice(None)).mean()
        diagonal = np.empty(self.rank + 1)
        diagonal[:-1] = self.features.spectrum.values / len(self.features) * curvature + self.weight_decay
        diagonal[-1] = max(curvature, 1e-12)
        inverse = (1 / diagonal).astype(self.dtype)
        return lambda values: values * inverse

    def _curvature(self, state: State, rows: slice) -> Floats:
        """`[b]`, of every sample: diag(p) − ppᵀ has the trace 1 − Σp² and acts in C − 1 directions."""
        probability = state.probabilities[:, rows]
        trace = 1 - (probability**2).sum(0)
        return np.asarray(trace.clip(min=0) * state.mass[rows] * self._sample_weights(rows) / (len(probability) - 1))

    def _fits(self, classes: int) -> bool:
        """Whether the whole Hessian may be held."""
        return 8 * ((self.rank + 1) * classes) ** 2 <= COPY_BYTES

    def _patience(self, classes: int) -> int:
        """The number of Hessian products that cost as much as building it (one large product is 4× as efficient)."""
        count, width = len(self.features), self.rank
        if not self._fits(classes):
            return 1000
        build = min(count, SAMPLED * width) * width**2 * classes * (classes + 1) + ((width + 1) * classes) ** 3 / 3
        return int(np.clip(build / (16 * count * width * classes), 20, 1000))

    def _to_weights(self, parameters: Floats, state: State, targets: Floats) -> Floats:
        """`[D, C]` for the prepared features."""
        if self._coordinates is None:
            return np.ascontiguousarray(parameters[:, :-1].T)
        # Minus the derivative of the per-sample loss by the logits: S − mY (CE: T − Y).
        reached = targets if self.gce_q is None else targets * state.probabilities**self.gce_q
        pull = (reached - state.mass * state.probabilities).T
        return self.features.transposed_times(lambda rows: pull[rows]) / (len(self.features) * self.weight_decay)


def _quasi_newton(gradient: Floats, pairs: list[tuple[Floats, Floats, float]], solve: Solve) -> Floats:
    """The two-loop recursion of L-BFGS (Nocedal & Wright, algorithm 7.4) from an approximate inverse Hessian."""
    found, scales = gradient.copy(), []
    for move, change, curved in reversed(pairs):
        scales.append(float(np.vdot(move, found)) / curved)
        found -= scales[-1] * change
    found = solve(found)
    for (move, change, curved), scale in zip(pairs, reversed(scales), strict=True):
        found += (scale - float(np.vdot(change, found)) / curved) * move
    return found
