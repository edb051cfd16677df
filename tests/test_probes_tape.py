"""Tapes of losses: what is played is what the function computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import limbeck as lb
from limbeck.probes.columns import Column, Orders, Prepared, block
from limbeck.probes.losses import ROW_BY_ROW, _Call
from limbeck.probes.optimisers import StackedOptimiser
from limbeck.probes.tape import CannotRecordError, Tape
from limbeck.terms.catalogue import CATALOGUE
from limbeck.training import batch_bounds

ROWS = 24
ON_LOGITS = sorted(ROW_BY_ROW - {CATALOGUE["feature_mse"].function}, key=lambda function: function.__name__)


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def call_of(function: Callable[..., Any], **settings: Any) -> _Call:
    info = next(info for info in CATALOGUE.values() if info.function is function)
    term = lb.recipe.Term(function, per_sample=info.per_sample, **settings)
    others = tuple(name for name in term.needs if name != "student_logits")
    return _Call(term, ("student_logits",), others, False)


def drawn(call: _Call, classes: int, seed: int, scale: float = 3.0) -> tuple[list[Tensor], list[Tensor]]:
    """The student's logits and shares, and the other fields."""
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "teacher_logits": scale * torch.randn(ROWS, classes, generator=generator),
        "labels": torch.randint(classes, (ROWS,), generator=generator),
    }
    fields["teacher_logits"][:4] = fields["teacher_logits"][:4].round()  # ties
    student = scale * torch.randn(classes, ROWS, generator=generator).t()
    return [student, torch.rand(ROWS, generator=generator)], [fields[name] for name in call.others]


@pytest.mark.parametrize("function", ON_LOGITS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(("classes", "standardise"), [(3, False), (10, False), (10, True), (40, False)])
def test_played_is_computed(function: Callable[..., Any], classes: int, standardise: bool) -> None:
    call = call_of(function, standardise=standardise)
    varying, fixed = drawn(call, classes, 0)
    tape = Tape(call.compute, varying, fixed)
    for seed, scale in ((1, 3.0), (2, 0.0), (3, 300.0)):
        varying, fixed = drawn(call, classes, seed, scale)
        before = [value.clone() for value in (*varying, *fixed)]
        expected = call.compute(*varying, *fixed)
        prepared = tape.prepare(*fixed)
        for _ in range(2):  # the second time from the same memory
            for found, other in zip(tape.play(varying, prepared), expected, strict=True):
                torch.testing.assert_close(found, other, rtol=2e-5, atol=2e-5)
        assert all(torch.equal(value, other) for value, other in zip((*varying, *fixed), before, strict=True))


@pytest.mark.parametrize("name", ["kl_divergence", "decoupled", "refined_logits", "partial_label"])
def test_what_the_teacher_says_is_computed_once(name: str) -> None:
    call = call_of(CATALOGUE[name].function)
    varying, fixed = drawn(call, 10, 0)
    tape = Tape(call.compute, varying, fixed)
    prepared = tape.prepare(*fixed)
    assert all(len(value) == ROWS for value in prepared)
    with Counting() as whole:
        call.compute(*varying, *fixed)
    with Counting() as played:
        tape.play(varying, prepared)
    assert played.count < 0.9 * whole.count


def overwriting(student: Tensor, teacher: Tensor) -> list[Tensor]:
    logs = torch.log_softmax(teacher, 1)
    shares = logs.exp()
    logs.sub_(student).mul_(shares)
    return [logs.sum(1), shares - student]


def test_overwriting_what_is_prepared_leaves_it_as_it_is() -> None:
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    tape = Tape(overwriting, [student], [teacher])
    prepared = tape.prepare(teacher)
    for seed in range(3):
        student = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
        for found, other in zip(tape.play([student], prepared), overwriting(student, teacher), strict=True):
            torch.testing.assert_close(found, other)


def test_an_overwritten_view_of_what_is_still_read_is_refused() -> None:
    def through_a_view(student: Tensor, teacher: Tensor) -> list[Tensor]:
        whole = student * 2
        first = whole[:, 0]
        whole.add_(teacher)
        return [first + 1]

    with pytest.raises(CannotRecordError, match="view"):
        Tape(through_a_view, [torch.randn(6, 3)], [torch.randn(6, 3)])


@pytest.mark.parametrize(
    "function",
    [
        lambda student, teacher: [student * 2 if float(teacher.sum()) > 0 else student],
        lambda student, teacher: [student[teacher > 0]],
        lambda student, teacher: [student + torch.rand_like(teacher)],
        lambda student, teacher: [student.add_(teacher)],
        lambda student, teacher: [student + teacher.mean()],
    ],
    ids=["branch", "selection", "random", "overwrites its input", "not one row a sample"],
)
def test_what_depends_on_values_is_refused(function: Callable[..., Sequence[Tensor]]) -> None:
    with pytest.raises(CannotRecordError):
        Tape(function, [torch.randn(6, 3)], [torch.randn(6, 3)])


# Columns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("count", [23, 48, 7])
def test_prepared_of_all_samples_is_prepared_of_a_batch(alike: bool, count: int) -> None:
    """Streams with one teacher or one each; one column and three; blocks that do not divide the samples."""
    generator = torch.Generator().manual_seed(1)
    call = call_of(CATALOGUE["refined_logits"].function)
    streams, size, columns = 2, 4, 3
    teachers = [torch.randn(count, 5, generator=generator) for _ in range(1 if alike else streams)] * (
        2 if alike else 1
    )
    labels = torch.randint(5, (count,), generator=generator)
    orders = Orders(count, batch_bounds(count, size), streams)
    rows = streams * size
    prepared = Prepared(count, orders, rows, limit=1 << 20)
    tapes, keys = {}, {}
    for several in (1, columns):
        n = several * rows
        sources = [(teacher, labels) for teacher in teachers]
        tapes[several] = Tape(call.compute, [torch.zeros(5, n).t(), torch.ones(n)], block(sources[0], 0, n, count))
        keys[several] = prepared.add(tapes[several], n, sources)
        assert keys[several] == prepared.add(tapes[several], n, sources)
    prepared.close()
    order = [torch.randperm(count, generator=generator) for _ in range(streams)]
    prepared.begin_epoch(orders.flat(order), order)
    for start in range(0, count - size + 1, size):
        prepared.begin_batch(orders.part(start, start + size))
        for several, key in keys.items():
            assert key is not None
            found = prepared.batch([key] * several)
            picked = [own[start : start + size] for own in order]
            teacher = torch.cat([source[own] for source, own in zip(teachers, picked, strict=True)] * several)
            label = torch.cat([labels[own] for own in picked] * several)
            for value, other in zip(found, tapes[several].prepare(teacher, label), strict=True):
                torch.testing.assert_close(value, other)
    assert Prepared(count, orders, rows, limit=10).add(tapes[1], rows, sources) is None


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_a_column_follows_the_orders_of_its_streams(limit: int) -> None:
    sources = [torch.arange(10), 100 + torch.arange(10)]
    orders = Orders(10, batch_bounds(10, 4), 2)
    own = [torch.randperm(10, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    column = Column(sources, orders, limit)
    column.begin_epoch(orders.flat(own), own)
    for start, end in batch_bounds(10, 4):
        expected = torch.cat([source[rows[start:end]] for source, rows in zip(sources, own, strict=True)])
        assert torch.equal(column.batch(orders.part(start, end)), expected)


# Optimisers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_columns_with_their_own_rates_are_single_optimisers(optimiser: str, axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    trainings = [
        lb.Training(optimiser=optimiser, learning_rate=rate, weight_decay=decay, schedule=schedule, epochs=3)
        for rate, decay, schedule in ((0.1, 0.0, "cosine"), (0.01, 0.2, "constant"), (0.3, 0.05, "exponential"))
    ]
    whole = torch.randn(5, 5, 5, generator=generator).requires_grad_()
    alone = [nn.Parameter(whole.detach().select(axis, 1 + place).clone()) for place in range(3)]
    stacked = StackedOptimiser([(whole, axis)], 1, trainings)
    single = [how.make_optimiser([part]) for how, part in zip(trainings, alone, strict=True)]
    before = whole.detach().clone()
    for epoch in range(3):
        stacked.begin_epoch(epoch)
        for how, own in zip(trainings, single, strict=True):
            own.param_groups[0]["lr"] = how.learning_rate * how.factor(epoch)
        for _ in range(4):
            whole.grad = torch.randn(5, 5, 5, generator=generator)
            stacked.step()
            for place, (part, own) in enumerate(zip(alone, single, strict=True)):
                part.grad = whole.grad.select(axis, 1 + place).clone()
                own.step()
    for place, part in enumerate(alone):
        torch.testing.assert_close(whole.detach().select(axis, 1 + place), part.detach(), rtol=1e-5, atol=1e-6)
    for place in (0, 4):
        assert torch.equal(whole.detach().select(axis, place), before.select(axis, place))
