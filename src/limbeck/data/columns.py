"""What is known of a sample besides its features: attribute columns, and the groups declared over them.

These values live beside `Data`, which is built from them; `limbeck.groups` re-exports them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from limbeck.errors import DataError, unknown_name

IntArray = NDArray[np.int64]

MAX_GROUPS = 10_000


@dataclass(frozen=True, eq=False)
class Column:
    """One discrete attribute of every sample.

    Attributes:
        values: the distinct values, in order.
        codes: int64 [N], position in `values`; -1 where the value is missing.
    """

    values: tuple[str, ...]
    codes: IntArray

    @classmethod
    def of(cls, data: object, name: str = "attribute", allowed: Sequence[object] | None = None) -> Column:
        """Code the values of an array, list, tensor, pandas or Arrow column.

        Numbers are ordered as numbers, everything else as text. None, NaN and the empty string are missing.

        Args:
            data: one value a sample; text, integers, booleans, or whole numbers stored as floats.
            name: what an error calls it.
            allowed: all values there may be, in their order; any other one raises.

        Raises:
            DataError: not one-dimensional, not discrete, or a value that is not allowed.
        """
        if isinstance(data, Column):
            column = _checked(data, name)
            return column if allowed is None else _reordered(column, [str(v) for v in allowed], name)
        distinct, codes = encode(data, f"attribute {name!r}")
        column = cls(tuple(text(value) for value in distinct), codes)
        return column if allowed is None else _reordered(column, [text(v) for v in allowed], name)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def missing(self) -> int:
        """How many samples have no value."""
        return int((self.codes < 0).sum())

    def take(self, rows: IntArray) -> Column:
        """The same column at some rows; the values stay those of the whole."""
        return Column(self.values, self.codes[rows])

    def merged(self, values: Mapping[str, Sequence[object]], name: str = "attribute") -> Column:
        """Several values as one, such as {"not White": ["Black", "Other"]}; values that are not named stay.

        A new value stands where the first of its old ones stood.

        Raises:
            DataError: a value that the column does not have, or that is named twice.
        """
        new_of: dict[str, str] = {}
        for new, old in values.items():
            for value in map(str, old):
                if value not in self.values:
                    raise DataError(f"attribute {name!r}: {unknown_name('value', value, self.values)}")
                if value in new_of:
                    raise DataError(f"attribute {name!r}: the value {value!r} is merged twice: name it once")
                new_of[value] = new
        renamed = [new_of.get(value, value) for value in self.values]
        kept = tuple(dict.fromkeys(renamed))
        place = np.array([*(kept.index(value) for value in renamed), -1], np.int64)
        return Column(kept, place[self.codes])

    def strings(self, missing: str = "") -> NDArray[np.str_]:
        """The values as text [N], `missing` where there is none."""
        return np.array([*self.values, missing], dtype=str)[self.codes]


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of the samples into named groups.

    Attributes:
        columns: what they were declared over: attribute names, or "label".
        names: one a group, such as "income >50K, sex=Female".
        index: int64 [N], the group of each sample; -1 where a value it depends on is missing.
        cells: the value of each column in each group, for tables that fold over a column.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    index: IntArray
    cells: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def from_index(cls, index: object, names: Sequence[str] | None = None, column: str = "group") -> Groups:
        """Groups that are already numbered.

        Args:
            index: whole numbers [N] in 0..G-1, or -1 for unknown.
            names: one a group; "group 0", "group 1", … where not given.
            column: what the partition is called.

        Raises:
            DataError: not whole numbers, a number without a name, a name twice.
        """
        codes = integer_vector(index, "group index")
        low, high = (int(codes.min()), int(codes.max())) if len(codes) else (0, -1)
        if low < -1:
            raise DataError(f"group index holds {low}: groups are 0, 1, 2, … and -1 means unknown")
        if high >= MAX_GROUPS:
            raise DataError(f"group index holds {high}: at most {MAX_GROUPS:,} groups are kept; number them from 0")
        labels = tuple(f"group {g}" for g in range(high + 1)) if names is None else tuple(str(n) for n in names)
        if high >= len(labels):
            rows = np.flatnonzero(codes >= len(labels))
            raise DataError(
                f"group index holds {high} at rows {some(rows)}, but {len(labels)} group names are given: "
                f"name every group, or mark unknown ones -1"
            )
        if len(set(labels)) < len(labels):
            raise DataError(f"group name {_first_repeated(labels)!r} is given twice: names are unique")
        if not labels:
            raise DataError("no sample has a known group: every index is -1; number the groups from 0")
        return cls((column,), labels, codes, tuple((name,) for name in labels))

    def counts(self, rows: IntArray | NDArray[np.bool_] | None = None) -> IntArray:
        """How many samples each group has, int64 [G]; unknown samples are counted by `unknown`."""
        index = self.index if rows is None else self.index[rows]
        return np.bincount(index[index >= 0], minlength=len(self.names)).astype(np.int64)

    @property
    def unknown(self) -> int:
        """How many samples belong to no group because a value is missing."""
        return int((self.index < 0).sum())

    def take(self, rows: IntArray) -> Groups:
        """The same groups at some rows; a group may become empty, its name stays."""
        return Groups(self.columns, self.names, self.index[rows], self.cells)


def declare(
    attributes: Mapping[str, Column],
    labels: IntArray,
    classes: Sequence[str],
    columns: str | Sequence[str],
    *,
    label_name: str = "label",
    cells: Literal["occurring", "all"] = "occurring",
) -> Groups:
    """Groups as the product of attributes, or of the label and attributes.

    Args:
        attributes: by name.
        labels: int64 [N], 0..C-1.
        classes: C names.
        columns: one attribute, or several for their product. "label" (or `label_name`) stands for the label.
            The first column varies slowest in the order of the groups.
        label_name: what the label is called in the groups' names.
        cells: "occurring" keeps the cells of the product that have at least one sample in any split,
            "all" keeps empty ones too.

    Returns:
        Groups; a sample with a missing value in any of the columns has index -1.

    Raises:
        DataError: an attribute that does not exist, no known sample, or more than 10,000 groups.
    """
    wanted = [columns] if isinstance(columns, str) else list(columns)
    wanted = ["label" if column == label_name and column not in attributes else column for column in wanted]
    if not wanted:
        raise DataError("no column given to form groups over: name an attribute, or 'label'")
    if len(set(wanted)) < len(wanted):
        raise DataError(f"groups name {_first_repeated(wanted)!r} twice: name each column once")
    if cells not in ("occurring", "all"):
        raise DataError(unknown_name("choice of cells", cells, ["occurring", "all"]))
    label = Column(tuple(classes), labels)
    chosen = [label if column == "label" else _attribute(attributes, column) for column in wanted]

    sizes = [len(column.values) for column in chosen]
    if math.prod(sizes) >= 2**62 or (cells == "all" and math.prod(sizes) > MAX_GROUPS):
        raise DataError(_too_many(wanted, math.prod(sizes)))
    flat = np.zeros(len(labels), np.int64)
    known = np.ones(len(labels), bool)
    for column, size in zip(chosen, sizes):
        flat = flat * size + column.codes
        known &= column.codes >= 0
    kept = np.arange(math.prod(sizes)) if cells == "all" else np.unique(flat[known])
    if not known.any():
        raise DataError(f"groups over {', '.join(wanted)}: no sample has a known value of all of them")
    if len(kept) > MAX_GROUPS:
        raise DataError(_too_many(wanted, len(kept)))
    index = np.where(known, np.searchsorted(kept, np.where(known, flat, kept[0])), -1)

    places = np.unravel_index(kept, sizes)
    values = [tuple(column.values[int(p[g])] for column, p in zip(chosen, places)) for g in range(len(kept))]
    shown = [label_name if column == "label" else column for column in wanted]
    names = tuple(", ".join(_cell(c, v) for c, v in zip(shown, cell)) for cell in values)
    return Groups(tuple(wanted), names, index.astype(np.int64), tuple(values))


def renumbered(groups: Groups, before: Groups) -> Groups:
    """The same groups numbered as they were before: cells known then keep number and name, new ones follow."""
    place = {cell: number for number, cell in enumerate(before.cells)}
    added = [number for number, cell in enumerate(groups.cells) if cell not in place]
    place |= {groups.cells[number]: len(before.cells) + k for k, number in enumerate(added)}
    numbers = np.array([*(place[cell] for cell in groups.cells), -1], np.int64)
    names = (*before.names, *(groups.names[number] for number in added))
    return Groups(before.columns, names, numbers[groups.index], tuple(place))


def encode(values: object, what: str) -> tuple[list[Any], IntArray]:
    """The distinct values in order, and the position of each sample's value among them [N] (-1 = missing).

    Raises:
        DataError: not one-dimensional, of mixed types, or not discrete.
    """
    array = arrow_column(values, what)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_floating(array.type):
        array = _whole(array, what)
    if not _discrete(array.type):
        raise DataError(f"{what} is of type {array.type}: expected text, whole numbers or booleans; bin it first")
    coded = array.dictionary_encode()
    found = coded.dictionary.to_pylist()
    order = sorted((i for i, value in enumerate(found) if value is not None and value != ""), key=found.__getitem__)
    place = np.full(len(found) + 1, -1, np.int64)
    place[order] = np.arange(len(order))
    codes = place[coded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False).astype(np.int64)]
    return [found[i] for i in order], codes


def arrow_column(values: object, what: str) -> pa.Array:
    """One Arrow array from a tensor, numpy, pandas, Arrow column or a list; NaN becomes null."""
    if isinstance(values, pa.ChunkedArray):
        return values.unify_dictionaries().combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if hasattr(values, "detach"):
        values = to_numpy(values)
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise DataError(f"{what} is {values!r:.80}: expected one value a sample, as an array or a list")
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise DataError(f"{what} has shape {list(shape)}: expected [N], one value a sample")
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"{what} cannot be read as one column ({first_line(error)}): give values of one type"
        ) from error
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def to_numpy(value: Any) -> NDArray[Any]:
    """A numpy array from an array, a list or a tensor on any device; the input is left as it is."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16.
        value = value.float().numpy() if "bfloat16" in str(value.dtype) else value.numpy()
    return np.asarray(value)


def integer_vector(values: object, what: str) -> IntArray:
    """Whole numbers [N] as int64.

    Raises:
        DataError: not one-dimensional, or a value that is not a whole number in the range of int64.
    """
    array = to_numpy(values)
    if array.ndim != 1:
        raise DataError(f"{what} has shape {list(array.shape)}: expected [N], one whole number a sample")
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{what} holds {int(array.max())}: expected whole numbers below 2**63")
    if array.dtype.kind == "f" and bool(np.all(np.isfinite(array) & (np.abs(array) < 2.0**53))):
        whole = array.astype(np.int64)
        if bool(np.all(whole == array)):
            return whole
    if array.dtype.kind not in "iu":
        wrong = array.ravel()[:3].tolist()
        raise DataError(f"{what} holds {array.dtype} values such as {wrong}: expected whole numbers")
    return array.astype(np.int64)


def text(value: object) -> str:
    """A value as a name: 3 and 3.0 are both "3"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def some(values: Iterable[object], limit: int = 5) -> str:
    """The first few of many, for an error message.

    >>> some([4, 7, 9, 12], limit=2)
    '4, 7 and 2 more'
    """
    items = [str(value) for value in values]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"


def first_line(error: BaseException) -> str:
    """The first line of another library's error, short enough for ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _discrete(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or getattr(types, "is_string_view", lambda _: False)(kind)
        or types.is_null(kind)
    )


def _whole(array: pa.Array, what: str) -> pa.Array:
    values = array.to_numpy(zero_copy_only=False).astype(np.float64)
    fractional = np.flatnonzero(~np.isnan(values) & ~(np.isfinite(values) & (np.abs(values) < 2**53)))
    fractional = np.union1d(fractional, np.flatnonzero(np.nan_to_num(values) % 1 != 0))
    if len(fractional):
        raise DataError(
            f"{what} holds {values[fractional[0]]:g} (row {fractional[0]}): expected discrete values; "
            f"bin it, or keep it as an extra column"
        )
    return pa.array(np.nan_to_num(values).astype(np.int64), mask=np.isnan(values))


def _attribute(attributes: Mapping[str, Column], name: str) -> Column:
    if name not in attributes:
        raise DataError(f"groups: {unknown_name('attribute', name, [*attributes, 'label'])}")
    return attributes[name]


def _checked(column: Column, name: str) -> Column:
    codes = integer_vector(column.codes, f"attribute {name!r}")
    wrong = np.flatnonzero((codes < -1) | (codes >= len(column.values)))
    if len(wrong):
        raise DataError(
            f"attribute {name!r} holds code {codes[wrong[0]]} at row {wrong[0]}, but has {len(column.values)} values: "
            f"codes are 0..{len(column.values) - 1}, or -1 for missing"
        )
    if len(set(column.values)) < len(column.values):
        raise DataError(f"attribute {name!r} names {_first_repeated(column.values)!r} twice: values are unique")
    return Column(tuple(str(value) for value in column.values), codes)


def _reordered(column: Column, allowed: list[str], name: str) -> Column:
    extra = [value for value in column.values if value not in allowed and column.values.index(value) in column.codes]
    if extra:
        rows = np.flatnonzero(column.codes == column.values.index(extra[0]))
        raise DataError(
            f"attribute {name!r}, row {some(rows)}: {unknown_name('value', extra[0], allowed)}. "
            f"Correct the value, make it missing, or add it to the allowed ones"
        )
    place = np.array([allowed.index(value) if value in allowed else -1 for value in column.values] + [-1], np.int64)
    return Column(tuple(allowed), place[column.codes])


def _cell(column: str, value: str) -> str:
    return f"{column} {value}" if value[:1] in "<>≤≥=" and value else f"{column}={value}"


def _first_repeated(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])


def _too_many(columns: Sequence[str], count: int) -> str:
    return (
        f"groups over {' × '.join(columns)} would be {count:,}, more than {MAX_GROUPS:,}: "
        f"bin an attribute with many values, or use fewer attributes"
    )
