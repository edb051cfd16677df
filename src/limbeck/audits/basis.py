"""The features that an audit's witness looks at: the inputs themselves, a backbone's, or pooled pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.errors import DataError

if TYPE_CHECKING:
    from limbeck.data import Data
    from limbeck.teachers import Teacher

POOLED = 8
"""Pixels are averaged to at most this many rows and columns."""

SQUARED = 256
"""Named features are joined by the squares of those with more than two values, where there are at most so many."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Features `[N, D]` in the order of the data, and what they are, in words."""

    x: NDArray[Any]
    description: str


def basis_of(data: Data, teacher: Teacher | None = None, features: Any = None) -> Basis:
    """Features for a linear witness.

    Args:
        data: whose samples are described.
        teacher: whose features stand in where the inputs are images, sequences or named tensors; None: never.
        features: what the user gives instead: `[N, D]`, `Data` with x `[M, D]` that holds the same ids, a module or a
            teacher that supplies features.

    Raises:
        DataError: where there are none, or they do not fit.
    """
    if features is not None:
        return _given(data, features)
    shape = data.sample_shape
    if not isinstance(shape, dict) and len(shape) == 1:
        return _table(data)
    if teacher is not None and "features" in teacher.supplies:
        from limbeck.teachers import collect

        return Basis(collect(teacher, data, ("features",))["features"].numpy(), "the teacher's features")
    if not isinstance(shape, dict) and len(shape) == 3:
        return Basis(_pooled(data), f"pixels averaged to {POOLED}×{POOLED} at most")
    raise DataError(
        f"an audit needs features [N, D] for its witness, and the inputs of {data.name!r} have the shape {shape}: pass "
        "features=…, such as limbeck.features.extract(backbone, data), or a teacher that supplies features"
    )


def _given(data: Data, features: Any) -> Basis:
    from limbeck.data import Data as DataType

    if isinstance(features, DataType):
        place = {int(sample): row for row, sample in enumerate(features.ids)}
        missing = [int(sample) for sample in data.ids if int(sample) not in place]
        if missing:
            raise DataError(f"features: {len(missing):,} samples have none, such as id {missing[0]}")
        rows = np.array([place[int(sample)] for sample in data.ids], np.int64)
        return _checked(data, np.asarray(features.x)[rows])
    if isinstance(features, np.ndarray):
        return _checked(data, features)
    from limbeck.features import extract

    return _checked(data, np.asarray(extract(features, data, progress=False).x))


def _checked(data: Data, x: NDArray[Any]) -> Basis:
    if x.ndim != 2 or len(x) != len(data) or x.dtype.kind not in "fiub" or not np.isfinite(x).all():
        raise DataError(
            f"features: expected {len(data):,} rows of finite numbers [N, D], one a sample of {data.name!r}, found "
            f"{x.dtype} of shape {list(x.shape)}"
        )
    return Basis(x, "the features given")


def _table(data: Data) -> Basis:
    x = np.asarray(data.x)
    if data.feature_names is None or x.shape[1] > SQUARED:
        return Basis(x, "the inputs")
    # A linear probe of raw columns would miss what is highest in the middle, such as employment by age.
    numeric = [column for column in range(x.shape[1]) if len(np.unique(x[:1000, column])) > 2]
    squares = np.asarray(x[:, numeric], np.float64)
    squares = ((squares - squares.mean(0)) / np.maximum(squares.std(0), 1e-12)) ** 2
    return Basis(np.column_stack([x, squares]), "the inputs, and the squares of the numeric ones")


def _pooled(data: Data) -> NDArray[Any]:
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    from limbeck.predict import InputReader

    reader, parts = InputReader(data), []
    for start in range(0, len(data), 1024):
        images = reader(torch.arange(start, min(start + 1024, len(data))))
        assert isinstance(images, torch.Tensor)
        height, width = (min(POOLED, int(side)) for side in images.shape[-2:])
        parts.append(adaptive_avg_pool2d(images, (height, width)).flatten(1).numpy())
    return np.concatenate(parts)
