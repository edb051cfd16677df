"""Training the stages of many probes as one problem."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.callbacks import Record
from limbeck.engine import FLOAT32
from limbeck.errors import LimbeckError
from limbeck.evaluation import GroupCounts
from limbeck.loop import Fitted, Stage, train_stage
from limbeck.probes.losses import Fields, Gradients, StackedLosses, recipe_key
from limbeck.probes.network import StackedNetwork, architecture, layers_of
from limbeck.recipe import Objective
from limbeck.selection import worst_group
from limbeck.training import batch_bounds, derive_seed, epoch_order
from limbeck.weighting import sampling_weights

MAX_BYTES = 1 << 30
"""What the state of one problem may take beside features and teacher outputs; more networks are trained in turns."""

IN_ORDER = 1 << 26
"""Bytes up to which a column is put in the order of an epoch at once; a larger one is gathered batch by batch."""

_JUDGED = 1 << 25
"""Bytes of validation logits at a time."""


def train_stages(stages: Sequence[Stage], *, max_bytes: int = MAX_BYTES) -> list[Fitted]:
    """Train stages: those that can share batches and products together, the others one by one by `train_stage`.

    Args:
        stages: from `steps`; their models are trained in place.
        max_bytes: see `MAX_BYTES`.

    Returns:
        The results in the order of the stages.
    """
    found: dict[int, Fitted] = {}
    blocks, alone = arrange(stages, max_bytes)
    for block in blocks:
        fitted = _Block([[stages[place] for place in stream] for stream in block]).train()
        found.update((place, one) for stream, row in zip(block, fitted, strict=True) for place, one in zip(stream, row))
    for place in alone:
        found[place] = train_stage(stages[place])
    return [found[place] for place in range(len(stages))]


# Who trains together --------------------------------------------------------------------------------------------------


def arrange(stages: Sequence[Stage], max_bytes: int = MAX_BYTES) -> tuple[list[list[list[int]]], list[int]]:
    """Blocks of streams × columns, as places in `stages`, and the places of those that must be trained alone.

    The stages of a stream see the same batches (features, seed and sampling are the same); those of a column have the
    same recipe and the same optimiser.
    """
    streams: dict[tuple[Any, Any], list[tuple[int, int]]] = defaultdict(list)
    # Numbered as they are met, so that the order of columns is that of the stages in every process.
    numbers: dict[str, int] = {}
    alone = []
    for place, stage in enumerate(stages):
        layers = layers_of(stage.model)
        if layers is None:
            alone.append(place)
            continue
        column = repr((_optimiser_key(stage), recipe_key(stage.recipe)))
        shared = (*_shared_key(stage), architecture(layers))
        streams[shared, _order_key(stage)].append((numbers.setdefault(column, len(numbers)), place))
    blocks: dict[tuple[int, Any], list[list[int]]] = defaultdict(list)
    for (shared, _), members in streams.items():
        members.sort()
        limit = max(1, max_bytes // _bytes(stages[members[0][1]]))
        for start in range(0, len(members), limit):
            part = members[start : start + limit]
            rows = max(1, limit // len(part))
            blocks[rows, (shared, tuple(column for column, _ in part))].append([place for _, place in part])
    cut = []
    for (rows, *_), whole in blocks.items():
        cut += [whole[start : start + rows] for start in range(0, len(whole), rows)]
    return cut, alone


def _shared_key(stage: Stage) -> tuple[Any, ...]:
    """What all of a block share: features, and how long and in which steps."""
    data, training = stage.data, stage.training
    rows = [hash(part.parent_rows.tobytes()) for part in (data.train, data.validation) if part.parent_rows is not None]
    return (id(data.x), *rows, training.epochs, training.batch_size, data.num_classes)


def _order_key(stage: Stage) -> tuple[Any, ...]:
    """What all of a stream share: the order of their samples."""
    by = _sampled_by(stage)
    return (stage.seed, stage.recipe.sampling, None if by is None else hash(by.numpy().tobytes()))


def _sampled_by(stage: Stage) -> Tensor | None:
    train = stage.data.train
    if stage.recipe.sampling == "shuffle":
        return None
    if stage.recipe.sampling == "group_balanced" and train.groups is not None:
        return torch.from_numpy(train.groups.index)
    return torch.from_numpy(np.ascontiguousarray(train.y))


def _optimiser_key(stage: Stage) -> tuple[Any, ...]:
    training = stage.training
    schedule = training.schedule if isinstance(training.schedule, str) else id(training.schedule)
    return (training.optimiser, training.learning_rate, training.weight_decay, training.momentum, schedule)


def _bytes(stage: Stage) -> int:
    """What one network takes while it trains: five copies of its weights, a batch's activations, an epoch's losses."""
    weights = sum(part.numel() for part in stage.model.parameters())
    widths = sum(part.out_features for part in stage.model.modules() if isinstance(part, nn.Linear))
    batch = min(stage.training.batch_size, len(stage.data.train))
    return 4 * (5 * weights + 8 * batch * (widths + stage.data.num_classes) + len(stage.data.train))


# The order of an epoch ------------------------------------------------------------------------------------------------


class _Orders:
    """The samples of an epoch for all streams: batch by batch, and within a batch stream by stream."""

    def __init__(self, count: int, bounds: Sequence[tuple[int, int]], streams: int) -> None:
        self.bounds, self.streams = bounds, streams
        place = torch.empty(streams, count, dtype=torch.int64)
        for start, end in bounds:
            for stream in range(streams):
                first = streams * start + stream * (end - start)
                place[stream, start:end] = torch.arange(first, first + end - start)
        self.place = place

    def flat(self, orders: Sequence[Tensor]) -> Tensor:
        """`[S·N]` from the order of each stream `[N]`."""
        return torch.empty(self.place.numel(), dtype=torch.int64).index_copy_(
            0, self.place.reshape(-1), torch.stack(list(orders)).reshape(-1)
        )

    def part(self, start: int, end: int) -> slice:
        """Where a batch lies in it."""
        return slice(self.streams * start, self.streams * end)


class _Column:
    """A field of the training samples, one tensor for each stream (often the same), in the order of an epoch."""

    def __init__(self, sources: Sequence[Tensor], orders: _Orders) -> None:
        self._sources, self._orders = sources, orders
        self._one = all(source is sources[0] for source in sources)
        self._small = sum(source.nbytes for source in sources) <= IN_ORDER
        self._ordered: Tensor | None = None
        self._flat = torch.empty(0)

    def begin_epoch(self, flat: Tensor, orders: Sequence[Tensor]) -> None:
        """Take the order of an epoch."""
        self._flat = flat
        if not self._small:
            return
        if self._one:
            self._ordered = self._sources[0].index_select(0, flat)
            return
        example = self._sources[0]
        whole = example.new_empty(len(flat), *example.shape[1:])
        for stream, source in enumerate(self._sources):
            whole.index_copy_(0, self._orders.place[stream], source.index_select(0, orders[stream]))
        self._ordered = whole

    def batch(self, part: slice) -> Tensor:
        """The field of a batch, `[S·B, ...]`."""
        if self._ordered is not None:
            return self._ordered[part]
        rows = self._flat[part]
        if self._one:
            return self._sources[0].index_select(0, rows)
        parts = rows.view(len(self._sources), -1)
        return torch.cat([source.index_select(0, own) for source, own in zip(self._sources, parts, strict=True)])


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

    def __init__(self, stages: Sequence[Sequence[Stage]]) -> None:
        self.stages = stages
        self.streams, self.columns = len(stages), len(stages[0])
        first = stages[0][0]
        self.training, self.train_data = first.training, first.data.train
        count = len(self.train_data)
        rows = self.train_data.parent_rows
        assert rows is not None
        self._features = torch.from_numpy(np.require(first.data.x, requirements=["W"]))
        self._rows = torch.from_numpy(rows)
        self.network = StackedNetwork([[layers_of(stage.model) or [] for stage in stream] for stream in stages])
        self.losses = StackedLosses(stages, [[self._objective(stage) for stage in stream] for stream in stages])
        self.bounds = batch_bounds(count, self.training.batch_size)
        self._orders = _Orders(count, self.bounds, self.streams)
        self._weights = [self._sampling(stream[0]) for stream in stages]
        self._held: dict[int, Tensor] = {}
        self._columns: dict[tuple[int, ...], _Column] = {}
        self._fields: dict[tuple[str, int], _Column] = {}
        wanted = {name for name in self.losses.needs if name not in _SUPPLIED} | {"labels"}
        for column in range(self.columns):
            for name in wanted:
                self._field(name, column)
        self._optimisers = self._make_optimisers()

    def _objective(self, stage: Stage) -> Objective:
        torch.manual_seed(derive_seed(stage.seed, stage.name, "objective"))
        linear = [layer for layer in layers_of(stage.model) or [] if isinstance(layer, nn.Linear)]
        width = {"student_width": linear[-1].in_features} if "student_features" in stage.recipe.needs else {}
        return Objective(stage.recipe, {**stage.context, **width})

    def _sampling(self, stage: Stage) -> Tensor | None:
        by = _sampled_by(stage)
        return None if by is None else sampling_weights(stage.recipe.sampling, by)

    def _field(self, name: str, column: int) -> None:
        sources = [self._source(name, stream[column]) for stream in self.stages]
        if any(source is None for source in sources):
            return
        # The same memory is the same tensor, so that recipes share what is gathered from it.
        shared = [self._held.setdefault(source.data_ptr(), source) for source in sources if source is not None]
        key = tuple(map(id, shared))
        if key not in self._columns:
            self._columns[key] = _Column(shared, self._orders)
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

    def _make_optimisers(self) -> list[tuple[Stage, torch.optim.Optimizer, list[tuple[Tensor, slice | None, int]]]]:
        """One a setting, over the columns that have it; and one for what an objective learns itself."""
        found: list[tuple[Stage, torch.optim.Optimizer, list[tuple[Tensor, slice | None, int]]]] = []
        keys = [_optimiser_key(stage) for stage in self.stages[0]]
        start = 0
        while start < self.columns:
            end = start + keys[start:].count(keys[start])
            stage = self.stages[0][start]
            whole = end - start == self.columns
            parts: list[tuple[Tensor, slice | None, int]] = []
            views = []
            for tensor, axis in self.network.parameters():
                view = tensor if whole else nn.Parameter(tensor.detach().narrow(axis, start, end - start))
                views.append(view)
                parts.append((tensor, None if whole else slice(start, end), axis))
            optimiser = stage.training.make_optimiser(views)  # type: ignore[arg-type]
            for group in optimiser.param_groups:
                # One pass over memory instead of ten.
                group["fused"], group["foreach"] = whole, False
            found.append((stage, optimiser, parts))
            start = end
        for row, stream in enumerate(self.stages):
            for column, stage in enumerate(stream):
                own = self.losses.parameters(row, column)
                if own:
                    found.append((stage, stage.training.make_optimiser(own), []))  # type: ignore[arg-type]
        return found

    def train(self) -> list[list[Fitted]]:
        """The results `[S][R]`."""
        started = time.perf_counter()
        members = [[_Member(stage, []) for stage in stream] for stream in self.stages]
        for epoch in range(self.training.epochs):
            losses, orders = self._epoch(epoch)
            self._record(epoch, losses, orders, members)
        seconds = (time.perf_counter() - started) / (self.streams * self.columns)
        return [
            [self._fitted(row, column, member, seconds) for column, member in enumerate(stream)]
            for row, stream in enumerate(members)
        ]

    def _epoch(self, epoch: int) -> tuple[Tensor, list[Tensor]]:
        """Train an epoch: the per-sample losses `[R, S, N]` in the orders `[N]` of the streams."""
        count = len(self.train_data)

        def random(stream: int, column: int) -> None:
            stage = self.stages[stream][column]
            torch.manual_seed(derive_seed(stage.seed, stage.name, "epoch", epoch))

        self.losses.begin_epoch(epoch, random)
        for stage, optimiser, _ in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = stage.training.learning_rate * stage.training.factor(epoch)
        orders = [
            epoch_order(count, stream[0].seed, epoch, weights)
            for stream, weights in zip(self.stages, self._weights, strict=True)
        ]
        flat = self._orders.flat(orders)
        rows = self._rows.index_select(0, flat)
        for column in self._columns.values():
            column.begin_epoch(flat, orders)
        seen = torch.empty(self.columns, self.streams, count)
        constant = {"progress": epoch / self.training.epochs, "epoch": epoch}
        for start, end in self.bounds:
            part = self._orders.part(start, end)
            x = self._features.index_select(0, rows[part]).view(self.streams, end - start, -1)
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

        needs = self.losses.needs
        with torch.set_grad_enabled(self.network.alone is None):
            logits, features = self.network(x, "student_logits" in needs)
        outputs: dict[str, Tensor] = {}
        if logits is not None:
            outputs["student_logits"] = logits
        if "student_features" in needs and self.network.alone is None:
            outputs["student_features"] = features
        student = {name: value.detach().permute(3, 1, 0, 2).contiguous() for name, value in outputs.items()}
        fields = Fields(student, column, constant, x)
        gradients = Gradients(fields)
        seen = self.losses(fields, gradients)
        for _, optimiser, parts in self._optimisers:
            if not parts:
                optimiser.zero_grad()
        slopes = gradients.run()
        self.network.back(
            x, [outputs[name] for name in slopes], [slope.permute(2, 1, 3, 0) for slope in slopes.values()]
        )
        for _, optimiser, parts in self._optimisers:
            if parts and parts[0][1] is not None:
                for view, (tensor, own, axis) in zip(optimiser.param_groups[0]["params"], parts, strict=True):
                    assert own is not None
                    assert tensor.grad is not None
                    view.grad = tensor.grad.narrow(axis, own.start, own.stop - own.start)
            optimiser.step()
        return seen

    # After an epoch ---------------------------------------------------------------------------------------------

    def _record(
        self, epoch: int, losses: Tensor, orders: Sequence[Tensor], members: Sequence[Sequence[_Member]]
    ) -> None:
        predictions, validation_losses = self._judge()
        means = losses.mean(2)
        for row, stream in enumerate(members):
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
                record["group_losses"] = _group_losses(stage, losses[column, row], orders[row])
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
        count = len(rows)
        size = max(64, min(1024, _JUDGED // (4 * self.streams * self.columns * self.network.classes)))
        labels = torch.stack(
            [torch.stack([torch.from_numpy(stage.data.validation.y) for stage in stream]) for stream in self.stages]
        )
        predicted = torch.empty(self.streams, self.columns, count, dtype=torch.int64)
        total = torch.zeros(self.streams, self.columns, dtype=torch.float64)
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            logits, _ = self.network(self._features.index_select(0, torch.from_numpy(rows[part])))
            assert logits is not None
            predicted[..., part] = logits.argmax(-1)
            own = logits.gather(-1, labels[..., part].unsqueeze(-1)).squeeze(-1)
            total += (logits.logsumexp(-1) - own).sum(2)
        return [list(stream.numpy()) for stream in predicted], total / count

    def _fitted(self, row: int, column: int, member: _Member, seconds: float) -> Fitted:
        stage = member.stage
        self.network.write(row, column, member.best)
        stage.model.eval()
        return Fitted(
            stage.model,
            stage.recipe,
            replace(stage.training, precision=dict(FLOAT32)),
            member.history,
            member.selected,
            stage.rule.name,
            stage.seed,
            seconds,
        )


_SUPPLIED = ("student_logits", "student_features", "rows", "x", "progress", "epoch")
"""Fields that are made in a step, not gathered from a column."""


def _group_losses(stage: Stage, losses: Tensor, order: Tensor) -> list[float | None] | None:
    groups = stage.data.train.groups
    if groups is None:
        return None
    index = torch.from_numpy(groups.index)[order]
    known, names = index >= 0, len(groups.names)
    sums = torch.zeros(names).index_add_(0, index[known], losses[known])
    seen = torch.bincount(index[known], minlength=names)
    return [total / count if count else None for total, count in zip(sums.tolist(), seen.tolist(), strict=True)]


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
