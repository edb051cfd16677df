"""Tables: Parquet and CSV files, data frames, Arrow tables."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from limbeck.data.columns import Column, IntArray, first_line, some, text
from limbeck.data.data import Data
from limbeck.data.encoder import TableEncoder, as_table
from limbeck.data.splits import TRAIN
from limbeck.errors import DataError, unknown_name

_KINDS = ".parquet, .pq, .csv, .tsv, .csv.gz or .tsv.gz"


def read_table(source: Any, *, as_text: Sequence[str] = (), missing: Sequence[str] = ()) -> pa.Table:
    """An Arrow table from a path, a data frame, Arrow, or a dict of columns.

    Args:
        source: what to read; the suffix of a path says how (.parquet, .pq, .csv, .tsv, also .gz of the last two).
        as_text: columns of a CSV file to leave as text although they look like numbers.
        missing: texts that mean a missing value, besides nothing at all and, in CSV files, NA, NaN, null and the like.

    Raises:
        DataError: no such file, another suffix, a damaged or empty file.
    """
    if not isinstance(source, str | Path):
        return _without(as_table(source), missing)
    path = Path(source)
    suffix = "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if suffix not in (".parquet", ".pq", ".csv", ".tsv", ".csv.gz", ".tsv.gz"):
        raise DataError(f"{path}: cannot tell what kind of table this is: expected a name ending in {_KINDS}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        if suffix in (".parquet", ".pq"):
            # One open file, not a data set: names in the path must not become columns.
            with path.open("rb") as file:
                table = pyarrow.parquet.ParquetFile(file).read()
        else:
            table = _read_csv(path, "\t" if "tsv" in suffix else ",", as_text)
    except (pa.ArrowException, OSError, EOFError, ValueError, MemoryError) as error:
        raise DataError(
            f"{path}: cannot be read as {suffix.strip('.')}, it may be cut short or be something else "
            f"({first_line(error)}): write or fetch the file again"
        ) from error
    if not table.num_rows:
        raise DataError(f"{path}: the table has no rows")
    return _without(as_table(table), missing)


def from_table(
    source: Any,
    *,
    label: str,
    attributes: Sequence[str] | Mapping[str, Sequence[object] | None] = (),
    groups: str | Sequence[str] | None = None,
    id: str | None = None,
    split: Any = None,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
    columns: Sequence[str] = (),
    missing: Sequence[str] = (),
    classes: Sequence[object] | None = None,
    attributes_in_features: bool = True,
    encoder: TableEncoder | None = None,
    fractions: Sequence[float] | None = (0.6, 0.2, 0.2),
    seed: int = 0,
    name: str | None = None,
) -> Data:
    """Data from a table: one row a sample.

    Every column without another role becomes a feature. Numbers are standardised with the mean and standard deviation
    of the training rows, a missing number is 0 and marked by a further feature; text becomes one feature a category of
    the training rows and one for a missing value (see `TableEncoder`, kept as `data.encoder`).

    Args:
        source: a .parquet or .csv path, a data frame, an Arrow table or a dict of columns.
        label: column of the class.
        attributes: columns to keep as attributes, or the allowed values (None: any) by column.
        groups: attributes to declare groups over, "label" for the class; further columns named here become attributes.
        id: column of the sample ids; the row number where not given.
        split: column that says train, validation or test; or one value a row; made where not given.
        numeric: columns to read as numbers although they hold text.
        categorical: columns to read as categories although they hold numbers.
        drop: columns to leave out.
        columns: columns to carry along as `data.columns`, outside the features.
        missing: texts that mean a missing value, such as "?".
        classes: all classes, in order.
        attributes_in_features: whether the attributes are features too (by default they are: leaving an attribute out
            does not make a model blind to it, and groups can be judged either way).
        encoder: one fitted before, to be applied instead of fitting a new one.
        fractions, seed: of the split, as in `Data`.
        name: of the data set; the file's name where not given.

    Raises:
        DataError: a column that is absent or named in two roles, and all that `Data` and `TableEncoder` raise.
    """
    wanted = dict(attributes) if isinstance(attributes, Mapping) else dict.fromkeys(_names(attributes))
    table = read_table(source, as_text=_names(categorical), missing=missing)
    for column in [groups] if isinstance(groups, str) else groups or []:
        if column not in ("label", label) and column in table.column_names:
            wanted.setdefault(column, None)
    split_column = [split] if isinstance(split, str) and split in table.column_names else []
    roles = {
        "label": [label],
        "id": [id] if id else [],
        "split": split_column,
        "drop": _names(drop),
        "columns": _names(columns),
        "attributes": list(wanted),
        "numeric": _names(numeric),
        "categorical": _names(categorical),
    }
    _check_roles(roles, table.column_names)
    if isinstance(split, str) and not split_column and split.lower() not in ("train", "validation", "test"):
        raise DataError(f"split: {unknown_name('column', split, table.column_names)}")

    ids = None if id is None else _ids(table, id)
    values = {key: Column.of(table.column(key), key, allowed) for key, allowed in wanted.items()}
    # Features come last: what they are depends on which rows train.
    frame = Data(
        np.zeros((table.num_rows, 1), np.float32),
        table.column(label),
        attributes=values,
        groups=groups,
        ids=ids,
        split=table.column(split) if split_column else split,
        fractions=fractions,
        classes=classes,
        seed=seed,
        name=name or (Path(source).name.partition(".")[0] if isinstance(source, str | Path) else "table"),
        columns={key: _plain(table.column(key)) for key in roles["columns"]},
        label_name=label,
    )
    aside = {label, id, *split_column, *roles["drop"], *roles["columns"]}
    if not attributes_in_features:
        aside |= set(wanted) - {*roles["numeric"], *roles["categorical"]}
    features = [column for column in table.column_names if column not in aside]
    if not features:
        raise DataError(f"no column is left as a feature: {some(table.column_names)} all have another role")
    if encoder is None:
        train = frame.split == TRAIN
        encoder = TableEncoder.fit(
            table,
            features,
            train=train if train.any() else None,
            numeric=roles["numeric"],
            categorical=roles["categorical"],
            ids=frame.ids,
        )
    x = encoder.transform(table, frame.ids)
    return frame._with_inputs(x, encoder)


def _read_csv(path: Path, delimiter: str, as_text: Sequence[str]) -> pa.Table:
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            strings_can_be_null=True, column_types={column: pa.string() for column in as_text}
        ),
    )


def _without(table: pa.Table, missing: Sequence[str]) -> pa.Table:
    """The table with some texts made missing; a text column that is then all numbers becomes numeric."""
    texts = set(missing)
    if not texts:
        return table
    for place, field in enumerate(table.schema):
        column = table.column(place)
        if pa.types.is_dictionary(field.type):
            column = column.cast(field.type.value_type)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        kept = pa.compute.if_else(pa.compute.is_in(column, pa.array(sorted(texts), column.type)), None, column)
        if kept.null_count > column.null_count:
            # Numbers with "?" among them are numbers.
            with contextlib.suppress(pa.ArrowException):
                kept = kept.cast(pa.float64())
        table = table.set_column(place, field.name, kept)
    return table


def _check_roles(roles: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    for role, members in roles.items():
        for column in members:
            if column not in names:
                raise DataError(f"{role}: {unknown_name('column', column, names)}")
    alone = ["label", "id", "split", "drop", "columns"]
    for place, role in enumerate(alone):
        for other in [*alone[place + 1 :], "numeric", "categorical", *(["attributes"] if role == "label" else [])]:
            both = sorted(set(roles[role]) & set(roles[other]))
            if both:
                raise DataError(f"column {both[0]!r} is named both as {role} and as {other}: give it one role")
    both = sorted(set(roles["numeric"]) & set(roles["categorical"]))
    if both:
        raise DataError(f"column {both[0]!r} is named both as numeric and as categorical: give it one role")


def _ids(table: pa.Table, column: str) -> IntArray | NDArray[Any]:
    values = table.column(column)
    if values.null_count:
        rows = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
        raise DataError(f"id column {column!r} is missing at rows {some(rows)}: every sample needs an id")
    return np.asarray(values.to_numpy())


def _plain(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column as numpy: numbers as they are (NaN where missing), anything else as text."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        return np.asarray(column.to_numpy())
    return np.array(["" if value is None else text(value) for value in column.to_pylist()], dtype=str)


def _names(names: Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names]
