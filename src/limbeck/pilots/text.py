"""A pilot's result in a terminal."""

from __future__ import annotations

import io
import statistics
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def result_table(record: Mapping[str, Any], width: int = 110) -> str:
    """The table of a result: one row a model, mean ± spread over seeds on the test part."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model")
    table.add_column("average %", justify="right")
    table.add_column("worst group %", justify="right")
    table.add_column("which group")
    table.add_column("parameters", justify="right")
    table.add_column("seconds", justify="right")
    for row in record["models"]:
        runs = row["runs"]
        table.add_row(
            row["label"],
            _spread([run["test"]["average"] for run in runs]),
            _spread([run["test"]["worst_group"] for run in runs]),
            Counter(str(run["test"]["worst_group_name"]) for run in runs).most_common(1)[0][0],
            f"{row['parameters']:,}" if row["parameters"] else "unknown",
            f"{statistics.fmean(run['seconds'] for run in runs):.1f}",
            style="dim" if row["role"] == "teacher" else None,
        )
    buffer = io.StringIO()
    Console(file=buffer, width=width).print(table)
    return "\n".join([buffer.getvalue().rstrip("\n"), *_against_plain(record, width), *_searched(record)])


def _against_plain(record: Mapping[str, Any], width: int) -> list[str]:
    """A line a model: its difference to the plain student in words, and what would tell where it is undecided."""
    metric, place = ("worst_group", "in the worst group") if record["data"]["groups"] else ("average", "on average")
    labels = {row["key"]: row["label"] for row in record["models"]}
    asked = [entry for entry in record["comparisons"] if (entry["metric"], entry["against"]) == (metric, "erm")]
    if not asked:
        return []
    lines = ["", f"against the plain student {place}, points:"]
    for entry in asked:
        advice = (entry.get("advice") or {}).get("sentence")
        text = f"{labels.get(entry['model'], entry['model'])}: {entry['verdict']}"
        if entry["difference"] is not None:
            text += f", {100 * entry['difference']:+.1f} ({100 * entry['low']:+.1f} to {100 * entry['high']:+.1f})"
        text += f"; {advice}" if advice else ""
        lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return lines


def _searched(record: Mapping[str, Any]) -> list[str]:
    """A line a recipe: the settings that validation chose, and of how many."""
    search = record.get("search")
    if not search:
        return []
    lines = ["", f"settings chosen on validation, {search['seconds']:.0f} s of trials:"]
    for key, settings in search["chosen"].items():
        shown = ", ".join(f"{name} {value}" for name, value in settings.items())
        lines.append(f"  {key}: {shown} (of {len(search['tried'][key])})")
    return lines


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    mean = statistics.fmean(known)
    return f"{mean:.1f} ± {statistics.stdev(known):.1f}" if len(known) > 1 else f"{mean:.1f}"
