"""Sentences a reader can say in a meeting, made of measured numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.report import numbers
from limbeck.report.costs import latency
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
    said = t(
        f"headline.{entry.tone}",
        model=best.label,
        place=t(f"place.{summary.metric}"),
        value=numbers.percent(entry.value),
        reference=numbers.percent(entry.reference),
        difference=numbers.points(entry.difference),
        interval=numbers.points_interval(entry.low, entry.high) or numbers.NOTHING,
        seeds=len(best.runs),
    )
    told = would_tell(summary, entry, t)
    return said + (t("space") + told if told else "")


def would_tell(summary: Summary, entry: Comparison | None, t: Language) -> str:
    """What would tell an undecided difference, or that it does not matter; empty where it is told."""
    advice = None if entry is None or entry.tone != "same" else entry.advice
    if not advice or advice.get("detectable") is None:
        return ""
    points = numbers.points(advice["detectable"]).lstrip("+")
    if not advice["matters"]:
        return t("tell.nothing", points=points)
    seeds, samples, both = advice["more_seeds"], advice["more_samples"], advice["both"]
    if seeds and samples:
        return t("tell.either", seeds=_more_seeds(seeds, t), samples=_more_samples(summary, advice, samples, t))
    if samples:
        kind = "one_run" if advice["one_run"] else "samples"
        return t(f"tell.{kind}", samples=_more_samples(summary, advice, samples, t))
    if seeds:
        return t("tell.seeds", seeds=_more_seeds(seeds, t))
    if both:
        more = _more_samples(summary, advice, both["samples"], t)
        return t("tell.both", seeds=_more_seeds(both["seeds"], t), samples=more)
    return t("tell.detectable", points=points)


def _more_seeds(more: int, t: Language) -> str:
    return t("tell.one_more_seed") if more == 1 else t("tell.more_seeds", n=numbers.about(more))


def _more_samples(summary: Summary, advice: Mapping[str, Any], more: int, t: Language) -> str:
    n, group = numbers.about(more), advice["group"]
    if group is None:
        return t("tell.more_samples", n=n)
    shown = summary.shown.get(group, group)
    others = len(set(advice["more_by_group"]) - {group})
    return t("tell.more_of_groups" if others else "tell.more_of_group", n=n, group=shown, others=others)


def sentences(summary: Summary, t: Language) -> tuple[str, ...]:
    """What it is, what it gains and what it risks, one after the other."""
    return tuple(line for _, lines in meeting(summary, t) for line in lines)


def meeting(summary: Summary, t: Language) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What a meeting asks, each question with its sentences: what it is, what it gains, what it risks.

    A comparison stands under gains, or under risks where the student lost it.
    """
    best, plain, teacher, other = summary.best, summary.plain, summary.teacher, summary.best_without_teacher
    shown = best or plain
    if shown is None or shown.average.mean is None:
        return ()
    what = [_what_it_is(shown, teacher, t), _how_good(summary, shown, t), *_what_it_costs(summary, shown, teacher, t)]
    gains: list[str] = []
    risks: list[str] = []
    for reference, say in ((plain, _against_plain), (other, _against_other)):
        if best is not None and reference is not None:
            entry = summary.compare(best, reference, summary.metric)
            lost = entry is not None and entry.tone == "worse"
            (risks if lost else gains).append(say(summary, best, reference, t))
    if summary.groups and teacher is not None:
        risks.append(_worse_off(summary, shown, teacher, t("than.teacher", model=teacher.label), t))
    if summary.groups and best is not None and plain is not None:
        risks.append(_worse_off(summary, best, plain, t("than.plain", model=plain.label), t))
    risks += [*_too_small(summary, t), *_calibrated(shown, t), *_told_otherwise(summary, shown, t)]
    asked = ((t("meeting.what"), what), (t("meeting.gains"), gains), (t("meeting.risks"), risks))
    return tuple((title, tuple(lines)) for title, lines in asked if lines)


def _what_it_costs(summary: Summary, model: Model, teacher: Model | None, t: Language) -> list[str]:
    ours = latency(summary.cost(model), 1)
    theirs = latency(summary.cost(teacher), 1) if teacher is not model else None
    if ours is None:
        return []
    said = t("sentence.latency", latency=numbers.milliseconds(ours))
    if theirs is None or teacher is None:
        return [said]
    times = {"faster": theirs / ours, "slower": ours / theirs}
    kind = next((name for name, ratio in times.items() if ratio >= 1.05), "same")
    return [
        said
        + t("space")
        + t(
            f"sentence.latency_{kind}",
            teacher=teacher.label,
            latency=numbers.milliseconds(theirs),
            ratio=numbers.ratio(times.get(kind)),
        )
    ]


def _too_small(summary: Summary, t: Language) -> list[str]:
    small = [name for group, name in enumerate(summary.groups) if summary.is_small(group)]
    if not small:
        return []
    return [t("sentence.too_small", n=len(small), named=t("list").join(small[:3]), minimum=summary.minimum)]


def _calibrated(model: Model, t: Language) -> list[str]:
    if model.calibration.mean is None:
        return []
    return [t("sentence.calibration", error=numbers.points(model.calibration.mean).lstrip("+"))]


def _told_otherwise(summary: Summary, model: Model, t: Language) -> list[str]:
    row = ((summary.evidence.get("corrections") or {}).get("models") or {}).get(model.key)
    if not row or not row["samples"] or round(row["overturned"]) == 0:
        return []
    share = numbers.percent(row["overturned"] / row["samples"])
    return [t("sentence.told_otherwise", n=numbers.count(row["overturned"]), share=share)]


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
    if entry is None or entry.tone == "unknown":
        return said
    told = would_tell(summary, entry, t)
    return t("space").join([said, t(f"sentence.verdict_{entry.tone}"), *([told] if told else [])])


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
    found = [entry for entry in summary.changes(model, than) if entry is not None]
    tested = [entry for entry in found if entry.tone != "unknown"]
    if tested:
        losses = [(entry.difference or 0.0, str(entry.group)) for entry in tested if entry.tone == "worse"]
        some, nobody = "sentence.worse_off", "sentence.nobody_worse"
    else:
        differences = [(entry.difference or 0.0, str(entry.group)) for entry in found]
        losses = [(difference, group) for difference, group in differences if difference < -WORSE_BY]
        some, nobody = "sentence.worse_off_untested", "sentence.nobody_worse_untested"
    if not losses:
        return t(nobody, than=name)
    shown = [t("sentence.loss", group=group, difference=numbers.points(loss)) for loss, group in sorted(losses)[:3]]
    return t(some, than=name, n=len(losses), groups=len(summary.groups), named=t("list").join(shown))
