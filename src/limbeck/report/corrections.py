"""The chapter on corrections: what students were told in place of the labels, of whom, by which rule, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import altair as alt

from limbeck.report import charts, numbers
from limbeck.report.blocks import (
    Block,
    Cell,
    Chart,
    Column,
    Exhibit,
    Folded,
    Gallery,
    Line,
    Panels,
    Section,
    Table,
    Text,
)
from limbeck.report.language import Language
from limbeck.report.styles import BLUE, DARK
from limbeck.report.summary import Model, Summary

MAX_BARS = 12
"""Rows of a picture: those with the most samples told another class; the table has all."""
_BY = ("label", "group", "rule")
_RANKS = (1, 2, 3)
_LITTLE = 0.005
"""A class below this probability is not named."""


def corrections(summary: Summary, t: Language) -> Section | None:
    """In words, where they went, the samples that moved farthest, and every student in numbers."""
    found = summary.evidence.get("corrections")
    if not found:
        return None
    blocks: list[Block] = []
    chosen = summary.model(found.get("chosen"))
    if chosen is not None:
        blocks.append(Text((told(summary, chosen, t), *found["notes"])))
    if chosen is not None and any(row["moved_from_label"] for by in _BY for row in found["by"][by]):
        blocks += _where(summary, chosen, found["by"], t)
        blocks.append(Gallery(t("corrections.top", n=len(found["top"]), seed=found["seed"]), exhibits(summary, t)))
    blocks.append(Folded(t("fold.corrections"), (students_table(summary, found["models"], t),)))
    return Section("corrections", t("section.corrections"), t("lead.corrections"), tuple(blocks))


def told(summary: Summary, model: Model, t: Language) -> str:
    """How many labels a student was told otherwise, and how far its targets moved."""
    row = summary.evidence["corrections"]["models"][model.key]
    if not row["moved_from_label"]:
        return t("corrections.none", model=model.label, samples=numbers.count(row["samples"]))
    said = t(
        "corrections.told",
        model=model.label,
        overturned=numbers.count(row["overturned"]),
        samples=numbers.count(row["samples"]),
        share=numbers.percent(row["overturned"] / row["samples"]),
        moved=numbers.decimal(row["moved_from_label"]),
    )
    if row["moved_from_teacher"] is not None:
        said += t("space") + t("corrections.from_teacher", moved=numbers.decimal(row["moved_from_teacher"]))
    if row["held_back"]:
        said += t("space") + t("corrections.held_back", n=numbers.count(row["held_back"]))
    return said


def _where(summary: Summary, model: Model, by: Mapping[str, Any], t: Language) -> list[Block]:
    legend = (
        Line(t("legend.overturned"), BLUE, "", sign="bar"),
        Line(t("legend.moved"), DARK, "", sign="tick"),
    )
    used = [name for name in _BY if by[name]]
    panels = tuple(
        (
            t(f"corrections.by_{name}"),
            (
                Chart(
                    f"corrections-{name}",
                    "",
                    t(f"chart.corrections.by_{name}", model=model.label),
                    partial(where, summary, name, t),
                ),
            ),
        )
        for name in used
    )
    folded = tuple(where_table(summary, name, t) for name in used)
    rules = sorted({row["name"].partition(": ")[2] or row["name"] for row in by["rule"]})
    reasons = tuple(t("corrections.rule", rule=t.term("edit", rule), why=t.term("edit_why", rule)) for rule in rules)
    return [Panels(legend, panels), Text(reasons, points=True), Folded(t("fold.where"), folded)]


def _shown_name(summary: Summary, by: str, name: str, t: Language) -> str:
    if by == "rule":
        term, _, edit = name.partition(": ")
        rules = [row["name"].partition(": ")[2] for row in summary.evidence["corrections"]["by"]["rule"]]
        # The term is named only where several of them do the same.
        return t.term("edit", edit or term) + (f" ({term})" if edit and rules.count(edit) > 1 else "")
    if name == "unknown":
        return t("group.unknown")
    return summary.shown.get(name, name) if by == "group" else name


def where(summary: Summary, by: str, t: Language) -> charts.Chart:
    """The share of samples told another class, as bars, and how far targets moved, as ticks."""
    found = summary.evidence["corrections"]["by"][by]
    kept = sorted(found, key=lambda row: -row["overturned"])[:MAX_BARS]
    rows = [
        {
            "n": _shown_name(summary, by, row["name"], t),
            "s": charts.rounded(row["overturned"] / row["samples"] if row["samples"] else 0.0),
            "m": charts.rounded(row["moved_from_label"]),
            "o": charts.rounded(row["overturned"]),
            "c": charts.rounded(row["samples"]),
        }
        for row in (row for row in found if row in kept)
    ]
    order = {name: place for place, name in enumerate(summary.classes if by == "label" else summary.groups)}
    rows.sort(key=lambda row: order.get(str(row["n"]), len(order)))
    names = [str(row["n"]) for row in rows]
    y = alt.Y("n:N", sort=names, title=None).axis(labelOverlap=False, **charts.row_labels(names))
    x = alt.X("s:Q", title=t("axis.share_of_samples")).axis(format=".0%", tickCount=4)
    x = x.scale(domain=[0, _reach(summary)])
    tooltip = [
        alt.Tooltip("n:N", title=t(f"column.by_{by}")),
        alt.Tooltip("c:Q", title=t("column.n_train"), format=",.0f"),
        alt.Tooltip("o:Q", title=t("column.overturned"), format=",.0f"),
        alt.Tooltip("m:Q", title=t("column.moved_from_label"), format=".3f"),
    ]
    base = charts.named("rows").encode(y=y, tooltip=tooltip)
    bars = base.mark_bar(color=BLUE, height={"band": 0.62}).encode(x=x)
    ticks = base.mark_tick(color=DARK, thickness=3).encode(x=alt.X("m:Q"))
    description = t(f"chart.corrections.by_{by}", model=_chosen(summary).label)
    return charts.finished(
        alt.layer(bars, ticks), max(60, max(24, charts.label_height(names)) * len(rows)), description, rows=rows
    )


def _reach(summary: Summary) -> float:
    """The end of the axis, the same in all pictures: the largest share or distance, rounded up to a tenth."""
    rows = [row for by in _BY for row in summary.evidence["corrections"]["by"][by]]
    values = [row["moved_from_label"] or 0.0 for row in rows]
    values += [row["overturned"] / row["samples"] for row in rows if row["samples"]]
    return min(1.0, int(max(values, default=1.0) * 10 + 1) / 10)


def _chosen(summary: Summary) -> Model:
    model = summary.model(summary.evidence["corrections"]["chosen"])
    assert model is not None
    return model


def where_table(summary: Summary, by: str, t: Language) -> Table:
    """All classes, groups or rules."""
    columns = (Column(t(f"column.by_{by}")), *_columns(t), Column(t("column.weight_mean"), True))
    rows = tuple(
        (
            Cell(_shown_name(summary, by, row["name"], t)),
            *_cells(row),
            Cell(numbers.decimal(row["weight_mean"])),
        )
        for row in summary.evidence["corrections"]["by"][by]
    )
    return Table(t(f"caption.corrections_by_{by}", model=_chosen(summary).label), columns, rows, t("note.corrections"))


def students_table(summary: Summary, rows: Mapping[str, Mapping[str, Any]], t: Language) -> Table:
    """What each student was told."""
    found = tuple((Cell(model.label), *_cells(rows[model.key])) for model in summary.models if model.key in rows)
    return Table(t("caption.corrections"), (Column(t("column.model")), *_columns(t)), found, t("note.corrections"))


def _columns(t: Language) -> list[Column]:
    names = ("n_train", "overturned", "held_back", "moved_from_label", "moved_from_teacher")
    return [Column(t(f"column.{name}"), True) for name in names]


def _cells(row: Mapping[str, Any]) -> list[Cell]:
    share = row["overturned"] / row["samples"] if row["samples"] else None
    return [
        Cell(numbers.count(row["samples"])),
        Cell(numbers.count(row["overturned"]), numbers.percent(share)),
        Cell(numbers.count(row["held_back"])),
        Cell(numbers.decimal(row["moved_from_label"])),
        Cell(numbers.decimal(row["moved_from_teacher"])),
    ]


def exhibits(summary: Summary, t: Language) -> tuple[Exhibit, ...]:
    """The samples that moved farthest, with what was said of each and why."""
    found: Sequence[Mapping[str, Any]] = summary.evidence["corrections"]["top"]
    return tuple(_exhibit(summary, row, t) for row in found)


def _exhibit(summary: Summary, row: Mapping[str, Any], t: Language) -> Exhibit:
    rule = str(row["rule"])
    edit = rule.partition(": ")[2] or rule
    lines = [(t("exhibit.label"), str(row["label"]))]
    if row["group"] is not None:
        lines.append((t("exhibit.group"), summary.shown.get(str(row["group"]), str(row["group"]))))
    if row["teacher_1"] is not None:
        lines.append((t("exhibit.teacher"), _ranked(row, "teacher", t)))
    lines.append((t("exhibit.told"), _ranked(row, "target", t) or numbers.NOTHING))
    lines.append((t("exhibit.moved"), numbers.decimal(row["moved_from_label"])))
    lines.append((t("exhibit.why"), t.term("edit_why", edit)))
    title = t("exhibit.title", id=row["id"])
    description = t("exhibit.description", id=row["id"], label=row["label"], told=row["target_1"] or numbers.NOTHING)
    facts = tuple((str(name), str(value)) for name, value in row["facts"])
    # A file on disk may have been edited: only a picture that the page itself holds is shown.
    held = str(row["picture"] or "")
    return Exhibit(title, held if held.startswith("data:image/") else "", description, facts, tuple(lines))


def _ranked(row: Mapping[str, Any], who: str, t: Language) -> str:
    parts = [(row[f"{who}_{rank}"], row[f"{who}_{rank}_probability"]) for rank in _RANKS]
    return t("list").join(
        t("exhibit.class", name=name, share=numbers.percent(share, 0))
        for name, share in parts
        if name is not None and share >= _LITTLE
    )
