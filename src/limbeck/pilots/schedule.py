"""In what order and where the cells of a pilot run: here one after the other, in processes, or on a Ray cluster.

A cell is a function of its arm and seed, and leaves everything in the run folder, so that where it ran never shows in
the result. Processes are given the configuration as text, and build data and arms from it themselves.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from limbeck.callbacks import Callback
from limbeck.errors import LimbeckError, require
from limbeck.modes import one_thread
from limbeck.pilots.arms import Arm, card_of, plan, taught_by, with_plain_student
from limbeck.pilots.cells import CellFiles, CellResult, read_teacher, run_cell
from limbeck.pilots.choices import Choices
from limbeck.pilots.progress import Watcher
from limbeck.pilots.search import Variant
from limbeck.pilots.sharing import STORES, Sharing
from limbeck.processes import follow_parent
from limbeck.selection import SelectionRule, selection_rule

if TYPE_CHECKING:
    from limbeck.data import Data

WORTHWHILE = 20.0
"""Seconds of work left from which starting processes, which takes some five, is worth it."""
ATTEMPTS = 3
"""How often a cell is tried whose process ended by itself."""


@dataclass(frozen=True)
class Order:
    """What another process needs to run cells of a pilot: plain data.

    Args:
        configuration: of the pilot, as JSON.
        models: the Python file of the user's own models.
        folder: the run folder.
        choices: what `auto` was decided to be, as JSON.
        teachers: the run folder that the teachers are in; another one where several pilots have them in common.
        variants: arms with other settings, as a JSON list.
    """

    configuration: str
    models: str | None
    folder: str
    choices: str
    teachers: str
    variants: str = "[]"


@dataclass(frozen=True, eq=False)
class Job:
    """What the cells of a pilot need beside their arm and seed.

    Args:
        name: of the pilot.
        data: of the pilot.
        arms: by key.
        rule: of selection.
        folder: where cells are kept, if anywhere.
        configuration: as plain data, where there is one.
        teachers: the folder that the cells of teachers are in, where that is another pilot's.
        stores: where what the teachers say is kept, if anywhere.
        order: what other processes need; None for a pilot of modules, which are only here, or one that keeps nothing.
        place: its data set and student, where it is one of several.
    """

    name: str
    data: Data
    arms: Mapping[str, Arm]
    rule: SelectionRule
    folder: Path | None
    configuration: Mapping[str, Any] | None
    teachers: Path | None = None
    stores: Path | None = None
    order: Order | None = None
    place: tuple[str | None, str | None] = (None, None)

    def label(self, arm: Arm) -> str:
        """How a person is told of an arm: of several pilots, which one's it is."""
        parts = [part for part in (self.place[:1] if arm.role == "teacher" else self.place) if part is not None]
        return f"{', '.join(parts)}: {arm.label}" if parts else arm.label

    def card(self, arm: Arm) -> dict[str, Any]:
        """What the file of the arm's model says of it."""
        return self._card | {"arm": arm.key} | card_of(arm, self.configuration)

    @cached_property
    def _card(self) -> dict[str, Any]:
        data = self.data
        card = {"pilot": self.name, "data": data.name, "classes": list(data.classes), "fingerprint": data.fingerprint()}
        return card | {"inputs_shape": data.sample_shape}

    @cached_property
    def sharing(self) -> Sharing | None:
        """The stores of the teachers."""
        return None if self.stores is None else Sharing(self.stores, self.data)

    def files(self, arm: Arm, seed: int) -> CellFiles:
        """Where the cell is kept."""
        folder = self.teachers if arm.role == "teacher" and self.teachers is not None else self.folder
        return CellFiles(folder, arm.key, seed)

    def run(
        self, arm: Arm, seed: int, teachers: Mapping[str, Any] | None = None, callbacks: Sequence[Callback] = ()
    ) -> CellResult:
        """Train and evaluate a cell, or read it back; teachers that are not given are read from the run folder."""
        files, arms = self.files(arm, seed), list(self.arms.values())
        found: dict[str, Any] = {}
        if files.finished() is None:
            for key in arm.teachers:
                own = self.arms[key]
                given = read_teacher(own, self.files(own, seed)) if teachers is None else teachers[key]
                found[key] = given if self.sharing is None else self.sharing.open(own, seed, given, arm, arms)
        return run_cell(
            arm,
            seed,
            self.data,
            taught_by(arm, found) if found else None,
            selection=self.rule,
            files=files,
            callbacks=callbacks,
            card=self.card(arm),
            sharing=self.sharing,
            arms=arms,
        )


@dataclass(frozen=True, eq=False)
class Cell:
    """One training of one pilot.

    Args:
        job: of the pilot.
        arm: what is trained.
        seed: of the training.
        after: places (among all cells) of those that must be complete before.
    """

    job: Job
    arm: Arm
    seed: int
    after: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """How a person is told of it."""
        return self.job.label(self.arm)

    @property
    def known(self) -> bool:
        """Whether it is complete already."""
        return self.job.files(self.arm, self.seed).finished() is not None


Done = tuple[Cell, CellResult]
"""A cell and what came of it."""


def in_order(arms: Sequence[Arm], seeds: Sequence[int]) -> list[tuple[Arm, int]]:
    """The cells of a pilot seed by seed, teachers first."""
    return [(arm, seed) for seed in seeds for arm in sorted(arms, key=lambda arm: arm.role != "teacher")]


def cells_of(jobs: Sequence[Job], arms: Mapping[Job, Sequence[Arm]], seeds: Sequence[int]) -> list[Cell]:
    """The cells of pilots that have their teachers in common, seed by seed, teachers first and only once.

    Args:
        jobs: of the pilots; the first one's are the teachers.
        arms: of each.
        seeds: the same for all.
    """
    found: list[Cell] = []
    places: dict[tuple[str, int], int] = {}
    first: dict[str, int] = {}
    for seed in seeds:
        for job in jobs:
            for arm, _ in in_order(arms[job], [seed]):
                after = tuple(places[key, seed] for key in arm.teachers)
                if arm.role == "teacher":
                    if job is not jobs[0]:
                        continue
                    # A finished teacher is the same with every seed: what it says is written with the first one.
                    after = (first[arm.key],) if arm.source is not None and arm.key in first else ()
                    first.setdefault(arm.key, len(found))
                    places[arm.key, seed] = len(found)
                found.append(Cell(job, arm, seed, after))
    return found


class Crew:
    """Where the cells of a pilot run: here, in processes of this machine, or on a Ray cluster.

    Processes are started when they are first needed, and stay until the end.

    Args:
        workers: how many processes; None takes one a core where there is enough left to do after the first cells.
        cluster: the address of a Ray cluster to run on instead; `local` starts one here.
    """

    def __init__(self, workers: int | None = 1, cluster: str | None = None) -> None:
        self.workers, self.cluster = workers, cluster
        self._pool: Pool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    @property
    def busy(self) -> bool:
        """Whether other processes train beside this one."""
        return self._pool is not None

    def pool(self, count: int) -> Pool:
        """The processes, `count` of this machine's at least."""
        if self._pool is not None and self.cluster is None and self._pool.size < count:
            self._pool.close()
            self._pool = None
        if self._pool is None:
            if self.cluster is not None:
                self._pool = RayPool(None if self.cluster == "local" else self.cluster)
            else:
                self._pool = LocalPool(count)
        return self._pool

    def run(self, cells: Sequence[Cell], watcher: Watcher) -> Iterator[Done]:
        """Run cells, those that others wait for before them, and give each as it is done.

        Args:
            cells: each after those that it waits for.
            watcher: told of what happens.

        Raises:
            LimbeckError: of a cell, or where a process ends by itself again and again.
        """
        elsewhere = all(cell.job.order is not None for cell in cells)
        if self.cluster is not None:
            if not elsewhere:
                raise LimbeckError("a pilot runs on a cluster from a configuration and with a run folder: give both")
            yield from _in_pool(cells, 0, watcher, self.pool(1))
            return
        count = min(available_cores() if self.workers is None else self.workers, len(cells))
        if elsewhere and (self._pool is not None or (self.workers is not None and count > 1)):
            yield from _in_pool(cells, 0, watcher, self.pool(count))
            return
        teachers: dict[int, Any] = {}
        seconds: list[float] = []
        last = {place: index for index, cell in enumerate(cells) for place in cell.after}
        for place, cell in enumerate(cells):
            left = len(cells) - place
            longer = bool(seconds) and left * sum(seconds) / len(seconds) > WORTHWHILE
            if self.workers is None and elsewhere and min(count, left) > 1 and longer:
                yield from _in_pool(cells, place, watcher, self.pool(min(count, left)))
                return
            known = cell.known
            watcher.cell(cell.label, cell.seed)
            started = time.perf_counter()
            given = {cells[other].arm.key: teachers[other] for other in cell.after if cell.arm.role != "teacher"}
            result = cell.job.run(cell.arm, cell.seed, given, watcher.callbacks)
            if not known:
                seconds.append(time.perf_counter() - started)
            if cell.arm.role == "teacher" and place in last:
                teachers[place] = result.teacher
            for other in [other for other in teachers if last[other] <= place]:
                del teachers[other]
            yield cell, replace(result, teacher=None)


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
                self._executor = ProcessPoolExecutor(self._size, multiprocessing.get_context("spawn"), follow_parent)
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


def _in_pool(cells: Sequence[Cell], start: int, watcher: Watcher, pool: Pool) -> Iterator[Done]:
    """Run the cells from place `start` on; those before are complete."""
    waiting = list(range(start, len(cells)))
    running: dict[Any, int] = {}
    tries = dict.fromkeys(waiting, 0)
    while waiting or running:
        pending = {*waiting, *running.values()}
        for place in list(waiting):
            cell = cells[place]
            if len(running) >= pool.size:
                break
            if pending.intersection(cell.after):
                continue
            waiting.remove(place)
            if cell.known:
                pending.discard(place)
                yield cell, replace(cell.job.run(cell.arm, cell.seed), teacher=None)
                continue
            watcher.cell(cell.label, cell.seed)
            tries[place] += 1
            assert cell.job.order is not None
            running[pool.submit(cell.job.order, cell.arm.key, cell.seed)] = place
        for handle in pool.some_done(list(running)) if running else ():
            place = running.pop(handle)
            cell = cells[place]
            try:
                pool.check(handle)
            except _LostError:
                if tries[place] >= ATTEMPTS:
                    raise LimbeckError(
                        f"{cell.label}, seed {cell.seed}: the process that trained it ended by itself {ATTEMPTS} times "
                        "(is there enough memory?): use fewer processes (--workers); what is finished is kept"
                    ) from None
                waiting.insert(0, place)
                continue
            # The record is in the folder now, so that this only reads it.
            yield cell, replace(cell.job.run(cell.arm, cell.seed), teacher=None)


def work(order: Order, key: str, seed: int) -> None:
    """Run one cell in this process; what comes of it is in the run folder."""
    with one_thread(), warnings.catch_warnings():
        # Whoever started this has shown them.
        warnings.simplefilter("ignore")
        job = _prepared(order)
        job.run(job.arms[key], seed)


@lru_cache(maxsize=2)
def _prepared(order: Order) -> Job:
    """Data and arms of a pilot, built once a process."""
    from limbeck.config import config_from_dict

    configuration = json.loads(order.configuration)
    config = config_from_dict(configuration)
    data, arms = plan(config, order.models, _loaded(json.dumps(configuration["data"])))
    rule = selection_rule(config.selection, groups=data.groups is not None)
    choices = Choices.from_dict(json.loads(order.choices))
    known = {arm.key: arm for arm in choices.compiled(choices.in_precision(with_plain_student(arms)))}
    varied = [Variant(**entry) for entry in json.loads(order.variants)]
    every, teachers = with_variants(known, varied), Path(order.teachers)
    return Job(config.name, data, every, rule, Path(order.folder), configuration, teachers, teachers / STORES, order)


@lru_cache(maxsize=2)
def _loaded(section: str) -> Data:
    """The data of a configuration, which pilots of several students have in common."""
    from limbeck.build import build_data
    from limbeck.config_data import data_section

    return build_data(data_section(json.loads(section)))


def with_variants(arms: Mapping[str, Arm], variants: Sequence[Variant]) -> dict[str, Arm]:
    """The arms by key, some of them with other settings or joined by their trials."""
    return {**arms, **{variant.key: variant.of(arms[variant.base]) for variant in variants}}
