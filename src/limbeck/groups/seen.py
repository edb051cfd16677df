"""What a discovery may look at: arrays, one row a sample, in the order of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import IntArray, some
from limbeck.errors import DataError
from limbeck.groups.columns import RuleColumns

Floats = NDArray[np.float64]
FIELDS = ("labels", "probabilities", "biased", "embeddings", "columns")
_MEANING = {
    "labels": "the classes [N]",
    "probabilities": "the probabilities [N, C] of the model whose failures are looked for",
    "biased": "the probabilities [N, C] of a second, biased model (trained shortly, or known to use a shortcut)",
    "embeddings": "an embedding [N, D] of each sample",
    "columns": "attributes and numeric columns, from limbeck.groups.rule_columns",
}


@dataclass(frozen=True, eq=False)
class Seen:
    """Arrays about N samples. What a split does not know is None; a rule says which of them it reads.

    Attributes:
        labels: int64 [N].
        probabilities: float [N, C], of the model whose failures are looked for; out of sample where rules are learned.
        biased: float [N, C], of a second model that is trained shortly or known to use a shortcut.
        embeddings: float [N, D].
        columns: attributes and numbers for rules.

    Raises:
        DataError: where the arrays have other shapes, or hold values that are not finite.
    """

    labels: IntArray | None = None
    probabilities: Floats | None = None
    biased: Floats | None = None
    embeddings: Floats | None = None
    columns: RuleColumns | None = None

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", np.asarray(self.labels).astype(np.int64))
        for name in ("probabilities", "biased", "embeddings"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _matrix(getattr(self, name), name))
        lengths = {name: len(getattr(self, name)) for name in FIELDS if getattr(self, name) is not None}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
            raise DataError(f"what is seen of the samples has different lengths ({found}): give one row a sample")

    def __len__(self) -> int:
        return next((len(getattr(self, name)) for name in FIELDS if getattr(self, name) is not None), 0)

    def take(self, rows: Any) -> Seen:
        """The same of some samples."""
        arrays: dict[str, Any] = {
            name: getattr(self, name)[rows]
            for name in ("labels", "probabilities", "biased", "embeddings")
            if getattr(self, name) is not None
        }
        return Seen(**arrays, columns=None if self.columns is None else self.columns.take(rows))

    def without(self, *names: str) -> Seen:
        """The same with some of it not seen."""
        return replace(self, **dict.fromkeys(names))

    @property
    def predicted(self) -> IntArray:
        """The class of the highest probability [N]."""
        return np.asarray(self.required("probabilities").argmax(1), np.int64)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether the model is wrong [N]."""
        return np.asarray(self.predicted != self.required("labels"))

    @property
    def losses(self) -> Floats:
        """-log p(label) [N], in nats, at most 36."""
        rows = np.arange(len(self))
        return np.asarray(-np.log(self.required("probabilities")[rows, self.required("labels")].clip(2e-16)))

    def required(self, name: str) -> Any:
        """A field that a rule cannot do without.

        Raises:
            DataError: where it is not there, saying what it is.
        """
        value = getattr(self, name)
        if value is None:
            raise DataError(f"groups are looked for without {name}: {_MEANING[name]} are needed")
        return value


def _matrix(values: Any, name: str) -> Floats:
    array = np.asarray(values, np.float64)
    if array.ndim != 2:
        raise DataError(f"{name} has shape {list(array.shape)}: expected {_MEANING[name]}")
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if len(bad):
        raise DataError(f"{name} is not finite at rows {some(bad)}: expected {_MEANING[name]}")
    return array


def classes_of(labels: IntArray, names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes; numbers where none are given."""
    highest = int(labels.max(initial=-1))
    found = tuple(f"label {k}" for k in range(highest + 1)) if names is None else tuple(names)
    if highest >= len(found):
        raise DataError(f"labels hold class {highest}, and {len(found)} classes are named: name every class")
    return found
