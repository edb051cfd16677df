"""Borrowing a module: evaluation mode for a while, and every part as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every part's own mode is back.

    The flags are set without calling `train` or `eval`: a module may override these to change its weights (merging
    adapters), and here it is only borrowed.
    """
    training = [part for module in modules for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True
