"""Where recipes stand between average and worst group, and who is better and worse off."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from limbeck.errors import ConfigError, DataError
from limbeck.evaluation import group_changes, holm, pareto_front
from limbeck.evaluation.compare import compare

NAMES = ("day", "night", "rain")
SIZES = (600, 300, 100)


def answers(levels: tuple[float, ...], seeds: int = 3, seed: int = 0, spread: float = 0.0) -> NDArray[np.bool_]:
    """Students right in each group about as often as said, on samples as difficult for one as for the other."""
    rng = np.random.default_rng(seed)
    g = groups()
    difficulty = np.random.default_rng(99).random(len(g))
    level = np.array(levels)[g] + rng.normal(0, spread, (seeds, 1))
    return np.asarray(np.where(rng.random((seeds, len(g))) < 0.8, difficulty, rng.random((seeds, len(g)))) < level)


def groups() -> NDArray[np.int64]:
    return np.repeat(np.arange(3), SIZES)


def test_the_front_is_what_none_beats_in_both() -> None:
    right = {
        "fair": answers((0.8, 0.8, 0.8)),
        "average": answers((0.95, 0.9, 0.5), seed=1),
        "beaten": answers((0.7, 0.7, 0.6), seed=2),
    }
    fair, average, beaten = pareto_front(right, groups(), NAMES)
    assert (fair.front, average.front, beaten.front) == (True, True, False)
    assert fair.front_share > 0.99
    assert average.front_share > 0.99
    assert beaten.front_share < 0.05
    assert average.group == "rain"
    assert fair.average == pytest.approx(right["fair"].mean())
    by_group = np.stack([right["fair"][:, groups() == g].mean(axis=1) for g in range(3)])
    assert fair.worst_group == pytest.approx(by_group.min(axis=0).mean())
    assert fair.average_low < fair.average < fair.average_high
    assert fair.worst_low < fair.worst_group < fair.worst_high
    json.dumps([one.to_dict() for one in (fair, average, beaten)], allow_nan=False)
    assert pareto_front(right, groups(), NAMES) == (fair, average, beaten)


def test_equals_share_the_front() -> None:
    right = answers((0.9, 0.8, 0.7))
    one, two = pareto_front({"a": right, "b": right.copy()}, groups(), NAMES)
    assert one.front
    assert two.front
    three, four = pareto_front({"a": right, "b": answers((0.9, 0.8, 0.7), seed=3)}, groups(), NAMES)
    assert 0.2 < three.front_share < 0.98
    assert three.front_share + four.front_share >= 1


def test_one_student_has_the_interval_of_agresti_and_coull() -> None:
    right = answers((0.9, 0.8, 0.7), seeds=1)
    (found,) = pareto_front({"a": right[0]}, groups(), NAMES)
    n, correct = right.size, right.sum()
    p = (correct + 1) / (n + 2)
    half = stats.t.ppf(0.975, n - 1) * (p * (1 - p) / (n + 2)) ** 0.5
    assert (found.average_low, found.average_high) == pytest.approx((correct / n - half, correct / n + half))
    assert found.seeds == 1


def test_seeds_widen_the_interval_of_a_recipe() -> None:
    """With many samples it is Student's t over the seeds' averages."""
    rng = np.random.default_rng(3)
    level = np.array([[0.7], [0.8], [0.9], [0.75]])
    right = rng.random((4, 40_000)) < level
    (found,) = pareto_front({"a": right})
    low, high = stats.t.interval(0.95, 3, loc=right.mean(), scale=stats.sem(right.mean(axis=1)))
    assert found.average_low == pytest.approx(low, abs=0.002)
    assert found.average_high == pytest.approx(min(high, 1.0), abs=0.002)
    assert found.group == "all"


def test_the_worst_of_tied_groups_may_be_better_than_it_looks() -> None:
    g = np.repeat(np.arange(8), 60)
    right = np.random.default_rng(4).random((1, len(g))) < 0.8
    (found,) = pareto_front({"a": right}, g, [f"g{k}" for k in range(8)])
    assert found.worst_high - found.worst_group > 1.2 * (found.worst_group - found.worst_low)
    assert found.worst_low < 0.8 < found.worst_high


def test_groups_too_small_unknown_or_absent() -> None:
    g = groups()
    g[g == 2] = -1
    right = answers((0.9, 0.8, 0.1))
    (found,) = pareto_front({"a": right}, g, NAMES)
    assert found.group == "night"
    assert found.average == pytest.approx(right.mean())
    nothing, better = pareto_front({"a": right, "b": answers((0.99, 0.99, 0.99))}, g, NAMES, minimum=10_000)
    assert nothing.to_dict()["worst_group"] is None
    assert (nothing.front, better.front) == (False, True)


def test_wrong_use_is_refused() -> None:
    right = answers((0.9, 0.8, 0.7))
    with pytest.raises(DataError, match="no recipe"):
        pareto_front({})
    with pytest.raises(DataError, match="a has 1000, b has 999"):
        pareto_front({"a": right, "b": right[:, 1:]})
    with pytest.raises(DataError, match="expected bool"):
        pareto_front({"a": right.astype(int)})
    with pytest.raises(ConfigError, match="level"):
        pareto_front({"a": right}, level=95)


# Who is better and worse off ------------------------------------------------------------------------------------------


def test_changes_are_the_comparisons_of_each_group_held_at_once() -> None:
    student, plain = answers((0.8, 0.8, 0.9), seeds=4), answers((0.95, 0.8, 0.5), seeds=4, seed=1)
    teacher = answers((0.97, 0.9, 0.7), seeds=1, seed=2)
    g = groups()
    rows = group_changes(student, {"teacher": teacher, "plain": plain}, g, NAMES)
    json.dumps(rows, allow_nan=False)
    assert [row["group"] for row in rows] == list(NAMES)
    for name, other in (("teacher", teacher), ("plain", plain)):
        alone = compare(student, other, g, group_names=NAMES, correction="none").groups
        for k, (row, d) in enumerate(zip(rows, alone, strict=True)):
            here = row["against"][name]
            assert row["samples"] == SIZES[k]
            assert row["accuracy"] == pytest.approx(student[:, g == k].mean())
            assert here["difference"] == pytest.approx(student[:, g == k].mean() - other[:, g == k].mean())
            assert here["adjusted_p"] == pytest.approx(min(3 * d.p, 1))
            half = d.variance.half_width(0.05 / 3)
            assert (here["low"], here["high"]) == pytest.approx((d.difference - half, d.difference + half))
        # Never told where Holm, which holds fewer things at once, would not tell.
        for q, row in zip(holm([d.p for d in alone]), rows, strict=True):
            assert row["against"][name]["adjusted_p"] >= q - 1e-12
    against_plain = [row["against"]["plain"]["verdict"] for row in rows]
    assert against_plain == ["worse", "not distinguishable", "better"]


def test_a_group_without_samples_changes_nothing() -> None:
    g = groups()
    g[g == 1] = -1
    rows = group_changes(answers((0.8, 0.8, 0.9)), {"plain": answers((0.95, 0.8, 0.5))}, g, NAMES)
    assert rows[1]["accuracy"] is None
    assert rows[1]["against"]["plain"]["verdict"] == "not measured"
    assert rows[1]["samples"] == 0
    # Two groups are left to correct for.
    assert rows[0]["against"]["plain"]["adjusted_p"] == pytest.approx(min(2 * rows[0]["against"]["plain"]["p"], 1))
    json.dumps(rows, allow_nan=False)
