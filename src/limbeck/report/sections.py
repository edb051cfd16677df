"""The chapters of a report, in their order: each a function of the summary; a chapter with nothing to say is left out.

A new chapter is a function here and its name in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import yaml

from limbeck.report import charts, numbers, tables
from limbeck.report.advice import advice
from limbeck.report.averaging import label_averaging
from limbeck.report.blocks import Block, Card, Cell, Chart, Code, Facts, Folded, Line, Panels, Section, Text
from limbeck.report.corrections import corrections
from limbeck.report.costs import cost, faster
from limbeck.report.feature_space import feature_space
from limbeck.report.language import Language
from limbeck.report.sentences import meeting
from limbeck.report.styles import DARK, group_colours, group_dashes
from limbeck.report.summary import Model, Summary
from limbeck.report.worse_off import worse_off


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


def plain_words(summary: Summary, t: Language) -> Section | None:
    """Sentences for a meeting."""
    said = meeting(summary, t)
    if not said:
        return None
    blocks = tuple(Text(lines, points=True, title=title) for title, lines in said)
    return Section("plain-words", t("section.plain_words"), t("lead.plain_words"), blocks)


def results(summary: Summary, t: Language) -> Section | None:
    """One row a model."""
    if not summary.models:
        return None
    lead = t("lead.results") if summary.groups else t("lead.results_no_groups")
    return Section("results", t("section.results"), lead, (tables.results_table(summary, t),))


def groups(summary: Summary, t: Language) -> Section | None:
    """Accuracy of each group under each model."""
    if not summary.groups:
        return None
    return Section("groups", t("section.groups"), t("lead.groups"), (tables.group_table(summary, t),))


def trade_off(summary: Summary, t: Language) -> Section | None:
    """Average against worst group, seed by seed."""
    if not any(model.worst.mean is not None for model in summary.models):
        return None
    chart = Chart(
        "scatter",
        t("chart.scatter.title"),
        t("chart.scatter.description", models=len(summary.models)),
        partial(charts.scatter, summary, t),
        tables.seed_table(summary, t),
    )
    return Section(
        "trade-off", t("section.trade_off"), t("lead.trade_off"), (*_front(summary, t), chart, *_standings(summary, t))
    )


def _standings(summary: Summary, t: Language) -> tuple[Block, ...]:
    measured = [model for model in summary.students if summary.standing(model) is not None]
    return (Folded(t("fold.standings"), (tables.standings_table(summary, measured, t),)),) if measured else ()


def _front(summary: Summary, t: Language) -> tuple[Block, ...]:
    """Which small models nothing beats in both, in words."""
    front = summary.front
    if len(summary.students) < 2 or not front:
        return ()
    if len(front) == 1:
        share = _front_share(summary, front[0], t)
        said = t("front.one", model=front[0].label, models=len(summary.students), share=share)
    else:
        named = [
            t(
                "front.member",
                model=model.label,
                worst=numbers.percent(model.worst.mean),
                average=numbers.percent(model.average.mean),
                share=_front_share(summary, model, t),
            )
            for model in front
        ]
        said = t("front.several", named=t("list").join(named), n=len(front), models=len(summary.students))
    if summary.best is not None and summary.best not in front:
        said += t("space") + t("front.best_not", model=summary.best.label)
    return (Text((said,)),)


def _front_share(summary: Summary, model: Model, t: Language) -> str:
    standing = summary.standing(model)
    return "" if standing is None else t("front.share", share=numbers.percent(standing["front_share"], 0))


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
    folded = tuple(tables.training_table(summary, model, t) for model in trained)
    blocks: tuple[Block, ...] = (Panels(legend, panels), Folded(t("fold.training"), folded))
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
            blocks.append(tables.mistake_table(summary, t))
        folded = tuple(tables.confusion_table(summary, model, t) for model in summary.models if any(model.confusion()))
        blocks.append(Folded(t("fold.confusion"), folded))
    if any(model.calibration.mean is not None for model in summary.models):
        blocks.append(
            Chart(
                "calibration",
                t("chart.calibration.title"),
                t("chart.calibration.description"),
                partial(charts.calibration, summary, t),
                tables.calibration_table(summary, t),
            )
        )
    if any(value is not None for model in summary.models for value in model.group_calibration):
        blocks.append(Folded(t("fold.group_calibration"), (tables.group_calibration_table(summary, t),)))
    return Section("mistakes", t("section.mistakes"), t("lead.mistakes"), tuple(blocks)) if blocks else None


def comparisons(summary: Summary, t: Language) -> Section | None:
    """Every comparison the pilot made, single groups behind one line."""
    whole = [entry for entry in summary.comparisons if entry.group is None or entry.metric != "group"]
    single = [entry for entry in summary.comparisons if entry not in whole]
    blocks: list[Block] = []
    if whole:
        blocks.append(tables.comparison_table(summary, whole, t("caption.comparisons"), t))
    if single:
        table = tables.comparison_table(summary, single, t("caption.group_comparisons"), t)
        blocks.append(Folded(t("fold.group_comparisons"), (table,)))
    return Section("comparisons", t("section.comparisons"), t("lead.comparisons"), tuple(blocks)) if blocks else None


def warnings(summary: Summary, t: Language) -> Section | None:
    """What the reader must know before believing the rest."""
    if not summary.warnings:
        return None
    # Warnings come from the run, which speaks English.
    said = Text(summary.warnings, points=True, tone="warning", language="" if t.code == "en" else "en")
    return Section("warnings", t("section.warnings"), "", (said,))


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
        Facts(t("facts.search"), _searched(result.get("search"), summary, t)),
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


def _searched(search: Mapping[str, Any] | None, summary: Summary, t: Language) -> tuple[tuple[str, str], ...]:
    """How settings were searched, and what was chosen for each recipe."""
    if not search:
        return ()
    labels = {model.key: model.label for model in summary.models}
    chosen = tuple(
        (
            labels.get(key, key),
            f"{_plain(settings)} ({t('search.tried', count=len(search['tried'][key]))})",
        )
        for key, settings in search["chosen"].items()
    )
    return (
        (t("fact.search_method"), str(search["method"])),
        (t("fact.search_seed"), str(search["trained_with_seed"])),
        *(((t("fact.halve_after"), str(search["halve_after"])),) if search.get("halve_after") else ()),
        (t("fact.search_seconds"), numbers.duration(search["seconds"])),
        *chosen,
    )


SECTIONS: tuple[Callable[[Summary, Language], Section | None], ...] = (
    plain_words,
    results,
    groups,
    worse_off,
    trade_off,
    heat_map,
    intervals,
    cost,
    training,
    group_weights,
    group_losses,
    mistakes,
    feature_space,
    corrections,
    advice,
    comparisons,
    label_averaging,
    warnings,
    methods,
)


def _card(summary: Summary, part: str, model: Model, t: Language) -> Card:
    average = (t("card.average"), tables.estimate_cell(model.average))
    rates = [(t("card.worst_group"), tables.estimate_cell(model.worst, model.worst_name or "")), average]
    latency = faster(summary, model, t)
    figures = (
        *(rates if summary.groups else [average]),
        (t("card.parameters"), Cell(numbers.short_count(model.parameters), tables.smaller(summary, model, t))),
        *([(t("card.latency"), latency)] if latency is not None else []),
    )
    return Card(t(f"part.{part}"), model.label, part, figures)


def _training_charts(summary: Summary, model: Model, t: Language) -> Iterable[Chart]:
    yield Chart(
        f"accuracy-{model.key}",
        "",
        t("chart.accuracy_curves.description", model=model.label),
        partial(charts.accuracy_curves, summary, model, t, legend=False),
    )
    if model.curves["loss"]:
        yield Chart(
            f"loss-{model.key}",
            "",
            t("chart.loss_curve.description", model=model.label),
            partial(charts.loss_curve, model, t),
        )


def _group_history(summary: Summary, field: str, key: str, t: Language) -> Section | None:
    recorded = [model for model in summary.models if model.curves[field]]
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
    folded = tuple(tables.group_history_table(summary, model, field, t) for model in recorded)
    names = [summary.groups[group] for group in shown]
    styles = zip(names, group_colours(len(names)), group_dashes(len(names)), strict=True)
    legend = tuple(Line(name, colour, _dash(dash)) for name, colour, dash in styles)
    lead = t(f"lead.{field}")
    if len(shown) < len(summary.groups):
        lead += t("space") + t("lead.some_groups", shown=len(shown), groups=len(summary.groups))
    return Section(key, t(f"section.{field}"), lead, (Panels(legend, panels), Folded(t("fold.history"), folded)))


def _dash(pattern: Sequence[int]) -> str:
    return "" if len(pattern) < 2 or pattern[1] == 0 else " ".join(map(str, pattern))


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
