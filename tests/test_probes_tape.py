"""Tapes of losses: what is played is what the function computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import limbeck as lb
from limbeck.probes.columns import Column, Orders, Prepared
from limbeck.probes.losses import ROW_BY_ROW, _Call
from limbeck.probes.optimisers import StackedOptimiser
from limbeck.probes.tape import CannotRecordError, Program, Tape
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


def drawn(call: _Call, classes: int, seed: int, scale: float = 3.0) -> tuple[Tensor, list[Tensor]]:
    """The student's logits, and the other fields."""
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "teacher_logits": scale * torch.randn(ROWS, classes, generator=generator),
        "labels": torch.randint(classes, (ROWS,), generator=generator),
    }
    fields["teacher_logits"][:4] = fields["teacher_logits"][:4].round()  # ties
    student = scale * torch.randn(classes, ROWS, generator=generator).t()
    return student, [fields[name] for name in call.others]


def computed(call: _Call, student: Tensor, *others: Tensor) -> list[Tensor]:
    """Losses and gradients as autograd has them."""
    return call.compute(student, torch.ones(len(student)), *others)


class Player:
    """A program of tapes, each on a column of its own or several on one.

    Args:
        tapes: with their columns, and fixed inputs as examples.
    """

    def __init__(self, tapes: Sequence[tuple[int, Tape, Sequence[Tensor]]], classes: int) -> None:
        self.program, self.tapes = Program(ROWS), tapes
        self.logits = torch.zeros(classes, ROWS * (1 + tapes[-1][0])).t()
        self.outputs = []
        kinds = {}
        for number, (column, tape, fixed) in enumerate(tapes):
            carried = tape.prepare(*fixed)
            data = [((value.dtype, value.shape[1:]), (number, place)) for place, value in enumerate(carried)]
            kinds |= {own: kind for kind, own in data}
            self.outputs.append(self.program.add(column, tape, data))
        self.given = {}
        for node, data in self.program.given.items():
            dtype, shape = kinds[data[0]]
            self.given[node] = torch.zeros(*shape, len(data) * ROWS, dtype=dtype).t()
        self.program.lay_out(self.logits, self.given, {})

    def __call__(self, student: Tensor, fixed: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        self.logits.copy_(student)
        carried = [tape.prepare(*own) for (_, tape, _), own in zip(self.tapes, fixed, strict=True)]
        for node, data in self.program.given.items():
            self.given[node].copy_(torch.cat([carried[number][place] for number, place in data]))
        self.program.play()
        return [
            [self.program.rows(node, [column]).clone() for node in outputs]
            for (column, *_), outputs in zip(self.tapes, self.outputs, strict=True)
        ]

    def operations(self) -> int:
        with Counting() as played:
            self.program.play()
        return played.count


@pytest.mark.parametrize("function", ON_LOGITS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(("classes", "standardise"), [(3, False), (10, False), (10, True), (40, False)])
def test_played_is_computed(function: Callable[..., Any], classes: int, standardise: bool) -> None:
    call = call_of(function, standardise=standardise)
    student, fixed = drawn(call, classes, 0)
    tape = Tape(partial(computed, call), [student], fixed)
    player = Player([(0, tape, fixed)], classes)
    for seed, scale in ((1, 3.0), (2, 0.0), (3, 300.0)):
        student, fixed = drawn(call, classes, seed, scale)
        before = [value.clone() for value in (student, *fixed)]
        expected = computed(call, student, *fixed)
        for _ in range(2):  # the second time in the same memory
            for found, other in zip(player(student, [fixed])[0], expected, strict=True):
                torch.testing.assert_close(found, other, rtol=2e-5, atol=2e-5)
        assert all(torch.equal(value, other) for value, other in zip((student, *fixed), before, strict=True))


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("name", ["kl_divergence", "decoupled", "refined_logits"])
def test_a_class_without_probability_stays_without(name: str, seen: bool) -> None:
    """Whether or not it was seen when the tape was recorded."""
    call = call_of(CATALOGUE[name].function)
    student, fixed = drawn(call, 10, 0)
    without = [value.clone() for value in fixed]
    teacher = without[call.others.index("teacher_logits")]
    teacher[:, 2] = -torch.inf
    teacher[5:9, 6] = -torch.inf
    if "labels" in call.others:
        labels = without[call.others.index("labels")]
        labels[(labels == 2) | (labels == 6)] = 0
    tape = Tape(partial(computed, call), [student], without if seen else fixed)
    player = Player([(0, tape, without)], 10)
    for found, other in zip(player(student, [without])[0], computed(call, student, *without), strict=True):
        torch.testing.assert_close(found, other, rtol=2e-5, atol=2e-5)


def test_nothing_played_is_close_to_the_end_of_float32() -> None:
    """Numbers there take torch many times as long."""
    call = call_of(CATALOGUE["kl_divergence"].function)
    student, fixed = drawn(call, 10, 0)
    for logits in (student, *fixed):
        logits[:, 0] -= 390.0  # at a temperature of 4: an exp of 4e-43
    player = Player([(0, Tape(partial(computed, call), [student], fixed), fixed)], 10)
    player(student, [fixed])
    made = [out for *_, out in player.program._steps if out.is_floating_point()]
    assert len(made) > 10
    assert not any(bool(((out != 0) & (out.abs() < 1e-30)).any()) for out in made)


def test_columns_with_the_same_operations_share_them_and_nothing_else() -> None:
    """All terms at once, twice over different teachers, one column with several: each is what it is alone."""
    calls = [call_of(function) for function in ON_LOGITS] * 2
    tapes, students, fixed = [], [], []
    for number, call in enumerate(calls):
        student, others = drawn(call, 5, number)
        tapes.append((number - number // 7, Tape(partial(computed, call), [student], others), others))
    player = Player(tapes, 5)
    columns = 1 + tapes[-1][0]
    for round_ in range(2):
        students = [drawn(calls[0], 5, 100 * round_ + column)[0] for column in range(columns)]
        fixed = [drawn(call, 5, 200 + 100 * round_ + number)[1] for number, call in enumerate(calls)]
        found = player(torch.cat(students), fixed)
        for (column, *_), call, others, own in zip(tapes, calls, fixed, found, strict=True):
            for value, other in zip(own, computed(call, students[column], *others), strict=True):
                torch.testing.assert_close(value, other, rtol=2e-5, atol=2e-5)
    assert player.operations() < 0.8 * sum(Player([(0, *tape)], 5).operations() for _, *tape in tapes)


def test_tapes_of_the_same_operations_are_one_call_each() -> None:
    """Decoupled and refined differ in what is made of the teacher alone."""
    tapes = []
    for column, name in enumerate(("decoupled", "refined_logits", "refined_logits")):
        call = call_of(CATALOGUE[name].function)
        student, fixed = drawn(call, 10, column)
        tapes.append((column, Tape(partial(computed, call), [student], fixed), fixed))
    assert Player(tapes, 10).operations() == Player(tapes[:1], 10).operations()


@pytest.mark.parametrize("name", ["kl_divergence", "decoupled", "refined_logits", "partial_label"])
def test_what_the_teacher_says_is_computed_once(name: str) -> None:
    call = call_of(CATALOGUE[name].function)
    student, fixed = drawn(call, 10, 0)
    tape = Tape(partial(computed, call), [student], fixed)
    assert all(len(value) == ROWS for value in tape.prepare(*fixed))
    with Counting() as whole:
        computed(call, student, *fixed)
    assert Player([(0, tape, fixed)], 10).operations() < 0.8 * whole.count


def overwriting(student: Tensor, teacher: Tensor) -> list[Tensor]:
    logs = torch.log_softmax(teacher, 1)
    shares = logs.exp()
    logs.sub_(student).mul_(shares)
    whole = torch.empty_like(student)
    torch.sub(shares, student, out=whole)
    first = whole[:, 0]
    return [logs.sum(1) + first, whole.clone().unsqueeze(1).squeeze(1)]


def test_what_is_overwritten_and_what_is_looked_at_are_as_they_were() -> None:
    student, teacher = torch.randn(ROWS, 3), torch.randn(ROWS, 3)
    player = Player([(0, Tape(overwriting, [student], [teacher]), [teacher])], 3)
    for seed in range(3):
        student = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(seed))
        for found, other in zip(player(student, [[teacher]])[0], overwriting(student, teacher), strict=True):
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
        lambda student, teacher: [student / len(teacher)],
        lambda student, teacher: [student * 2 if len(teacher) > 12 else student],
        lambda student, teacher: [(student - student.mean(0)) * teacher],
    ],
    ids=[
        "branch",
        "selection",
        "random",
        "overwrites its input",
        "not one row a sample",
        "counts rows",
        "branches on rows",
        "looks at other rows",
    ],
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
    streams, size = 2, 4
    teachers = [torch.randn(count, 5, generator=generator) for _ in range(1 if alike else streams)] * (
        2 if alike else 1
    )
    labels = [torch.randint(5, (count,), generator=generator) for _ in range(2)]
    orders = Orders(count, batch_bounds(count, size), streams)
    prepared = Prepared(count, orders, streams * size, limit=1 << 20)
    tape = Tape(partial(computed, call), [torch.zeros(count, 5)], [teachers[0], labels[0]])
    sources = [[(teacher, own) for teacher in teachers] for own in labels]
    found = [prepared.add(tape, columns) for columns in sources]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0] == prepared.add(tape, sources[0]), "the same data are held once"
    assert [kind for kind, _ in found[0]] == [kind for kind, _ in found[1]]
    # Two columns with labels of their own, one of them twice, and one by itself.
    wanted = (0, 1, 0)
    several = [[found[column][place][1] for column in wanted] for place in range(len(found[0]))]
    alone = [[own] for _, own in found[1]]
    held = prepared.lay_out([*several, *alone])
    order = [torch.randperm(count, generator=generator) for _ in range(streams)]
    prepared.begin_epoch(orders.flat(order), order)
    for start in range(0, count - size + 1, size):
        prepared.begin_batch(orders.part(start, start + size))
        picked = [own[start : start + size] for own in order]
        teacher = torch.cat([source[own] for source, own in zip(teachers, picked, strict=True)])
        label = [torch.cat([own_labels[own] for own in picked]) for own_labels in labels]
        for columns, values in ((wanted, held[: len(several)]), ((1,), held[len(several) :])):
            given = torch.cat([teacher] * len(columns)), torch.cat([label[column] for column in columns])
            for value, other in zip(values, tape.prepare(*given), strict=True):
                torch.testing.assert_close(value, other)
    assert Prepared(count, orders, streams * size, limit=10).add(tape, sources[0]) is None


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
