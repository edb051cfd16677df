"""Several processes give the student of one process; precision is chosen once and recorded."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.engine import Engine, choose_precision

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from torch import nn
from test_fit import make_data, CLASSES
import limbeck as lb
data = make_data(samples=601)
torch.manual_seed(0)
small = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))
big = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, CLASSES))
for recipe in sys.argv[2:]:
    settings = {{"epochs": 2, "batch_size": 64, "optimiser": "sgd", "learning_rate": 0.05}}
    fitted = lb.fit(small, data, teacher=big, recipe=recipe, **settings)
    import os
    if os.environ.get("RANK", "0") == "0":
        fitted.save(sys.argv[1] + "/" + recipe + ".safetensors", history=fitted.history)
"""


@pytest.mark.slow
def test_two_processes_give_the_student_of_one(tmp_path: Path) -> None:
    """The same global batch, group DRO's q included: sums over groups are reduced across processes."""
    from limbeck.checkpoint import load_tensors

    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=str(Path(__file__).parent))))
    recipes = ["kd", "groupdistil", "dett", "ctkd"]
    for folder, launcher in (
        ("one", [sys.executable]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29533"]),
    ):
        (tmp_path / folder).mkdir()
        subprocess.run([*launcher, str(script), str(tmp_path / folder), *recipes], check=True, capture_output=True)
    for recipe in recipes:
        (one, history), (two, other) = (
            load_tensors(tmp_path / folder / f"{recipe}.safetensors") for folder in ("one", "two")
        )
        for name in one:
            assert torch.allclose(one[name], two[name], atol=1e-5), (recipe, name, (one[name] - two[name]).abs().max())
        for left, right in zip(history["history"], other["history"], strict=True):
            assert left["loss"] == pytest.approx(right["loss"], abs=1e-4), recipe
            if left["group_weights"]:
                assert left["group_weights"] == pytest.approx(right["group_weights"], abs=1e-5), recipe


def _step(model: nn.Module, inputs: Any) -> torch.Tensor:
    return model(inputs).float().mean()


def test_a_fixed_precision_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*_: Any) -> float:
        raise AssertionError("timed")

    monkeypatch.setattr("limbeck.engine._milliseconds", timed)
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    assert choose_precision("float32", model, x, _step) == {"autocast": False, "channels_last": False}
    assert choose_precision("bfloat16", model, x, _step) == {"autocast": True, "channels_last": False}
    kept = {"autocast": True, "channels_last": True}
    assert choose_precision(kept, model, x, _step) == kept


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ([10.0, 20.0, 9.0, 30.0], {"autocast": False, "channels_last": True}),
        ([10.0, 4.0, 9.0, 30.0], {"autocast": True, "channels_last": False}),
        ([10.0, 9.9, 9.8, 9.7], {"autocast": False, "channels_last": False}),
    ],
)
def test_auto_keeps_what_pays_and_only_that(
    times: list[float], chosen: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(times)
    monkeypatch.setattr("limbeck.engine._milliseconds", lambda *_: next(left))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    found = choose_precision("auto", model, torch.ones(2, 3, 8, 8), _step)
    assert {name: found[name] for name in chosen} == chosen
    assert [entry["milliseconds"] for entry in found["measured"]] == times


def test_timing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choose_precision("auto", model, torch.ones(4, 3, 8, 8), _step)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_device_takes_the_whole_batch() -> None:
    engine = Engine({"autocast": False, "channels_last": False})
    assert engine.part(3, 9) == slice(3, 9)
