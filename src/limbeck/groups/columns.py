"""Attributes, features and extra columns as numbers that a rule can be written over, in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.encoder import NumericColumn
from limbeck.errors import DataError, unknown_name

if TYPE_CHECKING:
    from limbeck.data import Data


@dataclass(frozen=True)
class RuleColumn:
    """One column of numbers: a quantity, or (where `value` is given) whether something has this value.

    Attributes:
        name: of the quantity, feature or attribute.
        value: the value that 1 stands for, None for a quantity.
        source: `attribute`, `feature`, `column` or `label`: what must be known of a sample.
        other: the one value there is beside it, None where there are several; for words only.
    """

    name: str
    value: str | None
    source: str
    other: str | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class RuleColumns:
    """What rules may be written over: columns, and their values float32 [N, M]."""

    columns: tuple[RuleColumn, ...]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Any) -> RuleColumns:
        """The same columns of some samples."""
        return RuleColumns(self.columns, self.values[rows])

    def with_labels(self, labels: NDArray[np.int64], classes: Sequence[str]) -> RuleColumns:
        """The same, and one column a class; a class that is called "income=high" is the value "high" of "income"."""
        one_hot = (labels[:, None] == np.arange(len(classes))).astype(np.float32)
        names = [label.partition("=")[::2] if "=" in label else ("label", label) for label in classes]
        values = [value for _, value in names]
        added = [RuleColumn(name, value, "label", _other(values, value)) for name, value in names]
        return RuleColumns((*self.columns, *added), np.concatenate([self.values, one_hot], axis=1))


def rule_columns(data: Data, wanted: Sequence[str] | None = None) -> RuleColumns:
    """The attributes and columns of data as rules are written over them, whatever its groups.

    Numbers that an encoder standardised are given back in the units of the table, categories as "has this value".
    An attribute that is also a feature is taken once.

    Args:
        data: any.
        wanted: names of attributes, features, columns of the table that became features, or extra columns
            (`data.columns`). By default all attributes and all features (extra columns only by name: they may be
            what a model said). "features" stands for all features.

    Raises:
        DataError: for a name that does not exist, for a column that is not numeric, and where nothing is left.
    """
    features, attributes = _features(data), _attributes(data)
    parts = {**features, **attributes}
    names = list(parts) if wanted is None else _expanded(data, wanted, features)
    taken = []
    for name in names:
        if name in parts:
            taken.append(parts[name])
        elif name in data.columns:
            taken.append(_extra(data, name))
        else:
            raise DataError(f"columns for rules: {unknown_name('column', name, [*parts, *data.columns, 'features'])}")
    if not taken:
        raise DataError(
            f"{data.name!r} has no attribute, no feature [N, D] and no extra column that a rule could be written over: "
            "declare attributes, or look for groups by another method, such as 'clusters'"
        )
    return RuleColumns(
        tuple(column for columns, _ in taken for column in columns),
        np.concatenate([values for _, values in taken], axis=1).astype(np.float32),
    )


def _other(values: Sequence[str], value: str) -> str | None:
    return next((each for each in values if each != value), None) if len(values) == 2 else None


Part = tuple[list[RuleColumn], NDArray[np.float32]]


def _attributes(data: Data) -> dict[str, Part]:
    found: dict[str, Part] = {}
    for name, column in data.attributes.items():
        hot = (column.codes[:, None] == np.arange(len(column.values))).astype(np.float32)
        # Where values are missing, "not this one" does not mean the other one.
        known = column.values if not column.missing else ()
        found[name] = [RuleColumn(name, value, "attribute", _other(known, value)) for value in column.values], hot
    return found


def _features(data: Data) -> dict[str, Part]:
    """By column of the table where an encoder knows it, else by feature."""
    shape = data.sample_shape
    if isinstance(shape, dict) or len(shape) != 1:
        return {}
    x = np.asarray(data.x, np.float32)
    if data.encoder is None:
        names = data.feature_names or tuple(f"feature {k}" for k in range(shape[0]))
        return {name: ([RuleColumn(name, None, "feature")], x[:, [k]]) for k, name in enumerate(names)}
    found: dict[str, Part] = {}
    start = 0
    for column in data.encoder.columns:
        values = x[:, start : start + len(column.feature_names)]
        start += values.shape[1]
        if isinstance(column, NumericColumn):
            units = values.astype(np.float64)
            units[:, 0] = units[:, 0] * column.scale + column.mean
            shown = [RuleColumn(column.name, None, "feature")]
            values = units.astype(np.float32)
        else:
            shown = [RuleColumn(column.name, value, "feature") for value in column.categories]
        if column.missing:
            shown.append(RuleColumn(column.name, "missing", "feature"))
        found[column.name] = shown, values
    return found


def _expanded(data: Data, wanted: Sequence[str], features: dict[str, Part]) -> list[str]:
    if isinstance(wanted, str):
        raise DataError(f"columns for rules is the text {wanted!r}: expected a list of names")
    names = [name for entry in wanted for name in (list(features) if entry == "features" else [entry])]
    return list(dict.fromkeys(names))


def _extra(data: Data, name: str) -> Part:
    values = data.columns[name]
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise DataError(
            f"column {name!r} holds {values.dtype} of shape {list(values.shape)}: a rule needs one number a sample; "
            "read it as an attribute instead"
        )
    numbers = values.astype(np.float32)[:, None]
    if not np.isfinite(numbers).all():
        raise DataError(f"column {name!r} holds values that are not finite: fill them, or leave the column out")
    return [RuleColumn(name, None, "column")], numbers
