"""Training shares of probes at once, each in a process of its own.

A step of many small networks is hundreds of calls that take microseconds each: threads would wait for each other, so
that a second core only helps as a second process. Processes are forked: features and teacher outputs are shared memory
then, and nothing but the trained weights and the records of the epochs comes back.
"""

from __future__ import annotations

import builtins
import json
import multiprocessing
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from limbeck import errors
from limbeck.errors import ConfigError, LimbeckError
from limbeck.loop import Fitted, Stage
from limbeck.modes import one_thread
from limbeck.probes.stages import finished
from limbeck.processes import follow_parent

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess  # there is none on Windows

Train = Callable[[int], dict[int, Fitted]]
"""Trains a share; the results by place."""


def why_not() -> str:
    """Why no second process can be started here; empty where one can."""
    if sys.platform != "linux":
        return "processes are forked, which is only safe on Linux"
    if torch.cuda.is_available():
        return "processes cannot be forked beside CUDA"
    if multiprocessing.parent_process() is not None:
        return "this is itself a worker process, which does not start others"
    return ""


def worker_count(asked: int | None) -> int:
    """How many processes to train in.

    Args:
        asked: so many; None: as many as torch has threads, where processes can be forked safely, else one.

    Raises:
        ConfigError: less than one; more than one where that cannot be.
    """
    if asked is None:
        # Another thread may hold a lock, which a forked process would wait for without end.
        return 1 if why_not() or threading.active_count() > 1 else torch.get_num_threads()
    if asked < 1:
        raise ConfigError(f"workers: expected 1 or more processes, found {asked}")
    if asked > 1 and (reason := why_not()):
        raise ConfigError(f"workers: {asked} asked for, and {reason}; leave it out, or set it to 1")
    return asked


def train_shares(stages: Sequence[Stage], count: int, train: Train) -> dict[int, Fitted]:
    """Train all shares at once, the first in this process.

    Args:
        stages: all of them; models that were trained elsewhere get their weights here.
        count: of shares.
        train: given the number of a share.

    Returns:
        The results of all shares by place in `stages`.

    Raises:
        LimbeckError: what the training of a share raised, or where a process was ended from outside.
    """
    with one_thread(), _forked(range(1, count), train) as others:
        found = train(0)
        for process, connection in others:
            try:
                found |= _received(connection, stages)
            except (EOFError, OSError):
                process.join()
                raise LimbeckError(
                    f"a process that trained some of the probes ended before it had answered (exit code "
                    f"{process.exitcode}), perhaps for want of memory; set workers to 1 or max_bytes to less"
                ) from None
    return found


@contextmanager
def _forked(shares: Sequence[int], train: Train) -> Iterator[list[tuple[ForkProcess, Connection]]]:
    """A process for each share. None is left when this ends, however it ends."""
    context = multiprocessing.get_context("fork")
    started: list[tuple[ForkProcess, Connection]] = []
    try:
        for share in shares:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(there, train, share), daemon=True)
            with warnings.catch_warnings():
                # Torch's idle threads are no danger: the child starts none of its own, and takes no lock of theirs.
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                process.start()
            there.close()
            started.append((process, here))
        yield started
    finally:
        for process, here in started:
            here.close()
            process.kill()
            process.join()


def _work(connection: Connection, train: Train, share: int) -> None:
    """What a forked process does: send what went wrong, or records and warnings, then the weights."""
    follow_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the first process does then is not this one's to do
    torch.set_num_threads(1)
    said: dict[str, Any]
    with warnings.catch_warnings(record=True) as caught:
        try:
            found = train(share)
            weights = {
                _name(place, number): part for place, one in found.items() for number, part in _trained(one.model)
            }
            records = [(place, one.history, one.selected_epoch, one.seconds) for place, one in found.items()]
            said, tensors = {"records": records}, save(weights)
        except LimbeckError as error:
            said, tensors = {"error": type(error).__name__, "said": str(error)}, b""
        except Exception:
            said, tensors = {"error": LimbeckError.__name__, "said": traceback.format_exc()}, b""
    said["warned"] = [(str(kept.message), _builtin(kept.category), kept.filename, kept.lineno) for kept in caught]
    connection.send_bytes(json.dumps(said).encode())
    if "records" in said:  # whoever hears of an error listens no longer
        connection.send_bytes(tensors)


def _builtin(category: type[Warning]) -> str:
    """The kind of warning that another process knows it by: no class is imported by name."""
    return next(kind.__name__ for kind in category.__mro__ if kind.__module__ == builtins.__name__)


def _received(connection: Connection, stages: Sequence[Stage]) -> dict[int, Fitted]:
    """What another process trained, with the weights in the models of this one."""
    said = json.loads(connection.recv_bytes())
    for text, category, file, line in said["warned"]:
        warnings.warn_explicit(text, getattr(builtins, category), file, line)
    if "error" in said:
        raise getattr(errors, said["error"], LimbeckError)(said["said"])
    weights = load(connection.recv_bytes())
    found = {}
    for place, *record in said["records"]:
        for number, part in _trained(stages[place].model):
            part.copy_(weights[_name(place, number)])
        found[place] = finished(stages[place], *record)
    return found


def _trained(model: nn.Module) -> Iterator[tuple[int, Tensor]]:
    return ((number, part.detach()) for number, part in enumerate(model.parameters()) if part.requires_grad)


def _name(place: int, number: int) -> str:
    return f"{place} {number}"
