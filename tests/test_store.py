"""The store: what is written is read back, by id and view, and whatever does not belong together is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from limbeck.data import Data
from limbeck.errors import StoreError, TeacherError
from limbeck.models.networks import CNN
from limbeck.teachers import ModuleTeacher, Several, Source, Store, StoredTeacher, TableTeacher, as_teacher, collect
from limbeck.teachers.encoding import Dense, TopK
from limbeck.teachers.ids import IdIndex
from limbeck.teachers.layout import Layout

CLASSES = 12


def make_data(count: int = 50, **changes: Any) -> Data:
    generator = np.random.default_rng(0)
    fields: dict[str, Any] = {
        "x": generator.normal(size=(count, 5)).astype(np.float32),
        "y": np.arange(count) % CLASSES,
        "ids": generator.permutation(count) * 7 + 1000,
        "classes": [f"class {index}" for index in range(CLASSES)],
        "fractions": (0.6, 0.2, 0.2),
        "name": "leaves",
    }
    fields |= changes
    return Data(fields.pop("x"), fields.pop("y"), **fields)


def make_module(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def make_teacher(seed: int = 0) -> ModuleTeacher:
    return ModuleTeacher(make_module(seed))


class Shift:
    """An augmentation: every view adds another number to the inputs."""

    def __init__(self, step: float = 1.0) -> None:
        self.step = step

    def __call__(self, x: Tensor, ids: Tensor, view: int) -> Tensor:
        return x + self.step * (view + (ids % 3)[:, None])

    def fingerprint(self) -> str:
        return f"shift by {self.step}"


class ById(Source):
    """Logits that are a function of the id; counts how often each sample is asked for."""

    description = "a function of the id"
    reads_inputs = False

    def __init__(self, classes: int = CLASSES) -> None:
        self.asked: list[int] = []
        self._classes = classes

    @property
    def supplies(self) -> frozenset[str]:
        return frozenset({"logits"})

    @property
    def classes(self) -> int:
        return self._classes

    def fingerprint(self) -> str:
        return "by id"

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        self.asked += [int(value) for value in ids]
        return {"logits": torch.sin(ids[:, None].float() + torch.arange(self._classes))}


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# What is written is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8, 50, 4096])
def test_what_is_read_is_what_the_teacher_said(tmp_path: Path, batch_size: int) -> None:
    data, teacher = make_data(), make_teacher()
    want = ("logits", "probabilities", "features", "head")
    store = Store.write(tmp_path / "store", teacher, data, want, batch_size=batch_size, shard_bytes=1000)
    expected = collect(teacher, data, want[:3], batch_size=batch_size)
    found = store.gather(np.arange(50))
    assert list(found) == ["logits", "probabilities", "features"]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    for own, theirs in zip(store.head(), teacher.head()):
        assert torch.equal(own, theirs)
    assert list(store.gather([3], want=["features"])) == ["features"]
    assert (len(store), store.classes, store.class_names, store.views) == (50, CLASSES, None, 1)
    store.verify()


def test_maps_and_several_teachers_keep_their_shapes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
    data = Data(pixels, np.arange(10) % 2, normalise=((0.5,) * 3, (0.2,) * 3), fractions=(1.0, 0.0, 0.0))
    torch.manual_seed(0)
    teacher = ModuleTeacher(CNN((3, 8, 8), 2, channels=[4, 6]), maps=["stages.0", "stages.4"])
    store = Store.write(tmp_path / "maps", teacher, data, ("maps", "features"), batch_size=4)
    torch.testing.assert_close(store.gather(np.arange(10)), collect(teacher, data, ["maps", "features"], batch_size=4))
    assert list(store.gather([0], want=["maps"])) == ["maps.0", "maps.1"]
    leaves = make_data()
    several = Several([make_teacher(0), make_teacher(1)])
    for dtype in ("float32", "topk:3"):
        store = Store.write(tmp_path / dtype, several, leaves, ("teachers_logits",), dtype=dtype, batch_size=8)
        found = store.gather([4, 2])["teachers_logits"]
        assert found.shape == (2, 2, CLASSES)
        assert found.is_contiguous()
        expected = collect(several, leaves, ("teachers_logits",))["teachers_logits"][:, [4, 2]]
        torch.testing.assert_close(found.max(-1).values, expected.max(-1).values, atol=1e-3, rtol=1e-3)


def test_stored_outputs_read_in_another_order_still_belong_to_their_sample(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    expected = collect(teacher, data)["logits"]
    Store.write(tmp_path / "store", teacher, data)
    order = np.random.default_rng(1).permutation(50)
    shuffled = data.subset(order)
    store = Store.open(tmp_path / "store", teacher, shuffled)
    torch.testing.assert_close(store.gather(np.arange(50))["logits"], expected[order])
    torch.testing.assert_close(store.gather(ids=data.ids)["logits"], expected)
    torch.testing.assert_close(store.gather(ids=torch.from_numpy(shuffled.ids[:4]))["logits"], expected[order[:4]])
    plain = Store.open(tmp_path / "store")
    torch.testing.assert_close(plain.gather(np.arange(50))["logits"], expected)


def test_a_part_of_the_data_reads_its_own_rows(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    Store.write(tmp_path / "store", teacher, data)
    for part in (data.train, data.validation, data.test):
        store = Store.open(tmp_path / "store", teacher, part)
        torch.testing.assert_close(store.gather(np.arange(len(part)))["logits"], collect(teacher, part)["logits"])
        with pytest.raises(StoreError, match=rf"has 0\.\.{len(part) - 1}"):
            store.gather([len(part)])


def test_labels_and_splits_may_change_and_inputs_may_not(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    Store.write(tmp_path / "store", teacher, data)
    noisy = data.replace(y=(data.y + 1) % CLASSES)
    assert noisy.fingerprint() != data.fingerprint()
    torch.testing.assert_close(
        Store.open(tmp_path / "store", teacher, noisy).gather([7])["logits"], collect(teacher, data)["logits"][[7]]
    )
    x = np.array(data.x)
    x[11, 2] += 1e-3
    with pytest.raises(StoreError, match=rf"inputs of 'leaves' are not those of 'leaves' \(ids {data.ids[11]}\)"):
        Store.open(tmp_path / "store", None, make_data(x=x))


def test_every_sample_is_asked_for_once_and_rows_come_in_any_number(tmp_path: Path) -> None:
    data, teacher = make_data(), ById()
    store = Store.write(tmp_path / "store", teacher, data, batch_size=16)
    store.gather([])
    repeated = np.array([3, 3, 0, 49, 3])
    found = store.gather(repeated)["logits"]
    torch.testing.assert_close(found, torch.sin(torch.from_numpy(data.ids)[repeated, None].float() + torch.arange(12)))
    assert store.gather(np.zeros(0, np.int64))["logits"].shape == (0, CLASSES)
    asked = np.array(teacher.asked)
    # Beside the one pass: the checks at the start and at opening, and the two samples that tell the shapes.
    assert len(asked) <= 50 + 32 + 2 + 32
    assert (np.unique(asked) == np.sort(data.ids)).all()


def test_rows_ids_and_outputs_that_are_not_stored_are_refused(tmp_path: Path) -> None:
    data = make_data()
    store = Store.write(tmp_path / "store", make_teacher(), data)
    with pytest.raises(StoreError, match="holds nothing for ids 1, 2"):
        store.gather(ids=[1, int(data.ids[0]), 2])
    for rows in ([50], [-1], [0, 10**9]):
        with pytest.raises(StoreError, match=r"has 0\.\.49"):
            store.gather(rows)
    with pytest.raises(StoreError, match="rows or ids, one of the two"):
        store.gather()
    with pytest.raises(StoreError, match="rows or ids, one of the two"):
        store.gather([0], ids=[1])
    with pytest.raises(StoreError, match="did you mean 'logits'"):
        store.gather([0], want=["logit"])
    with pytest.raises(StoreError, match="without the last layer"):
        store.head()


def test_what_is_gathered_is_the_callers_own(tmp_path: Path) -> None:
    store = Store.write(tmp_path / "store", make_teacher(), make_data())
    for rows in ([1, 2], np.arange(50)):
        found = store.gather(rows)["logits"]
        before = found.clone()
        found.zero_()
        assert torch.equal(store.gather(rows)["logits"], before)


# Views ----------------------------------------------------------------------------------------------------------------


def test_an_output_belongs_to_its_view_and_another_one_is_refused(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    augment = Shift()
    store = Store.write(tmp_path / "store", teacher, data, views=3, augment=augment, batch_size=16, shard_bytes=999)
    x, ids = torch.from_numpy(np.asarray(data.x)), torch.from_numpy(data.ids)
    for view in range(3):
        expected = teacher.outputs(augment(x, ids, view), ids, ["logits"])["logits"]
        torch.testing.assert_close(store.gather(np.arange(50), view=view)["logits"], expected)
    for view in (3, -1):
        with pytest.raises(StoreError, match=rf"view {view} was asked of .* holds views 0\.\.2"):
            store.gather([0], view=view)
    with pytest.raises(StoreError, match=r"transform: .*'shift by 1.0'.* stored, .*None.* wanted"):
        Store.open(tmp_path / "store", teacher, data)
    with pytest.raises(StoreError, match=r"transform: .*shift by 1\.0.* stored, .*shift by 2\.0.* wanted"):
        Store.open(tmp_path / "store", teacher, data, augment=Shift(2.0))
    store.verify()


def test_a_store_of_plain_inputs_is_refused_for_an_augmented_student(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    Store.write(tmp_path / "store", teacher, data)
    with pytest.raises(StoreError, match="transform"):
        Store.open(tmp_path / "store", teacher, data, augment=Shift())
    with pytest.raises(StoreError, match=r"view 1 was asked of .* holds view 0"):
        Store.open(tmp_path / "store", teacher, data).gather([0], view=1)


def test_views_that_would_be_alike_are_refused(tmp_path: Path) -> None:
    data = make_data()
    with pytest.raises(StoreError, match="2 views of the same inputs are all alike"):
        Store.write(tmp_path / "store", make_teacher(), data, views=2)
    with pytest.raises(StoreError, match="goes by id and knows one view"):
        Store.write(tmp_path / "store", ById(), data, views=2, augment=Shift())
    assert list(tmp_path.iterdir()) == []


# What does not belong together ----------------------------------------------------------------------------------------


def test_a_changed_teacher_weight_makes_a_store_stale(tmp_path: Path) -> None:
    data, module = make_data(), make_module()
    Store.write(tmp_path / "store", ModuleTeacher(module), data)
    with torch.no_grad():
        module[0].weight[0, 0] += 1e-6
    with pytest.raises(StoreError, match=r"teacher: [0-9a-f]{32} stored, [0-9a-f]{32} wanted"):
        Store.open(tmp_path / "store", ModuleTeacher(module), data)
    with pytest.raises(StoreError, match="teacher: "):
        Store.write(tmp_path / "store", ModuleTeacher(module), data)


def test_foreign_data_other_normalisation_and_other_classes_are_refused(tmp_path: Path) -> None:
    teacher, data = make_teacher(), make_data()
    Store.write(tmp_path / "store", teacher, data)
    foreign = make_data(ids=np.arange(50) + 990)
    with pytest.raises(StoreError, match=r"data: \d+ of 50 ids of 'leaves' are not stored \(990"):
        Store.open(tmp_path / "store", teacher, foreign)
    with pytest.raises(StoreError, match="number of classes: 12 stored, 3 wanted"):
        Store.open(tmp_path / "store", None, make_data(y=np.arange(50) % 3, classes=list("abc")))
    pixels = np.random.default_rng(0).integers(0, 256, (10, 1, 2, 2), dtype=np.uint8)
    images = Data(pixels, np.arange(10) % 2, normalise=((0.5,), (0.2,)), fractions=(1.0, 0.0, 0.0))
    torch.manual_seed(0)
    flat = ModuleTeacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    Store.write(tmp_path / "images", flat, images)
    with pytest.raises(StoreError, match=r"transform: .*0\.2.* stored, .*0\.25.* wanted"):
        Store.open(tmp_path / "images", flat, images.replace(normalise=((0.5,), (0.25,))))


def test_all_that_differs_is_said_at_once(tmp_path: Path) -> None:
    Store.write(tmp_path / "store", make_teacher(0), make_data())
    with pytest.raises(StoreError) as caught:
        Store.open(tmp_path / "store", make_teacher(1), make_data(ids=np.arange(50)), augment=Shift())
    assert all(what in str(caught.value) for what in ("teacher: ", "data: ", "transform: "))


def test_a_teacher_whose_code_changed_is_found_by_recomputing_some_samples(tmp_path: Path) -> None:
    class Net(nn.Module):
        scale = 1.0

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.linear(x)

    data, module = make_data(), Net()
    for dtype in ("float32", "float16", "topk:4"):
        Store.write(tmp_path / dtype, ModuleTeacher(module), data, dtype=dtype)
    module.scale = 1.02
    for dtype in ("float32", "float16", "topk:4"):
        with pytest.raises(
            StoreError, match=r"does not say what the module Net says now.*logits of view 0 differ for \d+"
        ):
            Store.open(tmp_path / dtype, ModuleTeacher(module), data)
        Store.open(tmp_path / dtype, ModuleTeacher(module), data, check=0)
        Store.open(tmp_path / dtype, ModuleTeacher(module), data, tolerance=0.1)


def test_a_row_in_the_wrong_place_is_found(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    Store.write(tmp_path / "store", teacher, data)
    path = tmp_path / "store" / "outputs.safetensors"
    start, row = Layout.read(path).entries["logits"].start, 4 * CLASSES
    contents = bytearray(path.read_bytes())
    rows = [contents[start + index * row : start + (index + 1) * row] for index in range(50)]
    contents[start : start + 50 * row] = b"".join([*rows[1:], rows[0]])
    path.write_bytes(contents)
    with pytest.raises(StoreError, match="does not say what"):
        Store.open(tmp_path / "store", teacher, data)
    with pytest.raises(StoreError, match=r"logits of view 0, rows 0\.\.49, is not what was written"):
        Store.open(tmp_path / "store").verify()


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    Store.write(tmp_path / "store", make_teacher(), make_data(), batch_size=10, shard_bytes=1)
    path = tmp_path / "store" / "outputs.safetensors"
    contents = bytearray(path.read_bytes())
    contents[Layout.read(path).entries["logits"].offset(0, 23)] ^= 1
    path.write_bytes(contents)
    with pytest.raises(StoreError, match=r"logits of view 0, rows 20\.\.29, is not what was written"):
        Store.open(tmp_path / "store").verify()
    contents[Layout.read(path).entries["logits"].offset(0, 23)] ^= 1
    contents[Layout.read(path).entries["inputs"].offset(7)] ^= 1
    path.write_bytes(contents)
    with pytest.raises(StoreError, match="inputs is not what was written"):
        Store.open(tmp_path / "store").verify()


@pytest.mark.parametrize("size", [0, 5, 100, -8, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    Store.write(tmp_path / "store", make_teacher(), make_data())
    path = tmp_path / "store" / "outputs.safetensors"
    contents = path.read_bytes()
    path.write_bytes(contents[:size])
    with pytest.raises(StoreError, match=r"outputs\.safetensors.*copy the store again"):
        Store.open(tmp_path / "store")
    path.write_bytes(contents + b"more")
    with pytest.raises(StoreError, match="something was added"):
        Store.open(tmp_path / "store")
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        Store.open(tmp_path / "store")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        Store.open(tmp_path / "nothing")
    with pytest.raises(StoreError, match="is not a store of teacher outputs"):
        Store.open(tmp_path)
    Store.write(tmp_path / "store", make_teacher(), make_data())
    manifest = tmp_path / "store" / "manifest.json"
    text = manifest.read_text()
    for change, message in (
        ({"version": 2}, "has version 2, this release reads 1"),
        ({"format": "other"}, "of another format"),
        ({"bytes": 17}, "manifest.json says 17"),
    ):
        manifest.write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(StoreError, match=message):
            Store.open(tmp_path / "store")
    kept = json.loads(text)
    del kept["transform"]
    manifest.write_text(json.dumps(kept))
    with pytest.raises(StoreError, match="lacks transform"):
        Store.open(tmp_path / "store")


def test_an_existing_store_is_used_again_and_never_written_over(tmp_path: Path) -> None:
    data, teacher = make_data(), ById()
    Store.write(tmp_path / "store", teacher, data)
    before, asked = tree(tmp_path / "store"), len(teacher.asked)
    Store.write(tmp_path / "store", teacher, data)
    assert len(teacher.asked) - asked <= 32, "only the sample for the check was recomputed"
    for changes, message in (
        ({"dtype": "float16"}, "dtype: float32 stored, float16 wanted"),
        ({"data": data.train}, "samples: 50 stored, 26 wanted"),
    ):
        arguments = {"data": data, **changes}
        with pytest.raises(StoreError, match=f"is another one .*{message}"):
            Store.write(tmp_path / "store", teacher, arguments.pop("data"), **arguments)
    live = make_teacher()
    Store.write(tmp_path / "live", live, data)
    with pytest.raises(StoreError, match="outputs: features not among logits"):
        Store.write(tmp_path / "live", live, data, ("logits", "features"))
    assert tree(tmp_path / "store") == before


def test_what_cannot_be_stored_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    for arguments, error, message in (
        ({"want": ("maps",)}, TeacherError, "the store needs feature maps"),
        ({"dtype": "bfloat16"}, StoreError, "unknown dtype of a store 'bfloat16': did you mean 'float16'"),
        ({"dtype": "topk:12"}, StoreError, "topk:12 of 12 classes"),
        ({"dtype": "topk:0"}, StoreError, "unknown dtype"),
        ({"batch_size": 0}, StoreError, "nothing to store"),
    ):
        with pytest.raises(error, match=message):
            Store.write(tmp_path / "deep" / "store", teacher, data, **arguments)
    assert list(tmp_path.iterdir()) == []
    module = make_module()
    module[3].weight.data *= 1e6
    with pytest.raises(StoreError, match=r"beyond float16 \(65504\): choose dtype='float32'"):
        Store.write(tmp_path / "store", ModuleTeacher(module), data, dtype="float16")


def test_a_disk_that_is_too_small_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(StoreError, match=r"0\.0 MB are free.*dtype='float16' or 'topk:10'"):
        Store.write(tmp_path / "store", make_teacher(), make_data())
    assert list(tmp_path.iterdir()) == []


# Precision ------------------------------------------------------------------------------------------------------------

values = st.lists(st.floats(-6e4, 6e4, width=32), min_size=6, max_size=6)


@given(st.lists(values, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_float16_is_within_its_bound(rows: list[list[float]]) -> None:
    given = torch.tensor(rows)
    encoding = Dense("float16")
    found = encoding.decode(encoding.encode(given))
    assert bool(((found - given).abs() <= 2.0**-11 * given.abs() + 2.0**-25).all())
    exact = Dense("float32")
    assert torch.equal(exact.decode(exact.encode(given)), given)


logits = st.lists(st.floats(-40, 40, width=32), min_size=6, max_size=6)


@given(st.lists(logits, min_size=1, max_size=4), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_top_k_keeps_the_listed_probabilities_and_the_mass_of_the_rest(rows: list[list[float]], k: int) -> None:
    given = torch.tensor(rows)
    encoding = TopK(k, 6, logits=True)
    parts = encoding.encode(given)
    found = encoding.decode(parts).double().softmax(1)
    expected = given.double().softmax(1)
    indices = torch.from_numpy(parts[".indices"].astype(np.int64))
    # float16 moves a logit of at most 40 by 2^-11 relative, so a probability by a factor within exp(±2·40·2^-11).
    factor = np.exp(2 * 40 * 2.0**-11)
    listed, exact = found.gather(1, indices), expected.gather(1, indices)
    assert bool((listed <= exact * factor + 1e-9).all())
    assert bool((listed >= exact / factor - 1e-9).all())
    missing = 1 - exact.sum(1)
    np.testing.assert_allclose(1 - listed.sum(1), missing, atol=0.03)
    variation = (found - expected).abs().sum(1) / 2
    assert bool((variation <= missing + 0.04).all())
    assert bool(encoding.agrees(parts, given, encoding.tolerance).all())


def test_a_stored_rest_that_is_not_the_teachers_is_seen() -> None:
    given = torch.tensor([[5.0, 1.0, 0.0, -1.0]])
    encoding = TopK(1, 4, logits=True)
    parts = encoding.encode(given)
    assert encoding.agrees(parts, given, 3e-3).all()
    assert not encoding.agrees({**parts, ".rest": parts[".rest"] + 0.1}, given, 3e-3).any()


def test_top_k_of_probabilities_and_equal_classes() -> None:
    given = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    encoding = TopK(1, 4, logits=False)
    parts = encoding.encode(given)
    torch.testing.assert_close(encoding.decode(parts)[0], torch.tensor([0.5, 0.5 / 3, 0.5 / 3, 0.5 / 3]))
    other = {**parts, ".indices": parts[".indices"].copy()}
    other[".indices"][1] = 2
    assert encoding.agrees(other, given, 1e-3).all(), "of equal classes either may be listed"
    other[".indices"][0] = 1
    assert list(encoding.agrees(other, given, 1e-3)) == [False, True]


@pytest.mark.parametrize(("dtype", "size"), [("float32", 48), ("float16", 24), ("topk:3", 3 * 4 + 4)])
def test_a_forecast_is_exact_to_the_byte(tmp_path: Path, dtype: str, size: int) -> None:
    data, teacher = make_data(), make_teacher()
    forecast = Store.forecast(teacher, data, ("logits", "features"), dtype=dtype)
    assert forecast.fields == {"logits": size, "features": 32 if dtype == "float32" else 16}
    Store.write(tmp_path / "store", teacher, data, ("logits", "features"), dtype=dtype)
    assert (tmp_path / "store" / "outputs.safetensors").stat().st_size == forecast.bytes
    assert "50 samples, 1 view, logits" in str(forecast)
    twice = Store.forecast(teacher, data, dtype=dtype, views=2)
    once = Store.forecast(teacher, data, dtype=dtype)
    assert abs(twice.bytes - once.bytes - 50 * size) <= 16, "but for the header's padding"


def test_narrow_stores_read_back_within_their_bounds(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    exact = collect(teacher, data)["logits"]
    half = Store.write(tmp_path / "half", teacher, data, dtype="float16").gather(np.arange(50))["logits"]
    assert half.dtype == torch.float32
    assert bool(((half - exact).abs() <= 2.0**-11 * exact.abs() + 1e-6).all())
    top = Store.write(tmp_path / "top", teacher, data, dtype="topk:4").gather(np.arange(50))["logits"]
    best, places = exact.topk(4)
    torch.testing.assert_close(top.gather(1, places), best, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(top.logsumexp(1), exact.logsumexp(1), atol=2e-3, rtol=1e-3)


# Without this library -------------------------------------------------------------------------------------------------


def test_a_store_is_read_with_safetensors_and_json_alone(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    augment = Shift()
    path = tmp_path / "store"
    store = Store.write(path, teacher, data, ("logits", "features", "head"), dtype="topk:3", views=2, augment=augment)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["samples"], manifest["views"], manifest["dtype"]) == (50, 2, "topk:3")
    with safe_open(path / "outputs.safetensors", framework="np") as file:
        ids = file.get_tensor("ids")
        row = int(np.flatnonzero(ids == data.ids[17])[0])
        parts = [file.get_slice(f"logits.{name}")[1, row] for name in ("values", "indices", "rest")]
        features = file.get_slice("features")[1, row]
        weight = file.get_tensor("head.weight")
    kept, indices, rest = (np.asarray(part) for part in parts)
    logits = np.full(manifest["fields"]["logits"]["shape"][0], rest, np.float32)
    logits[indices.astype(np.int64)] = kept
    found = store.gather(ids=[data.ids[17]], view=1)
    np.testing.assert_array_equal(logits, found["logits"][0])
    np.testing.assert_array_equal(features.astype(np.float32), found["features"][0])
    np.testing.assert_array_equal(weight, teacher.head()[0])


# A store as a teacher -------------------------------------------------------------------------------------------------


def test_a_store_teaches_where_the_model_is_out_of_reach(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    Store.write(tmp_path / "store", teacher, data, ("logits", "features", "head"))
    stored = as_teacher(tmp_path / "store")
    assert isinstance(stored, StoredTeacher)
    assert stored.supplies == {"logits", "probabilities", "features", "head"}
    stored.check(data.validation, ["logits", "features", "head"])
    want = ["features", "logits", "probabilities"]
    torch.testing.assert_close(collect(stored, data.validation, want), collect(teacher, data.validation, want))
    with pytest.raises(StoreError, match=r"cannot teach 'leaves'.* ids of 'leaves' are not stored"):
        stored.check(make_data(ids=np.arange(50)))
    with pytest.raises(TeacherError, match=r"needs feature maps: write the store with it"):
        Store.write(tmp_path / "second", stored, data, ("maps",))
    assert stored.fingerprint() == as_teacher(tmp_path / "store").fingerprint() != teacher.fingerprint()


def test_features_are_stored_whatever_the_classes_of_the_backbone(tmp_path: Path) -> None:
    backbone = ModuleTeacher(nn.Sequential(make_module()[:3]), kind="features")
    store = Store.write(tmp_path / "store", backbone, make_data(), ("features",))
    expected = collect(make_teacher(), make_data(), ["features"])["features"]
    torch.testing.assert_close(store.gather(np.arange(50))["features"], expected)
    other = make_data(y=np.arange(50) % 3, classes=list("abc"))
    Store.open(tmp_path / "store", backbone, other)


def test_a_table_is_stored_by_id_alone(tmp_path: Path) -> None:
    data = make_data()
    probabilities = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 50)
    table = TableTeacher({"id": data.ids, "p": probabilities}, classes=data.classes)
    store = Store.write(tmp_path / "store", table, data, ("probabilities",))
    np.testing.assert_allclose(store.gather(ids=data.ids)["probabilities"], probabilities, atol=1e-6)
    assert store.class_names == data.classes


# Progress and parts ---------------------------------------------------------------------------------------------------


def test_progress_is_told_and_ends_complete(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    Store.write(
        tmp_path / "store",
        ById(),
        make_data(),
        batch_size=16,
        shard_bytes=1,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[0] == (0, 50)
    assert told[-1] == (50, 50)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_can_be_shown_or_not(tmp_path: Path, capfd: pytest.CaptureFixture[str], progress: bool) -> None:
    Store.write(tmp_path / "store", ById(), make_data(), progress=progress)
    shown = capfd.readouterr()
    assert ("storing logits" in shown.err) == progress
    assert shown.out == ""


def test_parts_written_apart_make_the_same_store(tmp_path: Path) -> None:
    data, teacher = make_data(), make_teacher()
    settings: dict[str, Any] = {"views": 2, "augment": Shift(), "batch_size": 4, "shard_bytes": 300}
    straight = Store.write(tmp_path / "straight", teacher, data, **settings)
    path = tmp_path / "parts"
    shards = len(straight.manifest["shards"])
    for number, which in enumerate((2, 0)):
        Store.write_part(path, teacher, data, part=(which, 3), **settings)
        assert not path.exists()
        written = len(list((tmp_path / "parts.partial").glob("done/*")))
        assert written == sum(len(range(part, shards, 3)) for part in (2, 0)[: number + 1])
    with pytest.raises(StoreError, match=r"half-written \(\d+ of \d+ shards\): call Store.write again"):
        Store.open(path)
    Store.write_part(path, teacher, data, part=(1, 3), **settings)
    assert not path.exists(), "whoever finishes the store says so"
    Store.write(path, teacher, data, **settings)
    assert tree(path) == tree(straight.path)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "outputs.safetensors"]
    Store.write_part(path, teacher, data, part=(1, 3), **settings)
    with pytest.raises(StoreError, match="counted from 0"):
        Store.write_part(path, teacher, data, part=(3, 3), **settings)


class Breaks(ById):
    """Fails after some samples, as a machine does."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def outputs(self, x: Any, ids: Any, want: Sequence[str]) -> dict[str, Tensor]:
        self.left -= len(ids)
        if self.left < 0:
            raise KeyboardInterrupt
        return super().outputs(x, ids, want)


@pytest.mark.parametrize("after", [35, 40, 60, 80])
def test_an_interrupted_writer_goes_on_to_the_same_bytes(tmp_path: Path, after: int) -> None:
    data = make_data()
    settings: dict[str, Any] = {"batch_size": 4, "shard_bytes": 8 * 4 * CLASSES}
    straight = Store.write(tmp_path / "straight", ById(), data, **settings)
    path = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        Store.write(path, Breaks(after), data, **settings)
    assert not path.exists()
    teacher = ById()
    # Another batch size now: the writer keeps to the batches it began with.
    Store.write(path, teacher, data, batch_size=50)
    assert tree(path) == tree(straight.path)
    assert not path.with_name("store.partial").exists()
    if after == 80:
        assert len(teacher.asked) < 32 + 2 + 50 + 32, "what was written is not asked for again"


def test_the_beginning_of_another_store_is_not_continued_unless_thrown_away(tmp_path: Path) -> None:
    data, path = make_data(), tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        Store.write(path, Breaks(60), data, batch_size=4, shard_bytes=1)
    with pytest.raises(StoreError, match=r"beginning of another store \(dtype: float32 stored, float16 wanted"):
        Store.write(path, ById(), data, dtype="float16")
    with pytest.raises(StoreError, match=r"beginning of another store \(teacher: "):
        Store.write(path, make_teacher(), data)
    store = Store.write(path, make_teacher(), data, resume=False)
    torch.testing.assert_close(store.gather(np.arange(50))["logits"], collect(make_teacher(), data)["logits"])


def test_a_last_step_that_was_cut_off_is_made_up_for(tmp_path: Path) -> None:
    data, path = make_data(), tmp_path / "store"
    straight = tree(Store.write(path, ById(), data).path)
    path.rename(tmp_path / "store.partial")
    with pytest.raises(StoreError, match=r"half-written .its last step missing"):
        Store.open(path)
    Store.write(path, ById(), data)
    assert tree(path) == straight
    (tmp_path / "store.partial").mkdir()
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="cannot be continued"):
        Store.write(path, ById(), data)


def test_writing_changes_neither_data_nor_teacher(tmp_path: Path) -> None:
    data, module = make_data(), make_module().train()
    x, state = np.array(data.x), copy.deepcopy(module.state_dict())
    Store.write(tmp_path / "store", ModuleTeacher(module), data, ("logits", "features", "head"), batch_size=8)
    np.testing.assert_array_equal(data.x, x)
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert all(part.training for part in module.modules())


# Ids ------------------------------------------------------------------------------------------------------------------


@given(
    st.sets(st.integers(-50, 50), max_size=20) | st.sets(st.integers(-9, 9), min_size=8),
    st.lists(st.integers(-60, 60), max_size=30),
    st.randoms(),
)
@settings(max_examples=100, deadline=None)
def test_ids_are_found_where_they_are(known: set[int], asked: list[int], random: Any) -> None:
    order = list(known)
    random.shuffle(order)
    found = IdIndex(np.array(order, dtype=np.int64)).rows(np.array(asked, dtype=np.int64))
    assert list(found) == [order.index(value) if value in known else -1 for value in asked]
    start = random.randint(-5, 5)
    consecutive = IdIndex(np.arange(start, start + len(order))).rows(np.array(asked, dtype=np.int64))
    assert list(consecutive) == [value - start if start <= value < start + len(order) else -1 for value in asked]


# Inputs of other kinds ------------------------------------------------------------------------------------------------


class Lazy:
    """Rows computed when they are asked for."""

    def __init__(self, count: int, add: float = 0.0) -> None:
        self.count, self.add = count, add

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Any) -> Any:
        return (np.sin(np.asarray(rows)[:, None] * np.arange(1, 6)) + self.add).astype(np.float32)


def test_data_that_are_read_lazily_are_stored_and_compared_by_a_sample(tmp_path: Path) -> None:
    def data(add: float = 0.0, shift: int = 0) -> Data:
        labels = (np.arange(400) + shift) % CLASSES
        return Data(Lazy(400, add), labels, fractions=(1.0, 0.0, 0.0))

    teacher = make_teacher()
    store = Store.write(tmp_path / "store", teacher, data(), batch_size=64)
    torch.testing.assert_close(store.gather(np.arange(400)), collect(teacher, data()))
    relabelled = Store.open(tmp_path / "store", teacher, data(shift=1))
    torch.testing.assert_close(relabelled.gather(np.arange(400)), collect(teacher, data()))
    with pytest.raises(StoreError, match="inputs of 'data' are not those of 'data'"):
        Store.open(tmp_path / "store", None, data(add=1e-3))


def test_named_inputs_are_compared_each(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(5, CLASSES)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.linear(left + right)

    generator = np.random.default_rng(0)
    x = {name: generator.normal(size=(50, 5)).astype(np.float32) for name in ("left", "right")}
    data, teacher = make_data(x=x), ModuleTeacher(Sum())
    store = Store.write(tmp_path / "store", teacher, data)
    torch.testing.assert_close(store.gather(np.arange(50)), collect(teacher, data))
    # The same sums, and so the same outputs, from other inputs.
    other = make_data(x={"left": x["right"], "right": x["left"]})
    with pytest.raises(StoreError, match="inputs of 'leaves' are not those"):
        Store.open(tmp_path / "store", teacher, other)
