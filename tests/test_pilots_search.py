"""Settings chosen on validation, with the same budget for every recipe."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torch import nn

import limbeck as lb
from limbeck.arbitration.judge import CrossFit, as_judge
from limbeck.data import inject
from limbeck.errors import ConfigError
from limbeck.pilots import Range, Search, estimate, plan, run_pilot
from limbeck.pilots.arms import Arm, searchable
from limbeck.pilots.search import Variant, planned, run_search
from limbeck.presets import as_recipe
from limbeck.probes.run import run_probes
from limbeck.recipe import Arbitrate
from limbeck.training import Training, batch_bounds
from test_pilots import CONFIG, changed, content

SPACE = {"learning_rate": [0.0001, 0.01], "temperature": [1.0, 4.0]}


def arm(recipe: str) -> Arm:
    return searchable(Arm(recipe, recipe, "student", nn.Linear(2, 2), as_recipe(recipe), Training()), recipe)


def told(scores: dict[str, float]) -> Any:
    """A runner that scores settings by their learning rate."""

    def run(variants: Any) -> list[dict[str, Any]]:
        seen.extend(variants)
        return [
            {"validation": {"average": scores[str(variant.settings["learning_rate"])]}, "seconds": 2.0}
            for variant in variants
        ]

    seen: list[Variant] = []
    run.seen = seen  # type: ignore[attr-defined]
    return run


def test_the_best_on_validation_is_chosen_and_the_first_of_equals() -> None:
    search = Search({"learning_rate": (0.1, 0.2, 0.3, 0.4), "temperature": (2.0, 3.0)})
    run = told({"0.1": 0.5, "0.2": 0.7, "0.3": 0.7, "0.4": 0.1})
    course, warnings = run_search(search, [arm("kd"), arm("erm")], "average", run)
    chosen = {variant.base: variant.settings for variant in course.chosen()}
    assert chosen == {"kd": {"learning_rate": 0.2, "temperature": 2.0}, "erm": {"learning_rate": 0.2}}
    assert len(course.trials["kd"]) == 8
    assert warnings == ["search: erm tried 4 settings, others up to 8: it has no more in this space"]
    record = course.to_dict(search, "average", 0)
    assert record["seconds"] == 24.0
    json.dumps(record)


def test_halving_trains_all_for_a_few_epochs_and_the_better_part_in_full() -> None:
    search = Search({"learning_rate": (0.1, 0.2, 0.3, 0.4)}, halve_after=2, keep=0.5)
    run = told({"0.1": 0.5, "0.2": 0.7, "0.3": 0.6, "0.4": 0.1})
    course, _ = run_search(search, [arm("erm")], "average", run)
    assert [(variant.settings["learning_rate"], variant.epochs) for variant in run.seen] == [
        (0.1, 2), (0.2, 2), (0.3, 2), (0.4, 2), (0.2, None), (0.3, None)
    ]  # fmt: skip
    assert course.chosen()[0].settings == {"learning_rate": 0.2}
    assert run.seen[0].of(arm("erm")).training.epochs == 2


def test_random_settings_are_distinct_seeded_and_within_their_range() -> None:
    search = Search({"learning_rate": Range(1e-4, 1e-1, log=True)}, method="random", trials=60, seed=3)
    scores: Any = type("Same", (dict,), {"__missing__": lambda *_: 0.5})()
    first, second = told(scores), told(scores)
    for run in (first, second):
        run_search(search, [arm("erm")], "average", run)
    rates = [variant.settings["learning_rate"] for variant in first.seen]
    assert rates == [variant.settings["learning_rate"] for variant in second.seen]
    assert len(set(rates)) == 60
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert 20 < sum(rate < 10**-2.5 for rate in rates) < 40, "half of a range by factors lies below its middle"
    few = Search({"learning_rate": (0.1, 0.2)}, method="random", trials=9)
    run = told({"0.1": 0.5, "0.2": 0.7})
    run_search(few, [arm("erm")], "average", run)
    assert sorted(variant.settings["learning_rate"] for variant in run.seen) == [0.1, 0.2]


def test_optuna_is_told_what_came_of_its_proposals() -> None:
    pytest.importorskip("optuna")
    search = Search({"learning_rate": Range(0.0, 1.0)}, method="optuna", trials=25, seed=1)

    def run(variants: Any) -> list[dict[str, Any]]:
        return [
            {"validation": {"average": 1 - (variant.settings["learning_rate"] - 0.7) ** 2}, "seconds": 0.0}
            for variant in variants
        ]

    course, _ = run_search(search, [arm("erm"), arm("kd")], "average", run)
    assert all(len(trials) == 25 for trials in course.trials.values())
    assert all(abs(variant.settings["learning_rate"] - 0.7) < 0.1 for variant in course.chosen())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"space": {}}, "the space is empty"),
        ({"space": {"temperature": (1,)}, "method": "gird"}, "unknown method 'gird'.*grid"),
        ({"space": {"temperature": Range(1, 2)}}, "a grid needs values"),
        ({"space": {"temperature": (1,)}, "method": "random"}, "how many trials"),
        ({"space": {"temperature": (1,)}, "keep": 1.0}, "keep must be a share"),
        ({"space": {"temperature": ()}}, "'temperature' has no values"),
    ],
)
def test_what_cannot_be_searched_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Search(**arguments)
    with pytest.raises(ConfigError, match="low must be below high"):
        Range(2, 1)


def test_a_setting_that_no_recipe_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'temprature'.*temperature"):
        run_pilot(changed(search={"space": {"temprature": [1.0]}}), output=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"search.*expected values by setting"):
        changed(search={"space": []})


def test_a_pilot_with_a_search_uses_what_was_chosen_and_goes_on_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(search={"space": SPACE}, seeds=[0], training={"epochs": 2, "batch_size": 64})
    result = run_pilot(config, output=tmp_path / "run")
    found = result.to_dict()["search"]
    assert {key: len(trials) for key, trials in found["tried"].items()} == {"erm": 2, "group_dro": 2, "kd": 4}
    for key, settings in found["chosen"].items():
        best = max(trial["score"] for trial in found["tried"][key])
        assert next(t["score"] for t in found["tried"][key] if t["settings"] == settings) == best
        row = next(row for row in result.to_dict()["models"] if row["key"] == key)
        assert row["training"]["learning_rate"] == settings["learning_rate"]
        # The trial was trained as the seed then is.
        assert row["runs"][0]["validation"]["worst_group"] == pytest.approx(best)
    kd = next(row for row in result.to_dict()["models"] if row["key"] == "kd")
    terms = {term["term"]: term for term in kd["recipe"]["terms"]}
    assert terms["kl_divergence"]["temperature"] == found["chosen"]["kd"]["temperature"]
    assert "Settings chosen on validation" in (tmp_path / "run" / "report.html").read_text()
    assert "settings chosen on validation" in result.table()

    def step(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished trial was computed again")

    monkeypatch.setattr("limbeck.pilots.cells.fit", step)
    again = run_pilot(config, output=tmp_path / "run")
    assert again.verdict == result.verdict
    with pytest.raises(ConfigError, match=r"another pilot \(different: .*search"):
        run_pilot(changed(seeds=[0], training={"epochs": 2, "batch_size": 64}), output=tmp_path / "run")


def test_from_python() -> None:
    data = lb.load("digits")
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    search = Search({"learning_rate": (1e-5, 1e-2), "epsilon": (0.1, 0.3)})
    result = lb.pilot(
        data, None, small, recipes=["label_smoothing"], seeds=[0], search=search, training=Training(epochs=1)
    )
    assert result.to_dict()["search"]["chosen"]["label_smoothing"]["learning_rate"] == 1e-2


@pytest.mark.slow
def test_trials_in_processes_are_those_made_here(tmp_path: Path) -> None:
    config = changed(search={"space": SPACE}, seeds=[0], training={"epochs": 2, "batch_size": 64})
    here, there = run_pilot(config, output=tmp_path / "a"), run_pilot(config, output=tmp_path / "b", workers=2)
    assert here.folder is not None
    assert there.folder is not None
    assert content(here.folder) == content(there.folder)
    assert CONFIG["seeds"] == [0, 1]


def test_the_forecast_counts_the_trials() -> None:
    data, arms = plan(changed())
    search = Search({"learning_rate": (0.001, 0.01), "temperature": (1.0, 4.0, 8.0)})
    found = estimate(data, arms, 2, search)
    seconds = {arm.key: forecast.seconds for arm, forecast in zip(arms, found.arms, strict=True)}
    assert found.search_seconds == pytest.approx(6 * seconds["kd"] + 2 * (seconds["erm"] + seconds["group_dro"]))
    assert "search of settings" in str(found)
    halved = Search({"learning_rate": (1.0, 2.0, 3.0)}, halve_after=3)
    assert planned(halved, arm("erm"), [arm("erm")]) == pytest.approx(3 * 0.3 + 2)
    with pytest.raises(ConfigError, match="unknown setting 'temprature'"):
        estimate(data, arms, 2, Search({"temprature": (1.0,)}))


@pytest.mark.parametrize(
    ("settings", "most", "least"),
    [
        # Labels, four starts, two rounds, a repeat; two folds each.
        ({"noise": "shared", "shortcut": "declared"}, 2 * (1 + 4 + 2 + 1), 12),
        # All of it again for the sides of each of three thresholds, there with two rounds of rates of their own.
        ({}, 2 * (8 + 3 * (8 + 2)), 44),
    ],
)
def test_the_forecast_counts_the_judges_of_an_arbitration(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], most: int, least: int
) -> None:
    class Clock:
        """Says that an epoch of the measured part took two seconds."""

        epochs: ClassVar[dict[str, float]] = {"student": 2.0}

    trained: list[int] = []
    judged = CrossFit._trained

    def counting(self: Any, data: Any, *given: Any, **more: Any) -> Any:
        if len(given) == 3:  # those of a few steps cost little
            trained.append(self.judge.training(len(data.train)).epochs)
        return judged(self, data, *given, **more)

    monkeypatch.setattr(CrossFit, "_trained", counting)
    digits = lb.load("digits", groups=["label"])
    data = inject.label_noise(digits.subset(np.arange(0, len(digits), 3)), rate=0.3)
    asked = Arbitrate(rounds=2, **settings)
    lb.arbitrate(data, **vars(asked), tolerance=0.0)
    module = sys.modules["limbeck.pilots.estimate"]
    monkeypatch.setattr(module, "_timed", lambda *_: Clock())
    monkeypatch.setattr(module, "_prediction", lambda *_: 0.0)
    small = module._part(data, 256)
    found = module._judges(asked, data, small, None)
    inside = len(data.train) // 2
    training = as_judge("auto").training(inside)
    step = 2.0 / len(batch_bounds(len(small.train), training.batch_size))
    an_epoch = len(batch_bounds(inside, training.batch_size)) * step
    assert found == pytest.approx(most * training.epochs * an_epoch)
    assert least <= len(trained) <= most, "a round that gains nothing is the last one"
    assert set(trained) == {training.epochs}
    assert inspect.signature(lb.arbitrate).parameters["repeats"].default == module.REPEATS


def test_an_arms_judges_are_in_its_seconds() -> None:
    data, arms = plan(changed(teachers={}, recipes=["arbitration"], training={"epochs": 1, "batch_size": 64}))
    forecast = estimate(data, arms, 1)
    found = {arm.label: arm for arm in forecast.arms}
    judging = found["arbitration (no teacher)"]
    assert 0 < judging.judge_seconds < judging.seconds
    assert found["erm (no teacher)"].judge_seconds == 0
    assert "for its judges" in str(forecast)


def test_probes_say_that_they_do_not_search(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run limbeck pilot"):
        run_probes(changed(search={"space": SPACE}), output=tmp_path / "run")
