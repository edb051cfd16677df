"""Operations on tables `[B, C]` of many samples by few classes, without a step a row.

A reduction over ten classes that lie side by side is mostly overhead; where the values lie class by class, the same
reduction runs over all samples at once. And a choice by a mask that has no order makes the processor guess, wrong at
every other element; made of the bits themselves there is nothing to guess. Shapes and results stay what they are:
these only change where a table lies and how long it takes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHORT = 64
"""Classes up to which a table is worked on class by class; torch's own way, row by row, is faster for more."""


_LEAST = -87.0
"""An exponential below this is no normal number and takes fifty times as long; beside 1 this one is nothing already."""


def by_class(table: Tensor) -> Tensor:
    """The same table, lying class by class where classes are few."""
    return table.t().contiguous().t() if table.shape[1] <= SHORT else table.contiguous()


def below(table: Tensor, limit: Tensor) -> Tensor:
    """`table < limit`, bool; NumPy's comparison of short rows is ten times as fast as torch's."""
    return torch.from_numpy(np.less(table.numpy(), limit.numpy()))


def onehot(labels: Tensor, classes: int) -> Tensor:
    """The labels `[B]` as distributions `[B, C]`, float32, lying class by class where classes are few."""
    if classes > SHORT:
        return torch.zeros(len(labels), classes).scatter_(1, labels.unsqueeze(1), 1.0)
    found = np.equal(np.arange(classes)[:, None], labels.numpy())
    return torch.from_numpy(found.astype(np.float32)).t()


def choose(mask: Tensor, values: Tensor, others: Tensor | float) -> Tensor:
    """`torch.where(mask, values, others)` for elements of four bytes; the parts broadcast to the shape of `values`."""
    others = others if isinstance(others, Tensor) else torch.tensor(others, dtype=values.dtype)
    given = others.view(torch.int32)
    # all bits of a chosen element: -1 has them all
    return (values.view(torch.int32) ^ given).bitwise_and_(mask.int().neg_()).bitwise_xor_(given).view(values.dtype)


def first_choice(table: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row `[B, 1]` and its class `[B, 1]`, of equal ones the first."""
    classes = table.shape[1]
    if classes > SHORT:
        place = torch.from_numpy(table.numpy().argmax(1)).unsqueeze(1)
        return table.gather(1, place), place
    values = table.t().numpy()
    largest = values.max(0)
    # The first of the largest has the highest number; a row of NaN has none and is given the last class.
    numbers = np.arange(classes, 0, -1, dtype=np.int8)[:, None]
    number = ((values == largest).view(np.int8) * numbers).max(0).clip(min=1)
    place = torch.from_numpy((classes - number).astype(np.int64))
    return torch.from_numpy(largest).unsqueeze(1), place.unsqueeze(1)


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the classes, `[B, C]`."""
    if logits.shape[1] > SHORT:
        return torch.softmax(logits, 1)
    raised = (logits - logits.amax(1, keepdim=True)).exp_()
    return raised.div_(raised.sum(1, keepdim=True))


def logsumexp(table: Tensor) -> Tensor:
    """Log of the sum of exponentials over the classes, `[B, 1]`, of rows that may hold -inf, but not alone."""
    largest = table.amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    return (table - largest).clamp_(min=_LEAST).exp_().sum(1, keepdim=True).log_().add_(largest)
