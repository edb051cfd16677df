"""From a configuration to the data it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limbeck.build import build_data, image_table, table_like
from limbeck.config import PilotConfig, config_from_dict, load_config
from limbeck.config_data import ArrayData, FileData, ImageData, TableData
from limbeck.data import Data, load
from limbeck.data.images import from_images
from limbeck.data.npz import from_npz
from limbeck.data.tables import from_table
from limbeck.errors import ConfigError, DataError


def config_of(data: Any, folder: Path | None = None) -> PilotConfig:
    return config_from_dict({"data": data, "student": "linear", "recipes": ["erm"]}, folder=folder)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """200 rows: a number with holes, a text, a group, a label."""
    rng = np.random.default_rng(0)
    age = [f"{v:.1f}" if k % 9 else "" for k, v in enumerate(rng.normal(40, 10, 200))]
    rows = zip(age, rng.choice(["red", "blue", "?"], 200), rng.choice(["a", "b"], 200), rng.choice(["no", "yes"], 200))
    path = tmp_path / "people.csv"
    path.write_text("age,colour,site,label\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


# Known sets -----------------------------------------------------------------------------------------------------------


def test_a_known_set_is_loaded_with_what_was_said() -> None:
    found = build_data(
        config_of({"name": "digits", "seed": 3, "groups": "label", "options": {"images": True, "test": 0.3}})
    )
    expected = load("digits", groups=["label"], seed=3, images=True, test=0.3)
    assert found.fingerprint() == expected.fingerprint()
    assert found.groups is not None
    assert expected.groups is not None
    assert found.groups.names == expected.groups.names
    assert found.x.shape == (1797, 1, 8, 8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "adlut"}, "unknown data set 'adlut': did you mean 'adult'"),
        ({"name": "digits", "options": {"imags": True}}, "unknown option 'imags': did you mean 'images'"),
        ({"name": "digits", "groups": ["lable"]}, "lable"),
    ],
)
def test_what_a_known_set_does_not_have_is_told(data: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        build_data(config_of(data))


# Files ----------------------------------------------------------------------------------------------------------------

SAID_BY_US = {"inject", "merge"}


@pytest.mark.parametrize(
    ("section", "readers", "renamed", "apart"),
    [
        (TableData, [from_table], {"table": "source"}, {"encoder", "name"}),
        (
            ArrayData,
            [from_npz, Data.__init__],
            {"npz": "path", "label": "y"},
            {"self", "options", "name", "x", "ids", "columns"},
        ),
        (ImageData, [from_images, Data.__init__], {"images": "folder"}, {"self", "options", "name", "x", "y", "ids"}),
    ],
)
def test_the_keys_are_those_of_the_readers(
    section: type[FileData], readers: list[Callable[..., Any]], renamed: dict[str, str], apart: set[str]
) -> None:
    keys = {renamed.get(key, key) for key in section.model_fields} - SAID_BY_US
    first = set(inspect.signature(readers[0]).parameters)
    every = {name for reader in readers for name in inspect.signature(reader).parameters}
    assert keys <= every, "a key that no reader takes"
    assert first - apart <= keys, "an argument of the reader that no key sets"


def test_a_table_is_read_as_it_says(table: Path) -> None:
    said = {
        "label": "label",
        "attributes": ["site"],
        "missing": ["?"],
        "drop": ["age"],
        "seed": 5,
        "fractions": [0.5, 0.25, 0.25],
    }
    found = build_data(config_of({"table": table.name, "groups": ["label", "site"], **said}, table.parent))
    expected = Data.from_table(
        table,
        label="label",
        attributes=["site"],
        groups=["label", "site"],
        missing=["?"],
        drop=["age"],
        seed=5,
        fractions=(0.5, 0.25, 0.25),
    )
    assert found.fingerprint() == expected.fingerprint()
    assert found.feature_names == expected.feature_names
    assert found.num_groups == 4
    assert found.sizes == {"train": 100, "validation": 50, "test": 50}


def test_another_table_is_encoded_as_the_training_rows_were(table: Path) -> None:
    config = config_of({"table": str(table), "label": "label", "groups": ["site"], "missing": ["?"]})
    data = build_data(config)
    later = table.with_name("later.csv")
    header, *rows = table.read_text().splitlines()
    later.write_text("\n".join([header, *rows[:50], "90.0,green,a,yes"]) + "\n")
    found = table_like(config, data, later)
    assert np.array_equal(found.x[:50], data.x[:50]), "not standardised anew"
    assert found.sizes == {"train": 0, "validation": 0, "test": 51}
    assert found.classes == data.classes
    colours = [k for k, name in enumerate(data.feature_names or ()) if name.startswith("colour")]
    assert not found.x[50, colours].any(), "a colour that training never saw"


def test_only_a_table_can_be_read_like_a_table(table: Path) -> None:
    config = config_of("digits")
    with pytest.raises(ConfigError, match="is a table"):
        table_like(config, build_data(config), table)


def test_arrays_are_read_with_names_or_numbers_of_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y, site = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2, np.arange(60) // 2 % 3
    np.savez(tmp_path / "a.npz", inputs=x, target=y, site=site)
    said = {"npz": "a.npz", "x": "inputs", "label": "target", "classes": ["no", "yes"]}
    numbered = build_data(config_of({**said, "groups": "site"}, tmp_path))
    named = build_data(config_of({**said, "attributes": ["site"], "groups": ["label", "site"]}, tmp_path))
    assert np.array_equal(numbered.x, x)
    assert numbered.classes == ("no", "yes")
    assert numbered.groups is not None
    assert np.array_equal(numbered.groups.index, site)
    assert named.num_groups == 6


# Images ---------------------------------------------------------------------------------------------------------------


def paint(folder: Path, names: list[str]) -> None:
    for shade, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5), shade, np.uint8)).save(path)


def test_folders_are_classes(tmp_path: Path) -> None:
    paint(tmp_path, [f"{kind}/{k}.png" for kind in ("cat", "dog") for k in range(10)])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"hidden")
    data = build_data(config_of({"images": str(tmp_path), "mode": "L", "groups": ["label"]}))
    assert data.x.shape == (20, 1, 6, 5)
    assert data.classes == ("cat", "dog")
    assert data.y.tolist() == [0] * 10 + [1] * 10
    assert sorted(data.x[:, 0, 0, 0].tolist()) == list(range(20))
    assert data.num_groups == 2


def test_folders_may_also_be_splits(tmp_path: Path) -> None:
    paint(tmp_path, [f"{part}/{kind}/{k}.png" for part in ("train", "val", "test") for kind in "ab" for k in range(3)])
    data = build_data(config_of({"images": str(tmp_path), "size": 4, "mode": "L"}))
    assert data.sizes == {"train": 6, "validation": 6, "test": 6}
    assert data.classes == ("a", "b")
    assert data.x.shape == (18, 1, 4, 4)


@pytest.mark.parametrize("names", [[], ["a.png"], ["cat/a.png", "b.png"], ["train/a.png", "test/dog/b.png"]])
def test_folders_that_say_no_class_are_refused(tmp_path: Path, names: list[str]) -> None:
    paint(tmp_path, names)
    with pytest.raises(DataError, match=r"expected images as (train/)?<class>/<image>"):
        image_table(tmp_path)


def test_a_table_says_what_is_on_the_images(tmp_path: Path) -> None:
    paint(tmp_path / "pictures", [f"{k}.png" for k in range(12)])
    rows = "".join(f"{k}.png,{'ab'[k % 2]},{'xyz'[k % 3]}\n" for k in range(12))
    (tmp_path / "t.csv").write_text("name,kind,scanner\n" + rows)
    said = {"images": "pictures", "table": "t.csv", "file": "name", "label": "kind", "groups": ["scanner"], "mode": "L"}
    data = build_data(config_of(said, tmp_path))
    assert data.y.tolist() == [0, 1] * 6
    assert data.groups is not None
    assert data.groups.index.tolist() == [0, 1, 2] * 4


# Injections -----------------------------------------------------------------------------------------------------------


def test_groups_may_be_made_over_what_an_injection_adds() -> None:
    shortcut = {"kind": "shortcut", "aligned": 0.9}
    for groups in (["aligned"], ["label", "aligned"]):
        data = build_data(config_of({"name": "digits", "groups": groups, "inject": [shortcut]}))
        assert data.groups is not None
        assert data.groups.columns == tuple(groups)
    train = data.train
    assert abs(np.mean(train.attributes["aligned"].codes) - 0.9) < 0.04
    assert abs(np.mean(data.test.attributes["aligned"].codes) - 0.1) < 0.06, "random at test"


def test_values_are_merged_before_groups_are_used() -> None:
    races = ["Amer-Indian-Eskimo", "Asian-Pac-Islander", "Black", "Other"]
    said = {"name": "adult", "groups": ["label", "race"]}
    data = build_data(config_of({**said, "merge": {"race": {"not White": races}}}))
    assert data.groups is not None
    assert set(data.groups.names) == {
        f"income {income}, race={race}" for income in ("<=50K", ">50K") for race in ("White", "not White")
    }
    with pytest.raises(DataError, match="unknown value 'Blue'"):
        build_data(config_of({**said, "merge": {"race": {"x": ["Blue"]}}}))
    with pytest.raises(ConfigError, match="expected the old values by their new name"):
        config_of({**said, "merge": {"race": ["Black"]}})


def test_injections_come_in_the_order_they_are_written_and_leave_test_labels_alone() -> None:
    plain = build_data(config_of("digits"))
    noisy = build_data(load_config("example:digits_shortcut"))
    assert [record["kind"] for record in noisy.injections] == ["label_noise", "shortcut"]
    assert np.array_equal(noisy.test.y, plain.test.y)
    assert abs(np.mean(noisy.train.y != plain.train.y) - 0.1) < 0.03
    assert noisy.x.shape[1] == plain.x.shape[1] + 10
    assert noisy.num_groups == 2


def test_an_injection_may_need_groups_of_the_file() -> None:
    said = {"name": "adult", "groups": ["label", "sex"]}
    inject = [{"kind": "subsample_group", "group": "income >50K, sex=Female", "keep": 50}]
    data = build_data(config_of({**said, "inject": inject}))
    assert data.groups is not None
    assert dict(zip(data.groups.names, data.train.groups.counts()))["income >50K, sex=Female"] == 50  # type: ignore[union-attr]


def test_groups_of_both_kinds_are_there_in_the_end(table: Path) -> None:
    inject = [{"kind": "label_noise", "rate": 0.3, "group": {"site=a": 0.0}}, {"kind": "shortcut"}]
    data = build_data(
        config_of({"table": str(table), "label": "label", "groups": ["site", "aligned"], "inject": inject})
    )
    assert data.groups is not None
    assert data.groups.columns == ("site", "aligned")
    changed = data.columns["true_label"] != data.y
    of_a = data.attributes["site"].strings() == "a"
    assert not changed[of_a].any()
    assert changed[~of_a & (data.split < 2)].any()


@pytest.mark.parametrize(
    ("injection", "expected"),
    [
        ({"kind": "label_noise", "rat": 0.1}, r"data\.inject\[0\]: unknown option 'rat': did you mean 'rate'"),
        ({"kind": "label_noise"}, r"data\.inject\[0\]: the option 'rate' is missing"),
        ({"kind": "shortcut", "data": 1}, "unknown option 'data'"),
        ({"kind": "label_noise", "rate": 1.5}, "expected a share between 0 and 1"),
        ({"kind": "coloured"}, "images"),
    ],
)
def test_an_injection_that_cannot_be_done_is_told(injection: dict[str, Any], expected: str) -> None:
    with pytest.raises((ConfigError, DataError), match=expected):
        build_data(config_of({"name": "digits", "inject": [injection]}))
