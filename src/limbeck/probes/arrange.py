"""Which stages of probes train together, and in which process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.loop import Stage
from limbeck.probes.losses import in_order, recipe_key, row_by_row
from limbeck.probes.network import architecture, layers_of
from limbeck.training import batch_bounds

if TYPE_CHECKING:
    from limbeck.data import Data

MAX_BYTES = 1 << 30
"""What one problem may take beside features and teacher outputs: three quarters for the state of its networks (more of
them are trained in turns), a quarter for what of their losses is computed once for all samples."""

WORTH_A_WORKER = 2000
"""Steps of a network for which a process is worth starting."""

_APART = 8
"""How many times as long a step takes of a network whose loss is called for it alone."""

Block = list[list[int]]
"""Streams × columns that train together, as places in a list of stages."""


def arrange(stages: Sequence[Stage], max_bytes: int = MAX_BYTES) -> tuple[list[Block], list[int]]:
    """Blocks of streams × columns, as places in `stages`, and the places of those that must be trained alone.

    The stages of a stream see the same batches (features, seed and sampling are the same); those of a column have the
    same recipe and the same optimiser.
    """
    streams: dict[tuple[Any, Any], list[tuple[str, int]]] = defaultdict(list)
    columns: dict[str, Stage] = {}
    rows_of: dict[int, tuple[int, ...]] = {}
    alone = []
    for place, stage in enumerate(stages):
        layers = layers_of(stage.model)
        if layers is None:
            alone.append(place)
            continue
        column = repr((_optimiser_key(stage), recipe_key(stage.recipe)))
        if id(stage.data) not in rows_of:
            rows_of[id(stage.data)] = _rows_key(stage.data)
        shared = (*_shared_key(stage), *rows_of[id(stage.data)], architecture(layers))
        columns.setdefault(column, stage)
        streams[shared, _order_key(stage)].append((column, place))
    numbers = _numbered(columns)
    blocks: dict[tuple[int, Any], list[list[int]]] = defaultdict(list)
    for (shared, _), unordered in streams.items():
        members = sorted((numbers[column], place) for column, place in unordered)
        limit = max(1, 3 * max_bytes // 4 // _bytes(stages[members[0][1]]))
        for start in range(0, len(members), limit):
            part = members[start : start + limit]
            rows = max(1, limit // len(part))
            blocks[rows, (shared, tuple(column for column, _ in part))].append([place for _, place in part])
    cut = []
    for (rows, *_), whole in blocks.items():
        cut += [whole[start : start + rows] for start in range(0, len(whole), rows)]
    return cut, alone


def worthwhile(stages: Sequence[Stage], workers: int) -> int:
    """How many of these processes are worth starting, one at least."""
    return max(1, min(workers, sum(map(_cost, stages)) // WORTH_A_WORKER))


def share_out(stages: Sequence[Stage], blocks: Sequence[Block], workers: int) -> list[list[Block]]:
    """Blocks for each of several processes, in which about as much is to be done.

    A block is cut between streams where that comes out even, which reads each batch once, and else between columns:
    those that have most in common stay together.

    Returns:
        One list a process; of fewer processes where there are too few parts.
    """
    costs = [[_cost(stages[place]) for place in block[0]] for block in blocks]
    parts: list[tuple[int, Block]] = []
    for block, own in zip(blocks, costs, strict=True):
        if len(block) % workers and len(own) >= workers:
            for start, end in _even(own, workers):
                parts.append((len(block) * sum(own[start:end]), [stream[start:end] for stream in block]))
        else:
            for start, end in _even([sum(own)] * len(block), workers):
                parts.append(((end - start) * sum(own), block[start:end]))
    shares: list[list[Block]] = [[] for _ in range(workers)]
    taken = [0] * workers
    for cost, part in sorted(parts, key=lambda part: -part[0]):
        least = taken.index(min(taken))
        taken[least] += cost
        shares[least].append(part)
    return [share for share in shares if share]


def _cost(stage: Stage) -> int:
    """About what the steps of one network cost: one each where its loss is called together with others."""
    steps = stage.training.epochs * len(batch_bounds(len(stage.data.train), stage.training.batch_size))
    return steps * (1 if row_by_row(stage.recipe) else _APART)


def _even(costs: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Cut a row into so many parts, none of them empty where it is long enough, of about the same cost."""
    sums = [0, *accumulate(costs)]
    ends = [
        min(range(len(sums)), key=lambda place: abs(sums[place] - sums[-1] * part / count)) for part in range(count)
    ]
    return [(start, end) for start, end in pairwise([*ends, len(costs)]) if start < end]


def _numbered(columns: Mapping[str, Stage]) -> dict[str, int]:
    """An order of the columns, the same in every process: by kind of optimiser, then those that share terms together.

    What follows each other is a slice: a call for some columns, or an optimiser, then copies nothing.
    """
    stages = list(columns.values())
    kinds = list(dict.fromkeys(optimiser_kind(stage) for stage in stages))
    ranks = in_order([stage.recipe for stage in stages])
    ordered = sorted(zip((kinds.index(optimiser_kind(stage)) for stage in stages), ranks, columns, strict=True))
    return {column: number for number, (*_, column) in enumerate(ordered)}


def _shared_key(stage: Stage) -> tuple[Any, ...]:
    """What all of a block share: features, and how long and in which steps."""
    data, training = stage.data, stage.training
    return (id(data.x), training.epochs, training.batch_size, data.num_classes)


def _rows_key(data: Data) -> tuple[int, ...]:
    """Which samples are trained and validated on."""
    parts = (data.train, data.validation)
    return tuple(hash(part.parent_rows.tobytes()) for part in parts if part.parent_rows is not None)


def _order_key(stage: Stage) -> tuple[Any, ...]:
    """What all of a stream share: the order of their samples."""
    by = sampled_by(stage)
    return (stage.seed, stage.recipe.sampling, None if by is None else hash(by.numpy().tobytes()))


def sampled_by(stage: Stage) -> Tensor | None:
    train = stage.data.train
    if stage.recipe.sampling == "shuffle":
        return None
    if stage.recipe.sampling == "group_balanced" and train.groups is not None:
        return torch.from_numpy(train.groups.index)
    return torch.from_numpy(np.ascontiguousarray(train.y))


def _optimiser_key(stage: Stage) -> tuple[Any, ...]:
    training = stage.training
    schedule = training.schedule if isinstance(training.schedule, str) else id(training.schedule)
    return (*optimiser_kind(stage), training.learning_rate, training.weight_decay, schedule)


def optimiser_kind(stage: Stage) -> tuple[Any, ...]:
    """What one optimiser can serve several columns for."""
    return (stage.training.optimiser, stage.training.momentum)


def _bytes(stage: Stage) -> int:
    """What one network takes while it trains: six copies of its weights, a batch's activations and what its loss makes
    of them, an epoch's losses."""
    weights = sum(part.numel() for part in stage.model.parameters())
    widths = sum(part.out_features for part in stage.model.modules() if isinstance(part, nn.Linear))
    batch = min(stage.training.batch_size, len(stage.data.train))
    return 4 * (6 * weights + 16 * batch * (widths + stage.data.num_classes) + len(stage.data.train))
