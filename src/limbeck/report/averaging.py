"""The chapter on label averaging: what rounds of self-distillation and partial labels do to these features.

It is there where a probe was run: `result["averaging"]`, from `limbeck.probes.averaging.label_averaging`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import altair as alt

from limbeck.report import charts, numbers
from limbeck.report.blocks import Block, Cell, Chart, Column, Section, Table, Text
from limbeck.report.language import Language
from limbeck.report.styles import BLUE, VERMILION, group_colours, group_dashes
from limbeck.report.summary import Summary

_RANKS = 12
"""Rows of the table behind the spectrum."""


def label_averaging(summary: Summary, t: Language) -> Section | None:
    """Spectrum and filter, class averages, margins of clean and noisy samples, partial labels beside them."""
    found = summary.result.get("averaging")
    if not isinstance(found, Mapping):
        return None
    blocks: list[Block] = [Text(tuple(_said(found, t))), rounds_table(found, t)]
    blocks.append(
        Chart(
            "averaging-spectrum",
            t("chart.averaging_spectrum.title"),
            t("chart.averaging_spectrum.description"),
            partial(spectrum, found, t),
            _spectrum_table(found, t),
        )
    )
    if found["class_average"]:
        blocks.append(
            Chart(
                "averaging-classes",
                t("chart.averaging_classes.title"),
                t("chart.averaging_classes.description"),
                partial(class_averages, found, summary.classes, t),
                _class_table(found, summary.classes, t),
                narrow=True,
            )
        )
    blocks.append(
        Chart(
            "averaging-margins",
            t("chart.averaging_margins.title"),
            t("chart.averaging_margins.description"),
            partial(margins, found, t),
        )
    )
    return Section("label-averaging", t("section.averaging"), t("lead.averaging"), tuple(blocks))


def _said(found: Mapping[str, Any], t: Language) -> list[str]:
    agreement = found["validation"]
    best = max(range(len(agreement)), key=agreement.__getitem__)
    said = [
        t(
            "averaging.setting",
            samples=numbers.count(found["samples"]),
            decay=f"{found['weight_decay']:.2g}",
            round=best + 1,
            agreement=numbers.percent(agreement[best]),
            first=numbers.percent(agreement[0]),
            pll=numbers.percent(found["pll_validation"]),
        ),
        t("averaging.unknown")
        if found["noise"] is None
        else t("averaging.noise", share=numbers.percent(found["noise"])),
    ]
    weights = " : ".join(f"{weight:.2g}" for weight in found["choice"]["weights"])
    said.append(t("averaging.choice", k=found["choice"]["k"], weights=weights))
    return [*said, *found["notes"]]


def _names(found: Mapping[str, Any], t: Language) -> list[str]:
    """The rounds, and partial labels after them."""
    return [*(t("averaging.round", n=number + 1) for number in range(found["rounds"])), t("averaging.pll")]


def rounds_table(found: Mapping[str, Any], t: Language) -> Table:
    """How many training samples are right after each round, clean and noisy ones apart, and what validation says."""
    known = found["noise"] is not None
    columns = [Column(t("column.averaging_round")), Column(t("column.averaging_right"), True)]
    if known:
        columns += [Column(t("column.averaging_clean"), True), Column(t("column.averaging_noisy"), True)]
    columns.append(Column(t("column.averaging_validation"), True))
    values = [
        [*found[name], found[f"pll_{name}"]]
        for name in ("accuracy", *(("clean_accuracy", "noisy_accuracy") if known else ()), "validation")
    ]
    rows = tuple(
        (Cell(name), *(Cell(numbers.percent(column[row])) for column in values))
        for row, name in enumerate(_names(found, t))
    )
    note = t("note.averaging") if known else t("note.averaging_given")
    return Table(t("caption.averaging"), tuple(columns), rows, note)


def spectrum(found: Mapping[str, Any], t: Language) -> charts.Chart:
    """What each round keeps of the labels along each eigenvector, and where the labels' energy lies."""
    names = _names(found, t)[:-1]
    rows = [
        {"r": entry["rank"], "v": round(entry["filters"][number], 5), "n": name, "g": f"{entry['eigenvalue']:.3g}"}
        for entry in found["spectrum"]
        for number, name in enumerate(names)
    ]
    energy = [{"r": entry["rank"], "e": round(entry["energy"], 6)} for entry in found["spectrum"]]
    x = alt.X("r:Q", title=t("axis.rank")).scale(type="log", nice=False).axis(grid=False, format="d")
    y = alt.Y("v:Q", title=t("axis.kept")).scale(domain=[0, 1]).axis(format=".0%")
    colour = alt.Color("n:N", sort=names).scale(domain=names, range=group_colours(len(names)))
    dash = alt.StrokeDash("n:N", sort=names).scale(domain=names, range=group_dashes(len(names))).legend(None)
    tooltip = [
        alt.Tooltip("n:N", title=t("column.averaging_round")),
        alt.Tooltip("r:Q", title=t("axis.rank")),
        alt.Tooltip("g:N", title=t("axis.eigenvalue")),
        alt.Tooltip("v:Q", title=t("axis.kept"), format=".1%"),
    ]
    lines = (
        charts.named("rows").mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash, tooltip=tooltip)
    )
    bars = charts.named("energy").mark_rule(strokeWidth=3, color="#cbd2d9").encode(x=x, y=alt.Y("e:Q"))
    chart = alt.layer(bars, lines)
    return charts.finished(chart, 260, t("chart.averaging_spectrum.description"), rows=rows, energy=energy)


def _spectrum_table(found: Mapping[str, Any], t: Language) -> Table:
    entries = found["spectrum"]
    step = max(1, -(-len(entries) // _RANKS))
    columns = (
        Column(t("axis.rank"), True),
        Column(t("axis.eigenvalue"), True),
        Column(t("axis.energy"), True),
        *(Column(name, True) for name in _names(found, t)[:-1]),
    )
    rows = tuple(
        (
            Cell(numbers.count(entry["rank"])),
            Cell(f"{entry['eigenvalue']:.3g}"),
            Cell(numbers.percent(entry["energy"])),
            *(Cell(numbers.percent(value)) for value in entry["filters"]),
        )
        for entry in entries[::step]
    )
    return Table(t("caption.averaging_spectrum"), columns, rows)


def class_averages(found: Mapping[str, Any], classes: Sequence[str], t: Language) -> charts.Chart:
    """Mean output of the samples of each true class, after a round chosen from a list."""
    names = _names(found, t)
    tables = [*found["class_average"], found["pll_class_average"]]
    rows = [
        {"n": name, "y": truth, "p": output, "a": round(value, 4)}
        for name, table in zip(names, tables, strict=True)
        for truth, values in zip(classes, table, strict=True)
        for output, value in zip(classes, values, strict=True)
    ]
    labels = list(classes)
    which = alt.param(
        name="which_round",
        value=names[0],
        bind=alt.binding_select(options=names, name=t("column.averaging_round") + " "),
    )
    x = alt.X("p:N", sort=labels, title=t("axis.output")).axis(**charts._top_labels(labels))
    y = alt.Y("y:N", sort=labels, title=t("axis.true_class"))
    base = charts.named("rows").transform_filter("datum.n === which_round").encode(x=x, y=y)
    colour = alt.Color("a:Q").scale(scheme="cividis", domain=[0, 1], clamp=True)
    colour = colour.legend(title=t("axis.mean_output"), direction="horizontal")
    tooltip = [
        alt.Tooltip("y:N", title=t("axis.true_class")),
        alt.Tooltip("p:N", title=t("axis.output")),
        alt.Tooltip("a:Q", title=t("axis.mean_output"), format=".3f"),
    ]
    boxes = base.mark_rect(stroke="white").encode(color=colour, tooltip=tooltip)
    text = base.mark_text(fontSize=11, opacity=alt.ExprRef(f"width / {len(labels)} > 34 ? 1 : 0"))
    text = text.encode(
        text=alt.Text("a:Q", format=".2f"),
        color=alt.condition("datum.a > 0.5", alt.value("#111827"), alt.value("white")),
    )
    chart = alt.layer(boxes, text).add_params(which)
    height = max(150, 34 * len(labels))
    return charts.finished(chart, height, t("chart.averaging_classes.description"), rows=rows)


def _class_table(found: Mapping[str, Any], classes: Sequence[str], t: Language) -> Table:
    """The right class and the strongest wrong one in the mean output of each class."""
    shown = [(0, found["class_average"][0]), (found["rounds"] - 1, found["class_average"][-1])]
    shown.append((found["rounds"], found["pll_class_average"]))
    names = _names(found, t)
    columns = (Column(t("axis.true_class")), *(Column(names[number], True) for number, _ in shown))
    rows = []
    for index, name in enumerate(classes):
        cells = []
        for _, table in shown:
            others = [(value, other) for other, value in enumerate(table[index]) if other != index]
            wrong, other = max(others)
            cells.append(Cell(f"{table[index][index]:.2f}", f"{classes[other]} {wrong:.2f}"))
        rows.append((Cell(name), *cells))
    return Table(t("caption.averaging_classes"), columns, tuple(rows), t("note.averaging_classes"))


def margins(found: Mapping[str, Any], t: Language) -> charts.Chart:
    """How far training samples are on the right side, clean and noisy ones, after a round chosen from a list."""
    names = _names(found, t)
    edges = found["margins"]["edges"]
    middles = [round((low + high) / 2, 4) for low, high in pairwise(edges)]
    kinds = {"clean": t("averaging.clean")}
    if found["noise"] is not None:
        kinds["noisy"] = t("averaging.noisy")
    rows = []
    for kind, label in kinds.items():
        histograms = [*found["margins"][f"{kind}_histogram"], found["margins"][f"pll_{kind}_histogram"]]
        for name, counts in zip(names, histograms, strict=True):
            total = max(sum(counts), 1)
            rows += [
                {"n": name, "k": label, "x": middle, "v": round(count / total, 5)}
                for middle, count in zip(middles, counts, strict=True)
            ]
    labels = list(kinds.values())
    which = alt.param(
        name="which_margins",
        value=names[0],
        bind=alt.binding_select(options=names, name=t("column.averaging_round") + " "),
    )
    x = alt.X("x:Q", title=t("axis.margin"))
    y = alt.Y("v:Q", title=t("axis.share_of_samples")).axis(format=".0%")
    colour = alt.Color("k:N", sort=labels).scale(domain=labels, range=[BLUE, VERMILION][: len(labels)])
    dash = alt.StrokeDash("k:N", sort=labels).scale(domain=labels, range=group_dashes(len(labels))).legend(None)
    tooltip = [
        alt.Tooltip("k:N", title=t("axis.share_of_samples")),
        alt.Tooltip("x:Q", title=t("axis.margin"), format=".2f"),
        alt.Tooltip("v:Q", title=t("axis.share_of_samples"), format=".1%"),
    ]
    lines = charts.named("rows").transform_filter("datum.n === which_margins").mark_line(interpolate="step")
    lines = lines.encode(x=x, y=y, color=colour, strokeDash=dash, tooltip=tooltip)
    zero = charts.named("zero").mark_rule(color="#9aa5b1", strokeDash=[4, 3]).encode(x="x:Q")
    chart = alt.layer(zero, lines).add_params(which)
    return charts.finished(chart, 220, t("chart.averaging_margins.description"), rows=rows, zero=[{"x": 0}])
