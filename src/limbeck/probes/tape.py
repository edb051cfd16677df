"""A function of tensors, written down as the operations it consists of, and played again in two parts.

The loss of a small network is some fifty small operations, and calling them (checks, autograd, the half of them that
looks only at teacher and labels) takes longer than computing them. A tape is recorded from one call of a function,
gradients included. What depends on fixed inputs alone is computed once for all samples; a step plays the rest. The
function itself stays the only description of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class CannotRecordError(Exception):
    """A function whose operations depend on values, or that reads memory which it overwrote elsewhere."""


# Operations that go class by class, and take several times as long on few classes as what they consist of ------------


def _log_softmax(logits: Tensor, dim: int, half_to_float: bool) -> Tensor:
    centred = logits - logits.amax(dim, keepdim=True)
    return centred - centred.exp().sum(dim, keepdim=True).log()


def _log_softmax_backward(slope: Tensor, logs: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return slope - logs.exp() * slope.sum(dim, keepdim=True)


def _std_mean(values: Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    mean = values.mean(dim, keepdim=True)
    count = values.numel() // mean.numel()
    spread = (values - mean).square_().sum(dim, keepdim=keepdim).div_(count - correction).sqrt_()
    return spread, mean.clone() if keepdim else mean.squeeze(dim)


def _nll_loss(logs: Tensor, labels: Tensor, weight: Tensor | None, reduction: int, ignored: int) -> tuple[Tensor, ...]:
    if weight is not None or reduction:
        raise CannotRecordError("a weighted or reduced cross entropy")
    return -logs.gather(1, labels.unsqueeze(1)).squeeze(1), logs.new_zeros(())


def _nll_loss_backward(slope: Tensor, logs: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    return torch.zeros_like(logs).scatter(1, labels.unsqueeze(1), -slope.unsqueeze(1))


_CONSISTS_OF: dict[Any, Callable[..., Any]] = {
    aten._log_softmax.default: _log_softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten.std_mean.correction: _std_mean,
    aten.nll_loss_forward.default: _nll_loss,
    aten.nll_loss_backward.default: _nll_loss_backward,
}

_PUBLIC: dict[Any, Callable[..., Any]] = {
    **{
        getattr(aten, function.__name__): function
        for function in (
            *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.exp, torch.expm1, torch.log, torch.sqrt),
            *(torch.square, torch.sigmoid, torch.sum, torch.mean, torch.amax, torch.clamp, torch.gather, torch.scatter),
            *(torch.scatter_add, torch.unsqueeze, torch.squeeze, torch.clone, torch.full_like, torch.zeros_like),
        )
    },
    **{
        getattr(aten, method.__name__): method
        for method in (
            *(Tensor.add_, Tensor.sub_, Tensor.mul_, Tensor.div_, Tensor.neg_, Tensor.exp_, Tensor.log_, Tensor.sqrt_),
            *(Tensor.clamp_, Tensor.scatter_, Tensor.scatter_add_, Tensor.expand),
        )
    },
}
"""The same operations as torch offers them, which reads their arguments faster."""

_UNKNOWN_BEFOREHAND = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}


# Recording ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """One operation: `values[result] = function(*(values[slot] for slot in arguments))`."""

    function: Callable[..., Any]
    arguments: tuple[int, ...]
    result: int
    in_place: Callable[..., Any] | None = None
    """The same where `overwritten`, one of the arguments, is needed no more."""
    overwritten: int = -1


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation below autograd, none of which overwrites anything: each result has its own slot.

    A slot stands for one tensor at one time. Slots of the same `memory` are views of each other; memory that is
    overwritten gets a new number, so that a view from before is not taken for what it has become.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Step] = []
        self.values: list[Any] = []
        self.memory: list[int] = []
        self._slots: dict[tuple[Any, ...], int] = {}
        self._now: dict[int, int] = {}
        self._given: set[int] = set()

    def add(self, value: Any) -> int:
        """The slot of an argument; a new one for what is not known yet."""
        if isinstance(value, Tensor):
            slot = self._slots.get(_place(value))
            known = self._now.get(value.untyped_storage().data_ptr())
            if slot is not None and self.memory[slot] == known:
                return slot
            if known is not None:
                raise CannotRecordError("a tensor that was overwritten through a view")
        slot = self._result(value)
        self._given.add(slot)
        return slot

    def _result(self, value: Any) -> int:
        slot = len(self.values)
        self.values.append(value)  # held, so that its memory is not given to another
        if isinstance(value, Tensor):
            self._slots[_place(value)] = slot
            self.memory.append(self._now.setdefault(value.untyped_storage().data_ptr(), slot))
        else:
            self.memory.append(slot)
        return slot

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _CONSISTS_OF:
            with self:
                return _CONSISTS_OF[func](*args, **given)
        if _UNKNOWN_BEFOREHAND & set(func.tags):
            raise CannotRecordError(f"{func} depends on values")
        function, arguments, written = self._call(func, args, given)
        found = func(*args, **given)
        if isinstance(found, Tensor):
            self._write(func, function, arguments, written, found)
        elif isinstance(found, tuple) and not written:
            whole = self._result(None)
            self.steps.append(_Step(function, arguments, whole))
            for place, part in enumerate(found):
                if isinstance(part, Tensor):
                    self.steps.append(_Step(itemgetter(place), (whole,), self._result(part)))
        else:
            raise CannotRecordError(f"{func} returns {type(found).__name__}")
        return found

    def _call(self, func: Any, args: Any, given: Any) -> tuple[Callable[..., Any], tuple[int, ...], list[int]]:
        """The operation as a function of slots alone, and the slots that it overwrites."""
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        constants = {name: value for name, value in given.items() if name not in tensors}
        plain = _PUBLIC.get(func.overloadpacket, func)
        function = partial(plain, **constants) if constants else plain
        if tensors:
            function = partial(_by_name, function, len(args), tuple(tensors))
        asked = func._schema.arguments[: len(args)]
        types = [value.dtype for value in args if isinstance(value, Tensor) and value.is_floating_point()]
        slots = [self._argument(value, str(by.type), types) for value, by in zip(args, asked, strict=True)]
        slots += [self.add(value) for value in tensors.values()]
        names = [argument.name for argument in asked] + list(tensors)
        writes = {argument.name for argument in func._schema.arguments if argument.is_write}
        return function, tuple(slots), [slot for slot, name in zip(slots, names, strict=True) if name in writes]

    def _argument(self, value: Any, kind: str, types: Sequence[torch.dtype]) -> int:
        if isinstance(value, (int, float)) and kind == "Tensor" and types:
            return self.add(torch.tensor(value, dtype=types[0]))  # once here, not in every step
        if not isinstance(value, (list, tuple)) or not any(isinstance(part, Tensor) for part in value):
            return self.add(value)
        slot = self._result(None)
        self.steps.append(_Step(_listed, tuple(self.add(part) for part in value), slot))
        return slot

    def _write(
        self, func: Any, function: Callable[..., Any], arguments: tuple[int, ...], written: list[int], found: Tensor
    ) -> None:
        if not written:
            slot = self._slots.get(_place(found))
            if slot is not None and self.memory[slot] == self._now[found.untyped_storage().data_ptr()]:
                return  # the same tensor, as from detach
            self.steps.append(_Step(function, arguments, self._result(found)))
            return
        (target,) = written
        if self.memory[target] in self._given:
            raise CannotRecordError(f"{func} overwrites what the function was given")
        self._now[found.untyped_storage().data_ptr()] = len(self.values)
        position = arguments.index(target)
        plain = _without_overwriting(func, function) or partial(_on_a_copy, function, position)
        self.steps.append(_Step(plain, arguments, self._result(found), function, target))


def _place(value: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: two of the same place are the same, whichever object stands for them."""
    return value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype


def _without_overwriting(func: Any, function: Callable[..., Any]) -> Callable[..., Any] | None:
    """`aten.add` for `aten.add_`."""
    name = func._schema.name.removeprefix("aten::")
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    if packet is None or func._overloadname not in packet.overloads():
        return None
    other = _PUBLIC.get(packet, getattr(packet, func._overloadname))
    constants = function.keywords if isinstance(function, partial) else {}
    return partial(other, **constants) if constants else other


def _by_name(function: Callable[..., Any], count: int, names: Sequence[str], *values: Any) -> Any:
    return function(*values[:count], **dict(zip(names, values[count:], strict=True)))


def _on_a_copy(function: Callable[..., Any], position: int, *values: Any) -> Any:
    return function(*values[:position], values[position].clone(), *values[position + 1 :])


def _listed(*values: Any) -> list[Any]:
    return list(values)


# Playing --------------------------------------------------------------------------------------------------------------


class Tape:
    """What `function(*varying, *fixed)` computes, for tensors of these shapes.

    Args:
        function: returns tensors; may differentiate, and may not look at values to decide what to do.
        varying: what differs whenever the tape is played.
        fixed: what is the same for a sample whenever it is met, samples first.

    Raises:
        CannotRecordError: where the operations may be others for other values.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], varying: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> None:
        recorder = _Recorder()
        self._varying = [recorder.add(value) for value in varying]
        self._fixed = [recorder.add(value) for value in fixed]
        with torch.enable_grad(), recorder:
            found = function(*varying, *fixed)
        self._outputs = [recorder.add(value) for value in found]
        constant, rest = _split(recorder.steps, {*self._varying, *self._fixed})
        before, after = _split(rest, {*self._varying})
        after = _needed(after, self._outputs)
        made = {*self._fixed, *(step.result for step in before)}
        asked = [slot for step in after for slot in step.arguments] + self._outputs
        self._carried = [slot for slot in dict.fromkeys(asked) if slot in made]
        before = _needed(before, self._carried)
        if any(recorder.values[slot].shape[:1] != fixed[0].shape[:1] for slot in self._carried):
            raise CannotRecordError("what is made of the fixed inputs is not one row a sample")
        varies = {step.result for step in rest} | {*self._varying, *self._fixed}
        self._values: list[Any] = [None if slot in varies else value for slot, value in enumerate(recorder.values)]
        _run(constant, self._values)
        self._before = before
        after = _in_place(after, self._outputs, recorder.memory)
        self._after, self._outputs = _short_lived(after, self._outputs)

    @torch.no_grad()
    def prepare(self, *fixed: Tensor) -> list[Tensor]:
        """What of the result depends on the fixed inputs alone; one row a sample each."""
        values = self._values.copy()
        for slot, value in zip(self._fixed, fixed, strict=True):
            values[slot] = value
        _run(self._before, values)
        return [values[slot] for slot in self._carried]

    @torch.inference_mode()
    def play(self, varying: Sequence[Tensor], prepared: Sequence[Tensor]) -> list[Tensor]:
        """What the function would return, from what `prepare` gave."""
        values = self._values.copy()
        for slot, value in zip(self._varying, varying, strict=True):
            values[slot] = value
        for slot, value in zip(self._carried, prepared, strict=True):
            values[slot] = value
        for function, arguments_of, result in self._after:
            values[result] = function(*arguments_of(values))
        return [values[slot] for slot in self._outputs]


def _split(steps: Iterable[_Step], inputs: set[int]) -> tuple[list[_Step], list[_Step]]:
    """The steps that do not depend on these slots, and those that do."""
    reached = set(inputs)
    parts: tuple[list[_Step], list[_Step]] = ([], [])
    for step in steps:
        depends = not reached.isdisjoint(step.arguments)
        parts[depends].append(step)
        if depends:
            reached.add(step.result)
    return parts


def _needed(steps: Sequence[_Step], outputs: Iterable[int]) -> list[_Step]:
    """The steps that something is made of."""
    asked, found = set(outputs), []
    for step in reversed(steps):
        if step.result in asked:
            found.append(step)
            asked.update(step.arguments)
    return found[::-1]


def _in_place(steps: Sequence[_Step], outputs: Iterable[int], memory: Sequence[int]) -> list[_Step]:
    """Overwrite again what was overwritten, where it is made here and nothing reads it afterwards."""
    last = {memory[slot]: number for number, step in enumerate(steps) for slot in step.arguments}
    last.update((memory[slot], len(steps)) for slot in outputs)
    made: set[int] = set()
    found = []
    for number, step in enumerate(steps):
        if step.in_place is not None and memory[step.overwritten] in made and last[memory[step.overwritten]] == number:
            step = replace(step, function=step.in_place)
        if memory[step.result] not in {memory[slot] for slot in step.arguments}:
            made.add(memory[step.result])  # not a view of something that is kept
        found.append(step)
    return found


def _short_lived(
    steps: Sequence[_Step], outputs: Sequence[int]
) -> tuple[list[tuple[Callable[..., Any], Any, int]], list[int]]:
    """Give a result the slot of one that nobody reads any more: its memory then is free for the next one."""
    last = {slot: number for number, step in enumerate(steps) for slot in step.arguments}
    last.update((slot, len(steps)) for slot in outputs)
    now: dict[int, int] = {}
    free: list[int] = []
    found = []
    for number, step in enumerate(steps):
        arguments = tuple(now.get(slot, slot) for slot in step.arguments)
        free += [now[slot] for slot in dict.fromkeys(step.arguments) if slot in now and last[slot] == number]
        now[step.result] = free.pop() if free else step.result
        arguments_of: Any = itemgetter(*arguments) if len(arguments) > 1 else partial(_only, arguments[0])
        found.append((step.function, arguments_of, now[step.result]))
    return found, [now.get(slot, slot) for slot in outputs]


def _only(slot: int, values: list[Any]) -> tuple[Any]:
    return (values[slot],)


def _run(steps: Iterable[_Step], values: list[Any]) -> None:
    for step in steps:
        values[step.result] = step.function(*[values[slot] for slot in step.arguments])
