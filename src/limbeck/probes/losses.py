"""The losses of many recipes on the logits of many networks, with as few calls as there are different terms.

A term that looks at one row at a time takes the rows of any number of networks in one call, whichever recipe they
belong to. What looks at a whole batch, or remembers, is called network by network, as `limbeck.fit` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from limbeck.loop import Stage
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


@dataclass
class Fields:
    """The fields of one batch for streams × columns.

    The classes come first in memory: torch reduces over ten classes several times faster when rows, not classes, are
    contiguous.

    Args:
        student: `student_logits` and `student_features` without a graph, `[C, R, S, B]` and `[H, R, S, B]`; no features
            where these are the inputs.
        column: a field of the batch by name and column, `[S·B, ...]`.
        constant: what is the same for every sample.
        inputs: `[S, B, D]`.
    """

    student: dict[str, Tensor]
    column: Callable[[str, int], Tensor]
    constant: Mapping[str, Any]
    inputs: Tensor
    _wide: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """S and B."""
        return self.inputs.shape[0], self.inputs.shape[1]

    def rows(self, name: str, columns: Sequence[int]) -> Tensor:
        """A field for the rows of several columns, `[k·S·B, ...]`; made once a batch."""
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


class Gradients:
    """What a step differentiates: roots with their gradients, and leaves that stand for the networks' outputs."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.roots: list[Tensor] = []
        self.given: list[Tensor | None] = []
        self._leaves: list[tuple[str, Tensor, Any]] = []

    def leaf(self, name: str, columns: Tensor | slice, stream: int | None = None) -> Tensor:
        """The student's field as a leaf: `[k·S·B, ...]` of some columns, or `[B, ...]` of one network."""
        whole = self.fields.student[name]
        if stream is not None:
            part = whole[:, columns, stream]
        else:
            part = whole[:, columns] if isinstance(columns, slice) else whole.index_select(1, columns)
        leaf = part.flatten(1).T.requires_grad_()
        self._leaves.append((name, leaf, (stream, columns)))
        return leaf

    def add(self, root: Tensor, gradient: Tensor | None = None) -> None:
        """Differentiate this as well."""
        if root.requires_grad:
            self.roots.append(root)
            self.given.append(gradient)

    def run(self) -> dict[str, Tensor]:
        """The gradient of the sum of all losses by each of the student's fields, in their shapes."""
        torch.autograd.backward(self.roots, self.given)
        found: dict[str, Tensor] = {}
        for name, leaf, (stream, columns) in self._leaves:
            if leaf.grad is None:
                continue
            if name not in found:
                found[name] = torch.zeros_like(self.fields.student[name])
            whole, gradient = found[name], leaf.grad.T
            if stream is not None:
                whole[:, columns, stream] += gradient.view(len(whole), 1, -1)
            elif isinstance(columns, slice):
                whole[:, columns] += gradient.view(len(whole), -1, *whole.shape[2:])
            else:
                whole.index_add_(1, columns, gradient.reshape(len(whole), -1, *whole.shape[2:]))
        return found


@dataclass
class _Call:
    """One term evaluated for the rows of all columns that use it alike."""

    function: Callable[..., Tensor]
    needs: tuple[str, ...]
    standardise: bool
    uniform: bool
    columns: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Which term of its recipe it is, by column."""
    weighted: list[bool] = field(default_factory=list)


class StackedLosses:
    """The objectives of streams × columns.

    Args:
        stages: `[S][R]`; those of a column have the same recipe.
        objectives: their objectives, `[S][R]`.
    """

    def __init__(self, stages: Sequence[Sequence[Stage]], objectives: Sequence[Sequence[Objective]]) -> None:
        self._objectives = objectives
        self.streams, self.columns = len(stages), len(stages[0])
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
        self._index = {tuple(call.columns): _index(call.columns) for call in self._calls}
        self._random = {
            (stream, column): torch.get_rng_state() for stream in range(self.streams) for column in self._apart
        }
        self._shares: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def _find_calls(self, columns: Sequence[int]) -> list[_Call]:
        found: dict[str, _Call] = {}
        for column in columns:
            recipe = self._recipes[column]
            for place, term in enumerate(recipe.terms):
                uniform = recipe.weighting.uniform
                key = repr((id(term.function), dict(term.options), term.standardise, uniform))
                if key not in found:
                    found[key] = _Call(_bound(term), term.needs, term.standardise, uniform)
                found[key].columns.append(column)
                found[key].places.append(place)
                found[key].weighted.append(term.weighted)
        # A term may stand twice in a recipe: then its columns are not distinct, and each gets a call of its own.
        calls = []
        for call in found.values():
            if len(set(call.columns)) == len(call.columns):
                calls.append(call)
                continue
            for column, place, weighted in zip(call.columns, call.places, call.weighted, strict=True):
                calls.append(
                    _Call(call.function, call.needs, call.standardise, call.uniform, [column], [place], [weighted])
                )
        return calls

    def _weigher(self, column: int) -> _Weigher:
        modules = [cast(nn.Module, objectives[column].weighting) for objectives in self._objectives]
        return _Weigher(modules, self._recipes[column].weighting.needs)

    def parameters(self, stream: int, column: int) -> list[Tensor]:
        """What the objective of one network learns itself."""
        return [part for part in self._objectives[stream][column].parameters() if part.requires_grad]

    def begin_epoch(self, epoch: int, random: Callable[[int, int], None]) -> None:
        """Set factors and, by `random(stream, column)`, the random numbers of what is called network by network."""
        self._shares.clear()
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

    def __call__(self, fields: Fields, gradients: Gradients) -> Tensor:
        """Put the losses of a batch into `gradients`; the weighted per-sample losses `[R, S, B]` without gradient."""
        shape = fields.shape
        seen = fields.inputs.new_zeros(self.columns, *shape)
        graphs: dict[int, list[Tensor | None]] = {column: [None, None] for column in self._weighed}
        for number, call in enumerate(self._calls):
            values = self._evaluate(call, fields, gradients)
            if call.uniform:
                share, kept = self._shares_of(number, call, shape)
                gradients.add(values, share)
                part = values.detach().view(-1, *shape) * kept
                index = self._index[tuple(call.columns)]
                if isinstance(index, slice):
                    seen[index] += part
                else:
                    seen.index_add_(0, index, part)
                continue
            for own, column, place, weighted in zip(
                values.view(-1, *shape), call.columns, call.places, call.weighted, strict=True
            ):
                value, which = own * self._objectives[0][column].factors[place], 0 if weighted else 1
                before = graphs[column][which]
                graphs[column][which] = value if before is None else before + value
        for column, (losses, beside) in graphs.items():
            assert losses is not None
            seen[column] = losses.detach()
            gradients.add(self._weighed[column](losses, fields, column))
            if beside is not None:
                gradients.add(beside.mean(1).sum())
        for column in self._apart:
            for stream in range(self.streams):
                seen[column, stream] = self._alone(stream, column, fields, gradients)
        return seen

    def _evaluate(self, call: _Call, fields: Fields, gradients: Gradients) -> Tensor:
        index = self._index[tuple(call.columns)]
        arguments: dict[str, Any] = {}
        for name in call.needs:
            if name in fields.student:
                arguments[name] = gradients.leaf(name, index)
            elif name in fields.constant:
                arguments[name] = fields.constant[name]
            else:
                arguments[name] = fields.rows(name, call.columns)
        if call.standardise:
            for name in ("student_logits", "teacher_logits"):
                if name in arguments:
                    arguments[name] = standardise(arguments[name])
        return call.function(**arguments)

    def _shares_of(self, number: int, call: _Call, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What each value of a call counts in the sum of all mean losses `[k·S·B]`, and in a sample's `[k, 1, 1]`."""
        key = (number, shape[1])
        if key not in self._shares:
            factors = torch.tensor(
                [self._objectives[0][column].factors[place] for column, place in zip(call.columns, call.places)]
            )
            share = (factors / shape[1]).repeat_interleave(shape[0] * shape[1])
            kept = factors * torch.tensor(call.weighted)
            self._shares[key] = (share, kept.view(-1, 1, 1))
        return self._shares[key]

    def _alone(self, stream: int, column: int, fields: Fields, gradients: Gradients) -> Tensor:
        """The objective of one network as `limbeck.fit` calls it."""
        batch: dict[str, Any] = dict(fields.constant)
        for name in self._asked[column]:
            if name in _STUDENT:
                if name not in fields.student:
                    batch[name] = fields.inputs[stream]
                else:
                    batch[name] = gradients.leaf(name, slice(column, column + 1), stream)
            elif name not in batch:
                batch[name] = fields.of(name, stream, column)
        torch.set_rng_state(self._random[stream, column])
        loss, losses = self._objectives[stream][column].forward(batch)
        self._random[stream, column] = torch.get_rng_state()
        gradients.add(loss)
        return losses


def _index(columns: Sequence[int]) -> Tensor | slice:
    """Columns as a slice where they follow each other: then nothing is copied."""
    if list(columns) == list(range(columns[0], columns[-1] + 1)):
        return slice(columns[0], columns[-1] + 1)
    return torch.tensor(columns)


def _bound(term: Term) -> Callable[..., Tensor]:
    return partial(term.function, **term.options) if term.options else term.function


class _Weigher:
    """The weightings of one column's networks, all at once by `vmap`."""

    def __init__(self, modules: Sequence[nn.Module], needs: tuple[str, ...]) -> None:
        self._modules, self._needs = list(modules), needs
        _, self._state = stack_module_state(self._modules)

    def __call__(self, losses: Tensor, fields: Fields, column: int) -> Tensor:
        """The sum over streams of the weighted losses `[S, B]`."""
        module = self._modules[0]
        shape = fields.shape

        def one(state: dict[str, Tensor], values: Tensor, batch: dict[str, Tensor]) -> Any:
            return functional_call(module, state, (values,), batch)

        given = {name: fields.column(name, column).view(shape) for name in self._needs}
        found: Tensor = vmap(one)(self._state, losses, given).sum()
        return found

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy the state into the modules."""
        for stream, module in enumerate(self._modules):
            for name, buffer in module.named_buffers():
                buffer.copy_(self._state[name][stream])
