"""What a model is fed: arrays, named arrays, or a reader that fetches rows when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import IntArray, first_line, some, to_numpy
from limbeck.errors import DataError

Array = NDArray[Any]
CHUNK = 4096


@runtime_checkable
class Reader(Protocol):
    """Inputs too large for memory: rows in, an array [len(rows), ...] out."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: IntArray) -> Array: ...


class Inputs:
    """The features of some rows of a source, copied only when they are asked for.

    Args:
        source: an array [N, ...], a dict of such arrays, or a `Reader`; checked by `check_inputs`.
        rows: int64 positions in the source; all of them where not given.
    """

    def __init__(self, source: Array | dict[str, Array] | Reader, rows: IntArray | None = None) -> None:
        self.source = source
        self.rows = rows
        self._value: Any = None

    def __len__(self) -> int:
        return _length(self.source) if self.rows is None else len(self.rows)

    @property
    def value(self) -> Any:
        """The array, dict of arrays or reader of exactly these rows (kept once made)."""
        if self._value is None:
            if self.rows is None:
                self._value = self.source
            elif isinstance(self.source, np.ndarray | dict):
                self._value = _take(self.source, _as_slice(self.rows))
            else:
                self._value = _ReaderRows(self.source, self.rows)
        return self._value

    def take(self, rows: IntArray | slice) -> Any:
        """The inputs of some of these rows, straight from the source."""
        if self.rows is None:
            wanted = rows
        else:
            wanted = self.rows[rows]
        if isinstance(wanted, slice) and not isinstance(self.source, np.ndarray | dict):
            wanted = np.arange(len(self))[wanted]
        return _take(self.source, wanted)

    def restrict(self, rows: IntArray) -> Inputs:
        """The same source at fewer rows; nothing is copied."""
        return Inputs(self.source, rows if self.rows is None else self.rows[rows])

    def chunks(self) -> Iterator[tuple[int, Any]]:
        """(first row, inputs of the next few thousand rows), in order."""
        for start in range(0, len(self), CHUNK):
            yield start, self.take(slice(start, start + CHUNK))

    @property
    def sample_shape(self) -> Any:
        """The shape of one sample, or a dict of shapes."""
        if isinstance(self.source, dict):
            return {key: array.shape[1:] for key, array in self.source.items()}
        return tuple(self._first().shape[1:])

    @property
    def is_images(self) -> bool:
        """Whether the samples are uint8 images [C, H, W]."""
        return not isinstance(self.source, dict) and self._first().dtype == np.uint8

    def _first(self) -> Array:
        return cast(Array, self.source[:1] if isinstance(self.source, np.ndarray) else self.take(np.zeros(1, np.int64)))

    def feed(self, update: Callable[[Any], None]) -> None:
        """Give a hash all of these inputs: names, types, shapes and bytes in the order of rows."""
        for start, part in self.chunks():
            for key, array in sorted(part.items()) if isinstance(part, dict) else [("", part)]:
                if start == 0:
                    update(f"{key}|{array.dtype.str}|{array.shape[1:]}|{len(self)}".encode())
                update(np.ascontiguousarray(array).data if array.size else b"")


class _ReaderRows:
    """Some rows of a reader, as a reader."""

    def __init__(self, reader: Reader, rows: IntArray) -> None:
        self.reader = reader
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: IntArray) -> Array:
        return self.reader[self.rows[rows]]


def check_inputs(x: Any) -> Inputs:
    """Inputs as Limbeck keeps them: float32 features, uint8 images [N, C, H, W], integer tokens in a dict.

    Raises:
        DataError: an unusable type or shape, or text; the values themselves are looked at by `check_finite`.
    """
    if isinstance(x, Inputs):
        return x
    if isinstance(x, Mapping):
        if not x:
            raise DataError("x is an empty dict: give at least one array by name")
        arrays = {str(key): _array(to_numpy(value), f"x[{str(key)!r}]", named=True) for key, value in x.items()}
        lengths = {key: len(array) for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the arrays of x have different numbers of samples: {lengths}")
        return Inputs(arrays)
    if hasattr(x, "__array__") or hasattr(x, "detach") or isinstance(x, Sequence):
        try:
            array = to_numpy(x)
        except ValueError as error:
            raise DataError("x is ragged: every sample needs the same number of features") from error
        return Inputs(_array(array, "x", named=False))
    if isinstance(x, Reader):
        return Inputs(_probed(x))
    raise DataError(
        f"x is of type {type(x).__name__}: expected an array [N, ...], a tensor, a dict of arrays, "
        f"or a reader with len() and reader[rows]"
    )


def check_finite(inputs: Inputs, ids: IntArray, feature_names: Sequence[str] | None) -> None:
    """Refuse NaN and infinity in arrays; a reader's rows are not looked at.

    Raises:
        DataError: names the features and the ids.
    """
    if not isinstance(inputs.source, np.ndarray | dict):
        return
    bad_rows: list[int] = []
    bad_features: dict[str, str] = {}
    for start, part in inputs.chunks():
        for key, array in part.items() if isinstance(part, dict) else [("", part)]:
            if array.dtype.kind != "f":
                continue
            finite = np.isfinite(array)
            if finite.all():
                continue
            flat, values = finite.reshape(len(array), -1), array.reshape(len(array), -1)
            bad_rows += (start + np.flatnonzero(~flat.all(axis=1))).tolist()
            for column in np.flatnonzero(~flat.all(axis=0)).tolist():
                where = _feature(key, column, array.ndim, feature_names)
                value = values[:, column][~flat[:, column]][0]
                bad_features.setdefault(where, "NaN" if np.isnan(value) else "infinity")
    if bad_rows:
        named = some([f"{where} holds {kind}" for where, kind in bad_features.items()], limit=3)
        rows = sorted(set(bad_rows))
        raise DataError(
            f"{named}; ids {some(ids[rows])} ({len(rows):,} of {len(inputs):,} samples): fill the values or drop "
            f"the samples (Data.from_table marks missing values by itself)"
        )


def _probed(reader: Reader) -> Reader:
    """A reader that has answered for its first row as promised."""
    kind = type(reader).__name__
    if len(reader):
        try:
            part: Any = reader[np.zeros(1, np.int64)]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"x is a {kind} that cannot read rows ({first_line(error)}): a reader answers reader[rows] with an "
                f"array [len(rows), ...]; a torch Dataset goes through Data.from_dataset"
            ) from error
        if not isinstance(part, np.ndarray) or len(part) != 1 or part.dtype not in (np.float32, np.uint8):
            raise DataError(
                f"x is a {kind} whose reader[rows] gives {type(part).__name__}: expected a float32 array "
                f"[len(rows), ...] or uint8 images; a torch Dataset goes through Data.from_dataset"
            )
    return reader


def _feature(key: str, column: int, ndim: int, feature_names: Sequence[str] | None) -> str:
    place = f"x[{key!r}]" if key else "x"
    if ndim != 2:
        return place
    if feature_names is not None and not key:
        return f"feature {feature_names[column]!r} (column {column})"
    return f"{place}, column {column},"


def _array(array: Array, what: str, *, named: bool) -> Array:
    if array.dtype.kind in "USOMmVc":
        raise DataError(
            f"{what} holds values of type {array.dtype}: expected numbers; "
            f"encode text and categories (Data.from_table does)"
        )
    if array.ndim < (1 if named else 2):
        raise DataError(f"{what} has shape {list(array.shape)}: expected [N, D] features or [N, C, H, W] images")
    if array.ndim > 1 and 0 in array.shape[1:]:
        raise DataError(f"{what} has shape {list(array.shape)}: a sample needs at least one feature")
    if array.dtype == np.uint8 and array.ndim > 2 and not named:
        return _images(array, what)
    if named and array.dtype.kind in "iu":
        return array if array.dtype == np.uint8 and array.ndim == 4 else array.astype(np.int64, copy=False)
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        lost = np.isinf(converted) & np.isfinite(array)
        if lost.any():
            value = float(array[lost][0])
            raise DataError(f"{what} holds {value:g}, beyond the range of float32: rescale the feature")
    return cast(Array, converted)


def _images(array: Array, what: str) -> Array:
    shape = list(array.shape)
    if array.ndim == 3:
        raise DataError(f"{what} is uint8 {shape}: images are [N, C, H, W]; add the channel with x[:, None]")
    if array.ndim != 4:
        raise DataError(f"{what} is uint8 {shape}: images are [N, C, H, W]; other integers need a float type")
    if array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
        raise DataError(f"{what} is uint8 {shape}, channels last: images are [N, C, H, W]; use x.transpose(0, 3, 1, 2)")
    return array


def _length(source: Any) -> int:
    return len(next(iter(source.values()))) if isinstance(source, dict) else len(source)


def _take(source: Any, rows: IntArray | slice) -> Any:
    if isinstance(source, dict):
        return {key: array[rows] for key, array in source.items()}
    return source[rows]


def _as_slice(rows: IntArray) -> IntArray | slice:
    """Neighbouring rows as a slice, which numpy answers with a view."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
