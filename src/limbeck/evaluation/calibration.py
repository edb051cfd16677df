"""How far the stated probabilities can be believed: likelihood, Brier score and calibration error."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import ConfigError, DataError, unknown_name
from limbeck.evaluation.counts import checked_index, ratio, same_length

Kind = Literal["auto", "logits", "probabilities"]
Binning = Literal["equal_width", "equal_mass"]
KINDS = ("auto", "logits", "probabilities")
BINNINGS = ("equal_width", "equal_mass")

_CELLS_AT_A_TIME = 2**22
"""Logits turned to float64 at once (32 MiB), so that scoring a memory-mapped table never copies it whole."""

_SUM_TOLERANCE = {2: 1e-2, 4: 1e-3}
"""How far a row of probabilities may sum from 1, by bytes of its float type."""


class SampleScores(NamedTuple):
    """One value a sample, each `[N]`."""

    predicted: NDArray[np.int64]
    """Class of the largest logit, the first of equal ones."""
    confidence: NDArray[np.float64]
    """Probability of the predicted class."""
    nll: NDArray[np.float64]
    """Minus the natural logarithm of the true class's probability, in nats."""
    brier: NDArray[np.float64]
    """Squared distance of the probabilities from the one-hot label, 0 to 2 (Brier 1950; not halved)."""


def log_softmax(logits: Any) -> NDArray[np.float64]:
    """Logarithm of softmax over the last axis in float64, finite for every finite logit."""
    z = np.asarray(logits, np.float64)
    with np.errstate(over="ignore"):
        z = z - z.max(axis=-1, keepdims=True)
    # Two float64 logits can differ by more than float64 holds; the cut keeps likelihoods and their means finite.
    z = np.maximum(z, -np.finfo(np.float64).max / 2)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def log_probabilities(predictions: Any, kind: Kind = "auto") -> NDArray[np.float64]:
    """Log probabilities `[N, C]` in float64 from logits or probabilities.

    A probability of exactly 0 is one that its float type could not hold, and is read as the smallest that it can.

    Raises:
        DataError: a value is not finite, or a row said to be probabilities is not (names the sample).
    """
    array = _matrix(predictions)
    return _log_probabilities(array, kind_of(array, kind), 0)


def kind_of(predictions: Any, kind: Kind = "auto") -> Literal["logits", "probabilities"]:
    """Whether `[N, C]` predictions are probabilities: none negative, every row summing to 1; else they are logits."""
    if kind not in KINDS:
        raise ConfigError(unknown_name("kind of predictions", kind, KINDS))
    if kind != "auto":
        return kind
    array = _matrix(predictions)
    step = _rows_at_a_time(array)
    for start in range(0, len(array), step):
        if not _rows_are_probabilities(array[start : start + step]).all():
            return "logits"
    return "probabilities"


def score_samples(predictions: Any, labels: Any, kind: Kind = "auto") -> SampleScores:
    """Predicted class, confidence, negative log likelihood and Brier score of every sample.

    Args:
        predictions: logits or probabilities `[N, C]`, any float type; read in pieces, never copied whole.
        labels: true classes `[N]`.
        kind: what the predictions are; "auto" takes them for probabilities where every row is one.
    """
    array = _matrix(predictions)
    y = checked_index("labels", labels, array.shape[1], "classes")
    same_length(predictions=array, labels=y)
    resolved = kind_of(array, kind)
    n = len(y)
    scores = SampleScores(np.empty(n, np.int64), np.empty(n), np.empty(n), np.empty(n))
    step = _rows_at_a_time(array)
    for start in range(0, n, step):
        part = slice(start, start + step)
        log_p = _log_probabilities(array[part], resolved, start)
        rows, target = np.arange(len(log_p)), y[part]
        scores.predicted[part] = best = log_p.argmax(axis=1)
        scores.nll[part] = -log_p[rows, target]
        p = np.exp(log_p)
        scores.confidence[part] = p[rows, best]
        p[rows, target] -= 1
        scores.brier[part] = np.einsum("nc,nc->n", p, p)
    return scores


def negative_log_likelihood(predictions: Any, labels: Any, kind: Kind = "auto") -> float:
    """Mean negative log likelihood in nats; nan without samples."""
    return float(group_means(score_samples(predictions, labels, kind).nll)[0])


def brier_score(predictions: Any, labels: Any, kind: Kind = "auto") -> float:
    """Mean Brier score, 0 to 2; nan without samples."""
    return float(group_means(score_samples(predictions, labels, kind).brier)[0])


def expected_calibration_error(
    confidence: Any, correct: Any, bins: int = 15, binning: Binning = "equal_width"
) -> float:
    """Expected calibration error: sum over bins of (share of samples) x |accuracy - mean confidence|.

    Naeini et al. 2015; Guo et al. 2017, equation 3. "equal_width" cuts [0, 1] into `bins` intervals (lower, upper];
    "equal_mass" gives every bin as many samples (Nixon et al. 2019), equal confidences staying together.
    It is biased upwards for few samples (by about sqrt(bins / samples) / 3): compare groups of like size.

    Args:
        confidence: probability of the predicted class, or of any one class, `[N]`.
        correct: whether that class was the true one, bool `[N]`.
    """
    return float(group_calibration_error(confidence, correct, bins=bins, binning=binning)[0])


def group_calibration_error(
    confidence: Any,
    correct: Any,
    groups: NDArray[np.int64] | None = None,
    number_groups: int = 1,
    *,
    bins: int = 15,
    binning: Binning = "equal_width",
) -> NDArray[np.float64]:
    """Expected calibration error of each group `[G]`, each with bins of its own; nan for a group without samples."""
    if binning not in BINNINGS:
        raise ConfigError(unknown_name("binning", binning, BINNINGS))
    if bins < 1:
        raise ConfigError(f"bins: at least 1 is needed, found {bins}")
    conf, right = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    group = np.zeros(len(conf), np.int64) if groups is None else groups
    group = checked_index("groups", group, number_groups, "groups")
    same_length(confidence=conf, correct=right, groups=group)
    # Not written as "outside", so that nan is refused too.
    if not ((conf >= 0) & (conf <= 1 + 1e-9)).all():
        raise DataError("confidence: expected probabilities between 0 and 1")
    if binning == "equal_width":
        place = np.clip(np.ceil(conf * bins).astype(np.int64) - 1, 0, bins - 1)
    else:
        place = _equal_mass(conf, group, number_groups, bins)
    cell = group * bins + place
    # |accuracy - confidence| x samples of a bin is just |sum of (right - confidence)|.
    excess = np.bincount(cell, weights=right - conf, minlength=number_groups * bins)
    total = np.bincount(group, minlength=number_groups)
    error = np.abs(excess).reshape(number_groups, bins).sum(axis=1)
    return ratio(error, total)


def classwise_calibration_error(
    predictions: Any, labels: Any, kind: Kind = "auto", bins: int = 15, binning: Binning = "equal_width"
) -> NDArray[np.float64]:
    """Calibration error of each class's probability against "is this class", `[C]`; its mean is the classwise error.

    Kull et al. 2019. Unlike the confidence alone it sees classes that are over- or under-predicted.
    """
    array = _matrix(predictions)
    y = checked_index("labels", labels, array.shape[1], "classes")
    p = np.exp(log_probabilities(array, kind))
    columns = [expected_calibration_error(p[:, c], y == c, bins, binning) for c in range(p.shape[1])]
    return np.array(columns)


def group_means(
    values: NDArray[np.float64], groups: NDArray[np.int64] | None = None, number_groups: int = 1
) -> NDArray[np.float64]:
    """Mean of `values` `[N]` in each group, `[G]`; nan for a group without samples."""
    group = np.zeros(len(values), np.int64) if groups is None else groups
    total = np.bincount(group, minlength=number_groups)
    # Divided first: the mean of values near the largest float is finite although their sum is not.
    mean = np.bincount(group, weights=values / np.maximum(total, 1)[group], minlength=number_groups)
    return np.where(total > 0, mean, np.nan)


def _equal_mass(
    confidence: NDArray[np.float64], group: NDArray[np.int64], number_groups: int, bins: int
) -> NDArray[np.int64]:
    """Bin of each sample by its rank within its group; ties share the first one's rank, whatever their order."""
    order = np.lexsort((confidence, group))
    conf, grp = confidence[order], group[order]
    new = np.ones(len(order), bool)
    new[1:] = (conf[1:] != conf[:-1]) | (grp[1:] != grp[:-1])
    first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    total = np.bincount(group, minlength=number_groups)
    start = np.cumsum(total) - total
    place = np.empty(len(order), np.int64)
    place[order] = (first - start[grp]) * bins // total[grp]
    return place


def _matrix(predictions: Any) -> NDArray[np.floating[Any]]:
    array = np.asarray(predictions)
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 1:
        raise DataError(
            f"predictions: expected floats of shape [N, C], found {array.dtype} of shape {list(array.shape)}"
        )
    return array


def _rows_at_a_time(array: NDArray[np.floating[Any]]) -> int:
    return max(1, _CELLS_AT_A_TIME // int(array.shape[1]))


def _rows_are_probabilities(array: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    tolerance = _SUM_TOLERANCE.get(array.dtype.itemsize, 1e-6)
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(axis=1, dtype=np.float64)
        return np.asarray((array >= 0).all(axis=1) & (np.abs(total - 1) <= tolerance))


def _log_probabilities(
    array: NDArray[np.floating[Any]], kind: Literal["logits", "probabilities"], offset: int
) -> NDArray[np.float64]:
    """Log probabilities of some rows, the first of which is sample `offset`."""
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        column = int(np.argmin(finite[row]))
        raise DataError(
            f"predictions: {array[row, column]} at sample {offset + row}, class {column}; every value must be finite "
            "(did the model diverge in training or overflow in half precision?)"
        )
    if kind == "logits":
        return log_softmax(array)
    valid = _rows_are_probabilities(array)
    if not valid.all():
        row = int(np.argmin(valid))
        raise DataError(
            f"predictions: sample {offset + row} is not a row of probabilities (values {array[row].min():.4g} to "
            f"{array[row].max():.4g}, sum {float(array[row].sum(dtype=np.float64)):.6g}); logits are read with "
            "kind='logits'"
        )
    p = np.maximum(array.astype(np.float64), float(np.finfo(array.dtype).tiny))
    return np.asarray(np.log(p / p.sum(axis=1, keepdims=True)))
