"""What a pilot found: one plain record, its table, its verdict, and the comparisons that decide."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import DataError, unknown_name
from limbeck.evaluation.changes import group_changes
from limbeck.evaluation.compare import Difference, compare, decide
from limbeck.evaluation.pareto import Standing, pareto_front

if TYPE_CHECKING:
    from limbeck.data import Data

Predictions = Mapping[str, Sequence[np.ndarray[Any, np.dtype[np.int64]]]]
PLAIN = "erm"
"""The key of the plain student: no teacher, every sample the same weight."""


@dataclass(frozen=True)
class PilotResult:
    """The result of a pilot.

    Args:
        record: everything as plain data, the keys as documented in the run folder's `result.json`.
        folder: the run folder, or None where nothing was kept.
    """

    record: dict[str, Any]
    folder: Path | None = None

    @property
    def verdict(self) -> str:
        """Whether distillation beat the plain student, in one sentence: the first line of every result."""
        return str(self.record["verdict"])

    @property
    def report_path(self) -> Path | None:
        """The page, where one was written."""
        path = None if self.folder is None else self.folder / "report.html"
        return path if path is not None and path.is_file() else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return self.record

    def best(self, rule: str | None = None) -> dict[str, Any]:
        """The student (or baseline) that is best on validation: the row of `record["models"]`.

        Args:
            rule: `average` or `worst_group`; by default the pilot's own selection rule.
        """
        metric = rule or self.record["selection"]["rule"]
        students = [row for row in self.record["models"] if row["role"] != "teacher"]
        return max(students, key=lambda row: validation_mean(row, metric))

    def table(self) -> str:
        """One row a model: mean ± spread over seeds on the test part, the worst group named."""
        from limbeck.pilots.text import result_table

        return result_table(self.record)

    def report(self, path: str | Path, *, language: str = "en") -> Path:
        """Write the page: one self-contained HTML file."""
        from limbeck.report import with_evidence, write_html

        return write_html(with_evidence(self.record, self.folder), Path(path), language=language)

    def pareto(self) -> tuple[Standing, ...]:
        """Average against worst group of every small model, with intervals over seeds and samples, and the front.

        Raises:
            DataError: the pilot kept no run folder, so there are no predictions to redraw.
        """
        right, groups, names = self._answers()
        students = [row["key"] for row in self.record["models"] if row["role"] != "teacher"]
        return pareto_front({key: right[key] for key in students}, groups, names)

    def group_changes(self, key: str | None = None) -> list[dict[str, Any]]:
        """Who is better and worse off under a model than under its teacher and the plain student: one row a group.

        Args:
            key: of the model; by default the distilled student that the verdict speaks of.

        Raises:
            DataError: no such model, no groups are declared, or the pilot kept no run folder.
        """
        rows = {row["key"]: row for row in self.record["models"]}
        key = key or self.record.get("chosen") or PLAIN
        if key not in rows:
            raise DataError(unknown_name("model", key, rows))
        right, groups, names = self._answers()
        if names is None:
            raise DataError("groups: none are declared in this pilot, so nobody in particular can be worse off")
        references = [*rows[key].get("teachers", ()), PLAIN]
        return group_changes(right[key], {other: right[other] for other in references if other != key}, groups, names)

    def _answers(
        self,
    ) -> tuple[dict[str, np.ndarray[Any, np.dtype[np.bool_]]], np.ndarray[Any, Any] | None, list[str] | None]:
        """Whether each seed of each model is right on each test sample; the samples' groups and the groups' names."""
        path = None if self.folder is None else self.folder / "predictions.parquet"
        if path is None or not path.is_file():
            raise DataError("predictions: this pilot kept no run folder; run it with output=... to ask this")
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        labels = table["label"].to_numpy()
        right = {
            row["key"]: np.stack([table[f"{row['key']}-seed{run['seed']}"].to_numpy() == labels for run in row["runs"]])
            for row in self.record["models"]
        }
        names = self.record["data"]["groups"]
        return right, table["group"].to_numpy() if names else None, names or None

    def to_pandas(self) -> Any:
        """One row a model, seed, part and group (pandas is needed)."""
        return self.to_arrow().to_pandas()

    def to_arrow(self) -> Any:
        """One row a model, seed, part and group, as a `pyarrow.Table`."""
        import pyarrow as pa

        return pa.Table.from_pylist(metric_rows(self.record))


def metric_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One plain row a model, seed, part and group, and one for all samples of a part (group null)."""
    rows = []
    groups = record["data"]["groups"] or ["all"]
    for model in record["models"]:
        for run in model["runs"]:
            for part in ("validation", "test"):
                measured = run[part]
                common = {
                    "model": model["key"],
                    "role": model["role"],
                    "teacher": model["teacher"],
                    "seed": run["seed"],
                }
                common["part"] = part
                # Samples of unknown group count in the average and in no group: the confusion has them all.
                samples = sum(map(sum, measured["confusion"]))
                correct = sum(row[k] for k, row in enumerate(measured["confusion"]))
                rows.append(
                    {**common, "group": None, "samples": samples, "correct": correct, "accuracy": measured["average"]}
                )
                for name, count, right in zip(groups, measured["group_total"], measured["group_correct"], strict=True):
                    accuracy = right / count if count else None
                    rows.append({**common, "group": name, "samples": count, "correct": right, "accuracy": accuracy})
    return rows


def history_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One plain row a model, seed and epoch."""
    return [
        {"model": model["key"], "seed": run["seed"], **entry}
        for model in record["models"]
        for run in model["runs"]
        for entry in run["history"]
    ]


def validation_mean(row: Mapping[str, Any], metric: str) -> float:
    """A model's mean over seeds of what a selection rule looks at on validation, larger being better.

    `last` looks at nothing, so that models are then compared on average.
    """
    values = [_validation(run["validation"], metric) for run in row["runs"]]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else float("-inf")


def _validation(measured: Mapping[str, Any], metric: str) -> float | None:
    if metric in ("worst_class", "class_gap"):
        classes = [row[k] / sum(row) for k, row in enumerate(measured["confusion"]) if sum(row)]
        return (min(classes) if metric == "worst_class" else min(classes) - max(classes)) if classes else None
    found = measured.get(metric if metric == "worst_group" else "average")
    return None if found is None else float(found)


def comparisons(
    models: Sequence[Mapping[str, Any]], predictions: Predictions, test: Data, references: Sequence[str]
) -> list[Difference]:
    """Every student against each reference: average, worst group and single groups, on the same test samples.

    p and intervals are corrected (Holm, Bonferroni) over all questions of the same kind against the same reference.
    """
    labels = test.y
    groups = None if test.groups is None else test.groups.index
    names = None if test.groups is None else test.groups.names
    right = {key: np.stack([row == labels for row in rows]) for key, rows in predictions.items()}
    found: list[Difference] = []
    for reference in references:
        # Two references are compared once, the stronger baseline against the plain student.
        before = references[: references.index(reference) + 1]
        asked = [row["key"] for row in models if row["role"] != "teacher" and row["key"] not in before]
        results = [
            compare(right[key], right[reference], groups, group_names=names, names=(key, reference)) for key in asked
        ]
        found += decide([result.average for result in results])
        if groups is not None:
            found += decide([result.worst_group for result in results])
            found += [difference for result in results for difference in result.groups]
    return found


def verdict(
    models: Sequence[Mapping[str, Any]], differences: Sequence[Difference], rule: str, *, groups: bool
) -> tuple[str, str | None]:
    """The first line of a result, from measured numbers only; where it is undecided, what would tell.

    Returns:
        The sentence, and the key of the distilled student it speaks of (chosen on validation).
    """
    metric = "worst_group" if groups else "average"
    distilled = [row for row in models if row["role"] == "student"]
    if not distilled:
        return "No recipe with a teacher was tried: nothing to say about distillation.", None
    best = max(distilled, key=lambda row: validation_mean(row, rule))
    chosen, label = best["key"], best["label"]
    against = {
        difference.against: difference
        for difference in differences
        if difference.model == chosen and difference.metric == metric
    }
    plain = against[PLAIN]
    opening = {
        "better": f"Distillation ({label}) beat the plain student",
        "worse": f"Distillation ({label}) did worse than the plain student",
    }.get(plain.verdict, f"Distillation ({label}) could not be told from the plain student")
    sentence = f"{opening} {_place(metric)}: {_numbers(plain)}"
    others = [name for name in against if name != PLAIN]
    for name in others:
        words = {"better": "better than", "worse": "worse than"}.get(against[name].verdict, "not distinguishable from")
        sentence += f"; it is {words} the best student without a teacher ({name}, {_percent(against[name].reference)})"
    sentence += "."
    if plain.advice is not None:
        advice = plain.advice.sentence()
        sentence += f" {advice[0].upper()}{advice[1:]}."
    elif plain.seeds == (1, 1):
        sentence += " With one seed each this speaks of these two students, not of the recipes."
    return sentence, chosen


def _place(metric: str) -> str:
    return "in the worst group" if metric == "worst_group" else "on average"


def _numbers(difference: Difference) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    seeds = max(difference.seeds)
    corrected = f" corrected for {difference.comparisons} comparisons" if difference.comparisons > 1 else ""
    return (
        f"{_percent(difference.value)} against {_percent(difference.reference)} "
        f"({100 * difference.difference:+.1f} points, {100 * difference.level:.0f}% interval {low:+.1f} to "
        f"{high:+.1f}{corrected}, {seeds} seed{'s' if seeds != 1 else ''})"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"
