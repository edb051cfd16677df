"""Pilots of several data sets and students: each as it would be alone, the teachers trained once, one overview."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn

import limbeck as lb
from limbeck.checkpoint import load_tensors
from limbeck.config import MatrixConfig, config_from_dict, load_config, load_plan, plan_from_dict
from limbeck.errors import ConfigError, LimbeckError
from limbeck.pilots import Lines, MatrixResult, PilotResult, Quiet, estimate_matrix, read_result, run_pilot
from limbeck.pilots.matrix import overall, pilot_folders, write_overview
from limbeck.place import Place
from limbeck.report.language import load_language
from limbeck.training import Training
from test_pilots import content

MATRIX: dict[str, Any] = {
    "name": "two",
    "datasets": {
        "near": {"name": "digits", "groups": ["aligned"], "inject": [{"kind": "shortcut", "aligned": 0.9}]},
        "far": {"name": "digits", "groups": ["label"]},
    },
    "teachers": {"big": {"model": {"name": "mlp", "hidden": [32]}}},
    "students": {"small": {"name": "mlp", "hidden": [4]}, "large": {"name": "mlp", "hidden": [16]}},
    "recipes": [{"recipe": "kd", "teacher": "big"}],
    "training": {"epochs": 1, "batch_size": 64},
    "seeds": [0, 1],
}
PLACES = [Place(data, student) for data in ("near", "far") for student in ("small", "large")]


def several(**changes: Any) -> MatrixConfig:
    found = plan_from_dict({**copy.deepcopy(MATRIX), **changes})
    assert isinstance(found, MatrixConfig)
    return found


def kept(folder: Path) -> dict[str, str]:
    """What a pilot leaves; where the teachers' stores are depends on who trained them."""
    return {name: text for name, text in content(folder).items() if not name.startswith("stores/")}


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Reports measure nothing and are empty: what is in them is tested where they are made."""

    def report(self: Any, path: str | Path, *, language: str = "en") -> Path:
        found = Path(path)
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_text(f"<html lang={language}>")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.report.evidence.gather", lambda *_, **__: None)
        patch.setattr(PilotResult, "report", report)
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, quick: None) -> MatrixResult:
    found = run_pilot(several(), output=tmp_path_factory.mktemp("runs") / "two")
    assert isinstance(found, MatrixResult)
    return found


# What comes of it -----------------------------------------------------------------------------------------------------


def test_each_pilot_is_what_it_is_alone(result: MatrixResult, tmp_path: Path, quick: None) -> None:
    assert list(result.pilots) == PLACES
    assert result.folder is not None
    place = Place("near", "large")
    alone = run_pilot(load_config(result.folder / place.path / "config.yaml"), output=tmp_path / "alone")
    assert alone.folder is not None
    here, there = kept(result.folder / place.path), kept(alone.folder)
    for seed in (0, 1):
        # The card of a teacher's file names the pilot that trained it.
        name = f"models/teacher-big-seed{seed}.safetensors"
        weights = [load_tensors(folder / name)[0] for folder in (result.folder / place.path, alone.folder)]
        assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())
        del here[name], there[name]
    assert here == there
    assert result.pilot("near", "large").verdict == alone.verdict
    record, own = (one.to_dict() for one in (result.pilot("near", "large"), alone))
    for key in ("models", "comparisons", "configuration"):
        theirs = json.loads(json.dumps([record[key], own[key]], default=str))
        assert timeless(theirs[0]) == timeless(theirs[1])


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key != "seconds"}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def test_the_first_line_counts_the_verdicts_of_the_pilots(result: MatrixResult) -> None:
    outcomes = {str(place): one.verdict for place, one in result.pilots.items()}
    assert result.verdict.startswith("Of 4 pilots, distillation ")
    better = [name for name, text in outcomes.items() if "beat the plain student" in text]
    told = f"beat the plain student in {len(better)} ({'; '.join(better)})"
    assert (told in result.verdict) == bool(better)
    for name, text in outcomes.items():
        assert name in result.verdict
        assert f"{name}: {text}" in result.table()


def test_the_overall_sentence_names_every_outcome() -> None:
    rows = [
        {"data": data, "student": student, "outcome": outcome}
        for data, student, outcome in (
            ("a", "s", "better"), ("a", "t", "worse"), ("b", "s", "better"), ("b", "t", "not distinguishable")
        )
    ]  # fmt: skip
    assert overall(rows) == (
        "Of 4 pilots, distillation beat the plain student in 2 (a, s; b, s), did worse than the plain student in 1 "
        "(a, t) and could not be told from the plain student in 1 (b, t)."
    )
    assert (
        overall([{"data": "a", "student": None, "outcome": None}]) == "Of 1 pilot, distillation was not tried in 1 (a)."
    )


def test_teachers_are_trained_once_a_data_set_and_are_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    trained: list[int] = []
    fit = lb.fit

    def counting(model: Any, *arguments: Any, **options: Any) -> Any:
        trained.append(options["seed"])
        return fit(model, *arguments, **options)

    monkeypatch.setattr("limbeck.pilots.cells.fit", counting)
    result = run_pilot(several(), output=tmp_path / "run")
    # Two data sets, two seeds: a teacher each, and two students of either size.
    assert len(trained) == 2 * 2 * (1 + 2 * 2)
    assert result.folder is not None
    first, second = (result.folder / "near" / student for student in ("small", "large"))
    for name in ("models/teacher-big-seed1.safetensors", "cells/teacher-big-seed1.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "stores").is_dir()
    assert not (second / "stores").exists()
    trained.clear()
    again = run_pilot(several(), output=tmp_path / "run")
    assert not trained, "what is complete is not computed again"
    assert again.verdict == result.verdict
    # Another student, named first, takes the teachers that are there.
    students = {"tiny": {"name": "mlp", "hidden": [2]}, **MATRIX["students"]}
    run_pilot(several(students=students), output=tmp_path / "run")
    assert len(trained) == 2 * 2 * 2
    assert (result.folder / "near" / "tiny" / "models" / "teacher-big-seed0.safetensors").is_file()


def test_what_auto_comes_to_for_a_teacher_is_the_same_for_all_students(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[bool] = []

    def milliseconds(candidate: dict[str, Any], *_: Any) -> float:
        timed.append(candidate["autocast"])
        # Another way is faster each time that a network is timed.
        return float(candidate["autocast"] == (len(timed) // 2 % 2 == 0))

    monkeypatch.setattr("limbeck.engine._milliseconds", milliseconds)
    config = several(
        datasets={"near": MATRIX["datasets"]["near"]}, training={"epochs": 1, "precision": "auto"}, seeds=[0]
    )
    run_pilot(config, output=tmp_path / "run")
    assert len(timed) == 2 * (1 + 2), "two ways of the teacher's network and of either student's"
    runs = [json.loads((tmp_path / "run" / "near" / name / "run.json").read_text()) for name in ("small", "large")]
    assert runs[0]["precision"]["teacher-big"] == runs[1]["precision"]["teacher-big"]
    run_pilot(config, output=tmp_path / "run")
    assert len(timed) == 6


def test_students_of_different_size_are_compared_on_the_same_test_samples(result: MatrixResult) -> None:
    rows = result.record["comparisons"]
    assert [(row["data"], row["student"], row["against_student"], row["metric"]) for row in rows] == [
        (data, "small", "large", metric) for data in ("near", "far") for metric in ("average", "worst_group")
    ]
    assert result.folder is not None
    for row in rows[::2]:
        right = {}
        for student in ("small", "large"):
            best = result.pilot(row["data"], student).best()["key"]
            found = pq.read_table(result.folder / row["data"] / student / "predictions.parquet").to_pydict()
            right[student] = np.mean(
                [np.mean(np.array(found[f"{best}-seed{seed}"]) == np.array(found["label"])) for seed in (0, 1)]
            )
        assert row["value"] == pytest.approx(right["small"])
        assert row["difference"] == pytest.approx(right["small"] - right["large"])
    near = result.pilot("near", "small").best()["parameters"] / result.pilot("near", "large").best()["parameters"]
    assert rows[0]["parameters"] / rows[0]["against_parameters"] == pytest.approx(near)
    assert f"near: small ({rows[0]['label']}) has {100 * near:.3g}% of the parameters of large" in result.table()


def test_the_folder_is_complete_and_read_back(result: MatrixResult) -> None:
    folder = result.folder
    assert folder is not None
    assert json.loads((folder / "run.json").read_text())["status"] == "complete"
    assert load_plan(folder / "config.yaml") == several()
    table = pq.read_table(folder / "metrics.parquet").to_pandas()
    assert set(zip(table.data, table.student, strict=True)) == set(PLACES)
    again = read_result(folder)
    assert isinstance(again, MatrixResult)
    assert again.verdict == result.verdict
    assert {place: one.verdict for place, one in again.pilots.items()} == {
        place: one.verdict for place, one in result.pilots.items()
    }
    assert read_result(folder / "near" / "small").verdict == result.pilot("near", "small").verdict
    assert pilot_folders(folder) == [folder / place.path for place in PLACES]
    assert pilot_folders(folder / "near" / "small") == []
    with pytest.raises(ConfigError, match="holds no result"):
        read_result(folder / "near")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_overview_leads_to_every_report_and_fetches_nothing(
    result: MatrixResult, tmp_path: Path, language: str
) -> None:
    page = result.report(tmp_path / "page.html", language=language)
    text = page.read_text(encoding="utf-8")
    assert f'<html lang="{language}">' in text
    for place in PLACES:
        link = f"{place.data}/{place.student}/page.html"
        assert f'href="{link}"' in text
        assert (tmp_path / link).is_file()
    assert "://" not in text
    assert "<script" not in text
    with pytest.raises(ConfigError, match="unknown report language 'xx'"):
        result.report(tmp_path / "page.html", language="xx")


@pytest.mark.parametrize(
    ("language", "first"),
    [
        ("en", "in 4 pilots: better in 1, worse in 1, not measured in 1, not tried in 1."),
        ("ja", "（パイロット4件）：優れている 1件、劣っている 1件、測定なし 1件、未実施 1件。"),
    ],
)
def test_the_overview_has_a_word_for_every_outcome(result: MatrixResult, language: str, first: str) -> None:
    from limbeck.pilots.overview import overview_html

    t = load_language(language)
    record = json.loads(json.dumps(result.record, default=str))
    outcomes = ("not measured", None, "worse", "better")
    for row, outcome in zip(record["pilots"], outcomes, strict=True):
        row["outcome"] = outcome
    text = overview_html(record, result.pilots, dict.fromkeys(PLACES, "x.html"), language)
    assert f"{first}</h1>" in text
    assert re.findall(r"<td>([^<]*)</td></tr>", text)[: len(outcomes)] == [
        t(f"overview.outcome.{outcome or 'not tried'}") for outcome in outcomes
    ]


def test_the_table_of_all_pilots_is_that_of_each_with_its_names(result: MatrixResult) -> None:
    assert isinstance(result, lb.MatrixResult)
    frame = result.to_pandas()
    assert list(frame.columns[:2]) == ["data", "student"]
    assert frame.equals(result.to_arrow().to_pandas())
    for place, one in result.pilots.items():
        rows = frame[(frame.data == place.data) & (frame.student == place.student)]
        alone = one.to_pandas()
        assert list(rows.columns[2:]) == list(alone.columns)
        assert rows[alone.columns].reset_index(drop=True).equals(alone)
    assert len(frame) == sum(len(one.to_pandas()) for one in result.pilots.values())
    whole = frame[(frame.part == "test") & frame.group.isna() & (frame.model == "kd") & (frame.seed == 1)]
    for row in whole.itertuples():
        runs = next(m for m in result.pilot(row.data, row.student).record["models"] if m["key"] == "kd")["runs"]
        assert row.accuracy == pytest.approx(next(run for run in runs if run["seed"] == 1)["test"]["average"])
    assert len(whole) == len(PLACES)


def test_names_are_text_and_never_markup(result: MatrixResult) -> None:
    from limbeck.pilots.overview import overview_html

    record = json.loads(json.dumps(result.record, default=str))
    record["name"] = record["pilots"][0]["label"] = "<b>bold</b>"
    text = overview_html(record, result.pilots, dict.fromkeys(PLACES, "x.html"), "en")
    assert "<b>bold" not in text
    assert text.count("&lt;b&gt;bold") == 2


def test_what_is_asked_for_by_name(result: MatrixResult) -> None:
    assert result.pilot("far", "small") is result.pilots[Place("far", "small")]
    with pytest.raises(ConfigError, match="unknown data set 'nera': did you mean 'near'"):
        result.pilot("nera", "small")
    with pytest.raises(ConfigError, match="unknown student 'smal': did you mean 'small'"):
        result.pilot("near", "smal")
    with pytest.raises(ConfigError, match="several pilots are meant: near, small; near, large"):
        result.pilot("near")
    with pytest.raises(ConfigError, match=r"result\.pilot\(data, student\)\.best"):
        result.best()
    with pytest.raises(ConfigError, match=r"result\.pilot\(data, student\)\.pareto"):
        result.pareto()
    with pytest.raises(ConfigError, match=r"result\.pilot\(data, student\)\.group_changes"):
        result.group_changes()
    assert result.folder is not None
    with pytest.raises(ConfigError, match="holds one pilot"):
        write_overview(result.folder / "near" / "small")


# Going on -------------------------------------------------------------------------------------------------------------


class Stop(Quiet):
    """Ends the pilot after some cells, as a kill would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def done(self, label: str, seed: int, record: dict[str, Any]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 7])
def test_a_pilot_that_is_stopped_goes_on_to_the_same_bytes(
    result: MatrixResult, tmp_path: Path, quick: None, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_pilot(several(), output=tmp_path / "run", progress=Stop(after))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    again = run_pilot(several(), output=tmp_path / "run")
    assert again.verdict == result.verdict
    same_bytes(result, tmp_path / "run")


def same_bytes(result: MatrixResult, folder: Path) -> None:
    assert result.folder is not None
    for place in PLACES:
        assert content(folder / place.path) == content(result.folder / place.path)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_as_one(result: MatrixResult, tmp_path: Path) -> None:
    both = run_pilot(several(), output=tmp_path / "both", workers=2)
    assert both.verdict == result.verdict
    same_bytes(result, tmp_path / "both")


@pytest.mark.slow
def test_kill_9_with_two_processes_and_the_same_command_again(result: MatrixResult, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(MATRIX, sort_keys=False))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "limbeck", "pilot", str(tmp_path / "two.yaml"), "-o", str(run), "--quiet"]
    killed = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL)
    while killed.poll() is None and not (run / "near" / "large" / "cells" / "erm-seed0.json").exists():
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == result.verdict
    same_bytes(result, run)


@pytest.mark.slow
def test_a_search_is_made_for_each_pilot_with_the_common_teachers(tmp_path: Path, quick: None) -> None:
    config = several(search={"space": {"learning_rate": [0.0001, 0.01]}}, seeds=[0])
    one = run_pilot(config, output=tmp_path / "one")
    both = run_pilot(config, output=tmp_path / "both", workers=2)
    assert isinstance(one, MatrixResult)
    assert isinstance(both, MatrixResult)
    for place in PLACES:
        assert set(one.pilots[place].record["search"]["chosen"]) == {"erm", "kd"}
        assert content(tmp_path / "one" / place.path) == content(tmp_path / "both" / place.path)
    assert one.verdict == both.verdict


# What is refused ------------------------------------------------------------------------------------------------------


def test_nothing_is_written_where_one_pilot_cannot_work(tmp_path: Path) -> None:
    datasets = {**MATRIX["datasets"], "far": {"name": "digits"}}
    with pytest.raises(LimbeckError, match=r"^far, small: .*no groups are declared"):
        run_pilot(several(datasets=datasets, recipes=["group_dro"]), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_folder_is_not_taken_for_the_other(result: MatrixResult, tmp_path: Path, quick: None) -> None:
    assert result.folder is not None
    plain = {"data": {"name": "digits"}, "student": "linear", "recipes": ["erm"], "seeds": [0]}
    single = config_from_dict({**plain, "training": {"epochs": 1}})
    with pytest.raises(ConfigError, match="holds another pilot"):
        run_pilot(single, output=result.folder)
    with pytest.raises(ConfigError, match=r"holds another pilot \(different: arms\)"):
        run_pilot(several(training={"epochs": 2}), output=result.folder)
    run_pilot(single, output=tmp_path / "single")
    with pytest.raises(ConfigError, match=r"one data set and student.*--fresh"):
        run_pilot(several(), output=tmp_path / "single")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty and holds no run"):
        run_pilot(several(), output=tmp_path / "mine", resume=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


# From Python ----------------------------------------------------------------------------------------------------------


def test_data_sets_and_students_by_name_from_python(quick: None) -> None:
    plain, images = lb.load("digits"), lb.load("digits", images=True)
    teachers = {"plain": nn.Linear(64, 10), "images": {"net": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}}
    found = lb.pilot(
        {"plain": plain, "images": images},
        teachers,
        {
            "fixed": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            "fitting": lambda data: nn.Sequential(nn.Flatten(), nn.Linear(int(data.x[0].size), data.num_classes)),
        },
        recipes=["kd"],
        seeds=[3],
        training=Training(epochs=1),
    )
    assert isinstance(found, MatrixResult)
    assert [str(place) for place in found.pilots] == [
        "plain, fixed", "plain, fitting", "images, fixed", "images, fitting"
    ]  # fmt: skip
    labels = [row["label"] for row in found.pilot("images", "fitting").record["models"]]
    assert labels == ["net (teacher)", "erm (no teacher)", "kd from net"]
    assert found.folder is None
    assert found.to_arrow().num_rows == sum(one.to_arrow().num_rows for one in found.pilots.values())
    assert set(found.to_pandas().data) == {"plain", "images"}
    only = lb.pilot(plain, None, {"a": nn.Linear(64, 10)}, recipes=["erm"], seeds=[0], training=Training(epochs=1))
    assert only.verdict == "Of 1 pilot, distillation was not tried in 1 (a)."
    assert only.to_pandas().data.isna().all()


def test_teachers_of_several_data_sets_are_given_by_their_names() -> None:
    data = {"plain": lb.load("digits"), "other": lb.load("digits", seed=1)}
    with pytest.raises(LimbeckError, match=r"by the name of the data set: {'plain': …, 'other': …}"):
        lb.pilot(data, nn.Linear(64, 10), nn.Linear(64, 10), recipes=["kd"])
    with pytest.raises(LimbeckError, match="unknown data set 'plian': did you mean 'plain'"):
        lb.pilot(data, {"plian": nn.Linear(64, 10)}, nn.Linear(64, 10), recipes=["kd"])
    with pytest.raises(LimbeckError, match=r"^other: .*learns from a teacher, and none is given"):
        lb.pilot(data, {"plain": nn.Linear(64, 10)}, nn.Linear(64, 10), recipes=["kd"])
    with pytest.raises(LimbeckError, match="no students are given"):
        lb.pilot(data, None, {}, recipes=["erm"])


# The forecast and the command line ------------------------------------------------------------------------------------


def test_the_forecast_counts_teachers_once_a_data_set() -> None:
    found = estimate_matrix(several())
    assert list(found.pilots) == PLACES
    for place, forecast in found.pilots.items():
        teacher = forecast.arms[0]
        assert teacher.label == "big (teacher)"
        assert (teacher.seconds > 0) == (place.student == "small")
        assert (forecast.disk_bytes > 0) == (place.student == "small")
        # Logits of the training part, of two seeds' teachers.
        if forecast.disk_bytes:
            assert forecast.disk_bytes == 2 * forecast.arms[-1].teacher_bytes
    assert found.seconds == pytest.approx(sum(forecast.seconds for forecast in found.pilots.values()))
    assert "far, large (with the teachers of far, small)" in str(found)
    assert str(found).splitlines()[-1].startswith("4 pilots: about ")
    assert [(row["data"], row["student"]) for row in found.to_dict()["pilots"]] == PLACES


def page_of(folder: Path, *, language: str, **_: Any) -> Path:
    """The page of one pilot, without what is on it."""
    path = folder / f"report.{language}.html"
    path.write_text("page")
    return path


def test_the_command_runs_forecasts_and_reports_it(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from limbeck.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**MATRIX, "datasets": {"near": MATRIX["datasets"]["near"]}}))
    run = CliRunner().invoke
    forecast = run(main, ["pilot", "two.yaml", "--dry-run"])
    assert forecast.exit_code == 0, forecast.output
    assert "2 pilots: about" in forecast.output
    assert not (tmp_path / "runs").exists()
    done = run(main, ["pilot", "two.yaml", "--seeds", "1", "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "Of 2 pilots, distillation" in done.output
    assert "near, small: kd from big" in done.stderr
    assert "report: runs/two/report.html" in done.output
    monkeypatch.setattr("limbeck.report.command.write_report", page_of)
    japanese = run(main, ["report", "runs/two", "--lang", "ja"])
    assert japanese.exit_code == 0, japanese.output
    assert japanese.stdout.splitlines()[-1] == "runs/two/report.ja.html"
    assert (tmp_path / "runs" / "two" / "near" / "large" / "report.ja.html").is_file()
    for command in (["probe", "two.yaml"], ["audit", "two.yaml"], ["discover", "two.yaml", "--method", "errors"]):
        refused = run(main, command)
        assert refused.exit_code == 2
        assert "several data sets or students" in refused.stderr
        assert "runs/two/near/large/config.yaml" in refused.stderr


def test_progress_says_how_much_is_left_and_who_is_best_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.begin("two", ["a: big (teacher)", "a: kd", "a: erm", "b: kd"], 1)

    def done(label: str, average: float, worst: float | None) -> str:
        capsys.readouterr()
        lines.done(label, 0, {"validation": {"average": average, "worst_group": worst}, "seconds": 1.0})
        return capsys.readouterr().err

    assert "best so far" not in done("a: big (teacher)", 0.9, 0.9)
    assert "[  2/4]" in (text := done("a: kd", 0.8, 0.5))
    assert "best so far: kd)" in text
    assert "best so far: erm)" in done("a: erm", 0.7, 0.6), "by the worst group, where there are groups"
    assert "0 s left, best so far: kd)" in done("b: kd", 0.1, None), "of its own pilot"
