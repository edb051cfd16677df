"""The block model estimated from data: correlations, superclasses, noise matrix, predicted and observed rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.errors import ConfigError, DataError
from limbeck.probe.block import BlockModel, block_model, correlation_clusters
from limbeck.probe.distillation import Solver, self_distillation
from limbeck.probe.features import BLOCK_BYTES, Features, Floats, Integers
from limbeck.probe.labels import class_numbers, one_hot
from limbeck.probe.partial import as_noise_matrix


@dataclass(frozen=True, eq=False)
class BlockEstimate:
    """What the block model says about these data, and what happens.

    Attributes:
        same, other: mean correlation inside a class (c) and between classes (d), every class counted alike.
        class_correlation: `[C, C]` mean correlations, own pairs left out of the diagonal.
        superclasses: `[C]` clusters of similar classes.
        counts: `[C]` samples of each true class (estimated where the truth is not given).
        noise_matrix: `[C, C]` P(given | true): measured, given or estimated.
        model: the block model of the paper, with c and d alone.
        spectral: the same with all class correlations and counts, and with the features' own spectrum.
        predicted_accuracy: `[rounds]` share of training samples right, from `model`.
        spectral_accuracy: `[rounds]` the same from `spectral`. Both know nothing of classes that overlap: 1 means
            "label noise is averaged away", not "no mistakes".
        observed_accuracy: `[rounds]` what happens, or None without true labels.
        predicted_agreement, spectral_agreement, observed_agreement: `[rounds]` share of training samples that come out
            as their given label.
        rounds: rounds until all noise is averaged away, from p and q of `model`; None if never.
        spectral_rounds: the same from `spectral`, None if not within `LIMIT` rounds.
    """

    same: float
    other: float
    class_correlation: Floats
    superclasses: Integers
    counts: Floats
    noise_matrix: Floats
    model: BlockModel
    spectral: BlockModel
    predicted_accuracy: Floats
    spectral_accuracy: Floats
    observed_accuracy: Floats | None
    predicted_agreement: Floats
    spectral_agreement: Floats
    observed_agreement: Floats
    rounds: int | None
    spectral_rounds: int | None


LIMIT = 100
"""Rounds looked ahead for `BlockEstimate.spectral_rounds`."""


def estimate_block(
    features: ArrayLike,
    labels: ArrayLike,
    weight_decay: float,
    *,
    rounds: int = 5,
    true_labels: ArrayLike | None = None,
    noise_matrix: ArrayLike | Literal["estimate"] | None = None,
    solver: Solver = "linear",
    classes: int | None = None,
    normalise: bool = True,
) -> BlockEstimate:
    """Fits the block model to features and labels and sets its predictions beside what happens.

    Without true labels the correlations seen between *given* classes are mixtures of the true ones; they are unmixed
    with the noise matrix.

    Args:
        features: `[N, D]`.
        labels: `[N]` given class numbers.
        weight_decay: λ of the probe, for the features as used (unit length where `normalise`).
        rounds: rounds to predict and to run.
        true_labels: `[N]`, where they are known.
        noise_matrix: `[C, C]`; "estimate" (`estimate_noise_matrix`); None measures it on the true labels, or estimates.
        solver: of the rounds that are run.
        classes: C, where the labels do not show the last classes.
        normalise: scale every sample to length 1 first, as the theory has it. Off, correlations are inner products over
            the mean squared length.

    Raises:
        DataError: where labels and features do not fit, a class has fewer than two samples, or a sample is all zeros.
        ConfigError: where the noise matrix does not fit.
    """
    given = class_numbers(labels, "labels")
    truth = None if true_labels is None else class_numbers(true_labels, "true_labels")
    if truth is not None and len(truth) != len(given):
        raise DataError(f"true_labels: expected {len(given)} of them as of the labels, found {len(truth)}")
    found = max(2, int(given.max()) + 1, 0 if truth is None else int(truth.max()) + 1)
    classes = found if classes is None else classes
    if found > classes:
        raise DataError(f"labels: class {found - 1} is outside the {classes} classes declared")
    prepared = Features(unit_length(np.asarray(features)) if normalise else features)
    if len(prepared) != len(given):
        raise DataError(f"labels: expected {len(prepared)} of them as rows of features, found {len(given)}")
    matrix = _noise(prepared, given, truth, noise_matrix, classes)
    correlation, counts, length = _class_correlation(prepared, given if truth is None else truth, classes)
    if truth is None:
        correlation, counts = _unmixed(correlation, counts, matrix)
    off = ~np.eye(classes, dtype=bool)
    same, other = float(np.diag(correlation).mean()), float(correlation[off].mean())
    n_lambda = len(given) * weight_decay / length
    model = block_model(classes, counts.mean(), same, other, matrix, n_lambda)
    detailed = block_model(classes, counts, np.diag(correlation), correlation, matrix, n_lambda)
    happened = self_distillation(prepared, given, rounds, weight_decay, solver, classes=classes)
    assert happened.predictions is not None
    spectral = replace(detailed, spectrum=happened.eigenvalues / length)
    outcome = happened.predictions.argmax(-1)
    ahead = np.flatnonzero(spectral.accuracy(LIMIT) > 1 - 1e-9)
    return BlockEstimate(
        same=same,
        other=other,
        class_correlation=correlation,
        superclasses=correlation_clusters(correlation),
        counts=counts,
        noise_matrix=matrix,
        model=model,
        spectral=spectral,
        predicted_accuracy=model.accuracy(rounds),
        spectral_accuracy=spectral.accuracy(rounds),
        observed_accuracy=None if truth is None else (outcome == truth).mean(1),
        predicted_agreement=model.agreement(rounds),
        spectral_agreement=spectral.agreement(rounds),
        observed_agreement=(outcome == given).mean(1),
        rounds=model.minimum.rounds,
        spectral_rounds=int(ahead[0]) + 1 if len(ahead) else None,
    )


def estimate_noise_matrix(
    features: ArrayLike | Features,
    labels: ArrayLike,
    weight_decay: float | None = None,
    *,
    folds: int = 3,
    classes: int | None = None,
    seed: int = 0,
) -> Floats:
    """P(given label | true class) from features and noisy labels alone, `[C, C]`.

    The confident joint of Northcutt et al. 2021 (arXiv 1911.00068) on out-of-fold outputs of the closed-form probe: a
    sample counts as of class k where its output for k is at least the mean output for k of the samples given k.
    Mistakes of the probe count as noise, so it is overstated where classes overlap, and pair noise near one half is
    not found.

    Args:
        features: `[N, D]`.
        labels: `[N]` given class numbers.
        weight_decay: λ; None takes the one of five (1e-1 to 1e-5 times the mean squared feature length) whose
            out-of-fold outputs agree best with the given labels.
        folds: 2 or more.
        classes: C, where the labels do not show the last classes.
        seed: of the folds.

    Raises:
        DataError: where labels and features do not fit, or a class has no confident sample.
        ConfigError: where the number of folds does not fit.
    """
    given = class_numbers(labels, "labels")
    x = features.x if isinstance(features, Features) else np.asarray(features)
    if len(x) != len(given):
        raise DataError(f"labels: expected {len(x)} of them as rows of features, found {len(given)}")
    if not 2 <= folds <= len(given):
        raise ConfigError(f"folds: expected 2..{len(given)}, found {folds}")
    number = max(2, int(given.max()) + 1) if classes is None else classes
    grid = (
        [weight_decay] if weight_decay is not None else [mean_squared_length(x) * 10.0**-power for power in range(1, 6)]
    )
    fold = np.random.default_rng(seed).permutation(len(given)) % folds
    outputs = np.empty((len(grid), len(given), number))
    for index in range(folds):
        held_out = fold == index
        fitted = Features(x[~held_out])
        for row, decay in enumerate(grid):
            result = self_distillation(
                fitted, given[~held_out], 1, decay, classes=number, predict=x[held_out], keep_predictions=False
            )
            assert result.predicted is not None
            outputs[row, held_out] = result.predicted[0]
    best = int((outputs.argmax(-1) == given).mean(1).argmax())
    return confident_joint(outputs[best], given)


def confident_joint(outputs: Floats, labels: Integers) -> Floats:
    """P(given | true) `[C, C]` by counting confident samples (arXiv 1911.00068, section 3).

    Args:
        outputs: `[N, C]` out-of-sample scores.
        labels: `[N]` given class numbers.

    Raises:
        DataError: where a class was never given or has no confident sample.
    """
    classes = outputs.shape[1]
    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        raise DataError(f"labels: class {int(counts.argmin())} was never given, its noise cannot be estimated")
    thresholds = np.array([outputs[labels == index, index].mean() for index in range(classes)])
    confident = outputs >= thresholds
    rows = np.flatnonzero(confident.any(1))
    likely = np.where(confident, outputs, -np.inf)[rows].argmax(1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (likely, labels[rows]), 1)
    # Few samples of a hard class are confident: scale every given label back to its share.
    joint *= counts / joint.sum(0).clip(min=1)
    if (joint.sum(1) == 0).any():
        empty = int(joint.sum(1).argmin())
        raise DataError(f"labels: no sample looks confidently like class {empty}, its noise cannot be estimated")
    return np.asarray(joint / joint.sum(1, keepdims=True))


def mean_squared_length(features: NDArray[np.generic]) -> float:
    """The natural scale of a weight decay: the mean of ‖x‖² over the rows."""
    size = max(1, BLOCK_BYTES // (8 * max(1, features.shape[1])))
    blocks = (features[start : start + size].astype(np.float64) for start in range(0, len(features), size))
    return float(sum((block**2).sum() for block in blocks) / len(features))


def unit_length(features: NDArray[np.generic]) -> NDArray[np.generic]:
    """Rows scaled to length 1, in the same floating-point type (a copy).

    Raises:
        DataError: where a row is all zeros.
    """
    if features.ndim != 2:
        raise DataError(f"features: expected a matrix [N, D], found shape {features.shape}")
    out = np.empty(features.shape, np.promote_types(features.dtype, np.float32))
    size = max(1, BLOCK_BYTES // (8 * max(1, features.shape[1])))
    for start in range(0, len(features), size):
        block = features[start : start + size].astype(np.float64)
        length = np.sqrt((block**2).sum(1, keepdims=True))
        if (length == 0).any():
            raise DataError(f"features: row {start + int((length == 0).argmax())} is all zeros and has no direction")
        out[start : start + size] = block / length
    return out


def _noise(
    features: Features,
    given: Integers,
    truth: Integers | None,
    noise_matrix: ArrayLike | Literal["estimate"] | None,
    classes: int,
) -> Floats:
    if noise_matrix is None and truth is not None:
        counted = np.zeros((classes, classes))
        np.add.at(counted, (truth, given), 1)
        if (counted.sum(1) == 0).any():
            raise DataError(f"true_labels: class {int(counted.sum(1).argmin())} has no sample")
        return np.asarray(counted / counted.sum(1, keepdims=True))
    if noise_matrix is None or isinstance(noise_matrix, str):
        if noise_matrix not in (None, "estimate"):
            raise ConfigError(f"noise_matrix: expected a matrix or 'estimate', found {noise_matrix!r}")
        return estimate_noise_matrix(features, given, classes=classes)
    matrix = as_noise_matrix(noise_matrix)
    if len(matrix) != classes:
        raise ConfigError(f"noise_matrix: expected {classes} rows, found {len(matrix)}")
    return matrix


def _class_correlation(features: Features, labels: Integers, classes: int) -> tuple[Floats, Floats, float]:
    """Mean correlation of every two classes `[C, C]`, counts `[C]`, mean squared length of the samples."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    if (counts < 2).any():
        raise DataError(f"labels: class {int(counts.argmin())} has {int(counts.min())} samples, expected 2 or more")
    sums, squares = np.zeros((classes, features.width)), np.zeros(classes)
    for rows, block in features.blocks():
        members = one_hot(labels[rows], classes)
        sums += members.T @ block
        squares += members.T @ (block**2).sum(1)
    products = sums @ sums.T
    products[np.diag_indices(classes)] -= squares
    pairs = np.outer(counts, counts)
    pairs[np.diag_indices(classes)] -= counts
    length = float(squares.sum() / counts.sum())
    return _semi_definite(products / pairs / length), counts, length


def _unmixed(correlation: Floats, counts: Floats, noise_matrix: Floats) -> tuple[Floats, Floats]:
    """Correlations and counts of the true classes from those of the given ones.

    A pair of samples given (k, l) is of true classes (y, z) with probability B_ky·B_lz, so what is seen is B K Bᵀ.
    """
    shares = np.linalg.lstsq(noise_matrix.T, counts / counts.sum(), rcond=None)[0].clip(min=1e-3 / len(counts))
    joint = noise_matrix * shares[:, None]
    true_given_label = (joint / joint.sum(0)).T
    # Heavy noise makes the mixture nearly singular: a plain inverse would blow the sampling error up.
    ridge = true_given_label @ true_given_label.T + 0.01 * np.eye(len(counts))
    inverse = true_given_label.T @ np.linalg.inv(ridge)
    return _semi_definite(inverse @ correlation @ inverse.T), counts.sum() * shares / shares.sum()


def _semi_definite(correlation: Floats) -> Floats:
    """The nearest matrix that class averages can have: no negative eigenvalue, nothing above 1."""
    values, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    fixed = (vectors * values.clip(min=0)) @ vectors.T
    scale = 1 / np.sqrt(np.diag(fixed).clip(min=1))
    return np.asarray(fixed * scale[:, None] * scale)
