"""The fields of the training samples in the order in which many streams meet them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.probes.tape import Tape, classes_first, first_rows

_Kind = tuple[torch.dtype, bool, tuple[int, ...]]
"""Of data: type, whether it is the same for all streams, and shape beside the samples."""

_BLOCK = 4096
"""Samples that are prepared at a time."""

IN_ORDER = 1 << 26
"""Bytes up to which a column is put in the order of an epoch at once; a larger one is gathered batch by batch."""

_NARROW = 16
"""Bytes a sample up to which that is worth it for what has to be turned over as well."""


class Orders:
    """The samples of an epoch for all streams: batch by batch, and within a batch stream by stream."""

    def __init__(self, count: int, bounds: Sequence[tuple[int, int]], streams: int) -> None:
        self.streams = streams
        starts, ends = torch.tensor(bounds).T
        sizes = ends - starts
        start, size = starts.repeat_interleave(sizes), sizes.repeat_interleave(sizes)
        own = torch.arange(count) + (streams - 1) * start
        place = torch.stack([own + stream * size for stream in range(streams)])
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
        self._of_streams: Sequence[Tensor] = ()
        self._asked = 0

    def begin_epoch(self, flat: Tensor, orders: Sequence[Tensor]) -> None:
        """Take the order of an epoch."""
        self._flat, self._of_streams = flat, orders
        self._ordered, self._asked = None, 0

    def batch(self, part: slice) -> Tensor:
        """The field of a batch, `[S·B, ...]`."""
        self._asked += 1
        if self._small and self._asked == 2:  # what is read once an epoch, for a last smaller batch, is not worth it
            self._ordered = self._in_order()
        if self._ordered is not None:
            return self._ordered[part]
        rows = self._flat[part]
        if self._one:
            return self.sources[0].index_select(0, rows)
        parts = rows.view(len(self.sources), -1)
        return torch.cat([source.index_select(0, own) for source, own in zip(self.sources, parts, strict=True)])

    def _in_order(self) -> Tensor:
        """All of it in the order of the epoch."""
        if self._one:
            return self.sources[0].index_select(0, self._flat)
        example = self.sources[0]
        whole = example.new_empty(len(self._flat), *example.shape[1:])
        for stream, source in enumerate(self.sources):
            whole.index_copy_(0, self._orders.place[stream], source.index_select(0, self._of_streams[stream]))
        return whole


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
        self._numbers: dict[Any, int] = {}
        self._kinds: dict[int, _Kind] = {}
        self._asked: list[tuple[Tape, Sequence[Sequence[Tensor]], dict[int, int]]] = []
        self._tables: list[tuple[Column, Tensor, Tensor, Tensor]] = []

    def add(self, tape: Tape, sources: Sequence[Sequence[Tensor]]) -> list[tuple[_Kind, int]] | None:
        """Ask for what a tape carries, given its fixed inputs `[S][inputs]`.

        Returns:
            Of which kind it is, and a number for the data; None where the tables would take too much.
        """
        alike = len({tuple(map(id, stream)) for stream in sources}) == 1
        streams = sources[:1] if alike else sources
        fields = [self._number(("field", *map(id, field))) for field in zip(*streams, strict=True)]
        numbers = tape.names(fields, self._numbers)
        missing = {place: number for place, number in enumerate(numbers) if number not in self._kinds}
        if missing:
            example = tape.prepare(*(first_rows(source, 1) for source in streams[0]))
            size = sum(example[place].nbytes for place in missing) * self._count * len(streams)
            if size > self._left:
                return None
            self._left -= size
            for place, number in missing.items():
                self._kinds[number] = example[place].dtype, alike, example[place].shape[1:]
            self._asked.append((tape, streams, missing))
        return [(self._kinds[number], number) for number in numbers]

    def _number(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def lay_out(self, asked: Sequence[Sequence[int]]) -> list[Tensor]:
        """Compute it: nothing is added any more.

        Args:
            asked: data of one kind for the rows of several columns, one after the other.

        Returns:
            Where they are found after `begin_batch`, `[k·S·B, ...]` each.
        """
        found: dict[int, Tensor] = {}
        places: dict[int, tuple[list[Tensor], slice]] = {}
        kinds = [self._kinds[data[0]] for data in asked]
        for dtype, alike in dict.fromkeys(kind[:2] for kind in kinds):
            mine = [number for number, kind in enumerate(kinds) if kind[:2] == (dtype, alike)]
            # The numbers of a sample lie as they are asked for, column beside column.
            own: dict[int, slice] = {}
            index: list[int] = []
            width = 0
            for number in mine:
                size = math.prod(kinds[number][2])
                new = [data for data in dict.fromkeys(asked[number]) if data not in own]
                start, width = width, width + size * len(new)
                own |= {data: slice(start + place, width, len(new)) for place, data in enumerate(new)}
                index += [range(width)[own[data]][row] for row in range(size) for data in asked[number]]
            tables = [_table(self._count, width, dtype) for _ in range(1 if alike else self._orders.streams)]
            places |= {data: (tables, place) for data, place in own.items()}
            whole = torch.zeros(len(index), self._rows, dtype=dtype)
            wide = whole if index == [*range(width)] else torch.empty(width, self._rows, dtype=dtype)
            limit = IN_ORDER if width * dtype.itemsize <= _NARROW else 0
            column = Column(tables * (self._orders.streams // len(tables)), self._orders, limit)
            self._tables.append((column, wide, torch.tensor(index), whole))
            start = 0
            for number in mine:
                shape, columns = kinds[number][2], len(asked[number])
                end = start + math.prod(shape) * columns
                found[number] = whole[start:end].view(*shape, columns * self._rows).t()
                start = end
        for tape, streams, missing in self._asked:
            for stream, sources in enumerate(streams):
                wanted = [(place, places[data][0][stream][:, places[data][1]]) for place, data in missing.items()]
                self._prepare(tape, sources, wanted)
        return [found[number] for number in range(len(asked))]

    def _prepare(self, tape: Tape, sources: Sequence[Tensor], wanted: Sequence[tuple[int, Tensor]]) -> None:
        """Write some of what a tape carries of all samples where it is wanted, `[N, numbers]`, block by block."""
        for start in range(0, self._count, _BLOCK):
            part = slice(start, start + _BLOCK)
            found = tape.prepare(*(classes_first(source[part]) for source in sources))
            for place, table in wanted:
                table[part] = found[place].view(-1, table.shape[1])

    def begin_epoch(self, flat: Tensor, orders: Sequence[Tensor]) -> None:
        """Take the order of an epoch."""
        for column, *_ in self._tables:
            column.begin_epoch(flat, orders)

    def begin_batch(self, part: slice) -> None:
        """Gather a whole batch, all that is carried in one reading."""
        for column, wide, index, whole in self._tables:
            wide.copy_(column.batch(part).t())
            if wide is not whole:  # some of it for several columns
                torch.index_select(wide, 0, index, out=whole)


def _table(count: int, width: int, dtype: torch.dtype) -> Tensor:
    """Memory that NumPy asks for in large pages, of which many fewer are looked up."""
    if not width:
        return torch.empty(count, width, dtype=dtype)
    return torch.from_numpy(np.empty(count * width * dtype.itemsize, np.uint8)).view(dtype).view(count, width)
