"""A function of tensors, written down as the operations it consists of, and played again for many networks at once.

The loss of a small network is some fifty small operations, and calling them (checks, autograd, the half of them that
looks only at teacher and labels) takes longer than computing them. A tape is recorded from calls of a function,
gradients included. What depends on fixed inputs alone is computed once for all samples. The rest of many tapes becomes
a program: an operation that the losses of several networks have in common is one call on the rows of all of them.
The function itself stays the only description of what is computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
    centred = values - mean
    spread = (centred * centred).sum(dim, keepdim=keepdim).div_(count - correction).sqrt_()
    return spread, mean.clone() if keepdim else mean.squeeze(dim)


def _nll_loss(logs: Tensor, labels: Tensor, weight: Tensor | None, reduction: int, ignored: int) -> tuple[Tensor, ...]:
    if weight is not None or reduction:
        raise CannotRecordError("a weighted or reduced cross entropy")
    return -logs.gather(1, labels.unsqueeze(1)).squeeze(1), logs.new_zeros(())


def _nll_loss_backward(slope: Tensor, logs: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    return torch.zeros_like(logs).scatter(1, labels.unsqueeze(1), -slope.unsqueeze(1))


def _mean(values: Tensor, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    total = values.sum(dim, keepdim=keepdim, dtype=dtype)
    return total / (values.numel() // total.numel())


def _full_like(values: Tensor, fill: Any, *rest: Any, **how: Any) -> Tensor:
    return torch.full(values.shape, fill, dtype=how.get("dtype") or values.dtype)  # whatever the values are


def _zeros_like(values: Tensor, *rest: Any, **how: Any) -> Tensor:
    return _full_like(values, 0.0, **how)


def _ones_like(values: Tensor, *rest: Any, **how: Any) -> Tensor:
    return _full_like(values, 1.0, **how)


def _new_zeros(values: Tensor, shape: Sequence[int], *rest: Any, **how: Any) -> Tensor:
    return torch.full(shape, 0.0, dtype=how.get("dtype") or values.dtype)


_CONSISTS_OF: dict[Any, Callable[..., Any]] = {
    aten._log_softmax.default: _log_softmax,
    aten._log_softmax_backward_data.default: _log_softmax_backward,
    aten.std_mean.correction: _std_mean,
    aten.mean.dim: _mean,
    aten.nll_loss_forward.default: _nll_loss,
    aten.nll_loss_backward.default: _nll_loss_backward,
    aten.full_like.default: _full_like,
    aten.zeros_like.default: _zeros_like,
    aten.ones_like.default: _ones_like,
    aten.new_zeros.default: _new_zeros,
}


def _masked_exp(values: Tensor, *, out: Tensor | None = None) -> Tensor:
    found = torch.exp(torch.clamp(values, min=_LEAST, out=out), out=out)
    return torch.threshold(found, _MASKED, 0.0, out=out)


def _masked_fill(values: Tensor, mask: Tensor, fill: Any, *, out: Tensor | None = None) -> Tensor:
    held = fill if isinstance(fill, Tensor) else torch.tensor(fill, dtype=values.dtype)
    return torch.where(mask, held, values) if out is None else torch.where(mask, held, values, out=out)


_LEAST = -64.0
_MASKED = 2e-28
"""The exp of less is 0 here, where classes are masked: torch takes ten times as long for numbers near the end of
float32, as does whatever is done with them, and 2e-28 does not show in any sum."""

_WITH_NUMBERS = ("add", "sub", "mul", "div", "eq", "masked_fill")
_NUMBERS = ("other", "value")
"""Operations with a number of this name, which are faster with a tensor that holds it."""

_PUBLIC: dict[Any, Callable[..., Any]] = {
    getattr(aten, function.__name__): function
    for function in (
        *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.exp, torch.expm1, torch.log, torch.sqrt),
        *(torch.square, torch.sigmoid, torch.sum, torch.amax, torch.clamp, torch.gather, torch.scatter),
        *(torch.scatter_add, torch.unsqueeze, torch.squeeze, torch.clone, torch.full, torch.where, torch.abs),
        *(torch.log1p, torch.pow, torch.reciprocal, torch.cat, torch.eq),
    )
} | {aten.expand: Tensor.expand, aten.masked_fill: _masked_fill}
"""The same operations as torch offers them, which reads their arguments faster."""

_UNKNOWN_BEFOREHAND = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}


# Recording ------------------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """One operation, `values[result] = function(*(values[slot] for slot in arguments))`, which overwrites nothing.

    `view` says whether the result lies in the memory of an argument.
    """

    function: Callable[..., Any]
    arguments: tuple[int, ...]
    result: int
    view: bool


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation below autograd, as if none overwrote anything: each result has its own slot.

    A slot stands for one tensor at one time. Slots of the same `memory` are views of each other; memory that is
    overwritten gets a new number, so that a view from before is not taken for what it has become.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], varying: Sequence[Tensor], fixed: Sequence[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Step] = []
        self.values: list[Any] = []
        self._memory: list[int] = []
        self._slots: dict[tuple[Any, ...], int] = {}
        self._now: dict[int, int] = {}
        self._given: set[int] = set()
        self.varying = [self._add(value) for value in varying]
        self.fixed = [self._add(value) for value in fixed]
        with torch.enable_grad(), self:
            found = function(*varying, *fixed)
        self.outputs = [self._add(value) for value in found]

    def _add(self, value: Any) -> int:
        """The slot of an argument; a new one for what is not known yet."""
        if isinstance(value, Tensor):
            slot = self._slots.get(_place(value))
            known = self._now.get(value.untyped_storage().data_ptr())
            if slot is not None and self._memory[slot] == known:
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
            self._memory.append(self._now.setdefault(value.untyped_storage().data_ptr(), slot))
        else:
            self._memory.append(slot)
        return slot

    def _step(self, function: Callable[..., Any], arguments: tuple[int, ...], found: Tensor) -> None:
        result = self._result(found)
        view = self._memory[result] in {self._memory[slot] for slot in arguments}
        self.steps.append(_Step(function, arguments, result, view))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _CONSISTS_OF:
            with self:
                return _CONSISTS_OF[func](*args, **given)
        if _UNKNOWN_BEFOREHAND & set(func.tags):
            raise CannotRecordError(f"{func} depends on values")
        function, arguments, written = self._call(func, args, given)
        masked = func.overloadpacket in (aten.exp, aten.exp_) and bool((args[0] < _LEAST).any())
        found = func(*args, **given)
        if isinstance(found, Tensor):
            self._write(func, _masked_exp if masked else function, arguments, written, found)
        elif func is aten.log_sigmoid_forward.default:
            self._step(F.logsigmoid, arguments, found[0])
        elif isinstance(found, tuple) and not written:
            for place, part in enumerate(found):
                if isinstance(part, Tensor):
                    self._step(partial(_part_of, place, function), arguments, part)
        else:
            raise CannotRecordError(f"{func} returns {type(found).__name__}")
        return found

    def _call(self, func: Any, args: Any, given: Any) -> tuple[Callable[..., Any], tuple[int, ...], dict[str, int]]:
        """The operation as a function of slots alone, and by name the slots that it overwrites."""
        asked = func._schema.arguments
        types = [value.dtype for value in args if isinstance(value, Tensor) and value.is_floating_point()]
        held = _NUMBERS if func.overloadpacket.__name__.rstrip("_") in _WITH_NUMBERS else ()
        kinds = ["Tensor" if by.name in held else str(by.type) for by in asked]
        slots = [self._argument(value, kind, types) for value, kind in zip(args, kinds, strict=False)]
        named = {name: self._add(value) for name, value in given.items() if isinstance(value, Tensor)}
        names = dict(zip([by.name for by in asked], slots, strict=False)) | named
        written = {by.name: names[by.name] for by in asked if by.is_write and by.name in names}
        constants = {name: value for name, value in given.items() if name not in named}
        function = _PUBLIC.get(func.overloadpacket, func.overloadpacket if "out" in written else func)
        if named := {name: slot for name, slot in named.items() if name not in written}:
            function = partial(_by_name, function, len(slots), tuple(named))
        function = partial(function, **constants) if constants else function
        return function, (*slots, *named.values()), written

    def _argument(self, value: Any, kind: str, types: Sequence[torch.dtype]) -> int:
        if isinstance(value, (int, float)) and kind == "Tensor" and types:
            return self._add(torch.tensor(value, dtype=types[0]))  # once here, not in every step
        if not isinstance(value, (list, tuple)) or not any(isinstance(part, Tensor) for part in value):
            return self._add(value)
        slot = self._result(None)
        self.steps.append(_Step(_listed, tuple(self._add(part) for part in value), slot, False))
        return slot

    def _write(
        self,
        func: Any,
        function: Callable[..., Any],
        arguments: tuple[int, ...],
        written: dict[str, int],
        found: Tensor,
    ) -> None:
        if not written:
            slot = self._slots.get(_place(found))
            if slot is None or self._memory[slot] != self._now[found.untyped_storage().data_ptr()]:
                self._step(function, arguments, found)
            return  # else the same tensor, as from detach
        ((name, target),) = written.items()
        if self._memory[target] in self._given:
            raise CannotRecordError(f"{func} overwrites what the function was given")
        self._now[found.untyped_storage().data_ptr()] = len(self.values)
        if name == "out":
            made = function(*(self.values[slot] for slot in arguments))
            function = function if made.dtype is found.dtype else partial(_as_type, found.dtype, function)
        elif function is not _masked_exp:
            function = _without_overwriting(func, function) or partial(_on_a_copy, function, arguments.index(target))
        self._step(function, arguments, found)


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


def _by_name(function: Callable[..., Any], count: int, names: Sequence[str], *values: Any, **more: Any) -> Any:
    return function(*values[:count], **dict(zip(names, values[count:], strict=True)), **more)


def _on_a_copy(function: Callable[..., Any], position: int, *values: Any) -> Any:
    return function(*values[:position], values[position].clone(), *values[position + 1 :])


def _as_type(dtype: torch.dtype, function: Callable[..., Tensor], *values: Any) -> Tensor:
    return function(*values).to(dtype)


def _part_of(place: int, function: Callable[..., Any], *values: Any) -> Any:
    return function(*values)[place]


def _listed(*values: Any) -> list[Any]:
    return list(values)


# Tapes ----------------------------------------------------------------------------------------------------------------


class _Rows:
    """Stands for the number of rows among the sizes that an operation takes."""


_ROWS = _Rows()
_SIZES = (11, 13, 17, 19)
"""Numbers of rows to record with: the first that is no other size."""


class Tape:
    """What `function(*varying, *fixed)` computes, row by row, for any number of rows.

    Args:
        function: returns tensors, one row for each row of its inputs; may differentiate, and may not look at values to
            decide what to do.
        varying: what differs whenever the tape is played, samples first; examples.
        fixed: what is the same for a sample whenever it is met, samples first; examples.

    Attributes:
        signature: the same for tapes that play the same operations.
        varying, carried, outputs: the slots of what is given when it is played, and of what comes out.
        played: the operations of a play, in order.
        constants: the values of the slots that are the same in every play.

    Raises:
        CannotRecordError: where the operations may be others for other values or another number of rows.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], varying: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> None:
        others = {size for value in (*varying, *fixed) for size in value.shape[1:]}
        count = next(size for size in _SIZES if size not in others)
        one = _Recorder(function, *([first_rows(value, count) for value in given] for given in (varying, fixed)))
        self.varying, self._fixed = one.varying, one.fixed
        constant, rest = _split(one.steps, {*self.varying, *self._fixed})
        made = {*self.varying, *self._fixed, *(step.result for step in one.steps)}
        shapes = {slot: _sizes(getattr(one.values[slot], "shape", ()), count) for slot in made}
        self.constants = {slot: _sizes(value, count) for slot, value in enumerate(one.values) if slot not in made}
        known = self._run(constant, dict(self.constants), count)
        # What has no rows is known once and for all; what has is made again for the rows that there are.
        self.constants |= {step.result: known[step.result] for step in constant if _ROWS not in shapes[step.result]}
        constant = [step for step in constant if step.result not in self.constants]
        before, after = _split(rest, {*self.varying})
        after, self.outputs = _without_idle(after, one.outputs, known, shapes)
        self.played = _needed([*constant, *after], self.outputs)
        own = {*self._fixed, *(step.result for step in before)}
        asked = [slot for step in self.played for slot in step.arguments] + self.outputs
        carried = [slot for slot in dict.fromkeys(asked) if slot in own]
        # The exp of what is carried anyhow, as of log-probabilities, takes less time than carrying it.
        again = [step for step in before if step.function is torch.exp and {step.result, *step.arguments} <= {*carried}]
        self.played = [*again, *self.played]
        self.carried = [slot for slot in carried if slot not in {step.result for step in again}]
        self._before = _needed([*constant, *before], self.carried)
        self.signature = self._sign()
        rows = [shapes[slot] for slot in (*self.carried, *(step.result for step in self.played))]
        if any(shape[:1] != [_ROWS] or _ROWS in shape[1:] or len(shape) > 2 for shape in rows):
            raise CannotRecordError("what is computed is not one row of numbers for each row")
        self._check(function, *([first_rows(value, 2 * count) for value in given] for given in (varying, fixed)))

    def _check(
        self, function: Callable[..., Sequence[Tensor]], varying: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> None:
        """Hold what is played against the function, for another number of rows."""
        given = dict(zip((*self.varying, *self._fixed), (*varying, *fixed), strict=True))
        steps = [*self._before, *self.played]
        try:
            with torch.no_grad():
                values = self._run(steps, self.constants | given, len(varying[0]))
        except RuntimeError as error:
            raise CannotRecordError("other operations for another number of rows") from error
        for slot, expected in zip(self.outputs, function(*varying, *fixed), strict=True):
            if not torch.allclose(values[slot], expected, rtol=1e-3, atol=1e-4, equal_nan=True):
                raise CannotRecordError("other operations for another number of rows")

    def _sign(self) -> Any:
        """What two tapes have in common that play the same operations, whatever they carry."""
        slots = [*self.varying, *self.carried, *(step.result for step in self.played)]
        place = {slot: number for number, slot in enumerate(slots)}
        steps = [
            (
                function_key(step.function),
                *(place.get(slot, constant_key(self.constants.get(slot))) for slot in step.arguments),
            )
            for step in self.played
        ]
        return (*steps, *(place[slot] for slot in self.outputs))

    @torch.no_grad()
    def prepare(self, *fixed: Tensor) -> list[Tensor]:
        """What of the result depends on the fixed inputs alone; one row a sample each."""
        values = self._run(self._before, self.constants | dict(zip(self._fixed, fixed, strict=True)), len(fixed[0]))
        return [values[slot] for slot in self.carried]

    @staticmethod
    def _run(steps: Iterable[_Step], values: dict[int, Any], rows: int) -> dict[int, Any]:
        for step in steps:
            values[step.result] = step.function(*[sized(values[slot], rows) for slot in step.arguments])
        return values

    def names(self, own: Sequence[int], known: dict[Any, int]) -> list[int]:
        """Numbers for what is carried: the same where the same is made of the same.

        Args:
            own: numbers for the fixed inputs.
            known: what numbers there are; more are added.
        """
        numbers = dict(zip(self._fixed, own, strict=True))
        for step in self._before:
            arguments = [
                ("made", numbers[slot]) if slot in numbers else ("same", constant_key(self.constants[slot]))
                for slot in step.arguments
            ]
            numbers[step.result] = known.setdefault((function_key(step.function), *arguments), len(known))
        return [numbers[slot] for slot in self.carried]


def first_rows(values: Tensor, count: int) -> Tensor:
    """So many rows, the last one again where there are no more; classes first in memory."""
    return classes_first(values.index_select(0, torch.arange(count).clamp_(max=len(values) - 1)))


def classes_first(values: Tensor) -> Tensor:
    """The same `[n, C]`, rows contiguous: torch reduces over few classes several times faster so."""
    return values.T.contiguous().T if values.dim() == 2 else values


def function_key(function: Callable[..., Any]) -> Any:
    """What two functions share that are the same."""
    if isinstance(function, partial):
        parts = (*function.args, *function.keywords.items())
        return (
            function_key(function.func),
            *(function_key(part) if callable(part) else constant_key(part) for part in parts),
        )
    return function


def constant_key(value: Any) -> Any:
    """A constant as a key."""
    if isinstance(value, Tensor):
        return (value.dtype, tuple(value.shape), value.numpy().tobytes())
    return tuple(map(constant_key, value)) if isinstance(value, (list, tuple)) else (type(value), value)


def sized(value: Any, rows: int) -> Any:
    """A constant for so many rows."""
    if isinstance(value, list):
        return [sized(part, rows) for part in value]
    return rows if value is _ROWS else value


def _sizes(value: Any, rows: int) -> Any:
    """Sizes, with `_ROWS` for the number of rows; another constant as it is."""
    if isinstance(value, (list, tuple)):
        return [_ROWS if type(part) is int and part == rows else part for part in value]
    return value


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


def _without_idle(
    steps: Iterable[_Step], outputs: Iterable[int], known: Mapping[int, Any], shapes: Mapping[int, tuple[Any, ...]]
) -> tuple[list[_Step], list[int]]:
    """Leave out copies, which nothing here overwrites, and multiplying by one."""
    same: dict[int, int] = {}
    found = []
    for step in steps:
        arguments = tuple(same.get(slot, slot) for slot in step.arguments)
        if step.function is torch.clone:
            same[step.result] = arguments[0]
            continue
        if step.function is torch.mul:
            ones = [slot for slot in arguments if _all_ones(known.get(slot))]
            others = [slot for slot in arguments if slot not in ones]
            if ones and others and shapes.get(others[0]) == shapes[step.result]:
                same[step.result] = others[0]
                continue
        found.append(step._replace(arguments=arguments))
    return found, [same.get(slot, slot) for slot in outputs]


def _all_ones(value: Any) -> bool:
    return isinstance(value, Tensor) and bool((value == 1).all())


# Programs -------------------------------------------------------------------------------------------------------------

LOGITS = 0
"""The node of a program that is the student's logits."""


@dataclass
class _Node:
    """An operation, or what is given, for the columns that have it; `arguments` are nodes or constants."""

    function: Callable[..., Tensor] | None
    arguments: tuple[tuple[bool, Any], ...]
    view: bool
    columns: list[int]


class Program:
    """What tapes compute for columns, each a number of rows of its own: what several compute alike is one operation.

    Columns must be added in their order. The memory of everything is laid out before the first play.

    Args:
        rows: of a column.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._nodes: list[_Node] = []
        self._numbers: dict[Any, int] = {}
        self._held: dict[tuple[int, Any], list[Any]] = {}
        self._places: dict[tuple[int, int], tuple[Tensor, int]] = {}
        self._steps: list[tuple[Callable[..., Any], list[Any], Tensor]] = []
        self._outputs: set[int] = set()
        self.given: dict[int, list[Any]] = {}
        """What is carried: by node the data of its columns."""

    def add(self, column: int, tape: Tape, data: Sequence[tuple[Any, Any]]) -> list[int]:
        """Add a tape on a column's logits.

        Args:
            column: which.
            tape: what is computed there.
            data: what it carries, as a kind (its type first; two of a kind can lie side by side) and what it is.

        Returns:
            The nodes of what comes out; `rows` has their values.
        """
        nodes = {tape.varying[0]: self._number("logits", None, (), False, column)}  # the first of all: LOGITS
        for place, (slot, (kind, own)) in enumerate(zip(tape.carried, data, strict=True)):
            # What tapes of the same operations carry lies beside each other; an index is mostly the label, for all.
            part = (kind, None if kind[0] is torch.int64 else (tape.signature, place))
            held = self._held.setdefault((column, part), [])
            if own not in held:
                held.append(own)
            node = self._number((part, held.index(own)), None, (), False, column)
            columns = self.given.setdefault(node, [])
            columns += [own] * (len(self._nodes[node].columns) - len(columns))
            nodes[slot] = node
        for step in tape.played:
            arguments = tuple(
                (True, nodes[slot]) if slot in nodes else (False, tape.constants[slot]) for slot in step.arguments
            )
            key = (
                function_key(step.function),
                *((is_node, value if is_node else constant_key(value)) for is_node, value in arguments),
            )
            nodes[step.result] = self._number(key, step.function, arguments, step.view, column)
        found = [nodes[slot] for slot in tape.outputs]
        self._outputs.update(found)
        return found

    def _number(
        self, key: Any, function: Callable[..., Tensor] | None, arguments: tuple[Any, ...], view: bool, column: int
    ) -> int:
        number = self._numbers.setdefault(key, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(_Node(function, arguments, view, []))
        columns = self._nodes[number].columns
        if column not in columns:
            columns.append(column)
        return number

    @torch.inference_mode()
    def lay_out(self, logits: Tensor, given: Mapping[int, Tensor], free: dict[Any, list[Tensor]]) -> None:
        """Decide where everything lies, by a first play.

        Args:
            logits: of all columns, `[R·n, C]`.
            given: by node what its columns carry, one column's rows after the other's.
            free: memory by type and size that may be used, as may be this program's by another one later.
        """
        ends = self._ends()
        held: dict[int, list[Tensor]] = defaultdict(list)
        moving = {value.untyped_storage().data_ptr() for value in (logits, *given.values())}
        for number, node in enumerate(self._nodes):
            if node.function is None:
                for place, column in enumerate(node.columns):
                    self._places[number, column] = (given[number], place) if number in given else (logits, column)
                continue
            for run in self.runs([value for is_node, value in node.arguments if is_node], node.columns):
                count = len(run) * self._rows
                arguments = [self.rows(v, run) if is_node else sized(v, count) for is_node, v in node.arguments]
                made = node.function(*arguments)
                read = {value.untyped_storage().data_ptr() for value in arguments if isinstance(value, Tensor)}
                # A view follows what it looks at, and what depends on nothing that moves is done.
                view = node.view and made.untyped_storage().data_ptr() in read
                if not view and not moving.isdisjoint(read):
                    spare = free.get((made.dtype, made.numel()))
                    memory = spare.pop() if spare else torch.empty(made.numel(), dtype=made.dtype)
                    out = memory.view(made.shape[::-1]).t() if made.dim() == 2 else memory
                    self._steps.append((_into(node.function, arguments, out), arguments, out))
                    moving.add(memory.untyped_storage().data_ptr())
                    held[number].append(memory)
                    made = out
                for place, column in enumerate(run):
                    self._places[number, column] = made, place
            for done in ends[number]:
                for memory in held.pop(done, ()):
                    free.setdefault((memory.dtype, memory.numel()), []).append(memory)

    def _ends(self) -> list[list[int]]:
        """By node, those whose memory nobody reads after it."""
        owner: list[int] = []
        last: dict[int, int] = {}
        for number, node in enumerate(self._nodes):
            read = [value for is_node, value in node.arguments if is_node]
            owner.append(owner[read[0]] if node.view and read else number)
            last.update((owner[value], number) for value in (*read, number))
        last.update((owner[number], len(self._nodes)) for number in self._outputs)
        found: list[list[int]] = [[] for _ in range(len(self._nodes) + 1)]
        for number, end in last.items():
            found[end].append(number)
        return found

    def runs(self, nodes: Sequence[int], columns: Sequence[int]) -> Iterator[list[int]]:
        """Cut columns into such as lie beside each other in what these nodes made."""
        run: list[int] = []
        for column in columns:
            if run and any(not self._follows(node, run[-1], column) for node in nodes):
                yield run
                run = []
            run.append(column)
        yield run

    def _follows(self, node: int, column: int, following: int) -> bool:
        (made, place), (other, later) = self._places[node, column], self._places[node, following]
        return made is other and later == place + 1

    def rows(self, node: int, run: Sequence[int]) -> Tensor:
        """What a node made of columns that lie beside each other."""
        made, place = self._places[node, run[0]]
        return made[place * self._rows : (place + len(run)) * self._rows]

    @torch.inference_mode()
    def play(self) -> None:
        """Compute everything from what now lies where the logits and what is carried were."""
        for function, arguments, out in self._steps:
            function(*arguments, out=out)


def _into(function: Callable[..., Any], arguments: Sequence[Any], out: Tensor) -> Callable[..., Any]:
    """The operation with an argument `out`, whether or not torch offers it so."""
    try:
        function(*arguments, out=out)
        return function
    except (TypeError, RuntimeError):
        copied = partial(_copied, function)
        copied(*arguments, out=out)
        return copied


def _copied(function: Callable[..., Any], *arguments: Any, out: Tensor) -> None:
    out.copy_(function(*arguments))
