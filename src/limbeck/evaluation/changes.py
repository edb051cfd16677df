"""Who is better and who is worse off: one model against those whose place it would take, group by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.errors import DataError
from limbeck.evaluation.compare import Difference, compare, decide


def group_changes(
    right: Any,
    against: Mapping[str, Any],
    groups: Any,
    group_names: Sequence[str],
    *,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """What each group gains and loses, as plain data: one row a group.

    All intervals of one reference hold at once at `level` (Bonferroni over the groups that have samples), so that the
    group one looks at because it loses most is covered too; verdicts go with them.

    Args:
        right: whether the model is right on each test sample, bool `[N]` or `[seeds, N]`.
        against: the same of each reference, such as `{"teacher": …, "plain": …}`; other numbers of seeds are welcome.
        groups: group of each sample `[N]`, -1 where unknown; such samples belong to no group.
        group_names: names of the groups.
        level: of the intervals, all groups together.

    Returns:
        For each group `group`, `samples`, `accuracy` and `against`, which holds for each reference `reference` (its
        accuracy), `difference`, `low`, `high`, `p`, `adjusted_p`, `verdict` and `sentence`. Accuracies are means over
        seeds; None where a group has no sample.

    Raises:
        DataError: no reference was given, or lengths differ.
    """
    if not against:
        raise DataError("against: nothing to compare with, expected one entry a reference")
    by_reference = {
        name: decide(
            compare(
                right, other, groups, group_names=group_names, names=("the model", name), level=level, correction="none"
            ).groups,
            "bonferroni",
        )
        for name, other in against.items()
    }
    rows = []
    for g, group in enumerate(group_names):
        found = {name: differences[g] for name, differences in by_reference.items()}
        first = next(iter(found.values()))
        rows.append(
            {
                "group": group,
                "samples": first.samples,
                "accuracy": _plain(first.value),
                "against": {name: _change(difference) for name, difference in found.items()},
            }
        )
    return rows


def _change(difference: Difference) -> dict[str, Any]:
    shown = ("reference", "difference", "low", "high", "p", "adjusted_p")
    return {key: _plain(getattr(difference, key)) for key in shown} | {
        "verdict": difference.verdict,
        "sentence": difference.sentence(),
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
