"""The attribute that a label may be tied to, one value a sample, from columns, groups or an array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.arbitration.model import Floats, Integers
from limbeck.data import Data
from limbeck.data.columns import declare
from limbeck.errors import DataError, unknown_name

UNKNOWN = "unknown"
SEARCHED = 10_000
"""Samples that a threshold is looked for among, at most."""
LEAST_SIDE = 50
"""Samples on either side of it, at least; and one in twenty."""


@dataclass(frozen=True, eq=False)
class Strata:
    """The values of the attribute.

    Attributes:
        columns: the attributes whose product it is; none where nothing is known.
        names: of the S values.
        index: `[N]`, 0 to S-1.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    index: Integers

    def take(self, rows: Any) -> Strata:
        """The same values at some rows."""
        return Strata(self.columns, self.names, self.index[rows])


def strata_of(data: Data, attribute: Any) -> Strata:
    """The attribute of each sample.

    Args:
        data: with attributes.
        attribute: a name, several for their product, one number a sample `[N]` (such as discovered groups, which must
            not depend on the label), or None for what the declared groups are made of besides the label.

    Raises:
        DataError: for a name that does not exist, the label among them, or numbers that do not fit.
    """
    if attribute is None:
        declared = () if data.groups is None else data.groups.columns
        attribute = [name for name in declared if name in data.attributes]
    if isinstance(attribute, str):
        attribute = [attribute]
    if isinstance(attribute, Sequence) and all(isinstance(name, str) for name in attribute):
        return _of_columns(data, tuple(attribute))
    values = np.asarray(attribute)
    if values.shape != (len(data),) or values.dtype.kind not in "iu":
        raise DataError(
            f"attribute has shape {list(values.shape)} of {values.dtype} for {len(data):,} samples: expected names of "
            "attributes, or one whole number a sample"
        )
    found, index = np.unique(values, return_inverse=True)
    return Strata(("attribute",), tuple(map(str, found)), index.astype(np.int64))


def is_found(shortcut: str, strata: Strata) -> bool:
    """Whether what a network learns first takes the place of the attribute (`shortcut` of `limbeck.arbitrate`)."""
    return shortcut == "found" or (shortcut == "auto" and not strata.columns)


def sides_by_loss(
    values: Any, training: NDArray[np.bool_], losses: Floats, names: Sequence[str] | None
) -> Strata | None:
    """The two sides of the threshold in one feature that tells samples of high from those of low loss best.

    Args:
        values: features `[N, D]`; other inputs have no such threshold, None.
        training: which samples are training samples `[N]` bool.
        losses: of these `[n]`, from a judge that has not learned their labels.
        names: of the features.
    """
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        return None
    from sklearn.tree import DecisionTreeRegressor

    rows = np.flatnonzero(training)
    chosen = np.arange(len(rows))
    if len(rows) > SEARCHED:
        chosen = np.random.default_rng(0).choice(chosen, SEARCHED, replace=False)
    least = max(LEAST_SIDE, len(chosen) // 20)
    if len(chosen) < 2 * least:
        return None
    tree = DecisionTreeRegressor(max_depth=1, min_samples_leaf=least, random_state=0)
    tree.fit(values[rows[chosen]], losses[chosen])
    if tree.tree_.node_count == 1:
        return None
    feature, threshold = int(tree.tree_.feature[0]), float(tree.tree_.threshold[0])
    name = f"feature {feature}" if names is None else names[feature]
    sides = (f"{name} <= {threshold:.4g}", f"{name} > {threshold:.4g}")
    return Strata((), sides, (values[:, feature] > threshold).astype(np.int64))


def _of_columns(data: Data, columns: tuple[str, ...]) -> Strata:
    if not columns:
        return Strata((), ("all",), np.zeros(len(data), np.int64))
    for name in columns:
        if name == "label":
            raise DataError(
                "the label is given as an attribute: arbitration asks what the label is tied to, so name attributes "
                "that are known without it"
            )
        if name not in data.attributes:
            raise DataError(unknown_name("attribute", name, data.attributes))
    groups = declare(data.attributes, data.y, data.classes, columns)
    index, names = groups.index.copy(), list(groups.names)
    if (index < 0).any():
        index[index < 0] = len(names)
        names.append(UNKNOWN)
    return Strata(columns, tuple(names), index)


def protected_rows(data: Data, protect: Mapping[str, float] | Sequence[str] | None) -> dict[str, tuple[Any, float]]:
    """For each protected class or group: which samples `[N]` bool, and the share that may be corrected.

    Raises:
        DataError: for a name that is neither a class nor a group, or a share outside 0..1.
    """
    if protect is None:
        return {}
    caps = dict(protect) if isinstance(protect, Mapping) else dict.fromkeys(protect, 0.0)
    groups = () if data.groups is None else data.groups.names
    found: dict[str, tuple[Any, float]] = {}
    for name, cap in caps.items():
        if not 0 <= cap <= 1:
            raise DataError(f"protect: {name!r} may be corrected to a share of {cap}: expected 0 to 1")
        if name in groups and data.groups is not None:
            rows = data.groups.index == groups.index(name)
        elif name in map(str, data.classes):
            rows = data.y == [str(value) for value in data.classes].index(name)
        else:
            raise DataError("protect: " + unknown_name("class or group", name, [*map(str, data.classes), *groups]))
        found[name] = (rows, float(cap))
    return found
