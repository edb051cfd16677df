"""Real data sets by name: two that come with Limbeck, the others from the data folder."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from limbeck.data import inject
from limbeck.data.columns import Column, IntArray, some
from limbeck.data.data import Data
from limbeck.data.download import cache_folder, data_folder
from limbeck.data.formats import (
    damaged,
    decode_jpegs,
    read_cifar10_tar,
    read_idx,
    read_image,
    read_libsvm,
    read_libsvm_bz2,
    read_zip,
)
from limbeck.data.npz import read_npz
from limbeck.data.pickled import read_pickled_npy
from limbeck.data.seeding import uniform
from limbeck.data.splits import cut_validation
from limbeck.data.tables import from_table, read_table
from limbeck.errors import DataError, unknown_name

GroupsArgument = str | Sequence[str] | None
Arrays = dict[str, NDArray[np.uint8]]

_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS = tuple("0123456789")
#: Mean and standard deviation of the training pixels; for CIFAR-10 those that ImageNet made usual.
_MNIST_PIXELS = ((0.1307,), (0.3081,))
_FASHION_PIXELS = ((0.2860,), (0.3530,))
_IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GASES = ("Ethanol", "Ethylene", "Ammonia", "Acetaldehyde", "Acetone", "Toluene")
_PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class KnownSet:
    """A data set that `load` knows.

    Attributes:
        build: makes it from the places where its files may be.
        about: one line.
        files: what it needs in the data folder, in words; empty where it comes with Limbeck.
        get: where that comes from, in words.
    """

    build: Callable[..., Data]
    about: str
    files: str = ""
    get: str = ""


@dataclass(frozen=True)
class _Places:
    """Where the files of one set are looked for."""

    name: str
    folders: tuple[Path, ...]

    def find(self, *names: str) -> Path | None:
        """The first of some relative paths that exists in one of the folders."""
        return next((f / name for f in self.folders for name in names if (f / name).exists()), None)

    def missing(self, note: str = "") -> DataError:
        known = SETS[self.name]
        looked = ", ".join(str(folder) for folder in self.folders)
        return DataError(
            f"the data set {self.name!r} is not here: it needs {known.files} in the folder that LIMBECK_DATA names "
            f"(looked in {looked}). {note}{known.get}"
        )


def load(
    name: str, groups: GroupsArgument = None, seed: int = 0, *, folder: str | Path | None = None, **options: Any
) -> Data:
    """A real data set by name.

    "adult" and "digits" come with Limbeck. The others are read from the folder LIMBECK_DATA (an environment variable)
    or from `limbeck` in the user's cache; `limbeck download NAME` gets them where there is an official source.

    Args:
        name: adult, digits, acs-employment, mnist, coloured-mnist, fashion-mnist, cifar10, cifar10n, bar, pacs,
            gas-drift or usps.
        groups: attributes to declare groups over, "label" for the class among them. Not given, "coloured-mnist" has
            its own (label × aligned) and every other set none.
        seed: of everything that is drawn: the validation samples cut from train, a subset, an injected shortcut.
        folder: look here instead of the usual places.
        options: of the set. All have `validation`, the share of the training part cut off for validation (.25); sets
            of images have `samples` and `test_samples`, to take fewer of either part, in equal shares of the classes.

            * digits: `images` (x [N, 1, 8, 8] instead of [N, 64]), `test` (share, .2)
            * acs-employment: `train_years`, `test_years` (such as [2015] and [2016]; a made split of all years where
              not given, with `test`), `samples`
            * coloured-mnist: `aligned` (.95), `severity` (2), as `limbeck.data.inject.coloured`
            * cifar10n: `labels` (worse, aggregate, random1, random2, random3)
            * bar: `size` (pixels; reads the photographs instead of the features)
            * pacs: `leave_out` (the domain that becomes the test split; a made split where not given, with `test`),
              `size` (pixels; reads the pictures instead of the features)
            * gas-drift: `leave_out` (the month batch that becomes the test split, the last where not given)

    Raises:
        DataError: an unknown name or option, missing or damaged files.
    """
    if name not in SETS:
        raise DataError(unknown_name("data set", name, SETS))
    build = SETS[name].build
    known = [option for option in inspect.signature(build).parameters if option not in ("places", "groups", "seed")]
    for option in options:
        if option not in known:
            raise DataError(f"{name}: {unknown_name('option', option, known)}")
    folders = [data_folder(), cache_folder()] if folder is None else [Path(folder)]
    return build(_Places(name, tuple(dict.fromkeys(folders))), groups, seed, **options)


# -- with Limbeck ------------------------------------------------------------------------------------------------


def _adult(places: _Places, groups: GroupsArgument, seed: int, *, validation: float = 0.25) -> Data:
    with resources.as_file(resources.files("limbeck.data") / "bundled" / "adult.parquet") as path:
        table = read_table(path)
    return from_table(
        table,
        label="income",
        attributes=["sex", "race"],
        groups=groups,
        split="split",
        # The census weight says nothing of the person, and education_num is education as a number.
        columns=["fnlwgt"],
        drop=["education"],
        fractions=_cut(validation),
        seed=seed,
        name="adult",
    )


def _digits(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    images: bool = False,
    validation: float = 0.25,
    test: float = 0.2,
) -> Data:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)
    return Data(
        x[:, None] if images else x.reshape(len(x), -1),
        bunch.target,
        groups=groups,
        classes=_DIGITS,
        fractions=_cut(validation, test),
        seed=seed,
        name="digits",
    )


# -- people ------------------------------------------------------------------------------------------------------

_ACS_YEARS = (2015, 2016, 2017)
_ACS_FEATURES = (
    *("AGEP", "SCHL", "MAR", "RELP", "DIS", "ESP", "CIT", "MIG"),
    *("MIL", "ANC", "NATIVITY", "DEAR", "DEYE", "DREM", "SEX", "RAC1P"),
)
_NATIVE = "American Indian or Alaska Native"
#: By RAC1P, which counts from 1.
_ACS_RACE = ("White", "Black", _NATIVE, _NATIVE, _NATIVE, "Asian", "Pacific Islander", "other", "two or more")
_AGE_BANDS = ("0-15", "16-24", "25-44", "45-64", "65+")


def _acs_employment(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    train_years: Sequence[int] | None = None,
    test_years: Sequence[int] | None = None,
    samples: int | None = None,
    validation: float = 0.25,
    test: float = 0.2,
) -> Data:
    if (train_years is None) != (test_years is None):
        raise DataError("acs-employment: give train_years and test_years both, or neither")
    train, tested = _years(train_years), _years(test_years)
    if set(train) & set(tested):
        raise DataError(f"acs-employment: year {min(set(train) & set(tested))} is in train_years and in test_years")
    path = places.find("acs_employment_ma.parquet")
    table = read_table(path) if path is not None else _read_census(places)
    numbers = {name: table.column(name).to_numpy() for name in table.column_names}
    rows = np.flatnonzero(np.isin(numbers["year"], [*train, *tested] or list(_ACS_YEARS)))
    rows = rows[_choose(numbers["employed"][rows].astype(np.int64), numbers["id"][rows], samples, seed)]
    numbers = {name: values[rows] for name, values in numbers.items()}
    attributes = {
        "disability": np.array(["yes", "no"])[numbers["DIS"] - 1],
        "sex": np.array(["male", "female"])[numbers["SEX"] - 1],
        "race": np.array(_ACS_RACE)[numbers["RAC1P"] - 1],
        "age": np.array(_AGE_BANDS)[np.searchsorted([16, 25, 45, 65], numbers["AGEP"], side="right")],
    }
    carried = [name for name in ("prediction", "predicted_probability") if name in numbers]
    return from_table(
        {
            **{name: numbers[name] for name in [*_ACS_FEATURES, "id", "year", *carried]},
            **attributes,
            "employed": np.array(["no", "yes"])[numbers["employed"]],
        },
        label="employed",
        id="id",
        attributes=[*attributes, "year"],
        # They are features already, under the census's own names and codes.
        attributes_in_features=False,
        groups=groups,
        split=np.where(np.isin(numbers["year"], train), "train", "test") if train else None,
        categorical=[name for name in _ACS_FEATURES if name not in ("AGEP", "SCHL")],
        columns=carried,
        fractions=_cut(validation, test),
        seed=seed,
        name="acs-employment",
    )


def _years(years: Sequence[int] | None) -> list[int]:
    for year in years or ():
        if year not in _ACS_YEARS:
            raise DataError(f"acs-employment has the years {some(_ACS_YEARS)}, {year!r} was asked for")
    return list(years or ())


def _read_census(places: _Places) -> pa.Table:
    """The same table from the Census Bureau's own files, without the deployed model's predictions."""
    parts = []
    for year in _ACS_YEARS:
        path = places.find(f"acs/{year}_csv_pma.zip")
        if path is None:
            raise places.missing()
        members = read_zip(path, re.compile(r"(ss\d\dp|psam_p).*\.csv", re.IGNORECASE))
        convert = pyarrow.csv.ConvertOptions(include_columns=[*_ACS_FEATURES, "ESR"])
        try:
            rows = pyarrow.csv.read_csv(io.BytesIO(next(iter(members.values()))), convert_options=convert)
            codes = {name: rows.column(name).cast(pa.int16()).fill_null(0) for name in rows.column_names}
        except (pa.ArrowException, KeyError) as error:
            raise damaged(path, error) from error
        employed = pa.array(codes.pop("ESR").to_numpy() == 1).cast(pa.int8())
        parts.append(
            pa.table({**codes, "employed": employed, "year": pa.array(np.full(len(employed), year, np.int16))})
        )
    table = pa.concat_tables(parts)
    return table.append_column("id", pa.array(np.arange(table.num_rows, dtype=np.int64)))


# -- images ------------------------------------------------------------------------------------------------------


def _mnist(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    samples: int | None = None,
    test_samples: int | None = None,
    validation: float = 0.25,
) -> Data:
    arrays = _read_digits(places, "mnist", "mnist.npz")
    return _images(arrays, "mnist", _DIGITS, _MNIST_PIXELS, groups, seed, samples, test_samples, _cut(validation))


def _fashion_mnist(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    samples: int | None = None,
    test_samples: int | None = None,
    validation: float = 0.25,
) -> Data:
    arrays = _read_digits(places, "fashion-mnist", "fashion-mnist.npz", _DEBIAN_FASHION)
    cut = _cut(validation)
    return _images(arrays, "fashion-mnist", _FASHION_CLASSES, _FASHION_PIXELS, groups, seed, samples, test_samples, cut)


def _usps(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    samples: int | None = None,
    test_samples: int | None = None,
    validation: float = 0.25,
) -> Data:
    path = places.find("usps.npz")
    if path is not None:
        arrays = _read_split_npz(path)
    else:
        arrays = {}
        for part, name in [("train", "usps/usps.bz2"), ("test", "usps/usps.t.bz2")]:
            source = places.find(name)
            if source is None:
                raise places.missing()
            labels, values = read_libsvm_bz2(source, 256)
            if not set(labels) <= {str(k) for k in range(1, 11)}:
                raise DataError(f"{source}: holds labels {some(sorted(set(labels)))}, expected 1..10: fetch it again")
            # Grey values are stored from -1 to 1, the digits from 1 to 10.
            pixels = np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8)
            arrays[f"x_{part}"] = pixels.reshape(-1, 16, 16)
            arrays[f"y_{part}"] = np.array([int(label) - 1 for label in labels], np.uint8)
    grey = {key: value[:, None] if key.startswith("x") else value for key, value in arrays.items()}
    pixels_of = inject.channel_statistics(grey["x_train"])
    return _images(grey, "usps", _DIGITS, pixels_of, groups, seed, samples, test_samples, _cut(validation))


def _coloured_mnist(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    aligned: float = 0.95,
    severity: int = 2,
    samples: int | None = None,
    test_samples: int | None = None,
    validation: float = 0.25,
) -> Data:
    arrays = _read_digits(places, "mnist", "mnist.npz")
    cut = _cut(validation)
    grey = _images(arrays, "coloured-mnist", _DIGITS, None, None, seed, samples, test_samples, None)
    painted = inject.coloured(grey, aligned=aligned, severity=severity, seed=seed)
    # Cut only now: few samples are not aligned, and validation must have its share of them.
    grouped = painted.replace(groups=["label", "aligned"])
    index = painted.y if grouped.groups is None else grouped.groups.index
    split = cut_validation(painted.split, index, painted.y, painted.ids, cut, seed) if validation else painted.split
    whole = grouped.replace(split=split)
    return whole if groups is None else whole.with_groups(groups)


def _cifar10(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    samples: int | None = None,
    test_samples: int | None = None,
    validation: float = 0.25,
) -> Data:
    return _read_cifar10(places, None, groups, seed, samples, test_samples, _cut(validation))


_CIFAR10N = {
    "aggregate": "c10_aggre",
    "worse": "c10_worse",
    "random1": "c10_random1",
    "random2": "c10_random2",
    "random3": "c10_random3",
}


_OFFICIAL_CIFAR10N = {
    "clean_label": "c10_clean",
    "aggre_label": "c10_aggre",
    "worse_label": "c10_worse",
    "random_label1": "c10_random1",
    "random_label2": "c10_random2",
    "random_label3": "c10_random3",
}


def _cifar10n(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    labels: str = "worse",
    samples: int | None = None,
    test_samples: int | None = None,
    validation: float = 0.25,
) -> Data:
    if labels not in _CIFAR10N:
        raise DataError(f"cifar10n: {unknown_name('set of labels', labels, _CIFAR10N)}")
    official, path = places.find("cifar10n/CIFAR-10_human.npy"), places.find("cifar_n_labels.npz")
    if official is not None:
        path, pickled = official, read_pickled_npy(official)
        if missing := [name for name in _OFFICIAL_CIFAR10N if name not in pickled]:
            raise DataError(f"{path}: {unknown_name('array', missing[0], pickled)}")
        human = {key: pickled[name] for name, key in _OFFICIAL_CIFAR10N.items()}
    elif path is not None:
        human = read_npz(path, ["c10_clean", *_CIFAR10N.values()])
    else:
        raise places.missing()
    for key, values in human.items():
        if values.shape != (50_000,) or values.dtype.kind not in "iu" or not 0 <= values.min() <= values.max() <= 9:
            raise DataError(
                f"{path}, array {key!r}: holds {values.dtype} {list(values.shape)}, expected [50000] labels 0..9"
            )
    return _read_cifar10(places, (labels, human), groups, seed, samples, test_samples, _cut(validation))


def _read_cifar10(
    places: _Places,
    human: tuple[str, Mapping[str, NDArray[Any]]] | None,
    groups: GroupsArgument,
    seed: int,
    samples: int | None,
    test_samples: int | None,
    cut: tuple[float, float, float],
) -> Data:
    name = "cifar10" if human is None else "cifar10n"
    official, compressed = places.find("cifar-10-binary.tar.gz"), places.find("cifar10_jpeg.npz")
    taken: dict[str, IntArray] = {}
    if official is not None:
        arrays = read_cifar10_tar(official)
    elif compressed is not None:
        keys = ["header", *(f"{p}_{k}" for p in ("train", "test") for k in ("len", "bytes")), "y_train", "y_test"]
        raw = read_npz(compressed, keys)
        arrays = {key: raw[key] for key in ("y_train", "y_test")}
        for part, offset, count in [("train", 0, samples), ("test", 50_000, test_samples)]:
            y = arrays[f"y_{part}"].astype(np.int64)
            # Decoding is slow: choose first.
            taken[part] = _choose(y, np.arange(len(y)) + offset, count, seed)
            lengths, content = raw[f"{part}_len"], raw[f"{part}_bytes"]
            arrays[f"x_{part}"] = decode_jpegs(raw["header"], lengths, content, taken[part], str(compressed))
    else:
        raise places.missing()
    if human is not None and not np.array_equal(human[1]["c10_clean"], arrays["y_train"]):
        raise DataError("the clean labels of cifar_n_labels.npz are not those of CIFAR-10 here: fetch both again")
    shown = name if official is not None else f"{name}-jpeg"
    columns, given = {}, dict(arrays)
    if human is not None:
        chosen, sets = human
        given["y_train"] = sets[_CIFAR10N[chosen]].astype(np.uint8)
        columns["true_label"] = np.concatenate([arrays["y_train"], arrays["y_test"]]).astype(np.int64)
        for key, source in _CIFAR10N.items():
            unlabelled = np.full(len(arrays["y_test"]), -1)
            columns[f"label_{key}"] = np.concatenate([sets[source].astype(np.int64), unlabelled])
    return _images(
        given, shown, _CIFAR_CLASSES, _IMAGENET_PIXELS, groups, seed, samples, test_samples, cut, columns, taken
    )


def _read_digits(places: _Places, folder: str, npz: str, further: Path | None = None) -> Arrays:
    """Arrays x [N, 1, 28, 28] and y of both parts, from one .npz or the four official IDX files."""
    path = places.find(npz)
    if path is not None:
        arrays = _read_split_npz(path)
        return {key: value[:, None] if key.startswith("x") else value for key, value in arrays.items()}
    arrays = {}
    for part, prefix in [("train", "train"), ("test", "t10k")]:
        for key, kind in [("x", "images-idx3"), ("y", "labels-idx1")]:
            name = f"{prefix}-{kind}-ubyte.gz"
            source = places.find(f"{folder}/{name}")
            if source is None and further is not None and (further / name).is_file():
                source = further / name
            if source is None:
                raise places.missing()
            values = read_idx(source)
            arrays[f"{key}_{part}"] = values[:, None] if key == "x" else values
        if len(arrays[f"x_{part}"]) != len(arrays[f"y_{part}"]):
            raise DataError(f"{folder}: the {part} images and labels differ in number: fetch the files again")
    return arrays


def _read_split_npz(path: Path) -> Arrays:
    arrays = read_npz(path, ["x_train", "y_train", "x_test", "y_test"])
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim != 3 or x.dtype != np.uint8 or y.shape != (len(x),):
            raise DataError(
                f"{path}: x_{part} is {x.dtype} {list(x.shape)} and y_{part} {list(y.shape)}, expected uint8 [N, H, W] "
                f"and [N]: fetch the file again"
            )
    return arrays


def _images(
    arrays: Arrays,
    name: str,
    classes: Sequence[str],
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None,
    groups: GroupsArgument,
    seed: int,
    samples: int | None,
    test_samples: int | None,
    fractions: tuple[float, float, float] | None,
    columns: Mapping[str, NDArray[Any]] | None = None,
    taken: Mapping[str, IntArray] | None = None,
) -> Data:
    """An official train and test part; ids count through both, so that a subset keeps the ids of the whole.

    `taken` says which rows x already holds, where it does not hold all.
    """
    boundary = len(arrays["y_train"])
    parts = {"train": np.arange(boundary), "test": boundary + np.arange(len(arrays["y_test"]))}
    rows, x, y = {}, [], []
    for (part, ids), count in zip(parts.items(), [samples, test_samples]):
        labels = arrays[f"y_{part}"].astype(np.int64)
        read = None if taken is None else taken.get(part)
        rows[part] = _choose(labels, ids, count, seed) if read is None else read
        x.append(arrays[f"x_{part}"] if read is not None or count is None else arrays[f"x_{part}"][rows[part]])
        y.append(labels[rows[part]])
    ids = np.concatenate([parts[part][rows[part]] for part in parts])
    return Data(
        np.concatenate(x),
        np.concatenate(y),
        groups=groups,
        ids=ids,
        split=np.repeat(["train", "test"], [len(rows["train"]), len(rows["test"])]),
        fractions=fractions,
        classes=classes,
        seed=seed,
        name=name,
        normalise=normalise,
        columns={key: values[ids] for key, values in (columns or {}).items()},
    )


# -- features of photographs, and sensors ------------------------------------------------------------------------


def _bar(
    places: _Places, groups: GroupsArgument, seed: int, *, size: int | None = None, validation: float = 0.25
) -> Data:
    path, photographs = places.find("bar_efflite0_pca256.npz"), places.find("bar.zip")
    if size is not None:
        if photographs is None:
            raise places.missing("size is given, which needs the photographs, bar.zip. ")
        x, actions, files = _read_bar(photographs, size)
        normalise: Any = _IMAGENET_PIXELS
        classes = sorted(set(actions))
    elif path is not None:
        arrays = read_npz(path, ["x", "y", "classes", "path"])
        x, files, normalise = arrays["x"], arrays["path"].tolist(), None
        classes = [str(name) for name in arrays["classes"]]
        actions = [classes[code] for code in arrays["y"]]
    else:
        raise places.missing("" if photographs is None else "bar.zip is here: give size=64 to read its photographs. ")
    trained = np.array([file.startswith("train/") for file in files])
    return Data(
        x,
        actions,
        attributes={"aligned": np.where(trained, "yes", "no")},
        groups=groups,
        split=np.where(trained, "train", "test"),
        fractions=_cut(validation),
        classes=classes,
        seed=seed,
        name="bar",
        normalise=normalise,
        columns={"file": np.array(files)},
    )


def _read_bar(path: Path, size: int) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    members = read_zip(path, re.compile(r"[^/]+/(train|test)/[a-z _]+_\d+\.jpg"))
    files = [name.partition("/")[2] for name in members]
    x = np.stack([read_image(content, size, f"{path}, {name}") for name, content in members.items()])
    return x, [file.partition("/")[2].rpartition("_")[0] for file in files], files


def _pacs(
    places: _Places,
    groups: GroupsArgument,
    seed: int,
    *,
    leave_out: str | None = None,
    size: int | None = None,
    validation: float = 0.25,
    test: float = 0.2,
) -> Data:
    path, pictures = places.find("pacs_efflite0_pca256.npz"), places.find("pacs/pacs.parquet")
    if size is not None:
        if pictures is None:
            raise places.missing("size is given, which needs the pictures, pacs/pacs.parquet. ")
        arrays = _read_pacs(pictures, size)
    elif path is not None:
        arrays = read_npz(path, ["x", "y", "domain", "classes", "domains", "path"])
    else:
        raise places.missing("" if pictures is None else "The pictures are here: give size=64 to read them. ")
    domains = [str(name) for name in arrays["domains"]]
    split = None
    if leave_out is not None:
        if leave_out not in domains:
            raise DataError(f"pacs: {unknown_name('domain to leave out', leave_out, domains)}")
        split = np.where(arrays["domain"] == domains.index(leave_out), "test", "train")
    return Data(
        arrays["x"],
        arrays["y"].astype(np.int64),
        attributes={"domain": Column(tuple(domains), arrays["domain"].astype(np.int64))},
        groups=groups,
        split=split,
        fractions=_cut(validation, test),
        classes=[str(name) for name in arrays["classes"]],
        seed=seed,
        name="pacs",
        normalise=None if size is None else _IMAGENET_PIXELS,
        columns={"file": arrays["path"]},
    )


def _read_pacs(path: Path, size: int) -> dict[str, NDArray[Any]]:
    """The pictures at size×size pixels, in the form of the table of features."""
    table = read_table(path)
    for name in ("image", "domain", "label"):
        if name not in table.column_names:
            raise DataError(f"{path}: {unknown_name('column', name, table.column_names)}")
    rows = table.column("image").to_pylist()
    labels, domain = table.column("label").to_numpy(), np.array(table.column("domain").to_pylist())
    if labels.min() < 0 or labels.max() >= len(_PACS_CLASSES):
        raise DataError(f"{path}: holds label {labels.max()}, expected 0..{len(_PACS_CLASSES) - 1}: fetch it again")
    domains, codes = np.unique(domain, return_inverse=True)
    pixels = np.stack([read_image(row["bytes"], size, f"{path}, row {place}") for place, row in enumerate(rows)])
    files = np.array([row["path"] or str(place) for place, row in enumerate(rows)])
    return {
        "x": pixels, "y": labels, "domain": codes, "domains": domains, "path": files, "classes": np.array(_PACS_CLASSES)
    }  # fmt: skip


def _gas_drift(
    places: _Places, groups: GroupsArgument, seed: int, *, leave_out: int | None = None, validation: float = 0.25
) -> Data:
    official, reduced = places.find("gas_sensor_array_drift.zip"), places.find("gas_drift_8batches.npz")
    if official is not None:
        x, gases, batch = _read_gas(official)
    elif reduced is not None:
        arrays = read_npz(reduced, ["x", "y", "batch", "gases"])
        x, batch = arrays["x"], arrays["batch"].astype(np.int64)
        gases = arrays["gases"][arrays["y"]].tolist()
    else:
        raise places.missing()
    batches = sorted(set(batch.tolist()))
    last = batches[-1] if leave_out is None else leave_out
    if last not in batches:
        raise DataError(f"gas-drift: {unknown_name('batch to leave out', last, map(str, batches))}")
    table = {f"sensor {k // 8 + 1} feature {k % 8 + 1}": x[:, k] for k in range(x.shape[1])}
    return from_table(
        {**table, "gas": gases, "batch": batch},
        label="gas",
        attributes=["batch"],
        attributes_in_features=False,
        groups=groups,
        split=np.where(batch == last, "test", "train"),
        fractions=_cut(validation),
        seed=seed,
        name="gas-drift",
    )


def _read_gas(path: Path) -> tuple[NDArray[np.float32], list[str], IntArray]:
    """All ten batches of the official archive."""
    members = read_zip(path, re.compile(r"(.*/)?batch\d+\.dat"))
    numbered = sorted((int(re.findall(r"\d+", name)[-1]), name) for name in members)
    gases, parts, batch = [], [], []
    for number, name in numbered:
        labels, values = read_libsvm(io.BytesIO(members[name]), 128, f"{path}, {name}")
        # One edition writes the concentration behind the gas: "1;10.0".
        codes = [label.partition(";")[0] for label in labels]
        if not set(codes) <= set("123456"):
            raise DataError(f"{path}, {name}: holds gas {some(sorted(set(codes)))}, expected 1..6: fetch it again")
        gases += [_GASES[int(code) - 1] for code in codes]
        parts.append(values)
        batch += [number] * len(codes)
    return np.concatenate(parts), gases, np.array(batch, np.int64)


# -- inside ------------------------------------------------------------------------------------------------------


def _cut(validation: float, test: float = 0.0) -> tuple[float, float, float]:
    """Fractions from the share of validation in the training part and the share of test in the whole."""
    for what, share in [("validation", validation), ("test", test)]:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise DataError(f"{what} is {share!r}: expected a share from 0 to below 1")
    return (1 - test) * (1 - validation), (1 - test) * validation, float(test)


def _choose(labels: IntArray, ids: IntArray, count: int | None, seed: int) -> IntArray:
    """Rows of exactly `count` samples, each class in its share, in the order they had; all where none is given."""
    if count is None:
        return np.arange(len(labels))
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= len(labels):
        raise DataError(f"{count!r} samples are asked for: expected a whole number from 1 to {len(labels):,}")
    order = np.lexsort((uniform(seed, "samples", ids), labels))
    return np.sort(order[((np.arange(count) + 0.5) * len(labels) / count).astype(np.int64)])


def _how(name: str) -> str:
    return f"On a machine with internet: limbeck download {name}"


SETS: Mapping[str, KnownSet] = MappingProxyType(
    {
        "adult": KnownSet(_adult, "UCI Adult: income of 48,842 people; sex, race"),
        "digits": KnownSet(_digits, "scikit-learn's 1,797 digits of 8×8 pixels"),
        "acs-employment": KnownSet(
            _acs_employment,
            "US Census 2015 to 2017, Massachusetts: employment of 207,546 people; disability, sex, race, age, year",
            "acs_employment_ma.parquet (with a deployed model's predictions), or acs/2015_csv_pma.zip, "
            "acs/2016_csv_pma.zip and acs/2017_csv_pma.zip of the Census Bureau",
            _how("acs-employment"),
        ),
        "mnist": KnownSet(
            _mnist,
            "MNIST: 70,000 digits of 28×28 pixels",
            "mnist.npz (x_train, y_train, x_test, y_test), or the four official idx files in mnist/",
            _how("mnist"),
        ),
        "coloured-mnist": KnownSet(
            _coloured_mnist,
            "MNIST in colours that mostly tell the class; label × aligned",
            "mnist.npz (x_train, y_train, x_test, y_test), or the four official idx files in mnist/",
            _how("coloured-mnist"),
        ),
        "fashion-mnist": KnownSet(
            _fashion_mnist,
            "Fashion-MNIST: 70,000 articles of 28×28 pixels",
            "the four official idx files in fashion-mnist/",
            f"On Debian: apt install dataset-fashion-mnist. {_how('fashion-mnist')}",
        ),
        "cifar10": KnownSet(
            _cifar10,
            "CIFAR-10: 60,000 photographs of 32×32 pixels",
            "cifar-10-binary.tar.gz (official), or cifar10_jpeg.npz",
            _how("cifar10"),
        ),
        "cifar10n": KnownSet(
            _cifar10n,
            "CIFAR-10 with the labels that people gave it (CIFAR-10N)",
            "cifar10n/CIFAR-10_human.npy (official), or cifar_n_labels.npz (c10_clean, c10_aggre, c10_worse, "
            "c10_random1, c10_random2, c10_random3; uint8 [50000] in the official order), and CIFAR-10 as "
            "cifar-10-binary.tar.gz or cifar10_jpeg.npz",
            _how("cifar10n"),
        ),
        "bar": KnownSet(
            _bar,
            "Biased Action Recognition: 6 actions before a usual background, in test before an unusual one; aligned",
            "bar_efflite0_pca256.npz (features), or bar.zip (the photographs)",
            _how("bar"),
        ),
        "pacs": KnownSet(
            _pacs,
            "PACS: 7 classes in 4 styles; domain",
            "pacs_efflite0_pca256.npz (features: x [N, D], y, domain, classes, domains, path), or pacs/pacs.parquet "
            "(the pictures)",
            _how("pacs"),
        ),
        "gas-drift": KnownSet(
            _gas_drift,
            "UCI Gas Sensor Array Drift: 6 gases, 128 features, batches over 36 months; batch",
            "gas_sensor_array_drift.zip (official), or gas_drift_8batches.npz",
            _how("gas-drift"),
        ),
        "usps": KnownSet(
            _usps,
            "USPS: 9,298 digits of 16×16 pixels",
            "usps.npz (x_train, y_train, x_test, y_test), or usps/usps.bz2 and usps/usps.t.bz2",
            _how("usps"),
        ),
    }
)
