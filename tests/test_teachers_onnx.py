"""ONNX files as teachers: a small network written node by node, so that no exporter is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.data import Data
from limbeck.errors import TeacherError
from limbeck.teachers import ModuleTeacher, OnnxTeacher, as_teacher, collect, require

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FLOAT = onnx.TensorProto.FLOAT


def make_module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def export(
    path: Path,
    module: nn.Sequential,
    *,
    batch: int | str = "batch",
    open_classes: bool = False,
    softmax: bool = False,
    hidden: bool = False,
    label: bool = False,
    inputs: tuple[str, ...] = ("x",),
    external: bool = False,
) -> Path:
    """The module as an ONNX file; with two inputs, their sum is what the module sees."""
    make = onnx.helper
    weights = {name.replace(".", "_"): value.detach().numpy() for name, value in module.state_dict().items()}
    nodes = [make.make_node("Add", list(inputs), ["given"])] if len(inputs) == 2 else []
    nodes += [
        make.make_node("Gemm", ["given" if nodes else inputs[0], "0_weight", "0_bias"], ["first"], transB=1),
        make.make_node("Relu", ["first"], ["hidden"]),
        make.make_node("Gemm", ["hidden", "2_weight", "2_bias"], ["logits"], transB=1),
    ]
    outputs = [make.make_tensor_value_info("logits", FLOAT, [batch, 3])]
    if open_classes:
        # How many columns a selection keeps is known only when it runs.
        weights["chosen"] = np.array([True, True, True])
        nodes.append(make.make_node("Compress", ["logits", "chosen"], ["selected"], axis=1))
        outputs = [make.make_tensor_value_info("selected", FLOAT, [batch, "classes"])]
    if softmax:
        nodes.append(make.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
        outputs = [make.make_tensor_value_info("probabilities", FLOAT, [batch, 3])]
    if hidden:
        outputs.append(make.make_tensor_value_info("hidden", FLOAT, [batch, 8]))
    if label:
        nodes.append(make.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
        outputs.insert(0, make.make_tensor_value_info("label", onnx.TensorProto.INT64, [batch]))
    graph = make.make_graph(
        nodes,
        "teacher",
        [make.make_tensor_value_info(name, FLOAT, [batch, 5]) for name in inputs],
        outputs,
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path), save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


def make_data(count: int = 21, **changes: Any) -> Data:
    x = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    y = np.arange(count) % 3
    return Data(changes.get("x", x), y, classes=["a", "b", "c"], fractions=(1.0, 0.0, 0.0))


def test_an_onnx_file_says_what_its_module_says(tmp_path: Path) -> None:
    data, module = make_data(), make_module()
    teacher = as_teacher(export(tmp_path / "teacher.onnx", module))
    assert isinstance(teacher, OnnxTeacher)
    teacher.check(data)
    assert teacher.classes == 3
    found = collect(teacher, data, ["logits", "probabilities"], batch_size=8)
    expected = collect(ModuleTeacher(module), data, ["logits", "probabilities"])
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("batch", [1, 8])
def test_a_file_of_a_fixed_batch_size_is_fed_in_batches_of_that_size(tmp_path: Path, batch: int) -> None:
    data, module = make_data(), make_module()
    teacher = OnnxTeacher(export(tmp_path / "teacher.onnx", module, batch=batch))
    torch.testing.assert_close(collect(teacher, data)["logits"], collect(ModuleTeacher(module), data)["logits"])


def test_probabilities_must_be_declared(tmp_path: Path) -> None:
    data, module = make_data(), make_module()
    path = export(tmp_path / "teacher.onnx", module, softmax=True)
    with pytest.raises(TeacherError, match=r"'teacher\.onnx' was declared as logits.*kind='probabilities'"):
        OnnxTeacher(path).check(data)
    teacher = OnnxTeacher(path, kind="probabilities")
    teacher.check(data)
    expected = collect(ModuleTeacher(module), data)["logits"].softmax(1)
    torch.testing.assert_close(collect(teacher, data)["logits"].softmax(1), expected)


def test_outputs_beside_the_logits(tmp_path: Path) -> None:
    data, module = make_data(), make_module()
    path = export(tmp_path / "teacher.onnx", module, hidden=True, label=True)
    with pytest.raises(TeacherError, match=r"which of its outputs.*'label'.*'logits'.*'hidden'.*output='\.\.\.'"):
        OnnxTeacher(path)
    with pytest.raises(TeacherError, match="unknown output 'logit': did you mean 'logits'"):
        OnnxTeacher(path, output="logit")
    teacher = OnnxTeacher(path, output="logits", features="hidden")
    expected = collect(ModuleTeacher(module), data, ["features", "logits"])
    found = collect(teacher, data, ["features", "logits"])
    torch.testing.assert_close(found, expected)
    backbone = OnnxTeacher(path, output="hidden", kind="features")
    torch.testing.assert_close(collect(backbone, data, ["features"])["features"], expected["features"])
    with pytest.raises(TeacherError, match=r"recipe 'dett' needs the last layer: give the model itself"):
        require(teacher, ["features", "head"], by="recipe 'dett'")


def test_several_inputs_are_told_apart_by_name(tmp_path: Path) -> None:
    module = make_module()
    teacher = OnnxTeacher(export(tmp_path / "teacher.onnx", module, inputs=("left", "right")))
    plain = make_data()
    parts = make_data(x={"left": plain.x - 1, "right": np.ones_like(plain.x)})
    torch.testing.assert_close(
        collect(teacher, parts)["logits"], collect(ModuleTeacher(module), plain)["logits"], atol=1e-5, rtol=1e-4
    )
    with pytest.raises(TeacherError, match="takes the inputs left, right; the data have one array"):
        teacher.check(plain)


def test_an_open_number_of_classes_is_asked_for(tmp_path: Path) -> None:
    path = export(tmp_path / "teacher.onnx", make_module(), open_classes=True)
    with pytest.raises(TeacherError, match=r"leaves the number of classes open: OnnxTeacher\(path, classes=\.\.\.\)"):
        OnnxTeacher(path)
    OnnxTeacher(path, classes=3).check(make_data())
    four = Data(np.zeros((8, 5), np.float32), np.arange(8) % 4, fractions=(1.0, 0.0, 0.0))
    with pytest.raises(TeacherError, match="returned logits of 3 classes and was declared with 4"):
        OnnxTeacher(path, classes=4).check(four)


def test_a_fingerprint_follows_the_file_and_the_weights_beside_it(tmp_path: Path) -> None:
    module = make_module()
    for external in (False, True):
        path = tmp_path / f"teacher-{external}.onnx"
        first = OnnxTeacher(export(path, module, external=external)).fingerprint()
        assert first == OnnxTeacher(path).fingerprint()
        graph = path.read_bytes()
        with torch.no_grad():
            module[0].weight[0, 0] += 0.5
        (tmp_path / f"{path.name}.data").unlink(missing_ok=True)
        export(path, module, external=external)
        assert (path.read_bytes() == graph) == external, "with weights beside it the file itself does not change"
        assert OnnxTeacher(path).fingerprint() != first
    assert OnnxTeacher(path, kind="log_odds").fingerprint() != OnnxTeacher(path).fingerprint()


def test_what_is_no_onnx_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(TeacherError, match=r"broken\.onnx cannot be read as an ONNX model"):
        OnnxTeacher(tmp_path / "broken.onnx")
    with pytest.raises(TeacherError, match="there is no ONNX file"):
        OnnxTeacher(tmp_path / "nothing.onnx")
