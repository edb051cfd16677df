"""Recipes tried on the data at hand, what advice makes of it, and the witness on a part of large data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import limbeck as lb
from limbeck.audits import advise, cross_fit, run_trial
from limbeck.audits.cap import NoiseCorrected, resample
from limbeck.audits.crossfit import deal_folds, draw
from limbeck.audits.trial import FOLDS, Trial, Tried
from limbeck.data.columns import Column, declare
from limbeck.data.splits import TEST, TRAIN, VALIDATION
from limbeck.errors import ConfigError
from limbeck.presets import as_recipe
from test_audit_whole import MEASURED, biased_teacher, shortcut_data, with_


def log_table(data: lb.Data) -> np.ndarray[Any, Any]:
    table = biased_teacher(data)
    return np.log(np.column_stack([table["no"], table["yes"]]))


def tried(data: lb.Data, *recipes: str | dict[str, Any], **options: Any) -> Trial:
    assert data.groups is not None
    chosen = [as_recipe(recipe) for recipe in recipes]
    return run_trial(data, np.asarray(data.x), data.groups, chosen, log_table(data), **options)


# -- the trial ----------------------------------------------------------------------------------------------------


def test_a_trial_tells_what_helps_the_minority_from_what_hurts_it() -> None:
    data = shortcut_data(2000)
    found = tried(data, "group_balanced", {"recipe": "kd", "alpha": 1.0, "temperature": 1.0})
    reached = {entry.recipe: entry.reach.worst for entry in found.tried}
    assert found.best == "group_balanced" == found.tried[0].recipe
    assert reached["group_balanced"] > reached["erm"] + 0.05
    # Who copies this teacher is wrong wherever it is, but for what the choice of the epoch saves.
    assert reached["kd"] < reached["group_balanced"] - 0.1
    best, plain = found.of("group_balanced"), found.of("erm")
    assert best is not None
    assert plain is not None
    assert best.behind == 0
    assert best.gain == pytest.approx(plain.behind) == pytest.approx(best.reach.worst - plain.reach.worst)
    assert best.gain_low < best.gain < best.gain_high
    assert best.gain_low > 0
    assert found.of("dfr") is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_each_sample_is_judged_by_a_student_that_fit_trained_without_it() -> None:
    data = shortcut_data(600)
    assert data.groups is not None
    found = tried(data, "kd", student=lambda: nn.Linear(2, 2), training=lb.Training(epochs=2, learning_rate=1e-2))
    fold = deal_folds(data.groups.index * 2 + data.y, FOLDS, 0)
    predicted = np.empty(len(data), np.int64)
    for number in range(FOLDS):
        choosing = fold == (number + 1) % FOLDS
        split = np.where(fold == number, TEST, np.where(choosing, VALIDATION, TRAIN))
        part = data.replace(split=split)
        student = lb.fit(
            lambda: nn.Linear(2, 2), part, teacher=biased_teacher(data), recipe="kd", epochs=2, learning_rate=1e-2
        )
        predicted[fold == number] = lb.predict_logits(student, part.test).argmax(1)
    right = predicted == data.y
    by_group = [right[data.groups.index == g].mean() for g in range(len(data.groups.names))]
    entry = found.of("kd")
    assert entry is not None
    assert entry.reach.groups == pytest.approx(by_group)
    assert entry.reach.average == pytest.approx(right.mean())


def test_labels_that_nothing_explains_are_guessed_and_not_remembered() -> None:
    rng = np.random.default_rng(0)
    data = lb.Data(rng.normal(size=(200, 150)), rng.integers(2, size=200))
    groups = lb.audits.whole._by_class(data)
    found = run_trial(data, np.asarray(data.x), groups, [])
    assert found.metric == "average"
    assert found.tried[0].reach.average == pytest.approx(0.5, abs=0.1)


def test_what_cannot_be_tried_is_said() -> None:
    data = shortcut_data(300)
    found = tried(data, "dfr", "dett", "multi_round", "kd")
    assert set(found.left_out) == {"dfr", "dett"}
    assert "last layer" in found.left_out["dfr"]
    assert "features" in found.left_out["dett"]
    assert data.groups is not None
    alone = run_trial(data, np.asarray(data.x), data.groups, [as_recipe("kd")])
    assert "teacher" in alone.left_out["kd"]
    with pytest.raises(ConfigError, match="three are needed"):
        tried(data, "kd", folds=2)


def test_accuracies_under_known_noise_are_those_on_true_labels() -> None:
    rng = np.random.default_rng(1)
    n, matrix = 30_000, np.array([[0.75, 0.25], [0.25, 0.75]])
    y, attribute = rng.integers(2, size=n), rng.integers(2, size=n)
    labels = np.where(rng.random(n) < 0.25, 1 - y, y)
    good = np.where(rng.random(n) < 0.9, y, 1 - y)
    bad = np.where(rng.random(n) < np.where((y == 1) & (attribute == 1), 0.4, 0.9), y, 1 - y)
    groups = declare({"s": Column(("a", "b"), attribute)}, labels, ("no", "yes"), ["label", "s"])
    classes = ("no", "yes")
    found = resample({"good": good, "bad": bad}, labels, groups, classes=classes, matrix=matrix)
    top, bottom = NoiseCorrected(labels, groups, classes, matrix).parts(bad)
    np.testing.assert_allclose(found.point["bad"], top.sum(1) / bottom.sum(1))
    assert found.worst("bad")[0] == pytest.approx(0.4, abs=0.05)
    assert found.worst("good")[0] == pytest.approx(0.9, abs=0.05)
    assert np.std(found.worst("bad")[1]) == pytest.approx(np.std(found.replicates["bad"][:, -2]), abs=0.02)
    plain = resample({"bad": bad}, labels, groups, classes=classes)
    by_group = [(bad == labels)[groups.index == g].mean() for g in range(4)]
    np.testing.assert_allclose(plain.point["bad"], [*by_group, (bad == labels).mean()])
    # The bootstrap's spread is that of a share.
    share = by_group[0]
    expected = np.sqrt(share * (1 - share) / (groups.index == 0).sum())
    assert plain.replicates["bad"][:, 0].std() == pytest.approx(expected, rel=0.25)


# -- advice -------------------------------------------------------------------------------------------------------


def trial_of(half: float = 0.02, /, **worst: float) -> Trial:
    """A trial with these worst groups, and intervals of ± `half`."""
    found = resample({"erm": np.zeros(4, np.int64)}, np.zeros(4, np.int64), _one_group(4), classes=("a", "b"))
    reach, best = found.reach("erm"), max(worst.values())
    rows = []
    for name, value in sorted(worst.items(), key=lambda item: -item[1]):
        gain, behind = value - worst["erm"], best - value
        mine = lb.audits.cap.replace(reach, worst=value)
        rows.append(Tried(name, mine, gain, gain - half, gain + half, behind, behind - half, behind + half))
    return Trial(tuple(rows), "worst", rows[0].recipe, "a linear student", {}, 4, FOLDS, False)


def _one_group(samples: int) -> Any:
    return lb.groups.Groups.from_index(np.zeros(samples, np.int64), ["all"])


def test_what_was_measured_beats_what_was_expected() -> None:
    hurt = with_(hurt=("b",), helped=(), average="hurts", teacher_worst=0.3)
    assert next(a for a in advise(hurt, ["erm", "kd"]) if a.recipe == "kd").verdict == "avoid"
    found = advise(hurt, ["erm", "group_balanced", "kd", "dfr"], trial_of(erm=0.4, kd=0.8, group_balanced=0.6))
    assert [entry.recipe for entry in found][:2] == ["kd", "group_balanced"]
    assert found[0].verdict == "use"
    assert found[0].tried
    assert found[0].worst == 0.8
    assert "a linear student reaches .80" in found[0].sentence()
    untried = next(entry for entry in found if entry.recipe == "dfr")
    assert not untried.tried
    assert untried.worst == MEASURED.balanced_worst
    assert [entry.recipe for entry in found].index("dfr") > 1


def test_an_uncertain_trial_is_drawn_towards_what_is_expected() -> None:
    names = ["erm", "kd", "group_balanced"]
    fair = with_(helped=("a", "b"), teacher_worst=0.7)  # a gain of .3 expected of kd, .2 of balanced groups
    reached = {"erm": 0.4, "group_balanced": 0.70, "kd": 0.695}
    assert advise(fair, names, trial_of(**reached))[0].recipe == "group_balanced"
    assert advise(fair, names, trial_of(0.2, **reached))[0].recipe == "kd"
    # A gate that harms stands until the trial certainly shows the contrary.
    hurt = with_(hurt=("b",), helped=(), teacher_worst=0.55)
    lead = {"erm": 0.4, "group_balanced": 0.45, "kd": 0.50}
    assert advise(hurt, names, trial_of(0.15, **lead))[0].recipe == "group_balanced"
    assert advise(hurt, names, trial_of(0.02, **lead))[0].recipe == "kd"
    worse = advise(MEASURED, ["erm", "kd"], trial_of(erm=0.4, kd=0.3))
    assert [(a.recipe, a.verdict) for a in worse] == [("erm", "use"), ("kd", "avoid")]


# -- the whole ----------------------------------------------------------------------------------------------------


def test_an_audit_tries_and_its_plain_data_keeps_its_keys() -> None:
    data = shortcut_data(1200)
    found = lb.audit(data, biased_teacher(data), recipes=["erm", "group_balanced", "kd", "dfr"])
    assert found.trial is not None
    assert {entry.recipe for entry in found.trial.tried} == {"erm", "group_balanced", "kd"}
    assert found.trial.samples == (data.split < 2).sum()
    assert [entry.recipe for entry in found.advice if entry.tried] == [
        entry.recipe for entry in advise(found.measured, ["erm", "group_balanced", "kd"], found.trial)
    ]
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["format"] == 1
    assert set(plain) == {
        "format", "data", "teacher", "labels", "cap", "advice", "trial", "measured", "verdicts", "said",
    }  # fmt: skip
    assert set(plain["advice"][0]) == {
        "recipe", "verdict", "average", "worst", "reasons", "possible", "tried", "sentence",
    }  # fmt: skip
    assert set(plain["trial"]) == {"metric", "best", "student", "samples", "folds", "corrected", "tried", "left_out"}
    without = lb.audit(data, biased_teacher(data), recipes=["erm", "kd"], trial=False)
    assert without.trial is None
    assert without.to_dict()["trial"] is None


def test_a_trial_with_the_users_own_student() -> None:
    data = shortcut_data(900)
    student = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    before = [each.clone() for each in student.parameters()]
    found = lb.audit(data, biased_teacher(data), recipes=["group_balanced", "kd"], student=student)
    assert found.trial is not None
    assert found.trial.student == "the student given"
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


# -- the witness on a part ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 200), st.integers(0, 3))
def test_a_drawn_part_stands_for_the_whole(sizes: list[int], most: int, seed: int) -> None:
    cells = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(len(cells))
    kept, counts = draw(cells, rows, most, seed)
    assert len(kept) <= max(most, len(sizes))
    assert (np.diff(kept) > 0).all()
    np.testing.assert_allclose(np.bincount(cells[kept], counts, len(sizes)), sizes)
    left = np.bincount(cells[kept], minlength=len(sizes))
    # Whatever is cut is cut to one size, and nothing below that size is.
    cut = left < np.array(sizes)
    assert len(set(left[cut].tolist())) <= 1
    if cut.any():
        assert left[~cut].max(initial=0) <= left[cut][0]
        # The budget is used up to what does not divide.
        assert most - len(kept) < max(cut.sum(), 1) or len(kept) > most


def test_a_witness_of_a_part_answers_for_all_and_hardly_differs() -> None:
    data = shortcut_data(6000)
    assert data.groups is not None
    cells = data.groups.index
    whole = cross_fit(data.x, data.y, classes=2, cells=cells)
    part = cross_fit(data.x, data.y, classes=2, cells=cells, most=1500)
    assert (whole.fitted, part.fitted) == (4800, 1500)
    assert len(part.probabilities) == len(data)
    assert np.abs(whole.probabilities - part.probabilities).mean() < 0.01
    accuracy = [(each.probabilities.argmax(1) == data.y).mean() for each in (whole, part)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.01)
