"""A pilot whose cells are trained together: folder, report, command; and the pictures of label averaging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import limbeck as lb
from limbeck.audit_log import AuditLog
from limbeck.cli import main
from limbeck.config import PilotConfig, config_from_dict
from limbeck.data import inject
from limbeck.errors import ConfigError
from limbeck.models import load_model
from limbeck.pilots import run_pilot
from limbeck.presets import as_recipe
from limbeck.probe import self_distillation
from limbeck.probes import arrange
from limbeck.probes.averaging import label_averaging, partial_label_notes
from limbeck.probes.run import probe_arms, run_probes
from limbeck.probes.workers import why_not
from limbeck.report import write_html, write_markdown

SEEDS = [0, 1]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    y = np.arange(600) % 3
    x = generator.normal(size=(3, 10))[y] + generator.normal(size=(600, 10))
    path = tmp_path_factory.mktemp("features") / "features.npz"
    np.savez(path, x=x.astype(np.float32), y=y, site=(generator.random(600) < 0.3).astype(int))
    return path


def settings(file: Path, **changes: Any) -> PilotConfig:
    values: dict[str, Any] = {
        "name": "probes",
        "data": {
            "npz": str(file),
            "attributes": ["site"],
            "groups": ["site"],
            "inject": [{"kind": "label_noise", "rate": 0.3}],
        },
        "teachers": {"big": {"model": {"name": "mlp", "hidden": [16]}, "recipe": "erm"}},
        "student": "linear",
        "recipes": ["kd", "groupdistil", "pll", "multi_round", "dett", "elr"],
        "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.01},
        "seeds": SEEDS,
    }
    return config_from_dict(values | changes)


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return run_probes(settings(file), output=folder)


def test_the_result_is_that_of_a_pilot(file: Path, run: Any, tmp_path: Path) -> None:
    pilot = run_pilot(settings(file), output=tmp_path / "pilot")
    assert run.verdict == pilot.verdict
    assert set(run.record) == set(pilot.record) | {"averaging"}
    for found, expected in zip(run.record["models"], pilot.record["models"], strict=True):
        assert found["key"] == expected["key"]
        assert found["teachers"] == expected["teachers"]
        for one, other in zip(found["runs"], expected["runs"], strict=True):
            assert one.keys() == other.keys()
            assert one["details"].keys() == other["details"].keys()
            assert one["selected_epoch"] == other["selected_epoch"]
            assert one["test"]["average"] == pytest.approx(other["test"]["average"], abs=1e-9)
            assert one["test"]["worst_group"] == pytest.approx(other["test"]["worst_group"], abs=1e-9)
            for record, theirs in zip(one["history"], other["history"], strict=True):
                assert record.keys() == theirs.keys()
                assert record["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    for path in sorted((tmp_path / "pilot" / "models").iterdir()):
        ours = load_model(run.folder / "models" / path.name).model.state_dict()
        for name, value in load_model(path).model.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


def test_the_folder_is_whole_and_its_log_holds(run: Any) -> None:
    assert json.loads((run.folder / "run.json").read_text())["status"] == "complete"
    kept = json.loads((run.folder / "result.json").read_text())
    assert kept["averaging"]["rounds"] == 5
    assert kept["command"] == "limbeck probe config.yaml"
    verified = AuditLog(run.folder / "audit.jsonl").verify()
    assert not verified.problems


def test_an_interrupted_run_ends_in_the_same_bytes(file: Path, tmp_path: Path) -> None:
    folder, config = tmp_path / "again", settings(file, recipes=["kd", "dett"])
    run_probes(config, output=folder)
    weights = {path.name: path.read_bytes() for path in (folder / "models").iterdir()}
    for name in ("kd-seed1", "dett-seed0", "teacher-big-seed1"):
        (folder / "cells" / f"{name}.json").unlink()
        (folder / "models" / f"{name}.safetensors").unlink()
    said: list[str] = []
    run_probes(config, output=folder, say=said.append)
    assert said == ["training 2 teachers together", "training 6 students together"]
    assert {path.name: path.read_bytes() for path in (folder / "models").iterdir()} == weights
    said.clear()
    before = (folder / "cells" / "kd-seed0.json").stat().st_mtime_ns
    run_probes(config, output=folder, say=said.append)
    assert said == [], "a complete folder is only read"
    assert (folder / "cells" / "kd-seed0.json").stat().st_mtime_ns == before


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_workers_change_nothing_that_is_told(
    file: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrange, "WORTH_A_WORKER", 1)
    found = run_probes(settings(file), output=tmp_path / "run", workers=2)
    assert found.record["machine"]["workers"] == 2
    again = run_probes(settings(file), output=tmp_path / "run", workers=1)
    assert again.record["machine"]["workers"] == 2, "nothing was left to train"
    assert found.verdict == run.verdict
    for one, other in zip(found.record["models"], run.record["models"], strict=True):
        for mine, theirs in zip(one["runs"], other["runs"], strict=True):
            assert mine["selected_epoch"] == theirs["selected_epoch"]
            for name in ("average", "worst_group"):
                assert mine["test"][name] == theirs["test"][name]
    assert not AuditLog(found.folder / "audit.jsonl").verify().problems


def test_without_a_folder_only_the_record_is_left(file: Path) -> None:
    from limbeck.pilots import plan

    data, arms = plan(settings(file, recipes=["erm", "kd"]))
    result = probe_arms(data, arms, [0], selection=None, folder=None, name="in memory")
    assert result.folder is None
    assert result.record["averaging"]["samples"] == len(data.train)


def test_images_are_refused_with_the_way_out(tmp_path: Path) -> None:
    x = np.zeros((40, 1, 4, 4), np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(40) % 2)
    config = settings(tmp_path / "images.npz", data={"npz": str(tmp_path / "images.npz")}, recipes=["erm"], teachers={})
    with pytest.raises(ConfigError, match=r"shape \(1, 4, 4\).*limbeck features"):
        run_probes(config, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_prints_the_verdict_and_writes_the_report(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "probe.yaml"
    config.write_text(
        f"name: quick\ndata: {{npz: {file}}}\nstudent: linear\nrecipes: [gce]\n"
        "training: {epochs: 1}\nseeds: [0, 1, 2]\n"
    )
    outcome = CliRunner().invoke(main, ["probe", str(config), "-o", str(tmp_path / "run"), "--seeds", "1"])
    assert outcome.exit_code == 0, outcome.output
    assert "No recipe with a teacher was tried" in outcome.output
    assert "training 2 students together" in outcome.output
    assert "report.html" in outcome.output
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "What averaging labels does here" in page
    wrong = CliRunner().invoke(main, ["probe", str(tmp_path / "missing.yaml")])
    assert wrong.exit_code == 2


# The pictures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy() -> lb.Data:
    generator = np.random.default_rng(1)
    y = np.arange(900) % 4
    x = 2 * generator.normal(size=(4, 40))[y] / np.sqrt(10) + generator.normal(size=(900, 40))
    return inject.label_noise(lb.Data(x.astype(np.float32), y), rate=0.4, seed=3)


def test_label_averaging_is_the_closed_form_at_the_best_decay(noisy: lb.Data) -> None:
    found = label_averaging(noisy, rounds=3)
    train, validation = noisy.train, noisy.validation
    run = self_distillation(train.x, train.y, 3, found["weight_decay"], bias=True, classes=4, predict=validation.x)
    assert run.predictions is not None
    assert run.predicted is not None
    truth = np.asarray(train.columns["true_label"])
    assert found["accuracy"] == pytest.approx((run.predictions.argmax(-1) == truth).mean(1))
    assert found["validation"] == pytest.approx((run.predicted.argmax(-1) == validation.y).mean(1))
    assert found["noise"] == pytest.approx((truth != train.y).mean())
    wrong = truth != train.y
    assert found["noisy_accuracy"] == pytest.approx((run.predictions.argmax(-1) == truth)[:, wrong].mean(1))
    average = np.stack([run.predictions[-1][truth == label].mean(0) for label in range(4)])
    np.testing.assert_allclose(found["class_average"][-1], average, atol=1e-9)
    last = found["spectrum"][-1]
    assert last["rank"] == 40
    assert last["filters"] == pytest.approx(list(run.filters[:, -1]))
    counts = [sum(found["margins"][name][0]) for name in ("clean_histogram", "noisy_histogram")]
    assert counts == [int((~wrong).sum()), int(wrong.sum())]
    json.dumps(found, allow_nan=False)


def test_without_noise_that_is_known_nothing_is_called_noisy(noisy: lb.Data) -> None:
    plain = lb.Data(noisy.x, noisy.y)
    found = label_averaging(plain)
    assert found["noise"] is None
    assert found["noisy_accuracy"] == [None] * 5
    json.dumps(found, allow_nan=False)


def test_partial_labels_are_warned_of_by_name() -> None:
    generator = np.random.default_rng(2)
    y = np.repeat([0, 1, 2], [300, 30, 30])
    x = (3 * np.eye(3)[y] @ generator.normal(size=(3, 8)) + generator.normal(size=(360, 8))).astype(np.float32)
    data = lb.Data(x, y, classes=None)
    notes = partial_label_notes(data, [as_recipe("erm"), as_recipe("pll"), as_recipe("pll").replace(name="again")])
    assert any("imbalanced" in note and note.startswith("pll: ") for note in notes)
    assert any(note.startswith("again: ") for note in notes)
    assert partial_label_notes(data, [as_recipe("erm")]) == []
    two = lb.Data(x, (y > 0).astype(int))
    recipe = lb.Recipe([{"term": "partial_label", "k": 2}], rounds=2, name="two")
    assert any("teach nothing" in note for note in partial_label_notes(two, [recipe]))
    swapped = inject.label_noise(lb.Data(x[:60], np.arange(60) % 3), "pair", rate=0.5)
    assert any("as often as the right one" in note for note in partial_label_notes(swapped, [as_recipe("pll")]))


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_report_shows_them(run: Any, language: str, tmp_path: Path) -> None:
    page = write_html(run.record, tmp_path / "page.html", language=language).read_text(encoding="utf-8")
    for key in ("averaging-spectrum", "averaging-classes", "averaging-margins"):
        assert f'data-spec="{key}"' in page
    text = write_markdown(run.record, tmp_path / "page.md", language=language).read_text(encoding="utf-8")
    averaging = run.record["averaging"]
    assert f"{100 * averaging['noisy_accuracy'][0]:.1f}%" in text
    assert {"en": "Partial labels", "ja": "部分ラベル"}[language] in text


def test_the_charts_are_valid_and_carry_the_numbers(run: Any) -> None:
    from limbeck.report import averaging
    from limbeck.report.language import load_language

    t, found = load_language("en"), run.record["averaging"]
    classes = run.record["data"]["classes"]
    for chart in (
        averaging.spectrum(found, t),
        averaging.class_averages(found, classes, t),
        averaging.margins(found, t),
    ):
        spec = chart.to_dict(validate=True)
        assert spec["datasets"]["rows"]
    rows = averaging.margins(found, t).datasets["rows"]
    for name in {row["n"] for row in rows}:
        shares = sum(row["v"] for row in rows if row["n"] == name and row["k"] == "Noisy samples")
        assert shares == pytest.approx(1, abs=1e-3)
    assert len(averaging.class_averages(found, classes, t).datasets["rows"]) == 6 * len(classes) ** 2
    unknown = found | {"noise": None}
    assert {row["k"] for row in averaging.margins(unknown, t).datasets["rows"]} == {"Clean samples"}
    assert len(averaging.rounds_table(unknown, t).columns) == 3


def test_a_student_of_a_probe_is_an_ordinary_student(run: Any, file: Path) -> None:
    saved = load_model(run.folder / "models" / "kd-seed0.safetensors")
    assert isinstance(saved.model, nn.Module)
    outcome = CliRunner().invoke(main, ["evaluate", str(run.folder / "models" / "kd-seed0.safetensors")])
    assert outcome.exit_code == 0, outcome.output
