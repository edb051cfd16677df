"""Discovery with models, and found groups wherever declared ones go: weightings, error sets, pilots, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import limbeck as lb
from limbeck.build import build_data, table_like
from limbeck.cli import main
from limbeck.config import config_from_dict
from limbeck.data import Data
from limbeck.errors import ConfigError, DataError, TeacherError
from limbeck.groups import Discovery, Tree
from limbeck.pilots import pilot, run_pilot
from limbeck.training import Training

QUICK = Training(epochs=4, batch_size=64, learning_rate=0.02)
FOUND = {"repeats": 1, "training": QUICK}


def shortcut_data(seed: int = 0, count: int = 1_500) -> Data:
    """A weak signal, and a strong one that agrees with the class in nine of ten samples: the rest is the minority."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    aligned = rng.random(count) < 0.9
    cue = np.where(aligned, labels, 1 - labels)
    x = np.stack([rng.normal(labels * 1.0, 1), rng.normal(cue * 4.0, 0.7), rng.normal(size=count)], axis=1)
    return Data(
        x.astype(np.float32),
        np.array(["cat", "dog"])[labels],
        attributes={"aligned": np.where(aligned, "yes", "no")},
        groups=["label", "aligned"],
        feature_names=["signal", "cue", "noise"],
        ids=np.arange(count) * 7 + 3,
        seed=seed,
    )


@pytest.fixture(scope="module")
def data() -> Data:
    return shortcut_data()


def without_truth(data: Data) -> Data:
    return data.with_groups(None).replace(attributes={})


@pytest.fixture(scope="module")
def found(data: Data) -> dict[str, Discovery]:
    """One discovery a method; the groups stay declared, to be compared with, and their attribute is hidden."""
    settings: dict[str, Any] = {"tree": {"columns": ["features"], "depth": 3}, "clusters": {"dimensions": 3}}
    settings["mixture"] = {"components": 6, "slices": 2, "dimensions": 3}
    return {
        method: lb.discover_groups(data, method, **FOUND, **settings.get(method, {}))
        for method in ("errors", "tree", "clusters", "mixture", "disagreement")
    }


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


# What is found --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["errors", "tree", "clusters", "mixture"])
def test_the_planted_minority_is_found_and_worse_out_of_sample(found: dict[str, Discovery], data: Data, method: str):
    discovery = found[method]
    quality = discovery.quality
    assert quality is not None
    assert quality.worst is not None, quality
    assert quality.worst.low > 0.3
    assert quality.samples == data.sizes["validation"]
    assert quality.information is not None
    assert quality.information.share > 0.4
    # What held on validation holds on test, which chose nothing.
    seen = discovery.see(data.test)
    index = discovery.rule.assign(seen.without("probabilities") if method == "mixture" else seen)
    inside = index == discovery.names.index(quality.worst.name)
    assert seen.wrong[inside].mean() > seen.wrong[~inside].mean() + 0.2


def test_the_rule_of_the_tree_names_cue_and_class(found: dict[str, Discovery]):
    worst = found["tree"].quality.worst
    assert "cue" in worst.name
    assert "label = " in worst.name
    assert found["tree"].rule.reads == ("columns", "labels")


def test_no_group_label_and_no_test_label_is_ever_looked_at(found: dict[str, Discovery], data: Data):
    """The groups of training and validation samples stay the same, to the sample, whatever those labels say."""
    other_truth = data.replace(attributes={"aligned": np.roll(data.attributes["aligned"].codes, 5)})
    flipped = data.y.copy()
    flipped[data.split == 2] = 1 - flipped[data.split == 2]
    other_test = data.replace(y=flipped)
    for changed in (other_truth, other_test):
        again = lb.discover_groups(changed, "tree", **FOUND, columns=["features"], depth=3)
        known = data.split < 2
        assert again.names == found["tree"].names
        assert np.array_equal(again.index[known], found["tree"].index[known])
    assert lb.discover_groups(without_truth(data), "errors", **FOUND).quality.information is None


def test_a_rule_learned_in_training_does_not_look_at_validation_labels(found: dict[str, Discovery], data: Data):
    flipped = data.y.copy()
    flipped[data.split == 1] = 1 - flipped[data.split == 1]
    again = lb.discover_groups(data.replace(y=flipped), "tree", **FOUND, columns=["features"], depth=3)
    training = data.split == 0
    assert again.names == found["tree"].names
    assert np.array_equal(again.index[training], found["tree"].index[training])
    assert again.quality.worst != found["tree"].quality.worst


def test_same_seed_same_groups(data: Data):
    first = lb.discover_groups(data, "errors", seed=3, **FOUND)
    again = lb.discover_groups(data, "errors", seed=3, **FOUND)
    assert np.array_equal(first.index, again.index)
    assert first.to_dict() == again.to_dict()


def test_stability_is_over_seeds(data: Data):
    quality = lb.discover_groups(data, "tree", repeats=3, training=QUICK, columns=["features"], depth=2).quality
    assert quality.stability.runs == 3
    assert quality.stability.information > 0.5
    assert "over 3 seeds" in str(quality)


def test_where_the_model_fails_nowhere_in_particular_nothing_is_claimed():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 1_500)
    x = np.stack([rng.normal(labels * 1.5, 1), rng.normal(size=1_500)], axis=1).astype(np.float32)
    attribute = rng.choice(["a", "b", "c"], 1_500)
    even = Data(x, labels, attributes={"site": attribute}, feature_names=["signal", "noise"])
    discovery = lb.discover_groups(even, Tree(columns=("site",), label=False), **FOUND)
    assert discovery.names == ("all samples",)
    assert discovery.quality.sentence.startswith("no group found that is worse out of sample")
    with pytest.raises(DataError, match="no error set"):
        discovery.error_set(even)


def test_errors_are_learned_from_by_networks_that_did_not_see_the_sample():
    """Labels that are noise: a network knows those it saw by heart, and those it did not see by chance."""

    class Recorder:
        """A method of one's own: it keeps what it is shown, and asks the tree."""

        name, needs, from_errors = "recorder", ("probabilities", "columns", "labels"), True

        def find(self, seen: Any, classes: Any, seed: int) -> Any:
            self.wrong = float(seen.wrong.mean())
            return Tree(depth=1).find(seen, classes, seed)

    rng = np.random.default_rng(0)
    noise = Data(rng.normal(size=(240, 20)).astype(np.float32), rng.integers(0, 2, 240))
    recorder = Recorder()

    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

    found = lb.discover_groups(noise, recorder, wide, repeats=1, training=Training(epochs=60, learning_rate=0.02))
    assert recorder.wrong > 0.3
    assert found.see(noise.train).wrong.mean() < 0.05
    assert found.method == "recorder"


def test_groups_made_of_the_models_own_errors_are_judged_as_told_without_them(found: dict[str, Discovery], data: Data):
    discovery = found["mixture"]
    seen = discovery.see(data.validation)
    blind = discovery.rule.assign(seen.without("probabilities"))
    assert not np.array_equal(blind, discovery.rule.assign(seen))
    assert [part.n for part in discovery.quality.slices] == np.bincount(blind, minlength=len(discovery.names)).tolist()
    assert "judged as told without its prediction" in str(discovery)


# Finished models ------------------------------------------------------------------------------------------------------


def test_a_finished_models_errors_are_looked_at_on_one_half_of_validation_and_judged_on_the_other(data: Data):
    model = lb.fit(student, data, epochs=3, selection="last", learning_rate=0.02)
    before = [parameter.clone() for parameter in model.model.parameters()]
    discovery = lb.discover_groups(data, "tree", model, columns=["features"], repeats=1)
    assert "one half of the validation samples" in discovery.consumes
    assert discovery.quality.samples == data.sizes["validation"] // 2
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.parameters(), strict=True))
    wrong = lb.predict_logits(model, data.validation).argmax(1) != data.validation.y
    assert discovery.quality.average == pytest.approx(1 - wrong.mean(), abs=0.05)
    assert np.array_equal(discovery.see(data.validation).wrong, wrong)


def test_a_table_of_probabilities_is_enough_for_a_tree_but_shows_no_embeddings(data: Data):
    said = np.where(data.attributes["aligned"].codes == 1, data.y, 1 - data.y)
    table = {"id": data.ids, "cat": 1.0 - said, "dog": said.astype(float)}
    discovery = lb.discover_groups(data, "tree", table, columns=["features"], leaf=5, depth=2, repeats=1)
    assert discovery.quality.worst.accuracy < 0.5
    with pytest.raises(TeacherError, match="clusters looks at embeddings"):
        lb.discover_groups(data, "clusters", table, repeats=1)


def test_given_models_disagree_where_the_biased_one_follows_the_cue(data: Data):
    cue = nn.Linear(3, 2)
    signal = nn.Linear(3, 2)
    with torch.no_grad():
        for module, column, cut in ((cue, 1, 2.0), (signal, 0, 0.5)):
            module.weight.zero_()
            module.weight[1, column] = 4.0
            module.bias.copy_(torch.tensor([0.0, -4.0 * cut]))
    discovery = lb.discover_groups(data, "disagreement", signal, biased=cue, within_class=False, repeats=1)
    assert not discovery.reads_label
    logits = [lb.predict_logits(model, data.test).argmax(1) for model in (cue, signal)]
    assert np.array_equal(discovery.assign(data.test).index, (logits[0] != logits[1]).astype(int))
    # Unlabelled samples have a group too: the labels of these are made up.
    nonsense = data.test.replace(y=1 - data.test.y)
    assert np.array_equal(discovery.assign(nonsense).index, discovery.assign(data.test).index)


def test_a_function_that_builds_a_model_is_trained_and_odd_requests_are_refused(data: Data):
    found = lb.discover_groups(data, "tree", student, columns=["cue"], repeats=1, training=QUICK)
    assert found.learned_from == "training samples and their labels"
    three = nn.Linear(3, 3)
    for arguments, options, error, message in (
        (("tre",), {}, ConfigError, "did you mean 'tree'"),
        (("tree",), {"dept": 3}, ConfigError, "did you mean 'depth'"),
        (("tree",), {"folds": 1}, ConfigError, "folds must be at least 2"),
        (("tree",), {"columns": ["cu"]}, DataError, "did you mean 'cue'"),
        (("errors", three), {}, TeacherError, "3 classes apart"),
    ):
        with pytest.raises(error, match=message):
            lb.discover_groups(data, *arguments, **FOUND, **options)


# Where declared groups go ---------------------------------------------------------------------------------------------


def test_found_groups_are_joined_by_id_in_every_split(found: dict[str, Discovery], data: Data):
    discovery = found["errors"]
    on = discovery.apply(data)
    assert on.groups.names == discovery.names
    for part in (on.train, on.validation, on.test):
        rows = np.searchsorted(data.ids, part.ids)
        assert np.array_equal(part.groups.index, discovery.index[rows])
    shuffled = data.subset(np.random.default_rng(0).permutation(len(data)))
    assert np.array_equal(discovery.apply(shuffled).groups.index, discovery.index[(shuffled.ids - 3) // 7])
    on.check(groups_required=True)
    with pytest.raises(DataError, match="tell their groups by the rule"):
        discovery.apply(data.replace(ids=data.ids + 1))


def test_samples_that_were_not_there_get_a_group_by_the_rule(found: dict[str, Discovery]):
    new = shortcut_data(seed=9, count=300)
    groups = found["tree"].assign(new)
    worst = found["tree"].names.index(found["tree"].quality.worst.name)
    assert (new.attributes["aligned"].strings()[groups.index == worst] == "no").mean() > 0.6


@pytest.mark.parametrize("recipe", ["group_dro", "groupdistil"])
def test_group_weights_run_over_found_groups(found: dict[str, Discovery], data: Data, recipe: str):
    on = found["errors"].apply(data)
    teacher = nn.Linear(3, 2) if recipe == "groupdistil" else None
    # A long step, so that the weights move within a few epochs.
    options = {"recipe": recipe, "step": 0.1}
    fitted = lb.fit(student, on, teacher=teacher, recipe=options, epochs=3, learning_rate=0.02)
    weights = np.array(fitted.history[-1]["group_weights"])
    assert weights.shape == (len(on.groups.names),)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert fitted.selection == "worst_group"
    assert fitted.history[0]["validation_worst_group_name"] in found["errors"].names
    table = lb.evaluate(fitted, on.test)
    assert table.counts.group_names == found["errors"].names
    assert table.counts.totals.tolist() == on.test.groups.counts().tolist()


def test_found_groups_protect_the_hidden_minority(found: dict[str, Discovery], data: Data):
    """The point of it: no group label anywhere, and the annotated minority does better."""
    settings: dict[str, Any] = {"epochs": 8, "learning_rate": 0.02, "seed": 0}
    plain = lb.fit(student, without_truth(data), selection="average", **settings)
    on = found["errors"].apply(data)
    fitted = lb.fit(student, on, recipe="group_dro", selection="worst_group", **settings)
    worst = [lb.evaluate(model, data.test).summary["worst_group"] for model in (plain, fitted)]
    assert worst[1] > worst[0] + 0.1


def test_found_groups_make_the_error_set_of_dett(found: dict[str, Discovery], data: Data):
    discovery = found["errors"]
    wrong = [name for name in discovery.names if name.endswith("wrong")]
    mask = discovery.error_set(data, wrong)
    assert mask.shape == (data.sizes["train"],)
    assert np.array_equal(mask, np.isin(discovery.index[data.split == 0], [discovery.names.index(w) for w in wrong]))
    worse = [part.name for part in discovery.quality.worse]
    assert np.array_equal(discovery.error_set(data), discovery.error_set(data, worse))
    weighting = lb.Weighting.named("upweight", error_set=torch.from_numpy(mask), upweight=5.0)
    teacher = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    recipe = {"recipe": "dett", "weighting": weighting, "identify": None}
    fitted = lb.fit(student, data, teacher=teacher, recipe=recipe, epochs=1)
    built = fitted.recipe.weighting.factory(**fitted.recipe.weighting.options)
    assert torch.equal(built.weights, torch.where(torch.from_numpy(mask), 5.0, 1.0))
    with pytest.raises(DataError, match="unknown group"):
        discovery.error_set(data, ["wrog"])


def test_a_pilot_runs_over_found_groups(found: dict[str, Discovery], data: Data):
    on = found["tree"].apply(data)
    result = pilot(on, None, student, recipes=["group_dro"], seeds=1, training=Training(epochs=2))
    assert result.record["data"]["groups"] == list(found["tree"].names)
    assert result.record["selection"]["rule"] == "worst_group"
    assert result.record["models"][-1]["runs"][0]["test"]["worst_group_name"] in found["tree"].names


# Files and the command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A table and a configuration of it whose groups are to be found."""
    folder = tmp_path_factory.mktemp("found")
    data = shortcut_data(count=900)
    columns: dict[str, Any] = {name: data.x[:, k].astype(np.float64) for k, name in enumerate(data.feature_names)}
    columns |= {"id": data.ids, "kind": np.array(data.classes)[data.y]}
    columns["who"] = data.attributes["aligned"].strings()
    pyarrow.csv.write_csv(pyarrow.table(columns), folder / "table.csv")
    told = {
        "data": {
            "table": "table.csv",
            "label": "kind",
            "id": "id",
            "drop": ["who"],
            "groups": {
                "discover": "tree",
                "depth": 2,
                "repeats": 1,
                "epochs": 15,
                "leaf": 5,
                "model": {"name": "mlp", "hidden": [16]},
            },
        },
        "student": "linear",
        "recipes": ["group_dro", {"recipe": "kd"}],
        "teachers": {"big": {"model": {"name": "mlp", "hidden": [8]}}},
        "training": {"epochs": 2},
        "seeds": [0],
    }
    (folder / "config.json").write_text(json.dumps(told))
    return folder, told


def test_a_configuration_describes_how_groups_are_found(configured: tuple[Path, dict[str, Any]], tmp_path: Path):
    folder, told = configured
    config = config_from_dict(told, folder=folder)
    again = config_from_dict(config.to_dict())
    assert again == config
    data = build_data(config)
    assert data.groups.columns == ("found by tree",)
    assert any("cue" in name for name in data.groups.names)
    result = run_pilot(config, output=tmp_path / "run")
    assert result.record["data"]["groups"] == list(data.groups.names)
    rows = {row["key"]: row for row in result.record["models"]}
    assert {"erm", "group_dro", "kd", "teacher-big"} <= set(rows)
    assert len(rows["group_dro"]["runs"][0]["history"][0]["group_weights"]) == len(data.groups.names)
    like = table_like(config, data, folder / "table.csv")
    assert like.groups.names == data.groups.names
    order = np.argsort(like.ids) if len(set(like.ids)) == len(like.ids) else slice(None)
    test = np.flatnonzero(data.split == 2)
    assert np.array_equal(like.groups.index[order][np.argsort(np.argsort(data.ids))[test]], data.groups.index[test])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"discover": "tre"}, "did you mean 'tree'"),
        ({"depth": 2}, "data.groups.discover: missing"),
        ({"discover": "tree", "epochs": 0}, "data.groups.epochs: found 0"),
        ({"discover": "tree", "model": "mpl"}, "unknown model 'mpl'"),
        (3, "data.groups: found 3"),
    ],
)
def test_a_wrong_description_is_refused_before_anything_runs(configured: Any, groups: Any, message: str):
    folder, told = configured
    with pytest.raises(ConfigError, match=message):
        config_from_dict({**told, "data": {**told["data"], "groups": groups}}, folder=folder)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"discover": "tree", "dpth": 2}, "did you mean 'depth'"),
        ({"discover": "tree", "model": {"name": "mine.net"}}, "of a file of your own"),
    ],
)
def test_options_of_the_method_are_checked_before_training(configured: Any, groups: Any, message: str):
    folder, told = configured
    config = config_from_dict({**told, "data": {**told["data"], "groups": groups}}, folder=folder)
    with pytest.raises(ConfigError, match=message):
        build_data(config)


def test_the_command_writes_each_samples_group_and_what_it_was_told_by(configured: Any, tmp_path: Path):
    folder, told = configured
    target = tmp_path / "groups.parquet"
    result = CliRunner().invoke(main, ["discover", str(folder / "config.json"), "-o", str(target)])
    assert result.exit_code == 0, result.output
    assert "worse out of sample" in result.output
    table = pyarrow.parquet.read_table(target)
    assert table.column_names == ["id", "split", "group", "rule"]
    data = build_data(config_from_dict(told, folder=folder))
    assert table["id"].to_pylist() == data.ids.tolist()
    assert table["group"].to_pylist() == [data.groups.names[g] for g in data.groups.index]
    described = json.loads(table.schema.metadata[b"limbeck"])
    assert described["method"] == "tree"
    assert "no group label" in described["consumes"]
    assert not list(tmp_path.glob("*.part"))


def test_declared_groups_are_only_compared_with(configured: Any, tmp_path: Path):
    folder, told = configured
    section = {
        **told["data"],
        "drop": [],
        "attributes": ["who"],
        "attributes_in_features": False,
        "groups": ["label", "who"],
    }
    (folder / "declared.json").write_text(json.dumps({**told, "data": section}))
    command = ["discover", str(folder / "declared.json"), "-o", str(tmp_path / "g.parquet"), "--json"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert "--method" in refused.output
    result = CliRunner().invoke(main, [*command, "--method", "errors", "--seed", "1"])
    assert result.exit_code == 0, result.output
    told_by = json.loads(result.output)
    assert told_by["seed"] == 1
    assert told_by["quality"]["information"]["share"] > 0
    assert told_by["quality"]["stability"]["runs"] == 3
