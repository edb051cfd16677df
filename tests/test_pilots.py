"""Pilots: the comparison, the run folder, and going on after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from torch import nn

import limbeck as lb
from limbeck.config import config_from_dict
from limbeck.errors import ConfigError, LimbeckError, RecipeError, TeacherError
from limbeck.pilots import run_pilot
from limbeck.pilots.result import comparisons, validation_mean, verdict

CONFIG: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits", "groups": ["aligned"], "inject": [{"kind": "shortcut", "aligned": 0.9}]},
    "teachers": {"big": {"model": {"name": "mlp", "hidden": [32]}}},
    "student": {"name": "mlp", "hidden": [8]},
    "recipes": ["group_dro", {"recipe": "kd", "teacher": "big"}],
    "training": {"epochs": 3, "batch_size": 64},
    "seeds": [0, 1],
}


def changed(**changes: Any) -> Any:
    return config_from_dict({**CONFIG, **changes})


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> lb.PilotResult:
    return run_pilot(changed(), output=tmp_path_factory.mktemp("runs") / "small")


def content(folder: Path) -> dict[str, str]:
    """Digests of everything but what tells the time."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".npy") or path.name == "predictions.parquet":
            kept[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.parent.name == "cells":
            kept[str(path.relative_to(folder))] = json.dumps(timeless(json.loads(path.read_text())))
    return kept


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key != "seconds"}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def test_the_plain_student_and_the_teacher_are_always_beside_the_recipes(result: lb.PilotResult) -> None:
    found = {row["key"]: row["role"] for row in result.to_dict()["models"]}
    assert found == {"teacher-big": "teacher", "erm": "baseline", "group_dro": "baseline", "kd": "student"}
    assert all([run["seed"] for run in row["runs"]] == [0, 1] for row in result.to_dict()["models"])


def test_the_first_line_says_whether_distillation_beat_the_plain_student(result: lb.PilotResult) -> None:
    assert result.verdict.startswith("Distillation (kd from big) ")
    assert "plain student in the worst group" in result.verdict
    record = result.to_dict()
    plain = next(row for row in record["models"] if row["key"] == "erm")
    worst = np.mean([run["test"]["worst_group"] for run in plain["runs"]])
    assert f"against {100 * worst:.1f}%" in result.verdict


def test_the_table_shows_means_and_spreads_of_the_test_part(result: lb.PilotResult) -> None:
    table = result.table()
    for row in result.to_dict()["models"]:
        values = [100 * run["test"]["average"] for run in row["runs"]]
        line = next(line for line in table.splitlines() if line.startswith(row["label"]))
        assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in line


def test_the_run_folder_is_complete_and_readable_without_this_library(result: lb.PilotResult) -> None:
    folder = result.folder
    assert folder is not None
    assert json.loads((folder / "run.json").read_text())["status"] == "complete"
    assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == "small"
    metrics = pq.read_table(folder / "metrics.parquet").to_pandas()
    assert set(metrics.part) == {"test", "validation"}
    record = result.to_dict()
    for row in record["models"]:
        for run in row["runs"]:
            found = metrics[(metrics.model == row["key"]) & (metrics.seed == run["seed"]) & (metrics.part == "test")]
            assert found[found.group.isna()].accuracy.item() == pytest.approx(run["test"]["average"])
            assert found[found.group.notna()].accuracy.min() == pytest.approx(run["test"]["worst_group"])
    predictions = pq.read_table(folder / "predictions.parquet").to_pandas()
    kd = next(row for row in record["models"] if row["key"] == "kd")
    assert (predictions["kd-seed1"] == predictions.label).mean() == pytest.approx(kd["runs"][1]["test"]["average"])
    history = pq.read_table(folder / "history.parquet").to_pandas()
    assert len(history) == 4 * 2 * 3
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert not list(folder.rglob("*.pkl"))
    assert not (folder / "checkpoints").exists() or not any((folder / "checkpoints").iterdir())


def test_a_student_can_be_read_back_from_its_file(result: lb.PilotResult) -> None:
    from limbeck.checkpoint import load_tensors

    assert result.folder is not None
    path = result.folder / "models" / "kd-seed0.safetensors"
    tensors, card = load_tensors(path)
    assert card["recipe"]["name"] == "kd"
    assert card["selection"] == "worst_group"
    model = lb.models.build(card["model"], inputs_shape=card["inputs_shape"], classes=len(card["classes"]))
    lb.models.load_weights(model, path)
    assert set(tensors) == set(model.state_dict())


def test_the_same_configuration_gives_the_same_bytes(result: lb.PilotResult, tmp_path: Path) -> None:
    again = run_pilot(changed(), output=tmp_path / "again")
    assert result.folder is not None
    assert again.folder is not None
    assert content(result.folder) == content(again.folder)
    assert again.verdict == result.verdict


def test_finished_cells_are_never_computed_again(result: lb.PilotResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr("limbeck.pilots.cells.fit", step)
    again = run_pilot(changed(), output=result.folder)
    assert again.verdict == result.verdict


def test_more_seeds_are_added_to_what_is_there(tmp_path: Path) -> None:
    first = run_pilot(changed(seeds=[0]), output=tmp_path / "run")
    assert first.folder is not None
    before = (first.folder / "cells" / "kd-seed0.json").stat().st_mtime_ns
    more = run_pilot(changed(seeds=[0, 1]), output=tmp_path / "run")
    assert (first.folder / "cells" / "kd-seed0.json").stat().st_mtime_ns == before
    assert more.to_dict()["seeds"] == [0, 1]


def test_a_folder_of_another_pilot_is_refused(result: lb.PilotResult, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds another pilot \(different: arms\).*--fresh"):
        run_pilot(changed(training={"epochs": 2}), output=result.folder)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty and holds no run"):
        run_pilot(changed(), output=tmp_path)
    with pytest.raises(ConfigError, match="holds no run"):
        run_pilot(changed(), output=tmp_path, resume=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious", "--fresh must never empty a folder that is no run"


def test_kill_9_and_the_same_command_again_gives_the_same_result(result: lb.PilotResult, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "limbeck", "pilot", str(config), "--output", str(tmp_path / "run"), "--quiet"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while killed.poll() is None and not (tmp_path / "run" / "cells" / "erm-seed0.json").exists():
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running", (
        "it ended before it was killed"
    )
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == result.verdict
    assert result.folder is not None
    assert content(tmp_path / "run") == content(result.folder)


def test_a_kill_between_the_record_and_the_tidying_up_leaves_no_checkpoint(tmp_path: Path) -> None:
    first = run_pilot(changed(seeds=[0]), output=tmp_path / "run")
    left = tmp_path / "run" / "checkpoints" / "erm-seed0"
    left.mkdir(parents=True)
    (left / "student.safetensors").write_bytes(b"left over")
    again = run_pilot(changed(seeds=[0]), output=tmp_path / "run")
    assert again.verdict == first.verdict
    assert not left.exists()


def test_a_half_written_cell_is_an_error_that_says_so(tmp_path: Path) -> None:
    run_pilot(changed(seeds=[0]), output=tmp_path / "run")
    path = tmp_path / "run" / "cells" / "erm-seed0.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(LimbeckError, match="not a whole record"):
        run_pilot(changed(seeds=[0]), output=tmp_path / "run")


def test_from_python_with_any_modules_and_no_folder() -> None:
    data = lb.load("digits", groups=["label"])
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    teacher = lb.fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), data, epochs=2)
    result = lb.pilot(
        data, teacher, small, recipes=["kd", {"recipe": "rld", "weighting": "group_dro", "name": "rld_dro"}], seeds=[4]
    )
    assert [row["key"] for row in result.to_dict()["models"]] == ["teacher-teacher", "erm", "kd", "rld_dro"]
    assert result.folder is None
    assert result.best()["key"] in ("erm", "kd", "rld_dro")
    assert result.to_arrow().num_rows == 4 * 2 * 11


def test_a_table_of_probabilities_teaches(tmp_path: Path) -> None:
    data = lb.load("digits")
    probabilities = np.full((len(data), 10), 0.02, np.float32)
    probabilities[np.arange(len(data)), data.y] = 0.82
    columns: dict[str, Any] = {"id": data.ids} | {str(name): probabilities[:, k] for k, name in enumerate(data.classes)}
    import pyarrow as pa

    pq.write_table(pa.table(columns), tmp_path / "teacher.parquet")
    config = changed(
        data={"name": "digits"},
        teachers={"file": {"table": str(tmp_path / "teacher.parquet")}},
        recipes=["kd"],
        seeds=[0],
    )
    result = run_pilot(config, output=tmp_path / "run")
    teacher = result.to_dict()["models"][0]
    assert teacher["runs"][0]["test"]["average"] == 1.0
    dett = config_from_dict(
        {**CONFIG, "teachers": {"file": {"table": str(tmp_path / "teacher.parquet")}}, "recipes": ["dett"]}
    )
    with pytest.raises(TeacherError, match="table"):
        run_pilot(dett, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ["grup_dro"]}, "did you mean 'group_dro'"),
        ({"recipes": [{"recipe": "kd", "tempreture": 2}]}, "did you mean 'temperature'"),
        ({"teachers": {}, "recipes": ["kd"]}, "learns from a teacher, and none is given"),
        ({"recipes": [{"recipe": "erm", "teacher": "big"}]}, "takes nothing from a teacher"),
        ({"data": {"name": "digits"}, "recipes": ["group_dro"]}, "no groups are declared"),
        ({"recipes": [{"name": "erm", "terms": ["kl_divergence"], "teacher": "big"}]}, "belongs to the plain student"),
        ({"recipes": [{"recipe": "kd", "weighting": "upweight"}]}, "needs an error set"),
        (
            {"recipes": [{"name": "mine", "terms": ["dist"], "weighting": "group_dro", "teacher": "big"}]},
            "statistic of the whole",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((RecipeError, ConfigError), match=message):
        run_pilot(changed(**changes), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The verdict ----------------------------------------------------------------------------------------------------------


def fabricated(student: float, plain: float, seeds: int = 5, samples: int = 4000) -> tuple[str, list[Any]]:
    """The verdict where a student and the plain student are right with these probabilities."""
    generator = np.random.default_rng(0)
    test = lb.Data(np.zeros((samples, 1), np.float32), np.zeros(samples, int), classes=["a", "b"], split="test")
    predictions = {
        key: [(generator.random(samples) > accuracy).astype(np.int64) for _ in range(seeds)]
        for key, accuracy in (("kd", student), ("erm", plain))
    }
    runs = [{"validation": {"average": 0.5}}]
    models = [
        {"key": "erm", "label": "erm (no teacher)", "role": "baseline", "runs": runs},
        {"key": "kd", "label": "kd from big", "role": "student", "runs": runs},
    ]
    differences = comparisons(models, predictions, test, ["erm"])
    return verdict(models, differences, "average", groups=False)[0], differences


@pytest.mark.parametrize(
    ("student", "plain", "words"),
    [
        (0.9, 0.8, "beat the plain"),
        (0.8, 0.9, "did worse than the plain"),
        (0.8, 0.8, "could not be told from the plain"),
    ],
)
def test_the_verdict_follows_the_evidence(student: float, plain: float, words: str) -> None:
    sentence, differences = fabricated(student, plain)
    assert words in sentence
    assert differences[0].difference == pytest.approx(student - plain, abs=0.02)


def test_a_recipe_that_weighs_teachers_learns_from_all_of_them(tmp_path: Path) -> None:
    config = changed(
        teachers={name: {"model": {"name": "mlp", "hidden": [16]}} for name in ("biased", "other", "third")},
        recipes=[{"recipe": "agre_kd", "teacher": ["biased", "other", "third"]}],
        seeds=[0],
    )
    result = run_pilot(config, output=tmp_path / "run")
    row = result.to_dict()["models"][-1]
    assert row["label"] == "agre_kd from biased and other and third"
    assert row["teachers"] == ["teacher-biased", "teacher-other", "teacher-third"]


# The forecast ---------------------------------------------------------------------------------------------------------


def test_the_forecast_counts_what_the_pilot_will_have(result: lb.PilotResult) -> None:
    from limbeck.pilots import estimate, plan

    data, arms = plan(changed())
    forecast = estimate(data, arms, seeds=2)
    found = {arm.label: arm for arm in forecast.arms}
    rows = result.to_dict()["models"]
    assert {row["label"]: row["parameters"] for row in rows} == {label: arm.parameters for label, arm in found.items()}
    assert found["kd from big"].teacher_bytes == len(data.train) * 10 * 4
    assert found["erm (no teacher)"].teacher_bytes == 0
    assert 0 < found["kd from big"].live_share < 1
    assert forecast.data_bytes == data.x.nbytes
    assert forecast.seconds == pytest.approx(forecast.overhead_seconds + 2 * sum(arm.seconds for arm in forecast.arms))
    assert all(label in str(forecast) for label in found)


def test_the_forecast_refuses_what_the_pilot_refuses() -> None:
    from limbeck.pilots import estimate, plan

    data, arms = plan(changed(data={"name": "digits"}, recipes=["group_dro"]))
    with pytest.raises(RecipeError, match="no groups are declared"):
        estimate(data, arms, seeds=1)


def test_another_student_is_another_pilot(result: lb.PilotResult) -> None:
    with pytest.raises(ConfigError, match="holds another pilot"):
        run_pilot(changed(student={"name": "mlp", "hidden": [9]}), output=result.folder)


def test_automatic_precision_is_one_for_all_recipes_and_kept_for_a_repeated_pilot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[dict[str, Any]] = []

    def milliseconds(candidate: dict[str, Any], *_: Any) -> float:
        timed.append(candidate)
        return 1.0 if candidate["autocast"] else 2.0

    monkeypatch.setattr("limbeck.engine._milliseconds", milliseconds)
    config = changed(training={"epochs": 1, "precision": "auto"}, seeds=[0])
    first = run_pilot(config, output=tmp_path / "run")
    assert len(timed) == 4, "the teacher's network and the student's, two candidates each"
    assert all(run["precision"]["autocast"] for row in first.to_dict()["models"] for run in row["runs"])
    again = run_pilot(config, output=tmp_path / "run", resume=False)
    assert len(timed) == 4
    assert again.verdict == first.verdict


# From outside ---------------------------------------------------------------------------------------------------------

OWN = '''
import torch
import torch.nn.functional as F
from torch import nn

import limbeck as lb


def sure(student_logits, teacher_logits, labels, threshold=0.5):
    confident = teacher_logits.softmax(1).amax(1) > threshold
    return (1.0 + confident) * F.cross_entropy(student_logits.float(), labels, reduction="none")


class Hardest(nn.Module):
    """Listens to the groups with the highest loss so far."""

    def __init__(self, groups, smoothing=0.9):
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("level", torch.ones(groups))

    def forward(self, losses, groups):
        with torch.no_grad():
            self.level.index_copy_(0, groups, self.smoothing * self.level[groups] + (1 - self.smoothing) * losses)
        return (self.level[groups] * losses).mean()


def blend(weight=0.3):
    return lb.Recipe([{"term": "kl_divergence", "weight": 1 - weight}, {"term": "cross_entropy", "weight": weight}])


'''


def test_a_users_own_term_weighting_and_recipe_in_a_pilot_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    config = CONFIG | {
        "recipes": [
            {
                "name": "own parts",
                "terms": [{"term": "mine.sure", "threshold": 0.4}],
                "weighting": {"name": "mine.Hardest", "smoothing": 0.8},
                "teacher": "big",
            },
            {"recipe": "mine.blend", "weight": 0.2, "teacher": "big", "name": "own recipe"},
        ],
        "seeds": [0],
        "training": {"epochs": 1},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "limbeck", "pilot", str(tmp_path / "own.yaml"), "--quiet"]
    command += ["--output", str(tmp_path / "run"), "--models", str(tmp_path / "mine.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    own = next(row for row in result["models"] if row["key"] == "own-parts")
    assert own["recipe"]["terms"] == [{"term": "mine.sure", "threshold": 0.4}]
    assert own["recipe"]["weighting"] == {"name": "mine.Hardest", "smoothing": 0.8}
    blend = next(row for row in result["models"] if row["key"] == "own-recipe")
    assert [term["weight"] for term in blend["recipe"]["terms"]] == [0.8, 0.2]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("average", 0.7), ("worst_group", 0.5), ("last", 0.7), ("worst_class", 0.5), ("class_gap", -0.4)],
)
def test_models_are_compared_by_what_the_rule_looks_at(metric: str, expected: float) -> None:
    measured = {"average": 0.7, "worst_group": 0.5, "confusion": [[9, 1, 0], [5, 5, 0], [0, 0, 0]]}
    assert validation_mean({"runs": [{"validation": measured}]}, metric) == pytest.approx(expected)
