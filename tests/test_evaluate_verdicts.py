"""Verdicts keep their word: simulated pilots through the code that judges real ones, and the words themselves."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import DataError
from limbeck.pilots.result import PilotResult, verdict

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("g0", "g1", "g2", "g3")


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verdicts", ROOT / "benchmarks" / "verdicts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Data classes look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def at_most(tally: Any, what: str, nominal: float, pilots: int) -> None:
    assert tally.share(what) <= nominal + 3 * (nominal * (1 - nominal) / pilots) ** 0.5, what


def at_least(tally: Any, what: str, nominal: float, pilots: int) -> None:
    assert tally.share(what) >= nominal - 3 * (nominal * (1 - nominal) / pilots) ** 0.5, what


def check(simulation: ModuleType, scenario: Any, pilots: int) -> None:
    tally = simulation.run(scenario, pilots)
    for metric in ("average", "worst_group"):
        at_most(tally, f"false {metric} plain", 0.05, pilots)
        at_most(tally, f"false {metric} strongest", 0.05, pilots)
        at_least(tally, f"covered {metric}", 0.95, pilots)
    at_most(tally, "false any better", 0.05, pilots)
    at_most(tally, "headline better", 0.025, pilots)
    at_most(tally, "headline worse", 0.025, pilots)
    for what in ("covered group", "covered all groups at once", "covered headline"):
        at_least(tally, what, 0.95, pilots)
    for what in ("recipe's average", "recipe's worst group", "student's average", "student's worst group"):
        at_least(tally, f"covered a {what}", 0.95, pilots)


@pytest.mark.parametrize("scenario", [3, 8, 9])
def test_pilots_without_a_difference_claim_none(simulation: ModuleType, scenario: int) -> None:
    check(simulation, simulation.NO_DIFFERENCE[scenario], 15)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", range(10))
def test_many_pilots_without_a_difference_claim_none(simulation: ModuleType, scenario: int) -> None:
    check(simulation, simulation.NO_DIFFERENCE[scenario], 150)


def test_the_simulation_knows_its_own_truth(simulation: ModuleType) -> None:
    """Students drawn one by one reach the expectations that coverage is measured against."""
    scenario = simulation.Scenario("check", levels=simulation.ONE_BAD, changed=(0.65,) * 4, spread=0.2)
    true = simulation.truth(scenario)
    rng = np.random.default_rng(1)
    found = [simulation.simulate(scenario, rng).accuracy for _ in range(120)]
    for key in ("erm", "recipe0"):
        students = np.stack([pilot[key] for pilot in found])
        assert students.mean(axis=(0, 1))[1] == pytest.approx(true[key]["g1"], abs=0.015)
        assert students.min(axis=2).mean() == pytest.approx(true[key]["worst"], abs=0.015)
    pilot = simulation.simulate(scenario, rng)
    for g in range(4):
        here = pilot.groups == g
        error = 4 * (0.25 / here.sum()) ** 0.5
        np.testing.assert_allclose(pilot.right["erm"][:, here].mean(axis=1), pilot.accuracy["erm"][:, g], atol=error)


def test_the_benchmark_runs(simulation: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulation.NO_DIFFERENCE, kept = simulation.NO_DIFFERENCE[:1], simulation.NO_DIFFERENCE
    try:
        simulation.main(["--pilots", "1", "--part", "no_difference", "--output", str(tmp_path)])
    finally:
        simulation.NO_DIFFERENCE = kept
    rows = json.loads((tmp_path / "no_difference.json").read_text())["rows"]
    assert [row["pilots"] for row in rows] == [10, 10]
    assert rows[0]["shares"] == rows[1]["shares"]
    assert "false claims, headline" in capsys.readouterr().out


# The words ------------------------------------------------------------------------------------------------------------


def judged(simulation: ModuleType, **changes: Any) -> tuple[str, list[Any], Any]:
    scenario = simulation.Scenario("words", levels=simulation.ONE_BAD, **{"recipes": 1, "seeds": 5, **changes})
    pilot = simulation.simulate(scenario, np.random.default_rng(5))
    found = simulation.judged(scenario, pilot, ["erm"])
    sentence, chosen = verdict(pilot.models, found, "worst_group", groups=True)
    assert chosen == "recipe0"
    return sentence, found, pilot


def test_an_undecided_verdict_says_what_would_tell(simulation: ModuleType) -> None:
    sentence, found, _ = judged(simulation, changed=(0.63, 0.83, 0.9, 0.85))
    assert sentence.startswith("Distillation (recipe0) could not be told from the plain student in the worst group")
    assert " corrected for 2 comparisons, 5 seeds). " in sentence
    entry = next(d for d in found if (d.model, d.metric) == ("recipe0", "worst_group"))
    told = entry.advice.sentence()
    assert sentence.endswith(f"{told[0].upper()}{told[1:]}.")
    assert "more test samples of group 'g0'" in told or "more seeds" in told
    plain = entry.to_dict()
    assert plain["advice"]["more_seeds"] == plain["more_seeds"] == entry.advice.more_seeds
    assert plain["advice"]["group"] == "g0"
    json.dumps(plain, allow_nan=False)


def test_a_verdict_that_is_told_needs_no_more(simulation: ModuleType) -> None:
    sentence, found, _ = judged(simulation, changed=(0.85, 0.95, 0.95, 0.95))
    assert sentence.startswith("Distillation (recipe0) beat the plain student in the worst group")
    assert sentence.endswith("5 seeds).")
    entry = next(d for d in found if (d.model, d.metric) == ("recipe0", "worst_group"))
    assert entry.to_dict()["advice"] is None


def test_one_seed_each_speaks_of_two_students(simulation: ModuleType) -> None:
    sentence, _, _ = judged(simulation, changed=(0.9, 0.95, 0.95, 0.95), seeds=1)
    assert "beat the plain student" in sentence
    assert sentence.endswith("With one seed each this speaks of these two students, not of the recipes.")


@pytest.fixture
def result(simulation: ModuleType, tmp_path: Path) -> PilotResult:
    """A finished pilot's record and predictions, simulated."""
    sentence, found, pilot = judged(simulation, changed=(0.75, 0.8, 0.9, 0.85), seeds=3)
    labels = np.zeros(len(pilot.groups), np.int64)
    columns = {"id": np.arange(len(labels)), "label": labels, "group": pilot.groups}
    models = []
    for row in pilot.models:
        for seed, right in enumerate(pilot.right[row["key"]]):
            columns[f"{row['key']}-seed{seed}"] = (~right).astype(np.int32)
        measured = {"average": 0.8, "worst_group": 0.6, "worst_group_name": "g0"}
        runs = [{"seed": seed, "seconds": 1.0, "test": measured} for seed in range(3)]
        models.append({**row, "runs": runs, "teachers": [], "parameters": 10})
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    comparisons = [d.to_dict() for d in found]
    record = {"verdict": sentence, "models": models, "comparisons": comparisons, "data": {"groups": list(NAMES)}}
    return PilotResult({**record, "chosen": "recipe0"}, tmp_path)


def test_the_table_says_for_each_model_what_would_tell(result: PilotResult) -> None:
    text = result.table()
    assert "against the plain student in the worst group, points:" in text
    flat = " ".join(text.split())
    for key in ("group_dro", "recipe0"):
        entry = next(e for e in result.record["comparisons"] if (e["model"], e["metric"]) == (key, "worst_group"))
        assert f"{key}: {entry['verdict']}, {100 * entry['difference']:+.1f} (" in flat
        if entry["advice"]:
            assert entry["advice"]["sentence"] in flat
    # A result written before there was advice is shown without.
    for entry in result.record["comparisons"]:
        del entry["advice"]
    assert "recipe0: " in result.table()


def test_a_result_places_its_models_and_names_who_loses(result: PilotResult) -> None:
    standings = {one.key: one for one in result.pareto()}
    assert set(standings) == {"erm", "group_dro", "recipe0"}
    assert standings["recipe0"].worst_group > standings["erm"].worst_group
    rows = result.group_changes()
    assert [row["group"] for row in rows] == list(NAMES)
    entry = next(
        e for e in result.record["comparisons"] if (e["model"], e["metric"], e["group"]) == ("recipe0", "group", "g0")
    )
    assert rows[0]["against"]["erm"]["difference"] == pytest.approx(entry["difference"])
    with pytest.raises(DataError, match="nothing to compare"):
        result.group_changes("erm")
    with pytest.raises(DataError, match="did you mean 'recipe0'"):
        result.group_changes("recipe")
    with pytest.raises(DataError, match="kept no run folder"):
        PilotResult(result.record).pareto()
