"""The losses of many recipes on the logits of many networks, with as few calls as there are different terms.

A term that looks at one row at a time takes the rows of any number of networks in one call, whichever recipe they
belong to; what such a call consists of is recorded once and played (`limbeck.probes.tape`). What looks at a whole
batch, or remembers, is called network by network, as `limbeck.fit` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from limbeck.loop import Stage
from limbeck.probes.columns import Prepared, block, classes_first
from limbeck.probes.tape import CannotRecordError, Tape
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

_AT_A_TIME = 1 << 16
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
    return repr((recipe.replace(name="").to_dict(), functions))


def in_order(recipes: Sequence[Recipe]) -> list[int]:
    """The place of each recipe in an order in which those that share a term follow each other."""
    counts = Counter(term_key(term) for recipe in recipes for term in recipe.terms)
    rank = {key: number for number, (key, _) in enumerate(counts.most_common())}
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
        tape: what it consists of, for a whole batch.
        prepared: what the tape carries of each column; None where that is made anew for each batch.
    """

    term: Term
    learned: tuple[str, ...]
    others: tuple[str, ...]
    weighed: bool
    columns: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    tape: Tape | None = None
    prepared: list[tuple[Any, ...]] | None = None

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
        tape: what it consists of, for a whole batch.
        carried: what that carries, where it is prepared.
    """

    call: _Call
    given: list[Tensor]
    slopes: list[Tensor]
    losses: Tensor
    kept: Tensor
    tape: Tape | None
    carried: list[Tensor] | None

    def __call__(self, fields: Fields) -> None:
        call = self.call
        if self.tape is not None and self.carried is not None:
            values, *slopes = self.tape.play(self.given, self.carried)
        else:
            others = [fields.rows(name, call.columns) for name in call.others]
            if self.tape is None:
                values, *slopes = call.compute(*self.given, *others)
            else:
                values, *slopes = self.tape.play(self.given, self.tape.prepare(*map(classes_first, others)))
        self.losses.addcmul_(values, self.kept)
        for whole, slope in zip(self.slopes, slopes, strict=False):
            whole += slope


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
        together = [row_by_row(recipe) for recipe in self._recipes]
        self._apart = [column for column in range(self.columns) if not together[column]]
        self._calls = self._find_calls([column for column in range(self.columns) if together[column]])
        self._weighed = {
            column: self._weigher(column)
            for column in range(self.columns)
            if together[column] and not self._recipes[column].weighting.uniform
        }
        # Read from signatures, which takes longer than a step.
        self._asked = {column: (*sorted({*self._recipes[column].needs, "labels", "rows"}),) for column in self._apart}
        self.needs = frozenset(name for recipe in self._recipes for name in recipe.needs)
        self._random = {
            (stream, column): torch.get_rng_state() for stream in range(self.streams) for column in self._apart
        }
        self._bound: dict[int, list[_Bound]] = {}

    def _find_calls(self, columns: Sequence[int]) -> list[_Call]:
        """What goes through a weighting first."""
        found: dict[str, _Call] = {}
        for column in columns:
            recipe = self._recipes[column]
            for place, term in enumerate(recipe.terms):
                weighed = term.weighted and not recipe.weighting.uniform
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

    def record(self, sources: Callable[[str, int], Sequence[Tensor]]) -> None:
        """Write down what the calls of a whole batch consist of, and prepare of all samples what can be.

        Args:
            sources: a field of the training samples by name and column, `[S]` tensors.
        """
        for call in self._calls:
            count = self._rows * len(call.columns)
            if call.learned != ("student_logits",) or not _PREPARED.issuperset(call.others):
                continue
            if count * self._classes > _AT_A_TIME:
                continue  # so much that calling the operations counts for little
            own = [list(zip(*(sources(name, column) for name in call.others), strict=True)) for column in call.columns]
            example = torch.zeros(self._classes, count).t()
            with suppress(CannotRecordError):
                fixed = block(own[0][0], 0, count, len(own[0][0][0]))
                call.tape = Tape(call.compute, [example, torch.ones(count)], fixed)
                keys = [self._prepared.add(call.tape, count, streams) for streams in own]
                call.prepared = None if None in keys else [key for key in keys if key is not None]

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
        for stream, column in self._random:
            random(stream, column)
            self._random[stream, column] = torch.get_rng_state()

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
        if size not in self._bound:
            self._bound[size] = [self._bind(call, work) for call in self._calls]
        weighed = [bound for bound in self._bound[size] if bound.call.weighed]
        for bound in weighed:
            bound(fields)
        for column, weigher in self._weighed.items():
            work.scale(column, weigher(work.losses[column], fields, column))
        for bound in self._bound[size][len(weighed) :]:
            bound(fields)
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
        whole = streams * size == self._rows
        return _Bound(
            call,
            [
                *(_rows(work.student[name], call.part) for name in call.learned),
                share.repeat_interleave(streams * size),
            ],
            [_rows(work.slopes[name], call.part) for name in call.learned],
            work.losses[call.part].flatten(),
            kept.repeat_interleave(streams * size),
            call.tape if whole else None,
            self._prepared.batch(call.prepared) if whole and call.prepared is not None else None,
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
