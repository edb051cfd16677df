"""Real teachers: a deployed model known by its log only, and published CIFAR-10 networks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from limbeck.data import Data
from limbeck.models.networks import CifarResNet
from limbeck.teachers import ModuleTeacher, Store, StoredTeacher, as_teacher, collect

pytestmark = pytest.mark.data


def test_a_deployed_model_known_by_its_log_is_a_teacher(limbeck_data: Path, tmp_path: Path) -> None:
    path = limbeck_data / "acs_employment_ma.parquet"
    table = parquet.read_table(path)
    score = table["predicted_probability"].to_numpy()
    employed = table["employed"].to_numpy().astype(np.int64)
    data = Data(
        np.stack([table[name].to_numpy() for name in ("AGEP", "SCHL")], 1).astype(np.float32),
        employed,
        ids=table["id"].to_numpy(),
        classes=["no", "yes"],
        fractions=(1.0, 0.0, 0.0),
    )
    teacher = as_teacher(path, columns={"yes": "predicted_probability"}, classes=data.classes)
    teacher.check(data)
    found = collect(teacher, data, ["logits", "probabilities"], batch_size=1 << 16)
    np.testing.assert_allclose(found["probabilities"][:, 1], score, atol=1e-6)
    certain = (score > 0) & (score < 1)
    odds = (found["logits"][:, 1] - found["logits"][:, 0]).double().numpy()
    np.testing.assert_allclose(odds[certain], np.log(score[certain] / (1 - score[certain])), atol=1e-3)
    right = (found["logits"].argmax(1).numpy() == employed).mean()
    assert 0.75 < right < 0.9
    small = Store.write(tmp_path / "store", teacher, data, dtype="float16", batch_size=1 << 16)
    stored = small.gather(np.arange(len(data)))["logits"]
    assert float((stored.argmax(1) == found["logits"].argmax(1)).float().mean()) > 0.9999
    assert (small.path / "outputs.safetensors").stat().st_size < 13 * len(data), "8 bytes id, 4 bytes logits a sample"


def cifar(folder: Path, count: int) -> tuple[Any, Any]:
    """The same number of test images of every class."""
    file = np.load(folder / "cifar10_jpeg.npz", allow_pickle=False)
    header, body = file["header"].tobytes(), file["test_bytes"].tobytes()
    ends = np.cumsum(file["test_len"], dtype=np.int64)
    starts = np.r_[0, ends[:-1]]
    chosen = np.arange(0, len(ends), len(ends) // count)
    images = [np.asarray(Image.open(io.BytesIO(header + body[starts[i] : ends[i]]))) for i in chosen]
    return np.stack(images).transpose(0, 3, 1, 2).copy(), file["y_test"][chosen].astype(np.int64)


def test_a_published_network_is_stored_and_teaches_from_the_store(limbeck_data: Path, tmp_path: Path) -> None:
    pixels, labels = cifar(limbeck_data, 400)
    data = Data(
        pixels,
        labels,
        classes=[f"class {index}" for index in range(10)],
        normalise=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        fractions=(1.0, 0.0, 0.0),
    )
    module = CifarResNet((3, 32, 32), 10, depth=20)
    module.load_state_dict(load_file(limbeck_data / "cifar10_resnet20.safetensors"))
    teacher = ModuleTeacher(module.train())
    want = ("logits", "features", "maps", "head")
    teacher.check(data, want)
    store = Store.write(tmp_path / "store", teacher, data, want, dtype="topk:3", batch_size=100)
    stored = StoredTeacher(store)
    stored.check(data, ["logits"])
    found, live = store.gather(np.arange(400)), collect(teacher, data, want[:3], batch_size=64)
    accuracy = float((found["logits"].argmax(1) == torch.from_numpy(labels)).float().mean())
    assert accuracy > 0.75, "81 % on all of the test images"
    difference = (found["logits"].softmax(1) - live["logits"].softmax(1)).abs().sum(1) / 2
    kept = live["logits"].softmax(1).topk(3).values.sum(1)
    assert bool((difference <= 1 - kept + 5e-3).all()), "no more is lost than the mass of the classes left out"
    torch.testing.assert_close(found["maps"].mean((2, 3)), found["features"], atol=5e-3, rtol=1e-2)
    weight, bias = store.head()
    torch.testing.assert_close(live["features"] @ weight.T + bias, live["logits"], atol=1e-4, rtol=1e-4)
