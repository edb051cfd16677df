"""The numbers behind the pictures of label averaging."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.errors import DataError
from limbeck.probe.distillation import Solver, self_distillation
from limbeck.probe.features import Features, Floats, as_features
from limbeck.probe.labels import class_numbers, margins, one_hot
from limbeck.probe.partial import partial_label_student


def picture_data(
    features: ArrayLike | Features,
    labels: ArrayLike,
    rounds: int,
    weight_decay: float,
    *,
    true_labels: ArrayLike | None = None,
    solver: Solver = "linear",
    k: int = 2,
    weights: ArrayLike | None = None,
    bias: bool = False,
    standardise: bool = False,
    classes: int | None = None,
    bins: int = 60,
) -> dict[str, NDArray[Any]]:
    """Label averaging round by round, and the partial-label student of round 1 beside it, as plain arrays.

    Args:
        features: `[N, D]`.
        labels: `[N]` given class numbers.
        rounds: rounds of self-distillation.
        weight_decay: λ.
        true_labels: `[N]`; None takes the given labels for true, so that no sample is noisy.
        solver, bias, standardise: as in `self_distillation`.
        k, weights: as in `partial_label_student`.
        classes: C, where the labels do not show the last classes.
        bins: of the margin histograms.

    Returns:
        eigenvalues `[r]` of the Gram matrix, descending;
        filters `[rounds, r]`, what each round keeps of the labels along each eigenvector (linearised probe);
        label_energy `[r]`, share of the given labels' deviation from 1/C along each eigenvector (the rest to 1 lies
        outside the span of the features, and is lost in round 1);
        class_average `[rounds, C, C]`, mean output of the samples of each true class; pll_class_average `[C, C]`;
        margins `[rounds, N]`, output for the true class minus the largest other; pll_margins `[N]`;
        clean `[N]` bool, whether given and true label agree;
        margin_edges `[bins + 1]`, clean_histogram and noisy_histogram `[rounds, bins]`, pll_clean_histogram and
        pll_noisy_histogram `[bins]`: counts of margins;
        accuracy `[rounds]`, clean_accuracy, noisy_accuracy `[rounds]` (NaN where there is none of the kind), and
        pll_accuracy, pll_clean_accuracy, pll_noisy_accuracy `[]`: share of margins above 0.

    Raises:
        DataError: where features and labels do not fit.
        ConfigError: where an option is out of range.
    """
    given = class_numbers(labels, "labels")
    truth = given if true_labels is None else class_numbers(true_labels, "true_labels")
    if len(truth) != len(given):
        raise DataError(f"true_labels: expected {len(given)} of them as of the labels, found {len(truth)}")
    prepared = as_features(features, bias, standardise)
    classes = max(2, int(given.max()) + 1, int(truth.max()) + 1) if classes is None else classes
    run = self_distillation(prepared, given, rounds, weight_decay, solver, classes=classes)
    assert run.predictions is not None
    student = partial_label_student(run.predictions[0], prepared, weight_decay, k, weights, solver)
    outputs = np.concatenate([run.predictions, student.predictions[None]])
    members = one_hot(truth, classes)
    averages = np.einsum("ny,tnc->tyc", members, outputs) / members.sum(0).clip(min=1)[:, None]
    margin = margins(outputs, np.broadcast_to(truth, outputs.shape[:2]))
    clean = truth == given
    edges = np.linspace(min(-1.0, margin.min()), max(1.0, margin.max()), bins + 1)
    data: dict[str, NDArray[Any]] = {
        "eigenvalues": run.eigenvalues,
        "filters": run.filters,
        "label_energy": _label_energy(prepared, one_hot(given, classes) - 1 / classes),
        "clean": clean,
        "margin_edges": edges,
    }
    per_round: dict[str, NDArray[Any]] = {
        "class_average": averages,
        "margins": margin,
        "clean_histogram": np.stack([np.histogram(row[clean], edges)[0] for row in margin]),
        "noisy_histogram": np.stack([np.histogram(row[~clean], edges)[0] for row in margin]),
        "accuracy": (margin > 0).mean(1),
        "clean_accuracy": _share(margin[:, clean] > 0),
        "noisy_accuracy": _share(margin[:, ~clean] > 0),
    }
    for name, values in per_round.items():
        data[name], data[f"pll_{name}"] = values[:-1], np.asarray(values[-1])
    return data


def _share(right: NDArray[np.bool_]) -> Floats:
    return right.mean(1) if right.shape[1] else np.full(len(right), np.nan)


def _label_energy(features: Features, deviation: Floats) -> Floats:
    """Share of ‖R^½(Y − 1/C)‖² along every eigenvector of the Gram matrix."""
    spectrum = features.spectrum
    root = 1.0 if features.sample_weights is None else np.sqrt(features.sample_weights)[:, None]
    if spectrum.space == "sample":
        along = spectrum.vectors.T @ (root * deviation)
    else:
        # The sample-space eigenvector is R^½ X u / √g.
        along = spectrum.vectors.T @ features.transposed_times(lambda rows: deviation[rows])
        length = np.sqrt(spectrum.values)[:, None]
        along = np.divide(along, length, out=np.zeros_like(along), where=length > 1e-7 * length.max())
    return np.asarray((along**2).sum(1) / ((root * deviation) ** 2).sum())
