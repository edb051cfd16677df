"""The ledger: what is in it is what was done, it stays small, and every reader can read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import limbeck as lb
from limbeck.cli import main
from limbeck.config import config_from_dict
from limbeck.errors import ConfigError, DataError, TeacherError
from limbeck.ledgers import EDITS, SCHEMA, Ledger, overhear, runs_in, sample_weights
from limbeck.ledgers.columns import rounded
from limbeck.ledgers.heard import HeardTeacher
from limbeck.loop import Fitted
from limbeck.pilots import run_pilot
from limbeck.predict import predict_logits
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe
from limbeck.teachers import Several, Store, as_teacher
from limbeck.training import epoch_order
from limbeck.weighting import GroupDRO

CLASSES = 4


def make_data(size: int = 240, seed: int = 0) -> lb.Data:
    """Four classes in the plane, two groups, every seventh label wrong, ids out of order."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, CLASSES, size)
    x = np.eye(CLASSES)[truth] * 3 + generator.normal(size=(size, CLASSES))
    y = np.where(np.arange(size) % 7 == 0, (truth + 1) % CLASSES, truth)
    side = np.where(generator.random(size) < 0.2, "small", "large")
    ids = generator.permutation(10 * size)[:size]
    return lb.Data(
        x.astype(np.float32),
        [f"class {k}" for k in y],
        attributes={"side": side},
        groups=["side"],
        ids=ids,
        name="four",
    )


def network(hidden: int) -> nn.Module:
    torch.manual_seed(hidden)
    return nn.Sequential(nn.Linear(CLASSES, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


@pytest.fixture(scope="module")
def data() -> lb.Data:
    return make_data()


@pytest.fixture(scope="module")
def teacher(data: lb.Data) -> Fitted:
    return lb.fit(network(32), data, epochs=12, learning_rate=0.02)


def student(data: lb.Data, teacher: Any, recipe: Any, epochs: int = 4) -> Fitted:
    return lb.fit(network(6), data, teacher=teacher, recipe=recipe, epochs=epochs)


@pytest.fixture(scope="module")
def kd(data: lb.Data, teacher: Fitted) -> Ledger:
    return Ledger.of(student(data, teacher, "kd"), data, teacher)


def test_every_training_sample_has_a_row_with_what_was_said_and_told(
    kd: Ledger, data: lb.Data, teacher: Fitted
) -> None:
    table, train = kd.to_pandas(), data.train
    assert kd.samples.schema.equals(SCHEMA)
    assert table.id.tolist() == train.ids.tolist()
    assert table.label.tolist() == [train.classes[k] for k in train.y]
    assert train.groups is not None
    assert table.group.tolist() == [train.groups.names[g] for g in train.groups.index]
    said = torch.softmax(torch.from_numpy(predict_logits(teacher, train)), 1).numpy()
    told = 0.9 * said + 0.1 * np.eye(CLASSES)[train.y]
    rows = np.arange(len(train))
    for who, share in (("teacher", said), ("target", told)):
        order = np.argsort(-share, axis=1, kind="stable")
        for rank in range(3):
            names = [train.classes[k] for k in order[:, rank]]
            assert (table[f"{who}_{rank + 1}"] == names).mean() > 0.99  # float32 against float64 may part near ties
            np.testing.assert_allclose(table[f"{who}_{rank + 1}_probability"], share[rows, order[:, rank]], rtol=1e-3)
    np.testing.assert_allclose(table.teacher_label_probability, said[rows, train.y], rtol=1e-3)
    onehot = np.eye(CLASSES)[train.y]
    np.testing.assert_allclose(table.moved_from_label, np.abs(told - onehot).sum(1) / 2, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(table.moved_from_teacher, np.abs(told - said).sum(1) / 2, rtol=1e-3, atol=1e-6)
    assert kd.overturned().tolist() == (told.argmax(1) != train.y).tolist()
    assert kd.overturned().any()
    assert set(table.rule) == {"kl_divergence: followed"}
    assert (table.weight_first == 1).all()
    assert not table.held_back.any()
    assert not table.reviewed.any()
    assert table.masked.isna().all()


def test_the_teacher_is_not_asked_a_second_time(data: lb.Data, teacher: Fitted) -> None:
    calls: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = teacher.model

        def forward(self, x: torch.Tensor) -> Any:
            calls.append(len(x))
            return self.inner(x)

    heard = overhear(Counting())
    assert isinstance(heard, HeardTeacher)
    fitted = student(data, heard, "kd")
    asked = len(calls)
    found = Ledger.of(fitted, data, heard)
    assert len(calls) == asked
    again = Ledger.of(fitted, data, teacher)
    assert found.samples.equals(again.samples)
    assert found.meta["teacher"] == as_teacher(heard).fingerprint()


def test_overhearing_changes_nothing_about_a_student(data: lb.Data, teacher: Fitted) -> None:
    for recipe in ("kd", "dett", "pll"):
        one, other = (student(data, source, recipe) for source in (teacher, overhear(teacher)))
        for name, value in one.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), recipe


def test_a_store_is_read_and_several_teachers_are_averaged(data: lb.Data, teacher: Fitted, tmp_path: Path) -> None:
    store = Store.write(tmp_path / "store", as_teacher(teacher), data.train)
    fitted = student(data, store, "kd")
    assert overhear(store).__class__.__name__ == "StoredTeacher"
    whole = Ledger.of(student(data, teacher, "kd"), data, teacher)
    np.testing.assert_allclose(
        Ledger.of(fitted, data, store).to_pandas().moved_from_label, whole.to_pandas().moved_from_label, atol=1e-3
    )
    biased = network(3)
    several = overhear(Several([as_teacher(biased), as_teacher(teacher)]))
    found = Ledger.of(student(data, several, "agre_kd"), data, several)
    np.testing.assert_allclose(
        found.to_pandas().teacher_1_probability, whole.to_pandas().teacher_1_probability, rtol=2e-3
    )
    assert any("1 teachers" in note for note in found.meta["notes"])


def test_the_teacher_of_a_later_round_is_the_student_before_it(data: lb.Data) -> None:
    fitted = lb.fit(network(6), data, recipe="multi_round", epochs=3)
    found = Ledger.of(fitted, data)
    said = torch.softmax(torch.from_numpy(predict_logits(fitted.earlier["round 2"], data.train)), 1).amax(1)
    np.testing.assert_allclose(found.to_pandas().teacher_1_probability, said, rtol=1e-3)
    assert "the teacher is the student of round 2" in found.meta["notes"]


def test_without_a_teacher_the_label_is_the_target_and_the_teacher_is_null(data: lb.Data) -> None:
    found = Ledger.of(student(data, None, "group_dro"), data)
    table = found.to_pandas()
    assert table.teacher_1.isna().all()
    assert table.moved_from_teacher.isna().all()
    assert (table.target_1.astype(str) == table.label.astype(str)).all()
    assert (table.moved_from_label == 0).all()


def test_group_weights_and_losses_by_epoch_are_those_of_the_history(data: lb.Data) -> None:
    fitted = student(data, None, {"recipe": "group_dro", "step": 0.5})
    found = Ledger.of(fitted, data)
    rows = found.epochs.to_pandas()
    for record in fitted.history:
        epoch = rows[rows.epoch == record["epoch"]]
        assert epoch[epoch.group.isna()].loss.item() == record["loss"]
        known = epoch[epoch.group.notna()]
        assert known.loss.tolist() == record["group_losses"]
        assert known.q.tolist() == record["group_weights"]
    table = found.to_pandas()
    assert data.train.groups is not None
    index, names = data.train.groups.index, data.train.groups.names
    for group, name in enumerate(names):
        q = [record["group_weights"][group] for record in fitted.history]
        share = len(index) / (index == group).sum()
        own = table[table.group == name]
        assert own.weight_first.to_numpy() == pytest.approx(q[0] * share, rel=1e-3)
        assert own.weight_last.to_numpy() == pytest.approx(q[-1] * share, rel=1e-3)
        assert own.weight_mean.to_numpy() == pytest.approx(np.mean(q) * share, rel=1e-3)


@pytest.mark.parametrize("sampling", ["shuffle", "group_balanced", "class_balanced"])
@pytest.mark.parametrize("weighting", ["uniform", "group_dro"])
def test_weights_are_what_a_sample_adds_to_the_loss_of_an_epoch(sampling: str, weighting: str) -> None:
    """Against the derivative of the loss by each sample's own, over many drawn epochs of one batch."""
    generator = np.random.default_rng(1)
    count, q = 90, np.array([0.7, 0.2, 0.1])
    groups = generator.choice(3, count, p=[0.6, 0.3, 0.1])
    labels = generator.integers(0, 2, count)
    recipe = Recipe(["cross_entropy"], {"name": weighting}, sampling=sampling)
    history = [{"group_weights": q.tolist()}]
    found, note = sample_weights(recipe, labels, groups, history)
    assert found is not None
    assert not note
    rule = GroupDRO(3).eval()
    rule.log_weights.copy_(torch.from_numpy(np.log(q)))
    drawn = None
    if sampling != "shuffle":
        index = groups if sampling == "group_balanced" else labels
        drawn = lb.weighting.sampling_weights(sampling, torch.from_numpy(index))
    total = torch.zeros(count)
    epochs = 1 if sampling == "shuffle" else 4000
    for epoch in range(epochs):
        order = epoch_order(count, 0, epoch, drawn)
        losses = torch.zeros(count, requires_grad=True)
        loss = losses.mean() if weighting == "uniform" else rule(losses, torch.from_numpy(groups)[order])
        total.index_add_(0, order, torch.autograd.grad(loss, losses)[0] * count)
    np.testing.assert_allclose(found.mean, total.numpy() / epochs, rtol=0.15 if epochs > 1 else 1e-5)
    assert found.mean.sum() == pytest.approx(count, rel=1e-5)


def test_an_error_set_weighs_what_the_weighting_says(data: lb.Data) -> None:
    for source in ("eval", "online"):
        fitted = student(data, None, {"recipe": "jtt", "upweight": 5.0, "source": source})
        weights = Ledger.of(fitted, data).to_pandas().weight_mean.to_numpy()
        size = fitted.details["error_set"]["size"]
        assert 0 < size < len(data.train)
        high, low = weights.max(), weights.min()
        assert (weights > (high + low) / 2).sum() == size
        assert high / low == pytest.approx(6.0, rel=1e-3)
        assert weights.mean() == pytest.approx(1.0, rel=1e-3)


def test_weights_that_depend_on_the_students_own_state_are_null_and_said_to_be(data: lb.Data) -> None:
    found = Ledger.of(student(data, None, "lff"), data)
    assert found.to_pandas().weight_mean.isna().all()
    assert any(note.startswith("lff: ") for note in found.meta["notes"])


def test_samples_that_are_not_heard_are_held_back(teacher: Fitted) -> None:
    data = make_data()
    assert data.groups is not None
    index = data.groups.index.copy()
    unknown = np.flatnonzero(data.split == 0)[:5]
    index[unknown] = -1
    fitted = lb.fit(network(6), data, recipe={"recipe": "group_dro"}, epochs=2)
    fitted_on = data.with_groups(index, ["a", "b"])
    table = Ledger.of(fitted, fitted_on).to_pandas()
    silent = table.id.isin(data.ids[unknown])
    assert table[silent].held_back.all()
    assert not table[~silent].held_back.any()
    assert table[silent].group.isna().all()
    found = Ledger.of(student(data, teacher, "btkd_elimination"), data, teacher).to_pandas()
    wrong = found.teacher_1.astype(str) != found.label.astype(str)
    assert found.held_back.tolist() == wrong.tolist()
    assert (found[wrong].moved_from_label == 0).all()


def test_reviewed_and_held_back_samples_are_named_by_id(kd: Ledger, data: lb.Data, teacher: Fitted) -> None:
    fitted = student(data, teacher, "kd", epochs=1)
    chosen = data.train.ids[3:6]
    table = Ledger.of(fitted, data, teacher, reviewed=chosen, held_back=chosen[:1]).to_pandas()
    assert table[table.reviewed].id.tolist() == chosen.tolist()
    assert table[table.held_back].id.tolist() == [chosen[0]]
    for written in (np.isin(data.ids, chosen), np.where(np.isin(data.ids, chosen), "True", "False")):
        noted = data.replace(columns={"reviewed": written})
        table = Ledger.of(fitted, noted, teacher).to_pandas()
        assert table[table.reviewed].id.tolist() == chosen.tolist()
    with pytest.raises(DataError, match=rf"reviewed: id {data.test.ids[0]} is no training sample"):
        Ledger.of(fitted, data, teacher, reviewed=[int(data.test.ids[0])])
    with pytest.raises(TeacherError, match="one row a training sample"):
        Ledger.of(fitted, data, logits=np.zeros((3, CLASSES)))


# On disk --------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_and_equal_ledgers_are_equal_bytes(kd: Ledger, tmp_path: Path) -> None:
    path = kd.write(tmp_path / "ledger")
    before = path.read_bytes()
    found = Ledger.read(path)
    assert found.samples.equals(kd.samples)
    assert found.epochs.equals(kd.epochs)
    assert found.meta == kd.meta
    assert kd.write(tmp_path / "ledger").read_bytes() == before
    assert runs_in(tmp_path) == ["kd-seed0"]
    assert Ledger.read(tmp_path).run == "kd-seed0"


def test_a_run_is_added_beside_others_and_what_is_no_ledger_is_refused(kd: Ledger, tmp_path: Path) -> None:
    kd.write(tmp_path)
    Ledger(kd.samples, kd.epochs, kd.meta | {"run": "other"}).write(tmp_path)
    assert runs_in(tmp_path) == ["kd-seed0", "other"]
    assert [path.name for path in (tmp_path / "samples").iterdir() if path.name.startswith(".")] == []
    with pytest.raises(ConfigError, match="name one of kd-seed0, other"):
        Ledger.read(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'kd-seed0'"):
        Ledger.read(tmp_path, "kd-seed")
    (tmp_path / "samples" / "other.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ConfigError, match=r"other\.parquet is not a ledger"):
        Ledger.read(tmp_path, "other")


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_shares_are_rounded_by_a_part_in_two_thousand_at_most(values: list[float]) -> None:
    given_values = np.array(values, np.float32)
    found = rounded(given_values)
    # Below the smallest normal number there are fewer digits to keep.
    assert (np.abs(found - given_values) <= given_values / 2048 + 1e-38).all()
    assert (found[given_values == 1] == 1).all()
    assert (found[given_values == 0] == 0).all()


def test_a_million_samples_stay_below_a_hundred_megabytes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    count, classes = 100_000, 10
    labels = np.r_[generator.integers(0, classes, count), np.arange(classes)]
    split = np.r_[np.zeros(count, np.int8), np.ones(classes, np.int8)]
    data = lb.Data(
        np.zeros((len(labels), 1), np.float32),
        labels,
        attributes={"group": generator.integers(0, 8, len(labels)).astype(str)},
        groups=["group"],
        ids=generator.choice(10**9, len(labels), replace=False),
        split=split,
        fractions=None,
    )
    logits = generator.normal(size=(count, classes)).astype(np.float32) * 3
    q = generator.dirichlet(np.ones(8), 10).tolist()
    history = [{"epoch": e + 1, "loss": 1.0, "group_losses": q[e], "group_weights": q[e]} for e in range(10)]
    recipe = as_recipe({"recipe": "rld", "weighting": "group_dro"})
    fitted = Fitted(nn.Identity(), recipe, lb.Training(), history, 1, "last", 0, 1.0)
    path = Ledger.of(fitted, data, logits=logits).write(tmp_path)
    assert path.stat().st_size * 10 < 60e6
    assert pq.ParquetFile(path).metadata.num_rows == count


def test_duckdb_and_pandas_read_it(kd: Ledger, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = kd.write(tmp_path)
    frame = pandas.read_parquet(path)
    assert frame.moved_from_label.mean() == pytest.approx(kd.to_pandas().moved_from_label.mean())
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(
        f"select label, count(*), avg(moved_from_label), max(weight_mean) from '{tmp_path}/samples/*.parquet' "
        "group by label order by label"
    ).fetchall()
    expected = frame.groupby("label", observed=True).moved_from_label.mean()
    assert [row[0] for row in found] == list(expected.index)
    assert [row[2] for row in found] == pytest.approx(list(expected), rel=1e-5)


# Queries --------------------------------------------------------------------------------------------------------------


def test_summaries_add_up_and_the_farthest_come_first(kd: Ledger) -> None:
    table = kd.to_pandas()
    for by in ("rule", "label", "group"):
        rows = kd.summary(by)
        assert sum(row["samples"] for row in rows) == len(kd)
        assert sum(row["overturned"] for row in rows) == kd.overturned().sum()
        for row in rows:
            own = table[table[by] == row[by]]
            assert row["moved_from_label"] == pytest.approx(own.moved_from_label.mean(), rel=1e-5)
    top = kd.top(10)
    assert [row["moved_from_label"] for row in top] == sorted(table.moved_from_label, reverse=True)[:10]
    small = kd.top(5, by="teacher", group="side=small")
    assert {row["group"] for row in small} == {"side=small"}
    assert small[0]["moved_from_teacher"] == table[table.group == "side=small"].moved_from_teacher.max()
    with pytest.raises(ConfigError, match="did you mean 'side=small'"):
        kd.top(5, group="side=smal")
    with pytest.raises(ConfigError, match="id -1 is no training sample"):
        kd.why(-1)


def test_two_runs_are_compared_sample_by_sample(data: lb.Data, teacher: Fitted, kd: Ledger) -> None:
    refined = Ledger.of(student(data, teacher, "rld"), data, teacher)
    found = kd.diff(refined, n=7)
    a, b = kd.to_pandas(), refined.to_pandas()
    assert found["samples"] == len(kd)
    assert found["likeliest"] == (a.target_1.astype(str) != b.target_1.astype(str)).sum()
    assert found["overturned"]["kd-seed0"] == (kd.overturned() & ~refined.overturned()).sum() > 0
    change = a.moved_from_label - b.moved_from_label
    assert found["moved"] == pytest.approx(change.mean(), rel=1e-5)
    assert found["rows"][0]["id"] == a.id[change.abs().idxmax()]
    assert len(found["rows"]) == 7
    same = kd.diff(kd)
    assert same["likeliest"] == 0
    assert same["moved"] == 0


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {
        "name": "small",
        "data": {"name": "digits", "groups": ["aligned"], "inject": [{"kind": "shortcut", "aligned": 0.9}]},
        "teachers": {"big": {"model": {"name": "mlp", "hidden": [32]}}},
        "student": {"name": "mlp", "hidden": [8]},
        "recipes": ["group_dro", {"recipe": "kd", "teacher": "big"}, {"recipe": "la", "teacher": "big"}],
        "training": {"epochs": 2, "batch_size": 64},
        "seeds": [0],
    }
    folder = tmp_path_factory.mktemp("runs") / "small"
    run_pilot(config_from_dict(config), output=folder)
    return folder


def said(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["ledger", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_pilot_leaves_a_ledger_of_every_cell(run_folder: Path) -> None:
    assert runs_in(run_folder) == ["erm-seed0", "group_dro-seed0", "kd-seed0", "la-seed0", "teacher-big-seed0"]
    swapped = Ledger.read(run_folder, "la-seed0")
    assert {row["rule"] for row in swapped.summary()} == {"la: followed", "la: swap"}
    history = json.loads((run_folder / "cells" / "group_dro-seed0.json").read_text())["history"]
    last = [row for row in Ledger.read(run_folder, "group_dro-seed0").epochs.to_pylist() if row["epoch"] == 2]
    assert [row["q"] for row in last if row["group"]] == history[-1]["group_weights"]


def test_the_command_line_shows_tops_explains_and_compares(run_folder: Path) -> None:
    assert "kd-seed0" in said("show", str(run_folder))
    shown = said("show", f"{run_folder}:la-seed0")
    assert "la: swap" in shown
    assert "aligned=no" in shown
    rows = json.loads(said("top", f"{run_folder}:la-seed0", "-n", "3", "--rule", "la: swap", "--json"))
    assert len(rows) == 3
    text = said("why", str(run_folder), str(rows[0]["id"]))
    assert text.count(f"id {rows[0]['id']} in ") == 5
    assert f"la: {EDITS['swap']}" in text
    assert "disagrees with the label" in text
    compared = said("diff", f"{run_folder}:kd-seed0", str(run_folder / "ledger/samples/la-seed0.parquet"))
    assert compared.startswith("kd-seed0 and la-seed0: ")
    assert "name one, such as" in said("diff", str(run_folder), str(run_folder), code=2)
    assert "did you mean 'la-seed0'" in said("show", f"{run_folder}:la-seed", code=2)
    assert "there is no such run folder" in said("show", str(run_folder / "nowhere"), code=2)


def test_the_command_line_does_not_load_torch_for_its_help() -> None:
    program = "import sys; from click.testing import CliRunner; from limbeck.cli import main; "
    program += (
        "r = CliRunner().invoke(main, ['ledger', '--help']); assert 'why' in r.output; print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=True)
    assert found.stdout.strip() == "False"


class Decided:
    """What the ledger reads of an arbitration."""

    def __init__(self, data: lb.Data) -> None:
        draw = np.random.default_rng(0)
        self.ids = draw.permutation(data.train.ids)
        self.targets = draw.dirichlet(np.ones(CLASSES), len(self.ids))
        self.mass = draw.random(len(self.ids)) + 0.5
        self.held_back = draw.random(len(self.ids)) < 0.1

    def select(self, ids: Any) -> Any:
        return np.array([np.flatnonzero(self.ids == sample)[0] for sample in ids])

    def student_targets(self, gamma: float) -> tuple[Any, Any]:
        return self.targets, self.mass * gamma


def told_by(found: Any, fitted: Fitted, data: lb.Data) -> None:
    table = Ledger.of(fitted, data, arbitration=found).to_pandas()
    assert fitted.recipe.arbitrate is not None
    targets, mass = found.student_targets(fitted.recipe.arbitrate.gamma)
    place = found.select(table.id.to_numpy())
    np.testing.assert_allclose(table.weight_mean, mass[place] / mass[place].mean(), rtol=1e-3)
    np.testing.assert_allclose(table.target_1_probability, targets[place].max(1), rtol=1e-3)
    assert set(table.rule) == {"soft_cross_entropy: posterior"}
    assert table.held_back.tolist() == found.held_back[place].tolist()


def test_what_arbitration_decided_is_what_the_student_was_told(data: lb.Data) -> None:
    recipe = as_recipe("arbitration")
    fitted = Fitted(nn.Identity(), recipe, lb.Training(), [{"epoch": 1, "loss": 1.0}], 1, "last", 0, 1.0)
    told_by(Decided(data), fitted, data)
    unknown = Ledger.of(fitted, data)
    assert unknown.to_pandas().weight_mean.isna().all()
    assert unknown.to_pandas().target_1.isna().all()
    assert any("arbitration's targets are not known" in note for note in unknown.meta["notes"])


@pytest.mark.slow
def test_an_arbitration_of_these_data_is_read_as_it_is(data: lb.Data) -> None:
    from limbeck.arbitration import arbitrate

    found = arbitrate(data, rounds=1, folds=2, bootstrap=2, repeats=1, seed=0)
    settings: dict[str, Any] = {"recipe": "arbitration", "arbitration": found, "epochs": 2}
    told_by(found, lb.fit(network(6), data, **settings), data)
