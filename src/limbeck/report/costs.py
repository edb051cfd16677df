"""The chapter on cost: what a model takes to keep, to run and to train, each against the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.report import numbers
from limbeck.report.blocks import Block, Cell, Column, Section, Table, Text
from limbeck.report.language import Language
from limbeck.report.summary import Model, Summary


def cost(summary: Summary, t: Language) -> Section | None:
    """One row a model that was measured."""
    measured = [model for model in summary.models if summary.cost(model) is not None]
    if not measured:
        return None
    blocks: list[Block] = [cost_table(summary, measured, t)]
    if all((summary.cost(model) or {}).get("joules") is None for model in measured):
        blocks.append(Text((t("cost.no_energy"),)))
    return Section("cost", t("section.cost"), t("lead.cost"), tuple(blocks))


def cost_table(summary: Summary, models: list[Model], t: Language) -> Table:
    """Parameters, size, latency, energy and training time, with how many times less than the teacher."""
    told = any((summary.cost(model) or {}).get("joules") is not None for model in models)
    batches = [entry["batch"] for entry in (summary.cost(models[0]) or {})["latency"]]
    columns = [Column(t("column.model")), Column(t("column.parameters"), True), Column(t("column.size"), True)]
    columns += [Column(t("column.latency", batch=batch), True) for batch in batches]
    columns += [Column(t("column.energy"), True)] if told else []
    columns.append(Column(t("column.training_time"), True))
    rows = tuple(tuple(_row(summary, model, batches, told, t)) for model in models)
    machine = (summary.evidence.get("cost") or {}).get("machine") or {}
    where = t.join([str(machine[key]) for key in ("system", "processor") if machine.get(key)])
    return Table(t("caption.cost"), tuple(columns), rows, t("note.cost", machine=where or numbers.NOTHING))


def _row(summary: Summary, model: Model, batches: list[int], told: bool, t: Language) -> list[Cell]:
    teacher = None if model.role == "teacher" else summary.teacher
    own, theirs = summary.cost(model) or {}, summary.cost(teacher) or {}

    def cell(text: str, ours: float | None, other: float | None, slower: bool = False) -> Cell:
        times = _times(ours, other)
        if times is None or (0.95 < times < 1.05):
            return Cell(text, "" if times is None else t("cost.same"))
        if times < 1:
            return Cell(text, t("cost.more", ratio=numbers.ratio(1 / times)))
        return Cell(text, t("cost.faster" if slower else "cost.fewer", ratio=numbers.ratio(times)))

    cells = [
        Cell(model.label),
        cell(numbers.count(own["parameters"]), own["parameters"], theirs.get("parameters")),
        cell(numbers.size(own["size"]), own["size"], theirs.get("size")),
    ]
    for batch in batches:
        ours, other = latency(own, batch), latency(theirs, batch)
        cells.append(cell(numbers.milliseconds(ours), ours, other, slower=True))
    if told:
        cells.append(cell(numbers.energy(own.get("joules")), own.get("joules"), theirs.get("joules")))
    training = model.seconds or None
    cells.append(cell(numbers.duration(training), training, teacher.seconds if teacher else None))
    return cells


def latency(cost: Mapping[str, Any] | None, batch: int) -> float | None:
    """The median latency at a batch size, in milliseconds."""
    return next((entry["median"] for entry in (cost or {}).get("latency", ()) if entry["batch"] == batch), None)


def faster(summary: Summary, model: Model, t: Language) -> Cell | None:
    """The figure of a card: how long one sample takes, and how that compares with the teacher."""
    ours = latency(summary.cost(model), 1)
    if ours is None:
        return None
    other = None if model.role == "teacher" else latency(summary.cost(summary.teacher), 1)
    times = _times(ours, other)
    said = "" if times is None or times < 1.05 else t("card.faster", ratio=numbers.ratio(times))
    return Cell(numbers.milliseconds(ours), said)


def _times(ours: float | None, theirs: float | None) -> float | None:
    """How many times less than the teacher's."""
    return theirs / ours if ours and theirs else None
