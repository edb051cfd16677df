"""`evaluate`: from logits, classes, models and data; what it shows, and plain data there and back."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import log_loss

from limbeck.errors import ConfigError, DataError, MissingExtraError
from limbeck.evaluation import Evaluation, evaluate, expected_calibration_error, wilson, worst_group_interval
from limbeck.evaluation import result as result_module

NAMES = ("north", "south", "east", "west")
CLASSES = ("cat", "dog", "owl")


@dataclass(frozen=True)
class Groups:
    names: tuple[str, ...]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class Data:
    y: NDArray[np.int64]
    groups: Groups | None
    classes: tuple[str, ...]


def sample(n: int = 800, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Logits, labels and groups: group 2 ("east") is absent, 3 ("west") hard and small, some groups are unknown."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    g = rng.choice([-1, 0, 1, 3], n, p=[0.05, 0.6, 0.3, 0.05])
    z = rng.normal(0, 1, (n, 3))
    z[np.arange(n), y] += np.where(g == 3, 0.3, 2.0)
    return z, y, g


@pytest.fixture(scope="module")
def found() -> Evaluation:
    z, y, g = sample()
    return evaluate(z, labels=y, groups=g, group_names=NAMES, classes=CLASSES, training_counts=[60, 30, 0, 5])


def test_rows_and_summary_against_single_computations(found: Evaluation) -> None:
    z, y, g = sample()
    right = z.argmax(1) == y
    assert [row.name for row in found.rows] == [*NAMES, "(unknown group)"]
    for row, group in zip(found.rows, (0, 1, 2, 3, -1), strict=True):
        here = g == group
        assert row.n == here.sum()
        if group == 2:
            for value in (row.accuracy, row.low, row.high, row.nll, row.brier, row.calibration_error):
                assert math.isnan(value)
            assert row.note == "no sample; not in training"
            continue
        assert row.accuracy == right[here].mean()
        low, high = wilson(right[here].sum(), here.sum())
        assert (row.low, row.high) == (low, high)
        p = softmax(z[here], axis=1)
        assert row.nll == pytest.approx(log_loss(y[here], p, labels=[0, 1, 2]), rel=1e-12)
        assert row.calibration_error == pytest.approx(expected_calibration_error(p.max(axis=1), right[here]), rel=1e-9)
    s = found.summary
    assert s["samples"] == len(y)
    assert s["average"] == right.mean()
    assert s["worst_group_name"] == "west"
    assert s["worst_group"] == right[g == 3].mean()
    assert s["gap"] == pytest.approx(s["average"] - s["worst_group"])
    counts = found.counts
    assert (s["worst_group_low"], s["worst_group_high"]) == worst_group_interval(
        counts.correct, counts.totals, minimum=10
    )
    assert s["nll"] == pytest.approx(log_loss(y, softmax(z, axis=1)), rel=1e-12)
    shares = np.array([60, 30, 5]) / 95
    assert s["average_training_weighted"] == pytest.approx(sum(shares * counts.accuracy[[0, 1, 3]]))
    assert found.rows[3].note == "worst"
    assert [row.name for row in found.class_rows] == list(CLASSES)


def test_notes_name_every_group_that_does_not_count(found: Evaluation) -> None:
    text = " | ".join(found.notes)
    unknown = int((sample()[2] == -1).sum())
    assert f"{unknown} samples of unknown group" in text
    assert "without a sample here, so without an accuracy: east" in text
    z, y, g = sample()
    strict = evaluate(z, labels=y, groups=g, group_names=NAMES, minimum=100, training_counts=[1, 1, 1, 1])
    assert strict.summary["worst_group_name"] != "west"
    assert f"too small ({(g == 3).sum()} < 100)" in strict.rows[3].note
    assert "fewer than 100 samples, never called the worst: west" in " | ".join(strict.notes)
    assert math.isnan(strict.summary["average_training_weighted"])
    assert "by training shares is not known" in " | ".join(strict.notes)


def test_plain_data_there_and_back(found: Evaluation) -> None:
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Evaluation.from_dict(json.loads(text))
    assert again == found
    assert again.rows[0] == found.rows[0]
    assert again.counts == found.counts
    plain = json.loads(text)
    for key in (
        "group_correct", "group_total", "confusion", "nll", "calibration_error", "average",
        "average_training_weighted", "worst_group", "worst_group_name", "gap",
    ):  # fmt: skip
        assert key in plain
    assert plain["group_nll"][2] is None
    assert np.shape(plain["group_confusion"]) == (4, 3, 3)
    classes_only = evaluate(np.array([0, 1]), labels=np.array([0, 0]))
    assert Evaluation.from_dict(classes_only.to_dict()) == classes_only
    assert classes_only != found


def test_large_results_leave_out_the_groups_confusions(found: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_module, "_CONFUSION_CELLS", 10)
    plain = found.to_dict()
    assert plain["group_confusion"] is None
    again = Evaluation.from_dict(plain)
    assert again == found
    np.testing.assert_array_equal(again.counts.outcomes, found.counts.outcomes)
    assert again.summary == found.summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confusion": None}, "confusion must hold counts"),
        ({"confusion": [[1.5]]}, "confusion must hold counts"),
        ({"group_total": "abc"}, "must hold counts"),
        ({"group_correct": [0, 0, 0, 0]}, "different samples"),
        ({"group_confusion": [[[1]]]}, "not as written"),
        ({"group_nll": [1.0]}, "expected scores of 4 groups"),
        ({"nll": "high"}, "not as written"),
        ({"training_counts": 3}, "not as written"),
        ({"group_names": ["a"]}, "of shape"),
    ],
)
def test_damaged_plain_data_are_refused(found: Evaluation, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Evaluation.from_dict(found.to_dict() | change)


def test_missing_key_is_named(found: Evaluation) -> None:
    plain = found.to_dict()
    del plain["group_total"]
    with pytest.raises(DataError, match="'group_total' is missing"):
        Evaluation.from_dict(plain)
    moved = found.to_dict()
    moved["group_correct"] = [moved["group_correct"][k] for k in (1, 0, 2, 3)]
    moved["group_total"] = [moved["group_total"][k] for k in (1, 0, 2, 3)]
    with pytest.raises(DataError, match="differ"):
        Evaluation.from_dict(moved)


def test_classes_logits_probabilities_and_tensors_agree() -> None:
    z, y, g = sample()
    whole = evaluate(z, labels=y, groups=g, group_names=NAMES)
    probabilities = evaluate(softmax(z, axis=1), labels=y, groups=g, group_names=NAMES)
    assert probabilities.counts == whole.counts
    assert probabilities.summary["nll"] == pytest.approx(whole.summary["nll"], rel=1e-9)
    classes = evaluate(z.argmax(1), labels=y, groups=g, group_names=NAMES)
    assert classes.counts == whole.counts
    assert math.isnan(classes.summary["nll"])
    assert "nll" not in str(classes)
    tensors = evaluate(
        torch.tensor(z, requires_grad=True), labels=torch.tensor(y), groups=torch.tensor(g), group_names=NAMES
    )
    assert tensors == whole
    coarse = evaluate(torch.tensor(z).bfloat16(), labels=torch.tensor(y), groups=torch.tensor(g), group_names=NAMES)
    assert coarse.summary["average"] == pytest.approx(whole.summary["average"], abs=0.01)


def test_from_data_and_from_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y, g = sample()
    data = Data(y, Groups(NAMES, g), CLASSES)
    expected = evaluate(z, labels=y, groups=g, group_names=NAMES, classes=CLASSES)
    assert evaluate(z, data) == expected
    # What is given apart goes before the data.
    assert evaluate(z, data, groups=np.zeros(len(y), np.int64), group_names=["one"]).counts.group_names == ("one",)
    module = types.ModuleType("limbeck.predict")
    calls = []

    def predict_logits(model: object, part: object) -> NDArray[np.float64]:
        calls.append((model, part))
        return z

    module.predict_logits = predict_logits  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "limbeck.predict", module)
    model = torch.nn.Linear(2, 3)
    assert evaluate(model, data) == expected
    assert calls == [(model, data)]
    with pytest.raises(DataError, match="nothing to run it on"):
        evaluate(model, labels=y)


def test_without_groups_there_is_one_and_the_classes_are_shown() -> None:
    z, y, _ = sample()
    one = evaluate(z, Data(y, None, CLASSES))
    assert [row.name for row in one.rows] == ["all"]
    assert one.summary["worst_group"] == one.summary["average"]
    recalls = [np.mean(z.argmax(1)[y == c] == c) for c in range(3)]
    assert one.summary["worst_class"] == min(recalls)
    assert one.summary["worst_class_name"] == CLASSES[int(np.argmin(recalls))]
    assert all(f"class {name}" in str(one) for name in CLASSES)
    assert "worst group" not in str(one)


def test_groups_by_name() -> None:
    z, y, g = sample()
    words = np.array([*NAMES, None], object)[g]
    found = evaluate(z, labels=y, groups=words)
    assert found.counts.group_names == ("north", "south", "west")
    assert found.counts.unknown_total == (g == -1).sum()
    ordered = evaluate(z, labels=y, groups=words, group_names=NAMES)
    assert ordered == evaluate(z, labels=y, groups=g, group_names=NAMES)
    pandas = pytest.importorskip("pandas")
    for dtype in ("object", "string"):
        assert evaluate(z, labels=y, groups=pandas.Series(words, dtype=dtype), group_names=NAMES) == ordered
    with pytest.raises(DataError, match="did you mean 'north'"):
        evaluate(z, labels=y, groups=np.array(["nort"] * len(y)), group_names=NAMES)
    unnamed = evaluate(z, labels=y, groups=g)
    assert unnamed.counts.group_names == ("group 0", "group 1", "group 2", "group 3")
    assert len(evaluate(z, labels=y, groups=g, training_counts=[1] * 6).counts.group_names) == 6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": None}, DataError, "labels: none given"),
        ({"labels": [0, 1]}, DataError, "lengths differ: predictions has 4, labels has 2"),
        ({"labels": [0, 1, 2, 5]}, DataError, "labels: 5 of sample 3"),
        ({"groups": [0, 1, 0]}, DataError, "lengths differ"),
        ({"groups": [0, 1, 0, 2], "group_names": ["a", "b"]}, DataError, "groups: 2 of sample 3"),
        ({"groups": [0.0, 1.0, 0.0, 1.0], "group_names": ["a", "b"]}, DataError, "groups: expected integers"),
        ({"group_names": ["a", "b"]}, DataError, "2 group names but no group"),
        ({"classes": ["a", "b"]}, DataError, "3 columns but 2 classes"),
        ({"predictions": [0.1, 0.9, 0.2, 0.3]}, DataError, "predictions: expected logits or probabilities"),
        ({"predictions": np.zeros((4, 3, 2))}, DataError, "predictions: expected logits"),
        ({"predictions": np.zeros((4, 3), int)}, DataError, "expected floats"),
        ({"predictions": np.full((4, 3), np.nan)}, DataError, "nan at sample 0, class 0"),
        ({"predictions": np.empty((0, 3)), "labels": np.empty(0, int)}, DataError, "no sample to evaluate"),
        ({"training_counts": [1, 2]}, DataError, "expected 1 counts"),
        ({"training_counts": [-1]}, DataError, "none negative"),
        ({"interval": "wilsn"}, ConfigError, "did you mean 'wilson'"),
        ({"level": 95}, ConfigError, "level: 95"),
        ({"kind": "logit"}, ConfigError, "did you mean 'logits'"),
        ({"binning": "width"}, ConfigError, "binning"),
    ],
)
def test_wrong_use_is_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    rng = np.random.default_rng(0)
    given = {"predictions": rng.normal(size=(4, 3)), "labels": [0, 1, 2, 0]} | arguments
    with pytest.raises(error, match=message):
        evaluate(given.pop("predictions"), **given)  # type: ignore[arg-type]


def test_text_is_aligned_also_with_wide_characters() -> None:
    z, y, g = sample()
    found = evaluate(z, labels=y, groups=g, group_names=["男性 >50K", "女性", "c", "d"])
    text = str(found)
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("group"))
    column = lines[start].index("accuracy") + len("accuracy")
    for line in lines[start + 2 : start + 5]:
        shown = "".join(c * (2 if ord(c) > 0x2E80 else 1) for c in line)
        if "%" in line:
            assert shown[column - 1] == "%"
    assert "average" in lines[0]
    assert "worst group d: " in text
    assert "(unknown group)" in text


def test_rich_table(found: Evaluation) -> None:
    from rich.console import Console

    console = Console(width=140, record=True, file=io.StringIO())
    console.print(found)
    text = console.export_text()
    for name in (*NAMES, "(unknown group)"):
        assert name in text
    assert "not in training" in text


def test_to_pandas(found: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert frame["name"].tolist() == [row.name for row in found.rows]
    assert frame["accuracy"].isna().tolist() == [False, False, True, False, False]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pandas"):
        found.to_pandas()


def test_inputs_are_left_alone() -> None:
    z, y, g = sample()
    kept = z.copy(), y.copy(), g.copy()
    evaluate(z, labels=y, groups=g, group_names=NAMES)
    for before, after in zip(kept, (z, y, g), strict=True):
        np.testing.assert_array_equal(before, after)


def test_neither_torch_nor_pandas_is_imported() -> None:
    code = (
        "import sys, numpy as np; from limbeck.evaluation import evaluate; "
        "str(evaluate(np.eye(3), labels=[0, 1, 2])); "
        "assert not {'torch', 'pandas', 'sklearn', 'scipy.stats'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_real_classifier_on_real_digits() -> None:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    x, y = load_digits(return_X_y=True)
    g = (x.mean(axis=1) > 4.9).astype(np.int64)
    model = LogisticRegression(max_iter=200).fit(x[:900] / 16, y[:900])
    p = model.predict_proba(x[900:] / 16)
    found = evaluate(p, labels=y[900:], groups=g[900:], group_names=["thin", "bold"])
    assert found.summary["average"] == accuracy_score(y[900:], p.argmax(1))
    assert found.summary["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[900:], p.argmax(1)))
    assert found.summary["nll"] == pytest.approx(log_loss(y[900:], p), rel=1e-9)
    for k in (0, 1):
        here = g[900:] == k
        assert found.rows[k].accuracy == accuracy_score(y[900:][here], p.argmax(1)[here])
