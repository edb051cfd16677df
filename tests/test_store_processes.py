"""The store among processes: a writer that is killed, readers at the same time, memory that stays bounded.

Run as a script, this file is one of those processes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.data import Data
from limbeck.errors import StoreError
from limbeck.teachers import ModuleTeacher, Source, Store

SHARDS = 13
SETTINGS: dict[str, Any] = {"batch_size": 16, "shard_bytes": 2 * 16 * 5 * 4}


def make_data(count: int = 400) -> Data:
    x = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    return Data(x, np.arange(count) % 5, fractions=(1.0, 0.0, 0.0))


class Net(nn.Module):
    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 5)
        self.pause = pause

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.pause)
        return self.linear(x).tanh()


class ById(Source):
    """A thousand classes, computed from the id, so that neither data nor teacher take memory."""

    description = "a function of the id"
    reads_inputs = False
    supplies = frozenset({"logits"})
    classes = 1000

    def fingerprint(self) -> str:
        return "by id"

    def outputs(self, x: Any, ids: Tensor, want: Sequence[str]) -> dict[str, Tensor]:
        return {"logits": torch.sin(ids[:, None].float() * 1e-3 + torch.arange(1000))}


class Lazy:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Any) -> Any:
        return np.zeros((len(rows), 2), np.float32)


# The processes --------------------------------------------------------------------------------------------------------


def write_slowly(path: str) -> None:
    Store.write(path, ModuleTeacher(Net(pause=0.02)), make_data(), **SETTINGS)


def read_at_random(path: str, seed: str) -> None:
    store = Store.open(path, ModuleTeacher(Net()), make_data())
    generator = np.random.default_rng(int(seed))
    for _ in range(200):
        rows = generator.permutation(400)
        found = store.gather(rows)["logits"]
        assert torch.equal(found, store.gather(ids=rows)["logits"])
    print(json.dumps(found.double().sum(0).tolist()))


def write_together(path: str, pause: str) -> None:
    asked: list[int] = []

    class Counted(ModuleTeacher):
        def outputs(self, x: Any, ids: Tensor, want: Sequence[str]) -> dict[str, Tensor]:
            asked.append(len(ids))
            return super().outputs(x, ids, want)

    store = Store.write(path, Counted(Net(pause=float(pause))), make_data(), **SETTINGS)
    print(json.dumps({"asked": sum(asked), "sum": store.gather(np.arange(400))["logits"].double().sum().item()}))


def stream(folder: str, count: str, dtype: str) -> None:
    data = Data(Lazy(int(count)), np.arange(int(count)) % 1000, fractions=(1.0, 0.0, 0.0))
    # A small store first, so that what every library takes once is not counted.
    Store.write(Path(folder) / "warm", ById(), data.subset(np.arange(2000)), dtype=dtype)
    data.fingerprint()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = Store.write(Path(folder) / "store", ById(), data, dtype=dtype)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    rows = np.random.default_rng(0).integers(0, int(count), 1000)
    found = store.gather(rows)["logits"]
    assert float((found - ById().outputs(None, torch.from_numpy(rows), ())["logits"]).abs().max()) < 1e-3
    print(json.dumps([(store.path / "outputs.safetensors").stat().st_size, growth * 1024]))


def start(job: str, *arguments: object, **variables: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, __file__, job, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def result(process: subprocess.Popen[bytes]) -> Any:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# The tests ------------------------------------------------------------------------------------------------------------


def test_a_writer_killed_in_the_middle_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    partial = path.with_name("store.partial")
    writer = start("write_slowly", path)
    while len(list(partial.glob("done/*.json"))) < 3 and writer.poll() is None:
        time.sleep(0.005)
    writer.send_signal(signal.SIGKILL)
    _, errors = writer.communicate()
    assert writer.returncode == -signal.SIGKILL, errors.decode()
    assert not path.exists(), "half-written is never to be taken for whole"
    done = len(list(partial.glob("done/*.json")))
    assert 3 <= done < SHARDS
    with pytest.raises(StoreError, match=rf"half-written \({done} of {SHARDS} shards\): call Store.write again"):
        Store.open(path)
    for name in ("manifest.json.4711", "plan.json.4711", "done/9.json.4711"):  # as a kill inside a write leaves them
        (partial / name).write_text("{")
    resumed = Store.write(path, ModuleTeacher(Net()), make_data(), **SETTINGS)
    straight = Store.write(tmp_path / "straight", ModuleTeacher(Net()), make_data(), **SETTINGS)
    assert tree(path) == tree(straight.path)
    assert not partial.exists()
    resumed.verify()


@pytest.mark.parametrize("launcher", ["torchrun", "by hand"])
def test_several_processes_write_one_store_by_shards(launcher: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29541"]
        together = [
            *command,
            "--log-dir",
            str(tmp_path / "logs"),
            "-r",
            "3",
            __file__,
            "write_together",
            str(path),
            "0",
        ]
        subprocess.run(together, check=True, capture_output=True, timeout=120)
        found = [json.loads(file.read_text()) for file in sorted((tmp_path / "logs").rglob("stdout.log"))]
    else:
        processes = [
            start("write_together", path, pause, RANK=rank, WORLD_SIZE=2) for rank, pause in ((0, 0), (1, 0.02))
        ]
        found = [result(process) for process in processes]
    straight = Store.write(tmp_path / "straight", ModuleTeacher(Net()), make_data(), **SETTINGS)
    assert tree(path) == tree(straight.path)
    assert not path.with_name("store.partial").exists()
    assert len(found) == 2
    assert found[0]["sum"] == found[1]["sum"]
    # Beside its own shards each asks for the checks: fewer than two whole passes together.
    assert sum(one["asked"] for one in found) < 2 * 400


def test_a_process_that_comes_when_the_store_is_whole_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store.write(path, ModuleTeacher(Net()), make_data(), **SETTINGS)
    assert result(start("write_together", path, 0, RANK=1, WORLD_SIZE=2))["asked"] < 400


def test_waiting_for_a_process_that_stopped_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.teachers.writing.PATIENCE", 0.2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StoreError, match=r"another process stopped writing .*without a finished shard"):
        Store.write(tmp_path / "store", ModuleTeacher(Net()), make_data(), **SETTINGS)
    with pytest.raises(StoreError, match="resume=False would delete what other processes write"):
        Store.write(tmp_path / "store", ModuleTeacher(Net()), make_data(), resume=False, **SETTINGS)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(Store.write(tmp_path / "store", ModuleTeacher(Net()), make_data(), **SETTINGS)) == 400


def test_readers_at_the_same_time_read_the_same(tmp_path: Path) -> None:
    store = Store.write(tmp_path / "store", ModuleTeacher(Net()), make_data(), dtype="float16")
    readers = [start("read_at_random", store.path, seed) for seed in range(2)]
    expected = store.gather(np.arange(400))["logits"].double().sum(0)
    for reader in readers:
        np.testing.assert_allclose(result(reader), expected, rtol=1e-9)


def test_writing_takes_the_memory_of_a_batch_not_of_the_store(tmp_path: Path) -> None:
    size, growth = result(start("stream", tmp_path, 40_000, "float32"))
    assert size > 160_000_000
    assert growth < 40_000_000


@pytest.mark.slow
def test_a_million_samples_of_a_thousand_classes_stream_with_bounded_memory(tmp_path: Path) -> None:
    size, growth = result(start("stream", tmp_path, 1_000_000, "float16"))
    assert size > 2_000_000_000
    assert growth < 80_000_000


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = (write_slowly, write_together, read_at_random, stream)
    {job.__name__: job for job in jobs}[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
