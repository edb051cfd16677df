"""Reading tables, torch datasets, folders of images and .npz files."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from limbeck.data import Data, ImageReader, TableEncoder, read_table
from limbeck.errors import DataError


def people(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 80, n),
            "wage": np.where(rng.random(n) < 0.1, np.nan, rng.normal(30, 9, n)),
            "job": rng.choice(["cook", "clerk", None], n, p=[0.5, 0.4, 0.1]),
            "sex": rng.choice(["f", "m"], n),
            "member": rng.random(n) < 0.5,
            "number": np.arange(n) + 1000,
            "part": np.where(np.arange(n) % 4 == 0, "test", "train"),
            "score": rng.random(n),
            "good": rng.choice(["no", "yes"], n),
        }
    )


ROLES: dict[str, Any] = {
    "label": "good",
    "attributes": ["sex"],
    "id": "number",
    "split": "part",
    "columns": ["score"],
    "groups": ["good", "sex"],
}


# -- tables ------------------------------------------------------------------------------------------------------


def test_a_table_is_encoded_as_scikit_learn_encodes_it():
    frame = people()
    data = Data.from_table(frame, **ROLES)
    train = data.split == 0
    assert data.feature_names == (
        *("age", "wage", "wage is missing", "job=clerk", "job=cook", "job is missing", "sex=f", "sex=m", "member"),
    )
    numbers = frame[["age", "wage", "member"]].astype(float)
    scaled = StandardScaler().fit(numbers[train]).transform(numbers)
    missing = frame["wage"].isna().to_numpy()
    scaled[missing, 1] = 0
    text = frame[["job", "sex"]].fillna("~missing")
    hot = OneHotEncoder(sparse_output=False).fit(text[train]).transform(text)
    expected = np.column_stack([scaled[:, 0], scaled[:, 1], missing, hot, scaled[:, 2]])
    np.testing.assert_allclose(data.x, expected, atol=1e-5)
    assert data.x.dtype == np.float32


def test_the_roles_of_a_table_are_kept():
    frame = people()
    data = Data.from_table(frame, **ROLES)
    assert data.ids.tolist() == frame["number"].tolist()
    assert data.classes == ("no", "yes")
    assert data.label_name == "good"
    assert np.array_equal(data.split == 2, frame["part"] == "test")
    assert data.sizes["validation"] > 0, "cut from train"
    assert np.allclose(data.columns["score"], frame["score"])
    assert data.groups.names == ("good=no, sex=f", "good=no, sex=m", "good=yes, sex=f", "good=yes, sex=m")
    blind = Data.from_table(frame, **ROLES, attributes_in_features=False)
    assert not any(name.startswith("sex") for name in blind.feature_names)
    assert blind.attributes["sex"].strings().tolist() == frame["sex"].tolist()


def test_statistics_are_those_of_training_rows_only():
    frame = people()
    frame.loc[frame["part"] == "test", "age"] = 1e6
    data = Data.from_table(frame, **{**ROLES, "fractions": None})
    train = frame[frame["part"] == "train"]["age"]
    column = data.encoder.columns[0]
    assert (column.mean, column.scale) == (pytest.approx(train.mean()), pytest.approx(train.std(ddof=0)))
    assert abs(data.train.x[:, 0].mean()) < 1e-5
    assert data.test.x[:, 0].min() > 1e4


def test_every_kind_of_table_gives_the_same_data(tmp_path):
    frame = people()
    expected = Data.from_table(frame, **ROLES).fingerprint()
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        frame.to_csv(file, index=False)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    coded = table.set_column(2, "job", table.column("job").dictionary_encode())
    sources = [tmp_path / "t.parquet", str(tmp_path / "t.csv"), tmp_path / "t.tsv", tmp_path / "t.csv.gz", table, coded]
    for source in [*sources, {name: frame[name] for name in frame}]:
        assert Data.from_table(source, **ROLES).fingerprint() == expected


def test_the_encoder_is_plain_data_and_encodes_new_rows_as_before():
    frame = people()
    data = Data.from_table(frame, **ROLES)
    encoder = TableEncoder.from_dict(json.loads(json.dumps(data.encoder.to_dict())))
    assert encoder == data.encoder
    np.testing.assert_array_equal(encoder.transform(frame.iloc[50:60]), data.x[50:60])
    assert data.train.encoder == data.encoder
    again = Data.from_table(frame, **ROLES, encoder=encoder)
    assert again.fingerprint() == data.fingerprint()


def test_unseen_and_missing_values_of_new_rows_stay_apart():
    frame = pd.DataFrame({"job": ["cook", "clerk", None], "age": [1.0, 3.0, None]})
    encoder = TableEncoder.fit(pa.Table.from_pandas(frame), ["job", "age"])
    new = encoder.transform({"age": [None, 2.0, 2.0], "job": ["pilot", None, "cook"], "else": [1, 2, 3]})
    assert encoder.feature_names == ("job=clerk", "job=cook", "job is missing", "age", "age is missing")
    assert new.tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]


def test_a_category_of_test_rows_only_is_unseen():
    frame = pd.DataFrame({"a": list("xyxyz"), "y": [0, 1, 0, 1, 0], "part": ["train"] * 4 + ["test"]})
    data = Data.from_table(frame, label="y", split="part", fractions=None)
    assert data.feature_names == ("a=x", "a=y")
    assert data.x[4].tolist() == [0, 0]


def test_a_missing_number_of_test_rows_only_stays_visible():
    frame = pd.DataFrame({"a": [1.0, 2, 3, 4, np.nan], "y": [0, 1, 0, 1, 0], "part": ["train"] * 4 + ["test"]})
    data = Data.from_table(frame, label="y", split="part", fractions=None)
    assert data.feature_names == ("a", "a is missing")
    assert data.x[:, 1].tolist() == [0, 0, 0, 0, 1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300) | st.none(), min_size=2, max_size=30))
def test_numbers_of_any_size_stay_finite(values):
    table = pa.table({"a": pa.array(values, pa.float64())})
    encoder = TableEncoder.fit(table, ["a"])
    x = encoder.transform(table)
    assert np.isfinite(x).all()
    known = [value for value in values if value is not None]
    assert ("a is missing" in encoder.feature_names) == (len(known) < len(values))
    if len(set(known)) == 1:
        assert np.abs(x[:, 0]).max() < 1e-6, "a constant stays constant"


def test_rounding_is_not_blown_up_to_a_feature():
    table = pa.table({"a": [0.3, 0.1 + 0.2, 0.3]})
    assert np.abs(TableEncoder.fit(table, ["a"]).transform(table)).max() < 1e-6


def test_text_that_means_missing_and_columns_forced_to_a_kind(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("zip,age,y\n01234,30,a\n00501,?,b\n01234,50,a\n00501,40,b\n")
    data = Data.from_table(path, label="y", missing=["?"], categorical=["zip"], split="train", fractions=None)
    assert data.feature_names == ("zip=00501", "zip=01234", "age", "age is missing")
    forced = Data.from_table(
        {"age": ["1", "2", "3"], "y": list("aba")}, label="y", numeric=["age"], split="train", fractions=None
    )
    np.testing.assert_allclose(forced.x[:, 0], [-math.sqrt(1.5), 0, math.sqrt(1.5)], rtol=1e-6)


def test_a_large_table_reads(tmp_path):
    n = 300_000
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            **{f"n{k}": rng.normal(size=n).astype(np.float32) for k in range(5)},
            "c": pa.array(np.array(["a", "b", "c"])[rng.integers(0, 3, n)]),
            "y": rng.integers(0, 2, n),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    data = Data.from_table(tmp_path / "t.parquet", label="y", attributes=["c"], groups=["label", "c"])
    assert data.x.shape == (n, 8)
    assert data.num_groups == 6


def test_a_path_does_not_add_columns(tmp_path):
    folder = tmp_path / "year=2020"
    folder.mkdir()
    people().to_parquet(folder / "t.parquet")
    assert "year" not in read_table(folder / "t.parquet").column_names


# -- torch -------------------------------------------------------------------------------------------------------


class Items(Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


X = torch.arange(24.0).reshape(8, 3)
Y = torch.tensor([0, 1] * 4)
SITE = ["a", "b", "a", "b", "b", "a", "b", "a"]


def test_a_shuffled_loader_is_read_in_the_order_of_its_dataset():
    dataset = TensorDataset(X, Y)
    plain = Data(X, Y, split="train", fractions=None)
    for source in [
        dataset,
        DataLoader(dataset, batch_size=3, shuffle=True, drop_last=True),
        DataLoader(dataset, sampler=WeightedRandomSampler([1.0] * 8, 3)),
        DataLoader(dataset, batch_size=None),
    ]:
        data = Data.from_dataset(source, split="train", fractions=None)
        assert data.fingerprint() == plain.fingerprint()


def test_a_loader_over_a_subset_is_restricted_to_it():
    loader = DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([6, 1, 3, 2]))
    data = Data.from_dataset(loader, split="train", fractions=None)
    assert data.ids.tolist() == [1, 2, 3, 6]
    assert np.array_equal(data.x, X[[1, 2, 3, 6]].numpy())


def test_tuples_with_attributes_in_order_or_by_position():
    items = Items([(X[i].numpy(), int(Y[i]), SITE[i], i * 10) for i in range(8)])
    options = {"split": "train", "fractions": None}
    listed = Data.from_dataset(items, attributes=["site"], groups=["label", "site"], id=3, **options)
    assert listed.attributes["site"].strings().tolist() == SITE
    assert listed.ids.tolist() == [i * 10 for i in range(8)]
    assert listed.num_groups == 4
    mapped = Data.from_dataset(items, attributes={"site": 2}, columns={"number": 3}, **options)
    assert mapped.columns["number"].tolist() == [i * 10 for i in range(8)]
    reverse = Items([(int(Y[i]), X[i]) for i in range(8)])
    assert Data.from_dataset(reverse, x=1, label=0, **options).fingerprint() == Data(X, Y, **options).fingerprint()


def test_dicts_dataclasses_and_several_inputs():
    options = {"split": "train", "fractions": None}
    dicts = Items([{"image": X[i], "label": Y[i], "site": SITE[i]} for i in range(8)])
    data = Data.from_dataset(dicts, attributes=["site"], **options)
    assert np.array_equal(data.x, X.numpy())
    assert data.attributes["site"].strings().tolist() == SITE
    both = Items([{"tokens": X[i].long(), "mask": X[i] > 3, "target": Y[i]} for i in range(8)])
    data = Data.from_dataset(DataLoader(both, batch_size=2), label="target", **options)
    assert set(data.x) == {"tokens", "mask"}
    assert data.x["tokens"].dtype == np.int64
    assert set(Data.from_dataset(both, x=["tokens"], label="target", **options).x.shape) == {8, 3}

    @dataclasses.dataclass
    class Sample:
        pixels: torch.Tensor
        kind: str

    data = Data.from_dataset(Items([Sample(X[i], "ab"[i % 2]) for i in range(8)]), x="pixels", label="kind", **options)
    assert data.classes == ("a", "b")


def test_datasets_by_split_are_numbered_through():
    parts = {"train": TensorDataset(X[:4], Y[:4]), "validation": TensorDataset(X[4:6], Y[4:6])}
    data = Data.from_dataset({**parts, "test": DataLoader(TensorDataset(X[6:], Y[6:]), shuffle=True)})
    assert data.sizes == {"train": 4, "validation": 2, "test": 2}
    assert np.array_equal(data.x, X.numpy())
    assert data.ids.tolist() == list(range(8))


def test_pil_images_become_channels_first():
    images = [Image.new("RGB", (5, 4), (i, 2 * i, 3 * i)) for i in range(4)]
    data = Data.from_dataset(Items([(image, i % 2) for i, image in enumerate(images)]), split="train", fractions=None)
    assert data.x.shape == (4, 3, 4, 5)
    assert data.x[3, :, 0, 0].tolist() == [3, 6, 9]
    grey = Items([(image.convert("L"), i % 2) for i, image in enumerate(images)])
    assert Data.from_dataset(grey, split="train", fractions=None).x.shape == (4, 1, 4, 5)


# -- images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    pixels = rng.integers(0, 256, (10, 6, 8, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{k}.png")
    table = pd.DataFrame(
        {
            "file": [f"{k}.png" for k in range(10)],
            "kind": ["cat", "dog"] * 5,
            "place": ["in"] * 6 + ["out"] * 4,
            "number": np.arange(10) + 50,
            "part": ["train"] * 6 + ["validation"] * 2 + ["test"] * 2,
            "age": np.linspace(0, 1, 10),
        }
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path, pixels


def test_images_with_a_table(folder):
    path, pixels = folder
    arguments = {"file": "file", "label": "kind", "attributes": ["place"], "id": "number", "split": "part"}
    with pytest.warns(UserWarning, match="place=out"):
        data = Data.from_images(
            path / "pictures", path / "table.csv", **arguments, columns=["age"], groups=["kind", "place"]
        )
    assert np.array_equal(data.x, pixels.transpose(0, 3, 1, 2))
    assert data.ids.tolist() == list(range(50, 60))
    assert data.columns["file"][3] == "3.png"
    assert data.num_groups == 4
    lazy = Data.from_images(
        path / "pictures", path / "table.csv", **arguments, lazy=True, normalise=([0.5] * 3, [1] * 3)
    )
    assert isinstance(lazy.x, ImageReader)
    assert np.array_equal(lazy.test.x[np.array([1])], data.x[9:])
    assert lazy.replace(normalise=None).fingerprint() == data.fingerprint()
    grey = Data.from_images(path / "pictures", path / "table.csv", **arguments, mode="L", size=(3, 4))
    assert grey.x.shape == (10, 1, 3, 4)


# -- npz ---------------------------------------------------------------------------------------------------------


def test_npz_arrays_by_name(tmp_path):
    path = tmp_path / "set.npz"
    arrays = {
        "features": np.asfortranarray(np.arange(20.0).reshape(10, 2)),
        "target": np.arange(10) % 2,
        "names": np.array(["no", "yes"]),
        "site": np.array(["a", "b"])[np.arange(10) // 5],
        "part": np.array(["train"] * 6 + ["validation", "validation", "test", "test"]),
        "number": np.arange(10) + 5,
        "cell": np.arange(10) % 3,
    }
    np.savez_compressed(path, **arrays)
    with pytest.warns(UserWarning, match="site=b"):
        data = Data.from_npz(
            path,
            x="features",
            y="target",
            attributes=["site"],
            groups=["label", "site"],
            split="part",
            id="number",
            columns=["cell"],
            classes="names",
            label_name="ok",
        ).subset(np.arange(10) != 5)
    assert np.array_equal(data.x, np.delete(arrays["features"], 5, axis=0))
    assert data.groups.names[0] == "ok=no, site=a"
    assert data.ids[0] == 5
    assert Data.from_npz(path, x="features", y="target", groups="cell").num_groups == 3
    both = Data.from_npz(path, x=["features", "number"], y="target")
    assert both.x["number"].dtype == np.int64


class Trap:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_reading_an_npz_never_runs_code_from_it(tmp_path):
    path, trap = tmp_path / "bad.npz", tmp_path / "sprung"
    np.savez(path, x=np.array([Trap(str(trap))] * 2, dtype=object), y=np.array([0, 1]))
    with pytest.raises(DataError, match="'x': holds Python objects"):
        Data.from_npz(path)
    assert not trap.exists()
    np.load(path, allow_pickle=True)["x"]
    assert trap.exists(), "the trap works where pickles are opened"
