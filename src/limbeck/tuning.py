"""Which of several ways to compute the same pays on this machine: each is timed for a moment, and that is recorded."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import TIMED, WARM_UP, WORTHWHILE, Compiled, Engine, first_line
from limbeck.student import StudentCalls
from limbeck.teachers import Source, Teacher
from limbeck.teachers.base import reads_inputs
from limbeck.training import Training

WORTH_TRYING = 5.0
"""Seconds that a teacher's passes must take before ways to shorten them are tried."""
WORTH_COMPILING = 60.0
"""Seconds that a network's passes must take before a compilation, which takes up to half of that, is tried."""
TEACHER_WAYS = ("channels_last", "autocast", "fold", "compile")


def choose_compile(
    wanted: str | bool | Mapping[str, Any],
    model: nn.Module,
    needs: frozenset[str],
    example: Any,
    steps: int,
    precision: Mapping[str, Any],
) -> dict[str, Any]:
    """Whether the student is compiled.

    Args:
        wanted: `auto`, yes, no, or a choice made before.
        model: the student; a copy of it is timed.
        needs: the fields that the recipe asks of it.
        example: a batch of inputs.
        steps: of the run: compiling must pay within them.
        precision: what `choose_precision` returned.

    Returns:
        {student}, and for `auto` what was measured: milliseconds a step and seconds of compiling, or why nothing was.
    """
    if isinstance(wanted, Mapping):
        return {"student": False, **wanted}
    if wanted and _processes() > 1:
        return {"student": False, "student_note": "not compiled: several processes"}
    if wanted != "auto":
        return {"student": bool(wanted)}

    def step(call: Callable[[Any], dict[str, Tensor]]) -> Callable[[], None]:
        def run() -> None:
            with engine.autocast():
                found = call(example)
            engine.backward(torch.stack([value.float().mean() for value in found.values()]).sum())

        return run

    engine, trial = Engine(precision), copy.deepcopy(model).train()
    calls = StudentCalls(trial, needs, _some(example, 2))
    try:
        _, plain = _timed(step(calls))
        if plain * steps < WORTH_COMPILING:
            return {"student": False, "student_note": f"not tried: all steps take {plain * steps:.1f} s"}
        compiled = Compiled(calls)
        first, faster = _timed(step(compiled))
    finally:
        calls.close()
    if compiled.failure is not None:
        return {"student": False, "student_note": f"it cannot be compiled: {compiled.failure}"}
    measured = {"milliseconds": 1e3 * plain, "compiled": 1e3 * faster, "seconds_to_compile": first}
    return {"student": first + faster * steps < WORTHWHILE * plain * steps, "student_measured": measured}


def teacher_ways(precision: str | Mapping[str, Any], compile: str | bool | Mapping[str, Any]) -> dict[str, bool | None]:
    """How settings want a teacher computed, by `TEACHER_WAYS`; None is left to a timing.

    `bfloat16` is of the student: what the teacher says is as exact as it can be unless `auto` allows otherwise.
    """
    ways: dict[str, bool | None] = dict.fromkeys(TEACHER_WAYS, False)
    if isinstance(precision, Mapping):
        ways |= {name: bool(value) for name, value in precision.get("teacher", {}).items() if name in TEACHER_WAYS}
    elif precision == "auto":
        ways |= {"channels_last": None, "autocast": None}
    if isinstance(compile, Mapping):
        ways |= {"fold": bool(compile.get("fold")), "compile": bool(compile.get("teacher"))}
    elif compile:
        ways |= dict.fromkeys(("fold", "compile"), None if compile == "auto" else True)
    return ways


def choose_teacher_ways(
    wanted: Mapping[str, bool | None], teacher: Teacher, want: Sequence[str], example: Any, ids: Tensor, calls: int
) -> dict[str, Any]:
    """How a frozen teacher is computed.

    Each way is tried on top of those that paid before it, where the teacher's passes take long enough for a trial.

    Args:
        wanted: from `teacher_ways`.
        want: what it is asked for.
        example: a batch of inputs, with its `ids`.
        calls: how many batches of this size it will see.

    Returns:
        `TEACHER_WAYS`, each true or false, and what was measured or why nothing was.
    """
    chosen: dict[str, Any] = {name: bool(value) for name, value in wanted.items()}
    undecided = [name for name in TEACHER_WAYS if wanted[name] is None]
    if not isinstance(teacher, Source) or not reads_inputs(teacher):
        return dict.fromkeys(TEACHER_WAYS, False)
    if not undecided:
        return chosen | _usable(chosen, teacher, want, example, ids)
    if _processes() > 1:
        return chosen | {"note": "nothing tried: several processes, whose timings differ"}

    def ask(how: Mapping[str, Any]) -> Callable[[], Any]:
        computed = teacher.computed(how, example)
        return lambda: computed.outputs(example, ids, want)

    _, best = _timed(ask(chosen))
    if best * calls < WORTH_TRYING:
        return chosen | {"note": f"nothing tried: the teacher takes {best * calls:.1f} s in all"}
    measured: list[dict[str, Any]] = [{"ways": dict(chosen), "milliseconds": 1e3 * best}]
    for name in undecided:
        if name == "compile" and best * calls < WORTH_COMPILING:
            measured.append({"ways": {name: True}, "note": f"not tried: the teacher takes {best * calls:.1f} s in all"})
            continue
        if name == "channels_last" and not (isinstance(example, Tensor) and example.ndim == 4):
            continue
        trial = {**chosen, name: True}
        try:
            first, taken = _timed(ask(trial))
        except Exception as error:
            measured.append({"ways": trial, "note": f"fails: {first_line(error)}"})
            continue
        measured.append({"ways": trial, "milliseconds": 1e3 * taken, "first_seconds": first})
        # The first call of a compiled network compiles it, which has to pay too.
        if taken * calls + (first if name == "compile" else 0.0) < WORTHWHILE * best * calls:
            chosen, best = trial, taken
    return chosen | {"measured": measured}


def computed(teacher: Teacher, ways: Mapping[str, Any], example: Any) -> Teacher:
    """The teacher in the chosen ways."""
    chosen = {name: True for name in TEACHER_WAYS if ways.get(name)}
    return teacher.computed(chosen, example) if chosen and isinstance(teacher, Source) else teacher


def chosen_training(
    training: Training, precision: Mapping[str, Any], compiled: Mapping[str, Any], ways: Mapping[str, Any]
) -> Training:
    """The settings with what was chosen in place of `auto`: given to another run, they compute alike."""
    told = {name: ways[name] for name in ("measured", "note") if name in ways}
    if any(ways.get(name) for name in ("channels_last", "autocast")) or (told and training.precision == "auto"):
        precision = {**precision, "teacher": {name: ways[name] for name in ("channels_last", "autocast")} | told}
    if training.compile is False:
        return replace(training, precision=dict(precision))
    by_teacher: dict[str, Any] = {"teacher": bool(ways.get("compile")), "fold": bool(ways.get("fold"))}
    if told:
        by_teacher["teacher_measured"] = told
    return replace(training, precision=dict(precision), compile={**compiled, **by_teacher})


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _usable(
    chosen: Mapping[str, Any], teacher: Source, want: Sequence[str], example: Any, ids: Tensor
) -> dict[str, Any]:
    """What of a fixed choice cannot be done here: compiling, where there is no compiler."""
    if not chosen["compile"]:
        return {}
    try:
        teacher.computed(chosen, example).outputs(example, ids, want)
    except Exception as error:
        return {"compile": False, "note": f"it cannot be compiled: {first_line(error)}"}
    return {}


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the first call, and of the shortest later one: what else the machine does only ever adds."""
    taken = []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken[0], min(taken[WARM_UP:])


def _some(inputs: Any, count: int) -> Any:
    return {name: value[:count] for name, value in inputs.items()} if isinstance(inputs, Mapping) else inputs[:count]
