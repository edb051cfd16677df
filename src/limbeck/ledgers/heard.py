"""What a teacher says while a student learns from it, kept for the ledger: the teacher is not asked a second time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from limbeck.teachers import Source, StoredTeacher, Teacher, as_teacher

if TYPE_CHECKING:
    from limbeck.data import Data

_KEPT = ("logits", "teachers_logits")
_MOST = 1 << 30
"""Bytes that are kept at most; a teacher whose outputs take more is asked once more for the ledger."""


class HeardTeacher(Source):
    """A teacher that answers as another does, and remembers its logits by sample id.

    Args:
        teacher: the one that is asked. All that it has beside its outputs (`module`, …) is had from here as well.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._ids: list[Tensor] = []
        self._kept: dict[str, list[Tensor]] = {}
        self._room = _MOST

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._teacher, name)

    @property
    def description(self) -> str:  # type: ignore[override]
        return str(getattr(self._teacher, "description", f"a {type(self._teacher).__name__}"))

    @property
    def reads_inputs(self) -> bool:  # type: ignore[override]
        return bool(getattr(self._teacher, "reads_inputs", True))

    @property
    def advice(self) -> Mapping[str, str]:  # type: ignore[override]
        return getattr(self._teacher, "advice", {})

    @property
    def supplies(self) -> frozenset[str]:
        return self._teacher.supplies

    @property
    def classes(self) -> int:
        return self._teacher.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._teacher.class_names

    def fingerprint(self) -> str:
        return self._teacher.fingerprint()

    def head(self) -> tuple[Tensor, Tensor]:
        return self._teacher.head()

    def check(self, data: Data, want: Sequence[str] | None = None) -> None:
        self._teacher.check(data, want)

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        found = self._teacher.outputs(x, ids, want)
        kept = {name: found[name].detach().float().cpu() for name in _KEPT if name in found and self._room > 0}
        if kept:
            self._room -= sum(value.nbytes for value in kept.values())
            self._ids.append(torch.as_tensor(ids).cpu())
            for name, value in kept.items():
                self._kept.setdefault(name, []).append(value)
            if self._room <= 0:
                self._ids, self._kept = [], {}
        return found

    def logits_of(self, data: Data) -> Tensor | None:
        """What it said of every sample of `data`, `[N, C]` (`[T, N, C]` of several teachers); None unless all were
        asked."""
        if len(self._kept) != 1:
            return None
        ((name, parts),) = self._kept.items()
        axis = 1 if name == "teachers_logits" else 0
        ids = torch.cat(self._ids).numpy()
        values = parts[0] if len(parts) == 1 else torch.cat(parts, axis)
        # All in one go, after what was asked to see what it says at all, is the rule.
        early = len(ids) - len(data.ids)
        if early >= 0 and np.array_equal(ids[early:], data.ids):
            return values.narrow(axis, early, len(data.ids))
        order = np.argsort(ids, kind="stable")
        place = np.searchsorted(ids[order], data.ids).clip(max=len(ids) - 1)
        if not np.array_equal(ids[order][place], data.ids):
            return None
        return values.index_select(axis, torch.from_numpy(order[place]))


def overhear(teacher: Any, *, views: bool = False) -> Any:
    """The teacher, so that `Ledger.of` can read what it said during training.

    A store is returned as it is, since reading it again costs nothing; and so is a teacher that sees augmented images
    (`views`), since a ledger is of the samples as they are.
    """
    if teacher is None or views:
        return teacher
    source = as_teacher(teacher)
    return source if isinstance(source, StoredTeacher) else HeardTeacher(source)
