"""An independent witness: a linear probe that never judges a sample it was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from limbeck.errors import ConfigError, DataError
from limbeck.evaluation.calibration import log_softmax
from limbeck.probe.features import Features
from limbeck.probe.labels import one_hot
from limbeck.probe.softmax import SoftmaxProbe

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3)
"""Tried for standardised features; the one with the best out-of-fold likelihood is taken."""

MOST = 20_000
"""Samples that one fold's probe is fitted on at most: a linear witness of these learns next to nothing from more."""

TOLERANCE = 1e-3
"""On any one probability: a witness is not asked for more digits."""


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """Out-of-fold answers of a probe.

    Attributes:
        probabilities: `[N, C]`, each row from a probe fitted without it.
        fold: `[N]`.
        weight_decay: the one taken.
        fitted: the largest number of samples that a probe was fitted on.
    """

    probabilities: Floats
    fold: Integers
    weight_decay: float
    fitted: int


def cross_fit(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    classes: int,
    folds: int = 5,
    seed: int = 0,
    cells: ArrayLike | None = None,
    balance: float = 0.0,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    most: int = MOST,
) -> CrossFitted:
    """Probabilities of every sample from a linear softmax probe fitted on the other folds.

    Computed on one thread: a probe is many passes over a tall matrix, for which threads wait for each other, and so
    the result does not depend on the number of cores.

    Args:
        features: `[N, D]`; standardised on the samples fitted.
        labels: `[N]`, 0..C-1.
        classes: C.
        folds: 2 or more; dealt evenly within each cell.
        seed: of the folds.
        cells: `[N]` whole numbers, such as group × class; by default the labels.
        balance: 0 counts all samples alike, 1 every cell, between them a cell of n samples as n^(1 − balance).
        weight_decays: tried on the first fold.
        most: samples that a probe is fitted on. Of more, small cells are kept whole and large ones drawn from, each
            sample then counting for those left out.

    Raises:
        DataError: shapes that do not fit, or a class that is missing from all folds but one.
        ConfigError: fewer than two folds, or no weight decay.
    """
    x, y = np.asarray(features), np.asarray(labels, np.int64)
    if x.ndim != 2 or len(x) != len(y):
        raise DataError(f"features: expected shape [{len(y)}, D], found {list(x.shape)}")
    if not 2 <= folds <= len(y):
        raise ConfigError(f"folds: expected 2..{len(y)}, found {folds}")
    if not len(weight_decays):
        raise ConfigError("weight_decays: at least one is needed")
    cell = y if cells is None else np.unique(np.asarray(cells), return_inverse=True)[1].astype(np.int64)
    fold = deal_folds(cell, folds, seed)
    weights = balancing_weights(cell, balance)
    answers = np.empty((len(y), classes))
    decays, used = sorted(weight_decays, reverse=True), 0
    with threadpool_limits(1):
        for index in range(folds):
            inside = fold == index
            rows, counts = draw(cell, np.flatnonzero(~inside), most, seed + index)
            fitted = _Fold(x[rows], y[rows], weights[rows] * counts, classes)
            tried = fitted.answers(decays, x[inside])
            if len(decays) > 1:
                best = int(np.argmin([_loss(each, y[inside], weights[inside]) for each in tried]))
                decays, tried = [decays[best]], [tried[best]]
            answers[inside] = np.exp(tried[0])
            used = max(used, len(rows))
    return CrossFitted(answers, fold, decays[0], used)


class _Fold:
    """The probe of one fold; fits of several weight decays share the prepared features."""

    def __init__(self, x: NDArray[np.generic], y: Integers, weights: Floats, classes: int) -> None:
        self._mean = x.mean(0, dtype=np.float64)
        deviation = x.std(0, dtype=np.float64)
        self._scale = np.where(deviation > 1e-7 * (1 + np.abs(self._mean)), deviation, 1.0)
        relative = weights / weights.mean()
        even = bool(np.ptp(relative) == 0)
        self._features = Features(self._prepared(x), bias=True, sample_weights=None if even else relative)
        self._targets = one_hot(y, classes)
        # A class that no sample here has would run off to a probability of 0, and its likelihood with it.
        self._targets = (self._targets + 1e-4 / classes) / (1 + 1e-4)

    def answers(self, weight_decays: Sequence[float], x: NDArray[np.generic]) -> list[Floats]:
        """Log probabilities `[B, C]` under each weight decay, each fit starting from the one before."""
        found, fit = [], None
        for weight_decay in weight_decays:
            fit = SoftmaxProbe(self._features, weight_decay, tolerance=TOLERANCE).fit(self._targets, fit)
            weights, intercept = self._features.unfold(fit.weights, fit.intercept)
            found.append(log_softmax(self._prepared(x) @ weights + intercept))
        return found

    def _prepared(self, x: NDArray[np.generic]) -> Floats:
        return np.asarray((x - self._mean) / self._scale)


def deal_folds(cells: ArrayLike, folds: int, seed: int) -> Integers:
    """The fold of each sample `[N]`: dealt at random and evenly within each cell."""
    cell = np.asarray(cells)
    order = np.lexsort((np.random.default_rng(seed).random(len(cell)), cell))
    fold = np.empty(len(cell), np.int64)
    fold[order] = np.arange(len(cell)) % folds
    return fold


def draw(cells: Integers, rows: Integers, most: int, seed: int) -> tuple[Integers, Floats]:
    """At most `most` of the rows, and how many samples each stands for: cells are cut to one size, small ones stay.

    Args:
        cells: `[N]`.
        rows: of these `[M]`, in order.
        most: 1 or more.
        seed: of what is drawn.

    Returns:
        The rows kept, in order, and a number for each, 1 in cells that are whole.
    """
    if len(rows) <= most:
        return rows, np.ones(len(rows))
    _, cell, counts = np.unique(cells[rows], return_inverse=True, return_counts=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(rows)), cell))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    limit = _level(counts, most)
    kept = place < limit
    share = counts / np.minimum(counts, limit)
    return rows[kept], share[cell[kept]]


def _level(counts: Integers, most: int) -> int:
    """The largest size to which cells can be cut so that no more than `most` samples are left; 1 at least."""
    left, ordered = most, np.sort(counts)
    for place, count in enumerate(ordered):
        even = left // (len(ordered) - place)
        if count > even:
            return max(int(even), 1)
        left -= int(count)
    return int(ordered[-1])


def balancing_weights(cells: Integers, power: float = 1.0) -> Floats:
    """Weights `[N]`, mean 1, under which a cell of n samples counts as n^(1 − power) altogether."""
    weights = np.bincount(cells).astype(np.float64)[cells] ** -power
    return np.asarray(weights / weights.mean())


def fit_temperature(log_probabilities: Floats, labels: Integers) -> float:
    """The temperature of largest likelihood (Guo et al. 2017, arXiv 1706.04599, section 4.2), between 1/20 and 20."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(log_probabilities / np.exp(log_temperature))
        return -float(scaled[rows, labels].mean())

    limit = float(np.log(20.0))
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded").x))


def calibrate(log_probabilities: Floats, labels: Integers, fold: Integers) -> tuple[Floats, float]:
    """Probabilities `[N, C]` under a temperature fitted on the other folds, and the mean temperature."""
    calibrated = np.empty_like(log_probabilities)
    found = []
    for index in np.unique(fold):
        inside = fold == index
        used = ~inside if not inside.all() else inside
        found.append(fit_temperature(log_probabilities[used], labels[used]))
        calibrated[inside] = np.exp(log_softmax(log_probabilities[inside] / found[-1]))
    return calibrated, float(np.mean(found))


def _loss(log_probabilities: Floats, labels: Integers, weights: Floats) -> float:
    return -float(np.average(log_probabilities[np.arange(len(labels)), labels], weights=weights))
