"""Data: a value of samples by id."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck.data import Data, seeding
from limbeck.data.splits import make_split, share_out
from limbeck.errors import DataError


def make(n: int = 60, **changes) -> Data:
    rng = np.random.default_rng(0)
    arguments = {
        "x": rng.normal(size=(n, 3)),
        "y": np.arange(n) % 2,
        "attributes": {"site": np.array(["a", "b", "c"])[np.arange(n) % 3]},
        "ids": np.arange(n) * 7 + 3,
        "columns": {"score": np.linspace(0, 1, n)},
    }
    return Data(**{**arguments, **changes})


# -- types -------------------------------------------------------------------------------------------------------


def test_arrays_get_the_promised_types():
    data = make()
    assert data.x.dtype == np.float32
    assert data.y.dtype == np.int64
    assert data.ids.dtype == np.int64
    assert data.split.dtype == np.int8
    assert data.classes == ("0", "1")
    assert data.attributes["site"].values == ("a", "b", "c")
    assert len(data) == 60
    assert data.num_classes == 2


def test_arrays_of_the_right_type_are_not_copied_and_never_changed():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    before = x.copy()
    data = Data(x, [0, 1] * 3, split="train", fractions=None)
    assert data.x is x
    data.train.x[...] = 9
    assert not np.array_equal(x, before), "neighbouring rows are a view"
    x[...] = before
    data.subset([5, 0]).x[...] = 9
    assert np.array_equal(x, before)


def test_tensors_give_the_same_data_as_arrays():
    x, y = torch.randn(10, 4), torch.arange(10) % 2
    one = Data(x, y, attributes={"a": torch.arange(10) % 3})
    two = Data(x.numpy(), y.numpy(), attributes={"a": np.arange(10) % 3})
    assert one.fingerprint() == two.fingerprint()
    assert Data(x.to(torch.bfloat16), y).x.dtype == np.float32
    assert Data(x.requires_grad_(), y).x.shape == (10, 4)


def test_images_tokens_and_named_inputs():
    images = np.zeros((6, 3, 4, 5), np.uint8)
    data = Data(images, [0, 1] * 3, normalise=([0.1, 0.2, 0.3], [1, 1, 2]))
    assert data.x.dtype == np.uint8
    assert data.sample_shape == (3, 4, 5)
    assert data.normalise == ((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    named = Data({"tokens": np.ones((6, 9), np.int32), "age": np.ones(6), "image": images}, [0, 1] * 3)
    assert named.x["tokens"].dtype == np.int64
    assert named.x["age"].dtype == np.float32
    assert named.x["image"].dtype == np.uint8
    assert named.sample_shape == {"tokens": (9,), "age": (), "image": (3, 4, 5)}
    assert named.subset([4, 2]).x["age"].shape == (2,)


class Squares:
    """A lazy reader that counts what it reads."""

    def __init__(self, n: int) -> None:
        self.n, self.read = n, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.read += len(rows)
        return (np.asarray(rows, np.float32) ** 2)[:, None]


def test_a_reader_is_read_only_for_the_rows_asked_for():
    reader = Squares(1000)
    data = Data(reader, np.arange(1000) % 2)
    assert reader.read < 10
    part = data.subset(np.array([7, 3])).subset([1, 0])
    assert part.x[np.array([0])].tolist() == [[9.0]]
    assert part.inputs(np.array([1])).tolist() == [[49.0]]
    assert part.inputs(slice(0, 2)).tolist() == [[9.0], [49.0]]
    assert reader.read < 20
    assert data.fingerprint() == Data(Squares(1000), np.arange(1000) % 2).fingerprint()


@pytest.mark.parametrize(
    ("y", "classes", "codes", "names"),
    [
        (["no", "yes", "no"], None, [0, 1, 0], ("no", "yes")),
        ([10, 2, 10], None, [1, 0, 1], ("2", "10")),
        ([2.0, 1.0, 1.0], None, [1, 0, 0], ("1", "2")),
        ([True, False, True], None, [1, 0, 1], ("False", "True")),
        ([2, 0, 2], ["a", "b", "c"], [2, 0, 2], ("a", "b", "c")),
        (["c", "a", "c"], ["c", "b", "a"], [0, 2, 0], ("c", "b", "a")),
        ([5, 3, 5], [3, 4, 5], [2, 0, 2], ("3", "4", "5")),
        (["7", "5", "7"], [5, 7], [1, 0, 1], ("5", "7")),
    ],
)
def test_labels_of_any_kind_are_mapped(y, classes, codes, names):
    data = Data(np.eye(3), y, classes=classes, split="train", fractions=None)
    assert data.y.tolist() == codes
    assert data.classes == names


# -- splits ------------------------------------------------------------------------------------------------------


def test_made_splits_are_disjoint_complete_and_seeded():
    data = make(500, groups="site")
    assert sum(data.sizes.values()) == 500
    assert abs(data.sizes["train"] - 300) <= 3
    ids = np.concatenate([data.train.ids, data.validation.ids, data.test.ids])
    assert sorted(ids) == sorted(data.ids)
    assert np.array_equal(make(500, groups="site").split, data.split)
    assert not np.array_equal(make(500, groups="site", seed=1).split, data.split)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 6),
    st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.5, 0.0), (0.8, 0.0, 0.2), (0.98, 0.01, 0.01)]),
    st.integers(0, 5),
)
def test_splits_are_stratified_to_a_sample(n, groups, fractions, seed):
    rng = np.random.default_rng(seed)
    strata, ids = rng.integers(0, groups, n), rng.permutation(10 * n)[:n]
    split = make_split(strata, np.zeros(n, int), ids, fractions, seed)
    for g in range(groups):
        size = int((strata == g).sum())
        counts = np.bincount(split[strata == g], minlength=3)
        assert counts.sum() == size
        wanted = sum(share > 0 for share in fractions)
        for code, share in enumerate(fractions):
            if share == 0:
                assert counts[code] == 0
            elif size >= wanted:
                assert counts[code] >= 1
            assert counts[code] <= size * share + 1
        if size:
            assert counts[0] >= 1, "training comes first"


def test_a_split_belongs_to_the_ids_and_not_to_the_order():
    data = make(200, groups="site")
    order = np.random.default_rng(1).permutation(200)
    again = Data(
        data.x[order],
        data.y[order],
        attributes={"site": data.attributes["site"].strings()[order]},
        groups="site",
        ids=data.ids[order],
    )
    assert np.array_equal(again.split, data.split[order])


def test_splits_keep_the_shares_of_the_label_within_a_group():
    rng = np.random.default_rng(3)
    y, site = (rng.random(2000) < 0.3).astype(int), rng.integers(0, 3, 2000)
    data = Data(np.zeros((2000, 1)), y, groups=site)
    for g in range(3):
        inside = site == g
        for code, share in enumerate((0.6, 0.2, 0.2)):
            expected = share * y[inside].sum()
            assert abs(y[inside & (data.split == code)].sum() - expected) <= 2


def test_the_random_part_of_a_split_is_not_tied_to_the_id():
    split = make_split(np.zeros(20_000, int), np.zeros(20_000, int), np.arange(20_000), (0.5, 0.25, 0.25), 0)
    assert abs(np.corrcoef(split, np.arange(20_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(split[:-1], split[1:])[0, 1]) < 0.03


def test_validation_is_cut_from_train_and_test_stays():
    declared = np.array(["train"] * 40 + ["test"] * 20)
    data = make(60, split=declared)
    assert data.sizes == {"train": 30, "validation": 10, "test": 20}
    assert np.array_equal(data.split == 2, declared == "test")
    kept = make(60, split=declared, fractions=None)
    assert kept.sizes == {"train": 40, "validation": 0, "test": 20}


@pytest.mark.parametrize(
    "split", [["Train", "valid", "TEST"], ["training", "dev", "testing"], [0, 1, 2], [0.0, 1.0, 2.0]]
)
def test_declared_splits_are_read_by_any_usual_name(split):
    data = Data(np.eye(3), [0, 1, 0], split=split)
    assert data.split.tolist() == [0, 1, 2]


@given(st.integers(1, 200), st.floats(0.05, 0.9), st.floats(0.0, 1.0))
def test_sharing_out_adds_up(n, train, rest):
    fractions = (train, (1 - train) * rest, 1 - train - (1 - train) * rest)
    counts = share_out(n, fractions)
    assert sum(counts) == n
    assert min(counts) >= 0


# -- views and changes -------------------------------------------------------------------------------------------


def test_views_say_where_they_come_from():
    data = make(groups=["label", "site"])
    for code, view in enumerate([data.train, data.validation, data.test]):
        assert np.array_equal(view.parent_rows, np.flatnonzero(data.split == code))
        assert np.array_equal(view.x, data.x[view.parent_rows])
        assert np.array_equal(view.columns["score"], data.columns["score"][view.parent_rows])
        assert np.array_equal(view.groups.index, data.groups.index[view.parent_rows])
        assert view.classes == data.classes
    assert data.parent_rows is None
    assert data.train is data.train
    nested = data.train.subset([4, 1])
    assert nested.ids.tolist() == data.train.ids[[4, 1]].tolist()
    assert np.array_equal(nested.x, data.train.x[[4, 1]])


def test_a_subset_copies_nothing_before_x_is_asked_for():
    data = Data(np.zeros((10, 4), np.float32), np.arange(10) % 2, split="train", fractions=None)
    part = data.subset(np.arange(2, 8))
    assert part.inputs(slice(0, 2)).shape == (2, 4)
    assert np.shares_memory(part.x, data.x), "neighbouring rows are a view"
    assert part.x is part.x
    mask = np.zeros(10, bool)
    mask[[9, 0]] = True
    assert data.subset(mask).ids.tolist() == [0, 9]


def test_replace_gives_a_checked_copy():
    data = make(groups=["label", "site"])
    flipped = data.replace(y=1 - data.y, name="flipped")
    assert data.y[0] == 0
    assert flipped.y[0] == 1
    assert np.array_equal(flipped.split, data.split)
    assert flipped.groups.names[flipped.groups.index[0]] == "label=1, site=a", "groups follow the label"
    assert data.groups.names[data.groups.index[0]] == "label=0, site=a"
    assert flipped.columns.keys() == data.columns.keys()
    assert data.train.replace(name="x").sizes == data.train.sizes, "nothing is cut again"
    assert np.array_equal(data.train.replace(name="x").parent_rows, data.train.parent_rows)
    with pytest.raises(DataError, match="did you mean 'attributes'"):
        data.replace(atributes={})
    with pytest.raises(DataError, match="NaN"):
        data.replace(x=np.full((60, 3), np.nan))


def test_groups_keep_their_numbers_when_labels_change():
    site = np.array(["a", "a", "b", "b"] * 5)
    data = Data(np.eye(20), [0, 1, 1, 1] * 5, attributes={"site": site}, groups=["label", "site"])
    assert data.groups.names == ("label=0, site=a", "label=1, site=a", "label=1, site=b")
    part = data.train.replace(y=np.ones(len(data.train), int))
    assert part.groups.names == data.groups.names, "a cell that became empty keeps its number"
    assert set(part.groups.index) == {1, 2}
    wrong = data.replace(y=1 - data.y)
    assert wrong.groups.names == (*data.groups.names, "label=0, site=b"), "a new cell comes last"
    assert wrong.groups.index[:4].tolist() == [1, 0, 3, 3]
    assert wrong.groups.cells[3] == ("0", "b")
    renamed = data.replace(classes=["no", "yes"])
    assert renamed.groups.names == ("label=no, site=a", "label=yes, site=a", "label=yes, site=b")
    assert data.replace(attributes={}).groups.names == data.groups.names, "without their columns they stay as they are"


def test_fingerprint_sees_every_part_and_nothing_else():
    data = make()
    print_of = data.fingerprint()
    assert len(print_of) == 32
    assert make().fingerprint() == print_of
    assert data.with_groups("site").fingerprint() == print_of
    assert data.replace(name="other", columns={}).fingerprint() == print_of
    x = data.x.copy()
    x[17, 1] += 1e-3
    changed = [
        data.replace(x=x),
        data.replace(y=1 - data.y),
        data.replace(ids=data.ids + 1),
        data.replace(split=np.roll(data.split, 1)),
        data.replace(attributes={}),
        data.replace(attributes={"site": np.roll(data.attributes["site"].strings(), 1)}),
        data.replace(classes=["no", "yes"]),
        data.subset(np.arange(59)),
        data.subset(np.roll(np.arange(60), 1)),
    ]
    prints = {part.fingerprint() for part in changed} | {print_of}
    assert len(prints) == len(changed) + 1
    images = Data(np.zeros((8, 1, 2, 2), np.uint8), [0, 1] * 4)
    assert images.fingerprint() != images.replace(normalise=([0.5], [0.5])).fingerprint()


def test_fingerprint_of_a_part_is_that_of_the_same_samples_alone():
    data = make(5000)
    rows = np.random.default_rng(0).permutation(5000)[:4500]
    alone = Data(
        data.x[rows],
        data.y[rows],
        attributes={"site": data.attributes["site"].strings()[rows]},
        ids=data.ids[rows],
        split=data.split[rows],
        fractions=None,
    )
    assert data.subset(rows).fingerprint() == alone.fingerprint()


def test_summary_and_repr_tell_the_essentials():
    data = make(groups=["label", "site"])
    table = data.summary()
    assert [row["group"] for row in table] == list(data.groups.names)
    assert sum(row["train"] for row in table) == len(data.train)
    assert sum(row["share"] for row in table) == pytest.approx(1)
    shown = repr(data)
    for part in ["60 samples", "3 features", "2 classes", "site", "6 groups over label × site", "smallest in training"]:
        assert part in shown
    assert [row["label"] for row in make().summary()] == ["0", "1"]
    unknown = make(groups=np.where(np.arange(60) < 5, -1, 0)).summary()
    assert unknown[-1]["group"] == "unknown"
    assert unknown[-1]["train"] + unknown[-1]["validation"] + unknown[-1]["test"] == 5


# -- what training needs ------------------------------------------------------------------------------------------


def test_a_group_absent_from_training_warns_at_first_and_is_refused_for_training():
    arguments = {"groups": [0, 0, 0, 1, 1], "split": ["train", "train", "validation", "test", "test"]}
    with pytest.warns(UserWarning, match="'group 1' of 'data' has no training sample"):
        data = Data(np.eye(5), [0, 1, 0, 1, 1], **arguments)
    data.check()
    with pytest.raises(DataError, match=r"'group 1'.*no training sample.*merge it"):
        data.check(groups_required=True)


def test_check_passes_what_training_can_use():
    make(groups=["label", "site"]).check(groups_required=True, splits=("train", "validation", "test"))


# -- random numbers by id ----------------------------------------------------------------------------------------


def test_numbers_by_id_are_uniform_and_independent():
    ids = np.arange(100_000)
    draws = {(seed, stream): seeding.uniform(seed, stream, ids) for seed in (0, 1, 2) for stream in ("split", "noise")}
    for values in draws.values():
        assert values.min() > 0
        assert values.max() < 1
        assert stats.kstest(values, "uniform").pvalue > 1e-3
        assert stats.chisquare(np.bincount((values * 64).astype(int))).pvalue > 1e-3
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015
    matrix = np.corrcoef(np.stack(list(draws.values())))
    assert np.abs(matrix - np.eye(6)).max() < 0.015
    assert stats.kstest(seeding.normal(0, "n", ids), "norm").pvalue > 1e-3
    assert np.bincount(seeding.integers(0, "i", ids, 3), minlength=3).min() > 32_700


def reference(seed: int, stream: str, identity: int) -> float:
    """The same number in plain integers."""
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    digest = hashlib.blake2b(f"{seed}|{stream}".encode(), digest_size=16).digest()
    first, second = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    state = mix(mix(((identity & mask) * 0x9E3779B97F4A7C15 + first) & mask) + second & mask)
    return ((state >> 11) + 0.5) / 2**53


@given(st.integers(-(2**70), 2**70), st.text(), st.integers(-(2**63), 2**63 - 1))
def test_numbers_by_id_follow_their_definition(seed, stream, identity):
    assert seeding.uniform(seed, stream, np.array([identity, 5]))[0] == reference(seed, stream, identity)


def test_numbers_by_id_do_not_change_between_releases():
    values = seeding.uniform(0, "split", np.array([0, 1, -5, 2**62]))
    assert values.tolist() == [0.7912379904989082, 0.2685192806498837, 0.19559757165560016, 0.17348835119543998]


def test_importing_data_does_not_import_torch():
    code = "import sys, limbeck.data, limbeck.groups; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- values of an attribute as one -------------------------------------------------------------------------------


def test_values_of_an_attribute_are_merged_and_groups_follow():
    data = make(groups=["label", "site"])
    site = data.attributes["site"].strings()
    merged = data.merge_values("site", {"not a": ["b", "c"]})
    assert merged.attributes["site"].values == ("a", "not a")
    np.testing.assert_array_equal(merged.attributes["site"].strings(), np.where(site == "a", "a", "not a"))
    assert merged.num_groups == 4
    assert merged.groups.columns == ("label", "site")
    np.testing.assert_array_equal(merged.split, data.split)
    assert data.attributes["site"].values == ("a", "b", "c"), "the data it was made from stay as they were"
    missing = make(attributes={"site": np.array(["a", "b", None])[np.arange(60) % 3]}).merge_values(
        "site", {"x": ["b"]}
    )
    assert missing.attributes["site"].missing == 20


@pytest.mark.parametrize(
    ("attribute", "values", "message"),
    [
        ("sight", {"x": ["a"]}, "unknown attribute 'sight'.*site"),
        ("site", {"x": ["a", "d"]}, "attribute 'site': unknown value 'd'"),
        ("site", {"x": ["a"], "y": ["a"]}, "'a' is merged twice"),
    ],
)
def test_what_cannot_be_merged_is_refused(attribute, values, message):
    with pytest.raises(DataError, match=message):
        make().merge_values(attribute, values)
