"""The report: what it says, against independent arithmetic; that it is safe, complete and alike in every language."""

from __future__ import annotations

import base64
import copy
import doctest
import hashlib
import json
import re
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

import limbeck.report
from limbeck.errors import ConfigError, DataError
from limbeck.evaluation import worst_group_interval
from limbeck.report import (
    charts,
    corrections,
    feature_space,
    languages,
    numbers,
    tables,
    worse_off,
    write_html,
    write_json,
    write_markdown,
)
from limbeck.report.blocks import Chart, Panels
from limbeck.report.language import load_language
from limbeck.report.markdown import markdown
from limbeck.report.page import embedded_json, html
from limbeck.report.sections import sections
from limbeck.report.sentences import headline, meeting, sentences
from limbeck.report.styles import model_styles
from limbeck.report.summary import Summary
from test_report_results import GROUPS, PICTURE, big_result, evidence, pilot_result, whole_result

ROOM = Path(limbeck.report.__file__).parent
EN = load_language("en")
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """What a browser would see: elements with their attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in ("meta", "link", "br", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        if tag == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif data.strip():
            self.texts.append((tag, data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def specs(self) -> dict[str, Any]:
        return {a["data-spec"] or "": json.loads(text) for a, text in self.scripts if "data-spec" in a}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return pilot_result()


@pytest.fixture(scope="module")
def summary(result: dict[str, Any]) -> Summary:
    return Summary.from_result(result)


@pytest.fixture(scope="module")
def page(summary: Summary) -> Page:
    return Page(html(summary, EN))


# ------------------------------------------------------------------------------------------------------- languages


def _strings(code: str) -> dict[str, str]:
    return dict(load_language(code).strings)


def _placeholders(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("code", languages())
def test_languages_have_the_same_keys_and_placeholders(code: str) -> None:
    english, other = _strings("en"), _strings(code)
    assert other.keys() == english.keys()
    assert {key: _placeholders(text) for key, text in other.items()} == {
        key: _placeholders(text) for key, text in english.items()
    }
    assert all(text.strip() for key, text in other.items() if key != "space")


def test_english_and_japanese_are_there_and_differ() -> None:
    assert set(languages()) >= {"en", "ja"}
    english, japanese = _strings("en"), _strings("ja")
    assert {key for key in english if english[key] == japanese[key]} == set()
    assert {key for key, text in japanese.items() if not re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text)} <= {
        "join",
        "list",
        "space",
        "worse.and",
        "corrections.rule",
        "exhibit.class",
        "audit.join",
    }


def test_yaml_keys_are_texts() -> None:
    def keys(tree: Any) -> list[object]:
        if not isinstance(tree, dict):
            return []
        return [*tree, *(key for value in tree.values() for key in keys(value))]

    for code in languages():
        tree = yaml.safe_load((ROOM / "languages" / f"{code}.yaml").read_text(encoding="utf-8"))
        assert [key for key in keys(tree) if not isinstance(key, str)] == []


def test_every_key_of_the_code_exists_and_every_key_is_used() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in ROOM.glob("*.py"))
    code += (ROOM / "templates" / "page.html.j2").read_text(encoding="utf-8")
    code += (ROOM.parent / "pilots" / "overview.py").read_text(encoding="utf-8")
    # Those of an audit are used by the audit: tests/test_audit_said.py.
    keys = {key for key in _strings("en") if not key.startswith("audit.")}
    literal = set(re.findall(r"""\b(?:t|self)\(\s*f?["']([a-z_.]+)["']""", code))
    assert literal - keys == set()
    # Keys made of a family and a name: `t(f"column.{name}")`, `t.term("metric", name)`, `"sentence.worse_off"`.
    families = set(re.findall(r"""f["']([a-z_]+(?:\.[a-z]+)*)[._]\{""", code)) | set(
        re.findall(r"""t\.term\(["'](\w+)""", code)
    )
    quoted = set(re.findall(r"""["']([a-z_]+\.[a-z_.]+)["']""", code))
    unused = {
        key for key in keys - literal - quoted if not any(key.startswith(family) for family in families | {"verdict"})
    }
    assert unused == set()


def test_unknown_language_suggests_the_nearest(result: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown report language 'eng': did you mean 'en'\?"):
        write_html(result, tmp_path / "x.html", language="eng")
    with pytest.raises(ConfigError, match="unknown report language"):
        load_language("../en")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- numbers


def test_examples_in_docstrings() -> None:
    for module in (numbers, sys.modules["limbeck.report.language"]):
        failed, tried = doctest.testmod(module)
        assert failed == 0
        assert tried > 0


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (numbers.percent(0), "0.0%"),
        (numbers.percent(float("nan")), "–"),
        (numbers.points(-0.00004), "0.0"),
        (numbers.points(None), "–"),
        (numbers.points_interval(None, 0.1), ""),
        (numbers.percent_interval(0.1, float("inf")), ""),
        (numbers.count(None), "–"),
        (numbers.short_count(999_600), "1,000 k"),
        (numbers.short_count(999_499), "999 k"),
        (numbers.short_count(1_500_000_000), "1.5 G"),
        (numbers.duration(59.97), "1 min 00 s"),
        (numbers.duration(3599.7), "1 h 00 min"),
        (numbers.duration(None), "–"),
        (numbers.about(100), "100"),
        (numbers.about(101), "110"),
        (numbers.p_value(None), "–"),
        (numbers.signed(float("nan")), "–"),
        (numbers.moment(None), "None"),
        (numbers.moment("2025-11-22T09:30:00"), "2025-11-22 09:30"),
        (numbers.moment("2025-11-22T09:30:00+09:00"), "2025-11-22 00:30 UTC"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


# --------------------------------------------------------------------------------------------------------- summary


def test_means_and_spreads_are_over_seeds(result: dict[str, Any], summary: Summary) -> None:
    for entry, model in zip(result["models"], summary.models, strict=True):
        tests = [run["test"] for run in entry["runs"]]
        for name, estimate in (("average", model.average), ("worst_group", model.worst), ("gap", model.gap)):
            values = np.asarray([test[name] for test in tests])
            assert estimate.mean == pytest.approx(values.mean(), abs=1e-12)
            assert estimate.spread == pytest.approx(values.std(ddof=1), abs=1e-12)
        accuracy = np.asarray([test["group_correct"] for test in tests]) / np.asarray([t["group_total"] for t in tests])
        assert [group.mean for group in model.groups] == pytest.approx(accuracy.mean(axis=0), abs=1e-12)
        assert [group.spread for group in model.groups] == pytest.approx(accuracy.std(axis=0, ddof=1), abs=1e-12)


def test_intervals_rest_on_the_test_samples_of_one_run(summary: Summary) -> None:
    model = summary.models[0]
    for group, estimate in enumerate(model.groups):
        n = summary.test_count(group)
        assert estimate.mean is not None
        low, high = proportion_confint(estimate.mean * n, n, method="wilson")
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-9)
    low, high = proportion_confint(model.average.mean * 9042, 9042, method="wilson")
    assert (model.average.low, model.average.high) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_of_the_worst_group_allows_for_its_selection(summary: Summary) -> None:
    model = summary.models[0]
    tests = [run.test for run in model.runs]
    own = [worst_group_interval(test["group_correct"], test["group_total"], minimum=10) for test in tests]
    assert (model.worst.low, model.worst.high) == pytest.approx(np.mean(own, axis=0))
    assert model.worst.low is not None
    assert model.groups[2].low is not None
    assert model.worst.low < model.groups[2].low


def test_the_interval_of_the_worst_group_holds_its_mean_where_seeds_have_different_worst_groups() -> None:
    result = pilot_result(seeds=2)
    for model in result["models"]:
        for run, worst in zip(model["runs"], (2, 3), strict=True):
            test = run["test"]
            test["group_correct"] = [round(0.9 * total) for total in test["group_total"]]
            test["group_correct"][worst] = round(0.4 * test["group_total"][worst])
            test["worst_group"] = test["group_correct"][worst] / test["group_total"][worst]
    for row in Summary.from_result(result).models:
        assert row.worst.low is not None
        assert row.worst.high is not None
        assert row.worst.low < row.worst.mean < row.worst.high < 0.6


def test_one_seed_has_no_spread() -> None:
    model = Summary.from_result(pilot_result(seeds=1)).models[0]
    assert model.average.spread is None
    assert model.average.low is not None


def test_an_empty_group_has_no_accuracy(result: dict[str, Any]) -> None:
    changed = _without_test_samples(result, 2)
    summary = Summary.from_result(changed)
    assert all(model.groups[2].mean is None for model in summary.models)
    assert summary.is_small(2)
    row = tables.group_table(summary, EN).rows[2]
    assert [cell.text for cell in row[1:7]] == ["–"] * 6
    assert "†" in row[0].text
    assert all("0.0%" not in cell.text for cell in row)


def test_roles(summary: Summary) -> None:
    assert summary.plain is not None
    assert summary.plain.key == "erm"
    assert summary.best is not None
    assert summary.best.key == "groupdistil"
    assert summary.teacher is not None
    assert summary.teacher.key == "group_dro_teacher"
    assert summary.best_without_teacher is not None
    assert summary.best_without_teacher.key == "group_dro"


def test_the_best_is_chosen_on_validation_never_on_test(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    del changed["chosen"]
    kd = next(model for model in changed["models"] if model["key"] == "kd")
    for run in kd["runs"]:
        run["test"]["worst_group"] = run["test"]["average"] = 0.999
    best = Summary.from_result(changed).best
    assert best is not None
    assert best.key == "groupdistil"
    for run in kd["runs"]:
        run["validation"]["worst_group"] = 0.999
        run["test"]["worst_group"] = 0.001
    best = Summary.from_result(changed).best
    assert best is not None
    assert best.key == "kd"


def test_the_pilots_own_choice_counts(result: dict[str, Any]) -> None:
    best = Summary.from_result({**result, "chosen": "kd"}).best
    assert best is not None
    assert best.key == "kd"
    nobody = Summary.from_result({**result, "chosen": "nobody", "strongest_baseline": "erm"})
    assert nobody.best is not None
    assert nobody.best.key == "groupdistil"
    assert nobody.best_without_teacher is None


def test_the_average_selects_where_the_rule_is_the_average(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result) | {"selection": {"rule": "average"}}
    del changed["chosen"]
    best = Summary.from_result(changed).best
    assert best is not None
    assert best.key == "kd"


def test_equal_labels_are_told_apart(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    for model in changed["models"][2:4]:
        model["label"] = "student"
    assert [model.label for model in Summary.from_result(changed).models][2:4] == [
        "student (3)",
        "student (4)",
    ]


def test_names_are_shown_on_one_line_and_told_apart() -> None:
    groups = ("a\nb", "a b", "c\u2028d", "e")
    summary = Summary.from_result(pilot_result(groups=groups))
    assert summary.groups == ("a b (1)", "a b (2)", "c d", "e")
    assert {model.worst_name for model in summary.models} <= {*summary.groups}
    assert {entry.group for entry in summary.comparisons if entry.group} == {*summary.groups}


def test_the_result_is_not_changed(result: dict[str, Any], tmp_path: Path) -> None:
    before = copy.deepcopy(result)
    write_html(result, tmp_path / "a.html")
    write_markdown(result, tmp_path / "a.md")
    write_json(result, tmp_path / "a.json")
    assert result == before


def _drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        for key in path[:-1]:
            result = result[key]
        del result[path[-1]]

    return change


def _put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        for key in path[:-1]:
            result = result[key]
        result[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("verdict"), "result: 'verdict' is missing"),
        (_drop("models"), "result: 'models' is missing"),
        (_drop("data"), "result: 'data' is missing"),
        (_drop("data", "groups"), "data: 'groups' is missing"),
        (_drop("data", "samples"), "data: 'samples' is missing"),
        (_put(None, "verdict"), "result.verdict: found NoneType, expected str"),
        (_put({}, "models"), "result.models: found dict, expected sequence"),
        (_put([[]], "models"), r"models\[0\]: found list, expected a mapping"),
        (_drop("models", 1, "key"), r"models\[1\]: 'key' is missing"),
        (_drop("models", 1, "runs"), r"models\[1\]: 'runs' is missing"),
        (_put([7], "models", 1, "runs"), r"models\[1\].runs\[0\]: found int, expected a mapping"),
        (_drop("models", 1, "runs", 2, "test"), r"models\[1\].runs\[2\]: 'test' is missing"),
        (_drop("models", 1, "runs", 2, "test", "group_total"), r"models\[1\].runs\[2\].test: 'group_total' is missing"),
        (_put([1, 2], "models", 0, "runs", 0, "test", "group_correct"), "group_correct: 2 entries, expected 4"),
        (_put([1], "data", "group_counts", "test"), "data.group_counts.test: 1 entries, expected 4"),
        (_drop("models", 0, "runs", 0, "history", 3, "epoch"), r"history\[3\]: 'epoch' is missing"),
        (_put("erm", "models", 0, "key"), "two models have the key 'erm'"),
        (_drop("comparisons", 0, "metric"), r"comparisons\[0\]: 'metric' is missing"),
    ],
)
def test_a_wrong_result_is_named_and_nothing_is_written(
    result: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    broken = copy.deepcopy(result)
    change(broken)
    for write, name in ((write_html, "a.html"), (write_markdown, "a.md"), (write_json, "a.json")):
        with pytest.raises(DataError, match=message):
            write(broken, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------- what it says


def test_the_verdict_comes_first(result: dict[str, Any], page: Page) -> None:
    seen = [text for tag, text in page.texts if tag not in ("title", "style", "a")]
    assert seen[0] == result["verdict"]
    assert [tag for tag, text in page.texts if text == result["verdict"]] == ["h1"]


def test_chapters_and_their_order(summary: Summary) -> None:
    expected = ["plain-words", "results", "groups", "worse-off", "trade-off", "heat-map", "intervals", "training"]
    expected += ["group-weights", "group-losses", "mistakes", "comparisons", "warnings", "methods"]
    assert [section.key for section in sections(summary, EN)] == expected
    measured = [section.key for section in sections(Summary.from_result(whole_result()), EN)]
    assert [key for key in measured if key not in expected] == ["cost", "feature-space", "corrections", "advice"]
    assert [key for key in measured if key in expected] == expected


def test_the_tables_hold_every_number(result: dict[str, Any], page: Page) -> None:
    texts = Counter(text for _, text in page.texts)
    for model in result["models"]:
        accuracies = []
        for group in range(4):
            rates = [r["test"]["group_correct"][group] / r["test"]["group_total"][group] for r in model["runs"]]
            accuracies.append(f"{100 * np.mean(rates):.1f}%")
        for run in model["runs"]:
            assert texts[f"{100 * run['test']['average']:.1f}%"]
            assert texts[f"{100 * run['test']['worst_group']:.1f}%"]
        for text in accuracies:
            assert texts[text] or texts[f"▼ {text}"]
        assert texts[f"{model['parameters']:,}"]
    rows = tables.group_table(Summary.from_result(result), EN).rows
    for split, shown in (("train", "training"), ("validation", "validation"), ("test", "test")):
        for row, count in zip(rows, result["data"]["group_counts"][split], strict=True):
            assert f"{shown} {count:,}" in row[0].detail
            assert texts[row[0].detail]


def test_the_results_table_row_by_row(result: dict[str, Any], summary: Summary) -> None:
    table = tables.results_table(summary, EN)
    titles = [column.title for column in table.columns]
    assert titles[:4] == ["Model", "Worst group", "Average", "Worst group against plain student (points)"]
    by_model = {row[0].text: row for row in table.rows}
    assert len(by_model) == 6
    decided = next(c for c in result["comparisons"] if (c["model"], c["metric"]) == ("groupdistil", "worst_group"))
    cell = by_model["groupdistil"][3]
    assert cell.text == f"+{100 * decided['difference']:.1f} ▲ better"
    assert cell.detail == f"[+{100 * decided['low']:.1f}, +{100 * decided['high']:.1f}]"
    assert by_model["kd"][3].text.endswith("≈ not distinguishable")
    assert by_model["erm (no teacher)"][3].text == "–"
    # The pilot does not compare teachers: a difference without a verdict.
    assert re.fullmatch(r"[+−]\d+\.\d", by_model["ERM teacher"][3].text)
    assert by_model["groupdistil"][6].text == "Group DRO teacher"
    assert by_model["groupdistil"][7].detail == "11× fewer"


def test_comparisons_say_what_would_tell(summary: Summary) -> None:
    entries = [entry for entry in summary.comparisons if entry.metric == "worst_group" and entry.tone == "same"]
    rows = tables.comparison_table(summary, entries, "x", EN).rows
    assert rows
    assert all(row[6].detail == "about 7 more seeds or 13,000 more samples would tell" for row in rows)
    assert all(row[5].text == "0.410" for row in rows)  # the corrected p value, not the raw 0.2


def test_sentences_hold_only_measured_numbers(summary: Summary) -> None:
    best, plain = summary.best, summary.plain
    assert best is not None
    assert plain is not None
    said = sentences(summary, EN)
    assert len(said) == 7
    assert said[0] == "“groupdistil” is a model with 6,274 parameters, 11× fewer than its teacher “Group DRO teacher”."
    assert f"in its worst group, {best.worst_name}, in {numbers.percent(best.worst.mean)}" in said[1]
    assert f"reaches {numbers.percent(plain.worst.mean)} in the worst group" in said[2]
    assert said[2].endswith("Distillation gained.")
    losses = [e for e in summary.compare_groups(best, plain) if e.verdict == "worse"]
    assert f"in {len(losses)} of 4 groups" in said[5]
    assert f"by {100 * (best.calibration.mean or 0):.1f} points on average" in said[6]


def test_the_meeting_hears_what_it_is_what_it_gains_and_what_it_risks() -> None:
    result = whole_result()
    summary = Summary.from_result(result)
    said = dict(meeting(summary, EN))
    assert list(said) == ["What it is", "What it gains", "What it risks"]
    assert said["What it is"][2] == (
        "One sample takes it 0.31 ms on one thread of the machine it was measured on. "
        "That is 10× faster than the teacher “Group DRO teacher” (3.21 ms)."
    )
    told = result["evidence"]["corrections"]["models"]["groupdistil"]["overturned"]
    assert any(
        f"another class than the label says for {told:,.0f} samples (8.0%)" in one for one in said["What it risks"]
    )
    # A comparison that the student lost is a risk, not a gain.
    lost = copy.deepcopy(result)
    for entry in lost["comparisons"]:
        if (entry["model"], entry["against"], entry["metric"]) == ("groupdistil", "erm", "worst_group"):
            entry |= {"verdict": "worse", "difference": -0.1, "low": -0.15, "high": -0.05}
    changed = dict(meeting(Summary.from_result(lost), EN))
    assert not any("the same small model" in one for one in changed["What it gains"])
    assert changed["What it risks"][0].endswith("Distillation lost.")


def test_small_groups_are_a_risk_that_is_said(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    changed["data"]["group_counts"]["test"][1] = 9
    risks = dict(meeting(Summary.from_result(changed), EN))["What it risks"]
    assert "Of 1 groups with fewer than 10 test samples nothing can be said: income ≤50K, Male." in risks


# ---------------------------------------------------------------------------------------- front, worse off, evidence


def test_the_front_is_that_of_an_independent_search() -> None:
    rng = np.random.default_rng(3)
    result = pilot_result(recipes=12, seeds=1, epochs=1)
    for model in result["models"]:
        test = model["runs"][0]["test"]
        test["average"], test["worst_group"] = rng.choice(np.arange(1, 9) / 10, 2).tolist()
    summary = Summary.from_result(result)
    points = {
        m["key"]: (m["runs"][0]["test"]["average"], m["runs"][0]["test"]["worst_group"]) for m in result["models"]
    }
    small = [m["key"] for m in result["models"] if m["role"] != "teacher"]
    expected = set()
    for key in small:
        a, w = points[key]
        beaten = [k for k in small if points[k] != (a, w) and points[k][0] >= a and points[k][1] >= w]
        if not beaten:
            expected.add(key)
    assert {model.key for model in summary.front} == expected
    averages = [model.average.mean or 0 for model in summary.front]
    assert averages == sorted(averages)
    drawn = charts.scatter(summary, EN).datasets["front"]
    assert [(row["x"], row["y"]) for row in drawn] == [points[model.key] for model in summary.front]


def test_the_front_is_said_in_words(summary: Summary) -> None:
    chapter = next(section for section in sections(summary, EN) if section.key == "trade-off")
    said = chapter.blocks[0].paragraphs[0]
    assert all(model.label in said for model in summary.front)
    assert len(summary.front) > 1
    assert f"one of these {len(summary.front)} gives up" in said


def test_who_is_worse_off_is_what_the_comparisons_say() -> None:
    result = whole_result()
    summary = Summary.from_result(result)
    best, teacher, plain = summary.best, summary.teacher, summary.plain
    assert best is not None
    assert teacher is not None
    assert plain is not None
    table = worse_off.group_differences(summary, best, (teacher, plain), EN)
    for row, change in zip(table.rows, result["evidence"]["changes"][best.key], strict=True):
        assert row[0].text == change["group"]
        for cell, than in zip(row[4:], (teacher, plain), strict=True):
            decided = change["against"][than.key]
            assert cell.text.startswith(numbers.points(decided["difference"]))
            assert cell.text.endswith(decided["verdict"])
            assert cell.detail == numbers.points_interval(decided["low"], decided["high"])
    worse = [row[0].text for row in table.rows if row[5].tone == "worse"]
    better = [row[0].text for row in table.rows if row[5].tone == "better"]
    said = worse_off.said(summary, best, plain, EN)
    assert worse
    assert better
    assert all(name in said for name in worse + better)
    first, _, second = said.partition("better off:")
    assert all(name in first for name in worse)
    assert all(name in second for name in better)
    drawn = {(row["m"], row["g"]): row for row in worse_off.differences(summary, EN).datasets["rows"]}
    assert len(drawn) == 8
    for change in result["evidence"]["changes"][best.key]:
        for than in (teacher, plain):
            row, decided = drawn[than.label, change["group"]], change["against"][than.key]
            ends = [decided[name] for name in ("difference", "low", "high")]
            assert [row[name] for name in "dlh"] == pytest.approx(ends, abs=1e-5)
    counted = worse_off.everyone(summary, EN).rows
    own = next(row for row in counted if row[0].text == best.label)
    assert [own[3].text, own[4].text] == [str(len(worse)), str(len(better))]


def test_without_evidence_the_pilots_own_comparisons_decide(result: dict[str, Any], summary: Summary) -> None:
    best, plain, teacher = summary.best, summary.plain, summary.teacher
    assert best is not None
    assert plain is not None
    assert teacher is not None
    decided = {c.group: c for c in summary.compare_groups(best, plain)}
    assert [entry and entry.verdict for entry in summary.changes(best, plain)] == [decided[g].verdict for g in GROUPS]
    # A pilot compares no teachers: plain differences, and no verdict.
    untested = summary.changes(best, teacher)
    assert [entry and entry.tone for entry in untested] == ["unknown"] * 4
    expected = [a.mean - b.mean for a, b in zip(best.groups, teacher.groups, strict=True)]
    assert [entry and entry.difference for entry in untested] == pytest.approx(expected)


def test_standings_give_the_front_its_intervals() -> None:
    result = whole_result()
    summary = Summary.from_result(result)
    rows = {row["m"]: row for row in charts.scatter(summary, EN).datasets["means"]}
    standing = next(one for one in result["evidence"]["standings"] if one["key"] == "groupdistil")
    drawn = [rows["groupdistil"][name] for name in "lhab"]
    wanted = [standing[name] for name in ("worst_low", "worst_high", "average_low", "average_high")]
    assert drawn == pytest.approx(wanted, abs=1e-5)
    chapter = next(section for section in sections(summary, EN) if section.key == "trade-off")
    assert "on the front in 62% of redrawn seeds and test sets" in chapter.blocks[0].paragraphs[0]
    table = chapter.blocks[-1].tables[0]
    assert len(table.rows) == len(summary.students)
    row = next(row for row in table.rows if row[0].text == "groupdistil")
    assert row[3].text == "◆ on the front"


def test_a_loss_that_nobody_tested_is_said_to_be_untested(result: dict[str, Any]) -> None:
    summary = Summary.from_result({**result, "comparisons": []})
    best, plain = summary.best, summary.plain
    assert best is not None
    assert plain is not None
    said = worse_off.said(summary, best, plain, EN)
    assert "not tested" in said
    assert "chance" not in said


def test_cost_stands_against_the_teacher() -> None:
    summary = Summary.from_result(whole_result())
    table = next(section for section in sections(summary, EN) if section.key == "cost").blocks[0]
    titles = [column.title for column in table.columns]
    row = next(row for row in table.rows if row[0].text == "groupdistil")
    cells = dict(zip(titles, row, strict=True))
    assert (cells["Size"].text, cells["Size"].detail) == ("25.1 kB", "11× less")
    assert (cells["Latency, batch 1"].text, cells["Latency, batch 1"].detail) == ("0.31 ms", "10× faster")
    assert (cells["Latency, batch 64"].text, cells["Latency, batch 64"].detail) == ("7.9 ms", "13× faster")
    assert (cells["Energy a sample"].text, cells["Energy a sample"].detail) == ("1.7 mJ", "12× less")
    teacher = next(row for row in table.rows if row[0].text == "Group DRO teacher")
    assert all(cell.detail == "" for cell in teacher)


def test_without_energy_counters_none_is_stated() -> None:
    result = whole_result()
    for entry in result["evidence"]["cost"]["models"].values():
        entry["joules"] = None
    chapter = next(s for s in sections(Summary.from_result(result), EN) if s.key == "cost")
    assert all(column.title != "Energy a sample" for column in chapter.blocks[0].columns)
    assert "no" in chapter.blocks[1].paragraphs[0].lower()


def test_corrections_are_told_in_numbers_and_shown_one_by_one() -> None:
    result = whole_result()
    page = Page(html(Summary.from_result(result), EN))
    told = result["evidence"]["corrections"]["models"]["groupdistil"]
    assert any(
        f"for {told['overturned']:,.0f} of {told['samples']:,} training samples (8.0%)" in text
        for _, text in page.texts
    )
    assert [image["src"] for image in page.all("img")] == [PICTURE] * 6
    assert all(image["alt"] for image in page.all("img"))
    assert sum(text == "Machine operator inspector" for _, text in page.texts) == 12
    assert ("dd", "the teacher's own output is the target") in page.texts
    bars = {row["n"]: row for row in corrections.where(Summary.from_result(result), "group", EN).datasets["rows"]}
    for entry in result["evidence"]["corrections"]["by"]["group"]:
        assert bars[entry["name"]]["s"] == pytest.approx(entry["overturned"] / entry["samples"], abs=1e-5)


def test_a_picture_from_elsewhere_is_not_shown() -> None:
    result = whole_result()
    for row in result["evidence"]["corrections"]["top"]:
        row["picture"] = "https://example.org/a.png"
    assert Page(html(Summary.from_result(result), EN)).all("img") == []


def test_advice_is_held_against_the_results() -> None:
    result = whole_result()
    summary = Summary.from_result(result)
    chapter = next(section for section in sections(summary, EN) if section.key == "advice")
    reached = np.mean([run["test"]["worst_group"] for run in result["models"][5]["runs"]])
    assert result["models"][5]["key"] == "groupdistil"
    assert (
        chapter.blocks[0]
        .paragraphs[0]
        .startswith(f"The advice was right: groupdistil reached {100 * reached:.1f}% in the worst group")
    )
    rows = {row[0].text: row for row in chapter.blocks[2].rows}
    assert rows["groupdistil"][3].text == f"{100 * reached:.1f}%"
    assert rows["rld"][3].text == "–"
    assert rows["rld"][1].tone == "worse"
    for entry in result["evidence"]["audits"].values():
        entry["advice"] = [{**one, "verdict": "use" if one["recipe"] == "kd" else "avoid"} for one in entry["advice"]]
    wrong = next(section for section in sections(Summary.from_result(result), EN) if section.key == "advice")
    assert wrong.blocks[0].paragraphs[0].startswith("The advice was wrong: kd reached")
    for entry in result["evidence"]["audits"].values():
        entry["advice"] = []
    none = next(section for section in sections(Summary.from_result(result), EN) if section.key == "advice")
    assert "nothing can be said" in none.blocks[0].paragraphs[0]


def test_an_audit_speaks_the_language_of_the_page_and_one_that_kept_english_says_so() -> None:
    from limbeck.audits.gates import Finding
    from limbeck.audits.said import Said

    japanese = load_language("ja")
    kept, result = "The labels alone give .50 in the worst group.", whole_result()
    (audit,) = result["evidence"]["audits"].values()
    del audit["said"]
    audit["verdicts"] = [kept]
    before = html(Summary.from_result(result), japanese)
    assert re.search(rf'<ul[^>]* lang="en"><li>{re.escape(kept)}', before)
    why = Finding("g", "help", Said("gate.group weights help", {"balanced_worst": 0.75, "plain_worst": 0.5}))
    said = Said("cap.hurts", {"group": "sex=Female", "teacher": 0.32, "labels": 0.69})
    audit["verdicts"], audit["said"] = [str(said)], [said.to_dict()]
    audit["advice"][0]["reasons"] = [why.to_dict()]
    after = html(Summary.from_result(result), japanese)
    told = "「sex=Female」に不利になります（教師 0.32、ラベルだけでは 0.69）"
    assert told in after
    assert "どの区分も同じ重みにすると 0.75" in after
    assert "Copying this teacher" not in after
    english = html(Summary.from_result(result), EN)
    assert "Copying this teacher will hurt *sex=Female* (.32 against .69 from labels alone)." in english
    assert told not in english
    chapter = next(part for part in sections(Summary.from_result(result), japanese) if part.key == "advice")
    assert [getattr(block, "language", "") for block in chapter.blocks] == ["", "", ""]


def test_many_groups_share_grey_in_the_feature_space() -> None:
    groups = tuple(f"g{number}" for number in range(12))
    summary = Summary.from_result(whole_result(groups=groups, seeds=1, epochs=1))
    names, colours = feature_space.kinds(summary, EN)
    assert len(colours) == feature_space.MAX_KINDS
    assert list(colours)[-1] == "other groups"
    assert set(names) == set(colours)
    rows = feature_space.places(summary, summary.key_models[0], EN).datasets["rows"]
    seen = summary.evidence["feature_space"]["models"][summary.key_models[0].key]
    wrong = sum(
        p != label for p, label in zip(seen["predicted"], summary.evidence["feature_space"]["label"], strict=True)
    )
    assert sum(row["r"] == 0 for row in rows) == wrong


@pytest.mark.parametrize("case", ["no groups", "one seed"])
@pytest.mark.parametrize("code", languages())
def test_unusual_results_with_evidence_are_told(result: dict[str, Any], case: str, code: str) -> None:
    changed = UNUSUAL[case](result)
    found = evidence(changed)
    if case == "no groups":
        found["corrections"]["by"]["group"] = []
    page = Page(html(Summary.from_result({**changed, "evidence": found}), load_language(code)))
    assert "features-groupdistil" in page.specs
    assert "corrections-label" in page.specs
    for word in ("NaN", "nan%", "None", "Infinity", "inf%"):
        assert all(word not in shown for tag, shown in page.texts if tag not in ("style", "code"))


def test_a_difference_nobody_tested_is_not_called_chance(result: dict[str, Any]) -> None:
    said = " ".join(sentences(Summary.from_result({**result, "comparisons": []}), EN))
    assert "chance" not in said
    assert "Distillation gained" not in said
    assert "by over 1 point" in said


def test_the_worst_group_is_marked_once_a_model(summary: Summary) -> None:
    rows = tables.group_table(summary, EN).rows
    for column in range(1, 7):
        assert [row[column].text.startswith("▼") for row in rows].count(True) == 1
        assert [row[column].tone == "worst" for row in rows].count(True) == 1


def test_small_and_untrained_groups_are_marked(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    changed["data"]["group_counts"]["test"][1] = 9
    changed["data"]["group_counts"]["train"][3] = 0
    names = [row[0] for row in tables.group_table(Summary.from_result(changed), EN).rows]
    assert ["†" in cell.text for cell in names] == [False, True, False, False]
    assert ["not in training" in cell.detail for cell in names] == [False, False, False, True]


def test_samples_of_unknown_group_are_said(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    for model in changed["models"]:
        for run in model["runs"]:
            run["test"]["unknown_total"] = 1234
    summary = Summary.from_result(changed)
    assert "1,234" in tables.group_table(summary, EN).note
    narrow, wide = summary.models[0].average, Summary.from_result(result).models[0].average
    assert narrow.low is not None
    assert wide.low is not None
    assert narrow.low > wide.low  # they count in the average


@pytest.mark.parametrize(
    ("verdict", "tone"), [("better", "better"), ("worse", "worse"), ("not distinguishable", "same")]
)
def test_the_japanese_page_opens_in_japanese(result: dict[str, Any], verdict: str, tone: str) -> None:
    changed = copy.deepcopy(result)
    for entry in changed["comparisons"]:
        entry["verdict"] = verdict
    page = Page(html(Summary.from_result(changed), load_language("ja")))
    assert page.all("html")[0]["lang"] == "ja"
    first = next(text for tag, text in page.texts if tag == "h1")
    words = {"better": "上回りました", "worse": "下回りました", "same": "区別できませんでした"}
    assert words[tone] in first
    assert ("p", result["verdict"]) in page.texts
    assert f"head {tone}" in [attributes.get("class") for attributes in page.all("header")]


def test_a_verdict_that_cannot_be_said_in_japanese_stays(result: dict[str, Any]) -> None:
    summary = Summary.from_result({**result, "comparisons": []})
    assert headline(summary, load_language("ja")) == result["verdict"]


# ---------------------------------------------------------------------------------------------------------- charts


def _charts(summary: Summary) -> dict[str, Chart]:
    found = {}
    for section in sections(summary, EN):
        for block in section.blocks:
            if isinstance(block, Chart):
                found[block.key] = block
            elif isinstance(block, Panels):
                found |= {chart.key: chart for _, panel in block.panels for chart in panel}
    return found


def test_every_chart_fits_the_schema_and_describes_itself(summary: Summary) -> None:
    found = _charts(summary)
    assert {"scatter", "heat-map", "group-accuracy", "confusion", "calibration"} <= found.keys()
    assert {f"{kind}-groupdistil" for kind in ("accuracy", "loss", "group-weights", "group-losses")} <= found.keys()
    found |= _charts(Summary.from_result(whole_result()))
    assert {"worse-off", "features-groupdistil", "corrections-rule", "corrections-label"} <= found.keys()
    assert "group-weights-kd" not in found
    for chart in found.values():
        spec = chart.draw().to_dict(validate=True)
        assert spec["description"] == chart.description
        assert len(chart.description) > 20
        assert all(spec["datasets"][name] for name in spec["datasets"] if name not in ("empty", "above", "below"))


def test_scatter_holds_every_seed_and_the_means(result: dict[str, Any], summary: Summary) -> None:
    data = charts.scatter(summary, EN).datasets
    assert len(data["seeds"]) == 18
    assert len(data["means"]) == 6
    for row in data["seeds"]:
        model = next(m for m in result["models"] if m["label"] == row["m"])
        run = model["runs"][int(row["s"])]["test"]
        assert (row["x"], row["y"]) == pytest.approx((run["average"], run["worst_group"]), abs=1e-5)
    named = {row["name"] for row in data["above"] + data["below"]} - {""}
    assert named == {"groupdistil", "erm (no teacher)", "group_dro (no teacher)", "Group DRO teacher"}


def test_heat_map_and_dots_agree_with_the_table(summary: Summary) -> None:
    cells = {(row["m"], row["g"]): row for row in charts.heat_map(summary, EN).datasets["cells"]}
    dots = {(row["m"], row["g"]): row for row in charts.group_accuracy(summary, EN).datasets["rows"]}
    assert len(cells) == len(dots) == 24
    for model in summary.models:
        for group, name in enumerate(GROUPS):
            estimate, cell, dot = model.groups[group], cells[model.label, name], dots[model.label, name]
            assert cell["a"] == dot["a"] == pytest.approx(estimate.mean, abs=1e-5)
            assert (dot["l"], dot["h"]) == pytest.approx((estimate.low, estimate.high), abs=1e-5)
            assert cell["w"] == (name == model.worst_name)


def test_curves_mark_the_selected_epochs(summary: Summary) -> None:
    model = summary.models[0]
    data = charts.accuracy_curves(summary, model, EN).datasets
    assert sorted({(row["s"], row["e"]) for row in data["selected"]}) == [
        (str(run.seed), run.selected_epoch) for run in model.runs
    ]
    worst = EN("axis.worst_group")
    values = [run.history[4]["validation_worst_group"] for run in model.runs]
    mean = next(row["v"] for row in data["means"] if row["e"] == 5 and row["k"] == worst)
    assert mean == pytest.approx(np.mean(values), abs=1e-5)


def test_long_curves_are_thinned_but_keep_their_ends_and_selections() -> None:
    summary = Summary.from_result(pilot_result(epochs=400, seeds=2))
    model = summary.models[0]
    epochs = charts.curve_epochs(model)
    assert {1, 400, *(run.selected_epoch for run in model.runs)} <= set(epochs)
    assert len(epochs) <= charts.MAX_EPOCHS + 2
    assert max(b - a for a, b in pairwise(epochs)) <= 6
    assert len(tables.training_table(summary, model, EN).rows) <= tables.MAX_EPOCHS + 2


def test_a_loss_that_ran_away_is_a_gap(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    for run in changed["models"][0]["runs"]:
        run["history"][3]["loss"] = float("nan")
        run["history"][3]["group_losses"] = [float("inf"), 1.0, None, 2.0]
    summary = Summary.from_result(changed)
    model = summary.models[0]
    assert list(model.curves["loss"]) == [1, 2, 3, 5, 6, 7, 8]
    assert model.curves["group_losses"] == {4: [None, 1.0, None, 2.0]}
    assert all("NaN" not in text for attributes, text in Page(html(summary, EN)).scripts if attributes)


def test_many_groups_are_limited_to_those_with_the_largest_values() -> None:
    groups = tuple(f"g{number}" for number in range(30))
    summary = Summary.from_result(pilot_result(groups=groups, seeds=1))
    shown = charts.tracked_groups(summary, "group_weights")
    assert len(shown) == charts.MAX_GROUP_LINES
    peaks = np.max(
        [
            epoch["group_weights"]
            for model in summary.models
            for epoch in model.runs[0].history
            if epoch["group_weights"] is not None
        ],
        axis=0,
    )
    assert set(shown) == set(np.argsort(-peaks)[: charts.MAX_GROUP_LINES].tolist())
    table = tables.group_history_table(summary, summary.models[1], "group_weights", EN)
    assert len(table.rows) == 30  # the table holds all


def test_pooled_confusion_keeps_every_sample() -> None:
    classes = tuple(f"class {number}" for number in range(30))
    summary = Summary.from_result(pilot_result(classes=classes, seeds=2))
    model = summary.models[2]
    labels, pooled = charts.pooled_confusion(summary, model, None, EN)
    full = np.asarray(model.confusion())
    assert len(labels) == len(pooled) == charts.MAX_CONFUSION_CLASSES
    assert labels[-1] == "the other 19 classes"
    assert np.asarray(pooled).sum() == full.sum()
    kept = [classes.index(label) for label in labels[:-1]]
    assert np.array_equal(np.asarray(pooled)[:-1, :-1], full[np.ix_(kept, kept)])
    assert len(charts.confusion(summary, EN).datasets["rows"]) <= 2 * charts.MAX_CONFUSION_ROWS


def test_confusion_offers_every_group_of_a_small_pilot(summary: Summary) -> None:
    rows = charts.confusion(summary, EN).datasets["rows"]
    assert {row["g"] for row in rows} == {"All groups", *GROUPS}
    assert {row["m"] for row in rows} == {model.label for model in summary.models}
    for row in rows:
        if row["g"] == GROUPS[2]:
            assert row["y"] == ">50K"  # all of that group is of one class


def test_twenty_students_all_look_different() -> None:
    summary = Summary.from_result(pilot_result(recipes=20, seeds=1, epochs=1))
    styles = model_styles(summary)
    assert len(set(styles.values())) == len(styles) == 22


# ------------------------------------------------------------------------------------------------------------ page


def test_the_page_needs_nothing_else(page: Page) -> None:
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "poster", "data", "action", "formaction", "ping", "background"):
            assert not attributes.get(name), (tag, attributes)
        href = attributes.get("href")
        assert href is None or href.startswith("#") or href == "data:,"
    style = (ROOM / "templates" / "page.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_only_our_own_scripts_may_run(page: Page) -> None:
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-inline" not in policy.split("script-src", 1)[1].split(";", 1)[0]
    running = [text for attributes, text in page.scripts if not attributes]
    assert len(running) == 2
    for text in running:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    handlers = [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert handlers == []


def test_the_page_is_well_formed(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("a"):
        href = attributes["href"]
        assert href is not None
        assert href[1:] in ids
    labelled = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert set(labelled) <= set(ids)
    assert len(page.all("h1")) == 1
    assert len(page.all("main")) == 1
    assert page.all("html")[0]["lang"] == "en"
    assert any(attributes.get("class") == "skip" for attributes in page.all("a"))


def test_tables_have_captions_and_headers(page: Page) -> None:
    assert len(page.all("caption")) == len(page.all("table")) > 15
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("noscript")) == 1
    regions = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert all(a.get("tabindex") == "0" and a.get("role") == "region" and a.get("aria-label") for a in regions)


def test_every_chart_has_its_specification(page: Page, summary: Summary) -> None:
    holders = [a["data-chart"] for a in page.all("div") if "data-chart" in a]
    assert sorted(map(str, holders)) == sorted(page.specs) == sorted(_charts(summary))
    for key, chart in _charts(summary).items():
        data = chart.draw().datasets
        for name, table in page.specs[key]["datasets"].items():
            assert [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]] == data[name]


def test_the_same_result_gives_the_same_bytes(result: dict[str, Any], tmp_path: Path) -> None:
    first = write_html(result, tmp_path / "a.html").read_bytes()
    assert write_html(copy.deepcopy(result), tmp_path / "b.html").read_bytes() == first
    assert b"\r" not in first


def test_a_hundred_thousand_samples_are_a_small_file(tmp_path: Path) -> None:
    result = big_result()
    result["evidence"] = evidence(result)
    # Twelve photographs of the largest thumbnails there are.
    for row in result["evidence"]["corrections"]["top"]:
        row["picture"] = "data:image/jpeg;base64," + "A" * 8_000
    # Japanese letters take three bytes each, so that this is the larger of the two.
    path = write_html(result, tmp_path / "big.html", language="ja")
    assert path.stat().st_size < 5 * MEGABYTE
    assert len(Page(path.read_text(encoding="utf-8")).specs) > 40


def test_a_hundred_classes_and_long_training_stay_small(tmp_path: Path) -> None:
    classes = tuple(f"class {number}" for number in range(100))
    path = write_html(pilot_result(recipes=6, epochs=300, classes=classes), tmp_path / "a.html")
    assert path.stat().st_size < 5 * MEGABYTE


EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&</title></style><!--{{ 7*7 }}`|[a](b)"


def evil_result() -> dict[str, Any]:
    """A pilot in which everything a user may name is an attack."""
    groups = (f"g0 {EVIL}", f"g1 {EVIL}", "</script><script>window.broken=1</script>", "g3\nline\u2028break")
    result = pilot_result(groups=groups, classes=(f"c0 {EVIL}", f"c1 {EVIL}"), name=EVIL)
    for model in result["models"]:
        model["label"] = f"{model['key']} {EVIL}"
        model["recipe"]["name"] = EVIL
    result["verdict"] = f"verdict {EVIL}"
    result["warnings"] = [EVIL]
    result["created"] = result["command"] = EVIL
    result["data"]["name"] = result["selection"]["rule"] = result["selection"]["consumes"] = EVIL
    result["data"]["group_columns"] = result["data"]["injections"] = [EVIL]
    result["settings"] = result["machine"] = result["versions"] = {EVIL: EVIL}
    result["configuration"] = {EVIL: EVIL}
    for entry in result["comparisons"]:
        entry["metric"] = EVIL if entry["metric"] == "average" else entry["metric"]
        entry["verdict"] = EVIL if entry["model"] == "kd" else entry["verdict"]
    return result


def test_names_stay_names(page: Page) -> None:
    plain, page = page, Page(html(Summary.from_result(evil_result()), EN))
    # The same elements as with harmless names, and not one attribute that runs anything.
    extra = Counter(tag for tag, _ in page.elements) - Counter(tag for tag, _ in plain.elements)
    assert set(extra) <= {"pre", "code", "details", "summary", "div", "dt", "dd", "td", "th", "tr", "small", "p"}
    assert page.all("img") == []
    assert len(page.scripts) == len(plain.scripts)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert (f"verdict {EVIL}" in [t for tag, t in page.texts if tag in ("h1", "p")]) is True
    assert "49" not in next(t for tag, t in page.texts if tag == "title")
    for attributes, body in page.scripts:
        if "type" in attributes:
            assert not set("<>&\u2028") & set(body)
    assert f"g0 {EVIL}" in {row[1] for row in page.specs["heat-map"]["datasets"]["cells"]["rows"]}


@given(st.text())
def test_any_text_is_embedded_and_comes_back(name: str) -> None:
    name = name.encode("utf-8", "ignore").decode()
    body = embedded_json({"name": name, name: [name]})
    assert not set("<>&\u2028\u2029") & set(body)
    page = Page(f"<script data-spec='a'>{body}</script><p>after</p>")
    assert page.specs["a"] == {"name": name, name: [name]}
    assert page.texts == [("p", "after")]


# ------------------------------------------------------------------------------------------------- unusual results


def _without_test_samples(result: dict[str, Any], group: int) -> dict[str, Any]:
    changed = copy.deepcopy(result)
    changed["data"]["group_counts"]["test"][group] = 0
    for model in changed["models"]:
        for run in model["runs"]:
            test = run["test"]
            test["group_correct"][group] = test["group_total"][group] = 0
            test["group_confusion"][group] = [[0, 0], [0, 0]]
            test["worst_group_name"] = GROUPS[3]
    return changed


def _no_groups(result: dict[str, Any]) -> dict[str, Any]:
    """As a pilot without declared groups: its evaluations hold one group of all samples."""
    changed = copy.deepcopy(result)
    changed["data"] |= {"groups": [], "group_columns": [], "group_counts": {"train": [], "validation": [], "test": []}}
    changed["selection"] = {"rule": "average", "consumes": "validation labels"}
    changed["comparisons"] = [c for c in changed["comparisons"] if c["metric"] == "average"]
    for model in changed["models"]:
        for run in model["runs"]:
            for test in (run["test"], run["validation"]):
                test["group_correct"], test["group_total"] = [sum(test["group_correct"])], [sum(test["group_total"])]
                test["worst_group"], test["worst_group_name"], test["gap"] = test["average"], "all", 0.0
                test["group_confusion"] = [test["confusion"]]
                test["group_calibration_error"] = [test["calibration_error"], None]
            for entry in run["history"]:
                entry["group_losses"] = entry["group_weights"] = None
    return changed


def _bare(result: dict[str, Any]) -> dict[str, Any]:
    """Only what must be there."""
    keep = {key: result[key] for key in ("verdict", "models", "data")}
    changed = copy.deepcopy(keep)
    for model in changed["models"]:
        for run in model["runs"]:
            run["test"] = {key: run["test"][key] for key in ("group_correct", "group_total")}
            for key in ("history", "validation", "selected_epoch", "seconds", "seed"):
                del run[key]
        for key in ("recipe", "teacher", "parameters", "label", "role", "training"):
            del model[key]
    return changed


def _only(*roles: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(result: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(result)
        changed["models"] = [model for model in changed["models"] if model["role"] in roles]
        changed["comparisons"] = []
        return changed

    return change


def _nan_everywhere(result: dict[str, Any]) -> dict[str, Any]:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(one) for key, one in value.items()}
        if isinstance(value, list):
            return [spoil(one) for one in value]
        return float("nan") if isinstance(value, float) else value

    changed: dict[str, Any] = spoil(result)
    return changed


UNUSUAL: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "one seed": lambda result: pilot_result(seeds=1),
    "one epoch": lambda result: pilot_result(epochs=1),
    "one class more than is drawn": lambda result: pilot_result(classes=tuple(map(str, range(13))), seeds=1),
    "an empty group": lambda result: _without_test_samples(result, 2),
    "no groups": _no_groups,
    "only what must be there": _bare,
    "only teachers": _only("teacher"),
    "no teachers": _only("baseline", "student"),
    "only baselines": _only("baseline"),
    "no models": _only(),
    "no runs": lambda result: {
        **result,
        "models": [{**model, "runs": []} for model in result["models"]],
    },
    "not a number anywhere": _nan_everywhere,
    "no comparisons": lambda result: {**result, "comparisons": []},
    "comparisons of strangers": lambda result: {
        **result,
        "comparisons": [{"model": "a", "against": "b", "metric": "nll", "difference": -0.1, "low": -0.2, "high": 0.1}],
    },
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_results_are_told(result: dict[str, Any], case: str) -> None:
    summary = Summary.from_result(UNUSUAL[case](result))
    page = Page(html(summary, EN))
    assert ("h1", result["verdict"]) in page.texts
    for word in ("NaN", "nan%", "None", "Infinity", "inf%"):
        assert all(word not in body for attributes, body in page.scripts if "type" in attributes)
        assert all(word not in shown for tag, shown in page.texts if tag not in ("style", "code"))
    assert result["verdict"].split(":")[0] in markdown(summary, load_language("ja"))


def test_without_groups_nothing_is_said_about_a_worst_group(result: dict[str, Any]) -> None:
    summary = Summary.from_result(_no_groups(result))
    keys = [section.key for section in sections(summary, EN)]
    assert not {"groups", "trade-off", "heat-map", "intervals", "group-weights", "group-losses"} & set(keys)
    titles = [column.title for column in tables.results_table(summary, EN).columns]
    assert not any("orst" in title for title in titles)
    assert "Average against plain student (points)" in titles
    assert all("worst group" not in sentence for sentence in sentences(summary, EN))


# ------------------------------------------------------------------------------------------------ Markdown and JSON


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


@pytest.mark.parametrize("code", languages())
@pytest.mark.parametrize("make", [pilot_result, evil_result, whole_result])
def test_markdown_tables_are_rectangular(make: Callable[[], dict[str, Any]], code: str) -> None:
    lines = markdown(Summary.from_result(make()), load_language(code)).splitlines()
    found, inside = 0, False
    for line in lines:
        inside = (not inside) if line.startswith("```") else inside
        if inside or not line.startswith("|"):
            width = 0
            continue
        cells = _cells(line)
        if set("".join(cells).replace(" ", "")) <= set("-:"):
            found += 1
        width = width or len(cells)
        assert len(cells) == width, line
    assert found > 15


def test_markdown_says_the_same(result: dict[str, Any], summary: Summary, tmp_path: Path) -> None:
    text = write_markdown(result, tmp_path / "a.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# {result['verdict'].replace('>', chr(92) + '>')}"
    for cell in (cell for row in tables.results_table(summary, EN).rows for cell in row):
        assert cell.text.replace("_", r"\_").replace(">", r"\>").replace("[", r"\[").replace("]", r"\]") in text
    assert "<" not in re.sub(r"\\<", "", re.sub(r"```.*?```", "", text, flags=re.S))


def test_json_is_strict(result: dict[str, Any], tmp_path: Path) -> None:
    changed = {**result, "seconds": float("nan"), "extra": (1, float("inf"), {"a": None})}
    text = write_json(changed, tmp_path / "a.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(text, parse_constant=refuse)
    assert found == {**result, "seconds": None, "extra": [1, None, {"a": None}]}


# ---------------------------------------------------------------------------------------------------------- writing


def test_folders_are_made_and_the_path_comes_back(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.html"
    assert write_html(result, str(path)) == path
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_an_interrupted_write_leaves_the_old_file(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        write_json(result, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_the_room_does_not_need_torch() -> None:
    code = "import sys, limbeck.report; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
