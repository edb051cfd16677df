"""What a teacher says of training samples, batch by batch, where all of it together is too large to be held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from limbeck.predict import InputReader
from limbeck.teachers.base import Teacher, batch_outputs

if TYPE_CHECKING:
    from limbeck.data import Data

Fields = dict[str, Tensor]
Convert = Callable[[Mapping[str, Tensor]], Fields]


@dataclass(frozen=True)
class AskedColumn:
    """A column of which only the rows asked for are ever in memory; read by `index_select`, as a tensor is."""

    name: str
    batches: AskedBatches

    def index_select(self, dimension: int, rows: Tensor) -> Tensor:
        """The values of these rows `[B, …]`; the dimension is 0."""
        return self.batches(rows)[self.name]


Column = Tensor | AskedColumn
"""A value a training sample: in memory, or asked for."""


class AskedBatches:
    """The outputs of a teacher for the rows of a batch; several columns of one batch are asked for once.

    Args:
        teacher: a store reads what it holds of these rows; any other teacher is asked live.
        data: whose rows they are.
        want: names of `SUPPLIES`.
        convert: from outputs to the fields of a batch.
    """

    def __init__(self, teacher: Teacher, data: Data, want: Sequence[str], convert: Convert) -> None:
        self._teacher, self._data, self._want, self._convert = teacher, data, tuple(want), convert
        self._reader = InputReader(data)
        self._rows: Tensor | None = None
        self._found: Fields = {}

    def __call__(self, rows: Tensor) -> Fields:
        # The very same tensor: the columns of a batch are read one after the other.
        if rows is not self._rows:
            outputs = batch_outputs(self._teacher, self._reader, self._data, rows.numpy(), self._want)
            self._found, self._rows = self._convert(outputs), rows
        return self._found


def asked_columns(
    teacher: Teacher, data: Data, want: Sequence[str], convert: Convert, names: Sequence[str]
) -> dict[str, AskedColumn]:
    """Columns of the fields `names` that ask a teacher as they are read; see `AskedBatches`."""
    batches = AskedBatches(teacher, data, want, convert)
    return {name: AskedColumn(name, batches) for name in names}


def output_bytes(teacher: Teacher, data: Data, want: Sequence[str]) -> int:
    """What the outputs of all samples would take in memory, from two samples of the teacher."""
    rows = np.arange(min(2, len(data)))
    found = batch_outputs(teacher, InputReader(data), data, rows, want)
    return sum(value.nbytes for value in found.values()) * len(data) // max(len(rows), 1)
