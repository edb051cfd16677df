"""A table of probabilities or logits, keyed by sample id, as a teacher: a service's log is enough."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
from numpy.typing import NDArray
from pyarrow import csv, parquet
from torch import Tensor

from limbeck.errors import TeacherError, unknown_name
from limbeck.teachers.base import Source, shown
from limbeck.teachers.fingerprints import fingerprint_of
from limbeck.teachers.ids import IdIndex, duplicates
from limbeck.teachers.probabilities import ZERO_MASS, logits_from_probabilities

if TYPE_CHECKING:
    from limbeck.data import Data

TABLE_KINDS = ("probabilities", "logits", "log_probabilities")
MISSING = ("uniform", "zero", "refuse")

Columns = dict[str, NDArray[Any]]
ClassNames = tuple[str, ...]


class TableTeacher(Source):
    """Outputs that were computed elsewhere, read from a table by sample id.

    Three layouts are understood:
    * one column a class beside the id, or one column that holds a list a row: `TableTeacher("teacher.parquet")`;
    * one row a sample and class, ids repeated, for top-k or top-1 logs: `class_column="class", value_column="p"`;
    * k classes a row: `class_column=["first", "second"], value_column=["p_first", "p_second"]`, or two list columns.

    Without `value_column` a decision counts as probability 1.

    A class that a row does not list (or whose cell is null) is *absent*, and takes part of the missing mass 1 − Σ:
    `missing="uniform"` spreads it equally over the row's absent classes, `"zero"` gives them nothing and rescales
    what is listed, `"refuse"` raises. A zero, listed or from that rule, gets a finite logit as
    `logits_from_probabilities` says.

    Args:
        table: a path (.parquet, .csv, .npz), a pyarrow table, a data frame, or a mapping of arrays; arrays `[N, C]`
            count as list columns, and an entry `classes` as the class names.
        kind: `probabilities`, `log_probabilities` or `logits`.
        id: the id column, by default `id` or `ids`; whole numbers.
        columns: which columns are classes: names in class order, or a mapping from class name to column. By default all
            but the id.
        class_column: the column, or columns, with the class: a name, or its code 0..C-1.
        value_column: the column, or columns, with its value.
        classes: the class names in the order wanted (`data.classes`), or their number. Columns are matched to names by
            name, except where `columns` lists them in order.
        missing: what absent classes get.
        tolerance: how far the sum of a row may be from 1; within it rows are rescaled.
        zero_mass: see `logits_from_probabilities`.

    Raises:
        TeacherError: naming file, column and ids, for what is missing, doubled, negative, not finite, or sums to
            more or less than one.
    """

    reads_inputs = False
    advice: Mapping[str, str] = MappingProxyType(
        dict.fromkeys(
            ("features", "head", "maps"),
            "give the model itself (a torch module) as the teacher, or choose a recipe that needs logits only",
        )
        | {"teachers_logits": "give several tables: Several([...])"}
    )

    def __init__(
        self,
        table: Any,
        kind: str = "probabilities",
        *,
        id: str | None = None,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        class_column: str | Sequence[str] | None = None,
        value_column: str | Sequence[str] | None = None,
        classes: Sequence[str] | int | None = None,
        missing: str = "uniform",
        tolerance: float = 1e-2,
        zero_mass: float = ZERO_MASS,
    ) -> None:
        if kind not in TABLE_KINDS:
            raise TeacherError(unknown_name("kind of table", kind, TABLE_KINDS))
        if missing not in MISSING:
            raise TeacherError(unknown_name("rule for the missing mass", missing, MISSING))
        found, source = _read(table)
        self.kind = kind
        self.missing = missing
        self.tolerance = tolerance
        self._zero_mass = zero_mass
        self.description = f"the table of {kind.replace('_', '-')} {source}"
        id_column = id if id is not None else "ids" if "ids" in found and "id" not in found else "id"
        ids = self._ids(found, id_column)
        cells = {name: values for name, values in found.items() if name != id_column}
        listed = cells.get("classes")
        own: ClassNames | None = None
        if listed is not None and listed.ndim == 1 and listed.dtype.kind == "U" and len(listed) != len(ids):
            own = tuple(map(str, cells.pop("classes")))
            classes = own if classes is None else classes
        for name, values in cells.items():
            if values.ndim == 0 or len(values) != len(ids):
                raise TeacherError(f"{self.description}: {name!r} has shape {values.shape} for {len(ids)} ids")
        if class_column is None:
            self._rows, self._names = self._wide(ids, cells, columns, classes, own)
        else:
            self._rows, self._names = self._listed(ids, cells, _several(class_column), _several(value_column), classes)
        self._check_rows()
        self._index = IdIndex(self._rows.ids)

    @property
    def supplies(self) -> frozenset[str]:
        return frozenset({"logits", "probabilities"})

    @property
    def classes(self) -> int:
        return self._rows.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._names

    @property
    def ids(self) -> NDArray[np.int64]:
        """The samples it knows, int64 `[N]`."""
        return self._rows.ids

    def fingerprint(self) -> str:
        rows = self._rows
        contents = (rows.ids, rows.values, rows.indices, rows.classes)
        return fingerprint_of("table", self.kind, self.missing, self._zero_mass, self._names, contents)

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        wanted = np.asarray(ids, dtype=np.int64)
        values = torch.from_numpy(self._rows.dense(self._find(wanted)))
        found = {}
        if self.kind == "logits" and not bool(torch.isnan(values).any()):
            found = {"logits": values.float(), "probabilities": values.softmax(1).float()}
            return {name: found[name] for name in want}
        probabilities = self._probabilities(values)
        if "logits" in want:
            found["logits"] = logits_from_probabilities(probabilities, self._zero_mass)
        if "probabilities" in want:
            found["probabilities"] = probabilities.float()
        return found

    def accepts(self, data: Data) -> None:
        """Raise `TeacherError` unless the table has a row for every id."""
        self._find(np.asarray(data.ids), f" of the data {data.name!r}")

    def _find(self, ids: NDArray[np.int64], whose: str = "") -> NDArray[np.int64]:
        rows = self._index.rows(ids)
        if len(rows) and int(rows.min()) < 0:
            lacking = ids[rows < 0]
            raise TeacherError(
                f"{self.description} has no row for {len(lacking)} of {len(ids)} ids{whose} ({shown(lacking)}): add "
                "them, or leave these samples out with data.subset"
            )
        return rows

    def _probabilities(self, values: Tensor) -> Tensor:
        """Rows `[B, C]` that sum to one, from values that are NaN where a class is absent."""
        absent = torch.isnan(values)
        if self.kind == "logits":
            return values.masked_fill(absent, -torch.inf).softmax(1)
        listed = values.masked_fill(absent, 0.0)
        if self.missing == "uniform":
            mass = (1.0 - listed.sum(1, keepdim=True)).clamp_min(0.0)
            share = mass / absent.sum(1, keepdim=True).clamp_min(1)
            listed = torch.where(absent, share, listed)
        return listed / listed.sum(1, keepdim=True)

    def _ids(self, found: Columns, name: str) -> NDArray[np.int64]:
        if name not in found:
            raise TeacherError(f"{self.description}: " + unknown_name("id column", name, found))
        ids = found[name]
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise TeacherError(
                f"{self.description}: the id column {name!r} holds {ids.dtype} of shape {ids.shape}, expected whole "
                "numbers"
            )
        return ids.astype(np.int64)

    def _wide(
        self,
        ids: NDArray[np.int64],
        cells: Columns,
        columns: Sequence[str] | Mapping[str, str] | None,
        classes: Sequence[str] | int | None,
        own: ClassNames | None,
    ) -> tuple[_Rows, ClassNames | None]:
        doubled = duplicates(ids)
        if len(doubled):
            raise TeacherError(
                f"{self.description} has {len(doubled)} ids more than once ({shown(doubled)}): keep one row a "
                "sample, or for one row a sample and class say class_column= and value_column="
            )
        names = None if classes is None or isinstance(classes, int) else tuple(map(str, classes))
        if isinstance(columns, Mapping):
            names = tuple(map(str, columns)) if names is None else names
            placed = {column: self._class(str(name), names) for name, column in columns.items()}
        else:
            listed = list(cells) if columns is None else list(columns)
            if len(listed) == 1 and self._column(cells, listed[0]).ndim == 2:
                return self._matrix(ids, self._numbers(cells, listed[0]), classes, own), names
            if names is not None and columns is None:
                placed = {column: self._class(column, names) for column in listed}
            else:
                placed = {column: index for index, column in enumerate(listed)}
                declared = len(placed) if classes is None else classes if isinstance(classes, int) else len(classes)
                if len(placed) != declared or not placed:
                    raise TeacherError(
                        f"{self.description} has {len(placed)} columns of classes ({shown(placed)}) and {declared} "
                        "classes were declared: name the columns that are classes with columns="
                    )
                names = tuple(placed) if classes is None else names
        count = len(placed) if names is None else len(names)
        values = np.full((len(ids), count), np.nan, dtype=np.float32)
        for column, place in placed.items():
            cell = self._numbers(cells, column)
            if cell.ndim != 1:
                raise TeacherError(
                    f"{self.description}: column {column!r} holds a list a row: it must be the only column"
                )
            values[:, place] = cell
        return _Rows(ids, values, None, count), names

    def _matrix(
        self,
        ids: NDArray[np.int64],
        cell: NDArray[Any],
        classes: Sequence[str] | int | None,
        own: ClassNames | None,
    ) -> _Rows:
        """Values as rows of a matrix, its columns in the order of `classes`, or of the table's `own` names."""
        values = np.array(cell, dtype=np.float32)
        if own is not None and classes is not None and not isinstance(classes, int) and len(own) == values.shape[1]:
            wanted = tuple(map(str, classes))
            whole = np.full((len(ids), len(wanted)), np.nan, dtype=np.float32)
            whole[:, [self._class(name, wanted) for name in own]] = values
            values = whole
        declared = values.shape[1] if classes is None else classes if isinstance(classes, int) else len(classes)
        if values.shape[1] != declared:
            raise TeacherError(
                f"{self.description} has {values.shape[1]} values a row, {declared} classes were declared"
            )
        return _Rows(ids, values, None, declared)

    def _listed(
        self,
        ids: NDArray[np.int64],
        cells: Columns,
        class_columns: list[str],
        value_columns: list[str],
        classes: Sequence[str] | int | None,
    ) -> tuple[_Rows, ClassNames | None]:
        if classes is None:
            raise TeacherError(f"{self.description} lists only some classes: say which there are, classes=data.classes")
        names = None if isinstance(classes, int) else tuple(map(str, classes))
        count = classes if isinstance(classes, int) else len(classes)
        codes = np.concatenate([self._codes(self._column(cells, c), names, count) for c in class_columns], 1)
        if value_columns:
            values = np.concatenate([self._numbers(cells, c).reshape(len(ids), -1) for c in value_columns], 1)
        else:
            values = np.full(codes.shape, 0.0 if self.kind == "log_probabilities" else 1.0, dtype=np.float32)
        if values.shape != codes.shape:
            raise TeacherError(f"{self.description} has {codes.shape[1]} classes a row and {values.shape[1]} values")
        rows = _group(ids, codes, values.astype(np.float32), count)
        ordered = np.sort(rows.indices, 1) if rows.indices is not None else codes
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1)
        if twice.any():
            raise TeacherError(f"{self.description} lists a class twice for ids {shown(rows.ids[twice])}")
        return rows, names

    def _class(self, name: str, names: ClassNames) -> int:
        if name not in names:
            raise TeacherError(
                f"{self.description}: column {name!r} is no class ({shown(names)}): name the columns that are with "
                "columns="
            )
        return names.index(name)

    def _column(self, cells: Columns, name: str) -> NDArray[Any]:
        if name not in cells:
            raise TeacherError(f"{self.description}: " + unknown_name("column", name, cells))
        return cells[name]

    def _numbers(self, cells: Columns, name: str) -> NDArray[Any]:
        values = self._column(cells, name)
        if values.dtype.kind not in "fiub":
            raise TeacherError(
                f"{self.description}: column {name!r} holds {values.dtype}, expected numbers; name the columns that "
                "are classes with columns="
            )
        return values

    def _codes(self, values: NDArray[Any], names: ClassNames | None, count: int) -> NDArray[np.int32]:
        values = values if values.ndim == 2 else values[:, None]
        if values.dtype.kind in "iu":
            codes = values.astype(np.int64)
            bad = (codes < 0) | (codes >= count)
        elif names is not None:
            place = {name: index for index, name in enumerate(names)}
            unique, inverse = np.unique(values.astype(str), return_inverse=True)
            codes = np.array([place.get(name, -1) for name in unique], dtype=np.int64)[inverse].reshape(values.shape)
            bad = codes < 0
        else:
            raise TeacherError(f"{self.description} names its classes: say their order, classes=data.classes")
        if bad.any():
            known = shown(names) if names is not None else f"0..{count - 1}"
            raise TeacherError(
                f"{self.description} lists classes that are not among {known}: {shown(np.unique(values[bad]))}"
            )
        return codes.astype(np.int32)

    def _check_rows(self) -> None:
        """Every number usable, every sum right; in blocks, so that a large table is not copied."""
        rows = self._rows
        for start in range(0, len(rows.ids), 65536):
            block = np.arange(start, min(start + 65536, len(rows.ids)))
            values = rows.listed(block)
            absent, ids = np.isnan(values), rows.ids[block]
            if self.kind == "log_probabilities":
                values = np.exp(values, where=~absent, out=values)
            self._refuse(
                ids, np.isinf(values).any(1), "hold infinite values", "give log-probabilities or finite logits"
            )
            partial = absent.any(1) if rows.indices is None else (~absent).sum(1) < rows.classes
            self._refuse(ids, absent.all(1), "list no class at all", "leave them out")
            if self.missing == "refuse":
                self._refuse(ids, partial, "do not list every class", "choose missing='uniform' or 'zero'")
            if self.kind == "logits":
                if self.missing != "zero":
                    self._refuse(
                        ids,
                        partial,
                        "list the logits of some classes only, which leaves the mass of the others open",
                        "choose missing='zero', or give log-probabilities (kind='log_probabilities')",
                    )
                continue
            sums = np.nansum(values, 1, dtype=np.float64)
            self._refuse(
                ids, (values < 0).any(1), "hold negative probabilities", "declare kind='logits' if they are logits"
            )
            off = (sums > 1 + self.tolerance) | (~partial & (sums < 1 - self.tolerance)) | (sums <= 0)
            self._refuse(ids, off, "do not sum to one", f"rescale them, or raise tolerance={self.tolerance}", sums)
        if self.kind == "log_probabilities":
            np.exp(rows.values, out=rows.values)

    def _refuse(self, ids: NDArray[Any], bad: Any, what: str, way_out: str, sums: Any = None) -> None:
        if bad.any():
            found = "" if sums is None else f", sums {shown(f'{value:.4g}' for value in sums[bad][:5])}"
            raise TeacherError(f"{self.description}: rows of ids {shown(ids[bad])} {what}{found}: {way_out}")


@dataclass(frozen=True)
class _Rows:
    """Values by row: of all classes `[N, C]`, or of `indices` `[N, k]`, padded with -1. NaN marks an absent class."""

    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    indices: NDArray[np.int32] | None
    classes: int

    def listed(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What these rows list, a copy."""
        return self.values[rows]

    def dense(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values of all classes `[B, C]`, NaN where absent."""
        values = self.values[rows].astype(np.float64)
        if self.indices is None:
            return values
        # One more column takes the padding, and is cut off again.
        whole = np.full((len(rows), self.classes + 1), np.nan)
        np.put_along_axis(whole, self.indices[rows].astype(np.int64), values, 1)
        return whole[:, :-1]


def _group(ids: NDArray[np.int64], codes: NDArray[np.int32], values: NDArray[np.float32], count: int) -> _Rows:
    """One row a sample, from rows `[M, k]` whose ids may repeat: a sample lists what all its rows list."""
    unique, sample = np.unique(ids, return_inverse=True)
    order = np.argsort(sample, kind="stable")
    starts = np.searchsorted(sample[order], np.arange(len(unique)))
    within = np.arange(len(ids)) - starts[sample[order]]
    most, width = int(within.max(initial=0)) + 1, codes.shape[1]
    indices = np.full((len(unique), most, width), -1, dtype=np.int32)
    kept = np.full((len(unique), most, width), np.nan, dtype=np.float32)
    indices[sample[order], within] = codes[order]
    kept[sample[order], within] = values[order]
    # A null value is an absent class: its code must not count as listed.
    indices[np.isnan(kept)] = -1
    return _Rows(unique, kept.reshape(len(unique), -1), indices.reshape(len(unique), -1), count)


def _several(names: str | Sequence[str] | None) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def _read(table: Any) -> tuple[Columns, str]:
    """Columns as arrays, and how a message calls the table."""
    if isinstance(table, str | Path):
        path = Path(table)
        if not path.is_file():
            raise TeacherError(f"there is no table {path}")
        return _read_file(path), repr(path.name)
    if isinstance(table, Mapping):
        return _numpy_columns(table, "given as arrays"), "given as arrays"
    try:
        arrow = table if isinstance(table, pa.Table) else pa.table(table)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise TeacherError(
            "a table is a path, a pyarrow table, a data frame or a mapping of arrays: found "
            f"{type(table).__name__} ({error})"
        ) from error
    return _arrow_columns(arrow, "given as a table"), "given as a table"


def _read_file(path: Path) -> Columns:
    try:
        match path.suffix.lower():
            case ".parquet":
                return _arrow_columns(parquet.read_table(path), repr(path.name))
            case ".csv" | ".gz":
                return _arrow_columns(csv.read_csv(path), repr(path.name))
            case ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    return _numpy_columns({name: arrays[name] for name in arrays.files}, repr(path.name))
    except (pa.ArrowException, zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise TeacherError(f"the table {path} cannot be read: {error}") from error
    raise TeacherError(f"the table {path} ends in {path.suffix!r}: expected .parquet, .csv or .npz")


def _numpy_columns(table: Mapping[Any, Any], source: str) -> Columns:
    columns = {str(name): np.asarray(values) for name, values in table.items()}
    for name, values in columns.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise TeacherError(f"the table {source}, array {name!r} holds NaN: an array must be complete")
    return columns


def _arrow_columns(table: Any, source: str) -> Columns:
    return {name: _arrow_column(table.column(name), f"{source}, column {name!r}") for name in table.column_names}


def _arrow_column(column: Any, where: str) -> NDArray[Any]:
    """One column as an array: null becomes NaN in numbers; a list becomes a row of a matrix."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if column.null_count:
            raise TeacherError(f"the table {where}: {column.null_count} rows have no list")
        lengths = compute.unique(compute.list_value_length(column))
        if len(lengths) > 1:
            raise TeacherError(f"the table {where}: its lists have different lengths ({shown(lengths.to_pylist())})")
        inner = _arrow_column(pa.chunked_array([chunk.flatten() for chunk in column.chunks], kind.value_type), where)
        return inner.reshape(len(column), -1)
    floating = pa.types.is_floating(kind)
    if floating and compute.any(compute.is_nan(column)).as_py():
        raise TeacherError(f"the table {where} holds NaN: leave the cell empty where a class is not listed")
    if column.null_count and (floating or pa.types.is_integer(kind)):
        return np.asarray(column.cast(pa.float64()).to_numpy())
    return np.asarray(column.to_numpy())
