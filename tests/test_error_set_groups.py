"""The error set of DeTT and JTT as the members of groups, declared or found, by name: no identification is trained."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

import limbeck as lb
from limbeck.audits.trial import run_trial
from limbeck.build import build_data
from limbeck.cli import main
from limbeck.config import config_from_dict
from limbeck.data import Data
from limbeck.errors import RecipeError
from limbeck.fitting import named_error_set
from limbeck.integrations.preparation import prepare
from limbeck.ledgers.text import because
from limbeck.pilots import estimate, plan, run_pilot
from limbeck.presets import as_recipe
from limbeck.recipe import Identify, Recipe

MINORITY = ["label=cat, side=right", "label=dog, side=left"]
WRITTEN = {"recipe": "jtt", "upweight": 5.0, "identify": {"groups": MINORITY}}


def pets(count: int = 400, seed: int = 0) -> Data:
    """Four groups, one of ten samples in the two smaller ones."""
    rng = np.random.default_rng(seed)
    labels, aligned = rng.integers(0, 2, count), rng.random(count) < 0.9
    side = np.where(aligned, labels, 1 - labels)
    x = np.stack([rng.normal(labels, 1), rng.normal(3.0 * side, 1)], axis=1).astype(np.float32)
    return Data(
        x,
        np.array(["cat", "dog"])[labels],
        attributes={"side": np.array(["left", "right"])[side]},
        groups=["label", "side"],
        ids=np.arange(count) * 3 + 1,
        seed=seed,
    )


@pytest.fixture(scope="module")
def data() -> Data:
    return pets()


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))


def inside(data: Data, names: list[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """By the strings of the attributes, not by the numbers of the groups."""
    train = data.train
    told = [f"label={data.classes[y]}, side={s}" for y, s in zip(train.y, train.attributes["side"].strings())]
    return np.isin(told, names)


# What is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [{"groups": ["a", "b"]}, {"groups": ("a", "b"), "source": "groups"}, {"groups": ["a", "b"], "epochs": 1}],
)
def test_names_alone_say_that_nothing_is_trained(written: dict[str, Any]) -> None:
    found = Identify(**written)
    assert found == Identify(groups=("a", "b"))
    assert not found.trains
    assert found.to_dict() == {"groups": ["a", "b"]}
    recipe = as_recipe({"recipe": "dett", "identify": written})
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_what_was_written_before_reads_as_before() -> None:
    assert Identify(3, "online").to_dict() == {"epochs": 3, "source": "online"}
    assert as_recipe("jtt").to_dict()["identify"] == {"epochs": 1, "source": "eval"}
    assert Identify().trains


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"source": "groups"}, "none is named"),
        ({"source": "online", "groups": ["a"]}, "leave source out"),
        ({"epochs": 4, "groups": ["a"]}, "leave epochs out"),
        ({"source": "group"}, "did you mean 'groups'"),
        ({"group": ["a"]}, "did you mean 'groups'"),
    ],
)
def test_what_contradicts_itself_is_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        as_recipe({"recipe": "jtt", "identify": written})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["label=2: wrong"], [1]),
        (["label=*: wrong"], [1, 3]),
        (["*: wrong", "label=2: wrong"], [1, 3]),
        (["*"], [0, 1, 2, 3, 4]),
        (["age (40, 60] | x.y*"], [4]),
        ("label=3: right", [2]),
    ],
)
def test_a_star_is_any_text_and_everything_else_itself(wanted: Any, expected: list[int]) -> None:
    names = ["label=2: right", "label=2: wrong", "label=3: right", "label=3: wrong", "age (40, 60] | x.y > 3"]
    assert Identify(groups=wanted).members(names) == expected


@pytest.mark.parametrize("wanted", ["label=2: wrng", "label=2: wrong ", "abel=2: wrong", "label.2: wrong"])
def test_an_unknown_group_is_refused_with_the_nearest_name(wanted: str) -> None:
    with pytest.raises(RecipeError, match="did you mean 'label=2: wrong'"):
        Identify(groups=[wanted]).members(["label=2: right", "label=2: wrong"])


# Before training ------------------------------------------------------------------------------------------------------


def never() -> nn.Module:
    raise AssertionError("a student was built before the error set was checked")


@pytest.mark.parametrize(
    ("groups", "declared", "message"),
    [
        (
            ["label=cat, side=rigt"],
            True,
            "recipe 'jtt': identify: unknown group .* did you mean 'label=cat, side=right'",
        ),
        (["label=cat, side=right"], False, "there are none: declare them"),
        (["*"], True, "all of the .* training samples"),
        (["label=dog, side=up"], True, "none of the .* training samples .* name others"),
    ],
)
def test_names_are_checked_before_anything_is_trained(
    data: Data, groups: list[str], declared: bool, message: str
) -> None:
    with pytest.warns(UserWarning, match="has no training sample"):
        with_empty = data.with_groups(
            lb.groups.Groups.from_index(data.groups.index, [*data.groups.names, "label=dog, side=up"])
        )
    given = with_empty if declared else data.with_groups(None)
    recipe = {"recipe": "jtt", "identify": {"groups": groups}}
    with pytest.raises(RecipeError, match=message):
        lb.fit(never, given, recipe=recipe, epochs=1)
    with pytest.raises(RecipeError, match=message):
        lb.fit_probes(student, given, recipes=[recipe], epochs=1, seeds=[0])


def test_samples_of_unknown_group_are_not_in_the_set(data: Data) -> None:
    index = data.groups.index.copy()
    index[::5] = -1
    some = data.with_groups(lb.groups.Groups.from_index(index, data.groups.names))
    found = named_error_set(as_recipe(WRITTEN), some.train)
    numbers = [data.groups.names.index(name) for name in MINORITY]
    assert found.numpy().tolist() == np.isin(some.train.groups.index, numbers).tolist()
    assert lb.fit(student, some, recipe=WRITTEN, epochs=1).details["error_set"]["size"] == int(found.sum())


# In training ----------------------------------------------------------------------------------------------------------


def test_the_members_weigh_more_and_nothing_is_identified(data: Data) -> None:
    mask = inside(data, MINORITY)
    fitted = lb.fit(student, data, recipe=WRITTEN, epochs=3)
    assert fitted.earlier == {}
    assert fitted.details["error_set"]["size"] == mask.sum()
    assert {name for name, count in fitted.details["error_set"]["by_group"].items() if count} == set(MINORITY)
    # The same mask given to the weighting itself: the same steps, to the byte.
    weighting = {"name": "upweight", "upweight": 5.0, "reduction": "duplicates", "error_set": torch.from_numpy(mask)}
    given = lb.fit(student, data, recipe={"recipe": "erm", "weighting": weighting}, epochs=3)
    for one, other in zip(fitted.model.parameters(), given.model.parameters(), strict=True):
        assert torch.equal(one, other)
    plain = lb.fit(student, data, recipe="erm", epochs=3)
    assert any(not torch.equal(a, b) for a, b in zip(fitted.model.parameters(), plain.model.parameters(), strict=True))


def test_probes_and_other_loops_have_the_same_error_set(data: Data) -> None:
    fitted = lb.fit(student, data, recipe=WRITTEN, epochs=3, seed=4)
    (probe,) = lb.fit_probes(student, data, recipes=[WRITTEN], epochs=3, seeds=[4])
    assert probe.earlier == {}
    assert probe.details == fitted.details
    for one, other in zip(probe.model.parameters(), fitted.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    prepared = prepare(student, data, recipe=WRITTEN, epochs=3)
    weights = prepared.objective.weighting.weights
    assert (weights > 1).tolist() == inside(data, MINORITY).tolist()


def test_the_ledger_says_why_a_weight_is_up(data: Data) -> None:
    fitted = lb.fit(student, data, recipe=WRITTEN, epochs=2)
    ledger = lb.Ledger.of(fitted, data)
    mask = inside(data, MINORITY)
    expected = np.where(mask, 6.0, 1.0) / np.where(mask, 6.0, 1.0).mean()
    np.testing.assert_allclose(ledger.samples["weight_mean"].to_numpy(), expected, rtol=1e-3)
    ids = data.train.ids
    heard, other = ledger.why(int(ids[mask][0])), ledger.why(int(ids[~mask][0]))
    assert heard["weight_rule"] == "error set: its group is one that the recipe names"
    assert other["weight_rule"] is None
    assert f"group          {heard['group']}\n" in because(heard)
    assert because(heard).splitlines()[-1] == f"  why so heard   {heard['weight_rule']}"
    assert "why so heard" not in because(other)


def test_the_ledger_says_so_of_an_identified_error_set_too(data: Data) -> None:
    fitted = lb.fit(student, data, recipe={"recipe": "jtt", "identify_epochs": 2}, epochs=2)
    wrong = lb.predict_logits(fitted.earlier["identify"], data.train).argmax(1) != data.train.y
    ledger = lb.Ledger.of(fitted, data)
    told = [ledger.why(int(number))["weight_rule"] is not None for number in data.train.ids]
    assert told == wrong.tolist()
    assert 0 < sum(told) < len(told)
    assert "a plain student got it wrong after 2 epochs" in ledger.why(int(data.train.ids[wrong][0]))["weight_rule"]


# Around training ------------------------------------------------------------------------------------------------------


def configured(folder: Path, groups: list[str], **more: Any) -> Any:
    data = pets()
    np.savez(
        folder / "pets.npz",
        x=data.x,
        y=np.array(data.classes)[data.y],
        side=data.attributes["side"].strings(),
        split=np.array(["train", "validation", "test"])[data.split],
    )
    told: dict[str, Any] = {
        "data": {"npz": "pets.npz", "attributes": ["side"], "groups": ["label", "side"]},
        "student": "linear",
        "recipes": [{"recipe": "jtt", "upweight": 5.0, "identify": {"groups": groups}}],
        "training": {"epochs": 2},
        "seeds": [0],
    }
    return config_from_dict(told | more, folder=folder)


def test_a_pilot_takes_names_from_a_configuration(tmp_path: Path) -> None:
    config = configured(tmp_path, ["label=cat, side=right", "label=dog, side=l*"])
    assert config_from_dict(config.to_dict()) == config
    result = run_pilot(config, output=tmp_path / "run")
    (run,) = next(row for row in result.record["models"] if row["key"] == "jtt")["runs"]
    assert {name for name, count in run["details"]["error_set"]["by_group"].items() if count} == set(MINORITY)
    ledger = lb.Ledger.read(tmp_path / "run", "jtt-seed0").to_pandas()
    raised = set(ledger.group[ledger.weight_mean > 1])
    assert raised == set(MINORITY)


@pytest.mark.parametrize("name", ["label=cat, side=rigth", "*"])
def test_a_pilot_refuses_before_its_first_cell(tmp_path: Path, name: str) -> None:
    config = configured(tmp_path, [name], teachers={"big": {"model": {"name": "mlp", "hidden": [8]}}})
    message = "did you mean 'label=cat, side=right'" if name != "*" else "all of the"
    with pytest.raises(RecipeError, match=message):
        run_pilot(config, output=tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    with pytest.raises(RecipeError, match=message):
        estimate(*plan(config), seeds=1)


def test_the_forecast_counts_no_identification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    from limbeck import fitting

    trained = fitting.train_stage
    monkeypatch.setattr(fitting, "train_stage", lambda stage: (stages.append(stage.name), trained(stage))[1])
    assert estimate(*plan(configured(tmp_path, MINORITY)), seeds=1).seconds > 0
    assert set(stages) == {"student"}
    stages.clear()
    estimate(*plan(configured(tmp_path, MINORITY, recipes=["jtt"])), seeds=1)
    assert "identify" in stages


def test_an_audit_tries_it_where_every_fold_can_have_an_error_set(data: Data) -> None:
    few = np.flatnonzero(np.isin(data.groups.index, [data.groups.names.index(name) for name in MINORITY]))
    scarce = data.subset(np.setdiff1d(np.arange(len(data)), few[3:]))
    for given, tried in ((data, True), (scarce, False)):
        trial = run_trial(given, given.x, given.groups, [as_recipe("erm"), as_recipe(WRITTEN)])
        assert (trial.of("jtt") is not None) == tried
        assert ("jtt" in trial.left_out) != tried
    assert "too few samples for every fold" in trial.left_out["jtt"]


# From what was found to DeTT, on the command line ---------------------------------------------------------------------


def test_from_discovery_to_dett_on_coloured_mnist(tmp_path: Path, limbeck_data: Path) -> None:
    """The path of docs/discovery.md: find groups, make those that are worse DeTT's error set, and see who weighs more.

    The colour that fails is nowhere told: the groups are what a network got wrong.
    """
    file = tmp_path / "colours.yaml"
    told: dict[str, Any] = {
        "data": {
            "name": "coloured-mnist",
            "options": {"aligned": 0.95, "samples": 5000, "test_samples": 2000, "validation": 0.4},
            "groups": {"discover": "errors", "repeats": 1},
        },
        "teachers": {"big": {"model": {"name": "mlp", "hidden": [64]}}},
        "student": {"name": "mlp", "hidden": [32]},
        "recipes": ["simkd"],
        "training": {"epochs": 3, "batch_size": 64, "learning_rate": 0.003},
        "seeds": [0],
    }

    def limbeck(*arguments: str) -> str:
        done = CliRunner().invoke(main, list(arguments), env={"LIMBECK_DATA": str(limbeck_data)})
        assert done.exit_code == 0, done.output
        return done.output

    file.write_text(yaml.safe_dump(told))
    said = limbeck("discover", str(file), "-o", str(tmp_path / "groups.parquet"))
    (printed,) = re.findall(r"error set of DeTT or JTT: (identify: .*)", said)
    # What was printed is what a configuration takes.
    told["recipes"] = ["simkd", {"recipe": "dett"} | yaml.safe_load(printed)]
    file.write_text(yaml.safe_dump(told, allow_unicode=True))
    limbeck("pilot", str(file), "--output", str(tmp_path / "run"))

    groups = pq.read_table(tmp_path / "groups.parquet").to_pandas().set_index("id").group
    named = yaml.safe_load(printed)["identify"]["groups"]
    assert named
    assert all(name.endswith(": wrong") for name in named)
    ledger = lb.Ledger.read(tmp_path / "run", "dett-seed0").to_pandas().set_index("id")
    raised = ledger.weight_mean > 1
    assert raised.any()
    assert (raised == groups.loc[ledger.index].isin(named)).all()
    assert np.allclose(ledger.weight_mean[raised], 20, rtol=1e-3)
    one = str(ledger.index[raised][0])
    assert "one that the recipe names" in limbeck("ledger", "why", f"{tmp_path / 'run'}:dett-seed0", one)
    # The annotation, which nobody looked at: digits of another colour are one in twenty, and more in the set.
    data = build_data(config_from_dict(told, folder=tmp_path))
    other = data.attributes["aligned"].strings() != data.attributes["aligned"].values[-1]
    rows = np.searchsorted(data.ids, ledger.index)
    assert other[rows].mean() < 0.1
    assert other[rows][raised].mean() > 3 * other[rows].mean()
