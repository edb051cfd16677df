"""Probes in several processes: the same students, nothing left behind, and every failure told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import limbeck as lb
from limbeck.data import inject
from limbeck.errors import ConfigError, LimbeckError, RecipeError
from limbeck.loop import Fitted, Stage
from limbeck.presets import as_recipe
from limbeck.probes import arrange as arranging
from limbeck.probes import workers
from limbeck.probes.arrange import _even, arrange, share_out
from limbeck.probes.workers import train_shares, why_not, worker_count

CLASSES, WIDTH = 10, 8

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def linear() -> nn.Module:
    return nn.Linear(WIDTH, CLASSES)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, CLASSES))


@pytest.fixture(scope="module")
def data() -> lb.Data:
    rng = np.random.default_rng(3)
    y = np.arange(600) % CLASSES
    x = (rng.normal(size=(CLASSES, WIDTH))[y] + rng.normal(size=(600, WIDTH))).astype(np.float32)
    return lb.Data(x, y, attributes={"site": rng.integers(0, 2, 600)}, groups=["site"])


@pytest.fixture(autouse=True)
def _whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(arranging, "WORTH_A_WORKER", 1)
    yield
    assert not multiprocessing.active_children()


def same(found: list[Fitted], expected: list[Fitted]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
        assert not one.model.training
        assert one.selected_epoch == other.selected_epoch
        assert one.selection == other.selection
        assert one.recipe.name == other.recipe.name
        assert one.training == other.training
        assert one.warnings == other.warnings
        assert one.earlier.keys() == other.earlier.keys()
        same(list(one.earlier.values()), list(other.earlier.values()))
        for record, expected_record in zip(one.history, other.history, strict=True):
            assert record.keys() == expected_record.keys()
            for name in ("epoch", "learning_rate", "validation_average", "validation_worst_group_name"):
                assert record[name] == expected_record[name]
            assert record["loss"] == pytest.approx(expected_record["loss"], abs=1e-5)
            assert record["group_losses"] == pytest.approx(expected_record["group_losses"], abs=1e-5)


@pytest.mark.parametrize("student", [linear, mlp])
def test_two_processes_train_the_students_of_one(student: Any, data: lb.Data) -> None:
    torch.manual_seed(0)
    teacher = mlp()
    recipes = ["erm", "kd", "rld", "lskd", "dkd", "pll", "jtt", "groupdistil", "btkd", "multi_round"]
    settings = {"teacher": teacher, "recipes": recipes, "seeds": 3, "epochs": 2, "batch_size": 32}
    state = torch.get_rng_state()
    one = lb.fit_probes(student, data, **settings, workers=1)
    for count in (2, 3):
        same(lb.fit_probes(student, data, **settings, workers=count), one)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_column_is_cut_between_its_streams(data: lb.Data) -> None:
    draws = [inject.label_noise(data, rate=0.3, seed=seed, splits=("train",)) for seed in range(3)]
    settings = {"recipes": ["gce"], "seeds": 2, "epochs": 2}
    same(lb.fit_probes(linear, draws, **settings, workers=2), lb.fit_probes(linear, draws, **settings, workers=1))


def test_the_same_call_gives_the_same_bytes(data: lb.Data) -> None:
    settings = {"recipes": ["erm", "gce", "label_smoothing"], "seeds": 2, "epochs": 2, "workers": 2}
    for one, other in zip(lb.fit_probes(linear, data, **settings), lb.fit_probes(linear, data, **settings)):
        for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("recipes", [["erm", "gce"], ["gce", "erm"]])
def test_what_goes_wrong_anywhere_is_raised_here(recipes: list[str], data: lb.Data) -> None:
    """Too long a step in both: the first process ends the other, or hears of it."""
    with pytest.raises(LimbeckError, match=r"the training loss is .* in epoch 1; lower the learning rate"):
        lb.fit_probes(mlp, data, recipes=recipes, seeds=2, optimiser="sgd", learning_rate=1e30, workers=2)


def trained(stages: list[Stage], child: Any) -> dict[int, Fitted]:
    return train_shares(stages, 2, lambda share: child() if share else {})


def test_an_error_of_a_worker_keeps_its_kind() -> None:
    def refuse() -> Any:
        raise RecipeError("does not fit")

    with pytest.raises(RecipeError, match=r"^does not fit$"):
        trained([], refuse)


def test_a_defect_in_a_worker_is_told_with_its_traceback() -> None:
    with pytest.raises(LimbeckError, match=r"(?s)Traceback.*ZeroDivisionError"):
        trained([], lambda: 1 / 0)


class NearlySingular(RuntimeWarning):
    """A kind of warning that only its module knows."""


def test_warnings_of_a_worker_are_given_here() -> None:
    def warn() -> dict[int, Fitted]:
        warnings.warn("one", NearlySingular, stacklevel=1)
        warnings.warn("two", stacklevel=1)
        return {}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trained([], warn) == {}
    assert [(kept.category, str(kept.message), Path(kept.filename)) for kept in caught] == [
        (RuntimeWarning, "one", Path(__file__)),
        (UserWarning, "two", Path(__file__)),
    ]


def test_what_a_worker_warns_of_before_it_fails_is_given_too() -> None:
    def fail() -> Any:
        warnings.warn("nearly singular", RuntimeWarning, stacklevel=1)
        raise RecipeError("does not fit")

    with pytest.warns(RuntimeWarning, match=r"^nearly singular$"), pytest.raises(RecipeError, match=r"^does not fit$"):
        trained([], fail)


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(LimbeckError, match=r"before it had answered .exit code -9.*workers to 1"):
        trained([], lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_an_error_here_leaves_no_worker_behind() -> None:
    def train(share: int) -> dict[int, Fitted]:
        if share:
            signal.pause()
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train_shares([], 3, train)
    assert not multiprocessing.active_children()
    assert torch.get_num_threads() == threads


def test_a_handler_of_the_caller_keeps_no_worker_alive() -> None:
    def train(share: int) -> dict[int, Fitted]:
        while share:
            time.sleep(1.0)
        raise LimbeckError("here")

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(LimbeckError, match=r"^here$"):
            train_shares([], 2, train)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_workers_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from limbeck.probes.workers import train_shares
def train(share):
    Path(sys.argv[1], str(share)).write_text(str(os.getpid()))
    time.sleep(600)
train_shares([], 3, train)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as first:
        try:
            pids = [int(wait_for(lambda p=tmp_path / str(share): p.exists() and p.read_text())) for share in range(3)]
            assert pids[0] == first.pid
        finally:
            first.kill()
    assert wait_for(lambda: not any(running(pid) for pid in pids))


def running(pid: int) -> bool:
    """Whether a process is there and not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(answer: Any) -> Any:
    for _ in range(600):
        if found := answer():
            return found
        time.sleep(0.1)
    raise AssertionError("waited for a minute")


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(3) == 3
    with pytest.raises(ConfigError, match=r"workers: expected 1 or more processes, found 0"):
        worker_count(0)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert worker_count(None) == threads
    torch.set_num_threads(before)
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert worker_count(None) == 1, "another thread may hold a lock"
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert worker_count(None) == worker_count(1) == 1
    with pytest.raises(ConfigError, match=r"workers: 2 asked for, and .* only safe on Linux"):
        worker_count(2)


def test_not_beside_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker_count(None) == 1
    with pytest.raises(ConfigError, match=r"beside CUDA"):
        worker_count(2)


def test_a_little_work_is_not_worth_a_process(data: lb.Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arranging, "WORTH_A_WORKER", 10**9)
    monkeypatch.setattr(workers, "_forked", None)  # would be called
    lb.fit_probes(linear, data, recipes=["erm", "gce"], seeds=2, epochs=1, workers=2)


# Who gets what --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 5))
def test_a_row_is_cut_into_parts_that_follow_each_other(costs: list[int], count: int) -> None:
    cuts = _even(costs, count)
    assert [place for start, end in cuts for place in range(start, end)] == list(range(len(costs)))
    assert len(cuts) <= count
    assert all(sum(costs[start:end]) <= sum(costs) / count + 2 * max(costs) for start, end in cuts)


def stage(recipe: str, seed: int, data: lb.Data) -> Stage:
    rule: Any = None
    return Stage("student", linear(), as_recipe(recipe), lb.Training(epochs=1), data, seed, rule, [], {}, {})


def test_a_block_is_cut_between_columns_that_have_most_in_common(data: lb.Data) -> None:
    recipes = ("erm", "label_smoothing", "gce", "kd", "dkd", "lskd", "rld", "pll")
    stages = [stage(recipe, seed, data) for seed in range(5) for recipe in recipes]
    blocks, alone = arrange(stages)
    shares = share_out(stages, blocks, 2)
    assert not alone
    assert [len(share) for share in shares] == [1, 1]
    assert sorted(place for (block,) in shares for stream in block for place in stream) == list(range(40))
    for (block,) in shares:
        assert {len(stream) for stream in block} == {4}
        assert len({stages[place].seed for stream in block for place in stream}) == 5
    named = [{stages[place].recipe.name for place in block[0]} for (block,) in shares]
    assert {"erm", "kd", "lskd"} in [one & {"erm", "kd", "lskd"} for one in named]


def test_a_dear_recipe_counts_for_several(data: lb.Data) -> None:
    stages = [stage(recipe, 0, data) for recipe in ("erm", "gce", "label_smoothing", "dist", "elr")]
    shares = share_out(stages, arrange(stages)[0], 2)
    named = [{stages[place].recipe.name for block in share for place in block[0]} for share in shares]
    assert all(len(names & {"dist", "elr"}) == 1 for names in named)
