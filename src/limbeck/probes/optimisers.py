"""One optimiser for many networks, whether or not their learning rates and weight decays are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.training import Training

DECOUPLED = ("adamw",)
"""Optimisers that shrink the weights themselves; the others add the decay to the gradient."""


class StackedOptimiser:
    """The optimiser of some columns of stacked weights.

    What an optimiser does to a weight is its learning rate times a step that does not depend on it. So columns that
    differ in learning rate, schedule and weight decay alone are taken together: the optimiser makes the steps, at a
    learning rate of one and without decay, and each column goes its own length.

    Args:
        parts: the trained tensors, each with the axis along which its columns lie.
        start: the first of the columns.
        trainings: their settings, whose optimiser and momentum are the same.
    """

    def __init__(self, parts: Sequence[tuple[Tensor, int]], start: int, trainings: Sequence[Training]) -> None:
        self._trainings = trainings
        first = trainings[0]
        whole = all(tensor.shape[axis] == len(trainings) for tensor, axis in parts)
        self._together = whole and all(_setting(training) == _setting(first) for training in trainings)
        self._tensors = [tensor for tensor, _ in parts]
        self._parts = [tensor.detach().narrow(axis, start, len(trainings)) for tensor, axis in parts]
        self._places = [(axis, start, len(trainings)) for _, axis in parts]
        self._steps = [] if self._together else [torch.zeros(part.shape).requires_grad_() for part in self._parts]
        how = first if self._together else replace(first, learning_rate=1.0, weight_decay=0.0)
        self._optimiser = how.make_optimiser(self._tensors if self._together else self._steps)  # type: ignore[arg-type]
        for group in self._optimiser.param_groups:
            # One pass over memory instead of ten.
            group["fused"], group["foreach"] = True, False
        self._step = how.stepper(self._optimiser)
        self._decays = [training.weight_decay for training in trainings]
        self._rates: list[Tensor] = []
        self._kept: list[Tensor] = []

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rates."""
        rates = [training.learning_rate * training.factor(epoch) for training in self._trainings]
        if self._together:
            for group in self._optimiser.param_groups:
                group["lr"] = rates[0]
            return
        kept = [1.0 - rate * decay for rate, decay in zip(rates, self._decays, strict=True)]
        self._rates = [_along(rates, part, axis) for part, (axis, *_) in zip(self._parts, self._places, strict=True)]
        self._kept = [_along(kept, part, axis) for part, (axis, *_) in zip(self._parts, self._places, strict=True)]

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients of the tensors."""
        if self._together:
            self._step()
            return
        decays = any(self._decays)
        coupled = decays and self._trainings[0].optimiser not in DECOUPLED
        for tensor, part, step, place in zip(self._tensors, self._parts, self._steps, self._places, strict=True):
            assert tensor.grad is not None
            slope = tensor.grad.narrow(*place)
            decayed = slope + part * _along(self._decays, part, place[0]) if coupled else slope
            step.grad = decayed.contiguous()
            step.zero_()
        self._step()
        for part, step, rate, kept in zip(self._parts, self._steps, self._rates, self._kept, strict=True):
            if decays and not coupled:
                part.mul_(kept)
            part.addcmul_(step, rate)


def _setting(training: Training) -> tuple[object, ...]:
    return (training.learning_rate, training.weight_decay, training.schedule)


def _along(values: Sequence[float], part: Tensor, axis: int) -> Tensor:
    """One value a column, in a shape that goes with the tensor."""
    return torch.tensor(values, dtype=part.dtype).view([-1 if place == axis else 1 for place in range(part.dim())])
