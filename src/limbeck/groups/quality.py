"""Is a found group really worse? Judged on samples that neither the groups nor the model were learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.data.columns import IntArray
from limbeck.errors import DataError
from limbeck.evaluation import holm, wilson
from limbeck.evaluation.counts import checked_index, same_length
from limbeck.groups.information import Information, Stability, stability, within_class_information

NOTHING_FOUND = "no group found that is worse out of sample"


@dataclass(frozen=True)
class Slice:
    """One group out of sample: its accuracy against that of all other samples.

    Attributes:
        name: of the group.
        n, correct: held-out samples in it, and how many of them are right.
        accuracy, rest: accuracy inside and outside, nan where there are no samples.
        gap: rest - accuracy.
        low, high: interval of the gap (Newcombe 1998, method 10), for this group alone.
        p: one-sided, exact (Fisher): the chance of so few right answers inside if it made no difference; nan for a
            group with too few samples, which is not tested.
        p_adjusted: corrected over all groups that are tested (Holm 1979).
        holds: whether the group is worse out of sample.
    """

    name: str
    n: int
    correct: int
    accuracy: float
    rest: float
    gap: float
    low: float
    high: float
    p: float
    p_adjusted: float
    holds: bool


@dataclass(frozen=True)
class DiscoveryQuality:
    """How good found groups are out of sample. `print` shows the sentence and a line for each group.

    Attributes:
        slices: one a group, in the order of the groups.
        samples: held-out samples that judged.
        average: accuracy over all of them.
        level: of intervals and tests.
        minimum: held-out samples a group needs to be tested.
        information: what the groups say about the true ones, where these are known.
        stability: how alike the groups of several runs are, where there were several.
        notes: what a reader must know.
    """

    slices: tuple[Slice, ...]
    samples: int
    average: float
    level: float = 0.95
    minimum: int = 10
    information: Information | None = None
    stability: Stability | None = None
    notes: tuple[str, ...] = ()

    @property
    def worse(self) -> tuple[Slice, ...]:
        """The groups that are worse out of sample, the lowest accuracy first."""
        return tuple(sorted((part for part in self.slices if part.holds), key=lambda part: part.accuracy))

    @property
    def worst(self) -> Slice | None:
        """The worst of those that hold."""
        return self.worse[0] if self.worse else None

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        tested = sum(not math.isnan(part.p) for part in self.slices)
        worst = self.worst
        if worst is None:
            return f"{NOTHING_FOUND} ({tested} of {len(self.slices)} groups tested on {self.samples:,} samples)"
        return (
            f"{len(self.worse)} of {tested} groups are worse out of sample; the worst: {worst.name} "
            f"({worst.n:,} of {self.samples:,} samples), accuracy {worst.accuracy:.3f} against {worst.rest:.3f}, "
            f"gap {worst.gap:.3f} ({100 * self.level:g}% interval {worst.low:.3f} to {worst.high:.3f}), "
            f"Holm-corrected p {_p(worst.p_adjusted)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; None for nan."""
        return _plain({**asdict(self), "sentence": self.sentence})  # type: ignore[no-any-return]

    def __str__(self) -> str:
        lines = [self.sentence]
        for part in sorted(self.slices, key=lambda part: (math.isnan(part.accuracy), part.accuracy)):
            told = f"not tested (fewer than {self.minimum})" if math.isnan(part.p) else f"p {_p(part.p_adjusted)}"
            lines.append(
                f"  {'worse' if part.holds else '     '}  {part.accuracy:6.3f}  gap {part.gap:+.3f} "
                f"({part.low:+.3f} to {part.high:+.3f})  {told:>10}  n {part.n:<6,} {part.name}"
            )
        if (runs := self.stability) is not None:
            lines.append(
                f"  over {runs.runs} seeds the groups agree within classes by {runs.information:.2f} "
                f"(adjusted mutual information; adjusted Rand {runs.rand:.2f})"
            )
        if self.information is not None:
            lines.append(
                f"  against the declared groups within classes: {self.information.share:.2f} of their information, "
                f"{self.information.adjusted:.2f} adjusted for chance"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def judge_groups(
    groups: Any,
    correct: Any,
    names: Sequence[str],
    *,
    labels: Any = None,
    truth: Any = None,
    runs: Sequence[Any] = (),
    level: float = 0.95,
    minimum: int = 10,
    notes: Sequence[str] = (),
) -> DiscoveryQuality:
    """Judge groups on held-out samples: those that neither the groups nor the model were learned from.

    Args:
        groups: int [N], the group of each held-out sample, -1 where it has none.
        correct: bool [N], whether the model is right.
        names: one a group.
        labels: int [N]; needed for `truth` and `runs`.
        truth: int [N], true groups where they are known. They decide nothing, the found groups are only compared.
        runs: int [N] each, the groups that other seeds give to the same samples.
        level: of intervals, and 1 - level of the tests after correction.
        minimum: held-out samples a group needs to be tested.
        notes: kept with the result.

    Raises:
        DataError: where the arrays do not fit each other.
    """
    index = checked_index("groups", groups, len(names), "groups", unknown=True)
    right = np.asarray(correct)
    if right.dtype != bool:
        raise DataError(f"correct holds {right.dtype} values: expected True where the model is right, bool [N]")
    same_length(groups=index, correct=right)
    if (truth is not None or runs) and labels is None:
        raise DataError("labels are needed to compare groups: it is done within classes")
    inside = np.bincount(index[index >= 0], minlength=len(names))
    hits = np.bincount(index[index >= 0], weights=right[index >= 0], minlength=len(names)).astype(np.int64)
    slices = _slices(names, inside, hits, len(right), int(right.sum()), level, max(minimum, 1))
    return DiscoveryQuality(
        slices,
        len(right),
        float(right.mean()) if len(right) else math.nan,
        level,
        minimum,
        None if truth is None else within_class_information(index, truth, labels),
        stability([index, *runs], labels) if runs else None,
        tuple(notes),
    )


def _slices(
    names: Sequence[str], inside: IntArray, hits: IntArray, total: int, right: int, level: float, minimum: int
) -> tuple[Slice, ...]:
    from scipy.stats import hypergeom

    outside, outside_hits = total - inside, right - hits
    tested = (inside >= minimum) & (outside >= minimum)
    p = np.where(tested, hypergeom.cdf(hits, total, right, inside), np.nan)
    adjusted = holm(np.minimum(p, 1.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy, rest = hits / inside, outside_hits / outside
    low, high = newcombe(outside_hits, outside, hits, inside, level)
    return tuple(
        Slice(
            str(name),
            int(inside[g]),
            int(hits[g]),
            float(accuracy[g]),
            float(rest[g]),
            float(rest[g] - accuracy[g]),
            float(low[g]),
            float(high[g]),
            float(p[g]),
            float(adjusted[g]),
            bool(adjusted[g] <= 1 - level),
        )
        for g, name in enumerate(names)
    )


def newcombe(
    first: Any, first_total: Any, second: Any, second_total: Any, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interval of the difference of two independent proportions, elementwise; nan where a total is 0.

    Newcombe 1998 (Statistics in Medicine 17, 873), method 10: from the two Wilson intervals.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = np.asarray(first) / np.asarray(first_total), np.asarray(second) / np.asarray(second_total)
    (low_p, high_p), (low_q, high_q) = wilson(first, first_total, level), wilson(second, second_total, level)
    low = p - q - np.sqrt((p - low_p) ** 2 + (high_q - q) ** 2)
    return low, p - q + np.sqrt((high_p - p) ** 2 + (q - low_q) ** 2)


def _p(value: float) -> str:
    return "< .0001" if value < 1e-4 else f"{value:.4f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
