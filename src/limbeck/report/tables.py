"""The tables of a report, shared by HTML and Markdown: every number a chart shows is in one of them."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.report import charts, numbers
from limbeck.report.blocks import Cell, Column, Table
from limbeck.report.language import Language
from limbeck.report.summary import Comparison, Estimate, Model, Summary

MAX_EPOCHS = 20
"""Rows of a table over epochs: the charts and the JSON hold the rest."""

MARKS = {"better": "▲", "worse": "▼", "same": "≈", "unknown": "?"}
_RATES = ("average", "average_training_weighted", "worst_group", "group", "gap")


def results_table(summary: Summary, t: Language) -> Table:
    """One row a model, what decides first."""
    rows = [_result_row(summary, model, t) for model in summary.models]
    columns = tuple(Column(t(f"column.{name}"), numeric) for name, numeric, _ in rows[0])
    cells = tuple(tuple(cell for _, _, cell in row) for row in rows)
    return Table(t("caption.results", models=len(rows)), columns, cells, t("note.results", seeds=len(summary.seeds)))


def group_table(summary: Summary, t: Language) -> Table:
    """Accuracy of each group under each model, and how many samples it rests on."""
    columns = (Column(t("column.group")), *(Column(model.label, True) for model in summary.models))
    rows = []
    for group, name in enumerate(summary.groups):
        rates = [_group_cell(model, group, name) for model in summary.models]
        rows.append((_group_name(summary, group, t), *rates))
    notes = [t("note.groups", small=summary.minimum)]
    if summary.unknown:
        notes.append(t("note.unknown", n=numbers.count(summary.unknown)))
    return Table(t("caption.groups"), columns, tuple(rows), t("space").join(notes))


def seed_table(summary: Summary, t: Language) -> Table:
    """Average and worst group of every seed."""
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


def standings_table(summary: Summary, models: Sequence[Model], t: Language) -> Table:
    """Where each small model stands, with intervals over seeds and test samples, and how surely it is on the front."""
    names = ("average", "worst_group", "front", "front_share")
    columns = (Column(t("column.model")), *(Column(t(f"column.{name}"), name != "front") for name in names))
    rows = []
    for model in models:
        found = summary.standing(model) or {}
        rows.append(
            (
                Cell(model.label),
                Cell(
                    numbers.percent(found["average"]),
                    numbers.percent_interval(found["average_low"], found["average_high"]),
                ),
                Cell(
                    numbers.percent(found["worst_group"]),
                    numbers.percent_interval(found["worst_low"], found["worst_high"]),
                ),
                Cell(t("mark.front") if found["front"] else numbers.NOTHING),
                Cell(numbers.percent(found["front_share"], 0)),
            )
        )
    return Table(t("caption.standings"), columns, tuple(rows), t("note.standings"))


def training_table(summary: Summary, model: Model, t: Language) -> Table:
    """Training of one model over epochs, mean over its seeds."""
    epochs = charts.curve_epochs(model, MAX_EPOCHS)
    fields = ("loss", *charts.curve_kinds(summary, t))
    selected = [run.selected_epoch for run in model.runs]
    columns = (
        Column(t("axis.epoch"), True),
        *(Column(t(f"column.{field}"), True) for field in fields),
        Column(t("column.selected_by"), True),
    )
    rows = tuple(
        (
            Cell(str(epoch)),
            Cell(numbers.decimal(model.curves["loss"].get(epoch), 4)),
            *(Cell(numbers.percent(model.curves[field].get(epoch))) for field in fields[1:]),
            Cell(f"◆ {selected.count(epoch)}" if epoch in selected else ""),
        )
        for epoch in epochs
    )
    return Table(t("caption.training", model=model.label), columns, rows)


def group_history_table(summary: Summary, model: Model, field: str, t: Language) -> Table:
    """A quantity of every group over a few epochs, mean over seeds."""
    epochs = charts.curve_epochs(model, 8)
    curve = [(epoch, values) for epoch, values in model.curves[field].items() if epoch in epochs]
    columns = (Column(t("column.group")), *(Column(t("column.epoch_n", epoch=epoch), True) for epoch, _ in curve))
    rows = tuple(
        (Cell(name), *(Cell(numbers.decimal(values[group], 4)) for _, values in curve))
        for group, name in enumerate(summary.groups)
    )
    return Table(t(f"caption.{field}", model=model.label), columns, rows)


def confusion_table(summary: Summary, model: Model, t: Language) -> Table:
    """Shares of each true class, and the samples of all seeds."""
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


def mistake_table(summary: Summary, t: Language) -> Table:
    """The most frequent mistake in each group, for the models the decision is about."""
    models = [model for model in summary.key_models if any(model.confusion())]
    columns = (Column(t("column.group")), *(Column(model.label) for model in models))
    rows = tuple(
        (Cell(name), *(_mistake_cell(summary, model, group, t) for model in models))
        for group, name in enumerate(summary.groups)
    )
    return Table(t("caption.mistakes"), columns, rows, t("note.mistakes"))


def calibration_table(summary: Summary, t: Language) -> Table:
    """Calibration error and likelihood of each model."""
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


def group_calibration_table(summary: Summary, t: Language) -> Table:
    """Calibration error of each model in each group."""
    columns = (Column(t("column.group")), *(Column(model.label, True) for model in summary.models))
    rows = tuple(
        (Cell(name), *(Cell(numbers.percent(model.group_calibration[group])) for model in summary.models))
        for group, name in enumerate(summary.groups)
    )
    return Table(t("caption.group_calibration"), columns, rows)


def comparison_table(summary: Summary, entries: Sequence[Comparison], caption: str, t: Language) -> Table:
    """Comparisons as the pilot decided them."""
    names = ("model", "against", "measure", "difference", "interval", "p", "verdict")
    columns = tuple(Column(t(f"column.{name}"), name in ("difference", "interval", "p")) for name in names)
    return Table(caption, columns, tuple(_comparison_row(summary, entry, t) for entry in entries))


def estimate_cell(estimate: Estimate, detail: str = "") -> Cell:
    """A figure of a card: mean, then its interval and what is to be said with it."""
    interval = numbers.percent_interval(estimate.low, estimate.high)
    return Cell(numbers.percent(estimate.mean), " · ".join(part for part in (interval, detail) if part))


def smaller(summary: Summary, model: Model, t: Language, *, short: bool = False) -> str:
    """How much smaller than the teacher a student is; empty where that says nothing."""
    ratio = shrink(summary.teacher, model)
    if ratio is None or model.role == "teacher":
        return ""
    return t("mark.smaller" if short else "card.smaller", ratio=numbers.ratio(ratio))


def shrink(teacher: Model | None, model: Model) -> float | None:
    """How many times fewer parameters than the teacher; None where that says nothing."""
    if teacher is None or model is teacher or not teacher.parameters or not model.parameters:
        return None
    return teacher.parameters / model.parameters


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
        ("parameters", True, Cell(numbers.count(model.parameters), smaller(summary, model, t, short=True))),
        ("seconds", True, Cell(numbers.duration(model.seconds))),
    ]


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


def _group_name(summary: Summary, group: int, t: Language) -> Cell:
    """A group with its samples and what makes its accuracy doubtful."""
    small = summary.is_small(group)
    counts = summary.group_counts
    splits = [split for split in ("train", "validation", "test") if split in counts]
    facts = [t("mark.samples", split=t.term("split", one), n=numbers.count(counts[one][group])) for one in splits]
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
    word = f"{MARKS[entry.tone]} {t(f'verdict.{entry.tone}')}"
    interval = numbers.points_interval(entry.low, entry.high)
    return Cell(f"{numbers.points(entry.difference)} {word}", interval, entry.tone)


def _comparison_row(summary: Summary, entry: Comparison, t: Language) -> tuple[Cell, ...]:
    model, against = summary.model(entry.model), summary.model(entry.against)
    if entry.metric in _RATES:
        difference, interval = numbers.points(entry.difference), numbers.points_interval(entry.low, entry.high)
    else:
        difference = numbers.signed(entry.difference)
        interval = "" if entry.low is None else f"[{numbers.signed(entry.low)}, {numbers.signed(entry.high)}]"
    measure = t("metric.group", group=entry.group) if entry.metric == "group" else t.term("metric", entry.metric)
    detail = entry.group if entry.metric == "worst_group" and entry.group else ""
    verdict = f"{MARKS[entry.tone]} {t(f'verdict.{entry.tone}')}" if entry.verdict else numbers.NOTHING
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
