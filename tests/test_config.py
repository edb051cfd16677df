"""The configuration: what it says, and that everything wrong with it is told in one go."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limbeck.config import (
    MatrixConfig,
    PilotConfig,
    Training,
    config_from_dict,
    example_text,
    examples,
    load_config,
    load_plan,
    plan_from_dict,
)
from limbeck.config_data import ImageData, NamedData, TableData
from limbeck.errors import ConfigError
from limbeck.models.spec import MLPSpec
from limbeck.place import Place
from limbeck.plain import dump_plain, parse_plain

GOOD = """\
name: adult
data:
  name: adult
  groups: [label, sex]
  inject: [{kind: label_noise, pattern: symmetric, rate: 0.1, seed: 0}, {kind: shortcut, aligned: 0.95}]
teachers:
  erm: {model: {name: mlp, hidden: [256, 256]}, recipe: erm}
  dro: {model: {name: mlp, hidden: [256, 256]}, recipe: group_dro, training: {epochs: 8, clip: null}}
student: {name: mlp, hidden: [16]}
recipes:
  - erm
  - group_dro
  - {recipe: kd, teacher: erm, temperature: 2.0}
  - {recipe: groupdistil, teacher: [erm, dro]}
  - {name: mine, terms: [cross_entropy, {term: refined_logits, weight: 1}], weighting: {name: group_dro, step: .02}}
training: {epochs: 10, batch_size: 256, optimiser: adamw, learning_rate: 2e-3, clip: 1}
seeds: [0, 1, 2]
selection: worst_group
output: runs/adult
"""

SMALL: dict[str, Any] = {"data": {"name": "digits"}, "student": "linear", "recipes": ["erm"]}


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SMALL), **changes}


def written(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(source: Path | dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(source) if isinstance(source, dict) else load_config(source)
    return str(caught.value)


# What is read ---------------------------------------------------------------------------------------------------------


def test_a_configuration_is_read_in_full(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD))
    assert isinstance(config.data, NamedData)
    assert config.data.groups == ("label", "sex")
    assert [(each.kind, each.options) for each in config.data.inject] == [
        ("label_noise", {"pattern": "symmetric", "rate": 0.1, "seed": 0}),
        ("shortcut", {"aligned": 0.95}),
    ]
    assert isinstance(config.student, MLPSpec)
    assert config.student.hidden == (16,)
    assert [recipe.label for recipe in config.recipes] == ["erm", "group_dro", "kd", "groupdistil", "mine"]
    assert [recipe.teachers for recipe in config.recipes] == [(), (), ("erm",), ("erm", "dro"), ()]
    assert config.recipes[2].settings == {"recipe": "kd", "temperature": 2.0}
    assert config.recipes[4].settings == {
        "name": "mine",
        "terms": ["cross_entropy", {"term": "refined_logits", "weight": 1}],
        "weighting": {"name": "group_dro", "step": 0.02},
    }
    assert config.training == Training(learning_rate=0.002, clip=1.0)
    assert config.seeds == (0, 1, 2)
    assert str(config.output_folder) == "runs/adult"


def test_a_teacher_changes_only_what_it_writes(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD))
    assert config.training_of("erm") == config.training
    assert config.training_of("dro") == Training(epochs=8, learning_rate=0.002, clip=None)
    assert config_from_dict(config.to_dict()).training_of("dro") == config.training_of("dro")


def test_plain_data_goes_there_and_back(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD))
    plain = config.to_dict()
    assert config_from_dict(plain) == config
    assert config_from_dict(json.loads(json.dumps(plain))).to_dict() == plain
    assert load_config(written(tmp_path, yaml.safe_dump(plain), "again.yaml")) == config
    assert load_config(written(tmp_path, json.dumps(plain), "again.json")) == config


@given(
    seeds=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4, unique=True),
    rate=st.floats(1e-6, 10),
    hidden=st.lists(st.integers(1, 999), min_size=1, max_size=3),
    schedule=st.sampled_from(["cosine", "constant", "step", "exponential"]),
    clip=st.none() | st.floats(0.1, 9),
)
@settings(max_examples=40, deadline=None)
def test_any_valid_configuration_survives_its_own_file(
    seeds: list[int], rate: float, hidden: list[int], schedule: str, clip: float | None
) -> None:
    training = {"learning_rate": rate, "schedule": schedule, "clip": clip}
    config = config_from_dict(changed(seeds=seeds, student={"name": "mlp", "hidden": hidden}, training=training))
    text = yaml.safe_dump(config.to_dict())
    assert config_from_dict(parse_plain(text, name="x").values) == config


def test_a_null_passed_on_is_kept() -> None:
    student = {"name": "mine.big", "norm": None, "sizes": [1, 2]}
    config = config_from_dict(changed(student=student))
    assert config.to_dict()["student"] == student
    assert config_from_dict(config.to_dict()).student.options == {"norm": None, "sizes": [1, 2]}


def test_the_shortest_configuration_has_defaults() -> None:
    config = config_from_dict(SMALL)
    assert config.training == Training()
    assert config.seeds == (0, 1, 2)
    assert config.selection is None
    assert config.output_folder == Path("runs/pilot")


def test_a_configuration_does_not_change() -> None:
    config = config_from_dict(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    written(folder, "a,b\n1,2\n", "table.csv")
    path = written(folder, "data: {table: table.csv, label: b}\nstudent: linear\nrecipes: [erm]\n")
    monkeypatch.chdir(tmp_path)
    data = load_config(Path("configs") / path.name).data
    assert isinstance(data, TableData)
    assert data.table == folder / "table.csv"


def test_checking_a_configuration_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from limbeck.config import load_config; load_config('example:adult');"
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# YAML -----------------------------------------------------------------------------------------------------------------


def test_yaml_is_read_by_its_core_schema() -> None:
    text = "a: 1e-3\nb: no\nc: 012\nd: 1.\ne: .5\nf: ~\ng:\nh: 12:30\ni: 2020-01-01\n"
    text += "j: on\nk: TRUE\nl: '1'\nm: -3\nn: 1_000"
    assert parse_plain(text, name="x").values == {
        "a": 0.001, "b": "no", "c": 12, "d": 1.0, "e": 0.5, "f": None, "g": None, "h": "12:30", "i": "2020-01-01",
        "j": "on", "k": True, "l": "1", "m": -3, "n": "1_000",
    }  # fmt: skip


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
@example({"\x85": "a\u2028b", "c\rd": ["\u2029"]})
@settings(max_examples=150, deadline=None)
def test_plain_data_written_as_yaml_or_json_is_read_as_it_was(value: Any) -> None:
    text = dump_plain({"x": value})
    assert parse_plain(text, name="x").values == {"x": value}
    try:
        text = json.dumps({"x": value}, allow_nan=False)
    except ValueError:
        return
    assert parse_plain(text, name="x", json_format=True).values == {"x": value}


def test_merge_keys_and_anchors_share_settings(tmp_path: Path) -> None:
    text = (
        "data: digits\nteachers:\n  a: &a {model: &m {name: mlp, hidden: [8]}, training: {epochs: 2}}\n"
        "  b: {<<: *a, training: {epochs: 3}}\nstudent: *m\nrecipes: [erm]\n"
    )
    config = load_config(written(tmp_path, text))
    assert config.training_of("a").epochs == 2
    assert config.training_of("b").epochs == 3
    assert config.teachers["b"].model == config.student


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)
TAIL = "student: linear\nrecipes: [erm]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "c.yaml is empty"),
        ("# nothing but a comment\n", "c.yaml is empty"),
        ("- a\n- b\n", "found a list, expected a mapping"),
        ("just a text", "found the text 'just a text', expected a mapping"),
        ("data: [1, 2", "line 1: not YAML"),
        ("data:\n\tname: x\n", "line 2: not YAML"),
        ("a: b: c\n", "line 1: not YAML"),
        ("data: *nowhere\n", "undefined alias"),
        ("a: 1\n---\nb: 2\n", "another document"),
        (
            "data: digits\nstudent: linear\nrecipes: [erm]\ndata: adult\n",
            "line 4: the key 'data' stands twice (first in line 1)",
        ),
        ("training:\n  epochs: 1\n  epochs: 2\n", "line 3: the key 'epochs' stands twice (first in line 2)"),
        (
            "data: !!python/object/apply:os.system ['touch hacked']\n",
            "line 1: the tag !!python/object/apply:os.system is refused",
        ),
        ("data: !!python/name:os.system\n", "is refused"),
        ("{<<: {data: !!python/name:os.system x}}\n", "is refused"),
        ("data: !include other.yaml\n", "the tag !include is refused"),
        ("data: !!binary aGVsbG8=\n", "is refused"),
        ("!!set {a, b}\n", "is refused"),
        (BOMB, "unfolds into more than 20000 values"),
        ("data: &a [*a]\n", "contains itself"),
        ("&a {<<: *a}\n", "contains itself"),
        ("[" * 60 + "]" * 60, "nested"),
        ("{a: " * 2000, "nested too deeply"),
        ("? [a]\n: 1\n", "a key must be a text"),
        ("<<: 3\n", "<< takes a mapping"),
        ("a: !!int x\n", "'x' is no number"),
        ("a: \x00\n", "not YAML"),
        ("a: " + "x" * 300_000, "larger than 256 KiB"),
    ],
)
def test_a_file_that_is_not_plain_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(written(tmp_path, text))
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"], "nothing was run"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"data": 1, "data": 2}', "c.json: the key 'data' stands twice"),
        ('{"data": NaN}', "NaN is no number"),
        ('{"data"\n: }', "c.json, line 2: not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON"),
        ("null", "is empty"),
    ],
)
def test_json_that_is_not_plain_data_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(written(tmp_path, text, "c.json"))


def test_a_missing_file_a_folder_and_bytes_are_refused(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.yaml")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe\n")
    assert "not a text in UTF-8 (byte 3)" in refusal(tmp_path / "b.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xef\xbb\xbfdata: digits\n" + TAIL.encode())
    assert load_config(tmp_path / "b.yaml").data.said == {"name": "digits"}


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"studnet": "linear"}, "studnet: unknown key: did you mean 'student'?"),
        ({"data": {"name": "digits", "gruops": ["label"]}}, "data.gruops: unknown key: did you mean 'groups'?"),
        ({"training": {"optimizer": "adam"}}, "training.optimizer: unknown key: did you mean 'optimiser'?"),
        ({"training": {"epochs": -3}}, "training.epochs: found -3, expected a number of at least 1"),
        ({"training": {"epochs": 0}}, "training.epochs: found 0"),
        ({"training": {"epochs": "10"}}, "training.epochs: found the text '10', expected a whole number"),
        ({"training": {"epochs": 2.0}}, "training.epochs: found 2.0, expected a whole number"),
        ({"training": {"epochs": True}}, "training.epochs: found true, expected a whole number"),
        ({"training": {"epochs": None}}, "training.epochs: found nothing, expected a whole number"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: found 0, expected a number above 0"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: found nan, expected a"),
        ({"training": {"learning_rate": True}}, "training.learning_rate: found true, expected a number"),
        ({"training": {"weight_decay": -1}}, "training.weight_decay: found -1, expected a number of at least 0"),
        ({"training": {"momentum": 1}}, "training.momentum: found 1, expected a number below 1"),
        ({"training": {"optimiser": "adma"}}, "training.optimiser: found the text 'adma': did you mean 'adam'?"),
        ({"training": {"schedule": "linear"}}, "Known: cosine, constant, step, exponential"),
        ({"training": []}, "training: found an empty list, expected a mapping"),
        ({"selection": "worst"}, "selection: found the text 'worst': did you mean 'worst_group'?"),
        ({"seeds": []}, "seeds: found an empty list, expected at least 1"),
        ({"seeds": [0, -1]}, "seeds[1]: found -1, expected a number of at least 0"),
        ({"seeds": 3}, "seeds: found 3, expected a list"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 stands twice"),
        ({"name": "a b/c"}, "name: found the text 'a b/c', expected letters"),
        ({"name": ".."}, "name: found the text '..', expected letters"),
        ({"recipes": []}, "recipes: found an empty list, expected at least 1"),
        ({"recipes": "erm"}, "recipes: found the text 'erm', expected a list"),
        ({"recipes": [3]}, "recipes[0]: found 3, expected the name of a recipe"),
        ({"recipes": [{}]}, "recipes[0]: expected 'recipe'"),
        ({"recipes": [{"recipe": 3}]}, "recipes[0].recipe: found 3, expected a text"),
        ({"recipes": [{"terms": ["cross_entropy"]}]}, "recipes[0]: a recipe of your own needs a 'name'"),
        ({"recipes": [{"name": "x", "terms": []}]}, "terms: found an empty list"),
        ({"recipes": [{"name": "x", "terms": [{"weight": 1}]}]}, "recipes[0]: terms[0]: found a mapping"),
        ({"recipes": [{"recipe": "kd", "terms": ["x"]}]}, "expected one of them"),
        ({"recipes": ["erm", "erm"]}, "recipes[1]: called 'erm' like recipes[0]"),
        ({"recipes": [{"recipe": "kd", "teacher": "big"}]}, "unknown teacher 'big': no teachers are declared"),
        ({"student": {"name": "mlp"}}, "student.hidden: missing"),
        (
            {"student": {"name": "mlp", "hidden": [3], "droput": 0.1}},
            "student.droput: unknown key: did you mean 'dropout'?",
        ),
        ({"student": "resnet21"}, "student: unknown model 'resnet21': did you mean"),
        ({"student": 3}, "student: found 3, expected the name of a model"),
        ({"teachers": {"a b": {"model": "linear"}}}, "teachers.a b: found the text 'a b', expected letters"),
        ({"teachers": {"t": {}}}, "teachers.t: a teacher has one source, model, table or onnx: found none"),
        ({"teachers": {"t": {"weights": __file__}}}, "weights need the model they belong to"),
        ({"teachers": {"t": {"model": "linear", "onnx": __file__}}}, "found model and onnx"),
        ({"teachers": {"t": {"onnx": __file__, "recipe": "erm"}}}, "there is nothing to train: remove 'recipe'"),
        ({"teachers": {"t": {"table": "no.parquet"}}}, "teachers.t.table: there is no file"),
        ({"teachers": {"t": {"model": "linear", "recipe": {"recipe": "kd", "teacher": "t"}}}}, "cannot have a teacher"),
        ({"teachers": {"t": {"model": "linear", "training": {"epoch": 1}}}}, "teachers.t.training.epoch: unknown key"),
        ({"data": {}}, "data: does not say where the data are"),
        ({"data": 3}, "data: found 3"),
        ({"data": {"name": "digits", "npz": "x.npz"}}, "the data come from one place: found npz and name"),
        ({"data": {"name": 3}}, "data.name: found 3, expected a text"),
        ({"data": {"name": "digits", "groups": [1]}}, "data.groups[0]: found 1, expected a text"),
        ({"data": {"name": "digits", "fractions": [0.6, 0.2, 0.2]}}, "data.fractions: unknown key"),
        ({"data": {"table": "no.csv", "label": "y"}}, "data.table: there is no file"),
        ({"data": {"table": "."}}, "data.label: missing"),
        ({"data": {"table": ".", "label": "y"}}, "is a folder, expected a file"),
        ({"data": {"table": 3, "label": "y"}}, "data.table: found 3, expected a path"),
        ({"data": {"table": __file__, "label": "y", "fractions": [0.6, 0.6, 0.2]}}, "add up to 1.4, expected 1"),
        ({"data": {"table": __file__, "label": "y", "fractions": [0.6, 0.4]}}, "expected three numbers"),
        ({"data": {"table": __file__, "label": "y", "fractions": [1.2, -0.4, 0.2]}}, "fractions[0]: found 1.2"),
        ({"data": {"table": __file__, "label": "y", "attributes": {"a": 3}}}, "data.attributes: found 3"),
        ({"data": {"table": __file__, "label": "y", "catgorical": []}}, "did you mean 'categorical'?"),
        ({"data": {"images": ".", "table": __file__, "file": "f"}}, "'label' is needed"),
        ({"data": {"images": ".", "label": "y"}}, "'label' names a column of a table, and there is no 'table'"),
        ({"data": {"images": ".", "size": [3]}}, "data.size: found a list, expected pixels"),
        ({"data": {"images": ".", "normalise": [0.5, 0.5]}}, "data.normalise: found a list"),
        ({"data": {"images": __file__}}, "is a file, expected a folder"),
        ({"data": {"name": "digits", "inject": [{"kind": "lable_noise"}]}}, "did you mean 'label_noise'?"),
        ({"data": {"name": "digits", "inject": [{"rate": 0.1}]}}, "data.inject[0].kind: missing"),
        ({"data": {"name": "digits", "inject": {"kind": "shortcut"}}}, "data.inject: found a mapping, expected a list"),
    ],
)
def test_a_wrong_value_is_told_by_its_path(changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(changed(**changes))


@pytest.mark.parametrize("key", ["data", "student", "recipes"])
def test_what_is_needed_may_not_be_missing(key: str) -> None:
    values = changed()
    del values[key]
    assert refusal(values) == f"configuration: {key}: missing"


def test_all_problems_are_told_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = """\
data:
  name: adult
  gropus: [label]
teachers:
  erm: {model: {name: mpl, hidden: [2]}}
  dro:
    model: {name: mlp, hidden: [256, a]}
student: {name: mlp, hidden: [16]}
recipes:
  - erm
  - {recipe: kd, teacher: er}
training:
  epochs: -1
  optimizer: adam
"""
    lines = refusal(written(tmp_path, text)).splitlines()
    assert lines[0] == "c.yaml: 6 problems"
    starts = [line.split(": ")[0].strip() + ": " + line.split(": ")[1] for line in lines[1:]]
    assert starts == [
        "line 3: data.gropus",
        "line 5: teachers.erm.model",
        "line 7: teachers.dro.model.hidden[1]",
        "line 11: recipes[1].teacher",
        "line 13: training.epochs",
        "line 14: training.optimizer",
    ]
    assert "did you mean 'erm'? Known: dro, erm" in lines[4]


def test_one_problem_is_one_line(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 10", "epochs: ten")
    assert refusal(written(tmp_path, text)) == (
        "c.yaml, line 16: training.epochs: found the text 'ten', expected a whole number"
    )


def test_a_list_of_wrong_items_is_not_called_empty_as_well() -> None:
    assert refusal(changed(seeds=["x"])) == "configuration: seeds[0]: found the text 'x', expected a whole number"


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(refusal(changed(selection="x" * 10_000))) < 300


# Examples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adult", "digits_shortcut"])
def test_an_example_is_found_without_the_repository(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(f"example:{name}")
    assert isinstance(config, PilotConfig)
    assert config.name == name
    assert [recipe.label for recipe in config.recipes] == ["erm", "group_dro", "kd", "groupdistil"]
    assert list(config.teachers) == ["erm", "group_dro"]
    assert len(config.seeds) == 3
    assert f"limbeck pilot example:{name}" in example_text(name)


def test_every_example_is_known_and_an_unknown_one_is_told() -> None:
    assert set(examples()) >= {"adult", "digits_shortcut"}
    assert "unknown example 'adlut': did you mean 'adult'" in refusal(Path("example:adlut"))
    assert "unknown example '../adult'" in refusal(Path("example:../adult"))
    assert "did you mean example:adult" in refusal(Path("adult"))


def test_image_data_may_come_without_a_table(tmp_path: Path) -> None:
    data = config_from_dict(changed(data={"images": str(tmp_path), "size": [8, 6], "mode": "L"})).data
    assert isinstance(data, ImageData)
    assert data.said == {"images": tmp_path, "size": (8, 6), "mode": "L"}


# Several data sets and students ---------------------------------------------------------------------------------------

SEVERAL = """\
name: two
datasets:
  adult: {name: adult, groups: [label, sex]}
  digits: digits
teachers:
  big: {model: {name: mlp, hidden: [64]}}
  grown: {model: {name: mlp, hidden: [32]}, data: adult, training: {clip: null}}
students:
  small: linear
  large: {name: mlp, hidden: [8]}
recipes:
  - group_dro
  - {recipe: kd, teacher: [big, grown]}
  - dett
training: {clip: 1}
"""


def refused(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_plan(written(folder, text))
    return str(caught.value)


def test_several_data_sets_and_students_are_a_pilot_each(tmp_path: Path) -> None:
    config = load_plan(written(tmp_path, SEVERAL))
    assert isinstance(config, MatrixConfig)
    found = config.pilots()
    assert [str(place) for place in found] == ["adult, small", "adult, large", "digits, small", "digits, large"]
    assert [place.path.as_posix() for place in found][1] == "adult/large"
    first, last = found[Place("adult", "small")], found[Place("digits", "large")]
    assert (first.name, str(first.output_folder)) == ("two-adult-small", "runs/two/adult/small")
    assert list(first.teachers) == ["big", "grown"]
    assert list(last.teachers) == ["big"], "the other one is not of these data"
    assert first.training_of("grown").clip is None, "a null that was written stays"
    assert [recipe.teachers for recipe in last.recipes] == [(), ("big",), ()]
    for own in found.values():
        assert config_from_dict(own.to_dict()) == own, "each is a configuration of its own"


def test_several_go_there_and_back(tmp_path: Path) -> None:
    config = load_plan(written(tmp_path, SEVERAL))
    plain = config.to_dict()
    assert list(plain)[:4] == ["name", "datasets", "teachers", "students"]
    assert plan_from_dict(json.loads(json.dumps(plain))) == config
    assert load_plan(written(tmp_path, dump_plain(plain), "again.yaml")) == config
    only = plan_from_dict({"datasets": {"a": "digits"}, "student": "linear", "recipes": ["erm"]})
    assert isinstance(only, MatrixConfig)
    assert [str(place) for place in only.pilots()] == ["a"]


def test_one_of_each_is_asked_for_where_one_is_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"several data sets or students.*runs/two/adult/small/config\.yaml"):
        load_config(written(tmp_path, SEVERAL))
    assert load_plan(written(tmp_path, GOOD)) == load_config(written(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets:\n": "data: digits\ndatasets:\n"}, "datasets: both 'data' and 'datasets' are given"),
        (
            {"students:\n  small: linear\n  large: {name: mlp, hidden: [8]}\n": ""},
            "neither 'student' nor 'students' is",
        ),
        ({"digits: digits": "digits: {name: adult, groups: [label, sex]}"}, "the same data set as 'adult'"),
        ({"large: {name: mlp, hidden: [8]}": "large: linear"}, "students.large: the same student as 'small'"),
        ({"small: linear": "small: linaer"}, "students.small: unknown model 'linaer': did you mean 'linear'"),
        ({"data: adult": "data: adlut"}, "teachers.grown.data: unknown data set 'adlut': did you mean 'adult'"),
        ({"teacher: [big, grown]": "teacher: grown"}, "none of its teachers is one of the data set 'digits'"),
        ({"teacher: [big, grown]": "teacher: bgi"}, "unknown teacher 'bgi': did you mean 'big'"),
        ({"students:": "studens:"}, "unknown key: did you mean 'students'"),
        ({"adult: {": "../up: {"}, "datasets.../up"),
        (
            {"  adult: {name: adult, groups: [label, sex]}\n  digits: digits\n": "", "datasets:": "datasets: {}"},
            "empty",
        ),
        (
            {"model: {name: mlp, hidden: [64]}": "onnx: FILE"},
            "teachers.big: is finished, so it knows one data set: say",
        ),
    ],
)
def test_what_contradicts_itself_is_told_with_its_place(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    text = SEVERAL
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    written(tmp_path, "not looked into", "FILE")
    found = refused(text, tmp_path)
    assert message in found
    assert "line " in found


def test_a_teacher_of_one_data_set_among_one_says_nothing_of_it() -> None:
    teachers = {"big": {"model": {"name": "mlp", "hidden": [4]}, "data": "digits"}}
    assert "teachers.big.data: says which of several data sets" in refusal(changed(teachers=teachers))
    with pytest.raises(ConfigError, match=r"teachers\.big\.data: says which of several data sets"):
        plan_from_dict({"data": "digits", "students": {"a": "linear"}, "recipes": ["erm"], "teachers": teachers})
