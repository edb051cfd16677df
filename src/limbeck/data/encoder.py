"""From the rows of a table to features: fitted on training rows, kept as plain data, applied to any later row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from limbeck.data.columns import IntArray, first_line, some
from limbeck.errors import DataError, unknown_name

MAX_CATEGORIES = 1_000


@dataclass(frozen=True)
class NumericColumn:
    """(value − mean) / scale in one feature, 0 where the value is missing, and one more feature that is 1 there."""

    name: str
    mean: float
    scale: float
    missing: bool

    @property
    def feature_names(self) -> list[str]:
        return [self.name, f"{self.name} is missing"][: 1 + self.missing]


@dataclass(frozen=True)
class CategoricalColumn:
    """One feature a category, and one more for a missing value; a category never seen in training is all zeros."""

    name: str
    categories: tuple[str, ...]
    missing: bool

    @property
    def feature_names(self) -> list[str]:
        shown = [f"{self.name}={category}" for category in self.categories]
        return [*shown, f"{self.name} is missing"] if self.missing else shown


@dataclass(frozen=True)
class TableEncoder:
    """How the columns of a table become features.

    Means, scales and categories are those of the training rows. Whether a column gets a feature for missing values
    is decided by all rows it was fitted with, so that a value missing only in test rows stays visible.
    """

    columns: tuple[NumericColumn | CategoricalColumn, ...]

    @classmethod
    def fit(
        cls,
        table: pa.Table,
        columns: Sequence[str],
        *,
        train: NDArray[np.bool_] | None = None,
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
        ids: IntArray | None = None,
    ) -> TableEncoder:
        """Learn means, standard deviations and categories.

        Args:
            table: the rows.
            columns: those that become features, in this order.
            train: bool [N], the rows to learn from; all where not given.
            numeric: columns to read as numbers although they hold text.
            categorical: columns to read as categories although they hold numbers.
            ids: sample ids [N], for error messages.

        Raises:
            DataError: a column of an unusable type, an infinite number, text in a numeric column, or more than
                1,000 categories.
        """
        rows = np.ones(table.num_rows, bool) if train is None else train
        fitted: list[NumericColumn | CategoricalColumn] = []
        for name in columns:
            column = table.column(name)
            if _is_numeric(column.type, name, name in numeric, name in categorical):
                fitted.append(_fit_numeric(name, _numbers(column, name, ids), rows))
            else:
                fitted.append(_fit_categorical(name, column, rows))
        return cls(tuple(fitted))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One name a feature [D]."""
        return tuple(feature for column in self.columns for feature in column.feature_names)

    def transform(self, rows: Any, ids: IntArray | None = None) -> NDArray[np.float32]:
        """Features float32 [N, D] of rows that have all the columns (others are left aside).

        Args:
            rows: an Arrow table, a pandas data frame, or a dict of lists.
            ids: sample ids [N], for error messages.

        Raises:
            DataError: a column that is absent, text in a numeric column, an infinite number.
        """
        table = as_table(rows)
        out = np.zeros((table.num_rows, len(self.feature_names)), np.float32)
        start = 0
        for column in self.columns:
            if column.name not in table.column_names:
                raise DataError(f"rows to encode: {unknown_name('column', column.name, table.column_names)}")
            part = out[:, start : start + len(column.feature_names)]
            if isinstance(column, NumericColumn):
                _put_numeric(column, _numbers(table.column(column.name), column.name, ids), part)
            else:
                _put_categorical(column, table.column(column.name), part)
            start += part.shape[1]
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML."""
        kinds = {NumericColumn: "numeric", CategoricalColumn: "categorical"}
        plain = [{"kind": kinds[type(column)], **asdict(column)} for column in self.columns]
        return {"columns": [{k: list(v) if isinstance(v, tuple) else v for k, v in c.items()} for c in plain]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TableEncoder:
        """The encoder that `to_dict` wrote.

        Raises:
            DataError: for anything else, naming the entry.
        """
        entries = plain.get("columns") if isinstance(plain, Mapping) else None
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise DataError("a table encoder is {'columns': […]}, as TableEncoder.to_dict writes it")
        return cls(tuple(_column(entry, place) for place, entry in enumerate(entries)))


def as_table(rows: Any) -> pa.Table:
    """An Arrow table from Arrow, pandas, anything that exports Arrow, or a dict of columns.

    Raises:
        DataError: for anything else, and where a column name occurs twice.
    """
    try:
        if isinstance(rows, pa.Table):
            table = rows
        elif isinstance(rows, pa.RecordBatch):
            table = pa.Table.from_batches([rows])
        elif type(rows).__module__.partition(".")[0] == "pandas":
            table = pa.Table.from_pandas(rows, preserve_index=False)
        elif hasattr(rows, "__arrow_c_stream__"):
            table = pa.table(rows)
        elif isinstance(rows, Mapping):
            table = pa.table({str(key): pa.array(values, from_pandas=True) for key, values in rows.items()})
        else:
            raise DataError(
                f"a table is expected, found {type(rows).__name__}: give a .parquet or .csv path, "
                f"a data frame, an Arrow table or a dict of columns"
            )
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the table cannot be read ({first_line(error)}): give every column one type") from error
    names = table.column_names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"column {some(map(repr, repeated))} occurs twice in the table: rename one of the two")
    return table


def text_column(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A column as dictionary-coded text; null and the empty string are null in the indices or the dictionary."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pa.types.is_string(column.type):
        column = column.cast(pa.string())
    coded = column.combine_chunks().dictionary_encode()
    return coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded


def _is_numeric(kind: pa.DataType, name: str, forced: bool, refused: bool) -> bool:
    types = pa.types
    if forced or refused:
        return forced
    if types.is_dictionary(kind) or types.is_string(kind) or types.is_large_string(kind) or _is_view(kind):
        return False
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind):
        return True
    if types.is_null(kind):
        raise DataError(f"column {name!r} holds no value at all: drop it with drop=[{name!r}]")
    raise DataError(
        f"column {name!r} is of type {kind}: expected numbers or text; turn it into numbers (days since …), "
        f"name it in categorical=[…], or drop it with drop=[{name!r}]"
    )


def _is_view(kind: pa.DataType) -> bool:
    return bool(getattr(pa.types, "is_string_view", lambda _: False)(kind))


def _numbers(column: pa.ChunkedArray, name: str, ids: IntArray | None) -> NDArray[np.float64]:
    """A column as float64 [N], NaN where missing."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy().astype(np.float64, copy=False)
    except pa.ArrowException as error:
        wrong = [k for k, value in enumerate(column.to_pylist()) if value is not None and not _is_number(value)]
        where = f"id {some(wrong if ids is None else ids[wrong])}: " if wrong else ""
        found = repr(column[wrong[0]].as_py()) if wrong else first_line(error)
        raise DataError(
            f"column {name!r} is read as numbers, {where}found {found}; correct it, "
            f"name it as missing with missing=[…], or read the column with categorical=[{name!r}]"
        ) from error
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        where = some(infinite if ids is None else ids[infinite])
        raise DataError(
            f"column {name!r} holds infinity at ids {where} ({len(infinite):,} samples): "
            f"correct the values, or make them missing"
        )
    return values


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _fit_numeric(name: str, values: NDArray[np.float64], rows: NDArray[np.bool_]) -> NumericColumn:
    known = values[rows & ~np.isnan(values)]
    # The largest magnitude is divided out first: squares of values near 1e300 would overflow.
    unit = float(np.abs(known).max()) if len(known) else 0.0
    unit = unit if unit > 0 else 1.0
    mean, scale = (float((known / unit).mean()), float((known / unit).std())) if len(known) else (0.0, 0.0)
    # A constant column stays constant; rounding in the mean must not be blown up to a feature.
    scale = scale if scale > 1e-12 else 1.0
    return NumericColumn(name, mean * unit, scale * unit, bool(np.isnan(values).any()))


def _put_numeric(column: NumericColumn, values: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    missing = np.isnan(values)
    standard = np.where(missing, 0.0, values / column.scale - column.mean / column.scale)
    out[:, 0] = np.clip(standard, -3e38, 3e38)
    if column.missing:
        out[:, 1] = missing


def _fit_categorical(name: str, column: pa.ChunkedArray, rows: NDArray[np.bool_]) -> CategoricalColumn:
    coded = _text(column, name)
    found = coded.dictionary.to_pylist()
    codes = coded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)
    counts = np.bincount(codes[rows], minlength=len(found) + 1)
    categories = sorted(v for v, count in zip(found, counts) if count and v)
    if len(categories) > MAX_CATEGORIES:
        raise DataError(
            f"column {name!r} holds {len(categories):,} different texts, more than {MAX_CATEGORIES:,} categories: "
            f"drop it with drop=[{name!r}], read it with numeric=[{name!r}], or merge rare values"
        )
    empty = [code for code, value in enumerate(found) if not value]
    missing = bool(np.isin(codes, [*empty, len(found)]).any())
    return CategoricalColumn(name, tuple(categories), missing)


def _put_categorical(column: CategoricalColumn, values: pa.ChunkedArray, out: NDArray[np.float32]) -> None:
    coded = _text(values, column.name)
    known = {category: place for place, category in enumerate(column.categories)}
    absent = len(column.categories) if column.missing else -1
    found = coded.dictionary.to_pylist()
    place = np.array([known.get(value, -1) if value else absent for value in found] + [absent], np.int64)
    codes = place[coded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]
    rows = np.flatnonzero(codes >= 0)
    out[rows, codes[rows]] = 1.0


def _text(column: pa.ChunkedArray, name: str) -> pa.DictionaryArray:
    try:
        return text_column(column)
    except pa.ArrowException as error:
        raise DataError(
            f"column {name!r} of type {column.type} cannot be read as text: drop it with drop=[{name!r}]"
        ) from error


def _column(entry: object, place: int) -> NumericColumn | CategoricalColumn:
    try:
        if not isinstance(entry, Mapping):
            raise TypeError("not a mapping")
        rest = {str(key): value for key, value in entry.items() if key != "kind"}
        if not isinstance(rest.get("name"), str) or not isinstance(rest.get("missing"), bool):
            raise TypeError("name or missing is not of its type")
        if entry.get("kind") == "numeric":
            column = NumericColumn(**{**rest, "mean": float(rest["mean"]), "scale": float(rest["scale"])})
            if not (math.isfinite(column.mean) and math.isfinite(column.scale) and column.scale > 0):
                raise ValueError("mean and scale are finite, scale above 0")
            return column
        if entry.get("kind") == "categorical":
            return CategoricalColumn(**{**rest, "categories": tuple(str(v) for v in rest["categories"])})
        raise ValueError("kind is numeric or categorical")
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"entry {place} of the table encoder cannot be used ({first_line(error)}): {entry!r:.120}"
        ) from error
