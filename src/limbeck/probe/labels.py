"""Given labels, hard or soft, read a block of rows at a time."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from limbeck.errors import ConfigError, DataError, unknown_name
from limbeck.probe.features import Floats, Integers


class Labels:
    """Class numbers `[N]` or soft labels `[N, C]`.

    Args:
        labels: integers 0..C-1, or rows of non-negative numbers that sum to 1.
        classes: C, or None for the highest number found plus one (at least two).
        samples: N, as the features have it.
        signed: whether soft labels may be negative, as the outputs of the linearised probe can be.

    Raises:
        DataError: where the labels do not fit the features, C or each other.
    """

    def __init__(self, labels: ArrayLike, classes: int | None, samples: int, *, signed: bool = False) -> None:
        array = np.asarray(labels)
        if array.ndim not in (1, 2) or len(array) != samples:
            raise DataError(f"labels: expected shape [{samples}] or [{samples}, C], found {array.shape}")
        self.soft: Floats | None = None
        if array.ndim == 2:
            self.soft = _soft(array.astype(np.float64), signed)
            found = array.shape[1]
            if classes is not None and classes != found:
                raise DataError(f"labels: expected {classes} columns, found {found}")
            self.numbers: Integers = self.soft.argmax(1).astype(np.int64)
        else:
            self.numbers = class_numbers(array, "labels")
            found = max(2, int(self.numbers.max()) + 1)
        self.classes = found if classes is None else classes
        if self.classes < 2 or self.classes < found:
            raise DataError(
                f"labels: class {found - 1} is outside the {self.classes} classes declared (2 or more needed)"
            )

    def rows(self, rows: slice) -> Floats:
        """One-hot or soft labels of a block, `[b, C]`."""
        if self.soft is not None:
            return self.soft[rows]
        return one_hot(self.numbers[rows], self.classes)

    def dense(self) -> Floats:
        """All of them, `[N, C]`."""
        return self.rows(slice(None))

    def mean(self, sample_weights: Floats | None = None) -> Floats:
        """(Weighted) share of every class, `[C]`."""
        if self.soft is not None:
            return np.average(self.soft, axis=0, weights=sample_weights)
        totals = np.bincount(self.numbers, sample_weights, self.classes)
        return np.asarray(totals / totals.sum())

    def sample_weights(self, class_weights: Literal["balanced"] | ArrayLike) -> Floats:
        """`[N]`, mean 1: the class weights carried over to the samples.

        Raises:
            ConfigError: where the class weights are not "balanced" or C positive numbers.
        """
        if isinstance(class_weights, str):
            if class_weights != "balanced":
                raise ConfigError(unknown_name("class_weights", class_weights, ["balanced"]))
            shares = self.mean()
            per_class = np.divide(1.0, shares, out=np.ones_like(shares), where=shares > 0)
        else:
            per_class = np.asarray(class_weights, dtype=np.float64)
            if per_class.shape != (self.classes,) or not (np.isfinite(per_class).all() and (per_class > 0).all()):
                raise ConfigError(
                    f"class_weights: expected 'balanced' or {self.classes} positive numbers, found {class_weights!r}"
                )
        weights = per_class[self.numbers] if self.soft is None else self.soft @ per_class
        return np.asarray(weights / weights.mean())


def one_hot(numbers: Integers, classes: int) -> Floats:
    """`[N]` → `[N, C]`."""
    out = np.zeros((len(numbers), classes))
    out[np.arange(len(numbers)), numbers] = 1
    return out


def margins(outputs: Floats, labels: Integers) -> Floats:
    """Output of the labelled class minus the largest other: `[..., C]`, `[...]` → `[...]`; above 0 means right."""
    index = labels[..., None]
    others = outputs.copy()
    np.put_along_axis(others, index, -np.inf, axis=-1)
    return np.asarray(np.take_along_axis(outputs, index, axis=-1)[..., 0] - others.max(-1))


def class_numbers(labels: ArrayLike, name: str) -> Integers:
    """Integers `[N]`, 0 or higher, checked.

    Raises:
        DataError: where they are not.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise DataError(
            f"{name}: expected class numbers [N] of an integer type, found shape {array.shape} of {array.dtype}"
        )
    if array.min() < 0:
        row = int(np.argmax(array < 0))
        raise DataError(f"{name}: row {row} is {array[row]}, expected 0 or higher: leave out samples without a label")
    return array.astype(np.int64)


def _soft(rows: Floats, signed: bool) -> Floats:
    bad = ~((signed | (rows >= 0).all(1)) & (np.abs(rows.sum(1) - 1) < 1e-4))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"labels: row {row} is {rows[row]}, expected probabilities that sum to 1")
    # Probabilities stored in float32 miss 1 by a rounding error, which would tilt the fixed point.
    return np.asarray(rows / rows.sum(1, keepdims=True))
