"""Choosing the number of partial labels and their weights."""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from limbeck.errors import ConfigError, DataError, unknown_name
from limbeck.probe.block import TIE, BlockModel
from limbeck.probe.distillation import Solver, self_distillation
from limbeck.probe.features import Features, Floats, Integers, as_features
from limbeck.probe.labels import class_numbers, margins, one_hot
from limbeck.probe.partial import candidate_weights, partial_label_student, partial_label_warnings

Metric = Literal["average", "worst_class"]


class PartialLabelScore(NamedTuple):
    """One choice of partial labels and how it does.

    Attributes:
        k: candidates per sample.
        weights: of the candidates, best first, sum 1.
        average: share right.
        worst_class: smallest share right of any class.
        margin: predicted margin of the worst sample (block model), or NaN (validation).
    """

    k: int
    weights: tuple[float, ...]
    average: float
    worst_class: float
    margin: float


@dataclass(frozen=True, eq=False)
class PartialLabelChoice:
    """The chosen partial labels.

    Attributes:
        k: candidates per sample.
        weights: `[k]`, best first, sum 1.
        basis: "validation" or "block model".
        metric: what was compared.
        table: every choice tried.
        soft: the student of the teacher's full outputs (a plain second round) on the same samples, validation only.
        warnings: ties by construction, imbalance, and whether partial labels lose to the teacher's full outputs.
    """

    k: int
    weights: Floats
    basis: Literal["validation", "block model"]
    metric: Metric
    table: tuple[PartialLabelScore, ...]
    soft: PartialLabelScore | None
    warnings: tuple[str, ...]


def choose_partial_labels(
    teacher_probabilities: ArrayLike | None = None,
    features: ArrayLike | Features | None = None,
    weight_decay: float | None = None,
    *,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    block: BlockModel | None = None,
    candidates: tuple[int, ...] = (1, 2, 3, 4, 5),
    metric: Metric = "average",
    solver: Solver = "linear",
    loss: Literal["ce", "gce"] = "ce",
    bias: bool = False,
    standardise: bool = False,
) -> PartialLabelChoice:
    """Chooses k and the candidates' weights, on validation samples or from a block model with its noise matrix.

    Tried for every k: equal weights (the paper's), and weights halved from one candidate to the next. The paper's
    default (k = 2, ½ each) stays unless another choice is better by more than one standard error on validation, or at
    all in the block model, where choices compare by the share of training samples right, then by the smallest margin.

    Validation labels may carry the same noise as the training labels: the order of the choices survives noise that is
    the same for all classes, their values do not.

    Args:
        teacher_probabilities: `[N, C]` on the training samples (with `validation`).
        features: `[N, D]` training features (with `validation`).
        weight_decay: λ of the student (with `validation`).
        validation: features `[M, D]` and labels `[M]`.
        block: a block model, e.g. `estimate_block(...).spectral`, in place of validation samples.
        candidates: the k tried; those above C are left out.
        metric: "average" or "worst_class" share right.
        solver, loss, bias, standardise: of the student, as in `partial_label_student`.

    Raises:
        ConfigError: unless exactly one of validation and block is given, with what it needs.
        DataError: where shapes do not fit.
    """
    if metric not in get_args(Metric):
        raise ConfigError(unknown_name("metric", metric, get_args(Metric)))
    if (validation is None) == (block is None):
        raise ConfigError("give either validation=(features, labels) or block=BlockModel, not both and not neither")
    if block is not None:
        return _from_block(block, candidates, metric)
    if teacher_probabilities is None or features is None or weight_decay is None:
        raise ConfigError(
            "validation needs teacher_probabilities, features and weight_decay of the training samples too"
        )
    assert validation is not None
    x, labels = np.asarray(validation[0]), class_numbers(validation[1], "validation labels")
    if len(x) != len(labels):
        raise DataError(f"validation: expected as many labels as features ({len(x)}), found {len(labels)}")
    teacher, prepared = np.asarray(teacher_probabilities, dtype=np.float64), as_features(features, bias, standardise)
    classes = teacher.shape[-1]
    table = []
    for k, weights in _choices(candidates, classes):
        with python_warnings.catch_warnings():
            # What a choice cannot tell shows in its score; the warnings of the one chosen are collected below.
            python_warnings.simplefilter("ignore", UserWarning)
            student = partial_label_student(teacher, prepared, weight_decay, k, weights, solver, loss=loss, predict=x)
        assert student.predicted is not None
        table.append(_score(k, weights, student.predicted, labels))
    soft = _soft_student(teacher, prepared, weight_decay, solver, x, labels)
    best = _best_on_validation(table, metric, labels)
    counts = one_hot(teacher.argmax(1), classes).sum(0)
    notes = list(partial_label_warnings(classes, k=best.k, weights=best.weights, class_counts=counts.clip(min=1)))
    lead = getattr(soft, metric) - getattr(best, metric)
    if lead > _standard_error(getattr(best, metric), metric, labels):
        notes.append(
            f"partial labels lose to the teacher's full outputs on validation ({getattr(best, metric):.3f} against "
            f"{getattr(soft, metric):.3f}): a plain second round, or the teacher itself, is the better choice here"
        )
    return PartialLabelChoice(best.k, np.array(best.weights), "validation", metric, tuple(table), soft, tuple(notes))


def _choices(candidates: tuple[int, ...], classes: int) -> list[tuple[int, tuple[float, ...]]]:
    allowed = [k for k in candidates if 1 <= k <= classes]
    if not allowed:
        raise ConfigError(f"candidates: expected numbers in 1..{classes}, found {candidates}")
    choices = []
    for k in allowed:
        choices.append((k, tuple(candidate_weights(k, None, classes).tolist())))
        if k > 1:
            choices.append((k, tuple(candidate_weights(k, 0.5 ** np.arange(k), classes).tolist())))
    return choices


def _score(k: int, weights: tuple[float, ...], outputs: Floats, labels: Integers) -> PartialLabelScore:
    # An exact tie is a coin toss, not a success of the lower class number.
    right = margins(outputs, labels) > TIE
    per_class = [float(right[labels == index].mean()) for index in np.unique(labels)]
    return PartialLabelScore(k, weights, float(right.mean()), min(per_class), float("nan"))


def _soft_student(
    teacher: Floats, features: Features, weight_decay: float, solver: Solver, x: Floats, labels: Integers
) -> PartialLabelScore:
    # Scores and outputs of the linearised probe may be negative; the exact solver needs probabilities.
    full = teacher if solver == "linear" else teacher.clip(min=0)
    full = full / full.sum(1, keepdims=True)
    result = self_distillation(features, full, 1, weight_decay, solver, predict=x, keep_predictions=False)
    assert result.predicted is not None
    return _score(teacher.shape[1], (), result.predicted[0], labels)


def _standard_error(share: float, metric: Metric, labels: Integers) -> float:
    counts = np.bincount(labels)
    size = len(labels) if metric == "average" else counts[counts > 0].min()
    return float(np.sqrt(share * (1 - share) / size))


def _is_default(choice: PartialLabelScore) -> bool:
    return choice.k == 2 and choice.weights == (0.5, 0.5)


def _best_on_validation(table: list[PartialLabelScore], metric: Metric, labels: Integers) -> PartialLabelScore:
    best = max(table, key=lambda choice: getattr(choice, metric))
    top = getattr(best, metric)
    for choice in table:
        if _is_default(choice) and getattr(choice, metric) >= top - _standard_error(top, metric, labels):
            return choice
    return best


def _from_block(block: BlockModel, candidates: tuple[int, ...], metric: Metric) -> PartialLabelChoice:
    table = []
    cells = block.noise_matrix > 0
    truth = np.broadcast_to(np.arange(block.classes)[:, None], cells.shape)
    for k, weights in _choices(candidates, block.classes):
        margin = margins(block.partial_label_predictions(k, weights), truth)
        right = ((margin > TIE) * block.noise_matrix).sum(1)
        average = float(right @ block.counts / block.counts.sum())
        table.append(PartialLabelScore(k, weights, average, float(right.min()), float(margin[cells].min())))
    best = max(
        table, key=lambda choice: (round(getattr(choice, metric), 9), round(choice.margin, 9), _is_default(choice))
    )
    notes = list(
        partial_label_warnings(
            block.classes, k=best.k, weights=best.weights, noise_matrix=block.noise_matrix, class_counts=block.counts
        )
    )
    if best.worst_class < 1 - TIE:
        notes.append(
            f"in the block model no partial labels get every sample right (best: {best.average:.3f}, worst class "
            f"{best.worst_class:.3f}): the teacher holds its labels too firmly or has averaged them away; change "
            "weight_decay or compare with self_distillation"
        )
    return PartialLabelChoice(best.k, np.array(best.weights), "block model", metric, tuple(table), None, tuple(notes))
