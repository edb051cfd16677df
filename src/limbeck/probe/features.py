"""Features in float64, a block of rows at a time, and the spectrum of their Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from limbeck.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BLOCK_BYTES = 32 << 20
"""Size of one block of rows in float64: what a pass over the features needs beside its result."""
CACHE_BYTES = 1 << 19
"""Size of rows that are read twice or converted, and should stay in the cache in between."""
COPY_BYTES = 256 << 20
"""Up to this size a float64 copy of the features is kept; beyond it each pass converts block by block."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and eigenvectors of the (weighted) Gram matrix, in the smaller of the two spaces.

    Attributes:
        values: `[r]`, descending, never negative; r = min(N, D). All others of the `[N, N]` Gram matrix are 0.
        vectors: `[D, r]` (space "feature": of XᵀRX) or `[N, r]` (space "sample": of R^½XXᵀR^½), one per column.
        space: which of the two.
    """

    values: Floats
    vectors: Floats
    space: Literal["feature", "sample"]


class Features:
    """Frozen features `[N, D]`, prepared once for many label draws, weight decays and rounds.

    What the solvers see is (x − shift) / scale in float64, but never more of it at a time than a block of rows
    (`BLOCK_BYTES`), or one copy where that is small (`COPY_BYTES`): features in float16 or float32, or memory-mapped
    ones, stay as they are.

    Args:
        x: `[N, D]`, any real dtype; rows are samples.
        bias: fit an intercept that is not penalised (the paper has none). The features are then centred.
        standardise: centre every feature and divide it by its standard deviation (a constant one is only centred).
        sample_weights: `[N]`, positive, or None for 1 each; they weigh the centring of `bias` and the Gram matrix.

    Raises:
        DataError: where x is not a matrix of finite numbers.
        ConfigError: where the sample weights do not fit.
    """

    def __init__(
        self, x: ArrayLike, *, bias: bool = False, standardise: bool = False, sample_weights: ArrayLike | None = None
    ) -> None:
        self.x: NDArray[Any] = _matrix(x, "features")
        self.bias = bias
        self.standardise = standardise
        self.sample_weights: Floats | None = None
        if sample_weights is not None:
            weights = np.asarray(sample_weights, dtype=np.float64)
            if weights.shape != (len(self.x),) or not (np.isfinite(weights).all() and (weights > 0).all()):
                raise ConfigError(
                    f"sample_weights: expected {len(self.x)} positive numbers, found shape {weights.shape}"
                )
            self.sample_weights = weights
        self.shift = np.zeros(self.width)
        self.scale = np.ones(self.width)
        if standardise:
            self.shift = _column_mean(self.x)
            deviation = np.sqrt(_column_mean(self.x, centre=self.shift))
            # A constant column deviates from its mean by rounding alone: it must not be blown up to noise.
            self.scale = np.where(deviation > 1e-13 * np.abs(self.shift), deviation, 1.0)
        if bias:
            self.shift = _column_mean(self.x, self.sample_weights)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def width(self) -> int:
        """The number of features D."""
        return int(self.x.shape[1])

    def reweighted(self, sample_weights: Floats | None) -> Features:
        """The same features under other sample weights (the spectrum is computed anew)."""
        return Features(self.x, bias=self.bias, standardise=self.standardise, sample_weights=sample_weights)

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Row slices and the prepared float64 rows `[b, D]` they stand for."""
        size = max(1, BLOCK_BYTES // (8 * max(1, self.width)))
        for start in range(0, len(self.x), size):
            rows = slice(start, min(start + size, len(self.x)))
            yield rows, self._transformed(self.x[rows]) if self._copy is None else self._copy[rows]

    def prepared(self, dtype: type[np.floating[Any]]) -> NDArray[Any] | None:
        """All the prepared rows `[N, D]` in this dtype, where that many fit in `COPY_BYTES` as float64."""
        if dtype is np.float64 or not self._small:
            return self._copy
        if self.x.dtype == dtype and self.bias:  # which takes what is rounded off the shift
            shifted: NDArray[Any] = np.subtract(self.x, self.shift.astype(dtype))
            return np.divide(shifted, self.scale.astype(dtype), out=shifted) if self.standardise else shifted
        out, size = np.empty(self.x.shape, dtype), max(1, CACHE_BYTES // (8 * self.width))
        for start in range(0, len(self.x), size):
            out[start : start + size] = self._transformed(self.x[start : start + size])
        return out

    def weights_of(self, rows: slice) -> Floats | float:
        """Sample weights of a block as a column `[b, 1]`, or 1.0 where there are none."""
        return 1.0 if self.sample_weights is None else self.sample_weights[rows, None]

    def times(self, weights: Floats) -> Floats:
        """X @ weights: `[D, K]` → `[N, K]`."""
        out = np.empty((len(self.x), weights.shape[1]))
        for rows, block in self.blocks():
            np.matmul(block, weights, out=out[rows])
        return out

    def transposed_times(self, values: Callable[[slice], Floats]) -> Floats:
        """XᵀR @ values, the values `[b, K]` asked for one row slice at a time; `[D, K]`."""
        return sum((block.T @ (self.weights_of(rows) * values(rows)) for rows, block in self.blocks()), np.zeros(()))

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigendecomposition of the Gram matrix in the smaller of feature and sample space, computed once."""
        feature_space = self.width <= len(self.x)
        gram = self.gram() if feature_space else self._finite(self._sample_gram())
        values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        # Rounding leaves eigenvalues of a semi-definite matrix slightly below zero.
        return Spectrum(
            values[::-1].clip(min=0), np.ascontiguousarray(vectors[:, ::-1]), "feature" if feature_space else "sample"
        )

    def unfold(self, weights: Floats, intercept: Floats) -> tuple[Floats, Floats]:
        """Weights `[D, C]` and intercept `[C]` for the prepared features → the same map for raw features."""
        raw = weights / self.scale[:, None]
        return raw, intercept - self.shift @ raw

    @property
    def _small(self) -> bool:
        return self.x.size * 8 <= COPY_BYTES

    @cached_property
    def _copy(self) -> Floats | None:
        return self._transformed(self.x) if self._small else None

    def _transformed(self, rows: NDArray[Any]) -> Floats:
        if not (self.bias or self.standardise):
            return np.ascontiguousarray(rows, dtype=np.float64)
        out: Floats = np.subtract(rows, self.shift, dtype=np.float64)
        if self.standardise:
            out /= self.scale
        return out

    def gram(self) -> Floats:
        """XᵀRX `[D, D]`, computed anew.

        Raises:
            DataError: where a feature is no finite number.
        """
        gram = np.zeros((self.width, self.width))
        for rows, block in self.blocks():
            # B.T @ B of one array is a symmetric rank-k update in BLAS: half the work of a general product.
            block = block if self.sample_weights is None else block * np.sqrt(self.sample_weights[rows, None])
            gram += block.T @ block
        return self._finite(gram)

    def _finite(self, gram: Floats) -> Floats:
        if not np.isfinite(gram).all():
            raise DataError(not_finite(self.x, "features"))
        return gram

    def _sample_gram(self) -> Floats:
        gram, size = np.zeros((len(self.x), len(self.x))), max(1, BLOCK_BYTES // (8 * len(self.x)))
        for start in range(0, self.width, size):
            columns = slice(start, start + size)
            block = (self.x[:, columns].astype(np.float64) - self.shift[columns]) / self.scale[columns]
            gram += block @ block.T
        if self.sample_weights is not None:
            root = np.sqrt(self.sample_weights)
            gram *= root[:, None] * root
        return gram


def as_features(features: ArrayLike | Features, bias: bool, standardise: bool) -> Features:
    """Features as given, or prepared from an array.

    Raises:
        ConfigError: where prepared features contradict the options.
    """
    if not isinstance(features, Features):
        return Features(features, bias=bias, standardise=standardise)
    if (bias and not features.bias) or (standardise and not features.standardise):
        raise ConfigError(
            "bias and standardise belong to the prepared Features, which were built without: "
            f"Features(x, bias={bias}, standardise={standardise})"
        )
    return features


def raw_matrix(x: ArrayLike, width: int, name: str) -> NDArray[Any]:
    """A matrix `[M, width]`, checked.

    Raises:
        DataError: where it is not one.
    """
    matrix = _matrix(x, name)
    if matrix.shape[1] != width:
        raise DataError(f"{name}: expected {width} columns as in the features fitted on, found {matrix.shape[1]}")
    return matrix


def _column_mean(x: NDArray[Any], sample_weights: Floats | None = None, centre: Floats | None = None) -> Floats:
    """(Weighted) mean of the columns, or of their squares about a centre, a block of rows at a time."""
    total, size = np.zeros(x.shape[1]), max(1, CACHE_BYTES // (8 * x.shape[1]))
    for start in range(0, len(x), size):
        block = x[start : start + size].astype(np.float64, copy=False)
        if centre is not None:
            block = (block - centre) ** 2
        weights = np.ones(len(block)) if sample_weights is None else sample_weights[start : start + size]
        total += weights @ block
    if not np.isfinite(total).all():
        raise DataError(not_finite(x, "features"))
    return np.asarray(total / (len(x) if sample_weights is None else sample_weights.sum()))


def _matrix(x: ArrayLike, name: str) -> NDArray[Any]:
    matrix: NDArray[Any] = x if isinstance(x, np.ndarray) else np.asarray(x)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "fiub":
        raise DataError(
            f"{name}: expected a matrix [N, D] of real numbers, found shape {matrix.shape} of {matrix.dtype}; "
            "flatten or pool feature maps first"
        )
    return matrix


def not_finite(x: NDArray[Any], name: str) -> str:
    """The sentence that names the first value that is no finite number."""
    for row, values in enumerate(x):
        bad = np.flatnonzero(~np.isfinite(values.astype(np.float64)))
        if len(bad):
            return (
                f"{name}: row {row}, column {bad[0]} holds {values[bad[0]]}, expected a finite number: "
                "drop the sample or fill it"
            )
    return f"{name}: products overflow float64 (largest value {np.abs(x).max():g}): rescale the features"
