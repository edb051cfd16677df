"""The charts of a report: pure functions from a summary to an Altair chart.

Each works alone (in a notebook, say); none touches Altair's global themes or renderers. Widths follow the container.
Data are thinned here, not in the page, so that a large pilot still makes a small file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from limbeck.report import numbers
from limbeck.report.language import Language
from limbeck.report.styles import BLUE, DARK, FONT, GREY, VERMILION, group_colours, group_dashes, model_styles
from limbeck.report.summary import Estimate, Model, Summary

MAX_EPOCHS = 80
"""Points kept along one training curve."""
MAX_GROUP_LINES = 8
"""Groups drawn in one chart over epochs: more cannot be told apart."""
MAX_DOTS = 160
"""Dots in the plot of group accuracy: with many groups fewer models are drawn beside each other, at least four."""
MAX_CONFUSION_CLASSES = 12
"""Classes of a confusion matrix; the best recognised of the others are taken together."""
MAX_CONFUSION_ROWS = 6000
"""Cells the confusion chart carries; beyond that only the leading models and worst groups are offered."""

# `alt.layer` is declared to return a facet too, which it does only for facets.
Chart = alt.Chart | alt.LayerChart | alt.FacetChart

_INK, _MUTED, _GRID = "#1f2933", "#52606d", "#e4e7eb"
_CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": "white",
    "padding": {"left": 4, "top": 4, "right": 8, "bottom": 4},
    "view": {"stroke": None},
    "axis": {
        "labelColor": _INK,
        "titleColor": _MUTED,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 500,
        "titlePadding": 8,
        "domainColor": "#9aa5b1",
        "tickColor": "#9aa5b1",
        "gridColor": _GRID,
        "labelLimit": 220,
        "labelOverlap": True,
        "labelSeparation": 8,
    },
    "legend": {
        "orient": "bottom",
        "direction": "horizontal",
        "title": None,
        "labelColor": _INK,
        "labelFontSize": 12,
        "labelLimit": 240,
        "columns": 4,
        "gradientLength": 220,
        "symbolOpacity": 1,
        "symbolStrokeWidth": 1.5,
        "rowPadding": 4,
        "columnPadding": 16,
        "padding": 6,
    },
    # One description for the chart is read out; hundreds of single marks would only be noise.
    "mark": {"aria": False},
}

CURVE_COLOURS, CURVE_DASHES = [BLUE, VERMILION], [[1, 0], [6, 3]]
_PANEL_AXIS = 40
"""Pixels kept for the y labels of a panel, so that the panels under each other line up."""

_NARROW = "containerSize()[0] < 560"
_NARROW_LABEL, _WIDE_LABEL = 18, 34
"""Letters on a line of a row's name, in a narrow and in a wide container."""
_LABEL_LINES, _LINE_HEIGHT = 3, 13


def scatter(summary: Summary, t: Language) -> Chart:
    """Average against worst-group test accuracy: every seed, the mean, the teacher and the plain student named."""
    styles = model_styles(summary)
    shown = [model for model in summary.models if model.average.mean is not None and model.worst.mean is not None]
    seeds: list[dict[str, Any]] = [
        {"m": model.label, "x": rounded(x), "y": rounded(y), "s": str(run.seed)}
        for model in shown
        for run, x, y in zip(model.runs, model.average.values, model.worst.values, strict=True)
        if x is not None and y is not None
    ]
    means: list[dict[str, Any]] = [
        {
            "m": model.label,
            "x": rounded(model.average.mean),
            "y": rounded(model.worst.mean),
            **_reach(summary, model),
            "t": _summary_line(model.worst),
            "name": model.label if model in summary.key_models else "",
        }
        for model in shown
    ]
    front = [{"x": rounded(model.average.mean), "y": rounded(model.worst.mean)} for model in summary.front]
    across = _span([row[name] for row in (*seeds, *means) for name in ("x", "a", "b") if name in row])
    upwards = _span([row[name] for row in (*seeds, *means) for name in ("y", "l", "h") if name in row])
    low = _label_below(means, across[1] - across[0], upwards[1] - upwards[0])
    below, above = [row for row in means if row["m"] in low], [row for row in means if row["m"] not in low]
    labels = [model.label for model in shown]
    colour = alt.Color("m:N").scale(domain=labels, range=[styles[model.key].colour for model in shown])
    shape = alt.Shape("m:N").scale(domain=labels, range=[styles[model.key].shape for model in shown])
    pick = alt.selection_point(name="picked", fields=["m"], bind="legend")
    opacity = alt.condition(pick, alt.value(1), alt.value(0.12))
    x = alt.X("x:Q", title=t("axis.average")).scale(domain=across, nice=False).axis(format=".0%", tickCount=6)
    y = alt.Y("y:Q", title=t("axis.worst_group")).scale(domain=upwards, nice=False).axis(format=".0%")
    model_tip = alt.Tooltip("m:N", title=t("column.model"))
    average_tip = alt.Tooltip("x:Q", title=t("axis.average"), format=".1%")
    worst_tip = alt.Tooltip("y:Q", title=t("axis.worst_group"), format=".1%")
    bars = named("means").mark_rule(strokeWidth=1.5, opacity=0.55)
    bars = bars.encode(x=x, y=alt.Y("l:Q", title=t("axis.worst_group")), y2="h:Q", color=colour, opacity=opacity)
    sides = named("means").mark_rule(strokeWidth=1.5, opacity=0.55)
    sides = sides.encode(x=alt.X("a:Q", title=t("axis.average")), x2="b:Q", y=y, color=colour, opacity=opacity)
    dots = named("seeds").mark_point(size=45, filled=True, opacity=0.45)
    dots = dots.encode(
        x=x,
        y=y,
        color=colour,
        shape=shape,
        opacity=alt.condition(pick, alt.value(0.45), alt.value(0.06)),
        tooltip=[model_tip, alt.Tooltip("s:N", title=t("column.seed")), average_tip, worst_tip],
    )
    big = named("means").mark_point(size=150, filled=True, stroke=DARK, strokeWidth=1)
    big = big.encode(
        x=x,
        y=y,
        color=colour,
        shape=shape,
        opacity=opacity,
        tooltip=[model_tip, average_tip, worst_tip, alt.Tooltip("t:N", title=t("column.mean_over_seeds"))],
    ).add_params(pick)
    names = []
    for side, dy in [("above", -17), ("below", 18)][: 2 if below else 1]:
        text = named(side).encode(x=x, y=y)
        # White behind the letters keeps a name readable over rules; a narrow chart has the legend only.
        name = alt.ExprRef("containerSize()[0] > 520 ? datum.name : ''")
        style: dict[str, Any] = {"text": name, "dy": dy, "fontSize": 12, "fontWeight": 600, "limit": 190}
        names += [
            text.mark_text(**style, stroke="white", strokeWidth=4, color="white"),
            text.mark_text(**style, color=DARK),
        ]
    # From one member to the next the best worst group falls at once: what lies right of or above the steps is reached
    # by no small model.
    steps = named("front").mark_line(interpolate="step-before", strokeWidth=1.5, strokeDash=[5, 3], color=_MUTED)
    rings = named("front").mark_point(shape="circle", size=430, filled=False, strokeWidth=1.5, color=_MUTED)
    layers = alt.layer(steps.encode(x=x, y=y), rings.encode(x=x, y=y), bars, sides, *names, dots, big)
    description = t("chart.scatter.description", models=len(shown))
    return finished(layers, 380, description, seeds=seeds, means=means, above=above, below=below, front=front)


def _reach(summary: Summary, model: Model) -> dict[str, float | None]:
    """The ends of a model's intervals: over seeds and test samples where that was measured, else over test samples."""
    found = summary.standing(model)
    if found is None:
        worst, average = (model.worst.low, model.worst.high), (model.average.low, model.average.high)
    else:
        worst = (found["worst_low"], found["worst_high"])
        average = (found["average_low"], found["average_high"])
    ends = zip("lhab", (*worst, *average), strict=True)
    return {name: rounded(value) for name, value in ends}


def _span(values: Sequence[float | None]) -> list[float]:
    """The ends of an axis of rates: all values with a little air around them, never beyond 0 and 1."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    air = max(0.06 * (high - low), 0.005)
    return [round(max(low - air, 0.0), 4), round(min(high + air, 1.0), 4)]


def _label_below(means: Sequence[dict[str, Any]], across: float, upwards: float) -> set[str]:
    """The named models whose name goes under their point, because another named point is close by."""
    named = sorted((row for row in means if row["name"]), key=lambda row: -row["y"])
    below: set[str] = set()
    for position, row in enumerate(named):
        near = [
            one
            for one in named[:position]
            if abs(one["x"] - row["x"]) < 0.2 * across and abs(one["y"] - row["y"]) < 0.1 * upwards
        ]
        # Those named before it lie higher: their names are above it.
        if near:
            below.add(row["m"])
    return below


def heat_map(summary: Summary, t: Language) -> Chart:
    """Mean test accuracy, models × groups, the worst group of each model framed."""
    cells, empty = [], []
    for model in summary.models:
        for group, estimate in enumerate(model.groups):
            cell: dict[str, Any] = {"m": model.label, "g": group_label(summary, group), "n": summary.test_count(group)}
            if estimate.mean is None:
                empty.append(cell)
            else:
                worst = int(summary.groups[group] == model.worst_name)
                cells.append({**cell, "a": rounded(estimate.mean), "w": worst, "t": _summary_line(estimate)})
    lowest = min((cell["a"] for cell in cells), default=0.0)
    labels = [model.label for model in summary.models]
    x = alt.X("m:N", sort=labels, title=None).axis(**_top_labels(labels))
    y = alt.Y("g:N", sort=_group_labels(summary), title=None)
    y = y.axis(labelOverlap=False, **row_labels(_group_labels(summary)))
    tooltip = [
        alt.Tooltip("m:N", title=t("column.model")),
        alt.Tooltip("g:N", title=t("column.group")),
        alt.Tooltip("t:N", title=t("column.accuracy")),
        alt.Tooltip("n:Q", title=t("column.test_samples"), format=","),
    ]
    colour = alt.Color("a:Q", title=t("column.accuracy"))
    colour = colour.scale(scheme="cividis", domain=[lowest, 1]).legend(
        title=t("column.accuracy"), format=".0%", orient="bottom", direction="horizontal"
    )
    base = named("cells").encode(x=x, y=y)
    boxes = base.mark_rect(stroke="white", strokeWidth=1).encode(color=colour, tooltip=tooltip)
    frames = base.transform_filter("datum.w === 1").mark_rect(fillOpacity=0, stroke=VERMILION, strokeWidth=3)
    # Numbers are drawn only where a cell is wide enough to hold them; the table has them all.
    fits = f"width / {max(len(labels), 1)} > 34 ? 1 : 0"
    light = alt.condition(f"datum.a > {(lowest + 1) / 2:.4f}", alt.value("#111827"), alt.value("white"))
    text = base.mark_text(fontSize=12, opacity=alt.ExprRef(fits)).encode(
        text=alt.Text("a:Q", format=".0%"), color=light
    )
    layers = [boxes, frames, text]
    if empty:
        layers.append(named("empty").mark_text(text=numbers.NOTHING, color=_MUTED).encode(x=x, y=y))
    row = max(32 if len(summary.groups) <= 12 else 28, label_height(_group_labels(summary)))
    height = max(120, row * len(summary.groups))
    chart = alt.layer(*layers)
    return finished(chart, height, t("chart.heat_map.description"), cells=cells, empty=empty)


def group_accuracy(summary: Summary, t: Language) -> Chart:
    """Test accuracy of each group with its 95 % interval, the leading models beside each other."""
    models = dot_models(summary)
    styles = model_styles(summary)
    rows = [
        {
            "m": model.label,
            "g": group_label(summary, group),
            "a": rounded(estimate.mean),
            "l": rounded(estimate.low),
            "h": rounded(estimate.high),
            "n": summary.test_count(group),
            "t": _summary_line(estimate),
        }
        for model in models
        for group, estimate in enumerate(model.groups)
        if estimate.mean is not None
    ]
    labels = [model.label for model in models]
    colour = alt.Color("m:N").scale(domain=labels, range=[styles[model.key].colour for model in models])
    shape = alt.Shape("m:N").scale(domain=labels, range=[styles[model.key].shape for model in models])
    pick = alt.selection_point(name="picked", fields=["m"], bind="legend")
    opacity = alt.condition(pick, alt.value(1), alt.value(0.1))
    y = alt.Y("g:N", sort=_group_labels(summary), title=None)
    y = y.axis(labelOverlap=False, grid=True, tickBand="extent", **row_labels(_group_labels(summary)))
    offset = alt.YOffset("m:N", sort=labels).scale(paddingOuter=0.3)
    base = named("rows").encode(y=y, yOffset=offset)
    limits = (estimate.low for model in models for estimate in model.groups if estimate.low is not None)
    lowest = _floor(min(limits, default=0.0))
    x = alt.X("a:Q", title=t("axis.accuracy")).axis(format=".0%", tickCount=6).scale(domain=[lowest, 1], nice=False)
    bars = base.mark_rule(strokeWidth=2)
    bars = bars.encode(x=alt.X("l:Q").scale(domain=[lowest, 1], nice=False), x2="h:Q", color=colour, opacity=opacity)
    dots = base.mark_point(size=64, filled=True, opacity=1, stroke=DARK, strokeWidth=0.7).encode(
        x=x,
        color=colour,
        shape=shape,
        opacity=opacity,
        tooltip=[
            alt.Tooltip("m:N", title=t("column.model")),
            alt.Tooltip("g:N", title=t("column.group")),
            alt.Tooltip("t:N", title=t("column.accuracy")),
            alt.Tooltip("n:Q", title=t("column.test_samples"), format=","),
        ],
    )
    height = len(summary.groups) * max(11 * len(models) + 12, label_height(_group_labels(summary)))
    chart = alt.layer(bars, dots.add_params(pick))
    return finished(chart, height, t("chart.group_accuracy.description", models=t.join(labels)), rows=rows)


def accuracy_curves(summary: Summary, model: Model, t: Language, *, legend: bool = True) -> Chart:
    """Validation average and worst group of one model over epochs: seeds thin, their mean thick, selections marked."""
    names = curve_kinds(summary, t)
    kinds = list(names.values())
    epochs = curve_epochs(model)
    means = [
        {"e": epoch, "v": rounded(value), "k": kind}
        for field, kind in names.items()
        for epoch, value in model.curves[field].items()
        if epoch in epochs
    ]
    single = [
        {"e": epoch, "v": rounded(value), "k": kind, "s": str(run.seed)}
        for field, kind in names.items()
        for run in model.runs
        for epoch, value in run.curves[field].items()
        if epoch in epochs
    ]
    selected = [
        {"e": epoch, "v": rounded(value), "k": kind, "s": str(run.seed)}
        for field, kind in names.items()
        for run in model.runs
        for epoch, value in run.curves[field].items()
        if epoch == run.selected_epoch
    ]
    # Without a legend this is the upper of two panels, and the lower one names the axis.
    x = _epoch_axis(t, epochs) if legend else _epoch_axis(t, epochs).title(None)
    y = alt.Y("v:Q", title=t("axis.accuracy")).axis(format=".0%", tickCount=5, minExtent=_PANEL_AXIS)
    y = y.scale(domain=_accuracy_domain(summary))
    colour = alt.Color("k:N", legend=_line_legend(legend)).scale(domain=kinds, range=CURVE_COLOURS[: len(kinds)])
    dash = alt.StrokeDash("k:N", legend=_line_legend(legend)).scale(domain=kinds, range=CURVE_DASHES[: len(kinds)])
    tooltip = [
        alt.Tooltip("k:N", title=t("column.quantity")),
        alt.Tooltip("e:Q", title=t("axis.epoch")),
        alt.Tooltip("v:Q", title=t("column.accuracy"), format=".1%"),
    ]
    seed_tip = alt.Tooltip("s:N", title=t("column.seed"))
    thin = named("single").mark_line(strokeWidth=1, opacity=0.35).encode(x=x, y=y, color=colour, detail="s:N")
    thick = named("means").mark_line(strokeWidth=2.5)
    thick = thick.encode(x=x, y=y, color=colour, strokeDash=dash, tooltip=tooltip)
    points = named("selected").mark_point(shape="diamond", size=80, filled=True, opacity=1, stroke="white")
    points = points.encode(x=x, y=y, color=colour, tooltip=[*tooltip, seed_tip])
    description = t("chart.accuracy_curves.description", model=model.label)
    return finished(alt.layer(thin, thick, points), 170, description, single=single, means=means, selected=selected)


def loss_curve(model: Model, t: Language) -> Chart:
    """Training loss of one model over epochs: seeds thin, their mean thick."""
    epochs = curve_epochs(model)
    single = [
        {"e": epoch, "v": rounded(value), "s": str(run.seed)}
        for run in model.runs
        for epoch, value in run.curves["loss"].items()
        if epoch in epochs
    ]
    means = [{"e": epoch, "v": rounded(value)} for epoch, value in model.curves["loss"].items() if epoch in epochs]
    x = _epoch_axis(t, epochs)
    y = alt.Y("v:Q", title=t("axis.loss")).scale(zero=False).axis(tickCount=4, minExtent=_PANEL_AXIS)
    thin = named("single").mark_line(strokeWidth=1, opacity=0.4, color=GREY).encode(x=x, y=y, detail="s:N")
    thick = named("means").mark_line(strokeWidth=2.5, color=DARK)
    thick = thick.encode(
        x=x,
        y=y,
        tooltip=[
            alt.Tooltip("e:Q", title=t("axis.epoch")),
            alt.Tooltip("v:Q", title=t("axis.loss"), format=".4f"),
        ],
    )
    description = t("chart.loss_curve.description", model=model.label)
    return finished(alt.layer(thin, thick), 90, description, single=single, means=means)


def group_curves(summary: Summary, model: Model, field: str, t: Language, *, legend: bool = True) -> Chart:
    """A quantity of each group over epochs, mean over seeds: `group_weights` or `group_losses`.

    With many groups, those with the largest values over all models are drawn, the same in every panel.
    """
    shown = tracked_groups(summary, field)
    epochs = curve_epochs(model)
    rows = [
        {"e": epoch, "v": rounded(values[group]), "g": summary.groups[group]}
        for epoch, values in model.curves[field].items()
        if epoch in epochs
        for group in shown
        if values[group] is not None
    ]
    names = [summary.groups[group] for group in shown]
    y = alt.Y("v:Q", title=t(f"axis.{field}")).axis(tickCount=5, minExtent=_PANEL_AXIS)
    # The same weights range in every panel; losses of different recipes are on different scales.
    y = y.scale(domain=[0, _highest(summary, field)]) if field == "group_weights" else y.scale(zero=True)
    chart = named("rows").mark_line(strokeWidth=2, point={"size": 14, "filled": True})
    chart = chart.encode(
        x=_epoch_axis(t, epochs),
        y=y,
        color=alt.Color("g:N", legend=_line_legend(legend)).scale(domain=names, range=group_colours(len(names))),
        strokeDash=alt.StrokeDash("g:N", legend=_line_legend(legend)).scale(
            domain=names, range=group_dashes(len(names))
        ),
        tooltip=[
            alt.Tooltip("g:N", title=t("column.group")),
            alt.Tooltip("e:Q", title=t("axis.epoch")),
            alt.Tooltip("v:Q", title=t(f"axis.{field}"), format=".4f"),
        ],
    )
    return finished(chart, 180, t(f"chart.{field}.description", model=model.label), rows=rows)


def confusion(summary: Summary, t: Language) -> Chart:
    """Which class is taken for which: one matrix, its model and group chosen by two lists under it."""
    everyone = t("group.all")
    rows: list[dict[str, Any]] = []
    for model in _confusion_models(summary):
        for group in _confusion_groups(summary, model):
            name = everyone if group is None else summary.groups[group]
            labels, table = pooled_confusion(summary, model, group, t)
            for truth, cells in zip(labels, table, strict=True):
                total = sum(cells)
                rows += [
                    {"m": model.label, "g": name, "y": truth, "p": predicted, "n": n, "a": rounded(n / total)}
                    for predicted, n in zip(labels, cells, strict=True)
                    if total
                ]
    first = summary.best or summary.plain
    chosen = first.label if first is not None and any(row["m"] == first.label for row in rows) else rows[0]["m"]
    names = sorted({row["g"] for row in rows} - {everyone}, key=[*summary.groups].index)
    models = [model.label for model in summary.models if any(row["m"] == model.label for row in rows)]
    pick_model = alt.binding_select(options=models, name=t("column.model") + " ")
    pick_group = alt.binding_select(options=[everyone, *names], name=t("column.group") + " ")
    which_model = alt.param(name="which_model", value=chosen, bind=pick_model)
    which_group = alt.param(name="which_group", value=everyone, bind=pick_group)
    labels = pooled_confusion(summary, first or summary.models[0], None, t)[0]
    x = alt.X("p:N", sort=labels, title=t("axis.predicted")).axis(**_top_labels(labels))
    y = alt.Y("y:N", sort=labels, title=t("axis.true_class"))
    base = named("rows").transform_filter("datum.m === which_model && datum.g === which_group").encode(x=x, y=y)
    colour = alt.Color("a:Q").scale(scheme="cividis", domain=[0, 1])
    colour = colour.legend(title=t("axis.share_of_true"), format=".0%", direction="horizontal")
    tooltip = [
        alt.Tooltip("y:N", title=t("axis.true_class")),
        alt.Tooltip("p:N", title=t("axis.predicted")),
        alt.Tooltip("a:Q", title=t("axis.share_of_true"), format=".1%"),
        alt.Tooltip("n:Q", title=t("column.test_samples_all_seeds"), format=","),
    ]
    boxes = base.mark_rect(stroke="white").encode(color=colour, tooltip=tooltip)
    text = base.mark_text(fontSize=12, opacity=alt.ExprRef(f"width / {len(labels)} > 38 ? 1 : 0"))
    text = text.encode(
        text=alt.Text("a:Q", format=".0%"),
        color=alt.condition("datum.a > 0.5", alt.value("#111827"), alt.value("white")),
    )
    chart = alt.layer(boxes, text).add_params(which_model, which_group)
    return finished(chart, max(150, 34 * len(labels)), t("chart.confusion.description"), rows=rows)


def calibration(summary: Summary, t: Language) -> Chart:
    """Expected calibration error of each model: every seed and the mean."""
    styles = model_styles(summary)
    models = [model for model in summary.models if model.calibration.mean is not None]
    labels = [model.label for model in models]
    seeds = [
        {"m": model.label, "v": rounded(value)}
        for model in models
        for value in model.calibration.values
        if value is not None
    ]
    means = [{"m": model.label, "v": rounded(model.calibration.mean)} for model in models]
    y = alt.Y("m:N", sort=labels, title=None).axis(labelOverlap=False, grid=True)
    x = alt.X("v:Q", title=t("axis.calibration_error")).scale(zero=True).axis(format=".1%", tickCount=5)
    colour = alt.Color("m:N", legend=None).scale(domain=labels, range=[styles[model.key].colour for model in models])
    shape = alt.Shape("m:N", legend=None).scale(domain=labels, range=[styles[model.key].shape for model in models])
    ticks = named("seeds").mark_tick(thickness=2, opacity=0.5).encode(x=x, y=y, color=colour)
    dots = (
        named("means")
        .mark_point(size=110, filled=True, opacity=1, stroke=DARK, strokeWidth=1)
        .encode(
            x=x,
            y=y,
            color=colour,
            shape=shape,
            tooltip=[
                alt.Tooltip("m:N", title=t("column.model")),
                alt.Tooltip("v:Q", title=t("axis.calibration_error"), format=".2%"),
            ],
        )
    )
    height = max(90, 26 * len(models))
    return finished(alt.layer(ticks, dots), height, t("chart.calibration.description"), seeds=seeds, means=means)


# What charts and their tables share: which epochs, groups and classes are kept.


def curve_epochs(model: Model, limit: int = MAX_EPOCHS) -> list[int]:
    """The epochs of a model to show: the first, the last and the selected ones, and an even choice between."""
    epochs = sorted({int(entry["epoch"]) for run in model.runs for entry in run.history})
    if len(epochs) <= limit:
        return epochs
    step = (len(epochs) - 1) / (limit - 1)
    kept = {epochs[round(position * step)] for position in range(limit)}
    return sorted(kept | {run.selected_epoch for run in model.runs if run.selected_epoch is not None})


def tracked_groups(summary: Summary, field: str, limit: int = MAX_GROUP_LINES) -> list[int]:
    """The groups drawn over epochs: all where they are few, else those that reach the largest values in any model."""
    if len(summary.groups) <= limit:
        return list(range(len(summary.groups)))
    peaks = [0.0] * len(summary.groups)
    for model in summary.models:
        for values in model.curves[field].values():
            peaks = [max(peak, value or 0.0) for peak, value in zip(peaks, values, strict=True)]
    return sorted(sorted(range(len(peaks)), key=lambda group: -peaks[group])[:limit])


def pooled_confusion(
    summary: Summary, model: Model, group: int | None, t: Language, limit: int = MAX_CONFUSION_CLASSES
) -> tuple[list[str], list[list[int]]]:
    """A confusion matrix of at most `limit` classes: with more, those with most errors of all models, the rest as one.

    Returns:
        Class names, and counts by true class (rows) and predicted class; empty where nothing was recorded.
    """
    table = model.confusion(group)
    classes = list(summary.classes)
    if not table or len(classes) <= limit:
        return classes, table
    errors = [0] * len(classes)
    for one in summary.models:
        for truth, cells in enumerate(one.confusion()):
            errors[truth] += sum(cells) - cells[truth]
    kept = sorted(sorted(range(len(classes)), key=lambda label: -errors[label])[: limit - 1])
    place = {label: position for position, label in enumerate(kept)}
    pooled = [[0] * limit for _ in range(limit)]
    for truth, cells in enumerate(table):
        for predicted, n in enumerate(cells):
            pooled[place.get(truth, limit - 1)][place.get(predicted, limit - 1)] += n
    return [*(classes[label] for label in kept), t("class.others", n=len(classes) - len(kept))], pooled


def curve_kinds(summary: Summary, t: Language) -> dict[str, str]:
    """The validation metrics drawn over epochs, by the name the history has for them."""
    names = {"validation_average": t("axis.average")}
    return names | ({"validation_worst_group": t("axis.worst_group")} if summary.groups else {})


def dot_models(summary: Summary) -> tuple[Model, ...]:
    """The models drawn beside each other in the plot of group accuracy."""
    return summary.leading(min(6, max(4, MAX_DOTS // max(len(summary.groups), 1))))


def has_confusion(summary: Summary) -> bool:
    """Whether any model recorded which class it took for which."""
    return any(any(map(any, model.confusion())) for model in summary.models)


def _confusion_models(summary: Summary) -> Sequence[Model]:
    return [model for model in summary.models if any(map(any, model.confusion()))]


def _confusion_groups(summary: Summary, model: Model) -> list[int | None]:
    """All groups where the file stays small, else only the worst groups of the leading models."""
    size = min(len(summary.classes), MAX_CONFUSION_CLASSES) ** 2
    if size * (len(summary.groups) + 1) * len(summary.models) <= MAX_CONFUSION_ROWS:
        return [None, *(group for group in range(len(summary.groups)) if any(map(any, model.confusion(group))))]
    room = MAX_CONFUSION_ROWS // (size * len(summary.models)) - 1
    leader = summary.best or summary.plain or summary.models[0]
    rates = [estimate.mean for estimate in leader.groups]
    ranked = sorted((rate, group) for group, rate in enumerate(rates) if rate is not None)
    return [None, *sorted(group for _, group in ranked[: max(room, 0)] if any(map(any, model.confusion(group))))]


def _highest(summary: Summary, field: str) -> float:
    values = [
        value
        for model in summary.models
        for group_values in model.curves[field].values()
        for value in group_values
        if value is not None
    ]
    return min(1.0, int(max(values, default=1.0) * 20 + 1) / 20)


def _line_legend(shown: bool) -> alt.Legend | None:
    return alt.Legend(symbolType="stroke", symbolSize=400, symbolStrokeWidth=2.5) if shown else None


def _accuracy_domain(summary: Summary) -> list[float]:
    """The same range in every panel, so that panels can be compared."""
    values = [
        value
        for model in summary.models
        for run in model.runs
        for field in ("validation_average", "validation_worst_group")
        for value in run.curves[field].values()
    ]
    return [_floor(min(values, default=0.0)), 1.0]


def _floor(value: float) -> float:
    return max(0.0, int(value * 20) / 20)


def _epoch_axis(t: Language, epochs: Sequence[int]) -> alt.X:
    """Ticks at whole epochs only, at round numbers, at most about seven."""
    first, last = (epochs[0], epochs[-1]) if epochs else (0, 1)
    step = next(size * 10**power for power in range(9) for size in (1, 2, 5) if size * 10**power * 7 >= last - first)
    ticks = [epoch for epoch in range(first, last + 1) if epoch % step == 0 or (epoch == first and first == last)]
    axis = alt.X("e:Q", title=t("axis.epoch")).axis(values=ticks, grid=False, format="d")
    return axis.scale(nice=False, zero=False)


def row_labels(names: Sequence[str]) -> dict[str, Any]:
    """The axis of rows whose names are broken into lines, not cut off: groups often differ in their last words."""
    narrow, wide = (_broken(names, width) for width in (_NARROW_LABEL, _WIDE_LABEL))
    lines = [max((len(one) for one in found.values()), default=1) for found in (narrow, wide)]
    if max(lines) == 1:
        return {}
    # Lines follow the first one downwards: all names have as many, and the first begins higher up.
    found = [json.dumps({name: _centred(one, n) for name, one in f.items()}) for f, n in zip((narrow, wide), lines)]
    offsets = [-_LINE_HEIGHT / 2 * (n - 1) for n in lines]
    return {
        "labelExpr": f"{_NARROW} ? {found[0]}[datum.label] : {found[1]}[datum.label]",
        "labelLineHeight": _LINE_HEIGHT,
        "labelOffset": alt.ExprRef(f"{_NARROW} ? {offsets[0]} : {offsets[1]}"),
    }


def label_height(names: Sequence[str]) -> int:
    """Pixels that the lines of the longest of these names take, a little air included."""
    return _LINE_HEIGHT * max((len(one) for one in _broken(names, _NARROW_LABEL).values()), default=1) + 5


def _broken(names: Sequence[str], width: int) -> dict[str, list[str]]:
    return {name: broken(name, width) for name in names}


def _centred(lines: list[str], count: int) -> list[str]:
    above = (count - len(lines)) // 2
    return [""] * above + lines + [""] * (count - len(lines) - above)


def broken(name: str, width: int, most: int = _LABEL_LINES) -> list[str]:
    """A name in a few lines of a width in letters (an ideograph counts as two), cut off with … only at their end."""
    lines = [""]
    for word in name.split(" "):
        joined = f"{lines[-1]} {word}".strip()
        if _letters(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if _letters(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], lines[most - 1][: width - 1] + "…"]


def _letters(text: str) -> int:
    return sum(2 if letter > "\u2e80" else 1 for letter in text)


def _top_labels(labels: Sequence[str]) -> dict[str, Any]:
    """Column names of a matrix: a word a line where the columns are wide enough for it, else upright."""
    words = [word for label in labels for word in label.split(" ")]
    # About seven pixels a letter, twelve an ideograph.
    longest = max((sum(12 if character > "\u2e80" else 7 for character in word) for word in words), default=0)
    lines = max((len(label.split(" ")) for label in labels), default=1)
    flat = f"containerSize()[0] * 0.72 / {max(len(labels), 1)} > {longest if lines <= 4 else 9999}"
    return {
        "orient": "top",
        "labelExpr": f"{flat} ? split(datum.label, ' ') : datum.label",
        "labelAngle": alt.ExprRef(f"{flat} ? 0 : -90"),
        "labelAlign": alt.ExprRef(f"{flat} ? 'center' : 'left'"),
        "labelBaseline": alt.ExprRef(f"{flat} ? 'bottom' : 'middle'"),
        "labelLineHeight": 13,
        # Lines follow the first one downwards, towards the plot.
        "labelPadding": alt.ExprRef(f"{flat} ? {4 + 13 * (lines - 1)} : 4"),
        "labelLimit": 170,
        "labelOverlap": False,
    }


def group_label(summary: Summary, group: int) -> str:
    return summary.groups[group] + (" †" if summary.is_small(group) else "")


def _group_labels(summary: Summary) -> list[str]:
    return [group_label(summary, group) for group in range(len(summary.groups))]


def _summary_line(estimate: Estimate) -> str:
    parts = [numbers.percent(estimate.mean), numbers.spread(estimate.spread)]
    interval = numbers.percent_interval(estimate.low, estimate.high)
    return " ".join(part for part in (*parts, f"({interval})" if interval else "") if part)


def rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 5)


def named(rows: str) -> alt.Chart:
    """A chart of the rows that `_finish` gets under this name."""
    return alt.Chart(alt.NamedData(name=rows))


def finished(chart: Chart, height: int, description: str, **rows: Sequence[dict[str, Any]]) -> Chart:
    """The chart with its looks and its data, which come last: Altair copies and checks all that is there before."""
    finished: Chart = chart.properties(width="container", height=height, description=description)
    finished.config = _CONFIG
    finished.datasets = {name: list(values) for name, values in rows.items()}
    return finished
