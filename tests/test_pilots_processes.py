"""Cells of a pilot in several processes: the same bytes, also where processes are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import limbeck as lb
from limbeck.pilots import run_arms, run_pilot
from limbeck.pilots.arms import Arm, plan
from limbeck.pilots.schedule import in_order
from test_pilots import CONFIG, changed, content

LONGER: dict[str, Any] = {**CONFIG, "training": {"epochs": 12, "batch_size": 32}}


def command(config: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "limbeck", "pilot", str(config), "--output", str(output), "--quiet", *more]


def children(pid: int) -> list[int]:
    """The processes that a process started, and theirs."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, its in pairs if its == parent]
    return found[1:]


def test_teachers_come_before_their_students_seed_by_seed() -> None:
    arms = [Arm("a", "a", "student", teachers=("t",)), Arm("t", "t", "teacher"), Arm("b", "b", "baseline")]
    assert [(arm.key, seed) for arm, seed in in_order(arms, (3, 1))] == [
        ("t", 3), ("a", 3), ("b", 3), ("t", 1), ("a", 1), ("b", 1)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> lb.PilotResult:
    return run_pilot(changed(training=LONGER["training"]), output=tmp_path_factory.mktemp("runs") / "straight")


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_as_one(straight: lb.PilotResult, tmp_path: Path) -> None:
    both = run_pilot(changed(training=LONGER["training"]), output=tmp_path / "both", workers=2)
    assert straight.folder is not None
    assert both.folder is not None
    assert content(both.folder) == content(straight.folder)
    assert both.verdict == straight.verdict


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(straight: lb.PilotResult, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(LONGER))
    pilot = subprocess.Popen(command(config, tmp_path / "run", "--workers", "2"), stdout=subprocess.PIPE, text=True)
    while pilot.poll() is None and not list((tmp_path / "run" / "checkpoints").glob("*/*")):
        time.sleep(0.01)
    workers = [pid for pid in children(pilot.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert workers, "no process was started"
    os.kill(random.Random(0).choice(workers), signal.SIGKILL)
    found, _ = pilot.communicate(timeout=200)
    assert pilot.returncode == 0
    assert found.splitlines()[0] == straight.verdict
    assert straight.folder is not None
    assert content(tmp_path / "run") == content(straight.folder)


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(straight: lb.PilotResult, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(LONGER))
    killed = subprocess.Popen(command(config, tmp_path / "run", "--workers", "2"), stdout=subprocess.DEVNULL)
    while killed.poll() is None and not list((tmp_path / "run" / "cells").glob("*.json")):
        time.sleep(0.01)
    started = children(killed.pid)
    killed.kill()
    killed.wait()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()], "a process outlived its pilot"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    done = subprocess.run(command(config, tmp_path / "run"), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == straight.verdict
    assert straight.folder is not None
    assert content(tmp_path / "run") == content(straight.folder)


@pytest.mark.slow
def test_an_error_in_a_process_is_told_as_it_is_here(tmp_path: Path) -> None:
    diverging = changed(training={"epochs": 2, "optimiser": "sgd", "learning_rate": 1e30})
    with pytest.raises(lb.LimbeckError, match=r"the training loss is (nan|inf) in epoch"):
        run_pilot(diverging, output=tmp_path / "run", workers=2)


# Ray ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_that_is_killed_loses_nothing_and_counts_nothing_twice(
    straight: lb.PilotResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes its time
    from ray.cluster_utils import Cluster

    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        second = cluster.add_node(num_cpus=1)
    except Exception as error:
        pytest.skip(f"Ray cannot start two nodes here: {error}")
    found: list[lb.PilotResult] = []
    config = changed(training=LONGER["training"])

    def run() -> None:
        found.append(run_pilot(config, output=tmp_path / "run", cluster=cluster.address))

    try:
        pilot = threading.Thread(target=run)
        pilot.start()
        # One cell is done, so both nodes are at work on the next.
        while pilot.is_alive() and not list((tmp_path / "run" / "cells").glob("*.json")):
            time.sleep(0.01)
        cluster.remove_node(second, allow_graceful=False)
        pilot.join(timeout=200)
        assert not pilot.is_alive()
    finally:
        cluster.shutdown()
    assert found
    assert found[0].verdict == straight.verdict
    assert straight.folder is not None
    assert content(tmp_path / "run") == content(straight.folder)


def test_a_cluster_needs_a_run_folder() -> None:
    data, arms = plan(changed())
    with pytest.raises(lb.LimbeckError, match="from a configuration and with a run folder"):
        run_arms(data, arms, (0,), selection=None, folder=None, name="x", cluster="local")
