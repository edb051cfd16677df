"""`lb.audit` and its parts: honesty, cap, slices, gates, advice; against closed forms and real model outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import limbeck as lb
from limbeck.audits import (
    GATES,
    Audit,
    Measured,
    advise,
    audit_labels,
    check_advice,
    check_honesty,
    findings,
    measure_cap,
)
from limbeck.audits.cap import NoiseCorrected
from limbeck.audits.gates import KINDS
from limbeck.audits.teacher import relations, top_two
from limbeck.cli import main
from limbeck.data.columns import Column, declare
from limbeck.data.inject import label_noise
from limbeck.errors import ConfigError, DataError, TeacherError
from limbeck.evaluation import worst_group_interval
from limbeck.presets import as_recipe
from limbeck.teachers import TableTeacher


def shortcut_data(samples: int = 3000, seed: int = 0, **more: Any) -> lb.Data:
    """Two classes, one weak honest feature and one strong shortcut that is right for nine in ten."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=samples)
    shortcut = np.where(rng.random(samples) < 0.9, y, 1 - y)
    x = np.column_stack([1.5 * y + rng.normal(size=samples), 4 * shortcut + 0.1 * rng.normal(size=samples)])
    attributes = {"colour": np.array(["blue", "red"])[shortcut]}
    return lb.Data(x, y, attributes=attributes, groups=["label", "colour"], classes=["no", "yes"], **more)


def biased_teacher(data: lb.Data) -> dict[str, Any]:
    """A table that says what the shortcut says."""
    p = np.where(np.asarray(data.x)[:, 1] > 2, 0.9, 0.1)
    return {"id": data.ids, "no": 1 - p, "yes": p}


def audited(*data: Any, **options: Any) -> Audit:
    """Without a trial: what is measured and reasoned alone. Trials have a file of their own."""
    return lb.audit(*data, **{"trial": False, **options})


EVEN = {"plain_worst": 0.75}
MEASURED = Measured(
    classes=4,
    samples=1000,
    class_ratio=1.2,
    groups=("a", "b"),
    label_groups=True,
    smallest_group="b",
    smallest_count=100,
    unseen_groups=(),
    thin_groups=(),
    noise=0.01,
    noise_low=0.0,
    noise_high=0.02,
    plain_average=0.8,
    plain_worst=0.4,
    balanced_average=0.78,
    balanced_worst=0.6,
    gain_low=0.1,
    teacher=True,
    supplies=("logits", "features", "maps", "head"),
    teacher_average=0.85,
    teacher_worst=0.7,
    teacher_worst_high=0.75,
    teacher_group="b",
    helped=("a",),
    average="helps",
    top2=0.99,
    top2_worst=0.98,
    top2_group="b",
)


def with_(**changes: Any) -> Measured:
    return Measured(**{**{name: getattr(MEASURED, name) for name in Measured.__dataclass_fields__}, **changes})


# -- the whole ----------------------------------------------------------------------------------------------------


def test_a_biased_teacher_is_told_to_hurt_the_minority() -> None:
    data = shortcut_data()
    found = audited(data, biased_teacher(data))
    assert found.teacher is not None
    cap = found.cap
    assert cap.copy is not None
    assert cap.copy.worst < 0.05
    assert cap.labels.worst > 0.5
    assert set(cap.hurt) == {"label=no, colour=red", "label=yes, colour=blue"}
    assert any(line.startswith("Copying this teacher will hurt *label=") for line in found.verdicts)
    by_name = {entry.recipe: entry for entry in found.advice}
    assert by_name["kd"].verdict == by_name["groupdistil"].verdict == "avoid"
    assert by_name["group_balanced"].verdict == "use"
    assert found.advice[0].recipe in ("group_dro", "group_balanced", "dfr")
    # The witness backs the labels where the shortcut is wrong.
    minority = [entry for entry in found.teacher.groups if entry.name in cap.hurt]
    assert all(entry.teacher_wrong > 2 * entry.label_suspicious for entry in minority)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["teacher"]["groups"][0].keys() >= {"accuracy", "low", "high", "top2", "confidence_wrong"}
    assert "copying" in found.table()
    assert str(found) == found.text()


def test_the_cap_is_the_teachers_held_out_accuracy_and_its_exact_interval() -> None:
    data = shortcut_data()
    found = audited(data, biased_teacher(data)).cap
    seen = data.subset(data.split < 2)
    right = (np.asarray(seen.x)[:, 1] > 2) == (seen.y == 1)
    assert seen.groups is not None
    total = seen.groups.counts()
    correct = np.bincount(seen.groups.index, right)
    assert found.copy is not None
    assert found.copy.worst == pytest.approx((correct / total).min())
    assert (found.copy.worst_low, found.copy.worst_high) == worst_group_interval(correct, total, 0.95, 10)
    assert found.copy.groups == pytest.approx(tuple(correct / total))


def test_a_good_teacher_is_recommended() -> None:
    data = shortcut_data()
    p = np.where(data.y == 1, 0.97, 0.03)  # it knows what the features do not tell
    p = np.where(np.random.default_rng(0).random(len(data)) < 0.05, 1 - p, p)
    found = audited(data, {"id": data.ids, "no": 1 - p, "yes": p})
    assert not found.cap.hurt
    assert len(found.cap.helped) == 4
    assert found.advice[0].recipe in ("kd", "dkd", "groupdistil")
    assert next(a for a in found.advice if a.recipe == "kd").reasons[0].effect == "help"


def test_without_groups_and_without_a_teacher() -> None:
    data = shortcut_data().with_groups(None)
    found = audited(data)
    assert found.teacher is None
    assert found.cap.group_names == ("no", "yes")
    assert found.cap.copy is None
    assert all(entry.verdict == "avoid" for entry in found.advice if entry.recipe in ("kd", "group_dro", "dett"))
    assert {entry.verdict for entry in found.advice if entry.recipe == "erm"} <= {"use", "no difference expected"}
    assert "labels alone %" in found.table()
    assert "teacher" not in found.table()
    json.dumps(found.to_dict(), allow_nan=False)
    classes = audited(data, biased_teacher(data)).teacher
    assert classes is not None
    assert classes.groups == ()
    assert [entry.name for entry in classes.classes] == ["no", "yes"]


def test_groups_that_were_found_will_do_and_unknown_ones_are_left_out() -> None:
    data = shortcut_data()
    wrong = (np.asarray(data.x)[:, 1] > 2) != (data.y == 1)  # where a biased model errs
    index = np.where(np.arange(len(data)) % 10 == 0, -1, wrong)
    found = audited(data.with_groups(index, ["right", "wrong"]), biased_teacher(data))
    assert found.cap.hurt == ("wrong",)
    assert found.teacher is not None
    assert [entry.name for entry in found.teacher.groups] == ["right", "wrong"]
    known = (data.split < 2) & (index >= 0)
    assert sum(entry.samples for entry in found.teacher.groups) == known.sum()
    assert found.teacher.overall.samples == (data.split < 2).sum()
    assert "group weights over wrong labels" not in [f.gate for a in found.advice for f in a.reasons]


def test_test_samples_are_never_looked_at() -> None:
    data = shortcut_data()
    changed = np.where(data.split == 2, 1 - data.y, data.y)
    other = data.replace(y=changed)
    first, second = (audited(each, biased_teacher(data)).to_dict() for each in (data, other))
    # By what it is recognised in a run folder is the fingerprint of all samples.
    assert first["data"].pop("fingerprint") != second["data"].pop("fingerprint")
    assert first == second


def test_the_audit_is_a_function_of_data_and_seed_and_changes_nothing() -> None:
    data = shortcut_data(1500)
    before = data.fingerprint(), np.asarray(data.x).copy()
    first, second = audited(data, biased_teacher(data), seed=3), audited(data, biased_teacher(data), seed=3)
    assert first.to_dict() == second.to_dict()
    assert audited(data, biased_teacher(data), seed=4).to_dict() != first.to_dict()
    data._fingerprint = ""
    assert data.fingerprint() == before[0]
    np.testing.assert_array_equal(np.asarray(data.x), before[1])


# -- believing a teacher ------------------------------------------------------------------------------------------


def noisy_blobs() -> lb.Data:
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=1200)
    x = rng.normal(size=(1200, 6)) + 1.5 * np.eye(3, 6)[y]
    return lb.Data(x, y, fractions=(0.6, 0.3, 0.1))


def test_a_memorising_teacher_is_judged_on_held_out_samples() -> None:
    data = noisy_blobs()
    memory = KNeighborsClassifier(1).fit(np.asarray(data.train.x), data.train.y)
    found = audited(data, memory).teacher
    assert found is not None
    assert found.honesty.memorised
    assert found.honesty.train == 1
    assert found.overall.samples == len(data.validation)
    assert found.overall.accuracy == pytest.approx(memory.score(np.asarray(data.validation.x), data.validation.y))
    assert "validation samples; training samples are left out" in found.source
    assert any("over-confident on samples it was trained on" in line for line in found.sentences())


def test_an_honest_teacher_is_judged_on_all() -> None:
    data = noisy_blobs()
    model = LogisticRegression(C=0.01).fit(np.asarray(data.test.x), data.test.y)  # never saw train or validation
    found = audited(data, model).teacher
    assert found is not None
    assert not found.honesty.memorised
    assert found.overall.samples == len(data.train) + len(data.validation)


def test_a_teacher_that_can_be_refitted_is_cross_fitted() -> None:
    data = noisy_blobs()

    def refit(part: lb.Data) -> Any:
        assert not set(part.train.ids) & set(part.test.ids)
        return KNeighborsClassifier(15).fit(np.asarray(part.train.x), part.train.y)

    found = audited(data, refit=refit).teacher
    assert found is not None
    assert found.overall.samples == len(data.train) + len(data.validation)
    held_out = refit(data).score(np.asarray(data.validation.x), data.validation.y)
    assert found.overall.accuracy == pytest.approx(held_out, abs=0.05)
    assert "cross-fitted" in found.description
    with pytest.raises(ConfigError, match="not both"):
        audited(data, refit(data), refit=refit)


def test_honesty_compares_like_with_like() -> None:
    # Class 0 is easy, class 1 hard, for both parts alike; the held-out part has more of the hard one.
    rng = np.random.default_rng(0)
    labels = np.r_[rng.random(4000) < 0.1, rng.random(4000) < 0.5].astype(int)
    held_out = np.arange(8000) >= 4000
    right = rng.random(8000) < np.where(labels == 1, 0.5, 0.9)
    p = np.where((labels == 1) == right, 0.8, 0.2)
    probabilities = np.column_stack([1 - p, p])
    found = check_honesty(probabilities, labels, held_out)
    assert not found.memorised
    assert abs(found.gap) < 0.03
    assert right[~held_out].mean() - right[held_out].mean() > 0.15
    share = np.bincount(labels[held_out]) / held_out.sum()
    by_class = [right[~held_out & (labels == k)].mean() for k in (0, 1)]
    assert found.train == pytest.approx(share @ by_class)
    p_memorised = np.where(held_out[:, None], probabilities, np.eye(2)[labels])
    assert check_honesty(p_memorised, labels, held_out).memorised
    assert not check_honesty(probabilities, labels, np.zeros(8000, bool)).known


def test_a_table_of_the_held_out_part_alone_will_do() -> None:
    data = noisy_blobs()
    rows = data.validation
    p = np.full((len(rows), 3), 0.1) + 0.7 * np.eye(3)[rows.y]
    table = {"id": rows.ids, **{name: p[:, k] for k, name in enumerate(data.classes)}}
    found = audited(data, table).teacher
    assert found is not None
    assert found.overall.samples == len(rows)
    assert "which alone the teacher answers for" in found.source
    with pytest.raises(TeacherError):
        audited(data, {"id": np.array([-5]), "0": [0.2], "1": [0.3], "2": [0.5]})


# -- parts --------------------------------------------------------------------------------------------------------


def test_corrected_accuracies_are_right_on_average() -> None:
    rng = np.random.default_rng(0)
    n, matrix = 40_000, np.array([[0.8, 0.2], [0.3, 0.7]])
    y, attribute = rng.integers(2, size=n), rng.integers(2, size=n)
    predicted = np.where(rng.random(n) < np.where((y == 1) & (attribute == 1), 0.4, 0.85), y, 1 - y)
    labels = (rng.random(n) > matrix[y, 0]).astype(int)
    column = {"s": Column(("a", "b"), attribute)}
    for columns in (["label", "s"], ["s"]):
        groups = declare(column, labels, ("no", "yes"), columns)
        true = declare(column, y, ("no", "yes"), columns)
        top, bottom = NoiseCorrected(labels, groups, ("no", "yes"), matrix).parts(predicted)
        # The floor of .02 under the matrix costs a little.
        found = (top.sum(1) / bottom.sum(1))[:-1]
        exact = [(predicted == y)[true.index == g].mean() for g in range(len(true.names))]
        np.testing.assert_allclose(found, exact, atol=0.04)
        observed = [(predicted == labels)[groups.index == g].mean() for g in range(len(groups.names))]
        assert np.abs(np.array(observed) - exact).max() > 0.1
    cap = measure_cap(
        predicted, {"plain": predicted, "balanced": y}, labels, groups, classes=("no", "yes"), matrix=matrix
    )
    assert cap.corrected
    assert set(cap.hurt) == {"s=a", "s=b"}


def test_the_top_two_and_the_relations() -> None:
    p = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    np.testing.assert_array_equal(top_two(p, np.array([1, 2, 0])), [True, False, True])
    labels = np.repeat([0, 1, 2], 200)
    predicted = labels.copy()
    predicted[:60] = 1  # 0 is called 1, never the reverse
    predicted[200:220], predicted[400:418] = 2, 1  # 1 and 2 both ways
    found = relations(predicted, labels, ["cat", "dog", "wolf"])
    assert [(r.first, r.second, r.kind) for r in found] == [("cat", "dog", "one way"), ("dog", "wolf", "both ways")]
    assert (found[0].forward, found[0].backward) == (0.3, 0.0)
    assert relations(labels, labels, ["cat", "dog", "wolf"]) == ()


def test_the_label_audit_keeps_the_minority_and_lists_what_it_held_back() -> None:
    data = label_noise(shortcut_data(4000), rate=0.2, seed=1, splits=("train", "validation"))
    found = audited(data).labels
    seen = data.subset(data.split < 2)
    truth = seen.columns["true_label"]
    assert found.noise.rate == pytest.approx((seen.y != truth).mean(), abs=0.06)
    flagged = found.suspicion.flagged
    assert (seen.y != truth)[flagged].mean() > 0.6
    fixed = found.corrected()
    assert (fixed == truth).mean() > (seen.y == truth).mean() + 0.03
    assert (fixed[found.guarded.held_back] == seen.y[found.guarded.held_back]).all()
    targets = found.targets()
    np.testing.assert_allclose(targets.sum(1), 1)
    assert ((targets > 0).sum(1) > 1)[found.partial].any()
    listed = found.suspects(None)
    assert len(listed) == flagged.sum()
    assert [row["score"] for row in listed] == sorted((row["score"] for row in listed), reverse=True)
    guarded = audited(data, protected=["yes"]).labels
    held = guarded.suspects(None, held_back=True)
    assert {row["label"] for row in guarded.suspects(None, held_back=False)} <= {"no"} - {"yes"} | set()
    assert all(row["status"] == "held back" for row in held)
    assert any("it is protected" in line for line in guarded.sentences())


def test_labels_can_be_audited_from_arrays_alone() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=2000)
    wrong = rng.random(2000) < 0.2
    labels = np.where(wrong, (y + 1) % 3, y)
    p = (0.05 + 0.85 * np.eye(3)[y]) @ np.array([[0.8, 0.2, 0], [0, 0.8, 0.2], [0.2, 0, 0.8]])
    found = audit_labels(p, labels, class_names=["a", "b", "c"], limit=1.0)
    assert (found.corrected() == y).mean() > 0.99
    assert found.to_dict()["judge"] == "the probabilities given"


def test_images_use_pooled_pixels_or_the_teachers_features_and_others_must_be_given() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    images = (rng.random((300, 1, 12, 12)) * 100 + 100 * y[:, None, None, None]).astype(np.uint8)
    data = lb.Data(images, y)
    assert audited(data).data["basis"] == "pixels averaged to 8×8 at most"
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.ReLU(), nn.Linear(5, 2))
    assert audited(data, module).data["basis"] == "the teacher's features"
    assert audited(data, features=rng.random((300, 3))).data["basis"] == "the features given"
    with pytest.raises(DataError, match="one row for each of the 300 samples"):
        audited(data, features=rng.random((3, 3)))
    tokens = lb.Data({"ids": rng.integers(9, size=(300, 4))}, y)
    with pytest.raises(DataError, match="pass features="):
        audited(tokens)
    with pytest.raises(DataError, match="test samples only"):
        audited(lb.Data(rng.random((30, 2)), rng.integers(2, size=30), split="test"))


def test_imbalance_is_told() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(3000) < 0.03).astype(int)
    found = audited(lb.Data(rng.normal(size=(3000, 2)) + y[:, None], y))
    assert any("very imbalanced" in line and "may backfire" in line for line in found.verdicts)


# -- gates and advice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "recipe", "change"),
    [
        ("teacher too wrong on a group", "kd", {"hurt": ("b",), "teacher_worst": 0.5}),
        ("teacher uneven", "kd", {"hurt": ("a",)}),
        ("teacher worse than the labels", "dkd", {"average": "hurts"}),
        ("teacher too wrong to transplant", "dett", {"teacher_worst_high": 0.4}),
        ("label outside the top two", "pll", {"top2": 0.9}),
        ("teacher has learned the labels by heart", "pll", {"memorised": True}),
        ("imbalanced classes", "multi_round", {"class_ratio": 12.0}),
        ("averaging of wrong labels", "multi_round", {"noise_low": 0.2}),
        ("too few samples in a group", "group_dro", {"smallest_count": 4}),
        ("groups missing from validation", "groupdistil", {"unseen_groups": ("a",)}),
        ("validation too thin to refit on", "dfr", {"thin_groups": ("a",)}),
        ("group weights over wrong labels", "group_balanced", {"noise_low": 0.2}),
        ("error set of wrong labels", "jtt", {"noise_low": 0.2}),
        ("wrong labels", "gce", {"noise_low": 0.2}),
        ("hard groups given up", "gce", {"plain_worst": 0.3}),
        ("repairs what was right", "rld", {"noise_low": 0.2}),
        ("refused by the recipe", "pll", {"classes": 2}),
        ("two classes under a masked term", "rld", {"classes": 2}),
        ("refused by the recipe", "group_dro", {"groups": None}),
        ("refused by the recipe", "kd", {"teacher": False}),
        ("not supplied", "dett", {"supplies": ("logits",)}),
    ],
)
def test_each_gate_opens_and_closes_on_its_number(gate: str, recipe: str, change: dict[str, Any]) -> None:
    chosen = as_recipe(recipe)
    assert gate in [finding.gate for finding in findings(chosen, with_(**change))]
    assert gate not in [finding.gate for finding in findings(chosen, with_(**EVEN))]


def test_gates_that_hold_on_the_plain_case() -> None:
    assert [f.gate for f in findings(as_recipe("kd"), MEASURED)] == ["teacher knows more than the labels"]
    assert [f.gate for f in findings(as_recipe("group_dro"), MEASURED)] == ["group weights help"]
    assert findings(as_recipe("erm"), with_(hurt=("b",), noise_low=0.3, average="hurts")) == ()


@pytest.mark.parametrize(("step", "expected"), [(0.01, False), (0.1, True)])
@pytest.mark.parametrize("name", ["rld", "btkd"])
def test_a_large_step_under_large_losses_is_told(name: str, step: float, expected: bool) -> None:
    weighting: dict[str, Any] = {"name": "group_dro", "step": step}
    recipe = as_recipe({"recipe": name, "weighting": weighting})
    assert ("weights that collapse" in [f.gate for f in findings(recipe, MEASURED)]) is expected
    normalised = as_recipe({"recipe": name, "weighting": weighting | {"normalise_losses": True}})
    assert "weights that collapse" not in [f.gate for f in findings(normalised, MEASURED)]


def test_every_gate_has_a_family_and_a_message_that_can_be_filled() -> None:
    assert len({gate.name for gate in GATES}) == len(GATES)
    for gate in GATES:
        assert gate.recipes in KINDS
        assert "{" not in gate.reason(MEASURED)
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text(encoding="utf-8")
    assert all(f"| {gate.name} | {gate.recipes} | {gate.effect} |" in page for gate in GATES)


def test_advice_follows_the_numbers() -> None:
    ranked = advise(MEASURED)
    # The teacher is fair and group weights help: both speak for GroupDistil.
    assert [a.recipe for a in ranked[:2]] == ["groupdistil", "kd"]
    assert {a.recipe for a in ranked if a.verdict == "use"} >= {"kd", "groupdistil", "group_dro", "dett"}
    bad = {a.recipe: a for a in advise(with_(hurt=("b",), helped=(), teacher_worst=0.2))}
    assert bad["kd"].verdict == "avoid"
    assert bad["group_dro"].verdict == "use"
    assert bad["rld"].verdict == "no difference expected"
    assert list(bad).index("group_dro") < list(bad).index("erm") < list(bad).index("kd")
    level = {a.recipe: a.verdict for a in advise(with_(balanced_worst=0.4, gain_low=-0.1, teacher=False))}
    assert level["erm"] == level["group_dro"] == "use"
    assert level["kd"] == "avoid"
    with pytest.raises(lb.LimbeckError, match="did you mean 'groupdistil'"):
        advise(MEASURED, ["groupdistill"])


def pilot_record(**worst: float) -> dict[str, Any]:
    return {
        "data": {"groups": ["a", "b"]},
        "models": [
            {
                "key": key,
                "role": "teacher" if key == "teacher" else "student",
                "recipe": {"name": key},
                "runs": [{"test": {"worst_group": value + d, "average": 0.5}} for d in (-0.01, 0.01)],
            }
            for key, value in worst.items()
        ],
    }


def test_advice_is_held_against_a_pilot() -> None:
    ranked = advise(MEASURED)
    right = check_advice(ranked, pilot_record(erm=0.4, groupdistil=0.695, kd=0.5, group_dro=0.7, teacher=0.99))
    assert right.right
    assert (right.advised, right.best) == ("groupdistil", "group_dro")
    assert right.gap == pytest.approx(0.005)
    wrong = check_advice(ranked, pilot_record(erm=0.4, kd=0.5, group_dro=0.7))
    assert not wrong.right
    assert "wrong: kd reached 50.0%" in wrong.sentence()
    none = check_advice(ranked, pilot_record(erm=0.4, gce=0.5))
    assert none.advised is None
    assert not none.right
    with pytest.raises(ConfigError, match="no student"):
        check_advice(ranked, pilot_record(teacher=0.5))


@pytest.mark.slow
def test_a_real_pilot_can_be_asked(tmp_path: Path) -> None:
    data = shortcut_data(1200)
    found = audited(data, biased_teacher(data))
    training = lb.Training(epochs=3, batch_size=64, learning_rate=0.05)
    result = lb.pilot(
        data,
        {"table": TableTeacher(biased_teacher(data))},
        nn.Linear(2, 2),
        recipes=["kd", "group_balanced"],
        seeds=1,
        training=training,
        output=tmp_path / "run",
    )
    check = found.advice_was_right(result, tolerance=0.05)
    assert check.advised == "group_balanced"
    assert check.right


# -- the command line and the real world --------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    data = shortcut_data(600)
    np.savez(tmp_path / "d.npz", x=np.asarray(data.x), y=data.y, colour=data.attributes["colour"].codes)
    config = tmp_path / "c.yaml"
    config.write_text(
        "data: {npz: d.npz, attributes: {colour: colour}, groups: [label, colour]}\n"
        "student: linear\nteachers: {big: {model: {name: mlp, hidden: [8]}}, small: {model: linear}}\n"
        "training: {epochs: 2}\nrecipes: [kd, {recipe: rld, name: mine, weighting: {name: group_dro, step: 0.1}}]\n"
    )
    run = CliRunner().invoke(main, ["audit", str(config), "--no-trial", "--protect", "1@.1"])
    assert run.exit_code == 0, run.output
    assert "A student that copies this teacher can reach at most" in run.output
    assert "mine" in run.output
    advice = run.output.split("\nteacher small")[0].split("Advice")[1]
    assert advice.count(" kd:") + advice.count(" kd\n") == 1
    plain = CliRunner().invoke(main, ["audit", str(config), "--no-trial", "--teacher", "big", "--json"])
    assert json.loads(plain.stdout)["big"]["measured"]["teacher"] is True
    assert json.loads(plain.stdout)["big"]["trial"] is None
    unknown = CliRunner().invoke(main, ["audit", str(config), "--teacher", "bigg"])
    assert unknown.exit_code == 2
    assert "did you mean 'big'" in unknown.output
    assert CliRunner().invoke(main, ["audit", str(config), "--protect", "1@x"]).exit_code == 2


@pytest.mark.data
def test_the_deployed_model_would_hurt_employed_people_with_a_disability(limbeck_data: Path) -> None:
    data = lb.load(
        "acs-employment",
        ["label", "disability"],
        folder=limbeck_data,
        train_years=[2015],
        test_years=[2016],
        samples=24_000,
    )
    p = data.columns["predicted_probability"]
    found = audited(data, {"id": data.ids, "no": 1 - p, "yes": p})
    assert found.cap.hurt == ("employed=yes, disability=yes",)
    assert found.cap.copy is not None
    assert found.cap.copy.worst < 0.45
    assert found.cap.labels.worst > 0.6
    verdict = next(v for v in found.cap.verdicts if v.verdict == "hurts")
    assert "Copying this teacher will hurt *employed=yes, disability=yes* (" in verdict.sentence()
    assert next(a.verdict for a in found.advice if a.recipe == "kd") == "avoid"
    assert found.advice[0].recipe in ("group_dro", "group_balanced", "dfr")
    # The labels are as the census left them: what looks wrong stays below what would change the advice.
    assert not found.measured.noisy
    # Cleaning would not empty the cell that models know least.
    cell = next(c for c in found.labels.guarded.cells if c.name == "employed=yes, disability=yes")
    assert cell.allowed <= 0.1 * cell.samples
