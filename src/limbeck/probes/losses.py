"""The losses of many recipes on the logits of many networks, with as few calls as there are different operations.

A term that looks at one row at a time takes the rows of any number of networks in one call, whichever recipe they
belong to; what such terms consist of is recorded once and played together (`limbeck.probes.tape`). What looks at a
whole batch, or remembers, is called network by network, as `limbeck.fit` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from limbeck.loop import Stage
from limbeck.probes.columns import Prepared
from limbeck.probes.tape import LOGITS, CannotRecordError, Program, Tape
from limbeck.recipe import Objective, Recipe, Term
from limbeck.terms.basic import cross_entropy, kl_divergence, label_smoothing, standardise, tf_kd
from limbeck.terms.features import feature_mse
from limbeck.terms.logits import nkd, ttm, wttm
from limbeck.terms.noise import gce
from limbeck.terms.partial import partial_label
from limbeck.terms.rectified import la, lr, rc
from limbeck.terms.refined import decoupled, masked_correlation, nckd, refined_logits, sample_confidence, tckd
from limbeck.weighting import ClassBalanced, GroupBalanced, GroupDRO, Upweight

ROW_BY_ROW: frozenset[Callable[..., Any]] = frozenset(
    {
        cross_entropy,
        decoupled,
        feature_mse,
        gce,
        kl_divergence,
        la,
        label_smoothing,
        lr,
        masked_correlation,
        nckd,
        nkd,
        partial_label,
        rc,
        refined_logits,
        sample_confidence,
        tckd,
        tf_kd,
        ttm,
        wttm,
    }
)
"""Terms without a state whose loss of a sample depends on that sample alone."""

MAPPED = (ClassBalanced, GroupBalanced, GroupDRO, Upweight)
"""Weightings that `torch.func.vmap` evaluates for all networks at once."""

_STUDENT = ("student_logits", "student_features")
_PREPARED = frozenset({"labels", "teacher_logits"})
"""Fields of which a tape may make something once for all samples."""

_AT_A_TIME = 1 << 17
"""Logits of one call: what it makes on the way should stay in a core's cache."""


def row_by_row(recipe: Recipe) -> bool:
    """Whether its terms can be evaluated on the rows of several networks together."""
    plain = all(
        term.per_sample and term.function in ROW_BY_ROW and term.options.get("loss") != "released"
        for term in recipe.terms
    )
    weighed = recipe.weighting.uniform or recipe.weighting.factory in MAPPED
    return plain and weighed and any(term.weighted for term in recipe.terms)


def recipe_key(recipe: Recipe) -> str:
    """What two recipes must share for their networks to be in one column."""
    functions = [id(term.function) for term in recipe.terms] + [id(recipe.weighting.factory)]
    return repr(({**recipe.to_dict(), "name": ""}, functions))


def in_order(recipes: Sequence[Recipe]) -> list[int]:
    """The place of each recipe in an order in which those that share a term follow each other."""
    counts = Counter(term_key(term) for recipe in recipes for term in recipe.terms)
    # Then by the file they are in: terms of a family have most of their operations in common.
    family = {term_key(term): term.function.__module__ for recipe in recipes for term in recipe.terms}
    first = {key: number for number, key in enumerate(counts)}
    ordered = sorted(counts, key=lambda key: (-counts[key], family[key], first[key]))
    rank = {key: number for number, key in enumerate(ordered)}
    ranks = [sorted(rank[term_key(term)] for term in recipe.terms) for recipe in recipes]
    places = sorted(range(len(recipes)), key=lambda number: (ranks[number], number))
    return sorted(range(len(recipes)), key=places.__getitem__)


class Work:
    """What a step computes of streams × columns, in the same memory in every step.

    The classes come first: torch reduces over ten classes several times faster when rows, not classes, are contiguous.

    Args:
        widths: of the student's fields that have a gradient, by name.
        columns: R.
        streams: S.
        size: B.

    Attributes:
        student: `student_logits` `[C, R, S, B]` and `student_features` `[H, R, S, B]`, without a graph; no features
            where these are the inputs.
        slopes: the gradient of the sum of all losses by each of them.
        losses: the weighted per-sample losses `[R, S, B]`.
    """

    def __init__(self, widths: Mapping[str, int], columns: int, streams: int, size: int) -> None:
        self.student = {name: torch.empty(width, columns, streams, size) for name, width in widths.items()}
        self.slopes = {name: torch.empty_like(value) for name, value in self.student.items()}
        self.losses = torch.empty(columns, streams, size)

    def begin(self) -> None:
        """Nothing has been added yet."""
        for value in (*self.slopes.values(), self.losses):
            value.zero_()

    def scale(self, column: int, weights: Tensor) -> None:
        """Multiply the gradients of a column, one weight a sample `[S, B]`."""
        for slope in self.slopes.values():
            slope[:, column] *= weights


def _rows(values: Tensor, columns: slice) -> Tensor:
    """The rows `[k·S·B, C]` of columns that follow each other, as they lie in `[C, R, S, B]`."""
    return values[:, columns].flatten(1).t()


@dataclass
class Fields:
    """The fields of one batch for streams × columns, beside what the students compute.

    Args:
        column: a field of the batch by name and column, `[S·B, ...]`.
        constant: what is the same for every sample.
        inputs: `[S, B, D]`.
    """

    column: Callable[[str, int], Tensor]
    constant: Mapping[str, Any]
    inputs: Tensor
    _wide: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """S and B."""
        return self.inputs.shape[0], self.inputs.shape[1]

    def rows(self, name: str, columns: Sequence[int]) -> Any:
        """A field for the rows of several columns, `[k·S·B, ...]`; made once a batch."""
        if name in self.constant:
            return self.constant[name]
        parts = [self.column(name, column) for column in columns]
        if len(parts) == 1:
            return parts[0]
        key = tuple(map(id, parts))
        if key not in self._wide:
            same = all(part is parts[0] for part in parts)
            wide = parts[0].expand(len(parts), *parts[0].shape) if same else torch.stack(parts)
            self._wide[key] = wide.flatten(0, 1)
        return self._wide[key]

    def of(self, name: str, stream: int, column: int) -> Tensor:
        """A field of one network, `[B, ...]`."""
        if name == "x":
            return self.inputs[stream]
        value = self.column(name, column)
        return value.view(*self.shape, *value.shape[1:])[stream]


@dataclass
class _Call:
    """One term evaluated for the rows of columns that use it alike and follow each other.

    Attributes:
        learned: the fields that it reads and that have a gradient.
        others: the other fields that it reads.
        weighed: whether its values go through a weighting.
        columns: which; then, in their order:
        places: which term of its recipe it is;
        kept: whether it is part of a sample's loss.
    """

    term: Term
    learned: tuple[str, ...]
    others: tuple[str, ...]
    weighed: bool
    columns: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        term = self.term
        self._function = partial(term.function, **term.options) if term.options else term.function

    @property
    def part(self) -> slice:
        """Its columns."""
        return slice(self.columns[0], self.columns[-1] + 1)

    def compute(self, *given: Any) -> list[Tensor]:
        """The losses `[n]`, and the gradients of their sum by each of the student's fields.

        Args:
            given: the student's fields, what each loss counts in the sum `[n]`, and the other fields.
        """
        count = len(self.learned)
        leaves = [value.detach().requires_grad_() for value in given[:count]]
        arguments = dict(zip((*self.learned, *self.others), (*leaves, *given[count + 1 :]), strict=True))
        with torch.enable_grad():
            if self.term.standardise:
                for name in ("student_logits", "teacher_logits"):
                    if name in arguments:
                        arguments[name] = standardise(arguments[name])
            values = self._function(**arguments)
        if not values.requires_grad:
            return [values]
        slopes = torch.autograd.grad(values, leaves, given[count], materialize_grads=True)
        return [values.detach(), *slopes]

    def cut(self, most: int) -> list[_Call]:
        """The same in calls of columns that follow each other, so many at most."""
        cuts = [
            place
            for place in range(1, len(self.columns))
            if place % most == 0 or self.columns[place] != self.columns[place - 1] + 1
        ]
        return [
            replace(self, columns=self.columns[start:end], places=self.places[start:end], kept=self.kept[start:end])
            for start, end in pairwise([0, *cuts, len(self.columns)])
        ]


@dataclass
class _Bound:
    """A call with the memory that it reads and writes in a step.

    Attributes:
        given: the student's fields, and what each loss counts in the sum of all mean losses `[n]`.
        slopes: where the gradients by these fields are added up.
        losses: where the losses of the samples are added up `[n]`, each times `kept`.
    """

    call: _Call
    given: list[Tensor]
    slopes: list[Tensor]
    losses: Tensor
    kept: Tensor

    def __call__(self, fields: Fields) -> None:
        others = [fields.rows(name, self.call.columns) for name in self.call.others]
        values, *slopes = self.call.compute(*self.given, *others)
        self.losses.addcmul_(values, self.kept)
        for whole, slope in zip(self.slopes, slopes, strict=False):
            whole += slope


@dataclass
class _Played:
    """Losses of a program with where they are added up.

    Attributes:
        terms: which, as columns and places in their recipes.
        weighed: whether they go through a weighting.
        values, slopes: the losses `[n]`, and their gradients by the logits `[n, C]`; None where they have none.
        losses, whole: where they are added up, times
        kept, share: what each counts.
    """

    terms: list[tuple[int, int]]
    weighed: bool
    values: Tensor
    slopes: Tensor | None
    losses: Tensor
    whole: Tensor
    kept: Tensor = field(default_factory=lambda: torch.empty(0))
    share: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self) -> None:
        self.losses.addcmul_(self.values, self.kept)
        if self.slopes is not None:
            self.whole.addcmul_(self.slopes, self.share)


class StackedLosses:
    """The objectives of streams × columns.

    Args:
        stages: `[S][R]`; those of a column have the same recipe.
        objectives: their objectives, `[S][R]`.
        learned: the student's fields that have a gradient.
        rows: S·B of a whole batch.
        prepared: where what tapes carry is held.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[Stage]],
        objectives: Sequence[Sequence[Objective]],
        learned: frozenset[str],
        rows: int,
        prepared: Prepared,
    ) -> None:
        self._objectives, self._learned, self._rows, self._prepared = objectives, learned, rows, prepared
        self.streams, self.columns = len(stages), len(stages[0])
        self._classes = stages[0][0].data.num_classes
        self._recipes = [stage.recipe for stage in stages[0]]
        self._together = [column for column, recipe in enumerate(self._recipes) if row_by_row(recipe)]
        self._apart = [column for column in range(self.columns) if column not in self._together]
        self._calls = self._rest = self._find_calls()
        self._programs: list[Program] = []
        self._played: list[_Played] = []
        self._weighed = {
            column: self._weigher(column) for column in self._together if not self._recipes[column].weighting.uniform
        }
        # Read from signatures, which takes longer than a step.
        self._asked = {column: (*sorted({*self._recipes[column].needs, "labels", "rows"}),) for column in self._apart}
        self.needs = frozenset(name for recipe in self._recipes for name in recipe.needs)
        self._random = {
            (stream, column): torch.get_rng_state() for stream in range(self.streams) for column in self._apart
        }
        self._bound: dict[int, list[_Bound]] = {}

    def _find_calls(self, but: Container[tuple[int, int]] = ()) -> list[_Call]:
        """What goes through a weighting first; `but` are terms to leave out, as columns and places."""
        found: dict[str, _Call] = {}
        for column in self._together:
            recipe = self._recipes[column]
            for place, term in enumerate(recipe.terms):
                if (column, place) in but:
                    continue
                weighed = self._is_weighed(column, term)
                key = repr((term_key(term), weighed))
                if key not in found:
                    needs = term.needs
                    learned = tuple(name for name in needs if name in self._learned)
                    others = tuple(name for name in needs if name not in self._learned)
                    found[key] = _Call(term, learned, others, weighed)
                found[key].columns.append(column)
                found[key].places.append(place)
                found[key].kept.append(term.weighted)
        most = max(1, _AT_A_TIME // (self._rows * self._classes))
        # A term may stand twice in a recipe: such a column does not follow itself, and gets two calls.
        calls = [part for call in found.values() for part in call.cut(most)]
        return sorted(calls, key=lambda call: not call.weighed)

    def _weigher(self, column: int) -> _Weigher:
        modules = [cast(nn.Module, objectives[column].weighting) for objectives in self._objectives]
        return _Weigher(modules, self._recipes[column].weighting.needs)

    def _is_weighed(self, column: int, term: Term) -> bool:
        return term.weighted and not self._recipes[column].weighting.uniform

    def record(self, sources: Callable[[str, int], Sequence[Tensor]], work: Work) -> None:
        """Write down what the losses of a whole batch consist of, and prepare of all samples what can be.

        Args:
            sources: a field of the training samples by name and column, `[S]` tensors.
            work: of a whole batch.
        """
        tapes: dict[str, Tape | None] = {}
        programs: dict[int, Program] = {}
        made: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        most = _AT_A_TIME // (self._rows * self._classes)
        if not most:
            return  # so much that calling the operations counts for little
        for column in self._together:
            for place, term in enumerate(self._recipes[column].terms):
                others = tuple(name for name in term.needs if name != "student_logits")
                if len(others) == len(term.needs) or not _PREPARED.issuperset(others):
                    continue
                fields = [sources(name, column) for name in others]
                key = term_key(term)
                if key not in tapes:
                    tapes[key] = self._tape(term, others, [field[0] for field in fields])
                tape = tapes[key]
                data = None if tape is None else self._prepared.add(tape, list(zip(*fields, strict=True)))
                if tape is None or data is None:
                    continue
                number = column // most
                outputs = programs.setdefault(number, Program(self._rows)).add(column, tape, data)
                weighed = self._is_weighed(column, term)
                made.setdefault((number, *outputs, weighed), []).append((column, place))
        self._programs = list(programs.values())
        if not self._programs:
            return
        given = iter(self._prepared.lay_out([data for program in self._programs for data in program.given.values()]))
        logits = _rows(work.student["student_logits"], slice(None))
        free: dict[Any, list[Tensor]] = {}
        for program in self._programs:
            program.lay_out(logits, {node: next(given) for node in program.given}, free)
        for (number, *outputs, weighed), terms in made.items():
            program = programs[number]
            for run in program.runs([LOGITS, *outputs], sorted({column for column, _ in terms})):
                values, *slopes = (program.rows(node, run) for node in outputs)
                part = slice(run[0], run[-1] + 1)
                self._played.append(
                    _Played(
                        [(column, place) for column, place in terms if column in run],
                        weighed,
                        values,
                        slopes[0] if slopes else None,
                        work.losses[part].flatten(),
                        _rows(work.slopes["student_logits"], part),
                    )
                )
        self._rest = self._find_calls({term for terms in made.values() for term in terms})

    def _tape(self, term: Term, others: tuple[str, ...], fields: Sequence[Tensor]) -> Tape | None:
        call = _Call(term, ("student_logits",), others, False)

        def compute(logits: Tensor, *given: Tensor) -> list[Tensor]:
            return call.compute(logits, torch.ones(len(logits)), *given)

        with suppress(CannotRecordError):
            return Tape(compute, [torch.linspace(-2.0, 2.0, 20 * self._classes).view(20, -1)], fields)
        return None

    def parameters(self, stream: int, column: int) -> list[Tensor]:
        """What the objective of one network learns itself."""
        return [part for part in self._objectives[stream][column].parameters() if part.requires_grad]

    def begin_epoch(self, epoch: int, random: Callable[[int, int], None]) -> None:
        """Set factors and, by `random(stream, column)`, the random numbers of what is called network by network."""
        self._bound.clear()
        for stream in range(self.streams):
            for column in range(self.columns):
                self._objectives[stream][column].begin_epoch(epoch)
                self._objectives[stream][column].train()
        for played in self._played:
            self._set_factors(played)
        for stream, column in self._random:
            random(stream, column)
            self._random[stream, column] = torch.get_rng_state()

    def _set_factors(self, played: _Played) -> None:
        """What goes through a weighting is divided by the number of samples there."""
        columns = sorted({column for column, _ in played.terms})
        kept, share = torch.zeros(len(columns)), torch.zeros(len(columns))
        for column, place in played.terms:
            factor = self._objectives[0][column].factors[place]
            kept[column - columns[0]] += factor * self._recipes[column].terms[place].weighted
            share[column - columns[0]] += factor if played.weighed else factor * self.streams / self._rows
        played.kept = kept.repeat_interleave(self._rows)
        played.share = share.repeat_interleave(self._rows).unsqueeze(1)

    def end_epoch(self) -> None:
        """Give the weightings' state back to their modules, for the record."""
        for weigher in self._weighed.values():
            weigher.give_back()

    def group_weights(self, stream: int, column: int) -> Tensor | None:
        """The group weights of one network, where its weighting has any."""
        return self._objectives[stream][column].group_weights

    def __call__(self, fields: Fields, work: Work) -> None:
        """Add losses and gradients of a batch to `work`."""
        size = fields.shape[1]
        whole = size * self.streams == self._rows
        if size not in self._bound:
            self._bound[size] = [self._bind(call, work) for call in (self._rest if whole else self._calls)]
        for program in self._programs if whole else ():
            program.play()
        played = self._played if whole else []
        bound = self._bound[size]
        for one in played:
            if one.weighed:
                one()
        for call in bound:
            if call.call.weighed:
                call(fields)
        for column, weigher in self._weighed.items():
            work.scale(column, weigher(work.losses[column], fields, column))
        for one in played:
            if not one.weighed:
                one()
        for call in bound:
            if not call.call.weighed:
                call(fields)
        for column in self._apart:
            for stream in range(self.streams):
                work.losses[column, stream] = self._alone(stream, column, fields, work)

    def _bind(self, call: _Call, work: Work) -> _Bound:
        """What goes through a weighting is divided by the number of samples there."""
        factors = torch.tensor(
            [self._objectives[0][column].factors[place] for column, place in zip(call.columns, call.places)]
        )
        streams, size = work.losses.shape[1:]
        share = factors if call.weighed else factors / size
        kept = factors * torch.tensor(call.kept)
        return _Bound(
            call,
            [
                *(_rows(work.student[name], call.part) for name in call.learned),
                share.repeat_interleave(streams * size),
            ],
            [_rows(work.slopes[name], call.part) for name in call.learned],
            work.losses[call.part].flatten(),
            kept.repeat_interleave(streams * size),
        )

    def _alone(self, stream: int, column: int, fields: Fields, work: Work) -> Tensor:
        """The objective of one network as `limbeck.fit` calls it."""
        batch: dict[str, Any] = dict(fields.constant)
        leaves: dict[str, Tensor] = {}
        for name in self._asked[column]:
            if name in work.student:
                batch[name] = leaves[name] = work.student[name][:, column, stream].t().detach().requires_grad_()
            elif name in _STUDENT:
                batch[name] = fields.inputs[stream]
            elif name not in batch:
                batch[name] = fields.of(name, stream, column)
        torch.set_rng_state(self._random[stream, column])
        with torch.enable_grad():
            loss, losses = self._objectives[stream][column].forward(batch)
        self._random[stream, column] = torch.get_rng_state()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                work.slopes[name][:, column, stream] += leaf.grad.t()
        return losses


def term_key(term: Term) -> str:
    """What two terms must share to be one call."""
    return repr((id(term.function), dict(term.options), term.standardise))


class _Weigher:
    """The weightings of one column's networks, all at once by `vmap`."""

    def __init__(self, modules: Sequence[nn.Module], needs: tuple[str, ...]) -> None:
        self._modules, self._needs = list(modules), needs
        _, self._state = stack_module_state(self._modules)

    def __call__(self, losses: Tensor, fields: Fields, column: int) -> Tensor:
        """The gradient of the sum over streams of the weighted losses by the losses, `[S, B]`."""
        module = self._modules[0]
        shape = fields.shape

        def one(state: dict[str, Tensor], values: Tensor, batch: dict[str, Tensor]) -> Any:
            return functional_call(module, state, (values,), batch)

        given = {name: fields.column(name, column).view(shape) for name in self._needs}
        leaf = losses.detach().requires_grad_()
        with torch.enable_grad():
            total = vmap(one)(self._state, leaf, given).sum()
        (weights,) = torch.autograd.grad(total, leaf)
        return weights

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy the state into the modules."""
        for stream, module in enumerate(self._modules):
            for name, buffer in module.named_buffers():
                buffer.copy_(self._state[name][stream])
