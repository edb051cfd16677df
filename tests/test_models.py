"""Models from plain data: what they compute, what they load, what they refuse."""

from __future__ import annotations

import io
import itertools
import math
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from limbeck.checkpoint import save_tensors
from limbeck.errors import CheckpointError, ConfigError, MissingExtraError
from limbeck.heads import transplant
from limbeck.models import (
    MODEL_NAMES,
    build,
    check_model,
    load_model,
    load_user_file,
    load_weights,
    parameters,
    save_model,
)

CIFAR = (3, 32, 32)


def built(spec: Any, shape: tuple[int, ...] = CIFAR, classes: int = 10, **more: Any) -> nn.Module:
    return build(spec, inputs_shape=shape, classes=classes, **more)


# What they compute ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    # He et al. (2015), table 6, in the two digits it prints.
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_resnets_have_the_parameters_of_the_paper(name: str, millions: float) -> None:
    digits = 1 if name == "resnet110" else 2
    assert round(parameters(built(name)) / 1e6, digits) == millions


@pytest.mark.parametrize("name", ["resnet8", "resnet14", "resnet20"])
def test_a_resnet_has_as_many_layers_as_its_name_says(name: str) -> None:
    layers = [part for part in built(name).modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert len(layers) == int(name.removeprefix("resnet"))


def test_option_a_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = built("resnet8").layer2[0]  # type: ignore[index, union-attr]
    for part in block.modules():
        if isinstance(part, (nn.Conv2d, nn.BatchNorm2d)):
            nn.init.zeros_(part.weight)
    x = torch.rand(2, 16, 8, 8)
    found = block(x)
    assert torch.equal(found[:, 8:24], x[:, :, ::2, ::2])
    assert not found[:, :8].any()
    assert not found[:, 24:].any()


@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    classes=st.integers(2, 5),
)
@settings(max_examples=25, deadline=None)
def test_an_mlp_has_the_parameters_of_its_widths(hidden: list[int], shape: list[int], classes: int) -> None:
    model = built({"name": "mlp", "hidden": hidden}, tuple(shape), classes)
    widths = [math.prod(shape), *hidden, classes]
    assert parameters(model) == sum(a * b + b for a, b in itertools.pairwise(widths))
    assert model(torch.zeros(3, *shape)).shape == (3, classes)


def test_an_mlp_is_its_formula() -> None:
    torch.manual_seed(0)
    model = built({"name": "mlp", "hidden": [5, 4], "dropout": 0.5}, (2, 3), 2).eval()
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    x = torch.randn(7, 2, 3)
    values = x.double().numpy().reshape(7, 6)
    for layer in ("hidden.0", "hidden.3"):
        values = np.maximum(values @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"], 0)
    expected = values @ weights["linear.weight"].T + weights["linear.bias"]
    assert np.allclose(model(x).detach().numpy(), expected, atol=1e-6)
    assert not torch.equal(model.train()(x), model(x)), "dropout draws anew in training"


def test_a_cnn_is_its_formula() -> None:
    torch.manual_seed(0)
    model = built({"name": "cnn", "channels": [3, 4]}, (2, 6, 6), 5).double().eval()
    state = model.state_dict()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    maps = x
    for stage in (0, 4):
        kernel = state[f"stages.{stage}.weight"]
        windows = functional.unfold(maps, 3, padding=1).transpose(1, 2) @ kernel.flatten(1).T
        maps = windows.transpose(1, 2).reshape(2, len(kernel), *maps.shape[2:]).clamp(min=0) / math.sqrt(1 + 1e-5)
        if stage == 0:
            maps = maps.reshape(2, 3, 3, 2, 3, 2).amax(dim=(3, 5))
    expected = maps.flatten(2).mean(2) @ state["linear.weight"].T + state["linear.bias"]
    assert torch.allclose(model(x), expected, atol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8", "linear"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (3, 32, 32), (1, 1, 1), (2, 3, 5)])
def test_every_model_takes_every_image(name: str, shape: tuple[int, ...]) -> None:
    spec = {"mlp": {"name": "mlp", "hidden": [4]}}.get(name, name)
    model = built(spec, shape, 4).eval()
    x = torch.rand(3, *shape)
    assert model(x).shape == (3, 4)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-6), "a sample's logits depend on that sample alone"


def test_the_last_layer_is_called_linear() -> None:
    for spec in ("linear", "cnn", "resnet8", {"name": "mlp", "hidden": [3]}):
        model = built(spec)
        assert list(dict(model.named_children()))[-1] == "linear"


def test_images_without_a_channel_are_images_of_one() -> None:
    torch.manual_seed(0)
    model = built({"name": "cnn", "channels": [4, 8]}, (8, 8), 3).eval()
    x = torch.rand(2, 8, 8)
    assert torch.equal(model(x), model(x[:, None]))


def test_weights_are_a_function_of_the_callers_seed() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return built("resnet8").state_dict()

    one, same, other = state(1), state(1), state(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_width_scales_a_resnet() -> None:
    assert built({"name": "resnet8", "width": 4}).linear.in_features == 16  # type: ignore[union-attr]


# Real weights ---------------------------------------------------------------------------------------------------------


def cifar_test_slice(folder: Path, step: int) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """Every `step`-th test image, standardised as the networks were trained."""
    arrays = np.load(folder / "cifar10_jpeg.npz", allow_pickle=False)
    header, content = arrays["header"].tobytes(), arrays["test_bytes"].tobytes()
    ends = np.cumsum(arrays["test_len"], dtype=np.int64)
    starts = np.r_[0, ends[:-1]]
    rows = range(0, len(ends), step)
    pixels = [np.asarray(Image.open(io.BytesIO(header + content[starts[r] : ends[r]]))) for r in rows]
    x = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (x - mean) / deviation, arrays["y_test"][::step].astype(np.int64)


@pytest.mark.data
def test_a_trained_resnet20_recognises_real_photographs(limbeck_data: Path, tmp_path: Path) -> None:
    weights = limbeck_data / "cifar10_resnet20.safetensors"
    model = built({"name": "resnet20", "weights": str(weights)}).eval()
    x, y = cifar_test_slice(limbeck_data, 20)
    with torch.no_grad():
        logits = model(x)
    accuracy = float((logits.argmax(1).numpy() == y).mean())
    # 81.0 % on all 10,000 of these JPEGs; 500 of them lie within three standard errors of that.
    assert abs(accuracy - 0.810) < 3 * math.sqrt(0.81 * 0.19 / 500)

    names = [f"class {k}" for k in range(10)]
    save_model(model, tmp_path / "copy.safetensors", spec="resnet20", inputs_shape=CIFAR, classes=names)
    again = load_model(tmp_path / "copy.safetensors")
    with torch.no_grad():
        assert torch.equal(again.model(x[:50]), model(x[:50]))
    assert again.classes == tuple(names)
    assert not again.model.training


@pytest.mark.data
@pytest.mark.parametrize("depth", [20, 56])
def test_published_weights_fit_key_for_key(limbeck_data: Path, depth: int) -> None:
    path = limbeck_data / f"cifar10_resnet{depth}.safetensors"
    model = built({"name": f"resnet{depth}", "weights": str(path)})
    tensors = load_file(path)
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert own.keys() == tensors.keys()
    assert all(torch.equal(own[name], tensors[name]) for name in own)


# Saving and loading ---------------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_with_its_card(tmp_path: Path) -> None:
    spec = {"name": "mlp", "hidden": [5], "dropout": 0.2}
    model = built(spec, (4,), 3)
    path = tmp_path / "student.safetensors"
    save_model(model, path, spec=spec, inputs_shape=(4,), classes=["a", "b", "c"], card={"note": "ß"})
    found = load_model(path)
    x = torch.randn(6, 4)
    assert torch.equal(found.model(x), model.eval()(x))
    assert found.card["note"] == "ß"
    assert found.spec == check_model(spec)


def test_the_weights_it_started_from_are_not_needed_again(tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    save_file({"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)}, first)
    spec = {"name": "linear", "weights": str(first)}
    save_model(built(spec, (3,), 2), tmp_path / "b.safetensors", spec=spec, inputs_shape=(3,), classes=["a", "b"])
    first.unlink()
    assert "weights" not in load_model(tmp_path / "b.safetensors").card["model"], "no path of this machine in the file"
    assert torch.equal(load_model(tmp_path / "b.safetensors").model(torch.ones(1, 3)), torch.full((1, 2), 3.0))


@pytest.mark.parametrize(
    ("student", "teacher", "shape", "projector"),
    [
        ({"name": "mlp", "hidden": [6]}, {"name": "mlp", "hidden": [9]}, (4,), "auto"),
        ({"name": "mlp", "hidden": [6]}, {"name": "mlp", "hidden": [9]}, (4,), "mlp"),
        ({"name": "cnn", "channels": [3, 4]}, {"name": "cnn", "channels": [3, 5]}, (1, 8, 8), "auto"),
        ({"name": "cnn", "channels": [3, 4]}, "resnet8", (1, 8, 8), "full3x3"),
    ],
)
def test_a_student_before_a_transplanted_layer_comes_back(
    tmp_path: Path, student: Any, teacher: Any, shape: tuple[int, ...], projector: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, *shape)
    whole = transplant(built(student, shape, 3), built(teacher, shape, 3), projector, example=x).eval()
    card = {"model": student, "classes": ["a", "b", "c"], "recipe": {"head": {"projector": projector}}}
    path = tmp_path / "t.safetensors"
    save_tensors(path, whole.state_dict(), card | {"teacher_model": check_model(teacher).plain()})
    assert torch.equal(load_model(path, inputs_shape=shape).model(x), whole(x))
    if len(shape) == 1 and projector == "auto":
        save_tensors(path, whole.state_dict(), card)
        assert torch.equal(load_model(path, inputs_shape=shape).model(x), whole(x)), "features need no teacher"


def test_batch_norm_counters_may_be_missing(tmp_path: Path) -> None:
    model = built({"name": "cnn", "channels": [2]}, (1, 4, 4), 2)
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(built({"name": "cnn", "channels": [2]}, (1, 4, 4), 2), tmp_path / "w.safetensors")


def linear_file(folder: Path, **tensors: torch.Tensor) -> Path:
    path = folder / "weights.safetensors"
    save_file({"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)} | tensors, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"other": torch.zeros(1)}, "beyond the model, other"),
        ({"linear.weight": torch.ones(5, 3)}, r"linear\.weight \[5, 3\] instead of \[2, 3\]"),
        ({"linear.bias": torch.tensor([0.0, math.nan])}, "not finite numbers: linear.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], expected: str) -> None:
    model = built("linear", (3,), 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=expected):
        load_weights(model, linear_file(tmp_path, **tensors))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    save_file({"linear.weight": torch.ones(2, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"lacks linear\.bias"):
        load_weights(built("linear", (3,), 2), tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 40])
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        load_weights(built("linear", (3,), 2), tmp_path / "w.safetensors")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = linear_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="truncated"):
        load_weights(built("linear", (3,), 2), path)


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"model": {"name": "linear"}, "classes": ["a", "b"]},
        {"model": "linear", "inputs_shape": [3], "classes": ["a", "b"]},
        {"model": {"name": "nothing"}, "inputs_shape": [3], "classes": ["a", "b"]},
        {"model": {"name": "linear"}, "inputs_shape": ["x"], "classes": ["a", "b"]},
        {"model": {"name": "linear"}, "inputs_shape": [10**14], "classes": ["a", "b"]},
        {"model": {"name": "os.system", "command": "true"}, "inputs_shape": [3], "classes": ["a", "b"]},
    ],
)
def test_a_card_that_describes_no_model_is_refused(tmp_path: Path, card: dict[str, Any]) -> None:
    save_tensors(tmp_path / "m.safetensors", {"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)}, card)
    with pytest.raises(ConfigError):
        load_model(tmp_path / "m.safetensors")


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("resnet2", "unknown model 'resnet2': did you mean 'resnet"),
        ({"name": "mpl", "hidden": [3]}, "did you mean 'mlp'"),
        ({"hidden": [3]}, "a model needs a name"),
        ({"name": 3}, "expected the name of a model"),
        (None, "expected the name of a model"),
        ({"name": "mlp"}, "model.hidden: missing"),
        ({"name": "mlp", "hiden": [3]}, "model.hiden: unknown key: did you mean 'hidden'"),
        ({"name": "mlp", "hidden": []}, "at least 1"),
        ({"name": "mlp", "hidden": [3, "x"]}, r"model.hidden\[1\]: found the text 'x', expected a whole number"),
        ({"name": "mlp", "hidden": [True]}, r"model.hidden\[0\]: found true"),
        ({"name": "mlp", "hidden": [2.0]}, "expected a whole number"),
        ({"name": "mlp", "hidden": [0]}, "at least 1"),
        ({"name": "mlp", "hidden": [3], "dropout": 1.0}, "below 1"),
        ({"name": "mlp", "hidden": [3], "dropout": math.nan}, "model.dropout"),
        ({"name": "resnet20", "width": 7}, "a multiple of 2"),
        ({"name": "resnet20", "weights": "no/such/file"}, "there is no file"),
        ({"name": "timm/resnet18", "checkpoint_path": "x.pth"}, "checkpoint_path is refused"),
    ],
)
def test_a_wrong_specification_is_refused(spec: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_model(spec)


@pytest.mark.parametrize(
    ("spec", "shape", "classes", "expected"),
    [
        ("cnn", (64,), 10, "take 'mlp' or 'linear'"),
        ("resnet20", (1, 2, 3, 4), 10, "an image is"),
        ("linear", (), 10, "at least one number"),
        ("linear", (3, 0), 10, "at least one number"),
        ("linear", (3,), 1, "at least 2 classes"),
        ("linear", {"tokens": (4,)}, 2, "named tensors"),
        ("mine.big", (3,), 2, "--models mine.py"),
    ],
)
def test_a_model_that_does_not_fit_the_inputs_is_refused(spec: str, shape: Any, classes: int, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        built(spec, shape, classes)


def test_every_built_in_name_can_be_built() -> None:
    for name in MODEL_NAMES:
        spec = {"name": name, "hidden": [3]} if name == "mlp" else name
        assert parameters(built(spec, (1, 8, 8), 2)) > 0


# timm -----------------------------------------------------------------------------------------------------------------


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"limbeck\[timm\]"):
        built("timm/resnet18")


class FakeTimm(ModuleType):
    """The three functions of timm that are used, so that what they are called with can be seen."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def is_model(self, name: str) -> bool:
        return name in self.list_models()

    def list_models(self) -> list[str]:
        return ["resnet18", "vit_tiny"]

    def create_model(self, name: str, **options: Any) -> nn.Module:
        self.calls.append((name, options))
        if "bad" in options:
            raise TypeError("unexpected keyword argument 'bad'")
        return nn.Linear(3, options["num_classes"])


def test_timm_models_get_classes_channels_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", timm)
    built({"name": "timm/resnet18", "drop_rate": 0.1}, (1, 64, 64), 7)
    assert timm.calls == [("resnet18", {"num_classes": 7, "in_chans": 1, "pretrained": False, "drop_rate": 0.1})]
    with pytest.raises(ConfigError, match="unknown timm model 'resnet19': did you mean 'resnet18'"):
        built("timm/resnet19")
    with pytest.raises(ConfigError, match="cannot be built"):
        built({"name": "timm/resnet18", "bad": 1})


# The user's own file --------------------------------------------------------------------------------------------------

OWN = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from torch.nn import Linear

@dataclass
class Options:
    depth: int = 2

class Small(nn.Module):
    def __init__(self, inputs_shape: tuple[int, ...], classes: int, width: int = 4):
        super().__init__()
        self.parts = nn.Sequential(nn.Flatten(), nn.Linear(inputs_shape[0], width), nn.Linear(width, classes))

    def forward(self, x):
        return self.parts(x)

def any_options(classes, **more):
    return nn.Linear(more["inputs"], classes)

def no_model(classes):
    return "a text"

def fails(classes):
    raise KeyError("gone")

def needs(classes, depth):
    return nn.Linear(depth, classes)

def _hidden():
    return None
"""


@pytest.fixture
def own(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "my_models.py").write_text(textwrap.dedent(OWN))
    return load_user_file(tmp_path / "my_models.py")


def test_a_users_file_offers_what_it_defines_in_public(own: dict[str, object]) -> None:
    names = {"Options", "Small", "any_options", "no_model", "fails", "needs"}
    assert own.keys() == {f"my_models.{name}" for name in names}, "neither what it imports nor what begins with _"


def test_a_users_model_is_told_shape_and_classes(own: dict[str, object]) -> None:
    model = built({"name": "my_models.Small", "width": 6}, (5,), 3, user=own)
    assert model(torch.zeros(2, 5)).shape == (2, 3)
    assert parameters(model) == 5 * 6 + 6 + 6 * 3 + 3
    assert parameters(built({"name": "my_models.any_options", "inputs": 4}, (5,), 3, user=own)) == 15


def test_a_saved_model_of_the_user_needs_the_users_file(own: dict[str, object], tmp_path: Path) -> None:
    model = built("my_models.Small", (5,), 3, user=own)
    path = tmp_path / "s.safetensors"
    save_model(model, path, spec="my_models.Small", inputs_shape=(5,), classes=["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"--models my_models\.py"):
        load_model(path)
    x = torch.randn(2, 5)
    assert torch.equal(load_model(path, user=own).model(x), model(x))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("my_models.small", "did you mean 'my_models.Small'"),
        ({"name": "my_models.Small", "widht": 3}, "unknown option 'widht': did you mean 'width'"),
        ("my_models.needs", "'depth' is missing"),
        ("my_models.no_model", "found a str"),
        ("my_models.fails", "KeyError: 'gone'"),
    ],
)
def test_a_users_model_that_cannot_be_built_is_told(own: dict[str, object], spec: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        built(spec, (5,), 3, user=own)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("absent.py", None, "there is no file"),
        ("data.txt", "x = 1", "is not a Python module"),
        ("my-models.py", "x = 1", "is not a Python module"),
        ("broken.py", "def f(:", "SyntaxError"),
        ("raises.py", "1 / 0", "ZeroDivisionError"),
        ("empty.py", "import torch\nx = 1", "defines no public function or class"),
    ],
)
def test_a_users_file_that_cannot_be_used_is_told(
    tmp_path: Path, name: str, content: str | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load_user_file(tmp_path / name)


def test_a_users_file_hides_no_module_of_the_same_name(tmp_path: Path) -> None:
    import json

    (tmp_path / "json.py").write_text("def big():\n    return None\n")
    assert load_user_file(tmp_path / "json.py").keys() == {"json.big"}
    assert sys.modules["json"] is json


def test_all_decides_what_is_public(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("from torch.nn import Linear\n__all__ = ['Linear']\ndef other():\n    pass\n")
    assert load_user_file(tmp_path / "m.py") == {"m.Linear": nn.Linear}
