"""`limbeck init`: what it sees, what it guesses, and that what it writes runs."""

from __future__ import annotations

import itertools
import re
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from limbeck.build import build_data
from limbeck.config import PilotConfig, load_config
from limbeck.config_data import ArrayData, ImageData, TableData
from limbeck.data import Data
from limbeck.errors import DataError
from limbeck.plain import parse_plain
from limbeck.starter import Starter, _yaml, starter

ROWS = 400


def columns(**more: Any) -> dict[str, Any]:
    """A plain table: two numbers, a text, sex, and a label that depends on them."""
    rng = np.random.default_rng(1)
    found: dict[str, Any] = {
        "age": rng.integers(18, 80, ROWS),
        "height": rng.normal(170, 9, ROWS),
        "colour": rng.choice(["red", "green", "blue"], ROWS),
        "sex": rng.choice(["F", "M"], ROWS),
        "outcome": rng.choice(["no", "yes"], ROWS),
    }
    return {**found, **more}


def parquet(folder: Path, table: dict[str, Any], name: str = "people.parquet") -> Path:
    path = folder / name
    pyarrow.parquet.write_table(pa.table(table), path)
    return path


def written(folder: Path, source: Path, **options: Any) -> tuple[Starter, PilotConfig, Data]:
    """The starter, written where it belongs, checked, and its data loaded."""
    found = starter(source, folder=folder, **options)
    path = folder / "start.yaml"
    path.write_text(found.text, encoding="utf-8")
    config = load_config(path)
    data = build_data(config)
    data.check(splits=("train", "validation", "test"), groups_required=True)
    return found, config, data


def said(folder: Path, table: dict[str, Any], **options: Any) -> tuple[TableData, str]:
    found, config, _ = written(folder, parquet(folder, table), **options)
    assert isinstance(config.data, TableData)
    return config.data, found.text


# Tables ---------------------------------------------------------------------------------------------------------------


def test_a_table_becomes_a_configuration_that_runs(tmp_path: Path) -> None:
    found, config, data = written(tmp_path, parquet(tmp_path, columns()))
    assert isinstance(config.data, TableData)
    assert config.data.label == "outcome"
    assert config.data.groups == ("label", "sex")
    assert config.data.table == tmp_path / "people.parquet"
    assert "table: people.parquet" in found.text, "relative to the configuration"
    assert [recipe.label for recipe in config.recipes] == ["erm", "group_dro", "kd", "groupdistil"]
    assert data.num_groups == 4
    smallest = int(data.groups.counts().min())  # type: ignore[union-attr]
    assert found.seen[0] == f"people.parquet: {ROWS} rows, 5 columns"
    assert f"groups: label × sex, the smallest of 4 has {smallest} rows" in found.seen
    counts = np.bincount(data.y)
    assert any(f"no {counts[0]}" in line and f"yes {counts[1]}" in line for line in found.seen)


def test_every_guess_has_a_comment_above_it(tmp_path: Path) -> None:
    text = starter(parquet(tmp_path, columns(id=range(ROWS))), folder=tmp_path).text
    lines = text.split("data:\n")[1].split("\n\n")[0].splitlines()
    for before, line in itertools.pairwise(lines):
        if not line.strip().startswith("#"):
            assert before.strip().startswith("#"), line


def test_a_csv_file_is_read_as_well(tmp_path: Path) -> None:
    table = columns()
    rows = zip(*table.values(), strict=True)
    path = tmp_path / "a b.csv"
    path.write_text(",".join(table) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    _, config, _ = written(tmp_path, path)
    assert config.name == "a-b"
    assert config.data.groups == ("label", "sex")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (columns(label=[0, 1] * (ROWS // 2)), "label"),
        (columns(target_x=[0, 1] * (ROWS // 2), outcome=[f"{k}" for k in range(ROWS)]), "target_x"),
        ({"sex": ["F", "M"] * 200, "x": np.arange(ROWS) / 7, "kind": ["a", "b", "c", "d"] * 100}, "kind"),
        ({"sex": ["F", "M"] * 200, "is_late": [0, 1, 1, 0] * 100, "x": np.arange(ROWS) / 7}, "is_late"),
        ({"sex": ["F", "M"] * 200, "pass": [0, 1, 1, 0] * 100, "x": np.arange(ROWS) / 7}, "pass"),
    ],
)
def test_the_label_is_guessed(tmp_path: Path, table: dict[str, Any], expected: str) -> None:
    assert said(tmp_path, table)[0].label == expected


def test_the_label_may_be_named(tmp_path: Path) -> None:
    data, text = said(tmp_path, columns(), label="colour")
    assert data.label == "colour"
    assert "Named on the command line" in text


@pytest.mark.parametrize(
    ("table", "label", "expected"),
    [
        (columns(), "outcom", "unknown column 'outcom': did you mean 'outcome'"),
        (columns(), "height", "400 different values: a label has 2 to 100"),
        (columns(one=["x"] * ROWS), "one", "has 1 value"),
        (columns(hole=["a", None, "b", None] * (ROWS // 4)), "hole", "missing in 200 of 400 rows"),
        ({"a": np.arange(ROWS) / 3, "b": np.arange(ROWS) / 7}, None, "no column looks like a label"),
    ],
)
def test_a_label_that_is_none_is_told(tmp_path: Path, table: dict[str, Any], label: str | None, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        starter(parquet(tmp_path, table), label=label)


def test_ids_and_splits_are_found(tmp_path: Path) -> None:
    split = (["train"] * 5 + ["val"] * 2 + ["test"]) * (ROWS // 8)
    data, text = said(tmp_path, columns(row_id=np.arange(ROWS)[::-1].copy(), split=split))
    assert (data.id, data.split) == ("row_id", "split")
    assert "fractions" not in text


@pytest.mark.parametrize("values", [("left", "right"), ("train", "holdout"), ("train", "train")])
def test_a_column_that_only_sounds_like_a_split_is_none(tmp_path: Path, values: tuple[str, str]) -> None:
    data, _ = said(tmp_path, columns(split=list(values) * (ROWS // 2)))
    assert data.split is None


def test_what_cannot_or_should_not_be_a_feature_is_dropped_and_the_reason_given(tmp_path: Path) -> None:
    table = columns(
        patient_id=[f"p{k // 4}" for k in range(ROWS)],
        uuid=[f"{k:08x}" for k in range(ROWS)],
        visited=[date(2020, 1, 1)] * ROWS,
        nothing=pa.nulls(ROWS),
        constant=["same"] * ROWS,
        remark=[f"remark {k}" for k in range(ROWS)],
        predicted_outcome=np.linspace(0, 1, ROWS),
    )
    table["outcome_code"] = (table["outcome"] == "yes").astype(int)
    data, text = said(tmp_path, table)
    dropped = {"patient_id", "uuid", "visited", "nothing", "constant", "remark", "predicted_outcome", "outcome_code"}
    assert set(data.drop) == dropped
    for name, reason in (
        ("patient_id", "100 values over 400 rows"),
        ("uuid", "a value of its own in every row"),
        ("visited", "of type date32"),
        ("nothing", "empty"),
        ("constant", "the same in every row"),
        ("remark", "400 different texts"),
        ("predicted_outcome", "the output of another model"),
        ("outcome_code", "goes one to one with the label"),
    ):
        assert re.search(rf"# {name}: .*{reason}", text), name


def test_a_site_id_makes_groups_and_a_mass_index_is_a_feature(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    table = columns(site_id=rng.integers(0, 3, ROWS), body_mass_index=rng.normal(25, 4, ROWS).round(1))
    del table["sex"]
    data, _ = said(tmp_path, table)
    assert data.groups == ("label", "site_id")
    assert data.drop == ()


def test_signs_for_missing_values_are_found_and_counted(tmp_path: Path) -> None:
    colour = ["?", "red", "green", "n/a"] * (ROWS // 4)
    weight = ["-", "71.5", "80", "65"] * (ROWS // 4)
    found, config, data = written(tmp_path, parquet(tmp_path, columns(colour=colour, weight=weight)))
    assert isinstance(config.data, TableData)
    assert set(config.data.missing) == {"?", "n/a", "-"}
    assert "missing values: colour 200, weight 100" in found.seen
    assert "weight" in (data.feature_names or ()), "what is left is numbers"


def test_groups_too_small_to_judge_are_not_guessed(tmp_path: Path) -> None:
    sex = ["F"] * 10 + ["M"] * (ROWS - 10)
    colour = ["red", "green", "green", "red"] * (ROWS // 4)
    data, _ = said(tmp_path, columns(sex=sex, colour=colour))
    assert data.groups == ("label", "colour")
    assert "sex" in data.attributes, "offered all the same"
    data, _ = said(tmp_path, columns(sex=sex, colour=[f"c{k % 40}" for k in range(ROWS)]))
    assert data.groups == ("label",)


def test_codes_are_pointed_out(tmp_path: Path) -> None:
    _, text = said(tmp_path, columns(marital=np.arange(ROWS) % 5))
    assert "# categorical: [marital]" in text


NAMES = st.text(
    st.characters(exclude_categories=("Cs",)) | st.sampled_from("\"\\\n\t :#,[]{}'&*-?~0\u2028"), min_size=1
)


@given(NAMES)
@settings(max_examples=300, deadline=None)
def test_any_name_is_written_so_that_it_is_read_back(name: str) -> None:
    assert parse_plain(f"x: [{_yaml(name)}]\ny: {_yaml(name)}\n", name="x").values == {"x": [name], "y": name}


@pytest.mark.parametrize(
    "name",
    ["yes", "null", "1e5", "12", "a: b", "#x", "- a", "é", "a,b", "[x]", "~", " a", "*x", "<<", "\x1b[31m\n\x00"],
)
def test_awkward_column_names_survive(tmp_path: Path, name: str) -> None:
    table = columns(**{name: np.random.default_rng(0).choice(["p", "q"], ROWS)})
    table["sex"] = ["same"] * ROWS
    found, config, _ = written(tmp_path, parquet(tmp_path, table), label="outcome")
    assert isinstance(config.data, TableData)
    assert name in config.data.attributes
    assert all(line.isprintable() for line in found.seen), "a name in the data cannot write to the terminal"


def test_a_configuration_elsewhere_still_finds_its_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "configs").mkdir()
    source = parquet(tmp_path / "data", columns())
    found, config, _ = written(tmp_path / "configs", source)
    assert "table: ../data/people.parquet" in found.text
    assert isinstance(config.data, TableData)
    assert config.data.table.resolve() == source


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "label", "groups", "dropped"),
    [
        ("adult.csv.gz", "income", ("label", "sex"), ()),
        ("acs_employment_ma.parquet", "employed", ("label", "SEX"), ("prediction", "predicted_probability")),
    ],
)
def test_real_tables(
    limbeck_data: Path, tmp_path: Path, name: str, label: str, groups: tuple[str, ...], dropped: tuple[str, ...]
) -> None:
    found = starter(limbeck_data / name, folder=tmp_path)
    (tmp_path / "c.yaml").write_text(found.text)
    data = load_config(tmp_path / "c.yaml").data
    assert isinstance(data, TableData)
    assert (data.label, data.groups, data.drop) == (label, groups, dropped)


# Arrays ---------------------------------------------------------------------------------------------------------------


def arrays(folder: Path, **found: Any) -> Path:
    path = folder / "arrays.npz"
    np.savez(path, **found)
    return path


def test_arrays_become_a_configuration_that_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = arrays(
        tmp_path,
        features=rng.normal(size=(600, 5)).astype(np.float32),
        target=np.arange(600) % 3,
        site=np.arange(600) // 3 % 2,
        names=np.array(["a", "b", "c"]),
        path=np.array([f"{k}.png" for k in range(600)]),
    )
    found, config, data = written(tmp_path, path)
    assert isinstance(config.data, ArrayData)
    assert (config.data.x, config.data.label, config.data.groups) == ("features", "target", ("label", "site"))
    assert data.classes == ("a", "b", "c")
    assert any("a 200 (33%)" in line for line in found.seen)


def test_images_in_arrays_get_convolutions(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 1, 8, 8), dtype=np.uint8)
    _, config, _ = written(tmp_path, arrays(tmp_path, x=pixels, y=np.arange(90) % 3))
    assert config.student.name == "cnn"


def test_a_split_of_two_numbers_is_not_trusted(tmp_path: Path) -> None:
    found, config, _ = written(
        tmp_path, arrays(tmp_path, x=np.zeros((90, 2)), y=np.arange(90) % 3, split=np.arange(90) // 60)
    )
    assert isinstance(config.data, ArrayData)
    assert config.data.split is None
    assert "It would be read as 0 train, 1 validation, 2 test" in found.text.replace("\n  # ", " ")
    parts = np.array(["train", "val", "test"])[np.arange(90) // 3 % 3]
    _, config, data = written(tmp_path, arrays(tmp_path, x=np.zeros((90, 2)), y=np.arange(90) % 3, split=parts))
    assert data.sizes == {"train": 30, "validation": 30, "test": 30}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"x_train": np.zeros((3, 2)), "x_test": np.zeros((3, 2))}, "join them to one array x and one array y"),
        ({"y": np.arange(3)}, "no array looks like inputs"),
        ({"x": np.zeros((3, 2))}, "no array looks like labels"),
        ({"x": np.zeros((3, 2)), "y": np.array([1, "a", None], dtype=object)}, "Python objects"),
    ],
)
def test_arrays_that_cannot_be_used_are_told(tmp_path: Path, found: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        starter(arrays(tmp_path, **found))


# Images ---------------------------------------------------------------------------------------------------------------


def paint(path: Path, shade: int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade).save(path)


def test_a_folder_of_folders_becomes_a_configuration_that_runs(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        for k in range(40):
            paint(tmp_path / "pets" / kind / f"{k}.png", k, "L")
    found, config, data = written(tmp_path, tmp_path / "pets")
    assert isinstance(config.data, ImageData)
    assert (config.data.size, config.data.mode, config.data.groups) == (8, "L", ("label",))
    assert data.x.shape == (80, 1, 8, 8)
    assert "label (folder): 2 classes, cat 40 (50%), dog 40 (50%)" in found.seen


def test_a_folder_with_a_table_becomes_a_configuration_that_runs(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    for k in range(240):
        paint(folder / "png" / f"{k}.png", k, size=(100, 90))
    rows = "".join(f"png/{k}.png,{'ab'[k % 2]},{'xy'[k // 2 % 2]}\n" for k in range(240))
    (folder / "about.csv").write_text("file,finding,scanner\n" + rows)
    _, config, data = written(tmp_path, folder, label="finding")
    assert isinstance(config.data, ImageData)
    assert (config.data.file, config.data.groups, config.data.size) == ("file", ("label", "scanner"), 64)
    assert data.x.shape == (240, 3, 64, 64)


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no image"):
        starter(tmp_path)
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2,y\n")
    with pytest.raises(DataError, match="no column names image files"):
        starter(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.png").write_bytes(b"no image")
    (tmp_path / "t.csv").unlink()
    with pytest.raises(DataError, match="cannot be read as an image"):
        starter(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"), [("none.csv", "no file or folder"), ("x.txt", "cannot tell what kind of table")]
)
def test_a_source_of_no_kind_is_told(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(DataError, match=expected):
        starter(tmp_path / name)
