"""The chapter on feature space: where test samples lie for teacher and students, coloured by group, errors crossed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import altair as alt

from limbeck.report import charts, numbers
from limbeck.report.blocks import Cell, Chart, Column, Line, Panels, Section, Table
from limbeck.report.language import Language
from limbeck.report.styles import DARK, GREY, group_colours
from limbeck.report.summary import Model, Summary

MAX_KINDS = 8
"""Colours that can be told apart: of more groups the worst keep one each, and the others share grey."""
_CROSS = "M-1 -1L1 1M1 -1L-1 1"


def feature_space(summary: Summary, t: Language) -> Section | None:
    """One panel a model, and how much of the truth it can show."""
    found = summary.evidence.get("feature_space")
    models = [model for model in summary.models if found and model.key in found["models"]]
    if not found or not models:
        return None
    _, colours = kinds(summary, t)
    legend = (
        *(Line(name, colour, "", sign="dot") for name, colour in colours.items()),
        Line(t("legend.wrong"), DARK, "", sign="cross"),
    )
    panels = tuple(
        (
            model.label,
            (
                Chart(
                    f"features-{model.key}",
                    "",
                    t("chart.features.description", model=model.label),
                    partial(places, summary, model, t),
                ),
            ),
        )
        for model in models
    )
    lead = t("lead.features", shown=len(found["id"]), total=numbers.count(found["total"]))
    blocks = (Panels(legend, panels), features_table(found, models, t))
    return Section("feature-space", t("section.features"), lead, blocks)


def kinds(summary: Summary, t: Language) -> tuple[list[str], dict[str, str]]:
    """What each shown sample is coloured by (its group, or its class where there are none), and the colours by name."""
    found = summary.evidence["feature_space"]
    by_group = bool(found["group"])
    names, index = (summary.groups, found["group"]) if by_group else (summary.classes, found["label"])
    present = sorted({code for code in index if code >= 0})
    few = present if len(present) <= MAX_KINDS else sorted(_worst(found, index, present)[: MAX_KINDS - 1])
    others = t("legend.other_groups" if by_group else "legend.other_classes")
    colours = dict(zip((names[code] for code in few), group_colours(len(few)), strict=True))
    kept = [names[code] if code in few else others for code in index]
    return kept, colours | ({others: GREY} if others in kept else {})


def _worst(found: Mapping[str, Any], index: list[int], present: list[int]) -> list[int]:
    """Groups by the share of shown samples that the models have wrong, the largest first."""
    wrong = dict.fromkeys(present, 0)
    for model in found["models"].values():
        for code, predicted, label in zip(index, model["predicted"], found["label"], strict=True):
            if code in wrong:
                wrong[code] += predicted != label
    return sorted(present, key=lambda code: -wrong[code] / max(index.count(code), 1))


def places(summary: Summary, model: Model, t: Language) -> charts.Chart:
    """Samples in the two directions of largest variance: dots where the model is right, crosses where it is wrong."""
    found = summary.evidence["feature_space"]
    names, colours = kinds(summary, t)
    seen = found["models"][model.key]
    rows = [
        {
            "x": x,
            "y": y,
            "g": name,
            "r": int(predicted == label),
            "i": number,
            "k": summary.classes[label],
            "p": summary.classes[predicted],
        }
        for x, y, name, predicted, label, number in zip(
            seen["x"], seen["y"], names, seen["predicted"], found["label"], found["id"], strict=True
        )
    ]
    quiet: dict[str, Any] = {"labels": False, "ticks": False, "grid": False}
    x = alt.X("x:Q", title=t("axis.direction", n=1)).scale(zero=False).axis(**quiet)
    y = alt.Y("y:Q", title=t("axis.direction", n=2)).scale(zero=False).axis(**quiet)
    colour = alt.Color("g:N", legend=None).scale(domain=list(colours), range=list(colours.values()))
    tooltip = [
        alt.Tooltip("i:N", title=t("column.id")),
        alt.Tooltip("g:N", title=t("column.group")),
        alt.Tooltip("k:N", title=t("axis.true_class")),
        alt.Tooltip("p:N", title=t("axis.predicted")),
    ]
    base = charts.named("rows").encode(x=x, y=y, color=colour, tooltip=tooltip)
    right = base.transform_filter("datum.r === 1").mark_point(shape="circle", size=22, filled=True, opacity=0.5)
    wrong = base.transform_filter("datum.r === 0").mark_point(shape=_CROSS, size=34, filled=False, strokeWidth=1.8)
    chart = alt.layer(right, wrong.encode(opacity=alt.value(1)))
    return charts.finished(chart, 260, t("chart.features.description", model=model.label), rows=rows)


def features_table(found: Mapping[str, Any], models: list[Model], t: Language) -> Table:
    """What the panels are made of, and how many of the shown samples are wrong."""
    columns = (
        Column(t("column.model")),
        Column(t("column.features"), True),
        Column(t("column.share_shown"), True),
        Column(t("column.wrong_shown"), True),
    )
    rows = []
    for model in models:
        seen = found["models"][model.key]
        wrong = sum(p != label for p, label in zip(seen["predicted"], found["label"], strict=True))
        share = wrong / max(len(found["label"]), 1)
        rows.append(
            (
                Cell(model.label),
                Cell(numbers.count(seen["features"])),
                Cell(numbers.percent(seen["share"])),
                Cell(numbers.count(wrong), numbers.percent(share)),
            )
        )
    return Table(t("caption.features"), columns, tuple(rows), t("note.features"))
