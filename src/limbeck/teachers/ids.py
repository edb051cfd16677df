"""From sample ids to rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
_SPREAD = 4


class IdIndex:
    """Finds the rows of ids: by subtraction where ids are consecutive, by a table where they lie close together
    (a range of up to four times their number), else by a search in sorted order.

    Args:
        ids: int64 `[N]`, unique.
    """

    def __init__(self, ids: Rows) -> None:
        self.ids = ids
        self._low = int(ids.min()) if len(ids) else 0
        self._range = int(ids.max()) - self._low + 1 if len(ids) else 0
        self._consecutive = bool((ids == np.arange(self._low, self._low + len(ids))).all())
        self._table: Rows | None = None
        if not self._consecutive and self._range <= _SPREAD * len(ids):
            self._table = np.full(self._range, -1, dtype=np.int64)
            self._table[ids - self._low] = np.arange(len(ids))
        elif not self._consecutive:
            self._order = np.argsort(ids, kind="stable")
            self._sorted = ids[self._order]

    def rows(self, ids: NDArray[Any]) -> Rows:
        """The row of each id, -1 where there is none."""
        if len(self.ids) == 0:
            return np.full(len(ids), -1, dtype=np.int64)
        if self._consecutive or self._table is not None:
            places = ids - self._low
            inside = (places >= 0) & (places < self._range)
            if not inside.all():
                places = np.where(inside, places, 0)
            rows = places if self._table is None else self._table[places]
            return rows if inside.all() else np.where(inside, rows, -1)
        places = np.minimum(np.searchsorted(self._sorted, ids), len(self.ids) - 1)
        return np.where(self._sorted[places] == ids, self._order[places], -1)


def duplicates(ids: NDArray[Any]) -> NDArray[Any]:
    """The ids that occur more than once, ascending."""
    values, counts = np.unique(ids, return_counts=True)
    return values[counts > 1]
