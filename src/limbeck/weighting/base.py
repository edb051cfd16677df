"""What a weighting is, and the sums over groups that several of them share.

A weighting turns one loss per sample into the one scalar that is differentiated; nothing else in Limbeck reduces. It
is any callable `weighting(losses, **fields)` whose parameter names say which batch fields it needs: a function where
it has no state, a module where it has. State lives in buffers, so a state dict holds all of it; nothing in a step
reads a tensor's value on the host. In evaluation mode a weighting computes its loss and leaves its state alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.errors import RecipeError


class Weighting(Protocol):
    """A callable from per-sample losses `[B]` (and batch fields, by name) to the scalar loss."""

    def __call__(self, losses: Tensor, *args: Any, **fields: Any) -> Any: ...


def per_sample(losses: Tensor, name: str) -> Tensor:
    """The losses `[B]` in single precision or better.

    Raises:
        RecipeError: where there is not exactly one loss per sample, as from a term over batch statistics.
    """
    if losses.dim() != 1:
        raise RecipeError(
            f"the weighting {name!r} needs one loss per sample, shape [B], and got shape {list(losses.shape)}: "
            "a term over batch statistics (DIST, RKD) can only be reduced by 'uniform'"
        )
    return losses if losses.dtype == torch.float64 else losses.float()


def choose(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value`, if it is one of the allowed ones.

    Raises:
        RecipeError: naming the option and what it accepts.
    """
    if value not in allowed:
        raise RecipeError(f"{option}={value!r} is not known: one of {', '.join(map(repr, allowed))}")
    return value


def sum_across_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks; `values` themselves where training is not distributed.

    Distributed data parallel *averages* gradients over ranks, so the gradient that reaches a rank's own values is
    multiplied by the number of ranks: the average is then the gradient of the sum. No second exchange is needed in the
    backward pass.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total + dist.get_world_size() * (values - values.detach()) if values.requires_grad else total


def group_slots(losses: Tensor, index: Tensor) -> Tensor:
    """Group indices `[B]` moved up by one, with slot 0 for the unknown ones (negative).

    So no index can reach another group's slot: one that is too large is an error of torch's (out of range).

    Raises:
        RecipeError: where there is not one index per loss.
    """
    if losses.shape != index.shape:
        raise RecipeError(f"{list(losses.shape)} losses and {list(index.shape)} group (or class) indices do not match")
    return index.clamp(min=-1) + 1


@torch.no_grad()
def sum_by_group(losses: Tensor, slots: Tensor, size: int) -> Tensor:
    """Sum of the losses and number of samples of each group, float `[2, size]`, without gradient.

    Args:
        losses: `[B]`.
        slots: `[B]`, from `group_slots`.
        size: number of groups.
    """
    rows = torch.stack((losses.detach(), torch.ones_like(losses)))
    return rows.new_zeros(2, size + 1).index_add_(1, slots, rows)[:, 1:]


class GroupWeighting(nn.Module, ABC):
    """Base of the weightings whose sample weights depend on the sample's group (or class) alone.

    Args:
        size: number of groups.
    """

    spans_processes = True
    """Its loss is that of the global batch on every process: it must not be weighed by the process's share again."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise RecipeError(f"{type(self).__name__} needs at least one group, and got {size}")
        self.size = size

    def reduce(self, values: Tensor) -> Tensor:
        """The hook that makes sums over a rank's batch sums over the global one: `sum_across_ranks`."""
        return sum_across_ranks(values)

    def forward(self, losses: Tensor, groups: Tensor) -> Tensor:
        """The scalar loss from `losses` `[B]` and `groups` `[B]` (-1: unknown)."""
        losses = per_sample(losses, type(self).__name__)
        slots = group_slots(losses, groups)
        sums, counts = self.reduce(sum_by_group(losses, slots, self.size))
        weights = self.sample_weights(sums, counts)
        return self.reduce((F.pad(weights, (1, 0)).index_select(0, slots) * losses).sum())

    @abstractmethod
    def sample_weights(self, sums: Tensor, counts: Tensor) -> Tensor:
        """What a sample of each group weighs, `[G]`, from the global batch's loss sums and sample counts, `[G]`.

        The loss is the weighted *sum* over the batch. Called once a step; carries no gradient.
        """


def checked_counts(counts: Tensor | None, size: int, name: str) -> Tensor | None:
    """Training counts `[size]` as floats.

    Raises:
        RecipeError: where there are not `size` of them, one is negative, or all are zero.
    """
    if counts is None:
        return None
    if tuple(counts.shape) != (size,):
        raise RecipeError(f"{name} has shape {list(counts.shape)}: expected one training count per group, [{size}]")
    if bool((counts < 0).any()) or not bool((counts > 0).any()):
        raise RecipeError(f"{name} are {counts.tolist()}: expected counts of training samples, at least one above zero")
    return counts.detach().float()
