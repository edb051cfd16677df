"""Data that cannot be used: one clear error each, naming the offender and the way out, before anything starts."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from limbeck.data import Data, TableEncoder, inject, load
from limbeck.data.formats import read_cifar10_tar, read_idx, read_libsvm, read_libsvm_bz2
from limbeck.errors import DataError
from limbeck.groups import Column, Groups

N = 10
X = np.arange(2.0 * N).reshape(N, 2)
Y = np.arange(N) % 2
IDS = np.arange(N) + 100
TABLE = {"age": np.arange(N) * 1.5, "sex": ["f", "m"] * 5, "ok": ["no", "no", "yes", "yes", "no"] * 2}


def data(x: Any = X, y: Any = Y, **options: Any) -> Data:
    return Data(x, y, **{"ids": IDS, "split": "train", "fractions": None, **options})


def put(array: Any, place: Any, value: Any) -> Any:
    changed = np.array(array, dtype=object if isinstance(value, str | type(None)) else None)
    changed[place] = value
    return changed


def table(**options: Any) -> Data:
    columns = {**TABLE, **options.pop("with_columns", {})}
    return Data.from_table(columns, **{"label": "ok", "split": "train", "fractions": None, **options})


class Listed:
    """A minimal map-style dataset."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Streamed:
    def __iter__(self) -> Any:
        return iter([])


# Each case: what is done, and what the message says (all of these, in any order).
CASES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    # values
    "NaN in features": (
        lambda: data(put(X, (3, 1), np.nan), feature_names=["age", "wage"]),
        ["feature 'wage' (column 1) holds NaN", "ids 103 ", "fill the values or drop"],
    ),
    "infinity in features": (
        lambda: data(put(X, (slice(2, 9), 0), np.inf)),
        ["column 0", "infinity", "102, 103", "7 of 10"],
    ),
    "NaN in one of several inputs": (lambda: data({"a": X, "b": put(X, (0, 0), np.nan)}), ["x['b']", "ids 100", "NaN"]),
    "a number beyond float32": (lambda: data(put(X, (0, 0), 1e300)), ["1e+300", "float32", "rescale"]),
    "text as features": (lambda: data(np.full((N, 2), "a")), ["x holds values of type <U1", "Data.from_table"]),
    "complex features": (lambda: data(X * 1j), ["complex128", "expected numbers"]),
    # shapes
    "x and y of different lengths": (lambda: data(y=Y[:9]), ["x has 10 samples and y has 9"]),
    "no samples": (lambda: data(X[:0], Y[:0], ids=None, classes=["a", "b"]), ["no samples", "x is empty"]),
    "features of one dimension": (lambda: data(X[:, 0]), ["shape [10]", "[N, D]"]),
    "no features": (lambda: data(X[:, :0]), ["shape [10, 0]", "at least one feature"]),
    "ragged features": (lambda: data([[1, 2], [3]] * 5), ["ragged"]),
    "images channels last": (
        lambda: data(np.zeros((N, 8, 8, 3), np.uint8)),
        ["channels last", "transpose(0, 3, 1, 2)"],
    ),
    "images without a channel": (lambda: data(np.zeros((N, 8, 8), np.uint8)), ["[10, 8, 8]", "x[:, None]"]),
    "inputs of different lengths": (lambda: data({"a": X, "b": X[:4]}), ["different numbers of samples", "'b': 4"]),
    "an empty dict": (lambda: data({}), ["empty dict"]),
    "inputs of an unknown type": (lambda: data(3), ["type int", "reader"]),
    "a dataset where arrays belong": (lambda: data(Listed([1] * N)), ["Listed", "Data.from_dataset"]),
    "normalise for another number of channels": (
        lambda: data(np.zeros((N, 3, 2, 2), np.uint8), normalise=([0.5], [0.5])),
        ["1 means", "3 channels"],
    ),
    "normalise by zero": (lambda: data(np.zeros((N, 1, 2, 2), np.uint8), normalise=([0.5], [0])), ["std above 0"]),
    "normalise for features": (lambda: data(normalise=([0.5], [0.5])), ["uint8 images", "standardise"]),
    "feature names of another number": (lambda: data(feature_names=["a"]), ["1 feature_names", "one a feature"]),
    # labels
    "a missing label": (
        lambda: data(y=put(["a", "b"] * 5, 4, None)),
        ["label is missing", "ids 104 ", "label these samples"],
    ),
    "NaN as a label": (lambda: data(y=put(Y * 1.0, [1, 2], np.nan)), ["label is missing", "101, 102"]),
    "a label out of range": (
        lambda: data(y=put(Y, 7, 2), classes=["no", "yes"]),
        ["label 2 is out of range", "ids 107", "0..1"],
    ),
    "a negative label": (lambda: data(y=Y - 1, classes=["no", "yes"]), ["label -1", "out of range", "ids 100, 102"]),
    "an unknown class": (
        lambda: data(y=put(["no", "yes"] * 5, 2, "yse"), classes=["no", "yes"]),
        ["ids 102", "unknown class 'yse'", "did you mean 'yes'"],
    ),
    "a fractional label": (lambda: data(y=put(Y * 1.0, 3, 0.5)), ["label holds 0.5", "row 3", "discrete"]),
    "one class only": (lambda: data(y=np.zeros(N, int)), ["only 0", "classes=["]),
    "the same class twice": (lambda: data(classes=["a", "a"]), ["two or more different names"]),
    "one-hot labels": (lambda: data(y=np.eye(2)[Y]), ["shape [10, 2]", "y.argmax(1)"]),
    "labels of mixed types": (lambda: data(y=[1, "a"] * 5), ["label cannot be read as one column", "one type"]),
    # ids
    "an id twice": (lambda: data(ids=put(IDS, 5, 101)), ["id 101 occurs more than once", "rows 1, 5", "unique"]),
    "ids of another number": (lambda: data(ids=IDS[:3]), ["ids has 3 values for 10"]),
    "text as ids": (
        lambda: data(ids=[f"p{i}" for i in range(N)]),
        ["ids holds <U2", "'p0'", "whole numbers", "columns="],
    ),
    "fractional ids": (lambda: data(ids=IDS + 0.5), ["ids holds float64", "100.5"]),
    # attributes and groups
    "an attribute of another length": (lambda: data(attributes={"sex": ["f"] * 4}), ["'sex' has 4 values for 10"]),
    "a fractional attribute": (lambda: data(attributes={"age": X[:, 0] / 3}), ["'age' holds 0.666", "bin it"]),
    "an attribute called label": (lambda: data(attributes={"label": Y}), ["'label'", "rename"]),
    "an attribute value that is not allowed": (
        lambda: table(attributes={"sex": ["f", "x"]}),
        ["attribute 'sex'", "row 1, 3", "unknown value 'm'", "Correct the value"],
    ),
    "an attribute code out of range": (
        lambda: data(attributes={"sex": Column(("f", "m"), Y * 2)}),
        ["'sex' holds code 2 at row 1", "2 values"],
    ),
    "an unknown attribute for groups": (
        lambda: data(attributes={"sex": ["f", "m"] * 5}, groups=["sx"]),
        ["groups: unknown attribute 'sx'", "did you mean 'sex'"],
    ),
    "a column twice in groups": (lambda: data(attributes={"a": Y}, groups=["a", "a"]), ["'a' twice"]),
    "a group number without a name": (
        lambda: data(groups=Y * 5, group_names=["a", "b"]),
        ["group index holds 5", "2 group names"],
    ),
    "a group number below -1": (lambda: data(groups=Y - 3), ["group index holds -3", "-1 means unknown"]),
    "groups of another length": (lambda: data(groups=Y[:4]), ["groups has 4 values for 10"]),
    "no known group": (lambda: data(attributes={"a": [None] * N}, groups="a"), ["no sample has a known value"]),
    "too many groups": (
        lambda: Data(np.zeros((20_000, 1)), np.arange(20_000) % 2, attributes={"zip": np.arange(20_000)}, groups="zip"),
        ["20,000", "bin an attribute"],
    ),
    "a group name twice": (lambda: Groups.from_index([0, 1], ["a", "a"]), ["'a' is given twice"]),
    "a group without a training sample": (
        lambda: _quiet(
            groups=Y, group_names=["x", "y"], y=[0, 0, 1, 1, 0] * 2, split=np.where(Y, "test", "train")
        ).check(groups_required=True, splits=()),
        ["group 'y'", "no training sample", "merge it"],
    ),
    "training samples without a group": (
        lambda: data(groups=put(Y, 3, -1)).check(groups_required=True, splits=()),
        ["1 training samples", "ids 103", "data.subset"],
    ),
    "groups needed and none declared": (
        lambda: data(attributes={"sex": ["f", "m"] * 5}).check(groups_required=True, splits=()),
        ["declares none", "data.with_groups", "sex"],
    ),
    "a class without a training sample": (
        lambda: data(classes=["a", "b", "c"]).check(splits=("train",)),
        ["class 'c'", "no training sample"],
    ),
    # splits
    "an empty split": (lambda: data().test, ["test split of 'data' is empty", "train 10", "split="]),
    "an empty validation split for training": (lambda: data().check(), ["validation split", "is empty", "fractions="]),
    "an unknown split name": (
        lambda: data(split=put(["train"] * N, 2, "trane")),
        ["'trane'", "ids 102", "validation or test"],
    ),
    "an unknown split number": (lambda: data(split=put(Y, 9, 3)), ["split is 3", "ids 109"]),
    "a missing split": (lambda: data(split=put(["train"] * N, 0, None)), ["split is missing for ids 100"]),
    "a split of another length": (lambda: data(split=["train"] * 3), ["split has 3 values for 10"]),
    "fractions that do not add up": (
        lambda: data(split=None, fractions=(0.5, 0.2, 0.2)),
        ["0.5, 0.2, 0.2", "together 1"],
    ),
    "too few samples for the fractions": (
        lambda: Data(X[:3], Y[:3], fractions=(0.6, 0.2, 0.2)),
        ["would be empty", "3 samples"],
    ),
    "an unknown split to check": (lambda: data().check(splits=("dev",)), ["unknown split 'dev'"]),
    "a seed that is no number": (lambda: data(split=None, fractions=(0.6, 0.2, 0.2), seed="a"), ["seed is 'a'"]),
    # subsets and changes
    "a row out of range": (lambda: data().subset([3, 10]), ["row 10 does not exist", "0..9"]),
    "a row twice": (lambda: data().subset([3, 3]), ["row 3", "more than once", "weights"]),
    "an empty subset": (lambda: data().subset([]), ["no row is selected"]),
    "a mask of another length": (lambda: data().subset(np.ones(3, bool)), ["mask of shape [3]"]),
    "an unknown argument of replace": (lambda: data().replace(labels=Y), ["unknown argument of replace 'labels'"]),
    "a column of another length": (lambda: data(columns={"score": [1, 2]}), ["column 'score' has shape [2]"]),
    # tables
    "an unknown label column": (lambda: table(label="okk"), ["label: unknown column 'okk'", "did you mean 'ok'"]),
    "an unknown attribute column": (lambda: table(attributes=["sexx"]), ["attributes: unknown column 'sexx'"]),
    "an unknown split column": (lambda: table(split="prat"), ["split: unknown column 'prat'"]),
    "a column in two roles": (lambda: table(drop=["ok"]), ["column 'ok'", "as label and as drop"]),
    "no features left": (lambda: table(drop=["age", "sex"]), ["no column is left as a feature"]),
    "text in a numeric column": (
        lambda: table(with_columns={"wage": put(["1"] * N, [2, 5], "1k")}, numeric=["wage"]),
        ["column 'wage'", "id 2, 5", "'1k'", "categorical=['wage']"],
    ),
    "infinity in a table": (
        lambda: table(with_columns={"age": put(TABLE["age"], 4, np.inf)}),
        ["'age'", "infinity", "ids 4 "],
    ),
    "a time in a table": (
        lambda: table(with_columns={"when": pd.date_range("2020", periods=N)}),
        ["column 'when'", "timestamp", "drop=['when']"],
    ),
    "a column without any value": (
        lambda: table(with_columns={"e": pa.nulls(N)}),
        ["column 'e' holds no value", "drop="],
    ),
    "too many categories": (
        lambda: TableEncoder.fit(pa.table({"name": [f"n{i}" for i in range(1001)]}), ["name"]),
        ["'name' holds 1,001", "drop=['name']"],
    ),
    "a column name twice": (
        lambda: Data.from_table(pa.table([[1, 2], [3, 4]], names=["a", "a"]), label="a"),
        ["'a' occurs twice", "rename"],
    ),
    "a table that is no table": (lambda: Data.from_table(7, label="y"), ["found int", "data frame"]),
    "columns of different lengths": (lambda: Data.from_table({"a": [1], "b": [1, 2]}, label="a"), ["cannot be read"]),
    "missing ids in a table": (
        lambda: table(with_columns={"n": put(IDS * 1.0, 1, np.nan)}, id="n"),
        ["id column 'n' is missing at rows 1"],
    ),
    "an encoder's column is absent": (
        lambda: TableEncoder.fit(pa.table({"age": [1, 2]}), ["age"]).transform({"agee": [1]}),
        ["unknown column 'age'"],
    ),
    "an encoder that is not one": (lambda: TableEncoder.from_dict({"columns": [{"kind": "magic"}]}), ["entry 0"]),
    "an encoder with a zero scale": (
        lambda: TableEncoder.from_dict(
            {"columns": [{"kind": "numeric", "name": "a", "mean": 0, "scale": 0, "missing": False}]}
        ),
        ["entry 0", "scale above 0"],
    ),
    # datasets
    "a dataset without positions": (lambda: Data.from_dataset(Streamed()), ["Streamed", "map-style", "arrays"]),
    "an empty dataset": (lambda: Data.from_dataset(Listed([])), ["Listed has no samples"]),
    "items of different shapes": (
        lambda: Data.from_dataset(Listed([(np.zeros(2), 0), (np.zeros(3), 1)])),
        ["shape [3] in item 1", "[2] in item 0", "pad"],
    ),
    "items without a label": (lambda: Data.from_dataset(Listed([(np.zeros(2),)])), ["item 0", "1 entries", "entry 1"]),
    "items that are no tuples": (lambda: Data.from_dataset(Listed([np.zeros(2)])), ["item 0", "ndarray", "tuple"]),
    "a key that is absent": (
        lambda: Data.from_dataset(Listed([{"x": np.zeros(2), "lable": 1}]), label="label"),
        ["item 0", "unknown key 'label'", "did you mean 'lable'"],
    ),
    "an item that cannot be read": (
        lambda: Data.from_dataset(type("Broken", (Listed,), {"__getitem__": lambda *_: 1 / 0})([1])),
        ["Broken: item 0", "ZeroDivisionError"],
    ),
    "an unknown split of datasets": (lambda: Data.from_dataset({"trian": Listed([])}), ["unknown split 'trian'"]),
    # known sets and injections
    "an unknown data set": (lambda: load("adlut"), ["unknown data set 'adlut'", "did you mean 'adult'"]),
    "an unknown option": (lambda: load("digits", image=True), ["digits: unknown option 'image'", "'images'"]),
    "a set that is not here": (
        lambda: load("mnist", folder="nowhere"),
        ["'mnist' is not here", "mnist.npz", "LIMBECK_DATA", "nowhere", "limbeck download mnist"],
    ),
    "noise for test labels": (
        lambda: inject.label_noise(data(), rate=0.1, splits=["test"]),
        ["test", "nothing is injected"],
    ),
    "a noise rate above one": (lambda: inject.label_noise(data(), rate=1.2), ["1.2", "between 0 and 1"]),
    "an unknown noise pattern": (
        lambda: inject.label_noise(data(), "symetric", rate=0.1),
        ["unknown noise pattern 'symetric'", "did you mean 'symmetric'"],
    ),
    "superclass noise without features": (
        lambda: inject.label_noise(data(), "superclass", rate=0.1),
        ["features=[N, F]", "clusters"],
    ),
    "noise by group without groups": (
        lambda: inject.label_noise(data(), rate=0.1, group={"a": 0.2}),
        ["no groups", "with_groups"],
    ),
    "noise for an unknown group": (
        lambda: inject.label_noise(data(groups=Y), rate=0.1, group={"gruop 0": 0.2}),
        ["unknown group 'gruop 0'"],
    ),
    "colours for features": (lambda: inject.coloured(data()), ["[N, 1, H, W]", "[10, 2]"]),
    "keeping more than there is": (
        lambda: inject.subsample_group(data(groups=Y), "group 0", keep=9, splits=["train"]),
        ["5 train samples", "cannot keep 9"],
    ),
}


def _quiet(**options: Any) -> Data:
    with pytest.warns(UserWarning, match="no training sample"):
        return data(**options)


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_refused_with_one_clear_error(case):
    action, parts = CASES[case]
    with pytest.raises(DataError) as caught:
        action()
    message = str(caught.value)
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert "\n" not in message
    assert len(message) < 600


# -- files -------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> bytes:
    pd.DataFrame({"a": np.arange(500) * 1.5, "y": np.arange(500) % 2}).to_parquet(path)
    return path.read_bytes()


def _npz(path: Path) -> bytes:
    rng = np.random.default_rng(0)
    np.savez_compressed(path, x=rng.normal(size=(50, 4)), y=np.arange(50) % 2)
    return path.read_bytes()


def _forged_npz(path: Path, header: bytes) -> None:
    """An .npz whose array promises something else than its bytes."""
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\x00" * 64
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", body)
        buffer = io.BytesIO()
        np.save(buffer, np.arange(8))
        archive.writestr("y.npy", buffer.getvalue())


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz", "t.npz", "t.xlsx"])
def test_a_file_that_is_absent_or_of_an_unknown_kind(tmp_path, name):
    read = Data.from_npz if name.endswith("npz") else lambda path: Data.from_table(path, label="y")
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_a_file_cut_short(tmp_path, kind, share):
    path = tmp_path / f"t.{kind}"
    whole = _parquet(path) if kind == "parquet" else _npz(path)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=rf"t\.{kind}.*(cut short|damaged).*again"):
        Data.from_table(path, label="y") if kind == "parquet" else Data.from_npz(path)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_a_file_with_a_wrong_byte_is_read_or_refused_but_never_crashes(tmp_path, kind, place):
    path = tmp_path / f"t.{kind}"
    whole = bytearray(_parquet(path) if kind == "parquet" else _npz(path))
    whole[int(len(whole) * place)] ^= 0xFF
    path.write_bytes(bytes(whole))
    with contextlib.suppress(DataError):
        Data.from_table(path, label="y") if kind == "parquet" else Data.from_npz(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 8)}", "promises"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (-4,)}", "damaged"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (8,)}", "Python objects"),
        (b"{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (8,)}", "records"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (__import__('os'),)}", "cannot be read"),
        (b"{'descr': '<f8'}", "cannot be read"),
    ],
)
def test_a_forged_npz_asks_for_no_memory_and_runs_no_code(tmp_path, header, reason):
    path = tmp_path / "forged.npz"
    _forged_npz(path, header)
    with pytest.raises(DataError, match=rf"forged\.npz.*{reason}"):
        Data.from_npz(path)


def test_an_npz_that_is_something_else(tmp_path):
    path = tmp_path / "t.npz"
    np.save(tmp_path / "plain.npy", np.eye(3))
    path.write_bytes((tmp_path / "plain.npy").read_bytes())
    with pytest.raises(DataError, match=r"t\.npz: cannot be read as \.npz"):
        Data.from_npz(path)
    _npz(path)
    with pytest.raises(DataError, match="unknown array 'features'"):
        Data.from_npz(path, x="features")


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\x02", b"a,b\n1,2\n3\n", b"a,y\n" + b"\xff\xfe,1\nb,2\n" * 9, b"a,y\n"], ids=str
)
def test_a_csv_that_is_damaged_or_empty(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.csv|unknown column|column 'a' is of type binary"):
        Data.from_table(path, label="y")


def images(tmp_path: Path, **options: Any) -> Data:
    for k in range(4):
        Image.fromarray(np.full((6, 8, 3), k, np.uint8)).save(tmp_path / f"{k}.png")
    listed = {"file": [f"{k}.png" for k in range(4)], "kind": ["a", "b"] * 2}
    return Data.from_images(
        tmp_path,
        {**listed, **options.pop("with_columns", {})},
        **{"file": "file", "label": "kind", "split": ["train"] * 4, "fractions": None, **options},
    )


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"with_columns": {"file": ["0.png", "no.png", "2.png", "4.png"]}}, ["2 of 4", "no.png", "rows 1, 3"]),
        ({"with_columns": {"file": ["0.png", "../secret.png", "2.png", "3.png"]}}, ["row 1", "leads out of"]),
        ({"with_columns": {"file": ["0.png", "/etc/passwd", "2.png", "3.png"]}}, ["row 1", "leads out of"]),
        ({"with_columns": {"file": ["0.png", None, "2.png", "3.png"]}}, ["row 1", "no image file"]),
        ({"file": "path"}, ["file: unknown column 'path'"]),
        ({"label": "knid"}, ["label: unknown column 'knid'", "did you mean 'kind'"]),
        ({"mode": "CMYK"}, ["unknown image mode 'CMYK'"]),
        ({"size": 0}, ["size is 0"]),
        ({"attributes": ["place"]}, ["attributes: unknown column 'place'"]),
        ({"split": "part"}, ["split: unknown column 'part'"]),
    ],
)
def test_bad_folders_of_images(tmp_path, options, parts):
    with pytest.raises(DataError) as caught:
        images(tmp_path, **options)
    for part in parts:
        assert part in str(caught.value)


def test_a_damaged_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for name, content in [("cut.jpg", whole[: len(whole) // 2]), ("text.jpg", b"hello"), ("nothing.jpg", b"")]:
        (tmp_path / name).write_bytes(content)
        table = {"file": ["whole.jpg", name], "y": [0, 1]}
        with pytest.raises(DataError, match=rf"{name}.*(damaged|not an image).*(fetch it again|leave it out)"):
            Data.from_images(tmp_path, table, file="file", label="y", split=["train"] * 2, fractions=None)


def test_images_of_different_sizes_need_a_size(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 6)).save(tmp_path / "b.png")
    arguments = {"file": "file", "label": "y", "split": ["train"] * 2, "fractions": None}
    table = {"file": ["a.png", "b.png"], "y": [0, 1]}
    with pytest.raises(DataError, match=r"a\.png is 6×8 .*b\.png is 6×9: give size="):
        Data.from_images(tmp_path, table, **arguments)
    assert Data.from_images(tmp_path, table, **arguments, size=4).sample_shape == (3, 4, 4)


def test_an_image_that_promises_too_many_pixels(tmp_path):
    header = b"IHDR" + struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    with pytest.raises(DataError, match=r"bomb\.png: the image promises too many pixels"):
        Data.from_images(tmp_path, {"file": ["bomb.png"], "y": ["a"]}, file="file", label="y")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(struct.pack(">4B2I", 0, 0, 8, 2, 4, 4) + b"x" * 10, mtime=0), "promises"),
        (gzip.compress(struct.pack(">4B4I", 0, 0, 8, 4, *[2**31] * 4), mtime=0), "promises"),
        (gzip.compress(b"\x00\x00\x0d\x01" + b"x" * 40, mtime=0), "not an IDX file"),
        (gzip.compress(struct.pack(">4B2I", 0, 0, 8, 2, 4, 4) + bytes(range(16)), mtime=0)[:-12], "damaged"),
        (b"plain", "damaged"),
        (b"", "not an IDX file"),
    ],
    ids=["too few bytes", "too many promised", "another kind", "cut", "not compressed", "empty"],
)
def test_bad_idx_files(tmp_path, content, reason):
    path = tmp_path / "train.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"train\.gz.*{reason}"):
        read_idx(path)


def test_other_published_formats_that_are_damaged(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"a\.bin: is damaged"):
        read_cifar10_tar(path)
    with pytest.raises(DataError, match=r"a\.bin: is damaged"):
        read_libsvm_bz2(path, 4)
    for line in [b"1 5:1", b"1 a:1", b"1 0:2", b"1 1", b"\xff 1:1"]:
        with pytest.raises(DataError, match="set, line 2"):
            read_libsvm([b"1 1:2", line], 4, "set")


def test_there_are_enough_cases():
    assert len(CASES) >= 35
