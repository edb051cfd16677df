"""The chapter on the audit: what it said before the pilot, what it advised, and whether the pilot proved it right."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import numbers
from limbeck.report.blocks import Block, Cell, Column, Section, Table, Text
from limbeck.report.language import Language
from limbeck.report.summary import Summary

_TONES = {"use": "better", "avoid": "worse"}


def advice(summary: Summary, t: Language) -> Section | None:
    """One audit a teacher: its verdicts, its advice held against the results, and one line that judges it."""
    audits = summary.evidence.get("audits")
    if not audits:
        return None
    blocks: list[Block] = []
    for key, found in audits.items():
        teacher = summary.model(f"teacher-{key}") or summary.model(key)
        title = t("advice.of_labels") if key == "labels" else t("advice.of", teacher=teacher.label if teacher else key)
        blocks.append(Text((judged(summary, found, t),), title=title))
        blocks.append(verdicts(found, t))
        blocks.append(advice_table(summary, found, t))
    return Section("advice", t("section.advice"), t("lead.advice"), tuple(blocks))


def verdicts(audit: Mapping[str, Any], t: Language) -> Text:
    """What the audit found, one sentence each."""
    said = audit.get("said")
    if t.code == "en" or said is None:
        # Audits once kept their English alone.
        return Text(tuple(audit["verdicts"]), points=True, language="" if t.code == "en" else "en")
    from limbeck.audits.said import spoken

    words = t.audit()
    return Text(tuple(spoken(sentence, words) for sentence in said), points=True)


def reason(finding: Mapping[str, Any], t: Language) -> str:
    """Why a recipe is advised or not; what the recipe itself says against the data is English."""
    if t.code == "en" or "said" not in finding:
        return str(finding["reason"])
    from limbeck.audits.said import spoken

    return spoken(finding["said"], t.audit())


def judged(summary: Summary, audit: Mapping[str, Any], t: Language) -> str:
    """Whether the first advised recipe that was run is among the best."""
    from limbeck.audits.advice import Advice, check_advice
    from limbeck.errors import LimbeckError

    nan = float("nan")
    given = [Advice(entry["recipe"], entry["verdict"], nan, nan, ()) for entry in audit["advice"]]
    try:
        check = check_advice(given, summary.result)
    except LimbeckError:
        return t("advice.not_run")
    if check.advised is None:
        return t("advice.not_run")
    best = summary.model(check.best)
    return t(
        "advice.right" if check.right else "advice.wrong",
        recipe=check.advised,
        place=t(f"place.{check.metric}"),
        reached=numbers.percent(check.reached),
        best=best.label if best else check.best,
        best_value=numbers.percent(check.best_value),
        plain=numbers.percent(check.plain),
        tolerance=numbers.points(check.tolerance).lstrip("+"),
    )


def advice_table(summary: Summary, audit: Mapping[str, Any], t: Language) -> Table:
    """One row a recipe: what was advised and expected, and what it reached where it was run."""
    names = ["recipe", "advice"]
    metrics = ["worst_group", "average"] if summary.groups else ["average"]
    columns = [Column(t(f"column.{name}")) for name in names]
    for metric in metrics:
        columns += [Column(t(f"column.{how}_{metric}"), True) for how in ("expected", "reached")]
    columns.append(Column(t("column.reasons")))
    rows = []
    for entry in audit["advice"]:
        cells = [
            Cell(entry["recipe"]),
            Cell(t.term("advice_verdict", entry["verdict"]), tone=_TONES.get(entry["verdict"], "")),
        ]
        for metric in metrics:
            expected = entry["worst" if metric == "worst_group" else "average"]
            cells += [Cell(numbers.percent(expected)), Cell(numbers.percent(reached(summary, entry["recipe"], metric)))]
        reasons = [reason(finding, t) for finding in entry["reasons"]]
        cells.append(Cell(t("list").join(reasons) or numbers.NOTHING))
        rows.append(tuple(cells))
    return Table(t("caption.advice"), tuple(columns), tuple(rows), t("note.advice"))


def reached(summary: Summary, recipe: str, metric: str) -> float | None:
    """The mean over seeds of the best model that was trained with a recipe; None where it was not run."""
    found: list[float] = []
    for model in summary.students:
        named = model.recipe.get("name") if isinstance(model.recipe, Mapping) else None
        estimate = model.worst if metric == "worst_group" else model.average
        if recipe in (model.key, named) and estimate.mean is not None:
            found.append(statistics.fmean(_known(estimate.values)))
    return max(found, default=None)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
