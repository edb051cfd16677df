"""Groups: declared over attributes and the label, or numbered by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import Data
from limbeck.errors import DataError
from limbeck.groups import Column, Groups, declare

SEX = Column(("Female", "Male"), np.array([0, 0, 1, 1, 0, -1]))
RACE = Column(("Black", "White", "Other"), np.array([0, 1, 1, 1, 0, 1]))
LABELS = np.array([0, 1, 0, 1, 0, 1])
CLASSES = ("<=50K", ">50K")


def test_one_attribute_gives_one_group_a_value():
    groups = declare({"sex": SEX}, LABELS, CLASSES, "sex")
    assert groups.names == ("sex=Female", "sex=Male")
    assert groups.columns == ("sex",)
    assert groups.index.tolist() == [0, 0, 1, 1, 0, -1]
    assert groups.index.dtype == np.int64
    assert groups.unknown == 1


def test_a_product_keeps_the_cells_that_occur_in_the_order_of_the_product():
    groups = declare({"sex": SEX, "race": RACE}, LABELS, CLASSES, ["sex", "race"])
    assert groups.names == ("sex=Female, race=Black", "sex=Female, race=White", "sex=Male, race=White")
    assert groups.index.tolist() == [0, 1, 2, 2, 0, -1]
    assert groups.cells == (("Female", "Black"), ("Female", "White"), ("Male", "White"))


def test_all_cells_are_kept_when_asked_for():
    groups = declare({"sex": SEX, "race": RACE}, LABELS, CLASSES, ["sex", "race"], cells="all")
    assert len(groups.names) == 6
    assert groups.counts().tolist() == [2, 1, 0, 0, 2, 0]


def test_the_label_is_a_column_and_its_name_is_shown():
    groups = declare({"sex": SEX}, LABELS, CLASSES, ["label", "sex"], label_name="income")
    assert groups.names[0] == "income <=50K, sex=Female"
    assert groups.names[-1] == "income >50K, sex=Male"
    assert groups.columns == ("label", "sex")
    same = declare({"sex": SEX}, LABELS, CLASSES, ["income", "sex"], label_name="income")
    assert same.names == groups.names
    assert same.columns == ("label", "sex")


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-1, 2), min_size=n, max_size=n),
            st.lists(st.integers(-1, 1), min_size=n, max_size=n),
            st.lists(st.integers(0, 2), min_size=n, max_size=n),
        )
    )
)
def test_a_product_agrees_with_pandas(values):
    a, b, label = (np.array(part) for part in values)
    attributes = {"a": Column(("p", "q", "r"), a), "b": Column(("s", "t"), b)}
    known = (a >= 0) & (b >= 0)
    if not known.any():
        with pytest.raises(DataError, match="no sample has a known value"):
            declare(attributes, label, ("0", "1", "2"), ["label", "a", "b"])
        return
    groups = declare(attributes, label, ("0", "1", "2"), ["label", "a", "b"])
    frame = pd.DataFrame({"label": label, "a": a, "b": b})[known]
    expected = frame.groupby(["label", "a", "b"]).size()
    assert groups.counts().tolist() == expected.tolist()
    assert groups.unknown == int((~known).sum())
    for row in np.flatnonzero(known):
        name = f"label={label[row]}, a={'pqr'[a[row]]}, b={'st'[b[row]]}"
        assert groups.names[groups.index[row]] == name


def test_counts_of_rows_by_mask_and_by_position():
    groups = Groups.from_index([0, 1, 1, -1, 2], ["a", "b", "c"])
    assert groups.counts().tolist() == [1, 2, 1]
    assert groups.counts(np.array([True, False, True, True, False])).tolist() == [1, 1, 0]
    assert groups.counts(np.array([4, 4])).tolist() == [0, 0, 2]
    assert groups.counts().dtype == np.int64


def test_taking_rows_keeps_every_name():
    groups = Groups.from_index([0, 1, 2], ["a", "b", "c"]).take(np.array([2]))
    assert groups.names == ("a", "b", "c")
    assert groups.counts().tolist() == [0, 0, 1]


def test_numbered_groups_are_named_where_no_names_are_given():
    assert Groups.from_index([1, 0]).names == ("group 0", "group 1")


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        ([3, 10, None, 3], ("3", "10"), [0, 1, -1, 0]),
        (np.array([2.0, np.nan, 1.0]), ("1", "2"), [1, -1, 0]),
        (["b", "", "a", None], ("a", "b"), [1, -1, 0, -1]),
        ([True, False], ("False", "True"), [1, 0]),
        (pd.Series(["x", None, "y"], dtype="category"), ("x", "y"), [0, -1, 1]),
        (np.array(["f", "m"], dtype=object), ("f", "m"), [0, 1]),
    ],
)
def test_columns_are_coded_from_anything_discrete(values, names, codes):
    column = Column.of(values)
    assert column.values == names
    assert column.codes.tolist() == codes
    assert column.missing == codes.count(-1)


def test_allowed_values_give_the_order_and_may_be_absent():
    column = Column.of(["low", "high"], "risk", allowed=["low", "middle", "high"])
    assert column.values == ("low", "middle", "high")
    assert column.codes.tolist() == [0, 2]
    assert column.strings().tolist() == ["low", "high"]


def test_data_with_groups_keeps_the_split_and_leaves_the_first_value_alone():
    data = Data(np.eye(20), [0, 1] * 10, attributes={"site": ["a"] * 12 + ["b"] * 8})
    grouped = data.with_groups(["label", "site"])
    assert data.groups is None
    assert data.num_groups == 0
    assert grouped.num_groups == 4
    assert np.array_equal(grouped.split, data.split)
    assert grouped.with_groups(None).groups is None
    numbered = data.with_groups(np.arange(20) % 2, group_names=["even", "odd"])
    assert numbered.groups.names == ("even", "odd")


def test_views_keep_the_names_of_all_groups():
    split = ["train"] * 3 + ["validation"] + ["test"] * 2
    with pytest.warns(UserWarning, match="group 1"):
        data = Data(np.eye(6), [0, 1] * 3, groups=[0, 0, 0, 0, 1, 1], split=split)
    assert data.train.groups.names == data.groups.names
    assert data.train.groups.counts().tolist() == [3, 0]
