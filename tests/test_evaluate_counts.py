"""Counts by group: against scikit-learn and loops, merging, and groups that are absent, unknown or out of range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from limbeck.errors import DataError
from limbeck.evaluation import GroupCounts
from limbeck.evaluation import counts as counts_module

CLASSES = ("a", "b", "c")
GROUPS = ("north", "south", "east", "west")


def sample(
    n: int = 500, seed: int = 0, groups: tuple[int, ...] = (-1, 0, 1, 3)
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    p = np.where(rng.random(n) < 0.7, y, rng.integers(0, 3, n))
    return y, p, rng.choice(np.array(groups), n)


def count(y: object, p: object, g: object, **options: object) -> GroupCounts:
    return GroupCounts.from_predictions(y, p, g, class_names=CLASSES, group_names=GROUPS, **options)  # type: ignore[arg-type]


def test_against_scikit_learn_and_a_loop() -> None:
    y, p, g = sample()
    counts = count(y, p, g)
    assert counts.table is not None
    assert counts.table.dtype == np.int64
    assert counts.table.shape == (5, 3, 3)
    np.testing.assert_array_equal(counts.confusion, confusion_matrix(y, p, labels=[0, 1, 2]))
    for group in range(4):
        here = g == group
        np.testing.assert_array_equal(
            counts.group_confusion[group],
            np.array([[np.sum(here & (y == t) & (p == k)) for k in range(3)] for t in range(3)]),
        )
        assert counts.totals[group] == here.sum()
        assert counts.correct[group] == (here & (y == p)).sum()
        if here.any():
            assert counts.accuracy[group] == np.mean(p[here] == y[here])
    assert counts.average == np.mean(y == p)
    assert counts.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, p))
    for c in range(3):
        assert counts.class_accuracy[c] == np.mean(p[y == c] == c)


def test_absent_group_is_nan_and_never_its_neighbours() -> None:
    """Group 2 is absent and group 3 is all wrong: the errors must stay with 3."""
    y = np.array([0, 1, 2, 0, 1, 2])
    p = np.array([0, 1, 2, 0, 2, 1])
    g = np.array([0, 0, 1, 1, 3, 3])
    counts = count(y, p, g)
    np.testing.assert_array_equal(counts.accuracy, [1.0, 1.0, np.nan, 0.0])
    worst = counts.worst()
    assert worst is not None
    assert (worst.position, worst.name, worst.accuracy, worst.samples) == (3, "west", 0.0, 2)
    # Without group 3's samples no group is bad, and the absent ones do not become the worst with 0.
    worst = count(y[:4], p[:4], g[:4]).worst()
    assert worst is not None
    assert worst.accuracy == 1.0


def test_unknown_group_counts_in_the_average_and_in_no_group() -> None:
    y, p, g = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0]), np.array([0, -1, -1, -1])
    counts = count(y, p, g)
    assert (counts.unknown_total, counts.unknown_correct) == (3, 1)
    np.testing.assert_array_equal(counts.totals, [1, 0, 0, 0])
    assert counts.average == 0.5
    assert counts.samples == 4
    assert counts.confusion.sum() == 4


def test_minimum_keeps_small_groups_from_being_the_worst() -> None:
    y = np.zeros(22, np.int64)
    g = np.array([0] * 20 + [1] * 2)
    p = np.where(g == 1, 1, 0)
    p[0] = 1
    counts = count(y, p, g)
    assert counts.worst(1).name == "south"  # type: ignore[union-attr]
    assert counts.worst(3).name == "north"  # type: ignore[union-attr]
    assert counts.worst(21) is None
    assert np.isnan(counts.gap(21))
    assert counts.gap(3) == pytest.approx(counts.average - 0.95)


def test_average_weighted_by_training_shares() -> None:
    y, p, g = sample(groups=(0, 1, 2, 3))
    counts = count(y, p, g)
    training = np.array([100, 20, 0, 5])
    expected = sum(training[k] / 125 * counts.accuracy[k] for k in range(4))
    assert counts.average_weighted(training) == pytest.approx(expected, rel=1e-15)
    # Its own shares give back the plain average.
    assert counts.average_weighted(counts.totals) == pytest.approx(counts.average, rel=1e-14)


def test_average_weighted_is_unknown_where_a_trained_group_is_absent() -> None:
    y, p, g = sample(groups=(0, 1, 3))
    counts = count(y, p, g)
    assert np.isnan(counts.average_weighted(np.array([5, 5, 1, 5])))
    assert np.isfinite(counts.average_weighted(np.array([5, 5, 0, 5])))
    assert np.isnan(counts.average_weighted(np.zeros(4)))
    with pytest.raises(DataError, match="expected 4 counts"):
        counts.average_weighted(np.array([1, 2]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-1, 3)), min_size=1, max_size=60),
    st.integers(0, 60),
    st.booleans(),
)
def test_merging_parts_gives_the_whole(rows: list[tuple[int, int, int]], cut: int, compact: bool) -> None:
    y, p, g = np.array(rows, np.int64).T
    whole = count(y, p, g, compact=compact)
    parts = count(y[:cut], p[:cut], g[:cut], compact=compact) + count(y[cut:], p[cut:], g[cut:], compact=compact)
    assert parts == whole
    assert parts.average == whole.average
    assert parts.worst() == whole.worst()
    # Every order of the samples counts the same.
    assert count(y[::-1], p[::-1], g[::-1], compact=compact) == whole
    assert whole.samples == len(rows)


def test_compact_counts_agree_with_full_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    y, p, g = sample()
    full, small = count(y, p, g), count(y, p, g, compact=True)
    assert small.table is None
    np.testing.assert_array_equal(full.outcomes, small.outcomes)
    np.testing.assert_array_equal(full.confusion, small.confusion)
    assert full.worst() == small.worst()
    assert full != small
    assert full + small == small + full
    with pytest.raises(DataError, match="was not kept"):
        _ = small.group_confusion
    monkeypatch.setattr(counts_module, "FULL_TABLE_CELLS", 5 * 9 - 1)
    assert count(y, p, g).table is None
    monkeypatch.setattr(counts_module, "FULL_TABLE_CELLS", 5 * 9)
    assert count(y, p, g).table is not None


def test_a_thousand_classes_and_a_hundred_groups_need_no_gigabyte() -> None:
    rng = np.random.default_rng(0)
    y, p, g = rng.integers(0, 1000, 2000), rng.integers(0, 1000, 2000), rng.integers(0, 100, 2000)
    names = [str(k) for k in range(1000)]
    counts = GroupCounts.from_predictions(y, p, g, class_names=names, group_names=names[:100])
    assert counts.table is None
    assert counts.outcomes.nbytes + counts.confusion.nbytes < 10e6
    np.testing.assert_array_equal(counts.totals, np.bincount(g, minlength=100))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 3, 1]}, "labels: 3 of sample 1 is out of range: there are 3 classes"),
        ({"p": [0, 1, -1]}, "predictions: -1 of sample 2"),
        ({"g": [4, 0, 0]}, "groups: 4 of sample 0 .* or -1 for unknown"),
        ({"g": [-2, 0, 0]}, "groups: -2 of sample 0"),
        ({"y": [0, 1]}, "lengths differ: labels has 2, predictions has 3"),
        ({"y": [0.0, 1.0, 2.0]}, "labels: expected integers"),
        ({"p": [[0, 1, 2]]}, r"predictions: expected integers of shape \[N\]"),
    ],
)
def test_bad_input_is_refused(change: dict[str, list[float]], message: str) -> None:
    given_ = {"y": [0, 1, 2], "p": [0, 1, 2], "g": [0, 1, 2]} | change
    with pytest.raises(DataError, match=message):
        count(np.array(given_["y"]), np.array(given_["p"]), np.array(given_["g"]))


def test_counts_of_other_groups_or_classes_do_not_merge() -> None:
    y, p, g = sample()
    other = GroupCounts.from_predictions(y, p, g, class_names=CLASSES, group_names=GROUPS[::-1])
    with pytest.raises(DataError, match="different groups"):
        _ = count(y, p, g) + other
    with pytest.raises(DataError, match="group_names: required"):
        GroupCounts.from_predictions(y, p, g, class_names=CLASSES)
    with pytest.raises(DataError, match="same predictions"):
        GroupCounts(("a",), ("x", "y"), np.array([[1, 2], [0, 0]]), np.array([[3, 1], [0, 0]]))


def test_inputs_are_left_alone_and_small_integer_types_do_not_overflow() -> None:
    y, p, g = sample(groups=(-1, 0, 1, 2, 3))
    kept = (y.copy(), p.copy(), g.copy())
    narrow = count(y.astype(np.uint8), p.astype(np.int8), g.astype(np.int8))
    assert narrow == count(y, p, g)
    for before, after in zip(kept, (y, p, g), strict=True):
        np.testing.assert_array_equal(before, after)
