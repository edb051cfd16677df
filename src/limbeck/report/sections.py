"""The chapters of a report, in their order: each a function of the summary; a chapter with nothing to say is left out.

A new chapter is a function here and its name in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import yaml

from limbeck.report import charts, numbers
from limbeck.report.blocks import (
    Block,
    Card,
    Cell,
    Chart,
    Code,
    Column,
    Facts,
    Folded,
    Line,
    Panels,
    Section,
    Table,
    Text,
)
from limbeck.report.language import Language
from limbeck.report.styles import DARK, group_colours, group_dashes
from limbeck.report.summary import Comparison, Estimate, Model, Summary

MAX_TABLE_EPOCHS = 20
"""Rows of a table over epochs: the charts and the JSON hold the rest."""
WORSE_BY = 0.01
"""A group is named as worse off where its accuracy falls by more than this."""

_MARKS = {"better": "▲", "worse": "▼", "same": "≈", "unknown": "?"}
_RATES = ("average", "average_training_weighted", "worst_group", "group", "gap")


def sections(summary: Summary, t: Language) -> tuple[Section, ...]:
    """All chapters that have something to say."""
    built = (build(summary, t) for build in SECTIONS)
    return tuple(section for section in built if section is not None)


def cards(summary: Summary, t: Language) -> tuple[Card, ...]:
    """The models the decision is about, each with its worst group, average and cost."""
    parts = (
        ("best", summary.best),
        ("plain", summary.plain),
        ("without_teacher", summary.best_without_teacher),
        ("teacher", summary.teacher),
    )
    return tuple(_card(summary, part, model, t) for part, model in parts if model is not None)


def tone(summary: Summary) -> str:
    """Whether the best distilled student was `better`, `worse` or the `same` as the plain one in what decides."""
    entry = summary.compare(summary.best, summary.plain, summary.metric) if summary.best else None
    return entry.tone if entry is not None and entry.verdict else "same"


def headline(summary: Summary, t: Language) -> str:
    """The first line: the result's own verdict, or in another language than its own a sentence of the same numbers."""
    best, plain = summary.best, summary.plain
    entry = summary.compare(best, plain, summary.metric) if best is not None else None
    if t.code == "en" or best is None or entry is None or entry.tone not in ("better", "worse", "same"):
        return summary.verdict
    return t(
        f"headline.{entry.tone}",
        model=best.label,
        place=t(f"place.{summary.metric}"),
        value=numbers.percent(entry.value),
        reference=numbers.percent(entry.reference),
        difference=numbers.points(entry.difference),
        interval=numbers.points_interval(entry.low, entry.high) or numbers.NOTHING,
        seeds=len(best.runs),
    )


# --------------------------------------------------------------------------------------------------- the chapters


def plain_words(summary: Summary, t: Language) -> Section | None:
    """What it is, what it does, what it gains and who is worse off: sentences made of measured numbers only."""
    best, plain, teacher = summary.best, summary.plain, summary.teacher
    shown = best or plain
    if shown is None or shown.average.mean is None:
        return None
    sentences = [_what_it_is(shown, teacher, t), _how_good(summary, shown, t)]
    if best is not None and plain is not None:
        sentences.append(_against_plain(summary, best, plain, t))
    other = summary.best_without_teacher
    if best is not None and other is not None:
        sentences.append(_against_other(summary, best, other, t))
    if summary.groups and teacher is not None:
        sentences.append(_worse_off(summary, shown, teacher, t("than.teacher", model=teacher.label), t))
    if summary.groups and best is not None and plain is not None:
        sentences.append(_worse_off(summary, best, plain, t("than.plain", model=plain.label), t))
    return Section(
        "plain-words", t("section.plain_words"), t("lead.plain_words"), (Text(tuple(sentences), points=True),)
    )


def results(summary: Summary, t: Language) -> Section | None:
    """One row a model."""
    rows = [_result_row(summary, model, t) for model in summary.models]
    if not rows:
        return None
    columns = tuple(Column(t(f"column.{name}"), numeric) for name, numeric, _ in rows[0])
    cells = tuple(tuple(cell for _, _, cell in row) for row in rows)
    note = t("note.results", seeds=len(summary.seeds))
    table = Table(t("caption.results", models=len(rows)), columns, cells, note)
    lead = t("lead.results") if summary.groups else t("lead.results_no_groups")
    return Section("results", t("section.results"), lead, (table,))


def group_table(summary: Summary, t: Language) -> Section | None:
    """Accuracy of each group under each model, and how many samples it rests on."""
    if not summary.groups:
        return None
    splits = [split for split in ("train", "validation", "test") if split in summary.group_counts]
    columns = (
        Column(t("column.group")),
        *(Column(model.label, True) for model in summary.models),
        *(Column(t(f"column.n_{split}"), True) for split in splits),
    )
    rows = []
    for group, name in enumerate(summary.groups):
        rates = [_group_cell(model, group, name) for model in summary.models]
        sizes = [Cell(numbers.count(summary.group_counts[split][group])) for split in splits]
        rows.append((_group_name(summary, group, t), *rates, *sizes))
    notes = [t("note.groups", small=summary.minimum)]
    if summary.unknown:
        notes.append(t("note.unknown", n=numbers.count(summary.unknown)))
    table = Table(t("caption.groups"), columns, tuple(rows), t("space").join(notes))
    return Section("groups", t("section.groups"), t("lead.groups"), (table,))


def trade_off(summary: Summary, t: Language) -> Section | None:
    """Average against worst group, seed by seed."""
    if not any(model.worst.mean is not None for model in summary.models):
        return None
    chart = Chart(
        "scatter",
        t("chart.scatter.title"),
        t("chart.scatter.description", models=len(summary.models)),
        partial(charts.scatter, summary, t),
        _seed_table(summary, t),
    )
    return Section("trade-off", t("section.trade_off"), t("lead.trade_off"), (chart,))


def heat_map(summary: Summary, t: Language) -> Section | None:
    """Models × groups at a glance."""
    if not summary.groups:
        return None
    chart = Chart(
        "heat-map",
        t("chart.heat_map.title"),
        t("chart.heat_map.description"),
        partial(charts.heat_map, summary, t),
    )
    return Section("heat-map", t("section.heat_map"), t("lead.heat_map"), (chart,))


def intervals(summary: Summary, t: Language) -> Section | None:
    """Group accuracy with intervals, the leading models beside each other."""
    models = charts.dot_models(summary)
    if not summary.groups or not models:
        return None
    names = t.join([model.label for model in models])
    chart = Chart(
        "group-accuracy",
        t("chart.group_accuracy.title"),
        t("chart.group_accuracy.description", models=names),
        partial(charts.group_accuracy, summary, t),
    )
    lead = t("lead.intervals")
    if len(models) < len(summary.models):
        lead += t("space") + t("lead.intervals_some", shown=len(models), models=len(summary.models))
    return Section("intervals", t("section.intervals"), lead, (chart,))


def training(summary: Summary, t: Language) -> Section | None:
    """Loss, validation average and worst group over epochs."""
    trained = [model for model in summary.models if charts.curve_epochs(model)]
    if not trained:
        return None
    panels = tuple((model.label, tuple(_training_charts(summary, model, t))) for model in trained)
    kinds = zip(charts.curve_kinds(summary, t).values(), charts.CURVE_COLOURS, charts.CURVE_DASHES, strict=False)
    legend = (
        *(Line(label, colour, _dash(dash)) for label, colour, dash in kinds),
        Line(t("legend.selected"), DARK, "", marked=True),
        Line(t("axis.loss"), DARK, ""),
    )
    tables = tuple(_training_table(summary, model, t) for model in trained)
    blocks: tuple[Block, ...] = (Panels(legend, panels), Folded(t("fold.training"), tables))
    return Section("training", t("section.training"), t("lead.training"), blocks)


def group_weights(summary: Summary, t: Language) -> Section | None:
    """Group weights q over time, where a weighting recorded them."""
    return _group_history(summary, "group_weights", "group-weights", t)


def group_losses(summary: Summary, t: Language) -> Section | None:
    """Training loss of each group over time, where recorded."""
    return _group_history(summary, "group_losses", "group-losses", t)


def mistakes(summary: Summary, t: Language) -> Section | None:
    """Confusion and calibration, by model and by group."""
    blocks: list[Block] = []
    if charts.has_confusion(summary):
        blocks.append(
            Chart(
                "confusion",
                t("chart.confusion.title"),
                t("chart.confusion.description"),
                partial(charts.confusion, summary, t),
                narrow=True,
            )
        )
        if any(model.confusion(group) for model in summary.models for group in range(len(summary.groups))):
            blocks.append(_mistake_table(summary, t))
        tables = tuple(_confusion_table(summary, model, t) for model in summary.models if any(model.confusion()))
        blocks.append(Folded(t("fold.confusion"), tables))
    if any(model.calibration.mean is not None for model in summary.models):
        blocks.append(
            Chart(
                "calibration",
                t("chart.calibration.title"),
                t("chart.calibration.description"),
                partial(charts.calibration, summary, t),
                _calibration_table(summary, t),
            )
        )
    if any(value is not None for model in summary.models for value in model.group_calibration):
        blocks.append(Folded(t("fold.group_calibration"), (_group_calibration_table(summary, t),)))
    return Section("mistakes", t("section.mistakes"), t("lead.mistakes"), tuple(blocks)) if blocks else None


def comparisons(summary: Summary, t: Language) -> Section | None:
    """Every comparison the pilot made, single groups behind one line."""
    whole = [entry for entry in summary.comparisons if entry.group is None or entry.metric != "group"]
    single = [entry for entry in summary.comparisons if entry not in whole]
    blocks: list[Block] = []
    if whole:
        blocks.append(_comparison_table(summary, whole, t("caption.comparisons"), t))
    if single:
        table = _comparison_table(summary, single, t("caption.group_comparisons"), t)
        blocks.append(Folded(t("fold.group_comparisons"), (table,)))
    return Section("comparisons", t("section.comparisons"), t("lead.comparisons"), tuple(blocks)) if blocks else None


def warnings(summary: Summary, t: Language) -> Section | None:
    """What the reader must know before believing the rest."""
    if not summary.warnings:
        return None
    return Section("warnings", t("section.warnings"), "", (Text(summary.warnings, points=True, tone="warning"),))


def methods(summary: Summary, t: Language) -> Section:
    """How all this was made, and how to make it again."""
    result, data = summary.result, summary.result["data"]
    selection = result.get("selection") or {}
    blocks: list[Block] = [
        Facts(
            t("facts.data"),
            (
                (t("fact.data"), str(data.get("name", numbers.NOTHING))),
                (t("fact.samples"), _split_sizes(summary, t)),
                (t("fact.classes"), t.join(list(summary.classes))),
                (t("fact.group_columns"), t.join([str(name) for name in data.get("group_columns") or ()]) or t("none")),
                (t("fact.groups"), numbers.count(len(summary.groups))),
                (t("fact.injections"), _plain(data.get("injections")) or t("none")),
            ),
        ),
        Facts(
            t("facts.selection"),
            (
                (t("fact.rule"), t.term("rule", summary.selection_rule)),
                (t("fact.consumes"), t.term("consumes", selection.get("consumes", numbers.NOTHING))),
                (t("fact.seeds"), t.join([str(seed) for seed in summary.seeds]) or t("none")),
            ),
        ),
        Facts(t("facts.settings"), _pairs(result.get("settings"), t)),
        Facts(
            t("facts.run"),
            (
                (t("fact.name"), summary.name),
                (t("fact.created"), numbers.moment(result.get("created", numbers.NOTHING))),
                (t("fact.seconds"), numbers.duration(result.get("seconds"))),
                *_pairs(result.get("machine"), t),
            ),
        ),
        Facts(t("facts.versions"), _pairs(result.get("versions"), t)),
        Code(t("code.command"), str(result.get("command") or "limbeck pilot CONFIG.yaml")),
        Text(tuple(t(f"methods.{name}") for name in ("intervals", "comparisons", "best", "charts"))),
    ]
    recipes = {
        model.key: {"recipe": model.recipe} | ({"training": model.training} if model.training else {})
        for model in summary.models
        if model.recipe is not None
    }
    if recipes:
        blocks.append(Code(t("code.recipes"), _yaml(recipes), folded=True))
    if result.get("configuration"):
        blocks.append(Code(t("code.configuration"), _yaml(result["configuration"]), folded=True))
    kept = tuple(block for block in blocks if not isinstance(block, Facts) or block.pairs)
    return Section("methods", t("section.methods"), t("lead.methods"), kept)


SECTIONS: tuple[Callable[[Summary, Language], Section | None], ...] = (
    plain_words,
    results,
    group_table,
    trade_off,
    heat_map,
    intervals,
    training,
    group_weights,
    group_losses,
    mistakes,
    comparisons,
    warnings,
    methods,
)

# --------------------------------------------------------------------------------------------------- their parts


def _card(summary: Summary, part: str, model: Model, t: Language) -> Card:
    average = (t("card.average"), _estimate_cell(model.average))
    rates = [(t("card.worst_group"), _estimate_cell(model.worst, model.worst_name or "")), average]
    figures = (
        *(rates if summary.groups else [average]),
        (t("card.parameters"), Cell(numbers.short_count(model.parameters), _smaller(summary, model, t))),
    )
    return Card(t(f"part.{part}"), model.label, part, figures)


def _smaller(summary: Summary, model: Model, t: Language, *, short: bool = False) -> str:
    ratio = _shrink(summary.teacher, model)
    if ratio is None or model.role == "teacher":
        return ""
    return t("mark.smaller" if short else "card.smaller", ratio=numbers.ratio(ratio))


def _shrink(teacher: Model | None, model: Model) -> float | None:
    """How many times fewer parameters than the teacher; None where that says nothing."""
    if teacher is None or model is teacher or not teacher.parameters or not model.parameters:
        return None
    return teacher.parameters / model.parameters


def _estimate_cell(estimate: Estimate, detail: str = "") -> Cell:
    interval = numbers.percent_interval(estimate.low, estimate.high)
    return Cell(numbers.percent(estimate.mean), " · ".join(part for part in (interval, detail) if part))


def _rate(estimate: Estimate, tone: str = "") -> Cell:
    """Mean, then interval and spread over seeds on the second line."""
    interval = numbers.percent_interval(estimate.low, estimate.high)
    detail = " ".join(part for part in (interval, numbers.spread(estimate.spread)) if part)
    return Cell(numbers.percent(estimate.mean), detail, tone)


def _group_cell(model: Model, group: int, name: str) -> Cell:
    cell = _rate(model.groups[group])
    if name != model.worst_name:
        return cell
    return Cell(f"▼ {cell.text}", cell.detail, "worst")


def _result_row(summary: Summary, model: Model, t: Language) -> list[tuple[str, bool, Cell]]:
    """The cells of a model with the name of their column and whether it is numeric: what decides comes first."""
    teacher = summary.model(model.teacher)
    taught = teacher.label if teacher else (t("role.teacher") if model.role == "teacher" else t("role.labels"))
    several = len(model.worst_names) > 1
    times = t("times_worst", times=model.worst_names[0][1], seeds=len(model.runs)) if several else ""
    average = ("average", True, _rate(model.average))
    against = (f"against_plain_{summary.metric}", True, _against_cell(summary, model, t))
    gap = Cell(numbers.points(model.gap.mean).lstrip("+"), numbers.spread(model.gap.spread))
    row = [("model", False, Cell(model.label, _part(summary, model, t)))]
    if summary.groups:
        row += [
            ("worst_group", True, _rate(model.worst)),
            average,
            against,
            ("which_group", False, Cell(model.worst_name or numbers.NOTHING, times)),
            ("gap", True, gap),
        ]
    else:
        row += [average, against]
    return [
        *row,
        ("taught_by", False, Cell(taught)),
        ("parameters", True, Cell(numbers.count(model.parameters), _smaller(summary, model, t, short=True))),
        ("seconds", True, Cell(numbers.duration(model.seconds))),
    ]


def _group_name(summary: Summary, group: int, t: Language) -> Cell:
    """A group with its test samples and what makes its accuracy doubtful."""
    small = summary.is_small(group)
    facts = [t("mark.test_samples", n=numbers.count(summary.test_count(group)))]
    facts += [t("mark.small")] if small else []
    facts += [t("mark.untrained")] if summary.is_untrained(group) else []
    return Cell(summary.groups[group] + (" †" if small else ""), t.join(facts))


def _part(summary: Summary, model: Model, t: Language) -> str:
    parts = (("best", summary.best), ("plain", summary.plain), ("without_teacher", summary.best_without_teacher))
    return next((t(f"part.{part}") for part, one in parts if one is model), "")


def _against_cell(summary: Summary, model: Model, t: Language) -> Cell:
    entry = summary.compare(model, summary.plain, summary.metric)
    if entry is None:
        return Cell(numbers.NOTHING)
    if not entry.verdict:
        return Cell(numbers.points(entry.difference))
    word = f"{_MARKS[entry.tone]} {t('verdict.' + entry.tone)}"
    interval = numbers.points_interval(entry.low, entry.high)
    return Cell(f"{numbers.points(entry.difference)} {word}", interval, entry.tone)


def _comparison_table(summary: Summary, entries: Sequence[Comparison], caption: str, t: Language) -> Table:
    names = ("model", "against", "measure", "difference", "interval", "p", "verdict")
    columns = tuple(Column(t(f"column.{name}"), name in ("difference", "interval", "p")) for name in names)
    return Table(caption, columns, tuple(_comparison_row(summary, entry, t) for entry in entries))


def _comparison_row(summary: Summary, entry: Comparison, t: Language) -> tuple[Cell, ...]:
    model, against = summary.model(entry.model), summary.model(entry.against)
    if entry.metric in _RATES:
        difference, interval = numbers.points(entry.difference), numbers.points_interval(entry.low, entry.high)
    else:
        difference = numbers.signed(entry.difference)
        interval = "" if entry.low is None else f"[{numbers.signed(entry.low)}, {numbers.signed(entry.high)}]"
    measure = t("metric.group", group=entry.group) if entry.metric == "group" else t.term("metric", entry.metric)
    detail = entry.group if entry.metric == "worst_group" and entry.group else ""
    verdict = f"{_MARKS[entry.tone]} {t('verdict.' + entry.tone)}" if entry.verdict else numbers.NOTHING
    return (
        Cell(model.label if model else entry.model),
        Cell(against.label if against else entry.against),
        Cell(measure, detail),
        Cell(difference),
        Cell(interval or numbers.NOTHING),
        Cell(numbers.p_value(entry.p)),
        Cell(verdict, _what_would_tell(entry, t), entry.tone),
    )


def _what_would_tell(entry: Comparison, t: Language) -> str:
    """How much more evidence would decide an undecided comparison."""
    ways = []
    if entry.more_seeds:
        ways.append(t("more.seeds", n=numbers.about(entry.more_seeds)))
    if entry.more_samples:
        ways.append(t("more.samples", n=numbers.about(entry.more_samples)))
    return t("more.would_tell", ways=t("more.or").join(ways)) if ways else ""


def _seed_table(summary: Summary, t: Language) -> Table:
    names = ("model", "seed", "average", "worst_group", "which_group", "selected_epoch")
    columns = tuple(Column(t(f"column.{name}"), name not in ("model", "which_group")) for name in names)
    rows = tuple(
        (
            Cell(model.label),
            Cell(numbers.NOTHING if run.seed is None else str(run.seed)),
            Cell(numbers.percent(average)),
            Cell(numbers.percent(worst)),
            Cell(str(run.test.get("worst_group_name") or numbers.NOTHING)),
            Cell(numbers.NOTHING if run.selected_epoch is None else str(run.selected_epoch)),
        )
        for model in summary.models
        for run, average, worst in zip(model.runs, model.average.values, model.worst.values, strict=True)
    )
    return Table(t("caption.seeds"), columns, rows)


def _training_charts(summary: Summary, model: Model, t: Language) -> Iterable[Chart]:
    yield Chart(
        f"accuracy-{model.key}",
        "",
        t("chart.accuracy_curves.description", model=model.label),
        partial(charts.accuracy_curves, summary, model, t, legend=False),
    )
    if charts.mean_curve(model, "loss", charts.curve_epochs(model)):
        yield Chart(
            f"loss-{model.key}",
            "",
            t("chart.loss_curve.description", model=model.label),
            partial(charts.loss_curve, model, t),
        )


def _training_table(summary: Summary, model: Model, t: Language) -> Table:
    epochs = charts.curve_epochs(model, MAX_TABLE_EPOCHS)
    fields = ("loss", *charts.curve_kinds(summary, t))
    curves = {field: dict(charts.mean_curve(model, field, epochs)) for field in fields}
    selected = [run.selected_epoch for run in model.runs]
    columns = (
        Column(t("axis.epoch"), True),
        *(Column(t(f"column.{field}"), True) for field in fields),
        Column(t("column.selected_by"), True),
    )
    rows = tuple(
        (
            Cell(str(epoch)),
            Cell(numbers.decimal(curves["loss"].get(epoch), 4)),
            *(Cell(numbers.percent(curves[field].get(epoch))) for field in fields[1:]),
            Cell(f"◆ {selected.count(epoch)}" if epoch in selected else ""),
        )
        for epoch in epochs
    )
    return Table(t("caption.training", model=model.label), columns, rows)


def _group_history(summary: Summary, field: str, key: str, t: Language) -> Section | None:
    recorded = [model for model in summary.models if charts.mean_group_curve(model, field, charts.curve_epochs(model))]
    if not recorded:
        return None
    shown = charts.tracked_groups(summary, field)
    panels = tuple(
        (
            model.label,
            (
                Chart(
                    f"{key}-{model.key}",
                    "",
                    t(f"chart.{field}.description", model=model.label),
                    partial(charts.group_curves, summary, model, field, t, legend=False),
                ),
            ),
        )
        for model in recorded
    )
    tables = tuple(_group_history_table(summary, model, field, t) for model in recorded)
    names = [summary.groups[group] for group in shown]
    styles = zip(names, group_colours(len(names)), group_dashes(len(names)), strict=True)
    legend = tuple(Line(name, colour, _dash(dash)) for name, colour, dash in styles)
    lead = t(f"lead.{field}")
    if len(shown) < len(summary.groups):
        lead += t("space") + t("lead.some_groups", shown=len(shown), groups=len(summary.groups))
    return Section(key, t(f"section.{field}"), lead, (Panels(legend, panels), Folded(t("fold.history"), tables)))


def _dash(pattern: Sequence[int]) -> str:
    return "" if len(pattern) < 2 or pattern[1] == 0 else " ".join(map(str, pattern))


def _group_history_table(summary: Summary, model: Model, field: str, t: Language) -> Table:
    curve = charts.mean_group_curve(model, field, charts.curve_epochs(model, 8))
    columns = (Column(t("column.group")), *(Column(t("column.epoch_n", epoch=epoch), True) for epoch, _ in curve))
    rows = tuple(
        (Cell(name), *(Cell(numbers.decimal(values[group], 4)) for _, values in curve))
        for group, name in enumerate(summary.groups)
    )
    return Table(t(f"caption.{field}", model=model.label), columns, rows)


def _confusion_table(summary: Summary, model: Model, t: Language) -> Table:
    labels, table = charts.pooled_confusion(summary, model, None, t)
    columns = (Column(t("column.true_predicted")), *(Column(label, True) for label in labels))
    rows = []
    for row, (truth, cells) in enumerate(zip(labels, table, strict=True)):
        total = sum(cells)
        shares = [
            Cell(numbers.percent(n / total if total else None), numbers.count(n), "right" if row == column else "")
            for column, n in enumerate(cells)
        ]
        rows.append((Cell(truth), *shares))
    return Table(t("caption.confusion", model=model.label, seeds=len(model.runs)), columns, tuple(rows))


def _mistake_table(summary: Summary, t: Language) -> Table:
    """The most frequent mistake in each group, for the models the decision is about."""
    models = [model for model in summary.key_models if any(model.confusion())]
    columns = (Column(t("column.group")), *(Column(model.label) for model in models))
    rows = tuple(
        (Cell(name), *(_mistake_cell(summary, model, group, t) for model in models))
        for group, name in enumerate(summary.groups)
    )
    return Table(t("caption.mistakes"), columns, rows, t("note.mistakes"))


def _mistake_cell(summary: Summary, model: Model, group: int, t: Language) -> Cell:
    table = model.confusion(group)
    wrong = [
        (n, truth, predicted)
        for truth, cells in enumerate(table)
        for predicted, n in enumerate(cells)
        if truth != predicted and n
    ]
    if not wrong:
        return Cell(t("mistake_words.none") if any(map(any, table)) else numbers.NOTHING)
    n, truth, predicted = max(wrong)
    share = n / sum(map(sum, table))
    return Cell(t("mistake", true=summary.classes[truth], predicted=summary.classes[predicted]), numbers.percent(share))


def _calibration_table(summary: Summary, t: Language) -> Table:
    columns = (Column(t("column.model")), Column(t("axis.calibration_error"), True), Column(t("column.nll"), True))
    rows = tuple(
        (
            Cell(model.label),
            Cell(numbers.percent(model.calibration.mean, 2), numbers.spread(model.calibration.spread)),
            Cell(
                numbers.decimal(model.nll.mean, 4), f"±{model.nll.spread:.4f}" if model.nll.spread is not None else ""
            ),
        )
        for model in summary.models
    )
    return Table(t("caption.calibration"), columns, rows)


def _group_calibration_table(summary: Summary, t: Language) -> Table:
    columns = (Column(t("column.group")), *(Column(model.label, True) for model in summary.models))
    rows = tuple(
        (Cell(name), *(Cell(numbers.percent(model.group_calibration[group])) for model in summary.models))
        for group, name in enumerate(summary.groups)
    )
    return Table(t("caption.group_calibration"), columns, rows)


# ------------------------------------------------------------------------------------------- sentences for a meeting


def _what_it_is(model: Model, teacher: Model | None, t: Language) -> str:
    size = numbers.count(model.parameters)
    shrink = _shrink(teacher, model)
    if model.parameters is None:
        return t("sentence.what_unknown", model=model.label)
    if teacher is None or shrink is None:
        return t("sentence.what", model=model.label, parameters=size)
    return t(
        "sentence.what_shrunk", model=model.label, parameters=size, ratio=numbers.ratio(shrink), teacher=teacher.label
    )


def _how_good(summary: Summary, model: Model, t: Language) -> str:
    samples, average = numbers.count(summary.samples.get("test")), numbers.percent(model.average.mean)
    if model.worst.mean is None:
        interval = numbers.percent_interval(model.average.low, model.average.high)
        return t("sentence.how_good_average", samples=samples, average=average, interval=interval or numbers.NOTHING)
    return t(
        "sentence.how_good",
        samples=samples,
        average=average,
        group=model.worst_name or numbers.NOTHING,
        worst=numbers.percent(model.worst.mean),
        interval=numbers.percent_interval(model.worst.low, model.worst.high) or numbers.NOTHING,
    )


def _against_plain(summary: Summary, best: Model, plain: Model, t: Language) -> str:
    entry = summary.compare(best, plain, summary.metric)
    said = t("sentence.against_plain", plain=plain.label, **_against(summary, plain, entry, t))
    known = entry is not None and entry.tone != "unknown"
    return said + (t("space") + t(f"sentence.verdict_{entry.tone}") if entry is not None and known else "")


def _against_other(summary: Summary, best: Model, other: Model, t: Language) -> str:
    entry = summary.compare(best, other, summary.metric)
    said = t("sentence.against_other", other=other.label, **_against(summary, other, entry, t))
    same = entry is not None and entry.tone == "same"
    return said + (t("space") + t("sentence.verdict_same") if same else "")


def _against(summary: Summary, reference: Model, entry: Comparison | None, t: Language) -> dict[str, str]:
    estimate = reference.worst if summary.groups else reference.average
    interval = numbers.points_interval(entry.low, entry.high) if entry is not None else ""
    return {
        "value": numbers.percent(estimate.mean),
        "place": t(f"place.{summary.metric}"),
        "difference": numbers.points(entry.difference if entry else None),
        "interval": f" {interval}" if interval else "",
    }


def _worse_off(summary: Summary, model: Model, than: Model, name: str, t: Language) -> str:
    """Which groups lose: those the pilot's comparisons tell, or, where it made none, those that fall by over a point."""
    tested = summary.compare_groups(model, than)
    if tested:
        losses = [(entry.difference or 0.0, str(entry.group)) for entry in tested if entry.tone == "worse"]
        found, nobody = "sentence.worse_off", "sentence.nobody_worse"
    else:
        pairs = zip(summary.groups, model.groups, than.groups, strict=True)
        differences = [(a.mean - b.mean, group) for group, a, b in pairs if a.mean is not None and b.mean is not None]
        losses = [(difference, group) for difference, group in differences if difference < -WORSE_BY]
        found, nobody = "sentence.worse_off_untested", "sentence.nobody_worse_untested"
    if not losses:
        return t(nobody, than=name)
    shown = [t("sentence.loss", group=group, difference=numbers.points(loss)) for loss, group in sorted(losses)[:3]]
    return t(found, than=name, n=len(losses), groups=len(summary.groups), named=t("list").join(shown))


# ----------------------------------------------------------------------------------------------------- plain values


def _split_sizes(summary: Summary, t: Language) -> str:
    return t.join([f"{t.term('split', split)} {numbers.count(n)}" for split, n in summary.samples.items()])


def _pairs(mapping: Mapping[str, Any] | None, t: Language) -> tuple[tuple[str, str], ...]:
    return tuple((t.term("setting", key), _plain(value)) for key, value in (mapping or {}).items() if value is not None)


def _plain(value: Any) -> str:
    """A plain value on one line."""
    if value is None:
        return numbers.NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(_plain(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
