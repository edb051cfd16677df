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
SEARCHED = 4_000
"""Samples that a threshold is looked for among, at most."""
LEAST_SIDE = 50
"""Samples on either side of it, at least; and one in twenty."""
GRID = 40
"""Thresholds that are tried in a feature, at most."""
THRESHOLDS = 3
"""Of how many features they are tried as what noise depends on."""
ALIKE = 0.98
"""Share of samples up to which two features part them differently."""


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
) -> list[Strata]:
    """The two sides of thresholds in single features between which noise may differ, the likeliest first.

    Of samples that are hard to judge some are easy nevertheless; of samples with noisy labels none is, as no judge can
    be sure of them. So sides differ most in the loss of their easiest quarter.

    Args:
        values: features `[N, D]`; other inputs have no such threshold.
        training: which samples are training samples `[N]` bool.
        losses: of these `[n]`, from a judge that has not learned their labels.
        names: of the features.

    Returns:
        `THRESHOLDS` at most, of different features that part the samples differently.
    """
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        return []
    rows = np.flatnonzero(training)
    chosen = np.argsort(losses, kind="stable")
    if len(rows) > SEARCHED:
        chosen = chosen[np.sort(np.random.default_rng(0).choice(len(rows), SEARCHED, replace=False))]
    ordered, easiest = values[rows[chosen]], losses[chosen]
    best = [_threshold(feature, easiest) for feature in ordered.T]
    found: list[Strata] = []
    kept: list[NDArray[np.bool_]] = []
    for feature in np.argsort([-gap for gap, _ in best], kind="stable"):
        gap, threshold = best[feature]
        above = ordered[:, feature] > threshold
        if not gap or len(found) == THRESHOLDS:
            break
        if any(max((above == other).mean(), (above != other).mean()) > ALIKE for other in kept):
            continue
        kept.append(above)
        name = f"feature {feature}" if names is None else names[feature]
        sides = (f"{name} <= {threshold:.4g}", f"{name} > {threshold:.4g}")
        found.append(Strata((), sides, (values[:, feature] > threshold).astype(np.int64)))
    return found


def _threshold(feature: Floats, losses: Floats) -> tuple[float, float]:
    """How far apart the lower quartiles of the losses are at most, 0 where there is none, and a threshold.

    A quarter of the samples leaves room where exactly noise begins: that is where the shares of easy samples are
    furthest apart, whose loss is closer to the lower of the two quartiles.

    Args:
        feature: of samples in the order of their losses `[n]`.
        losses: in this order.
    """
    count, values = len(losses), np.unique(feature)
    if len(values) > GRID:
        values = np.unique(np.quantile(feature, np.linspace(0.0, 1.0, GRID + 1)))
    cuts = (values[:-1] + values[1:]) / 2
    least = max(LEAST_SIDE, count // 20)
    above = feature[:, None] > cuts
    tried = (above.sum(0) >= least) & (count - above.sum(0) >= least)
    if not tried.any():
        return 0.0, 0.0
    above, cuts = above[:, tried], cuts[tried]
    sizes = above.sum(0)
    balance = sizes * (count - sizes) / count**2
    high = losses[(above.cumsum(0) >= sizes / 4).argmax(0)]
    low = losses[((~above).cumsum(0) >= (count - sizes) / 4).argmax(0)]
    gaps = balance * (high - low) ** 2
    place = gaps.argmax()
    easy = int(np.searchsorted(losses, (high[place] + low[place]) / 2))
    inside = above[:easy].sum(0)
    shares = inside / sizes - (easy - inside) / (count - sizes)
    return float(gaps[place]), float(cuts[(balance * shares**2).argmax()])


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
