"""The fields of the training samples in the order in which many streams meet them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.probes.tape import Tape

_Key = tuple[Any, ...]
_Table = tuple[torch.dtype, bool]

IN_ORDER = 1 << 26
"""Bytes up to which a column is put in the order of an epoch at once; a larger one is gathered batch by batch."""


class Orders:
    """The samples of an epoch for all streams: batch by batch, and within a batch stream by stream."""

    def __init__(self, count: int, bounds: Sequence[tuple[int, int]], streams: int) -> None:
        self.streams = streams
        place = torch.empty(streams, count, dtype=torch.int64)
        for start, end in bounds:
            for stream in range(streams):
                first = streams * start + stream * (end - start)
                place[stream, start:end] = torch.arange(first, first + end - start)
        self.place = place

    def flat(self, orders: Sequence[Tensor]) -> Tensor:
        """`[S·N]` from the order of each stream `[N]`."""
        return torch.empty(self.place.numel(), dtype=torch.int64).index_copy_(
            0, self.place.reshape(-1), torch.stack(list(orders)).reshape(-1)
        )

    def part(self, start: int, end: int) -> slice:
        """Where a batch lies in it."""
        return slice(self.streams * start, self.streams * end)


class Column:
    """A field of the training samples, one tensor for each stream (often the same), in the order of an epoch.

    Args:
        sources: `[S]` tensors, samples first.
        orders: which sample a stream meets when.
        limit: see `IN_ORDER`.
    """

    def __init__(self, sources: Sequence[Tensor], orders: Orders, limit: int = IN_ORDER) -> None:
        self.sources, self._orders = sources, orders
        self._one = all(source is sources[0] for source in sources)
        self._small = sum(source.nbytes for source in sources) <= limit
        self._ordered: Tensor | None = None
        self._flat = torch.empty(0)

    def begin_epoch(self, flat: Tensor, orders: Sequence[Tensor]) -> None:
        """Take the order of an epoch."""
        self._flat = flat
        if not self._small:
            return
        if self._one:
            self._ordered = self.sources[0].index_select(0, flat)
            return
        example = self.sources[0]
        whole = example.new_empty(len(flat), *example.shape[1:])
        for stream, source in enumerate(self.sources):
            whole.index_copy_(0, self._orders.place[stream], source.index_select(0, orders[stream]))
        self._ordered = whole

    def batch(self, part: slice) -> Tensor:
        """The field of a batch, `[S·B, ...]`."""
        if self._ordered is not None:
            return self._ordered[part]
        rows = self._flat[part]
        if self._one:
            return self.sources[0].index_select(0, rows)
        parts = rows.view(len(self.sources), -1)
        return torch.cat([source.index_select(0, own) for source, own in zip(self.sources, parts, strict=True)])


class Prepared:
    """What tapes carry of every sample, computed once and held in one wide table for each type of number.

    Args:
        count: N.
        orders: which sample a stream meets when.
        rows: S·B of a whole batch.
        limit: bytes that the tables may take.
    """

    def __init__(self, count: int, orders: Orders, rows: int, limit: int) -> None:
        self._count, self._orders, self._rows, self._left = count, orders, rows, limit
        self._places: dict[_Key, list[tuple[_Table, slice, bool]]] = {}
        self._tables: dict[_Table, list[list[Tensor]]] = {}
        self._columns: dict[_Table, Column] = {}
        self._wide: dict[_Table, Tensor] = {}
        self._stacks: dict[_Key, tuple[list[Tensor], Tensor]] = {}

    def add(self, tape: Tape, rows: int, sources: Sequence[Sequence[Tensor]]) -> _Key | None:
        """Prepare a tape of `rows` rows from its fixed inputs `[S][inputs]`.

        Returns:
            What `batch` takes; None where the tables would take too much.
        """
        own = [tuple(map(id, stream)) for stream in sources]
        key = (id(tape), *own)
        if key in self._places:
            return key
        alike = len(set(own)) == 1
        example = tape.prepare(*block(sources[0], 0, rows, self._count))
        size = sum(value.nbytes for value in example) * self._count // rows * (1 if alike else len(sources))
        if size > self._left or any(value.dim() > 2 for value in example):
            return None
        self._left -= size
        made = [self._made(tape, rows, stream) for stream in (sources[:1] if alike else sources)]
        self._places[key] = []
        for carried in zip(*made, strict=True):
            name = (carried[0].dtype, alike)
            tables = self._tables.setdefault(name, [[] for _ in made])
            start = sum(part.shape[1] for part in tables[0])
            for table, value in zip(tables, carried, strict=True):
                table.append(value.view(self._count, -1))
            own_part = slice(start, start + tables[0][-1].shape[1])
            self._places[key].append((name, own_part, carried[0].dim() == 1))
        return key

    def _made(self, tape: Tape, rows: int, sources: Sequence[Tensor]) -> list[Tensor]:
        """What a tape carries of all samples, computed block by block."""
        whole: list[Tensor] = []
        for start in range(0, self._count, rows):
            found = tape.prepare(*block(sources, start, rows, self._count))
            whole = whole or [value.new_empty(self._count, *value.shape[1:]) for value in found]
            for table, value in zip(whole, found, strict=True):
                part = table[start : start + rows]
                part.copy_(value[: len(part)])
        return whole

    def close(self) -> None:
        """Everything has been added."""
        for name, tables in self._tables.items():
            whole = [torch.cat(table, 1) for table in tables]
            streams = self._orders.streams if len(whole) == 1 else 1
            self._columns[name] = Column(whole * streams, self._orders, limit=0)
            self._wide[name] = whole[0].new_empty(whole[0].shape[1], self._rows)
        self._tables.clear()

    def batch(self, keys: Sequence[_Key]) -> list[Tensor]:
        """Where a tape finds what it carries of a whole batch, for the rows of several columns: `[k·S·B, ...]` each."""
        found = []
        for number, places in enumerate(zip(*(self._places[key] for key in keys), strict=True)):
            parts = [self._wide[table][own] for table, own, _ in places]
            whole = parts[0]
            if len(parts) > 1:
                _, whole = self._stacks.setdefault((number, *keys), (parts, torch.stack(parts, 1)))
            found.append(whole.flatten() if places[0][2] else whole.flatten(1).t())
        return found

    def begin_epoch(self, flat: Tensor, orders: Sequence[Tensor]) -> None:
        """Take the order of an epoch."""
        for column in self._columns.values():
            column.begin_epoch(flat, orders)

    def begin_batch(self, part: slice) -> None:
        """Gather a whole batch, all that is carried in one reading."""
        for name, column in self._columns.items():
            self._wide[name].copy_(column.batch(part).t())
        for parts, whole in self._stacks.values():
            torch.stack(parts, 1, out=whole)


def block(sources: Sequence[Tensor], start: int, rows: int, count: int) -> list[Tensor]:
    """So many rows of the fixed inputs, the last sample again where there are no more; classes first in memory."""
    index = torch.arange(start, start + rows).clamp_(max=count - 1)
    return [classes_first(source.index_select(0, index)) for source in sources]


def classes_first(values: Tensor) -> Tensor:
    """The same `[n, C]`, rows contiguous: torch reduces over few classes several times faster so."""
    return values.T.contiguous().T if values.dim() == 2 else values
