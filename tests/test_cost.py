"""What a model costs: counts are exact, times are of what is run, energy is None where nobody tells."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import limbeck as lb
from limbeck.cli import main
from limbeck.config import config_from_dict
from limbeck.errors import ConfigError
from limbeck.evaluation import Cost, Latency, cost, measure_cost
from limbeck.pilots import run_pilot


@pytest.fixture(scope="module")
def data() -> lb.Data:
    draw = np.random.default_rng(0)
    return lb.Data(draw.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 3)


def test_parameters_and_bytes_are_counted_once_with_buffers(data: lb.Data) -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.BatchNorm1d(6), shared, nn.Linear(6, 3).half().float())
    found = measure_cost(model, data, passes=2)
    assert found.parameters == (6 * 6 + 6) + 12 + (6 * 3 + 3)
    assert found.size == 4 * (found.parameters + 12) + 8  # running mean and variance, and a count of batches
    assert [entry.batch for entry in found.latency] == [1, 64]


def test_what_is_timed_is_the_forward_pass_in_evaluation_mode(data: lb.Data) -> None:
    seen: list[Any] = []

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((len(x), self.training, torch.is_grad_enabled(), torch.get_num_threads()))
            time.sleep(0.002 * len(x))
            return self.linear(x)

    model = Slow().train()
    threads = torch.get_num_threads()
    found = measure_cost(model, data, batches=(1, 4), passes=5, energy=False)
    assert set(seen) == {(1, False, False, 1), (4, False, False, 1)}
    assert len(seen) == 2 * (5 + 3)
    assert model.training
    assert torch.get_num_threads() == threads
    for entry in found.latency:
        assert entry.median >= 2.0 * entry.batch
        assert entry.low <= entry.median <= entry.high
        assert entry.samples_per_second == pytest.approx(1000 * entry.batch / entry.median)


def test_a_student_is_read_against_its_teacher(data: lb.Data) -> None:
    teacher = Cost(1000, 4000, (Latency(1, 2.0, 1.9, 2.1, 5), Latency(64, 10.0, 9.0, 11.0, 5)), 0.4)
    student = Cost(100, 200, (Latency(1, 1.0, 0.9, 1.1, 5), Latency(64, 2.0, 1.9, 2.1, 5)), 0.1)
    ratios = {"parameters": 10.0, "size": 20.0, "latency_1": 2.0, "latency_64": 5.0, "joules": pytest.approx(4.0)}
    assert student.against(teacher) == ratios
    silent = Cost(100, 200, student.latency, None)
    assert silent.against(teacher)["joules"] is None
    assert "not told" in str(silent)
    assert "100 mJ a sample" in str(student)
    assert Cost.from_dict(json.loads(json.dumps(student.to_dict()))) == student
    with pytest.raises(ConfigError, match="measure both at the same"):
        student.against(Cost(1, 1, student.latency[:1], None))
    fitted = lb.fit(nn.Linear(6, 3), data, epochs=1)
    assert measure_cost(fitted, data, passes=1, energy=False).parameters == 21
    with pytest.raises(ConfigError, match="at least 1"):
        measure_cost(fitted, data, batches=())


def zone(root: Path, name: str, label: str, energy: int, most: int = 1000) -> Path:
    folder = root / name
    folder.mkdir()
    for file, value in (("name", label), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


def test_energy_is_read_from_packages_only_and_counters_may_wrap(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 900)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    hidden = zone(tmp_path, "intel-rapl:2", "package-2", 1)
    (hidden / "energy_uj").unlink()
    assert cost.packages(tmp_path) == [first, second]
    assert cost.packages(tmp_path / "none") == []
    meter = cost.Meter([first, second])
    (first / "energy_uj").write_text("200")  # 300 on, round the end of its range
    (second / "energy_uj").write_text("350")
    assert meter.joules() == pytest.approx(550e-6)
    assert meter.seconds() >= 0


def test_energy_of_a_sample_is_what_is_used_above_idling(
    data: lb.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0, 10**12)
    passes = 0

    class Hungry(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal passes
            passes += 1
            time.sleep(0.005)
            (counter / "energy_uj").write_text(str(passes * 64_000))  # a millijoule a sample of a batch of 64
            return x[:, :3]

    monkeypatch.setattr(cost, "packages", lambda: [counter])
    monkeypatch.setattr(cost, "_SECONDS", 0.05)
    found = measure_cost(Hungry(), data, batches=(64,), passes=1)
    assert found.joules == pytest.approx(1e-3, rel=0.2)
    monkeypatch.setattr(cost, "packages", list)
    assert measure_cost(Hungry(), data, batches=(64,), passes=1).joules is None


def test_the_command_line_measures_the_models_of_a_run(tmp_path: Path) -> None:
    config = {
        "name": "small",
        "data": {"name": "digits"},
        "teachers": {"big": {"model": {"name": "mlp", "hidden": [32]}}},
        "student": {"name": "mlp", "hidden": [4]},
        "recipes": [{"recipe": "kd", "teacher": "big"}],
        "training": {"epochs": 1},
        "seeds": [0, 1],
    }
    run_pilot(config_from_dict(config), output=tmp_path / "run")
    result = CliRunner().invoke(main, ["cost", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert set(found) == {"erm", "kd", "teacher-big"}
    assert found["teacher-big"]["parameters"] == 64 * 32 + 32 + 32 * 10 + 10
    ratio = found["kd"]["against"]["teacher-big"]["parameters"]
    assert ratio == pytest.approx(found["teacher-big"]["parameters"] / (64 * 4 + 4 + 4 * 10 + 10))
    text = CliRunner().invoke(main, ["cost", str(tmp_path / "run")]).output
    assert "teacher-big over it: parameters 7.77" in text
    assert text.count("batch 64: ") == 3
