"""One pass of a teacher over data that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import TeacherError
from limbeck.predict import InputReader
from limbeck.teachers.base import Teacher, as_names, batch_axis, batch_outputs, require

if TYPE_CHECKING:
    from limbeck.data import Data


def collect(
    teacher: Teacher,
    data: Data,
    want: Sequence[str] = ("logits",),
    *,
    batch_size: int = 1024,
    max_bytes: int | None = None,
) -> dict[str, Tensor]:
    """A teacher's outputs for every sample, in the order of the data, in memory: each sample is asked for once.

    Args:
        want: names of `SUPPLIES`, `head` aside.
        batch_size: samples a call of the teacher.
        max_bytes: refuse a result that is larger; known after the first batch.

    Returns:
        What `Teacher.outputs` returns for a batch, for all N samples: float32 on the CPU, samples along `batch_axis`.

    Raises:
        TeacherError: for what the teacher cannot supply, outputs that are not finite, or a result above `max_bytes`.
    """
    want = as_names(want)
    require(teacher, want, by="this pass")
    whole: dict[str, Tensor] = {}
    for rows, found in _batches(teacher, data, want, batch_size):
        if not whole:
            whole = _allocate(found, len(rows), len(data), max_bytes)
        for name, value in found.items():
            whole[name].narrow(batch_axis(name), int(rows[0]), len(rows)).copy_(value)
    return whole


def _batches(
    teacher: Teacher, data: Data, want: Sequence[str], batch_size: int
) -> Iterator[tuple[np.ndarray[Any, Any], dict[str, Tensor]]]:
    reader = InputReader(data)
    for start in range(0, len(data), batch_size):
        rows = np.arange(start, min(start + batch_size, len(data)))
        yield rows, batch_outputs(teacher, reader, data, rows, want)


def _allocate(found: dict[str, Tensor], batch: int, count: int, max_bytes: int | None) -> dict[str, Tensor]:
    needed = sum(4 * value.numel() // batch * count for value in found.values())
    if max_bytes is not None and needed > max_bytes:
        raise TeacherError(
            f"the teacher's outputs ({', '.join(found)}) take {needed / 1e9:.2f} GB for {count} samples, "
            f"{max_bytes / 1e9:.2f} GB are allowed: write them to disk once with Store.write, in float16 or top-k"
        )
    whole = {}
    for name, value in found.items():
        shape = list(value.shape)
        shape[batch_axis(name)] = count
        whole[name] = torch.empty(shape, dtype=torch.float32)
    return whole
