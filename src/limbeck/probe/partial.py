"""The partial-label student: one round on the teacher's top classes."""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from limbeck.errors import ConfigError, DataError, unknown_name
from limbeck.probe.distillation import Solver, check_options, predict_rounds, self_distillation
from limbeck.probe.features import Features, Floats, Integers, as_features
from limbeck.probe.labels import Labels
from limbeck.probe.softmax import TOLERANCE, SoftmaxProbe

Loss = Literal["ce", "gce"]

IMBALANCE = 3.0
"""From this ratio of the largest to the smallest class on, the warning about imbalance is given."""
NEAR_TIE = 0.005
"""A class average closer than this to a tie is warned of."""


@dataclass(frozen=True, eq=False)
class PartialLabelStudent:
    """A student of one round that learned the teacher's top k classes as equally (or as told) likely.

    Attributes:
        candidates: `[N, k]`, the teacher's top k classes, best first; ties go to the lower class number.
        targets: `[N, C]`, what the student was told.
        predictions: `[N, C]` on the training samples.
        predicted: `[M, C]` for the samples of `predict`, or None.
        weights: `[D, C]`, for raw features.
        intercept: `[C]`.
        solver: "linear", "local" or "exact".
        loss: "ce" or "gce".
        residual: of the softmax fixed point (exact solver), else None.
        warnings: where the method says nothing by construction.
    """

    candidates: Integers
    targets: Floats
    predictions: Floats
    predicted: Floats | None
    weights: Floats
    intercept: Floats
    solver: Solver
    loss: Loss
    residual: float | None
    warnings: tuple[str, ...]

    def predict(self, features: ArrayLike) -> Floats:
        """Predictions for new samples: `[M, D]` → `[M, C]`.

        Raises:
            DataError: where the width differs from the features fitted on, or a feature is no finite number.
        """
        rounds = predict_rounds(features, self.weights[None], self.intercept[None], self.solver)
        return np.asarray(rounds[0])


def partial_labels(scores: ArrayLike, k: int = 2, weights: ArrayLike | None = None) -> tuple[Integers, Floats]:
    """The top k classes of every row and the targets made of them (arXiv 2402.10482, section 5).

    Args:
        scores: `[N, C]`, probabilities or logits of the teacher.
        k: 1..C.
        weights: `[k]` non-negative, of the best class first, scaled to sum 1; None for 1/k each.

    Returns:
        candidates `[N, k]` (ties go to the lower class number) and targets `[N, C]`.

    Raises:
        DataError: where the scores are not a finite matrix.
        ConfigError: where k or the weights do not fit.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise DataError(f"teacher_probabilities: expected finite numbers [N, C], found shape {matrix.shape}")
    share = candidate_weights(k, weights, matrix.shape[1])
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :k].astype(np.int64)
    targets = np.zeros_like(matrix)
    np.put_along_axis(targets, order, np.broadcast_to(share, order.shape), axis=1)
    return order, targets


def candidate_weights(k: int, weights: ArrayLike | None, classes: int) -> Floats:
    """`[k]`, sum 1.

    Raises:
        ConfigError: where k or the weights do not fit.
    """
    if not 1 <= k <= classes:
        raise ConfigError(f"k: expected 1..{classes} (the number of classes), found {k}")
    share = np.ones(k) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (k,) or not np.isfinite(share).all() or (share < 0).any() or share.sum() <= 0:
        raise ConfigError(f"weights: expected {k} non-negative numbers (k={k}) with a positive sum, found {weights!r}")
    return np.asarray(share / share.sum())


def partial_label_warnings(
    classes: int,
    *,
    k: int = 2,
    weights: ArrayLike | None = None,
    noise_matrix: ArrayLike | None = None,
    class_counts: ArrayLike | None = None,
    class_names: tuple[str, ...] | None = None,
) -> tuple[str, ...]:
    """Where equal partial labels cannot tell the right class by construction, one sentence each.

    With a teacher that holds on to the given labels, the class average of the student's targets leads the likeliest
    wrong class by (1 − M_yy − max M_yk)/2 (k = 2): half the noise that goes elsewhere.

    Args:
        classes: C.
        k, weights: as in `partial_labels`; the ties are those of equal weights.
        noise_matrix: `[C, C]` P(given | true), to check for ties.
        class_counts: `[C]` training samples of each class, to check for imbalance.
        class_names: names for the sentences.

    Raises:
        ConfigError: where k, the weights or the noise matrix do not fit.
    """
    share = candidate_weights(k, weights, classes)
    equal = bool(np.ptp(share) == 0)
    names = class_names or tuple(f"class {index}" for index in range(classes))
    notes = []
    if equal and k == classes:
        notes.append(
            f"partial labels with k={k} of {classes} classes give every sample the same target and teach nothing: "
            "with two classes use the teacher's soft outputs (self_distillation) or unequal candidate weights"
        )
    if noise_matrix is not None:
        matrix = as_noise_matrix(noise_matrix)
        if len(matrix) != classes:
            raise ConfigError(f"noise_matrix: expected {classes} rows, found {len(matrix)}")
        for index, row in enumerate(matrix):
            wrong = float(np.delete(row, index).max())
            if row[index] <= wrong + 1e-9:
                notes.append(
                    f"{names[index]}: a wrong label is given as often as the right one ({wrong:.3g} against "
                    f"{row[index]:.3g}): averaging cannot recover it, with any number of rounds or candidates"
                )
            # The likeliest wrong label is a candidate of all samples of the class but those given yet another one.
            elif equal and k == 2 < classes and (1 - row[index] - wrong) / 2 < NEAR_TIE:
                cause = (
                    "its labels are clean, so the second candidate is its most similar class"
                    if row[index] > 1 - 2 * NEAR_TIE
                    else "its wrong labels are nearly all of one class"
                )
                notes.append(
                    f"{names[index]}: {cause}; where the top two of all its samples agree, the right class ties with "
                    "the wrong one: use unequal candidate weights or self_distillation"
                )
        if equal and 3 <= k < classes:
            notes.append(
                f"with k={k} equal candidates the likeliest wrong labels are candidates of every sample of a class and "
                "tie with the right one in the block model: use k=2 or unequal candidate weights"
            )
    if class_counts is not None:
        counts = np.asarray(class_counts, dtype=np.float64)
        if counts.min() * IMBALANCE < counts.max():
            rare, common = int(counts.argmin()), int(counts.argmax())
            notes.append(
                f"classes are imbalanced ({names[common]}: {counts[common]:.0f}, {names[rare]}: {counts[rare]:.0f}): "
                "the theory assumes equal counts; rare classes are averaged over fewer samples and lean to their "
                "neighbours: compare with class_weights='balanced'"
            )
    return tuple(notes)


def as_noise_matrix(matrix: ArrayLike) -> Floats:
    """`[C, C]`, P(given label | true class), checked.

    Raises:
        ConfigError: where it is not square or its rows are not probabilities.
    """
    array = np.asarray(matrix, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or len(array) < 2:
        raise ConfigError(f"noise_matrix: expected a square matrix [C, C], found shape {array.shape}")
    if not ((array >= -1e-12).all() and (np.abs(array.sum(1) - 1) < 1e-6).all()):
        row = int(np.argmax(np.abs(array.sum(1) - 1) + (array < 0).any(1)))
        raise ConfigError(f"noise_matrix: row {row} is {array[row]}, expected probabilities of the given label, sum 1")
    return array


def partial_label_student(
    teacher_probabilities: ArrayLike,
    features: ArrayLike | Features,
    weight_decay: float,
    k: int = 2,
    weights: ArrayLike | None = None,
    solver: Solver = "linear",
    *,
    loss: Loss = "ce",
    gce_q: float = 0.7,
    bias: bool = False,
    standardise: bool = False,
    class_weights: Literal["balanced"] | ArrayLike | None = None,
    predict: ArrayLike | None = None,
    tolerance: float = TOLERANCE,
) -> PartialLabelStudent:
    """A one-round student of partial labels: the teacher's top k classes, 1/k each (arXiv 2402.10482, section 5).

    The given labels are not used again; they have to be among the teacher's top two still. A teacher that has averaged
    them away already (strong weight decay, few dimensions for many samples, a later round) gives all samples of a class
    the same two candidates, which then tie.

    `loss="ce"` is the paper's theory; "gce", as its released code trains, takes
    Σ_k w_k (1 − p_k^q)/q over the candidates (exact solver only). That loss is not convex: it is minimised starting
    from the CE solution, to a stationary point of the stated tolerance.

    Args:
        teacher_probabilities: `[N, C]`, or any scores; only the order within a row counts.
        features: `[N, D]`, or `Features` prepared once for many calls.
        weight_decay: λ > 0, on the scale of the mean loss.
        k: candidates per sample, 1..C.
        weights: `[k]` non-negative, of the best candidate first, scaled to sum 1; None for 1/k each.
        solver: "linear", "local" or "exact", as in `self_distillation`.
        loss: "ce" or "gce".
        gce_q: q of the generalised cross entropy, in (0, 1].
        bias: an unpenalised intercept.
        standardise: centre and scale every feature first.
        class_weights: None, "balanced" or `[C]`, as in `self_distillation`; they follow the partial labels.
        predict: `[M, D]`, more samples to predict.
        tolerance: of the exact solver, largest deviation of a probability from the fixed point.

    Raises:
        DataError: where the shapes do not fit.
        ConfigError: where an option is out of range.

    Warns:
        UserWarning: where the partial labels teach nothing (`partial_label_warnings`).
    """
    check_options(weight_decay, solver)
    if loss not in get_args(Loss):
        raise ConfigError(unknown_name("loss", loss, get_args(Loss)))
    if loss == "gce" and solver != "exact":
        raise ConfigError("loss='gce' has no closed form: use solver='exact' or loss='ce'")
    if not 0 < gce_q <= 1:
        raise ConfigError(f"gce_q: expected a number in (0, 1], found {gce_q}")
    prepared = as_features(features, bias, standardise)
    candidates, targets = partial_labels(teacher_probabilities, k, weights)
    if len(targets) != len(prepared):
        raise DataError(
            f"teacher_probabilities: expected {len(prepared)} rows as in the features, found {len(targets)}"
        )
    if class_weights is not None:
        partial = Labels(targets, None, len(prepared))
        prepared = prepared.reweighted(partial.sample_weights(class_weights))
    notes = partial_label_warnings(targets.shape[1], k=k, weights=weights)
    for note in notes:
        python_warnings.warn(note, UserWarning, stacklevel=2)
    residual = None
    if solver != "exact":
        one = self_distillation(prepared, targets, 1, weight_decay, solver)
        assert one.predictions is not None
        predictions, weight, intercept = one.predictions[0], one.weights[0], one.intercepts[0]
    else:
        fit = SoftmaxProbe(prepared, weight_decay, tolerance=tolerance).fit(targets)
        if loss == "gce":
            probe = SoftmaxProbe(prepared, weight_decay, tolerance=tolerance, gce_q=gce_q)
            fit = probe.fit(targets, fit)
        predictions, residual = fit.probabilities, fit.residual
        weight, intercept = prepared.unfold(fit.weights, fit.intercept)
    student = PartialLabelStudent(
        candidates, targets, predictions, None, weight, intercept, solver, loss, residual, notes
    )
    return student if predict is None else replace(student, predicted=student.predict(predict))
