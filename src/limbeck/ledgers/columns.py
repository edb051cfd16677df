"""The columns of a ledger: from targets and weights to a table that stays small.

Shares are stored as plain 32-bit floats, so that every reader knows them, but rounded to eleven significant binary
digits (an error of at most 1/2048 of the value), split by byte and compressed: about two bytes each. Names are
dictionaries, whose codes are packed to as many bits as they need and so are hardly smaller when compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

RANKS = 3
"""How many of the likeliest classes of teacher and target are kept."""

SHARES = (
    *(f"{who}_{rank}_probability" for who in ("teacher", "target") for rank in range(1, RANKS + 1)),
    "teacher_label_probability",
    "moved_from_label",
    "moved_from_teacher",
    "weight_first",
    "weight_last",
    "weight_mean",
)

SCHEMA = pa.schema(
    [
        ("run", pa.dictionary(pa.int8(), pa.string())),
        ("id", pa.int64()),
        ("label", pa.dictionary(pa.int32(), pa.string())),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        *(
            field
            for who in ("teacher", "target")
            for rank in range(1, RANKS + 1)
            for field in (
                (f"{who}_{rank}", pa.dictionary(pa.int32(), pa.string())),
                (f"{who}_{rank}_probability", pa.float32()),
            )
        ),
        ("teacher_label_probability", pa.float32()),
        ("moved_from_label", pa.float32()),
        ("moved_from_teacher", pa.float32()),
        ("rule", pa.dictionary(pa.int16(), pa.string())),
        ("masked", pa.int32()),
        ("weight_first", pa.float32()),
        ("weight_last", pa.float32()),
        ("weight_mean", pa.float32()),
        ("held_back", pa.bool_()),
        ("reviewed", pa.bool_()),
    ]
)
"""One row a training sample. What is not known, such as a group, or a teacher where there was none, is null."""

EPOCHS = pa.schema(
    [
        ("run", pa.dictionary(pa.int8(), pa.string())),
        ("epoch", pa.int32()),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("loss", pa.float64()),
        ("q", pa.float64()),
    ]
)
"""One row an epoch and group: its mean training loss and, under group DRO, its weight q; group null for all samples."""

_NAMES = tuple(field.name for field in SCHEMA if pa.types.is_dictionary(field.type))
_ROUND = np.uint32(1 << 12)
_KEEP = np.uint32(0xFFFFE000)


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To eleven significant binary digits; NaN stays NaN, 1 stays 1."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) + _ROUND
    bits &= _KEEP
    return bits.view(np.float32)


def shares(values: NDArray[np.float32] | None, count: int) -> pa.Array:
    """A column of shares; null where NaN, and everywhere for None."""
    if values is None:
        return pa.nulls(count, pa.float32())
    missing = np.isnan(values)
    return pa.array(rounded(values), pa.float32(), mask=missing if missing.any() else None)


def words(names: Sequence[Any]) -> pa.Array:
    """The names that codes stand for."""
    return pa.array([str(name) for name in names], pa.string())


def named(codes: NDArray[Any] | None, names: pa.Array, count: int, kind: pa.DataType) -> pa.Array:
    """A column of names (`words`) by their codes; null where the code is negative, and everywhere for None."""
    if codes is None:
        return pa.DictionaryArray.from_arrays(pa.nulls(count, kind.index_type), names)
    absent = codes < 0
    small = codes.astype(kind.index_type.to_pandas_dtype(), copy=False)
    return pa.DictionaryArray.from_arrays(pa.array(small, mask=absent if absent.any() else None), names)


def write_options() -> dict[str, Any]:
    """How a ledger is written: see the module. Statistics are of use where values have an order, as ids have."""
    return {
        "compression": {name: "none" if name in _NAMES else "zstd" for name in SCHEMA.names},
        "use_dictionary": list(_NAMES),
        "column_encoding": {"id": "DELTA_BINARY_PACKED", **dict.fromkeys(SHARES, "BYTE_STREAM_SPLIT")},
        "write_statistics": ["id"],
        "row_group_size": 1 << 17,
    }


def written(table: pa.Table, **options: Any) -> bytes:
    """The table as a Parquet file."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, **options)
    return stream.getvalue().to_pybytes()  # type: ignore[no-any-return]
