"""How a stored output is written down: in full, in half precision, or as its k largest classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import StoreError, unknown_name

Arrays = dict[str, NDArray[Any]]
TOP_K_FIELDS = ("logits", "probabilities", "teachers_logits")
"""The outputs that `topk:` shortens; others are kept in float16 beside them."""


class Encoding(Protocol):
    """From a batch of one output, samples first, to named arrays and back. The names are suffixes."""

    @property
    def tolerance(self) -> float:
        """How far, as a share of a sample's largest value, rounding and another batch size may move a value."""

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and shape of the arrays, per sample, for an output of this shape per sample."""

    def encode(self, values: Tensor) -> Arrays:
        """Arrays for `values` `[B, ...]`; raises `StoreError` for what the type cannot hold."""

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Tensor:
        """float32 `[B, ...]`."""

    def agrees(self, arrays: Mapping[str, NDArray[Any]], live: Tensor, tolerance: float) -> NDArray[np.bool_]:
        """For each sample `[B]`, whether what is stored is what the teacher says now."""


@dataclass(frozen=True)
class Dense:
    """All values, as float32 or float16 (relative error at most 2⁻¹¹, absolute 2⁻²⁵ below 2⁻¹⁴)."""

    dtype: str

    @property
    def tolerance(self) -> float:
        return 1e-3 if self.dtype == "float32" else 3e-3

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        return {"": (np.dtype(self.dtype), tuple(shape))}

    def encode(self, values: Tensor) -> Arrays:
        return {"": _narrow(values, self.dtype)}

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Tensor:
        return _float32(arrays[""])

    def agrees(self, arrays: Mapping[str, NDArray[Any]], live: Tensor, tolerance: float) -> NDArray[np.bool_]:
        return _near(self.decode(arrays), live, live, tolerance)


@dataclass(frozen=True)
class TopK:
    """The k largest of C classes, and what each of the others gets.

    `values` (float16) and `indices` of the k largest, in falling order, and `rest` (float32): for logits the
    logarithm of the mean exponential of the others, for probabilities their mean. So the softmax keeps the
    probability of every listed class, and the mass of the others together, which is spread equally.
    """

    k: int
    classes: int
    logits: bool

    @property
    def tolerance(self) -> float:
        return 3e-3

    def parts(self, shape: Sequence[int]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        index = np.dtype(np.uint16 if self.classes <= 1 << 16 else np.int32)
        kept = (*shape[:-1], self.k)
        return {
            ".values": (np.dtype(np.float16), kept),
            ".indices": (index, kept),
            ".rest": (np.dtype(np.float32), tuple(shape[:-1])),
        }

    def encode(self, values: Tensor) -> Arrays:
        top, indices = values.topk(self.k, dim=-1)
        return {
            ".values": _narrow(top, "float16"),
            ".indices": indices.numpy().astype(self.parts(values.shape)[".indices"][0]),
            ".rest": self._rest(values, indices).numpy(),
        }

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Tensor:
        rest = _float32(arrays[".rest"]).unsqueeze(-1)
        whole = rest.repeat(*[1] * (rest.ndim - 1), self.classes)
        return whole.scatter_(-1, self._indices(arrays), _float32(arrays[".values"]))

    def agrees(self, arrays: Mapping[str, NDArray[Any]], live: Tensor, tolerance: float) -> NDArray[np.bool_]:
        # At the stored indices, not at the live ones: of two equal classes either may have been taken.
        indices, values = self._indices(arrays), _float32(arrays[".values"])
        return (
            _near(values, live.gather(-1, indices), live, tolerance)
            & _near(values[..., :1], live.amax(-1, keepdim=True), live, tolerance)
            & _near(_float32(arrays[".rest"]), self._rest(live, indices), live, tolerance)
        )

    def _indices(self, arrays: Mapping[str, NDArray[Any]]) -> Tensor:
        return torch.from_numpy(arrays[".indices"].astype(np.int64))

    def _rest(self, values: Tensor, indices: Tensor) -> Tensor:
        others = self.classes - self.k
        if self.logits:
            return values.scatter(-1, indices, -torch.inf).logsumexp(-1) - math.log(others)
        return values.scatter(-1, indices, 0.0).sum(-1) / others


def encoding_for(dtype: str, field: str, shape: Sequence[int]) -> Encoding:
    """How an output of this shape per sample is kept in a store of this dtype: `float32`, `float16` or `topk:K`.

    Raises:
        StoreError: for another dtype, or a K that is not below the number of classes.
    """
    k = check_dtype(dtype)
    if k is None:
        return Dense(dtype)
    if field.split(".")[0] not in TOP_K_FIELDS:
        return Dense("float16")
    if k >= shape[-1]:
        raise StoreError(f"topk:{k} of {shape[-1]} classes: choose K below the number of classes, or dtype='float16'")
    return TopK(k, shape[-1], logits=field != "probabilities")


def check_dtype(dtype: str) -> int | None:
    """K of `topk:K`, None for `float32` and `float16`; raises `StoreError` for anything else."""
    if dtype in ("float32", "float16"):
        return None
    name, _, number = dtype.partition(":")
    if name != "topk" or not number.isdecimal() or int(number) < 1:
        raise StoreError(unknown_name("dtype of a store", dtype, ("float32", "float16", "topk:10")))
    return int(number)


def _narrow(values: Tensor, dtype: str) -> NDArray[Any]:
    if dtype == "float32":
        return values.numpy()
    narrow = values.half()
    if bool(torch.isinf(narrow).any()):
        raise StoreError(f"a value of {float(values.abs().max()):g} is beyond float16 (65504): choose dtype='float32'")
    return narrow.numpy()


def _float32(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values).float()


def _near(stored: Tensor, live: Tensor, scale: Tensor, tolerance: float) -> NDArray[np.bool_]:
    count = len(live)
    largest = scale.reshape(count, -1).abs().amax(1)
    off = (stored - live).reshape(count, -1).abs().amax(1)
    # The smallest step of float16, and rounding about one, stay where all values are nearly zero.
    return np.asarray((off <= tolerance * largest + 2.0**-22).numpy())
