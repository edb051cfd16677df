"""Sentences a reader can say in a meeting, made of measured numbers only."""

from __future__ import annotations

from limbeck.report import numbers
from limbeck.report.language import Language
from limbeck.report.summary import Comparison, Model, Summary
from limbeck.report.tables import shrink

WORSE_BY = 0.01
"""Without a test, a group is named as worse off where its accuracy falls by more than this."""


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


def sentences(summary: Summary, t: Language) -> tuple[str, ...]:
    """What it is, what it does, what it gains and who is worse off."""
    best, plain, teacher = summary.best, summary.plain, summary.teacher
    shown = best or plain
    if shown is None or shown.average.mean is None:
        return ()
    said = [_what_it_is(shown, teacher, t), _how_good(summary, shown, t)]
    if best is not None and plain is not None:
        said.append(_against_plain(summary, best, plain, t))
    other = summary.best_without_teacher
    if best is not None and other is not None:
        said.append(_against_other(summary, best, other, t))
    if summary.groups and teacher is not None:
        said.append(_worse_off(summary, shown, teacher, t("than.teacher", model=teacher.label), t))
    if summary.groups and best is not None and plain is not None:
        said.append(_worse_off(summary, best, plain, t("than.plain", model=plain.label), t))
    return tuple(said)


def _what_it_is(model: Model, teacher: Model | None, t: Language) -> str:
    if model.parameters is None:
        return t("sentence.what_unknown", model=model.label)
    size, times = numbers.count(model.parameters), shrink(teacher, model)
    if teacher is None or times is None:
        return t("sentence.what", model=model.label, parameters=size)
    ratio = numbers.ratio(times)
    return t("sentence.what_shrunk", model=model.label, parameters=size, ratio=ratio, teacher=teacher.label)


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
    """Which groups lose: those the comparisons tell or, where none were made, those that fall by over a point."""
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
