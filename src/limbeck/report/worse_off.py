"""The chapter that asks who is worse off: every group under the best student, against the teacher and the plain one."""

from __future__ import annotations

from functools import partial
from typing import Any

import altair as alt

from limbeck.report import charts, numbers
from limbeck.report.blocks import Block, Cell, Chart, Column, Folded, Section, Table, Text
from limbeck.report.language import Language
from limbeck.report.styles import BLUE, DARK, VERMILION
from limbeck.report.summary import Comparison, Model, Summary
from limbeck.report.tables import MARKS

MAX_NAMED = 4
"""Groups that a sentence names; the table has all."""


def worse_off(summary: Summary, t: Language) -> Section | None:
    """In words, as a picture with intervals, and in numbers."""
    model, others = compared(summary)
    if not summary.groups or model is None or not others:
        return None
    blocks: list[Block] = [Text(tuple(said(summary, model, than, t) for than in others), points=True)]
    names = t.join([other.label for other in others])
    blocks.append(
        Chart(
            "worse-off",
            t("chart.worse_off.title", model=model.label),
            t("chart.worse_off.description", model=model.label, others=names),
            partial(differences, summary, t),
            group_differences(summary, model, others, t),
        )
    )
    if len(summary.students) > 2:
        blocks.append(Folded(t("fold.worse_off"), (everyone(summary, t),)))
    return Section("worse-off", t("section.worse_off"), t("lead.worse_off", model=model.label), tuple(blocks))


def compared(summary: Summary) -> tuple[Model | None, tuple[Model, ...]]:
    """The model in question, and those it would take the place of: its teacher and the plain student."""
    model = summary.best or summary.plain
    others = tuple(one for one in (summary.teacher, summary.plain) if one is not None and one is not model)
    return model, others


def said(summary: Summary, model: Model, than: Model, t: Language) -> str:
    """One sentence: who is worse off, who is better off, and how many cannot be told."""
    name = t("than.teacher" if than.role == "teacher" else "than.plain", model=than.label)
    found = [entry for entry in summary.changes(model, than) if entry is not None]
    tested = [entry for entry in found if entry.tone != "unknown"]
    if not tested:
        lost = sorted((entry for entry in found if (entry.difference or 0) < 0), key=lambda e: e.difference or 0)
        return t("worse.untested", than=name, n=len(lost), groups=len(found), named=_named(lost, t) or t("none"))
    worse, better, same = (
        sorted((e for e in tested if e.tone == tone), key=lambda e: -abs(e.difference or 0))
        for tone in ("worse", "better", "same")
    )
    parts = [t("worse.worse", named=_named(worse, t)) if worse else t("worse.nobody")]
    if better:
        parts.append(t("worse.better", named=_named(better, t)))
    if same:
        parts.append(t("worse.same", n=len(same), groups=len(found)))
    return t("worse.compared", than=name, parts=t("worse.and").join(parts))


def _named(found: list[Comparison], t: Language) -> str:
    names = []
    for entry in found[:MAX_NAMED]:
        interval = numbers.points_interval(entry.low, entry.high)
        names.append(
            t(
                "worse.group",
                group=entry.group,
                difference=numbers.points(entry.difference),
                interval=f" {interval}" if interval else "",
            )
        )
    more = len(found) - len(names)
    return t("list").join([*names, *([t("worse.more", n=more)] if more else [])])


def group_differences(summary: Summary, model: Model, others: tuple[Model, ...], t: Language) -> Table:
    """One row a group: accuracy under each, and the differences with interval and verdict."""
    columns = (
        Column(t("column.group")),
        *(Column(one.label, True) for one in (*others, model)),
        *(Column(t("column.less", model=one.label), True) for one in others),
    )
    by_other = [summary.changes(model, than) for than in others]
    rows = []
    for group, name in enumerate(summary.groups):
        rates = [Cell(numbers.percent(one.groups[group].mean)) for one in (*others, model)]
        rows.append((Cell(name), *rates, *(_difference(found[group], t) for found in by_other)))
    return Table(t("caption.worse_off", model=model.label), columns, tuple(rows), t("note.worse_off"))


def _difference(entry: Comparison | None, t: Language) -> Cell:
    if entry is None:
        return Cell(numbers.NOTHING)
    if not entry.verdict:
        return Cell(numbers.points(entry.difference))
    interval = numbers.points_interval(entry.low, entry.high)
    return Cell(
        f"{numbers.points(entry.difference)} {MARKS[entry.tone]} {t(f'verdict.{entry.tone}')}", interval, entry.tone
    )


def everyone(summary: Summary, t: Language) -> Table:
    """One row a small model: in how many groups it is worse and better than its teacher and the plain student."""
    columns = [Column(t("column.model"))]
    columns += [
        Column(t(f"column.{how}_than_{who}"), True) for who in ("teacher", "plain") for how in ("worse", "better")
    ]
    rows = []
    for model in summary.students:
        # One without a teacher would take the place of the chosen student's.
        teacher = summary.model(model.teacher) or summary.teacher
        cells = [Cell(model.label)]
        for than in (teacher, summary.plain):
            found = [] if than is None or than is model else summary.changes(model, than)
            tested = [entry for entry in found if entry is not None and entry.tone != "unknown"]
            for tone in ("worse", "better"):
                named = [str(entry.group) for entry in tested if entry.tone == tone]
                text = numbers.count(len(named)) if tested else numbers.NOTHING
                cells.append(Cell(text, tone=tone if named else ""))
        rows.append(tuple(cells))
    return Table(t("caption.everyone", groups=len(summary.groups)), tuple(columns), tuple(rows), t("note.everyone"))


def differences(summary: Summary, t: Language) -> charts.Chart:
    """The difference in each group with its interval, against the teacher and the plain student; left of 0 is worse."""
    model, others = compared(summary)
    assert model is not None
    rows: list[dict[str, Any]] = []
    for than in others:
        for group, entry in enumerate(summary.changes(model, than)):
            if entry is None or entry.difference is None:
                continue
            interval = numbers.points_interval(entry.low, entry.high)
            rows.append(
                {
                    "m": than.label,
                    "g": charts.group_label(summary, group),
                    "d": charts.rounded(entry.difference),
                    "l": charts.rounded(entry.difference if entry.low is None else entry.low),
                    "h": charts.rounded(entry.difference if entry.high is None else entry.high),
                    "t": f"{numbers.points(entry.difference)} {interval}".strip(),
                    "v": t(f"verdict.{entry.tone}"),
                }
            )
    labels = [than.label for than in others]
    looks = [(DARK, "triangle-up") if than.role == "teacher" else (VERMILION, "square") for than in others]
    names = [charts.group_label(summary, group) for group in range(len(summary.groups))]
    colour = alt.Color("m:N").scale(domain=labels, range=[colour for colour, _ in looks])
    shape = alt.Shape("m:N").scale(domain=labels, range=[shape for _, shape in looks])
    y = alt.Y("g:N", sort=names, title=None)
    y = y.axis(labelOverlap=False, grid=True, tickBand="extent", **charts.row_labels(names))
    offset = alt.YOffset("m:N", sort=labels).scale(paddingOuter=0.4)
    base = charts.named("rows").encode(y=y, yOffset=offset)
    title = t("axis.difference")
    x = alt.X("d:Q", title=title).axis(format="+.0%", tickCount=6)
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("l:Q", title=title), x2="h:Q", color=colour)
    dots = base.mark_point(size=80, filled=True, opacity=1, stroke="white", strokeWidth=0.7).encode(
        x=x,
        color=colour,
        shape=shape,
        tooltip=[
            alt.Tooltip("g:N", title=t("column.group")),
            alt.Tooltip("m:N", title=t("column.against")),
            alt.Tooltip("t:N", title=t("column.difference")),
            alt.Tooltip("v:N", title=t("column.verdict")),
        ],
    )
    zero = charts.named("zero").mark_rule(color=BLUE, strokeDash=[5, 3], strokeWidth=1.5).encode(x="x:Q")
    height = len(names) * max(15 * len(labels) + 10, charts.label_height(names))
    description = t("chart.worse_off.description", model=model.label, others=t.join(labels))
    return charts.finished(alt.layer(zero, bars, dots), height, description, rows=rows, zero=[{"x": 0}])
