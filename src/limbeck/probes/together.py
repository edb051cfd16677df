"""Training the stages of many probes as one problem."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.callbacks import Record
from limbeck.errors import LimbeckError
from limbeck.evaluation import GroupCounts
from limbeck.loop import Fitted, Stage, train_stage
from limbeck.probes.arrange import MAX_BYTES, arrange, optimiser_kind, sampled_by, share_out, worthwhile
from limbeck.probes.columns import Column, Orders, Prepared
from limbeck.probes.losses import Fields, StackedLosses, Work
from limbeck.probes.network import StackedNetwork, layers_of
from limbeck.probes.optimisers import StackedOptimiser
from limbeck.probes.stages import finished
from limbeck.probes.workers import train_shares
from limbeck.recipe import Objective
from limbeck.selection import worst_group
from limbeck.training import batch_bounds, derive_seed, epoch_order
from limbeck.weighting import sampling_weights

RECORDED = 16
"""Steps from which it pays to record what they consist of."""

_JUDGED = 1 << 25
"""Bytes of validation logits at a time."""


def train_stages(stages: Sequence[Stage], *, max_bytes: int = MAX_BYTES, workers: int = 1) -> list[Fitted]:
    """Train stages: those that can share batches and products together, the others one by one by `train_stage`.

    Args:
        stages: from `steps`; their models are trained in place.
        max_bytes: see `MAX_BYTES`.
        workers: processes to train in at once, where there is enough to do.

    Returns:
        The results in the order of the stages.
    """
    workers = worthwhile(stages, workers)
    most = max_bytes // workers
    blocks, alone = arrange(stages, most)
    shares = share_out(stages, blocks, workers)

    def train(share: int) -> dict[int, Fitted]:
        found: dict[int, Fitted] = {}
        for block in shares[share]:
            fitted = _Block([[stages[place] for place in stream] for stream in block], most).train()
            found |= {place: one for stream, row in zip(block, fitted, strict=True) for place, one in zip(stream, row)}
        return found

    found = train_shares(stages, len(shares), train) if len(shares) > 1 else train(0) if shares else {}
    for place in alone:
        found[place] = train_stage(stages[place])
    return [found[place] for place in range(len(stages))]


# Training a block -----------------------------------------------------------------------------------------------------


@dataclass
class _Member:
    """What the loop keeps of one network."""

    stage: Stage
    history: list[Record]
    best_score: float = -math.inf
    best: list[Tensor] | None = None
    selected: int = 0


class _Block:
    """Stages `[S][R]` that are trained together."""

    def __init__(self, stages: Sequence[Sequence[Stage]], max_bytes: int) -> None:
        self.stages = stages
        self.streams, self.columns = len(stages), len(stages[0])
        first = stages[0][0]
        self.training, self.train_data = first.training, first.data.train
        count = len(self.train_data)
        parent_rows = self.train_data.parent_rows
        assert parent_rows is not None
        self._features = torch.from_numpy(np.require(first.data.x, requirements=["W"]))
        self._rows = torch.from_numpy(parent_rows)
        self.network = StackedNetwork([[layers_of(stage.model) or [] for stage in stream] for stream in stages])
        self.bounds = batch_bounds(count, self.training.batch_size)
        self._orders = Orders(count, self.bounds, self.streams)
        rows = self.streams * self.bounds[0][1]
        self._prepared = Prepared(count, self._orders, rows, max_bytes // 4)
        needs = frozenset(name for stage in stages[0] for name in stage.recipe.needs)
        self._widths = self.network.widths(needs)
        self.losses = StackedLosses(stages, self._objectives(), frozenset(self._widths), rows, self._prepared)
        whole = self.bounds[0][1]
        self._work = {whole: Work(self._widths, self.columns, self.streams, whole)}
        self._weights = [self._sampling(stream[0]) for stream in stages]
        self._held: dict[int, Tensor] = {}
        self._columns: dict[tuple[int, ...], Column] = {}
        self._fields: dict[tuple[str, int], Column] = {}
        wanted = {name for name in needs if name not in _SUPPLIED} | {"labels"}
        for column in range(self.columns):
            for name in sorted(wanted):
                self._field(name, column)
        if self.training.epochs * len(self.bounds) >= RECORDED:
            self.losses.record(lambda name, column: self._fields[name, column].sources, self._work[whole])
        self._optimisers = self._make_optimisers()
        self._own = [
            (stage, stage.training.make_optimiser(own))  # type: ignore[arg-type]
            for row, stream in enumerate(stages)
            for column, stage in enumerate(stream)
            if (own := self.losses.parameters(row, column))
        ]
        """What objectives learn themselves, each by an optimiser of its own."""

    def _objectives(self) -> list[list[Objective]]:
        """`[S][R]`; one a column where it has nothing of its own to learn or remember."""
        found: list[list[Objective]] = [[] for _ in self.stages]
        for column, first in enumerate(self.stages[0]):
            functions = [term.function for term in first.recipe.terms]
            functions += [] if first.recipe.weighting.uniform else [first.recipe.weighting.factory]
            shared = None if any(isinstance(function, type) for function in functions) else self._objective(first)
            for row, stream in zip(found, self.stages, strict=True):
                row.append(shared or self._objective(stream[column]))
        return found

    def _objective(self, stage: Stage) -> Objective:
        torch.default_generator.manual_seed(derive_seed(stage.seed, stage.name, "objective"))
        linear = [layer for layer in layers_of(stage.model) or [] if isinstance(layer, nn.Linear)]
        width = {"student_width": linear[-1].in_features} if "student_features" in stage.recipe.needs else {}
        return Objective(stage.recipe, {**stage.context, **width})

    def _sampling(self, stage: Stage) -> Tensor | None:
        by = sampled_by(stage)
        return None if by is None else sampling_weights(stage.recipe.sampling, by)

    def _field(self, name: str, column: int) -> None:
        sources = [self._source(name, stream[column]) for stream in self.stages]
        if any(source is None for source in sources):
            return
        # The same memory is the same tensor, so that recipes share what is gathered from it.
        shared = [self._held.setdefault(source.data_ptr(), source) for source in sources if source is not None]
        key = tuple(map(id, shared))
        if key not in self._columns:
            self._columns[key] = Column(shared, self._orders)
        self._fields[name, column] = self._columns[key]

    @staticmethod
    def _source(name: str, stage: Stage) -> Tensor | None:
        train = stage.data.train
        if name == "labels":
            return torch.from_numpy(np.ascontiguousarray(train.y))
        if name == "ids":
            return torch.from_numpy(train.ids)
        if name == "groups":
            return None if train.groups is None else torch.from_numpy(train.groups.index)
        found = stage.teacher_fields[0].get(name)
        return found if isinstance(found, Tensor) else None

    def _make_optimisers(self) -> list[StackedOptimiser]:
        """One a kind, over the columns that have it."""
        trainings = [stage.training for stage in self.stages[0]]
        kinds = [optimiser_kind(stage) for stage in self.stages[0]]
        found, start = [], 0
        for _, members in groupby(kinds):
            end = start + len(list(members))
            found.append(StackedOptimiser(self.network.parameters(), start, trainings[start:end]))
            start = end
        return found

    def train(self) -> list[list[Fitted]]:
        """The results `[S][R]`."""
        started = time.perf_counter()
        members = [[_Member(stage, []) for stage in stream] for stream in self.stages]
        for epoch in range(self.training.epochs):
            losses, orders = self._epoch(epoch)
            self._record(epoch, losses, orders, members)
        for row, stream in enumerate(members):
            for column, member in enumerate(stream):
                self.network.write(row, column, member.best)
        seconds = (time.perf_counter() - started) / (self.streams * self.columns)
        return [
            [finished(member.stage, member.history, member.selected, seconds) for member in stream]
            for stream in members
        ]

    def _epoch(self, epoch: int) -> tuple[Tensor, list[Tensor]]:
        """Train an epoch: the per-sample losses `[R, S, N]` in the orders `[N]` of the streams."""
        count = len(self.train_data)

        def random(stream: int, column: int) -> None:
            stage = self.stages[stream][column]
            torch.default_generator.manual_seed(derive_seed(stage.seed, stage.name, "epoch", epoch))

        self.losses.begin_epoch(epoch, random)
        for optimiser in self._optimisers:
            optimiser.begin_epoch(epoch)
        for stage, own in self._own:
            for group in own.param_groups:
                group["lr"] = stage.training.learning_rate * stage.training.factor(epoch)
        orders = [
            epoch_order(count, stream[0].seed, epoch, weights)
            for stream, weights in zip(self.stages, self._weights, strict=True)
        ]
        flat = self._orders.flat(orders)
        rows = self._rows.index_select(0, flat)
        self._prepared.begin_epoch(flat, orders)
        for column in self._columns.values():
            column.begin_epoch(flat, orders)
        seen = torch.empty(self.columns, self.streams, count)
        constant = {"progress": epoch / self.training.epochs, "epoch": epoch}
        gathered = self._features.new_empty(self.streams * self.bounds[0][1], self._features.shape[1])
        for start, end in self.bounds:
            part = self._orders.part(start, end)
            # The same memory in every step, which is in the cache.
            x = torch.index_select(self._features, 0, rows[part], out=gathered[: part.stop - part.start])
            x = x.view(self.streams, end - start, -1)
            seen[..., start:end] = self._step(x, part, flat[part], constant)
        self.losses.end_epoch()
        return seen, orders

    def _step(self, x: Tensor, part: slice, rows: Tensor, constant: dict[str, Any]) -> Tensor:
        """One step of all networks: their per-sample losses `[R, S, B]`."""
        batches: dict[int, Tensor] = {}
        made = {"rows": rows, "student_features": x.flatten(0, 1)}

        def column(name: str, number: int) -> Tensor:
            if name in made:
                return made[name]
            held = self._fields[name, number]
            if id(held) not in batches:
                batches[id(held)] = held.batch(part)
            return batches[id(held)]

        size = x.shape[1]
        if size not in self._work:
            self._work[size] = Work(self._widths, self.columns, self.streams, size)
        work = self._work[size]
        if size == self.bounds[0][1]:
            self._prepared.begin_batch(part)
        work.begin()
        self.network.step(x, work.student)
        for _, own in self._own:
            own.zero_grad()
        self.losses(Fields(column, constant, x), work)
        self.network.back(work.slopes)
        for optimiser in self._optimisers:
            optimiser.step()
        for _, own in self._own:
            own.step()
        return work.losses

    # After an epoch ---------------------------------------------------------------------------------------------

    def _record(
        self, epoch: int, losses: Tensor, orders: Sequence[Tensor], members: Sequence[Sequence[_Member]]
    ) -> None:
        predictions, validation_losses = self._judge()
        means = losses.mean(2)
        for row, stream in enumerate(members):
            met: dict[int, tuple[Tensor, Tensor]] = {}
            for column, member in enumerate(stream):
                stage = member.stage
                rate = stage.training.learning_rate * stage.training.factor(epoch)
                mean = float(means[column, row])
                if not math.isfinite(mean):
                    raise LimbeckError(
                        f"{stage.recipe.name}, {stage.name}: the training loss is {mean} in epoch {epoch + 1}; lower "
                        f"the learning rate ({rate:g}), or clip the gradient (clip: 1.0)"
                    )
                record: Record = {"epoch": epoch + 1, "loss": mean, "learning_rate": rate}
                record["group_losses"] = None
                if (groups := stage.data.train.groups) is not None:
                    if id(groups) not in met:
                        # A place for the unknown group first: faster than taking those samples out.
                        places = torch.from_numpy(groups.index)[orders[row]] + 1
                        met[id(groups)] = places, torch.bincount(places, minlength=len(groups.names) + 1)
                    record["group_losses"] = _group_losses(*met[id(groups)], losses[column, row])
                weights = self.losses.group_weights(row, column)
                record["group_weights"] = None if weights is None else weights.tolist()
                counts = _validated(record, stage, predictions[row][column], float(validation_losses[row, column]))
                member.history.append(record)
                self._select(epoch, member, counts, row, column)

    def _select(self, epoch: int, member: _Member, counts: GroupCounts, row: int, column: int) -> None:
        rule = member.stage.rule
        if rule.score is None:
            member.selected = epoch + 1
            return
        score = rule.score(counts)
        if score > member.best_score or member.best is None:
            member.best_score, member.selected = score, epoch + 1
            member.best = self.network.state(row, column)

    @torch.no_grad()
    def _judge(self) -> tuple[list[list[np.ndarray[Any, Any]]], Tensor]:
        """Predicted classes of the validation samples `[S][R][V]`, and the mean cross entropy `[S, R]`."""
        first = self.stages[0][0].data
        rows = first.validation.parent_rows
        assert rows is not None
        count, classes = len(rows), self.network.classes
        size = max(64, min(1024, _JUDGED // (4 * self.streams * self.columns * classes)))
        given = [[torch.from_numpy(stage.data.validation.y) for stage in stream] for stream in self.stages]
        labels = torch.stack([torch.stack(stream) for stream in given], 1)
        before_last = torch.arange(classes - 1, -1, -1, dtype=torch.float32).view(-1, 1, 1, 1)
        predicted = torch.empty(self.streams, self.columns, count, dtype=torch.int64)
        total = torch.zeros(self.streams, self.columns, dtype=torch.float64)
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            logits = self.network.logits(self._features.index_select(0, torch.from_numpy(rows[part])))
            top = logits.amax(0)
            # The first of the largest: where classes come first, argmax takes ten times as long.
            last = (logits == top).mul(before_last).amax(0)
            predicted[..., part] = (classes - 1 - last).transpose(0, 1).to(torch.int64)
            own = logits.gather(0, labels[..., part].unsqueeze(0)).squeeze(0)
            total += ((logits - top).exp_().sum(0).log_() + top - own).sum(2).T
        return [list(stream.numpy()) for stream in predicted], total / count


_SUPPLIED = ("student_logits", "student_features", "rows", "x", "progress", "epoch")
"""Fields that are made in a step, not gathered from a column."""


def _group_losses(places: Tensor, counts: Tensor, losses: Tensor) -> list[float | None]:
    """The mean loss of each group; `places` are the groups of the samples and one more, 0 where unknown."""
    sums = torch.bincount(places, weights=losses, minlength=len(counts))
    pairs = zip(sums[1:].tolist(), counts[1:].tolist(), strict=True)
    return [total / count if count else None for total, count in pairs]


def _validated(record: Record, stage: Stage, predicted: np.ndarray[Any, Any], loss: float) -> GroupCounts:
    """Add to the record what the validation samples say; the counts behind it."""
    validation = stage.data.validation
    groups = validation.groups
    counts = GroupCounts.from_predictions(
        validation.y,
        predicted,
        None if groups is None else groups.index,
        class_names=validation.classes,
        group_names=None if groups is None else groups.names,
    )
    worst = None if groups is None else worst_group(counts)
    record["validation_loss"] = loss
    record["validation_average"] = counts.average
    record["validation_worst_group"] = None if worst is None else worst.accuracy
    record["validation_worst_group_name"] = None if worst is None else worst.name
    return counts
