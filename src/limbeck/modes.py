"""Things that hold for a while and are as they were afterwards: a module's mode, the number of threads."""

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


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch inside: small models gain nothing from more, and results do not depend on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
