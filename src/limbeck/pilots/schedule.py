"""In what order and where the cells of a pilot run: here one after the other, in processes, or on a Ray cluster.

A cell is a function of its arm and seed, and leaves everything in the run folder, so that where it ran never shows in
the result. Processes are given the configuration as text, and build data and arms from it themselves.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from limbeck.callbacks import Callback
from limbeck.errors import LimbeckError, require
from limbeck.modes import one_thread
from limbeck.pilots.arms import Arm, card_of, plan, taught_by, with_plain_student
from limbeck.pilots.cells import CellFiles, CellResult, read_teacher, run_cell
from limbeck.pilots.progress import Watcher
from limbeck.pilots.search import Variant
from limbeck.selection import SelectionRule, selection_rule
from limbeck.training import Training

if TYPE_CHECKING:
    from limbeck.data import Data

WORTHWHILE = 20.0
"""Seconds of work left from which starting processes, which takes some five, is worth it."""
ATTEMPTS = 3
"""How often a cell is tried whose process ended by itself."""

Cell = tuple[Arm, int]
"""An arm and a seed."""
Done = tuple[Arm, int, CellResult]
"""A cell and what came of it."""


@dataclass(frozen=True)
class Order:
    """What another process needs to run cells of a pilot: plain data.

    Args:
        configuration: of the pilot, as JSON.
        models: the Python file of the user's own models.
        folder: the run folder.
        precision: what `precision: auto` chose, as JSON.
        variants: arms with other settings, as a JSON list.
    """

    configuration: str
    models: str | None
    folder: str
    precision: str
    variants: str = "[]"


@dataclass(frozen=True)
class Job:
    """What a cell needs beside its arm and seed.

    Args:
        name: of the pilot.
        data: of the pilot.
        arms: by key.
        rule: of selection.
        folder: where cells are kept, if anywhere.
        configuration: as plain data, where there is one.
    """

    name: str
    data: Data
    arms: Mapping[str, Arm]
    rule: SelectionRule
    folder: Path | None
    configuration: Mapping[str, Any] | None

    def card(self, arm: Arm) -> dict[str, Any]:
        """What the file of the arm's model says of it."""
        return self._card | {"arm": arm.key} | card_of(arm, self.configuration)

    @cached_property
    def _card(self) -> dict[str, Any]:
        data = self.data
        card = {"pilot": self.name, "data": data.name, "classes": list(data.classes), "fingerprint": data.fingerprint()}
        return card | {"inputs_shape": data.sample_shape}

    def files(self, arm: Arm, seed: int) -> CellFiles:
        """Where the cell is kept."""
        return CellFiles(self.folder, arm.key, seed)

    def run(
        self, arm: Arm, seed: int, teachers: Mapping[str, Any] | None = None, callbacks: Sequence[Callback] = ()
    ) -> CellResult:
        """Train and evaluate a cell, or read it back; teachers that are not given are read from the run folder."""
        if teachers is None:
            found = {key: read_teacher(self.arms[key], self.files(self.arms[key], seed)) for key in arm.teachers}
        else:
            found = dict(teachers)
        return run_cell(
            arm,
            seed,
            self.data,
            taught_by(arm, found),
            selection=self.rule,
            files=self.files(arm, seed),
            callbacks=callbacks,
            card=self.card(arm),
        )


def in_order(arms: Sequence[Arm], seeds: Sequence[int]) -> list[Cell]:
    """The cells seed by seed, teachers first."""
    return [(arm, seed) for seed in seeds for arm in sorted(arms, key=lambda arm: arm.role != "teacher")]


def run_cells(
    job: Job,
    cells: Sequence[Cell],
    watcher: Watcher,
    order: Order | None = None,
    workers: int | None = 1,
    cluster: str | None = None,
) -> Iterator[Done]:
    """Run cells, teachers before those they teach, and give each as it is done.

    Args:
        job: what they need.
        cells: seed by seed, teachers first.
        watcher: told of what happens.
        order: what other processes need; without it everything runs here.
        workers: how many processes; None takes one a core where there is enough left to do after the first cells.
        cluster: the address of a Ray cluster to run on instead; `local` starts one here.

    Raises:
        LimbeckError: of a cell, or where a process ends by itself again and again.
    """
    if cluster is not None:
        if order is None:
            raise LimbeckError("a pilot runs on a cluster from a configuration and with a run folder: give both")
        yield from _in_pool(job, cells, watcher, order, RayPool(None if cluster == "local" else cluster))
        return
    count = min(available_cores() if workers is None else workers, len(cells))
    if order is not None and workers is not None and count > 1:
        yield from _in_pool(job, cells, watcher, order, LocalPool(count))
        return
    teachers: dict[str, Any] = {}
    seconds: list[float] = []
    for place, (arm, seed) in enumerate(cells):
        left = len(cells) - place
        longer = bool(seconds) and left * sum(seconds) / len(seconds) > WORTHWHILE
        if workers is None and order is not None and min(count, left) > 1 and longer:
            yield from _in_pool(job, cells[place:], watcher, order, LocalPool(min(count, left)))
            return
        if place and cells[place - 1][1] != seed:
            teachers.clear()
        known = job.files(arm, seed).finished() is not None
        watcher.cell(arm.label, seed)
        started = time.perf_counter()
        result = job.run(arm, seed, teachers, watcher.callbacks)
        if not known:
            seconds.append(time.perf_counter() - started)
        if arm.role == "teacher":
            teachers[arm.key] = result.teacher
        yield arm, seed, replace(result, teacher=None)


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Beside each other ----------------------------------------------------------------------------------------------------


class _LostError(Exception):
    """The process that ran a cell ended by itself."""


class Pool(Protocol):
    """Processes that run cells."""

    @property
    def size(self) -> int:
        """How many cells run at once."""

    def submit(self, order: Order, key: str, seed: int) -> Any:
        """Start a cell; what is returned stands for it."""

    def some_done(self, running: Sequence[Any]) -> Sequence[Any]:
        """Wait until at least one is done, and say which."""

    def check(self, handle: Any) -> None:
        """Raise what the cell raised, `_LostError` where its process ended by itself."""

    def close(self) -> None:
        """End the processes."""


class LocalPool:
    """Processes of this machine, which end with this one.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._executor: ProcessPoolExecutor | None = None
        self._started_by: dict[Future[None], ProcessPoolExecutor] = {}

    @property
    def size(self) -> int:
        """How many cells run at once."""
        return self._size

    def submit(self, order: Order, key: str, seed: int) -> Future[None]:
        """Start a cell, in new processes where the ones before are gone."""
        for _ in range(ATTEMPTS):
            if self._executor is None:
                # A forked process would inherit torch's threads in an unknown state.
                self._executor = ProcessPoolExecutor(self._size, multiprocessing.get_context("spawn"), _begin)
            try:
                future = self._executor.submit(work, order, key, seed)
            except BrokenProcessPool:
                self._drop(self._executor)
                continue
            self._started_by[future] = self._executor
            return future
        raise LimbeckError("processes cannot be started here: run the pilot in one (--workers 1)")

    def some_done(self, running: Sequence[Future[None]]) -> Sequence[Future[None]]:
        """Wait until at least one is done, and say which."""
        return list(wait(running, return_when=FIRST_COMPLETED).done)

    def check(self, handle: Future[None]) -> None:
        """Raise what the cell raised."""
        executor = self._started_by.pop(handle)
        try:
            handle.result()
        except BrokenProcessPool as error:
            self._drop(executor)
            raise _LostError from error

    def _drop(self, executor: ProcessPoolExecutor) -> None:
        executor.shutdown(wait=False, cancel_futures=True)
        if self._executor is executor:
            self._executor = None

    def close(self) -> None:
        """Let running cells finish, which are kept, and end the processes."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


class RayPool:
    """A Ray cluster; the run folder must be on a file system that all its nodes share.

    Args:
        address: of the cluster; None starts one on this machine, or takes the one that RAY_ADDRESS names.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray = require("ray", "ray")
        self._own = not self._ray.is_initialized()
        if self._own:
            try:
                self._ray.init(
                    address=address, log_to_driver=False, include_dashboard=False if address is None else None
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise LimbeckError(f"no Ray cluster can be reached at {address}: {error}") from error
        self._work = self._ray.remote(num_cpus=1, max_retries=ATTEMPTS)(work)

    @property
    def size(self) -> int:
        """The cores of the nodes that are there now."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, order: Order, key: str, seed: int) -> Any:
        """Start a cell on any node."""
        return self._work.remote(order, key, seed)

    def some_done(self, running: Sequence[Any]) -> Sequence[Any]:
        """Wait until at least one is done, and say which."""
        done, _ = self._ray.wait(list(running), num_returns=1)
        return list(done)

    def check(self, handle: Any) -> None:
        """Raise what the cell raised."""
        errors = self._ray.exceptions
        try:
            self._ray.get(handle)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
            raise _LostError from error
        except errors.RayTaskError as error:
            # Ray's own class is made of the cell's error and its place there.
            raise (error.cause if isinstance(error.cause, LimbeckError) else error) from None

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._own:
            self._ray.shutdown()


def _in_pool(job: Job, cells: Sequence[Cell], watcher: Watcher, order: Order, pool: Pool) -> Iterator[Done]:
    waiting = list(cells)
    running: dict[Any, Cell] = {}
    tries = dict.fromkeys(((arm.key, seed) for arm, seed in cells), 0)
    try:
        while waiting or running:
            pending = {(arm.key, seed) for arm, seed in (*waiting, *running.values())}
            for cell in list(waiting):
                arm, seed = cell
                if len(running) >= pool.size:
                    break
                if any((key, seed) in pending for key in arm.teachers):
                    continue
                waiting.remove(cell)
                if job.files(arm, seed).finished() is not None:
                    yield arm, seed, replace(job.run(arm, seed), teacher=None)
                    continue
                watcher.cell(arm.label, seed)
                tries[arm.key, seed] += 1
                running[pool.submit(order, arm.key, seed)] = cell
            for handle in pool.some_done(list(running)) if running else ():
                arm, seed = running.pop(handle)
                try:
                    pool.check(handle)
                except _LostError:
                    if tries[arm.key, seed] >= ATTEMPTS:
                        raise LimbeckError(
                            f"{arm.label}, seed {seed}: the process that trained it ended by itself {ATTEMPTS} times "
                            "(is there enough memory?): use fewer processes (--workers); what is finished is kept"
                        ) from None
                    waiting.insert(0, (arm, seed))
                    continue
                # The record is in the folder now, so that this only reads it.
                yield arm, seed, replace(job.run(arm, seed), teacher=None)
    finally:
        pool.close()


def work(order: Order, key: str, seed: int) -> None:
    """Run one cell in this process; what comes of it is in the run folder."""
    with one_thread(), warnings.catch_warnings():
        # Whoever started this has shown them.
        warnings.simplefilter("ignore")
        job = _prepared(order)
        job.run(job.arms[key], seed)


@lru_cache(maxsize=1)
def _prepared(order: Order) -> Job:
    """Data and arms of a pilot, built once a process."""
    from limbeck.config import config_from_dict

    configuration = json.loads(order.configuration)
    config = config_from_dict(configuration)
    data, arms = plan(config, order.models)
    rule = selection_rule(config.selection, groups=data.groups is not None)
    known = {arm.key: arm for arm in with_precision(with_plain_student(arms), json.loads(order.precision))}
    varied = [Variant(**entry) for entry in json.loads(order.variants)]
    return Job(config.name, data, with_variants(known, varied), rule, Path(order.folder), configuration)


def with_variants(arms: Mapping[str, Arm], variants: Sequence[Variant]) -> dict[str, Arm]:
    """The arms by key, some of them with other settings or joined by their trials."""
    return {**arms, **{variant.key: variant.of(arms[variant.base]) for variant in variants}}


def with_precision(arms: Sequence[Arm], choices: Mapping[str, Any]) -> list[Arm]:
    """The arms with `precision: auto` replaced by what was chosen, once a model: all recipes train in the same one."""
    return [_chosen(arm, arm.training, choices) for arm in arms]


def _chosen(arm: Arm, training: Training | None, choices: Mapping[str, Any]) -> Arm:
    if training is None or training.precision != "auto":
        return arm
    return replace(arm, training=replace(training, precision=choices[precision_key(arm)]))


def precision_key(arm: Arm) -> str:
    """Whose precision the arm trains in: its own for a teacher, the students' common one otherwise."""
    return arm.key if arm.role == "teacher" else "student"


def _begin() -> None:
    """A process must not outlive the one that started it, nor answer an interruption with a traceback."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
