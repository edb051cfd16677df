"""Tables of outputs: layouts, missing mass, ids, label spaces and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, parquet

from limbeck.data import Data
from limbeck.errors import TeacherError
from limbeck.teachers import TableTeacher, as_teacher, collect, map_classes

CLASSES = ("ash", "birch", "cedar", "oak")


def make_data(count: int = 30, seed: int = 0) -> Data:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 2)).astype(np.float32)
    y = np.arange(count) % 4
    return Data(x, y, ids=generator.permutation(count) * 5 + 2, classes=list(CLASSES), fractions=(1.0, 0.0, 0.0))


def make_probabilities(count: int = 30, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).dirichlet([0.7] * 4, count)


def in_another_order(data: Data, *columns: Any) -> list[Any]:
    order = np.random.default_rng(2).permutation(len(data))
    return [data.ids[order], *(np.asarray(column)[order] for column in columns)]


def probabilities_of(teacher: TableTeacher, data: Data) -> np.ndarray[Any, Any]:
    teacher.check(data)
    return collect(teacher, data, ["probabilities"])["probabilities"].numpy()


# Layouts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_a_file_in_another_order_with_more_rows_is_read_by_id(tmp_path: Path, suffix: str) -> None:
    data, values = make_data(), make_probabilities()
    ids, rows = in_another_order(data, values)
    ids, rows = np.append(ids, 99_999), np.vstack([rows, [0.25] * 4])
    path = tmp_path / f"teacher{suffix}"
    table = pa.table({"id": ids, **{name: rows[:, index] for index, name in enumerate(CLASSES)}})
    if suffix == ".npz":
        np.savez(path, ids=ids, probabilities=rows, classes=np.array(CLASSES))
    elif suffix == ".csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    teacher = as_teacher(path)
    assert isinstance(teacher, TableTeacher)
    assert teacher.class_names == CLASSES
    np.testing.assert_allclose(probabilities_of(teacher, data), values, atol=1e-6)
    logits = collect(teacher, data)["logits"].double()
    np.testing.assert_allclose(logits, np.log(values), atol=2e-6)


def test_columns_are_matched_to_classes_by_name_and_columns_that_are_no_class_are_refused() -> None:
    data, values = make_data(), make_probabilities()
    turned = [3, 0, 2, 1]
    table = pa.table({"id": data.ids, **{CLASSES[index]: values[:, index] for index in turned}})
    with pytest.raises(TeacherError, match="in another order"):
        TableTeacher(table).check(data)
    np.testing.assert_allclose(probabilities_of(TableTeacher(table, classes=data.classes), data), values, atol=1e-6)
    mapped = map_classes(TableTeacher(table), data.classes)
    np.testing.assert_allclose(collect(mapped, data, ["probabilities"])["probabilities"], values, atol=1e-6)
    log = table.append_column("timestamp", pa.array(np.arange(30)))
    with pytest.raises(TeacherError, match=r"column 'timestamp' is no class .* columns="):
        TableTeacher(log, classes=data.classes)
    by_position = TableTeacher(log, columns=[CLASSES[index] for index in turned], classes=[CLASSES[i] for i in turned])
    assert by_position.class_names == tuple(CLASSES[index] for index in turned)
    by_name = TableTeacher(log, columns={name: name for name in CLASSES}, classes=data.classes)
    np.testing.assert_allclose(probabilities_of(by_name, data), values, atol=1e-6)


def test_a_list_column_is_a_row_of_values() -> None:
    data, values = make_data(), make_probabilities()
    table = pa.table({"id": data.ids, "p": pa.array(values.tolist())})
    np.testing.assert_allclose(probabilities_of(TableTeacher(table, classes=data.classes), data), values, atol=1e-6)
    with pytest.raises(TeacherError, match="4 values a row, 3 classes were declared"):
        TableTeacher(table, classes=3)
    ragged = pa.table({"id": [1, 2], "p": pa.array([[0.5, 0.5], [1.0]])})
    with pytest.raises(TeacherError, match="different lengths"):
        TableTeacher(ragged)


def test_a_matrix_with_names_of_its_own_is_put_in_the_order_wanted() -> None:
    data, values = make_data(), make_probabilities()
    turned = [3, 0, 2, 1]
    table = {"ids": data.ids, "p": values[:, turned], "classes": np.array(CLASSES)[turned]}
    with pytest.raises(TeacherError, match="in another order"):
        TableTeacher(table).check(data)
    np.testing.assert_allclose(probabilities_of(TableTeacher(table, classes=data.classes), data), values, atol=1e-6)
    with pytest.raises(TeacherError, match="'oak' is no class"):
        TableTeacher(table, classes=["ash", "birch", "cedar", "fir"])


def test_a_data_frame_is_read() -> None:
    pandas = pytest.importorskip("pandas")
    data, values = make_data(), make_probabilities()
    frame = pandas.DataFrame(values, columns=list(CLASSES)).assign(id=data.ids)
    np.testing.assert_allclose(probabilities_of(TableTeacher(frame, classes=data.classes), data), values, atol=1e-6)


def test_the_probability_of_one_class_is_enough_for_two() -> None:
    table = {"id": np.array([1, 2]), "score": np.array([0.9, 0.25])}
    teacher = TableTeacher(table, columns={"yes": "score"}, classes=["no", "yes"])
    found = teacher.outputs(None, np.array([2, 1]), ["probabilities"])["probabilities"]
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25], [0.1, 0.9]]))


# Some classes only ----------------------------------------------------------------------------------------------------


def top(values: np.ndarray[Any, Any], k: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    order = np.argsort(-values, 1)[:, :k]
    return order, np.take_along_axis(values, order, 1)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("layout", ["long", "columns", "lists", "codes"])
def test_missing_mass_is_spread_over_the_absent_classes(k: int, layout: str) -> None:
    data, values = make_data(), make_probabilities()
    order, kept = top(values, k)
    names = np.array(CLASSES)[order]
    settings: dict[str, Any] = {"class_column": "class", "value_column": "p"}
    if layout == "long":
        shuffled = np.random.default_rng(3).permutation(30 * k)
        table: Any = pa.table(
            {"id": np.repeat(data.ids, k)[shuffled], "class": names.ravel()[shuffled], "p": kept.ravel()[shuffled]}
        )
    elif layout == "columns":
        table = {"id": data.ids, **{f"c{j}": names[:, j] for j in range(k)}, **{f"p{j}": kept[:, j] for j in range(k)}}
        settings = {"class_column": [f"c{j}" for j in range(k)], "value_column": [f"p{j}" for j in range(k)]}
    else:
        table = {"id": data.ids, "class": names if layout == "lists" else order, "p": kept}
    uniform = probabilities_of(TableTeacher(table, classes=data.classes, **settings), data)
    expected = np.repeat((1 - kept.sum(1, keepdims=True)) / (4 - k), 4, 1)
    np.put_along_axis(expected, order, kept, 1)
    np.testing.assert_allclose(uniform, expected, atol=1e-6)
    zero = probabilities_of(TableTeacher(table, classes=data.classes, missing="zero", **settings), data)
    expected = np.zeros((30, 4))
    np.put_along_axis(expected, order, kept / kept.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(zero, expected, atol=1e-6)
    with pytest.raises(TeacherError, match="do not list every class: choose missing='uniform' or 'zero'"):
        TableTeacher(table, classes=data.classes, missing="refuse", **settings)


def test_an_empty_cell_is_an_absent_class() -> None:
    table = pa.table({"id": [1, 2], "a": [0.6, None], "b": [None, 0.5], "c": [None, 0.3]})
    teacher = TableTeacher(table)
    found = teacher.outputs(None, np.array([1, 2]), ["probabilities", "logits"])
    torch.testing.assert_close(found["probabilities"], torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.5, 0.3]]))
    torch.testing.assert_close(found["logits"], found["probabilities"].log())


def test_decisions_alone_and_log_probabilities() -> None:
    table = {"id": np.array([1, 2]), "class": np.array(["b", "a"])}
    teacher = TableTeacher(table, class_column="class", classes=["a", "b"])
    found = teacher.outputs(None, np.array([1, 2]), ["probabilities", "logits"])
    assert torch.equal(found["probabilities"], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert torch.isfinite(found["logits"]).all()
    assert torch.equal(found["logits"].argmax(1), torch.tensor([1, 0]))
    logs = {"id": np.array([1]), "a": np.log([0.5]), "b": np.log([0.25]), "c": np.array([-np.inf])}
    whole = TableTeacher({**logs, "d": np.log([0.25])}, "log_probabilities")
    found = whole.outputs(None, np.array([1]), ["probabilities"])
    torch.testing.assert_close(found["probabilities"], torch.tensor([[0.5, 0.25, 0.0, 0.25]]))


def test_logits_stay_logits_and_a_part_of_them_needs_a_rule() -> None:
    data = make_data()
    logits = np.random.default_rng(4).normal(size=(30, 4)) * 5
    table = {"id": data.ids, "logits": logits}
    found = collect(TableTeacher(table, "logits"), data, ["logits", "probabilities"])
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    torch.testing.assert_close(found["probabilities"], found["logits"].softmax(1))
    order, kept = top(logits, 2)
    part = {"id": data.ids, "class": order, "value": kept}
    settings: dict[str, Any] = {"class_column": "class", "value_column": "value", "classes": data.classes}
    with pytest.raises(TeacherError, match="leaves the mass of the others open: choose missing='zero'"):
        TableTeacher(part, "logits", **settings)
    found = collect(TableTeacher(part, "logits", missing="zero", **settings), data, ["probabilities"])
    expected = np.zeros((30, 4))
    np.put_along_axis(expected, order, np.exp(kept) / np.exp(kept).sum(1, keepdims=True), 1)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_long_table_in_any_order_says_what_the_wide_one_says(classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 8))
    ids = generator.choice(1000, count, replace=False)
    values = generator.dirichlet(np.ones(classes), count)
    names = [f"k{index}" for index in range(classes)]
    listed = generator.random((count, classes)) < 0.6
    listed[np.arange(count), values.argmax(1)] = True
    cells = np.argwhere(listed)
    generator.shuffle(cells)
    rows, columns = cells[:, 0], cells[:, 1]
    long = {"id": ids[rows], "class": np.array(names)[columns], "p": values[rows, columns]}
    wide = pa.table({"id": ids, **{name: pa.array(values[:, j], mask=~listed[:, j]) for j, name in enumerate(names)}})
    # A row that lists every class but one cell of rounding is complete; tolerance covers it.
    first = TableTeacher(long, class_column="class", value_column="p", classes=names)
    second = TableTeacher(wide, classes=names)
    found = [teacher.outputs(None, ids, ["logits", "probabilities"]) for teacher in (first, second)]
    for name in ("logits", "probabilities"):
        torch.testing.assert_close(found[0][name], found[1][name])
    torch.testing.assert_close(found[0]["probabilities"].sum(1), torch.ones(count))


# What is refused ------------------------------------------------------------------------------------------------------


def test_ids_that_are_missing_are_named_before_training() -> None:
    data, values = make_data(), make_probabilities()
    gone = sorted(int(value) for value in data.ids[[3, 8]])
    keep = ~np.isin(data.ids, gone)
    teacher = TableTeacher({"id": data.ids[keep], "p": values[keep]}, classes=data.classes)
    with pytest.raises(TeacherError) as caught:
        teacher.check(data)
    assert "no row for 2 of 30 ids of the data" in str(caught.value)
    assert all(str(value) in str(caught.value) for value in gone)
    teacher.check(data.subset(np.flatnonzero(keep)))
    with pytest.raises(TeacherError, match="no row for 1 of 1"):
        teacher.outputs(None, np.array([gone[0]]), ["logits"])


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        ({"id": [1, 1], "a": [0.5, 0.5], "b": [0.5, 0.5]}, {}, r"ids more than once \(1\)"),
        ({"id": [1, 2], "a": [0.5, 0.5], "b": [0.5, 0.1]}, {}, r"ids 2 do not sum to one, sums 0\.6"),
        ({"id": [1, 2], "a": [0.5, 0.9], "b": [0.5, 0.9]}, {}, r"ids 2 do not sum to one, sums 1\.8"),
        ({"id": [7], "a": [-0.5], "b": [1.5]}, {}, "ids 7 hold negative probabilities: declare kind='logits'"),
        ({"id": [7], "a": [np.nan], "b": [1.0]}, {}, "array 'a' holds NaN"),
        ({"id": [7], "a": [np.inf], "b": [0.0]}, {}, "ids 7 hold infinite values"),
        ({"id": ["x"], "a": [1.0]}, {}, "id column 'id' holds <U1"),
        ({"key": [1], "a": [1.0]}, {}, "unknown id column 'id'"),
        ({"id": [1], "a": ["x"]}, {}, "column 'a' holds <U1"),
        ({"id": [1], "a": [1.0]}, {"columns": ["aa"]}, "unknown column 'aa': did you mean 'a'"),
        ({"id": [1], "a": [1.0]}, {"classes": ["a", "b"], "columns": ["a"]}, "1 columns of classes .* 2 classes"),
        ({"id": [1]}, {}, "has 0 columns of classes"),
        ({"id": [1, 2], "p": [[0.5, 0.5]]}, {}, r"'p' has shape \(1, 2\) for 2 ids"),
        ({"id": [1], "a": [1.0]}, {"missing": "unifrom"}, "did you mean 'uniform'"),
        ({"id": [1], "a": [1.0]}, {"kind": "logit"}, "did you mean 'logits'"),
        ({"id": [1], "c": ["x"]}, {"class_column": "c", "classes": ["a", "b"]}, "not among a, b: x"),
        ({"id": [1], "c": [2]}, {"class_column": "c", "classes": ["a", "b"]}, r"not among a, b: 2"),
        ({"id": [1], "c": ["a"]}, {"class_column": "c"}, "say which there are, classes=data.classes"),
        (
            {"id": [1, 1], "c": ["a", "a"], "p": [0.2, 0.2]},
            {"class_column": "c", "value_column": "p", "classes": ["a", "b"]},
            "lists a class twice for ids 1",
        ),
    ],
)
def test_what_a_table_must_not_hold(table: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        TableTeacher(table, **settings)


def test_rows_nearly_summing_to_one_are_rescaled() -> None:
    table = {"id": [1], "a": [0.33], "b": [0.33], "c": [0.335]}
    found = TableTeacher(table).outputs(None, np.array([1]), ["probabilities"])["probabilities"]
    torch.testing.assert_close(found.sum(1), torch.ones(1))
    with pytest.raises(TeacherError, match="do not sum to one"):
        TableTeacher(table, tolerance=1e-3)


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", id=np.array([1]), p=np.array([{"a": 1}], dtype=object))
    with pytest.raises(TeacherError, match="cannot be read"):
        TableTeacher(tmp_path / "evil.npz")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for name in ("broken.parquet", "broken.npz"):
        (tmp_path / name).write_bytes(b"PAR1 or not")
        with pytest.raises(TeacherError, match=f"{name} cannot be read"):
            TableTeacher(tmp_path / name)
    (tmp_path / "table.xlsx").write_bytes(b"")
    with pytest.raises(TeacherError, match=r"expected \.parquet, \.csv or \.npz"):
        TableTeacher(tmp_path / "table.xlsx")


def test_a_fingerprint_follows_contents_and_rules() -> None:
    table = {"id": np.array([1, 2]), "a": np.array([0.5, 0.25]), "b": np.array([0.5, 0.75])}
    changed = {**table, "a": np.array([0.5, 0.2501])}
    found = [
        TableTeacher(table).fingerprint(),
        TableTeacher(changed).fingerprint(),
        TableTeacher(table, missing="zero").fingerprint(),
        TableTeacher(table, zero_mass=1e-4).fingerprint(),
        TableTeacher(table, "logits").fingerprint(),
    ]
    assert len(set(found)) == len(found)
    assert found[0] == TableTeacher(dict(table)).fingerprint()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_given_are_neither_changed_nor_followed(dtype: Any) -> None:
    logs = np.log(np.array([[0.5, 0.5]], dtype))
    table = {"id": np.array([1]), "p": logs}
    teacher = TableTeacher(table, "log_probabilities")
    np.testing.assert_array_equal(logs, np.log(np.array([[0.5, 0.5]], dtype)))
    logs[:] = 0
    found = teacher.outputs(None, np.array([1]), ["probabilities"])["probabilities"]
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5]]))


def test_a_null_value_lists_nothing() -> None:
    table = pa.table({"id": [1, 1, 1], "class": ["a", "a", "b"], "p": [None, 0.4, None]})
    teacher = TableTeacher(table, class_column="class", value_column="p", classes=["a", "b", "c"])
    found = teacher.outputs(None, np.array([1]), ["probabilities"])["probabilities"]
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.3, 0.3]]))
